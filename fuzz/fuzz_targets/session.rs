//! The session on any bytes in any pieces: see `corecast_fuzz::session`. Counts memory.
#![no_main]

mod counting;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| corecast_fuzz::session::check(data, counting::held_bytes));
