//! The first bytes say where to cut the rest, which is a request, an answer and a stream.
#![no_main]
#[path = "../invariants/dialect.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (cuts, input) = data.split_at(data.len().min(2));
    let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut)).collect();
    invariants::check(input, &cuts);
});
