//! How many native objects of each kind there are, so that a test can tell what is never freed.
//!
//! Invariant: an object counts from when its [`Live`] is made until that is dropped, wherever
//! the object itself has got to.

use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

use rustler::{Encoder, Env, Term};

use crate::atoms;

pub const MODULE: usize = 0;
pub const INSTANCE: usize = 1;
pub const STORE: usize = 2;
pub const FUNCTION: usize = 3;
pub const TERM: usize = 4;
pub const WASI: usize = 5;

static LIVE: [AtomicIsize; 6] = [const { AtomicIsize::new(0) }; 6];

/// Part of each object that is counted. It takes no room.
pub struct Live<const KIND: usize>(());

impl<const KIND: usize> Live<KIND> {
    pub fn new() -> Self {
        LIVE[KIND].fetch_add(1, Relaxed);
        Live(())
    }
}

impl<const KIND: usize> Drop for Live<KIND> {
    fn drop(&mut self) {
        LIVE[KIND].fetch_sub(1, Relaxed);
    }
}

#[rustler::nif]
fn count_live(env: Env) -> Term {
    let names = [
        atoms::modules(),
        atoms::instances(),
        atoms::stores(),
        atoms::functions(),
        atoms::terms(),
        atoms::wasi(),
    ];
    let counts = LIVE.iter().map(|count| count.load(Relaxed));
    names.into_iter().zip(counts).collect::<Vec<_>>().encode(env)
}
