//! Any bytes as a request body.
#![no_main]
#[path = "../invariants/peek.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| invariants::check(body));
