//! Hunts with [`raidd_fuzz::metadata`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raidd_fuzz::metadata(data));
