//! Tests of the seating.
