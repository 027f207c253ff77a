//! The opening handshake on any bytes in any pieces: see `corecast_fuzz::handshake`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| corecast_fuzz::handshake::check(data));
