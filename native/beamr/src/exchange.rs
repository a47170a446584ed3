//! What passes between a guest that is suspended and the NIFs that drive its call: what the
//! guest asks, what it is handed, when it has to stop, and where its memories lie meanwhile.
//!
//! Invariant: only the holder of the instance's lock uses the slots and begins and ends calls, so
//! what it takes out belongs to the poll it just made. (The slots are in a cell that panics where
//! two uses overlap, and costs half of another lock.) The stop request may be set at any time, by
//! anyone.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant as Clock};

use atomic_refcell::AtomicRefCell;
use parking_lot::Mutex;

use crate::call::{Args, Outcome, Target};
use crate::engine;
use crate::error::{Fault, Stop};
use crate::export::{Operation, Product};
use crate::memory::View;
use crate::slice::Slice;
use crate::value::Value;

/// What the guest's side asks of the process that drives the call.
pub enum Asked {
    /// Call the Elixir function behind this import.
    Import { index: usize, args: Vec<Value> },
    /// Nothing more: the nested call that was handed in has ended.
    Called(Outcome),
    /// Nothing more: the operation that was handed in is done.
    Performed(Result<Product, Fault>),
}

/// What the driving process hands to the import that is suspended.
pub enum Errand {
    /// What the import has returned.
    Return(Vec<Value>),
    Stop(Stop),
    Call {
        target: Target,
        args: Args,
    },
    Perform(Operation),
}

const RUNNING: u8 = 0;
const NO_DEADLINE: u64 = u64::MAX;
const NEVER: u64 = u64::MAX;

static EPOCH: LazyLock<Clock> = LazyLock::new(Clock::now);

fn now() -> u64 {
    nanoseconds(EPOCH.elapsed())
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos().into())
}

pub struct Exchange {
    stop: AtomicU8,
    deadline: AtomicU64,
    /// The tick in which the clock was last looked at, and there was time left.
    looked: AtomicU64,
    /// The [`Slice`] that is running.
    slice: AtomicU8,
    /// Whether the slice that is running has outlasted a tick.
    lasting: AtomicBool,
    /// How many wait for the instance's lock, and so for the slice that is running to end.
    waiting: AtomicUsize,
    /// How many calls have begun and not ended.
    depth: AtomicUsize,
    /// Whether the innermost call's integers go to Elixir unsigned.
    unsigned: AtomicBool,
    /// Whether the views are those of the memories as they are.
    captured: AtomicBool,
    slots: AtomicRefCell<Slots>,
    /// Where the memories are, as long as none of them has grown since.
    views: Mutex<Vec<View>>,
}

#[derive(Default)]
struct Slots {
    asked: Option<Asked>,
    errand: Option<Errand>,
    /// What is kept of each call while others are nested in it, outermost first.
    outer: Vec<Frame>,
    /// The imports that are suspended, outermost first.
    awaiting: Vec<usize>,
}

impl Slots {
    /// The room is kept for the next call.
    fn clear(&mut self) {
        self.asked = None;
        self.errand = None;
        self.outer.clear();
        self.awaiting.clear();
    }
}

struct Frame {
    deadline: u64,
    unsigned: bool,
}

impl Exchange {
    pub fn new() -> Self {
        Exchange {
            stop: AtomicU8::new(RUNNING),
            deadline: AtomicU64::new(NO_DEADLINE),
            looked: AtomicU64::new(0),
            slice: AtomicU8::new(Slice::First as u8),
            lasting: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            depth: AtomicUsize::new(0),
            unsigned: AtomicBool::new(false),
            captured: AtomicBool::new(false),
            slots: AtomicRefCell::default(),
            views: Mutex::default(),
        }
    }

    /// Begins a call, nested in those that have begun before. It ends no later than the call it is
    /// nested in.
    pub fn begin(&self, timeout: Option<Duration>, unsigned: bool) {
        let deadline =
            timeout.map_or(NO_DEADLINE, |timeout| now().saturating_add(nanoseconds(timeout)));
        // One that has no time at all is to be seen to at once.
        let looked = if timeout == Some(Duration::ZERO) { NEVER } else { engine::ticks() };
        self.looked.store(looked, Relaxed);
        let depth = self.depth();
        let outer =
            Frame { deadline: self.deadline.load(Relaxed), unsigned: self.unsigned.load(Relaxed) };
        self.unsigned.store(unsigned, Relaxed);
        if depth == 0 {
            self.stop.store(RUNNING, Relaxed);
            self.deadline.store(deadline, Relaxed);
        } else {
            self.deadline.store(deadline.min(outer.deadline), Relaxed);
            self.slots.borrow_mut().outer.push(outer);
        }
        self.depth.store(depth + 1, Relaxed);
    }

    /// Ends the innermost call, which has come to its end; answers whether its integers go to Elixir
    /// unsigned. It leaves nothing in the slots.
    pub fn end(&self) -> bool {
        let unsigned = self.unsigned.load(Relaxed);
        let inner = self.depth().saturating_sub(1);
        self.depth.store(inner, Relaxed);
        if inner > 0
            && let Some(outer) = self.slots.borrow_mut().outer.pop()
        {
            self.deadline.store(outer.deadline, Relaxed);
            self.unsigned.store(outer.unsigned, Relaxed);
            // Its own deadline may be over, whichever that of the inner call was.
            self.looked.store(NEVER, Relaxed);
        }
        unsigned
    }

    /// Ends the innermost call, which has failed.
    pub fn fail(&self) {
        match self.depth() {
            0 | 1 => self.end_all(),
            _ => {
                self.end();
            }
        }
    }

    /// Ends every call that has begun, and forgets what was under way.
    pub fn end_all(&self) {
        self.depth.store(0, Relaxed);
        self.slots.borrow_mut().clear();
    }

    /// How many calls have begun and not ended.
    pub fn depth(&self) -> usize {
        self.depth.load(Relaxed)
    }

    /// Whether an import waits for an answer from the driving process.
    pub fn is_awaiting(&self) -> bool {
        self.is_innermost(&self.slots.borrow())
    }

    /// Whether the import that was asked for last is the one that waits, and no call is nested in it.
    fn is_innermost(&self, slots: &Slots) -> bool {
        slots.awaiting.len() == self.depth()
    }

    /// Asks the call in flight to end at its next safe point. The first reason stays, but for
    /// those that leave nobody to answer to.
    pub fn request_stop(&self, stop: Stop) {
        match stop {
            Stop::Interrupted => {
                let _ = self.stop.compare_exchange(RUNNING, stop as u8, Relaxed, Relaxed);
            }
            _ => self.stop.store(stop as u8, Relaxed),
        }
    }

    /// Why the innermost call should not go on.
    pub fn stop(&self) -> Option<Stop> {
        if let Some(stop) = self.requested() {
            return Some(stop);
        }
        let deadline = self.deadline.load(Relaxed);
        (deadline != NO_DEADLINE && now() >= deadline).then_some(Stop::Timeout)
    }

    /// As [`Self::stop`], but where there was time left looks at the clock once in a tick. For what
    /// happens often.
    pub fn stop_of_tick(&self) -> Option<Stop> {
        let tick = engine::ticks();
        if self.looked.load(Relaxed) == tick {
            return self.requested();
        }
        let stop = self.stop();
        // A stop the call that this one is nested in is to see too, and where the ticker is at rest
        // the next look may be long after this one and still in the same tick.
        let settled = stop.is_none() && !engine::is_at_rest();
        self.looked.store(if settled { tick } else { NEVER }, Relaxed);
        stop
    }

    fn requested(&self) -> Option<Stop> {
        let requested = self.stop.load(Relaxed);
        [Stop::Interrupted, Stop::Closed, Stop::CallerDied]
            .into_iter()
            .find(|stop| *stop as u8 == requested)
    }

    /// Said before each poll: what was recorded of the memories may be so no longer.
    pub fn running(&self) {
        self.captured.store(false, Relaxed);
    }

    /// Said where a poll is about to end, and nowhere else: what was recorded of the memories is so.
    pub fn suspended(&self) {
        self.captured.store(true, Relaxed);
    }

    /// Whether others may reach the memories by what was recorded.
    pub fn is_captured(&self) -> bool {
        self.captured.load(Relaxed)
    }

    /// Records where the memories are, for those who reach them while the guest is suspended.
    pub fn set_views(&self, views: impl Iterator<Item = View>) {
        let mut recorded = self.views.lock();
        recorded.clear();
        recorded.extend(views);
    }

    /// A stop after which nobody answers imports any more.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.requested(), Some(Stop::Closed | Stop::CallerDied))
    }

    pub fn set_slice(&self, slice: Slice) {
        self.slice.store(slice as u8, Relaxed);
    }

    /// Whether the slice that is running may last longer than the ticks it has had.
    pub fn may_go_on(&self, ticks: u32) -> bool {
        let slice = Slice::of(self.slice.load(Relaxed));
        self.waiting.load(Relaxed) == 0
            && (ticks < slice.ticks() || self.time_left().is_some_and(|left| slice.outlasts(left)))
    }

    /// Said at each tick after which the slice goes on.
    pub fn outlast_tick(&self) {
        if !self.lasting.load(Relaxed) {
            self.lasting.store(true, Relaxed);
            engine::slice_outlasts_tick();
        }
    }

    /// Said after each poll, which is where slices end.
    pub fn end_slice(&self) {
        if self.lasting.load(Relaxed) {
            self.lasting.store(false, Relaxed);
            engine::slice_ended();
        }
    }

    /// Runs `f`, which waits for the slice that is running to end.
    pub fn waiting<R>(&self, f: impl FnOnce() -> R) -> R {
        self.waiting.fetch_add(1, Relaxed);
        let result = f();
        self.waiting.fetch_sub(1, Relaxed);
        result
    }

    /// How long it is until the time of the innermost call is up, or was of the last one.
    pub fn time_left(&self) -> Option<Duration> {
        match self.deadline.load(Relaxed) {
            NO_DEADLINE => None,
            deadline => Some(Duration::from_nanos(deadline.saturating_sub(now()))),
        }
    }

    pub fn post(&self, asked: Asked) {
        self.slots.borrow_mut().asked = Some(asked);
    }

    /// Asks for an import.
    pub fn post_import(&self, index: usize, args: Vec<Value>) {
        let mut slots = self.slots.borrow_mut();
        slots.awaiting.push(index);
        slots.asked = Some(Asked::Import { index, args });
    }

    pub fn take_asked(&self) -> Option<Asked> {
        self.slots.borrow_mut().asked.take()
    }

    /// Answers the import that waits, if one does, with what it returned or why the guest has to
    /// stop.
    pub fn respond(&self, results: impl FnOnce(usize) -> Result<Vec<Value>, Stop>) {
        let mut slots = self.slots.borrow_mut();
        if !self.is_innermost(&slots) {
            return;
        }
        let Some(index) = slots.awaiting.pop() else { return };
        slots.errand = Some(match results(index) {
            Ok(values) => Errand::Return(values),
            Err(stop) => Errand::Stop(stop),
        });
    }

    /// Hands something to do to the import that waits.
    pub fn send(&self, errand: Errand) {
        self.slots.borrow_mut().errand = Some(errand);
    }

    /// What the driving process wants of the innermost suspended import, polled for by that.
    pub fn poll_errand(&self) -> Poll<Errand> {
        let errand = self.slots.borrow_mut().errand.take();
        if let Some(errand) = errand {
            return Poll::Ready(errand);
        }
        if self.is_abandoned() {
            return Poll::Ready(Errand::Stop(self.stop().unwrap_or(Stop::Closed)));
        }
        self.suspended();
        Poll::Pending
    }

    /// The memories as they were when the guest was last suspended.
    pub fn with_views<R>(&self, f: impl FnOnce(&mut [View]) -> R) -> R {
        f(&mut self.views.lock())
    }
}
