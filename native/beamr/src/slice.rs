//! How long the slices of a call are, and what makes them shorter or longer.
//!
//! A guest is asked at every tick whether it may go on ([`crate::store`]), so that whoever waits
//! for it waits for a tick, however long the slice. Everything here is advice: it is read without
//! a lock, and being a tick too late does no harm.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::engine::TICK;

/// What a slice holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Slice {
    /// A normal scheduler, mostly: the first of a call or after an import, a tick or two long
    /// because it can begin anywhere within a tick.
    First,
    /// A normal scheduler, which every process needs: as short as can be.
    Normal,
    /// A dirty scheduler. Longer, since changing hands there costs microseconds.
    Dirty,
}

const FIRST: u32 = 2;
const NORMAL: u32 = 1;
const DIRTY: u32 = 5;

/// On a dirty scheduler that no other guest waits for. Whoever else waits for it is another NIF's
/// job: those wait for each other as long.
const UNCONTENDED: u32 = 25;

/// A slice is at most so much longer for the sake of a deadline.
const NORMAL_GRACE: Duration = Duration::from_micros(600);
const DIRTY_GRACE: Duration = Duration::from_millis(10);

impl Slice {
    pub fn of(byte: u8) -> Self {
        [Slice::First, Slice::Normal, Slice::Dirty]
            .into_iter()
            .find(|slice| *slice as u8 == byte)
            .unwrap_or(Slice::First)
    }

    /// How long it lasts, in ticks.
    pub fn ticks(self) -> u32 {
        match self {
            _ if URGENT.load(Relaxed) > 0 => 1,
            Slice::First => FIRST,
            Slice::Normal => NORMAL,
            Slice::Dirty if QUEUED.load(Relaxed) > 0 => DIRTY,
            Slice::Dirty => UNCONTENDED,
        }
    }

    /// Whether a call that has so much time left goes on until it is over: it would get its next
    /// slice too late to hear of it, or not be worth one.
    pub fn outlasts(self, left: Duration) -> bool {
        match self {
            Slice::First | Slice::Normal => left < NORMAL_GRACE,
            Slice::Dirty => {
                let usual_wait = Duration::from_nanos(USUAL_WAIT.load(Relaxed));
                left < DIRTY_GRACE && left < TICK + 2 * usual_wait
            }
        }
    }
}

/// Guests whose slice has ended and that wait for their next one.
static QUEUED: AtomicUsize = AtomicUsize::new(0);

/// Those of them that are to end, and should not wait long for it.
static URGENT: AtomicUsize = AtomicUsize::new(0);

/// How long they have had to wait lately, in nanoseconds.
static USUAL_WAIT: AtomicU64 = AtomicU64::new(0);

/// Of what a wait differs from the usual, this part is learned.
const LEARNED: u64 = 4;

/// Held by a guest from the end of a slice to the beginning of the next.
pub struct Queued {
    since: Instant,
    urgent: bool,
}

impl Queued {
    pub fn begin() -> Self {
        QUEUED.fetch_add(1, Relaxed);
        Queued { since: Instant::now(), urgent: false }
    }

    /// Makes the slices of all others short until its own begins.
    pub fn hurry(&mut self) {
        if !std::mem::replace(&mut self.urgent, true) {
            URGENT.fetch_add(1, Relaxed);
        }
    }

    /// The next slice begins.
    pub fn end(self) {
        let waited = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let usual = USUAL_WAIT.load(Relaxed);
        USUAL_WAIT.store(usual - usual / LEARNED + waited / LEARNED, Relaxed);
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        QUEUED.fetch_sub(1, Relaxed);
        if self.urgent {
            URGENT.fetch_sub(1, Relaxed);
        }
    }
}
