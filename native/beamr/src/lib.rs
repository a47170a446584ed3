//! The native half of Beamr: wasmtime instances as resources of the Erlang VM.
//!
//! Each file mirrors a part of `Beamr.Native`; functions are named `<file>_<verb>`.

mod alarm;
mod artifact;
mod atoms;
mod bench;
mod block;
mod bounds;
mod call;
mod common;
mod compact;
mod count;
mod deaths;
mod diagnosis;
mod engine;
mod error;
mod exchange;
mod export;
mod framing;
mod held;
mod import;
mod instance;
mod list;
mod mapping;
mod memory;
mod module;
mod nif;
mod number;
mod reserving;
mod resource;
mod rest;
mod sections;
mod slice;
mod spares;
mod stack;
mod stdio;
mod store;
mod sync;
mod text;
mod typed;
mod utf8;
mod value;
mod wasi;

use rustler::{Env, Term};

/// `options` is what `Beamr.Native` passes on loading: the guest stack size in bytes, or nil.
fn load(env: Env, max_stack: Term) -> bool {
    if let Ok(bytes) = max_stack.decode::<usize>() {
        engine::set_max_stack(bytes);
    }
    engine::start_ticker().is_ok() && resource::register(env)
}

rustler::init!("Elixir.Beamr.Native", load = load);
