//! When the ticker rests, and who wakes it. `native/models` includes this file.
//!
//! Slices are many and nearly all end within a tick, so a slice that begins only reads what all
//! processors share. It is counted once it has outlasted a tick.
//!
//! Invariant: while guest code runs, the ticker is awake, or about to be, or the guest is about to
//! be asked whether it goes on. For the ticker ticks once more after it has said that it is
//! asleep. A slice that begins after its deadline has been set either has it no later than that
//! tick, and is asked, or has seen the tick, and so sees that the ticker is asleep. One that goes on
//! when it is asked is counted before its next deadline is set, and keeps the ticker awake until
//! it ends; what it then goes on with is a slice that begins.

use crate::sync::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, SeqCst},
    fence,
};

pub struct Rest {
    /// Whether a slice has begun since the ticker last looked.
    pub begun: AtomicBool,
    /// Slices that have outlasted a tick and not ended.
    pub lasting: AtomicUsize,
    pub asleep: AtomicBool,
}

impl Rest {
    /// A slice begins, under a deadline, in ticks, that has been set.
    #[inline]
    pub fn begin(&self, wake: impl FnOnce()) {
        // Read first, because it nearly always is so, and what is only read stays in the caches.
        if !self.begun.load(Relaxed) {
            self.begun.store(true, Relaxed);
        }
        // Whoever has seen the last tick sees that the ticker is asleep.
        fence(Acquire);
        if self.asleep.load(Relaxed) {
            self.wake(wake);
        }
    }

    /// A slice goes on after its first tick. Its next deadline is to be set after this.
    pub fn outlast(&self, wake: impl FnOnce()) {
        self.lasting.fetch_add(1, SeqCst);
        if self.asleep.load(SeqCst) {
            self.wake(wake);
        }
    }

    fn wake(&self, wake: impl FnOnce()) {
        if self.asleep.swap(false, SeqCst) {
            wake();
        }
    }

    /// A slice that has outlasted a tick ends.
    pub fn end(&self) {
        self.lasting.fetch_sub(1, SeqCst);
    }

    /// Whether no slice has begun since this was asked last, and none lasts.
    pub fn was_idle(&self) -> bool {
        !self.begun.swap(false, SeqCst) && self.lasting.load(SeqCst) == 0
    }

    /// Puts the ticker to sleep until a slice begins. `tick` ticks, and `park` may come back for no
    /// reason.
    pub fn sleep(&self, tick: impl FnOnce(), park: impl Fn()) {
        self.asleep.store(true, SeqCst);
        fence(SeqCst);
        tick();
        while self.asleep.load(SeqCst) && self.lasting.load(SeqCst) == 0 {
            park();
        }
        self.asleep.store(false, SeqCst);
    }
}
