//! What passes between a guest that is suspended and the NIFs that drive its call: what the
//! guest asks, what it is handed, when it has to stop, and where its memories lie meanwhile.
//!
//! Invariant: only the holder of the instance's lock uses the slots, so what it takes out
//! belongs to the poll it just made. The stop request may be set at any time, by anyone.

use std::future::{Future, poll_fn};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant as Clock};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::call::{Args, Outcome, Target};
use crate::error::{Fault, Stop};
use crate::export::{Operation, Product};
use crate::memory::View;
use crate::slice::Slice;
use crate::value::Value;

/// What the guest's side asks of the process that drives the call.
pub enum Asked {
    /// Call the Elixir function behind this import; its arguments are among the slots.
    Import { index: usize },
    /// Nothing more: the nested call that was handed in has ended.
    Called(Outcome),
    /// Nothing more: the operation that was handed in is done.
    Performed(Result<Product, Fault>),
}

/// What the driving process hands to the import that is suspended.
pub enum Errand {
    /// The results are among the slots.
    Return,
    Stop(Stop),
    Call {
        target: Target,
        args: Args,
    },
    Perform(Operation),
}

const RUNNING: u8 = 0;
const NO_DEADLINE: u64 = u64::MAX;

static EPOCH: LazyLock<Clock> = LazyLock::new(Clock::now);

fn now() -> u64 {
    EPOCH.elapsed().as_nanos() as u64
}

/// The deadline that lies `timeout` from now.
pub fn deadline(timeout: Option<Duration>) -> u64 {
    timeout.map_or(NO_DEADLINE, |timeout| {
        now().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(NO_DEADLINE))
    })
}

pub struct Exchange {
    stop: AtomicU8,
    deadline: AtomicU64,
    /// The [`Slice`] that is running.
    slice: AtomicU8,
    /// How many wait for the instance's lock, and so for the slice that is running to end.
    waiting: AtomicUsize,
    depth: AtomicUsize,
    /// Whether the views are those of the memories as they are.
    captured: AtomicBool,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    asked: Option<Asked>,
    errand: Option<Errand>,
    /// The arguments of the import that is asked for, or what it returned. The room is kept.
    values: Vec<Value>,
    views: Vec<View>,
    /// One for each call that has begun and not ended, outermost first.
    frames: SmallVec<[Frame; 1]>,
    /// The imports that are suspended, outermost first.
    awaiting: Vec<usize>,
}

impl Slots {
    fn awaiting(&self) -> Option<usize> {
        (self.awaiting.len() == self.frames.len()).then(|| self.awaiting.last().copied())?
    }

    /// Forgets what belonged to a call that has ended; the room is kept for the next.
    fn clear(&mut self) {
        self.asked = None;
        self.errand = None;
        self.values.clear();
        self.views.clear();
        self.awaiting.clear();
    }
}

struct Frame {
    outer_deadline: u64,
    unsigned: bool,
}

impl Exchange {
    pub fn new() -> Self {
        Exchange {
            stop: AtomicU8::new(RUNNING),
            deadline: AtomicU64::new(NO_DEADLINE),
            slice: AtomicU8::new(Slice::First as u8),
            waiting: AtomicUsize::new(0),
            depth: AtomicUsize::new(0),
            captured: AtomicBool::new(false),
            slots: Mutex::default(),
        }
    }

    /// Begins a call, nested in those that have begun before. Its deadline is never later than
    /// that of the call it is nested in.
    pub fn begin(&self, deadline: u64, unsigned: bool) {
        let mut slots = self.slots.lock();
        if slots.frames.is_empty() {
            self.stop.store(RUNNING, Relaxed);
            self.deadline.store(NO_DEADLINE, Relaxed);
        }
        let outer_deadline = self.deadline.fetch_min(deadline, Relaxed);
        slots.frames.push(Frame { outer_deadline, unsigned });
        self.depth.store(slots.frames.len(), Relaxed);
    }

    /// Ends the innermost call; answers whether its integers go to Elixir unsigned.
    pub fn end(&self) -> bool {
        let mut slots = self.slots.lock();
        let Some(frame) = slots.frames.pop() else { return false };
        self.depth.store(slots.frames.len(), Relaxed);
        self.deadline.store(frame.outer_deadline, Relaxed);
        if slots.frames.is_empty() {
            slots.clear();
        }
        frame.unsigned
    }

    /// Ends every call that has begun, where nobody waits for an answer any more.
    pub fn end_all(&self) {
        self.depth.store(0, Relaxed);
        let mut slots = self.slots.lock();
        slots.frames.clear();
        slots.clear();
    }

    /// How many calls have begun and not ended.
    pub fn depth(&self) -> usize {
        self.depth.load(Relaxed)
    }

    /// Whether an import waits for an answer from the driving process.
    pub fn is_awaiting(&self) -> bool {
        self.slots.lock().awaiting().is_some()
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
        let mut slots = self.slots.lock();
        slots.views.clear();
        slots.views.extend(views);
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

    /// Runs `f`, which waits for the slice that is running to end.
    pub fn waiting<R>(&self, f: impl FnOnce() -> R) -> R {
        self.waiting.fetch_add(1, Relaxed);
        let result = f();
        self.waiting.fetch_sub(1, Relaxed);
        result
    }

    /// How long it is until the innermost call's time is up.
    pub fn time_left(&self) -> Option<Duration> {
        match self.deadline.load(Relaxed) {
            NO_DEADLINE => None,
            deadline => Some(Duration::from_nanos(deadline.saturating_sub(now()))),
        }
    }

    pub fn post(&self, asked: Asked) {
        self.slots.lock().asked = Some(asked);
    }

    /// Asks for an import, with its arguments and where the memories are meanwhile.
    pub fn post_import(
        &self,
        index: usize,
        args: impl Iterator<Item = Value>,
        views: impl Iterator<Item = View>,
    ) {
        let mut slots = self.slots.lock();
        slots.values.clear();
        slots.values.extend(args);
        slots.views.clear();
        slots.views.extend(views);
        slots.awaiting.push(index);
        slots.asked = Some(Asked::Import { index });
    }

    pub fn take_asked(&self) -> Option<Asked> {
        self.slots.lock().asked.take()
    }

    /// The arguments of the import that is asked for.
    pub fn with_values<R>(&self, f: impl FnOnce(&[Value]) -> R) -> R {
        f(&self.slots.lock().values)
    }

    /// Answers the import that waits, if one does: `results` puts what it returned where it is
    /// given room, or tells why the guest has to stop.
    pub fn respond(&self, results: impl FnOnce(usize, &mut Vec<Value>) -> Result<(), Stop>) {
        let mut slots = self.slots.lock();
        let Some(index) = slots.awaiting() else { return };
        slots.awaiting.pop();
        slots.values.clear();
        slots.errand = Some(match results(index, &mut slots.values) {
            Ok(()) => Errand::Return,
            Err(stop) => Errand::Stop(stop),
        });
    }

    /// Hands something to do to the import that waits.
    pub fn send(&self, errand: Errand) {
        self.slots.lock().errand = Some(errand);
    }

    /// Waits for what the driving process wants of the innermost suspended import.
    pub fn errand(&self) -> impl Future<Output = Errand> + Send + '_ {
        poll_fn(|_| match self.slots.lock().errand.take() {
            Some(errand) => Poll::Ready(errand),
            None if self.is_abandoned() => {
                Poll::Ready(Errand::Stop(self.stop().unwrap_or(Stop::Closed)))
            }
            None => {
                self.suspended();
                Poll::Pending
            }
        })
    }

    /// The memories as they were when the guest was last suspended.
    pub fn with_views<R>(&self, f: impl FnOnce(&mut [View]) -> R) -> R {
        f(&mut self.slots.lock().views)
    }
}
