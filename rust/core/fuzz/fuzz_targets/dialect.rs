//! A request, an answer and a stream at once; its length says how it is cut. Seeds are the golden
//! files: `cargo fuzz run dialect fuzz/corpus/dialect ../../tests/data/dialects/anthropic/asked`.
#![no_main]
#[path = "../invariants/dialect.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| invariants::check(data, &[data.len() % 13 + 1]));
