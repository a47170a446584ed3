//! When the ticker rests, and who wakes it. `native/models` includes this file.
//!
//! Invariant: while any slice runs, the ticker is awake or about to be. Either a slice that
//! begins sees that the ticker is asleep, and wakes it, or the ticker sees the slice.

use crate::sync::{AtomicBool, AtomicUsize, Ordering::SeqCst};

pub struct Rest {
    /// Slices that have begun and not ended.
    pub running: AtomicUsize,
    pub asleep: AtomicBool,
}

impl Rest {
    /// A slice begins.
    #[inline]
    pub fn begin(&self, wake: impl FnOnce()) {
        self.running.fetch_add(1, SeqCst);
        if self.asleep.load(SeqCst) && self.asleep.swap(false, SeqCst) {
            wake();
        }
    }

    /// A slice ends.
    #[inline]
    pub fn end(&self) {
        self.running.fetch_sub(1, SeqCst);
    }

    pub fn is_idle(&self) -> bool {
        self.running.load(SeqCst) == 0
    }

    /// Puts the ticker to sleep until a slice begins. `park` may come back for no reason.
    pub fn sleep(&self, park: impl Fn()) {
        self.asleep.store(true, SeqCst);
        while self.asleep.load(SeqCst) && self.is_idle() {
            park();
        }
        self.asleep.store(false, SeqCst);
    }
}
