//! Baselines for the benchmarks: what a NIF costs that does nothing, and one that copies.

use rustler::{Atom, Binary, Encoder, Env, NewBinary, Term};

use crate::atoms;

#[rustler::nif]
fn bench_noop() -> Atom {
    atoms::ok()
}

#[rustler::nif]
fn bench_binary<'a>(env: Env<'a>, bytes: Binary<'a>) -> Term<'a> {
    (atoms::ok(), Term::from(NewBinary::from_slice(env, bytes.as_slice()))).encode(env)
}
