//! The deliberate faults of the engine, as the simulator uses them.

pub use raidd::engine::mutant::{self, Mutant};
