//! What the host has allocated in a guest and not given back.
//!
//! Invariants: no two entries overlap, because an allocation that overlaps an older one shows
//! that the guest has freed that itself; so there are never more entries than the memory has
//! room for. The table dies with its instance, and is empty once that is closed. Its lock is the
//! innermost: nothing else is locked while it is held.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rustler::{Atom, Encoder, Env, LocalPid, Term};

use crate::atoms;
use crate::error::{self, Fault, Stop};
use crate::instance::{InstanceResource, Wait};
use crate::memory::MANY;
use crate::nif::operation;

/// By pointer.
#[derive(Default)]
pub struct Held(Mutex<BTreeMap<u64, Allocation>>);

struct Allocation {
    size: u64,
    /// None for a process of another node.
    by: Option<LocalPid>,
}

impl Held {
    pub fn clear(&self) {
        drop(std::mem::take(&mut *self.0.lock()));
    }

    fn note(&self, pointer: u64, allocation: Allocation) {
        let mut held = self.0.lock();
        // The pointer of an allocation of no bytes is its own too.
        let end = pointer.saturating_add(allocation.size.max(1));
        while let Some((&before, older)) = held.range(..end).next_back() {
            if before.saturating_add(older.size.max(1)) <= pointer {
                break;
            }
            held.remove(&before);
        }
        held.insert(pointer, allocation);
    }
}

/// Notes that the process holds `size` bytes at `pointer`.
#[rustler::nif]
fn held_note(instance: &InstanceResource, pointer: u64, size: u64, by: Term) -> Atom {
    // Closing sets the mark first and clears the table after it.
    if !instance.is_closing() {
        instance.held.note(pointer, Allocation { size, by: by.decode().ok() });
        if instance.is_closing() {
            instance.held.clear();
        }
    }
    atoms::ok()
}

/// Takes out what is noted of a pointer and answers it, `{size, by}`, or nil.
#[rustler::nif]
fn held_forget<'a>(env: Env<'a>, instance: &'a InstanceResource, pointer: Term) -> Term<'a> {
    let pointer = pointer.decode::<u64>().ok();
    let forgotten = pointer.and_then(|pointer| instance.held.0.lock().remove(&pointer));
    forgotten.map(|allocation| (allocation.size, allocation.by)).encode(env)
}

#[rustler::nif]
fn held_count<'a>(env: Env<'a>, instance: &'a InstanceResource) -> Term<'a> {
    match instance.is_closing() {
        true => error::encode(env, &Fault::Stop(Stop::Closed)),
        false => (atoms::ok(), instance.held.0.lock().len()).encode(env),
    }
}

fn list<'a>(env: Env<'a>, instance: &InstanceResource, wait: Wait) -> Term<'a> {
    if instance.is_closing() {
        return error::encode(env, &Fault::Stop(Stop::Closed));
    }
    let held = instance.held.0.lock();
    if wait == Wait::Briefly && held.len() > MANY {
        return atoms::dirty().encode(env);
    }
    let entries = held.iter().rev();
    let list = entries.fold(Term::list_new_empty(env), |list, (pointer, allocation)| {
        list.list_prepend((*pointer, allocation.size, allocation.by))
    });
    (atoms::ok(), list).encode(env)
}

operation!(held_list, held_list_dirty, list());
