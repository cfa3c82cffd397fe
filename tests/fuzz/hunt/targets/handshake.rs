//! Hunts with [`raidd_fuzz::handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raidd_fuzz::handshake(data));
