//! Calls: what runs on the guest's side of a call, and the exchange between it and the NIFs.
//!
//! A call is a future that a NIF polls. Inside it, guest code runs until it ends, its slice
//! ends, or it calls an import; the exchange tells the NIF which, and carries the answer back.
//! Invariant: guest code runs only inside a poll, and every poll happens under the lock of the
//! instance's state, so between polls nothing moves the memories that were captured last.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant as Clock};

use parking_lot::Mutex;
use wasmtime::{
    AsContext, AsContextMut, Caller, Func, Instance, Memory, RootScope, Store, StoreContextMut,
    StoreLimits, UpdateDeadline, Val,
};

use crate::error::Stop;
use crate::memory::View;
use crate::module::{Compiled, ExportedFunction};
use crate::value::{self, FuncHandle, Signature, Value};

/// Slices, in ticks. The first slice of a call holds a normal scheduler; it is a tick or two
/// long, because a call can begin anywhere within a tick. Later slices are longer where they
/// hold a dirty scheduler, since changing hands there costs microseconds.
const FIRST_SLICE: u64 = 2;
pub const NORMAL_SLICE: u64 = 1;
pub const DIRTY_SLICE: u64 = 5;

/// What a store knows about its instance.
pub struct Host {
    /// The instance's identity on this node.
    pub id: u64,
    pub module: Arc<Compiled>,
    /// None until instantiation has ended well.
    pub instance: Option<Instance>,
    /// In the order of [`Compiled::memories`].
    pub memories: Vec<Memory>,
    pub exchange: Arc<Exchange>,
    pub limits: StoreLimits,
    /// Whether the slice that is running has already given way once.
    yielded: bool,
}

impl Host {
    pub fn new(
        id: u64,
        module: Arc<Compiled>,
        exchange: Arc<Exchange>,
        limits: StoreLimits,
    ) -> Self {
        Host { id, module, instance: None, memories: Vec::new(), exchange, limits, yielded: false }
    }
}

/// What the guest's side asks of the process that drives the call.
pub enum Asked {
    /// Call the Elixir function behind this import.
    Import { index: usize, args: Vec<Value> },
    /// Nothing more: the nested call that was handed in has ended.
    Nothing { outcome: Outcome },
}

/// What the driving process hands to the import that is suspended.
pub enum Errand {
    Return(Vec<Value>),
    Stop(Stop),
    Call { target: Target, args: Vec<Value> },
}

pub type Outcome = wasmtime::Result<Vec<Value>>;

#[derive(Clone)]
pub enum Target {
    Export(Arc<ExportedFunction>),
    Func(Arc<FuncHandle>),
}

impl Target {
    pub fn signature(&self) -> &Signature {
        match self {
            Target::Export(function) => &function.signature,
            Target::Func(handle) => &handle.signature,
        }
    }

    /// The function in an idle store.
    pub fn find(&self, store: &mut Store<Host>) -> Option<Func> {
        match self {
            Target::Func(handle) => Some(handle.func),
            Target::Export(function) => {
                let instance = store.data().instance?;
                instance.get_module_export(store, &function.export)?.into_func()
            }
        }
    }

    /// The function in the store of a suspended import; the instance may not be known there.
    pub fn find_from(&self, caller: &mut Caller<'_, Host>) -> Option<Func> {
        match self {
            Target::Func(handle) => Some(handle.func),
            Target::Export(function) => caller.get_module_export(&function.export)?.into_func(),
        }
    }
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

/// Between a guest's side and the NIFs. Only the holder of the instance's lock uses the slots;
/// the stop request may be set at any time.
pub struct Exchange {
    stop: AtomicU8,
    deadline: AtomicU64,
    slice: AtomicU64,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    asked: Option<Asked>,
    errand: Option<Errand>,
    views: Vec<View>,
    /// One for each call that has begun and not ended, outermost first.
    frames: Vec<Frame>,
    /// The imports that are suspended, outermost first.
    awaiting: Vec<usize>,
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
            slice: AtomicU64::new(NORMAL_SLICE),
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
    }

    /// Ends the innermost call; answers whether its integers go to Elixir unsigned.
    pub fn end(&self) -> bool {
        let mut slots = self.slots.lock();
        let Some(frame) = slots.frames.pop() else { return false };
        self.deadline.store(frame.outer_deadline, Relaxed);
        if slots.frames.is_empty() {
            *slots = Slots::default();
        }
        frame.unsigned
    }

    /// Ends every call that has begun, where nobody waits for an answer any more.
    pub fn end_all(&self) {
        *self.slots.lock() = Slots::default();
    }

    pub fn depth(&self) -> usize {
        self.slots.lock().frames.len()
    }

    /// The import that waits for an answer from the driving process.
    pub fn awaiting(&self) -> Option<usize> {
        let slots = self.slots.lock();
        (slots.awaiting.len() == slots.frames.len()).then(|| slots.awaiting.last().copied())?
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

    /// A stop after which nobody answers imports any more.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.requested(), Some(Stop::Closed | Stop::CallerDied))
    }

    pub fn set_slice(&self, ticks: u64) {
        self.slice.store(ticks, Relaxed);
    }

    pub fn post(&self, asked: Asked) {
        let mut slots = self.slots.lock();
        if let Asked::Import { index, .. } = &asked {
            slots.awaiting.push(*index);
        }
        slots.asked = Some(asked);
    }

    pub fn take_asked(&self) -> Option<Asked> {
        self.slots.lock().asked.take()
    }

    pub fn send(&self, errand: Errand) {
        let mut slots = self.slots.lock();
        if !matches!(errand, Errand::Call { .. }) {
            slots.awaiting.pop();
        }
        slots.errand = Some(errand);
    }

    /// Waits for what the driving process wants of the innermost suspended import.
    pub fn errand(&self) -> impl Future<Output = Errand> + Send + '_ {
        poll_fn(|_| match self.slots.lock().errand.take() {
            Some(errand) => Poll::Ready(errand),
            None if self.is_abandoned() => {
                Poll::Ready(Errand::Stop(self.stop().unwrap_or(Stop::Closed)))
            }
            None => Poll::Pending,
        })
    }

    /// The memories as they were when the guest was last suspended.
    pub fn with_views<R>(&self, f: impl FnOnce(&mut [View]) -> R) -> R {
        f(&mut self.slots.lock().views)
    }
}

/// Makes a store whose slices end with the ticks of its engine.
pub fn store(host: Host, engine: &wasmtime::Engine) -> Store<Host> {
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.limits);
    store.epoch_deadline_callback(slice_ended);
    store
}

/// At a slice's end the guest gives way once; when it is polled again, and before it gets its
/// next slice, it is asked whether it may go on at all. (A deadline of no ticks brings the
/// guest back here at once.)
fn slice_ended(mut store: StoreContextMut<'_, Host>) -> wasmtime::Result<UpdateDeadline> {
    let exchange = store.data().exchange.clone();
    if let Some(stop) = exchange.stop() {
        return Err(stop.into());
    }
    if std::mem::take(&mut store.data_mut().yielded) {
        return Ok(UpdateDeadline::Continue(exchange.slice.load(Relaxed)));
    }
    store.data_mut().yielded = true;
    capture(&mut store);
    Ok(UpdateDeadline::Yield(0))
}

/// Gives the guest that is about to run a full first slice.
pub fn new_slice(mut store: impl AsContextMut<Data = Host>) {
    let mut store = store.as_context_mut();
    store.data_mut().yielded = false;
    store.set_epoch_deadline(FIRST_SLICE);
}

/// Records where the memories are, for those who reach them while the guest is suspended.
pub fn capture(mut store: impl AsContextMut<Data = Host>) {
    let store = store.as_context_mut();
    let host = store.data();
    let mut slots = host.exchange.slots.lock();
    slots.views.clear();
    slots.views.extend(host.memories.iter().map(|memory| View::of(memory, &store)));
}

/// Runs a guest function to its end.
pub async fn run(
    store: impl AsContextMut<Data = Host>,
    func: Func,
    signature: &Signature,
    args: Vec<Value>,
) -> Outcome {
    // References that the call makes live no longer than the call.
    let mut scope = RootScope::new(store);
    let params = args
        .iter()
        .zip(signature.params.iter())
        .map(|(arg, ty)| value::to_val(&mut scope, arg, ty))
        .collect::<wasmtime::Result<Vec<Val>>>()?;
    let mut results = vec![Val::I32(0); signature.results.len()];
    new_slice(&mut scope);
    func.call_async(&mut scope, &params, &mut results).await?;
    let owner = scope.as_context().data().id;
    Ok(results.iter().map(|val| value::from_val(&mut scope, val, owner)).collect())
}
