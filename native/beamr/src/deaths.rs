//! Deaths that an instance has been told of and that have not been dealt with yet.
//! `native/models` includes this file.
//!
//! Invariant: a death that has been told is dealt with once the state's lock is free, by whoever
//! told of it or by whoever let go of the lock last.

use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering::SeqCst, fence};

pub struct Deaths<T> {
    told: AtomicBool,
    who: Mutex<Vec<T>>,
}

impl<T> Deaths<T> {
    pub fn new() -> Self {
        Deaths { told: AtomicBool::new(false), who: Mutex::new(Vec::new()) }
    }

    /// Tells of a death. The state's lock, if it can be had, is for [`Self::unlock`]; otherwise
    /// whoever has it sees the death when it lets go.
    pub fn tell<'a, S>(&self, who: T, state: &'a Mutex<S>) -> Option<MutexGuard<'a, S>> {
        self.who.lock().push(who);
        self.told.swap(true, SeqCst);
        // A lock may be tried before an earlier store is seen, and would then be found held by
        // one who has let go without seeing the death.
        fence(SeqCst);
        state.try_lock()
    }

    /// Lets go of the state's lock, after dealing with every death that was told meanwhile.
    pub fn unlock<'a, S>(
        &self,
        lock: &'a Mutex<S>,
        mut state: MutexGuard<'a, S>,
        mut bury: impl FnMut(&mut S, T),
    ) {
        loop {
            // Looked at first because it is nearly always false, and a swap costs more. What is told
            // after the look is seen after the lock is free.
            if self.told.load(SeqCst) && self.told.swap(false, SeqCst) {
                let who = std::mem::take(&mut *self.who.lock());
                for who in who {
                    bury(&mut state, who);
                }
            }
            MutexGuard::unlock_fair(state);
            if !self.told.load(SeqCst) {
                return;
            }
            match lock.try_lock() {
                Some(again) => state = again,
                None => return,
            }
        }
    }
}
