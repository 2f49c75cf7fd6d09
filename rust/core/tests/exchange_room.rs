//! The memory that a request in flight takes.
#![allow(missing_docs)]

use forebay_core::exchange::{Job, drive};
use forebay_core::record::Record;

const fn room<F: Future>(_: &impl Fn(Box<Job>, Record) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_request_carries_no_room_for_what_is_rare() {
    // Tens of thousands are in flight at once, and each is moved to the heap as it begins.
    assert!(room(&drive) <= 90 * 64, "{}", room(&drive));
}
