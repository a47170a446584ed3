//! Loom's stand-ins for what the library takes from `std` and `parking_lot`.
//!
//! Loom takes `SeqCst` for `AcqRel`, but knows fences. So each such access has a fence before it,
//! which is how compilers make them on processors without better ones, and is no stronger than
//! the language promises: a store may still be overtaken by a later weaker load.

use std::ops::{Deref, DerefMut};

use loom::sync::atomic::Ordering::Relaxed;

pub use loom::sync::atomic::{Ordering, fence};

fn lead(order: Ordering) {
    if order == Ordering::SeqCst {
        fence(order);
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        pub struct $name(loom::sync::atomic::$name);

        // Not every type is used in every way.
        #[allow(dead_code)]
        impl $name {
            pub fn new(value: $value) -> Self {
                $name(loom::sync::atomic::$name::new(value))
            }

            pub fn load(&self, order: Ordering) -> $value {
                lead(order);
                self.0.load(order)
            }

            pub fn store(&self, value: $value, order: Ordering) {
                lead(order);
                self.0.store(value, order);
            }

            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                lead(order);
                self.0.swap(value, order)
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicUsize, usize);

impl AtomicUsize {
    pub fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        lead(order);
        self.0.fetch_add(value, order)
    }

    pub fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        lead(order);
        self.0.fetch_sub(value, order)
    }
}

/// Loom's own lock, but that one who only tries it looks first whether it is held, as with
/// `parking_lot`: in the weakest order there is, so that it may be found held when it is free.
pub struct Mutex<T> {
    lock: loom::sync::Mutex<T>,
    held: loom::sync::atomic::AtomicBool,
}

pub struct MutexGuard<'a, T> {
    guard: loom::sync::MutexGuard<'a, T>,
    held: &'a loom::sync::atomic::AtomicBool,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        let held = loom::sync::atomic::AtomicBool::new(false);
        Mutex { lock: loom::sync::Mutex::new(value), held }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.hold(self.lock.lock().unwrap())
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        if self.held.load(Relaxed) {
            return None;
        }
        self.lock.try_lock().ok().map(|guard| self.hold(guard))
    }

    fn hold<'a>(&'a self, guard: loom::sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.held.swap(true, Relaxed);
        MutexGuard { guard, held: &self.held }
    }
}

impl<T> MutexGuard<'_, T> {
    pub fn unlock_fair(guard: Self) {
        drop(guard);
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.held.swap(false, Relaxed);
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
