//! Inflating any bytes, and what was deflated before: see `corecast_fuzz::deflate`. Counts memory.
#![no_main]

mod counting;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| corecast_fuzz::deflate::check(data, counting::held_bytes));
