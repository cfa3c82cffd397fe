//! Hunts with [`raidd_fuzz::transmission`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raidd_fuzz::transmission(data));
