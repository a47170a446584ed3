//! Loom's stand-ins for what the library takes from `std` and `parking_lot`.
//!
//! Loom takes `SeqCst` for `AcqRel`, but knows fences. So each such access has a fence before it,
//! which is how compilers make them on processors without better ones, and is no stronger than
//! the language promises: a store may still be overtaken by a later weaker load.

use std::ops::{Deref, DerefMut};

use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};

pub use loom::sync::atomic::{Ordering, fence};

fn lead(order: Ordering) {
    if order == Ordering::SeqCst {
        fence(order);
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        pub struct $name(loom::sync::atomic::$name);

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

/// A lock with the orders of `parking_lot`'s, above all the first look of one who tries it:
/// that is the weakest there is, and may find it held when it is free. Loom's own never does.
pub struct Mutex<T> {
    held: loom::sync::atomic::AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by way of a guard only, and there is one guard at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}

pub struct MutexGuard<'a, T>(&'a Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Mutex { held: loom::sync::atomic::AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let free = !self.held.load(Relaxed);
        (free && self.held.compare_exchange(false, true, Acquire, Relaxed).is_ok())
            .then_some(MutexGuard(self))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        while self.held.compare_exchange(false, true, Acquire, Relaxed).is_err() {
            loom::thread::yield_now();
        }
        MutexGuard(self)
    }
}

impl<'a, T> MutexGuard<'a, T> {
    pub fn unlock_fair(guard: Self) {
        drop(guard);
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // As in `parking_lot`, not a store but an exchange.
        let _ = self.0.held.compare_exchange(true, false, Release, Relaxed);
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is no other guard, and so no other reference.
        self.0.value.with(|value| unsafe { &*value })
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is no other guard, and so no other reference.
        self.0.value.with_mut(|value| unsafe { &mut *value })
    }
}
