//! The real engine in a simulated world.
//!
//! `world` is the scheduler, the clock and the dice; `disk` the disks; `setup` makes arrays; `verify` reads members
//! independently of the engine; `rounds` are the random runs.

mod crashes;
mod disk;
mod members;
mod rounds;
mod scenarios;

mod setup;
mod verify;
mod world;
