//! Named scenarios, and stories told from beginning to end in the simulated world.
//!
//! `named` has one scenario for each bug that was found in review, `found` and `soaked` for each that random seeds found; `rounds`
//! drives every shape against a plain array of bytes; `copies` gives copies of arrays a UUID of their own; `members` lets members come and go
//! under load; `mending` is about what makes an array whole again; `grow` about what an array is changed into; `crashes` crashes at
//! every single change of short stories; `streams` is about writes
//! that follow each other, `reads` about whom reads are asked of.

mod copies;
mod crashes;
mod found;
mod grow;
mod members;
mod mending;
mod named;
mod reads;
mod rounds;
mod soaked;
mod streams;
