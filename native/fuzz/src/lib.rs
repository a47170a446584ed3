//! The conversions of Beamr that need neither the Erlang VM nor wasmtime, for libFuzzer.
//!
//! The files under test are those of the library itself. Each target in `fuzz_targets` holds one
//! of them against another way to the same answer; `bin/hostile bytes` runs them all.

#[path = "../../beamr/src/bounds.rs"]
pub mod bounds;
#[path = "../../beamr/src/diagnosis.rs"]
pub mod diagnosis;
#[path = "../../beamr/src/framing.rs"]
pub mod framing;
#[path = "../../beamr/src/number.rs"]
pub mod number;
#[path = "../../beamr/src/sections.rs"]
pub mod sections;
#[path = "../../beamr/src/text.rs"]
pub mod text;
