//! Models of the protocols between threads in Beamr: loom runs each in every order that its
//! threads can get into, with every value that an atomic may have by the rules of memory, and
//! fails where one ends in a wait without end or in a wrong answer.
//!
//! The files under test are those of the library itself; only what they take from `crate::sync`
//! is loom's. `cargo test --release` runs them all.

#[cfg(test)]
#[path = "../../beamr/src/deaths.rs"]
mod deaths;
#[cfg(test)]
#[path = "../../beamr/src/rest.rs"]
mod rest;
#[cfg(test)]
mod sync;

#[cfg(test)]
mod deaths_test;
#[cfg(test)]
mod rest_test;
