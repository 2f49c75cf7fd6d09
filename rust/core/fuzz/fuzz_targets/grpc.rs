//! Any bytes as a message, and as JSON; the first one says of which method.
#![no_main]
#[path = "../invariants/grpc.rs"]
mod invariants;

use forebay_core::door::grpc::Method;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, bytes)) = bytes.split_first() {
        let method = Method::ALL[usize::from(*first) % Method::ALL.len()];
        invariants::check(method, bytes);
    }
});
