//! The session beside tungstenite on the same bytes: see `corecast_fuzz::differential`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| corecast_fuzz::differential::check(data));
