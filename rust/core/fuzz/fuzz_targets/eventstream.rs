//! The first bytes say where to cut the rest, which is the stream.
#![no_main]
#[path = "../invariants/eventstream.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (cuts, stream) = data.split_at(data.len().min(4));
    let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut)).collect();
    invariants::check(stream, &cuts);
});
