//! Instances: who has the store, whose call is in flight, and who is next.
//!
//! A store is in one place at a time: idle in the state, or inside the future of the call in
//! flight, which gives it back. Everything happens under the state's lock, which is held for a
//! slice or a memory operation and never across a return to Elixir. Lock order: state, then
//! the exchange's views, then deaths.
//!
//! Whatever is on the stack when a guest is suspended returns to another place than the processor
//! expects, which costs it more than most of what is done here: functions that lead to a poll are
//! always inlined.
//!
//! Invariants: a call in flight belongs to a live process, or is being ended; when the store
//! becomes idle, the process that has waited longest gets the turn, and nobody else.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustler::{Atom, Binary, Decoder, Encoder, Env, LocalPid, Monitor, NifResult, OwnedEnv, Term};
use wasmtime::{Store, ThrownException, Trap};

use crate::call::{self, Answer, Outcome, Request, Results};
use crate::count::{self, Live};
use crate::deaths::Deaths;
use crate::engine;
use crate::error::{self, Fault, Stop};
use crate::exchange::{Asked, Errand, Exchange};
use crate::export::{self, Operation, Reach};
use crate::held::Held;
use crate::import::{self, Given};
use crate::memory::{self, View};
use crate::module::{Compiled, ModuleResource};
use crate::nif::operation;
use crate::slice::Queued;
use crate::store::{self, Host, Limits};
use crate::value::{self, HeldTerm, Value};
use crate::{atoms, wasi};

/// How long a normal scheduler may wait for the lock.
const BRIEF: Duration = Duration::from_micros(20);

/// Each level of nesting adds half a microsecond or so to every poll: at this depth a poll takes
/// as long as a first slice.
const DEEP: usize = 1_000;

/// A process's timeslice is about a millisecond.
const TIMESLICE_PERCENT_PER_TICK: u64 = engine::TICK.as_micros() as u64 / 10;

/// Stores with more memory than this are freed on a thread of their own.
const HEAVY: usize = 4 * 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// On a normal scheduler.
    Briefly,
    /// On a dirty one.
    AsLongAsNeeded,
}

pub struct InstanceResource {
    pub id: u64,
    pub module: Arc<Compiled>,
    pub exchange: Arc<Exchange>,
    pub held: Held,
    pub wasi: Option<Box<wasi::Attached>>,
    max_depth: usize,
    in_flight: AtomicBool,
    /// Set for good by whoever closes the instance, who may have to wait for the lock: nobody is
    /// let in any more meanwhile.
    closing: AtomicBool,
    state: Mutex<State>,
    deaths: Deaths<LocalPid>,
    _live: Live<{ count::INSTANCE }>,
}

pub struct State {
    holder: Holder,
    exchange: Arc<Exchange>,
    /// Room for the values of an import, empty on its way back to [`Host::import_room`].
    room: Vec<Value>,
    /// Few instances ever have one.
    line: Option<Box<Line>>,
}

/// Who waits.
#[derive(Default)]
struct Line {
    queue: VecDeque<Waiter>,
    /// Whose turn it is, once the store is idle.
    turn: Option<Waiter>,
}

enum Holder {
    Idle(Store<Host>),
    Running(Flight),
    Closed,
}

/// The outermost call in flight.
struct Flight {
    future: Pin<Box<dyn Future<Output = (Store<Host>, Outcome)> + Send>>,
    caller: LocalPid,
    /// Set once the call has outlived a slice, or another process waits for it to end. Until
    /// then nobody is kept waiting by a caller that has died.
    monitor: Option<Monitor>,
    /// Held from the end of a slice to the start of the next.
    queued: Option<Queued>,
}

struct Waiter {
    pid: LocalPid,
    wants: Wants,
    monitor: Monitor,
    /// Tells the waiter's driver that the message is for it.
    turn: Arc<HeldTerm>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// To call: it takes an idle store, or to be the process that runs a suspended import.
    Call,
    /// To use the store: a suspended import will do, whoever runs it.
    Store,
}

impl Waiter {
    /// Sends the message that the waiter's driver waits for; false where the waiter is dead.
    fn call_up(&self, env: Env) -> bool {
        if env.send(&self.pid, (atoms::beamr_turn(), self.turn.load(env))).is_ok() {
            return true;
        }
        // A process that was killed inside a dirty NIF can send no more: a thread that belongs to
        // no process does it then.
        let (pid, turn) = (self.pid, self.turn.clone());
        let send = move || {
            let _ = OwnedEnv::new()
                .send_and_clear(&pid, |env| (atoms::beamr_turn(), turn.load(env)).encode(env));
        };
        self.pid.is_alive(env)
            && std::thread::Builder::new().name("beamr-send".into()).spawn(send).is_ok()
    }
}

impl Drop for InstanceResource {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        free(std::mem::replace(&mut state.holder, Holder::Closed));
    }
}

/// Frees what may be a large store without holding up the scheduler.
fn free(holder: Holder) {
    if let Holder::Idle(store) = &holder
        && store.data().memories.iter().map(|memory| memory.data_size(store)).sum::<usize>()
            <= HEAVY
    {
        return;
    }
    if !matches!(holder, Holder::Closed) {
        // Where no thread can be had, the store is freed here.
        let _ = std::thread::Builder::new().name("beamr-free".into()).spawn(move || drop(holder));
    }
}

impl State {
    /// The memory at this place in [`Compiled::memories`], unless the guest is gone.
    pub fn with_memory<R>(
        &mut self,
        index: usize,
        f: impl FnOnce(Result<&mut [u8], Fault>) -> R,
    ) -> R {
        match &mut self.holder {
            Holder::Idle(store) => match store.data().memories.get(index).copied() {
                Some(memory) => f(Ok(memory.data_mut(store))),
                None => f(Ok(&mut [])),
            },
            Holder::Running(_) => self.exchange.with_views(|views: &mut [View]| {
                memory::with_view(views.get_mut(index), |bytes| f(Ok(bytes)))
            }),
            Holder::Closed => f(Err(Fault::Stop(Stop::Closed))),
        }
    }

    /// Where the memory at this place in [`Compiled::memories`] lies, as long as the lock is held.
    pub fn view(&self, index: usize) -> Result<View, Fault> {
        let view = match &self.holder {
            Holder::Idle(store) => {
                store.data().memories.get(index).map(|memory| View::of(memory, store))
            }
            Holder::Running(_) => self.exchange.with_views(|views| views.get(index).copied()),
            Holder::Closed => return Err(Fault::Stop(Stop::Closed)),
        };
        Ok(view.unwrap_or(View::NONE))
    }

    /// Gives the turn to whoever has waited longest and still lives; once the instance is
    /// closed, everyone may come and hear of it.
    fn pass_turn(&mut self, env: Env) {
        let Some(line) = &mut self.line else { return };
        while let Some(waiter) = line.queue.pop_front() {
            if waiter.call_up(env) && !matches!(self.holder, Holder::Closed) {
                line.turn = Some(waiter);
                return;
            }
        }
    }

    /// Whose turn it is.
    fn turn(&self) -> Option<LocalPid> {
        self.line.as_ref()?.turn.as_ref().map(|waiter| waiter.pid)
    }

    fn take_turn(&mut self) -> Option<Waiter> {
        self.line.as_mut()?.turn.take()
    }
}

impl InstanceResource {
    pub fn lock(&self, wait: Wait) -> Option<MutexGuard<'_, State>> {
        match wait {
            Wait::Briefly => self.state.try_lock().or_else(|| self.state.try_lock_for(BRIEF)),
            Wait::AsLongAsNeeded => Some(
                self.state
                    .try_lock()
                    .unwrap_or_else(|| self.exchange.waiting(|| self.state.lock())),
            ),
        }
    }

    /// Has the call in flight look soon whether it is to end.
    fn hurry(&self, env: Env) {
        // Where another has the lock, the guest runs, or is about to.
        if let Some(mut state) = self.state.try_lock() {
            if let Holder::Running(Flight { queued: Some(queued), .. }) = &mut state.holder {
                queued.hurry();
            }
            self.unlock(env, state);
        }
        engine::bump();
    }

    /// Wakes the call in flight, if it waits, to let it see that it is to end.
    fn ring(&self, env: Env) {
        if let Some(wasi) = &self.wasi {
            wasi.alarm.ring(env);
        }
    }

    /// A process that is monitored has ended.
    pub fn down(&self, env: Env, pid: LocalPid) {
        match self.deaths.tell(pid, &self.state) {
            Some(state) => self.unlock(env, state),
            // Whoever has the lock sees the death when it lets go. If that is a slice of the
            // dead process, it should let go soon.
            None => engine::bump(),
        }
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Whether calls are nested so deep that a poll, which goes through every level, takes too
    /// long for a normal scheduler.
    pub fn is_deep_for(&self, wait: Wait) -> bool {
        wait == Wait::Briefly && self.exchange.depth() > DEEP
    }

    /// The place of a memory in [`Compiled::memories`], by its name, or nil for the default one.
    pub fn memory_index(&self, name: Term) -> Option<usize> {
        if atoms::nil() == name {
            return Some(0);
        }
        let name = Binary::from_term(name).ok()?;
        self.module.memories.iter().position(|(known, _)| known.as_bytes() == name.as_slice())
    }

    /// Lets go of the lock, after dealing with every death that was told meanwhile.
    pub fn unlock(&self, env: Env, state: MutexGuard<'_, State>) {
        self.deaths.unlock(&self.state, state, |state, pid| self.bury(env, state, pid));
    }

    fn bury(&self, env: Env, state: &mut State, pid: LocalPid) {
        if let Some(line) = &mut state.line {
            line.queue.retain(|waiter| waiter.pid != pid);
            line.turn.take_if(|waiter| waiter.pid == pid);
        }
        if matches!(&state.holder, Holder::Running(flight) if flight.caller == pid) {
            self.exchange.request_stop(Stop::CallerDied);
            self.run_out(state);
        }
        if state.turn().is_none() && !matches!(state.holder, Holder::Running(_)) {
            state.pass_turn(env);
        }
    }

    /// Polls a call that was asked to stop until it gives the store back.
    fn run_out(&self, state: &mut State) {
        while let Holder::Running(_) = state.holder {
            match self.poll(state) {
                Polled::Suspended => {
                    self.exchange.take_asked();
                }
                Polled::Finished(_) | Polled::Panicked => {}
            }
        }
        self.exchange.end_all();
    }

    /// Polls the call in flight once. When it has finished, the store is idle again, or gone
    /// if it never became an instance.
    #[inline(always)]
    fn poll(&self, state: &mut State) -> Polled {
        let Holder::Running(flight) = &mut state.holder else { return Polled::Suspended };
        if let Some(queued) = flight.queued.take() {
            queued.end();
        }
        engine::slice_begins();
        let future = &mut flight.future;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            loop {
                self.exchange.running();
                let polled = match &self.wasi {
                    None => future.as_mut().poll(&mut Context::from_waker(Waker::noop())),
                    Some(wasi) => wasi.alarm.poll(future.as_mut()),
                };
                // wasmtime gives way of itself while it collects garbage. Nothing may reach the
                // memories then, and it goes on at once.
                if polled.is_ready() || self.exchange.is_captured() {
                    return polled;
                }
            }
        }));
        self.exchange.end_slice();
        let holder = match polled {
            Ok(Poll::Pending) => return Polled::Suspended,
            Ok(Poll::Ready((store, outcome))) => {
                self.in_flight.store(false, Ordering::Release);
                state.holder = match store.data().instance {
                    Some(_) if !self.is_closing() => Holder::Idle(store),
                    _ => {
                        free(Holder::Idle(store));
                        Holder::Closed
                    }
                };
                return Polled::Finished(outcome);
            }
            Err(_) => std::mem::replace(&mut state.holder, Holder::Closed),
        };
        // What a panic has left half done is not safe to unwind a second time: it is leaked.
        std::mem::forget(holder);
        self.in_flight.store(false, Ordering::Release);
        Polled::Panicked
    }

    /// Runs one slice and answers the step that comes out of it.
    #[inline(always)]
    fn step<'a>(&self, env: Env<'a>, state: &mut State) -> Term<'a> {
        let monitor = match &state.holder {
            Holder::Running(flight) => flight.monitor,
            _ => return error::encode(env, &Fault::Stop(Stop::Closed)),
        };
        match self.poll(state) {
            Polled::Suspended => match self.exchange.take_asked() {
                Some(Asked::Called(outcome)) => self.answer(env, state, outcome),
                Some(Asked::Performed(performed)) => export::encode(env, performed),
                Some(Asked::Import { index, mut args }) => {
                    self.call_up_users(env, state);
                    let list = value::encode_all(env, &args, false);
                    args.clear();
                    state.room = args;
                    (atoms::import(), index, list).encode(env)
                }
                None => {
                    self.watch(env, state);
                    match self.wasi.as_ref().and_then(|wasi| wasi.alarm.arm(env)) {
                        Some(alarm) => (atoms::wait(), alarm).encode(env),
                        None => {
                            if let Holder::Running(flight) = &mut state.holder {
                                flight.queued = Some(Queued::begin());
                            }
                            atoms::yield_().encode(env)
                        }
                    }
                }
            },
            Polled::Finished(outcome) => {
                self.unwatch(env, monitor);
                state.pass_turn(env);
                self.answer(env, state, outcome)
            }
            Polled::Panicked => {
                self.unwatch(env, monitor);
                state.pass_turn(env);
                self.exchange.end_all();
                error::encode(env, &Fault::Panicked)
            }
        }
    }

    /// An import is suspended: whoever waits for the store can have it now.
    fn call_up_users(&self, env: Env, state: &mut State) {
        let Some(line) = &mut state.line else { return };
        while let Some(at) = line.queue.iter().position(|waiter| waiter.wants == Wants::Store) {
            if let Some(waiter) = line.queue.remove(at) {
                waiter.call_up(env);
                self.unwatch(env, Some(waiter.monitor));
            }
        }
    }

    fn answer<'a>(&self, env: Env<'a>, state: &mut State, outcome: Outcome) -> Term<'a> {
        let results = match outcome {
            Ok(results) => results,
            Err(error) => {
                self.exchange.fail();
                return error::encode(env, &Fault::from(error));
            }
        };
        let unsigned = self.exchange.end();
        let answer = (atoms::ok(), results.encode(env, unsigned)).encode(env);
        if let (Results::Numbers { values, .. }, Holder::Idle(store)) = (results, &mut state.holder)
        {
            store.data_mut().room = values;
        }
        answer
    }

    /// Makes sure that the death of the process whose call is suspended ends the call; false
    /// where it is dead already and the call has been ended.
    fn watch(&self, env: Env, state: &mut State) -> bool {
        let Holder::Running(flight) = &mut state.holder else { return true };
        if flight.monitor.is_none() {
            flight.monitor = self.monitor(env, &flight.caller);
            if flight.monitor.is_none() {
                let dead = flight.caller;
                self.bury(env, state, dead);
                return false;
            }
        }
        true
    }

    fn unwatch(&self, env: Env, monitor: Option<Monitor>) {
        if let Some(monitor) = monitor {
            self.demonitor(env, &monitor);
        }
    }

    /// Finds out how the process may use the store: at once, by way of the import that it is
    /// running, or when its turn comes.
    fn admit<'a>(&self, env: Env<'a>, wants: Wants, state: &mut State) -> Admission<'a> {
        let me = env.pid();
        loop {
            match &state.holder {
                _ if self.is_closing() => {
                    return Admission::Refused(error::encode(env, &Fault::Stop(Stop::Closed)));
                }
                Holder::Closed => {
                    return Admission::Refused(error::encode(env, &Fault::Stop(Stop::Closed)));
                }
                Holder::Idle(_) if state.turn().is_none_or(|turn| turn == me) => {
                    return Admission::Idle(state.take_turn());
                }
                Holder::Running(flight)
                    if (flight.caller == me || wants == Wants::Store)
                        && self.exchange.is_awaiting() =>
                {
                    return Admission::Nested;
                }
                Holder::Idle(_) => {
                    return Admission::Refused(self.queue_up(env, me, wants, state));
                }
                Holder::Running(_) => {
                    if self.watch(env, state) {
                        return Admission::Refused(self.queue_up(env, me, wants, state));
                    }
                }
            }
        }
    }

    /// Begins a call, or queues for one. Arguments are converted first, so that a call that
    /// cannot be made is refused at once.
    #[inline(always)]
    pub fn begin<'a>(&self, env: Env<'a>, request: &Request<'a>, state: &mut State) -> Term<'a> {
        let room = match &mut state.holder {
            Holder::Idle(store) if !self.is_closing() => std::mem::take(&mut store.data_mut().room),
            Holder::Running(_) if !self.is_closing() => Vec::new(),
            _ => return error::encode(env, &Fault::Stop(Stop::Closed)),
        };
        let (target, args) = match call::prepare(self, request, room) {
            Ok(prepared) => prepared,
            Err(fault) => return error::encode(env, &fault),
        };
        match self.admit(env, Wants::Call, state) {
            Admission::Refused(step) => step,
            Admission::Nested => {
                if self.exchange.depth() >= self.max_depth {
                    return error::encode(env, &Fault::Depth(self.max_depth));
                }
                self.exchange.begin(request.timeout, request.unsigned);
                self.exchange.send(Errand::Call { target, args });
                self.step(env, state)
            }
            Admission::Idle(turn) => {
                self.exchange.begin(request.timeout, request.unsigned);
                let Holder::Idle(store) = std::mem::replace(&mut state.holder, Holder::Closed)
                else {
                    return error::encode(env, &Fault::Stop(Stop::Closed));
                };
                let future = Box::pin(call::top_call(store, target, args));
                let monitor = turn.map(|waiter| waiter.monitor);
                self.take_off(state, future, env.pid(), monitor);
                self.step(env, state)
            }
        }
    }

    /// Performs an operation on the store, or queues for it. While an import is suspended
    /// anyone may, as anyone may use the memory then.
    pub fn perform<'a>(&self, env: Env<'a>, operation: Operation, state: &mut State) -> Term<'a> {
        match self.admit(env, Wants::Store, state) {
            Admission::Refused(step) => step,
            Admission::Nested => {
                self.exchange.send(Errand::Perform(operation));
                self.step(env, state)
            }
            Admission::Idle(turn) => {
                let Holder::Idle(store) = &mut state.holder else {
                    return error::encode(env, &Fault::Stop(Stop::Closed));
                };
                let performed = export::perform(store, operation);
                self.unwatch(env, turn.map(|waiter| waiter.monitor));
                state.pass_turn(env);
                export::encode(env, performed)
            }
        }
    }

    fn take_off(
        &self,
        state: &mut State,
        future: Pin<Box<dyn Future<Output = (Store<Host>, Outcome)> + Send>>,
        caller: LocalPid,
        monitor: Option<Monitor>,
    ) {
        self.in_flight.store(true, Ordering::Release);
        state.holder = Holder::Running(Flight { future, caller, monitor, queued: None });
    }

    fn queue_up<'a>(
        &self,
        env: Env<'a>,
        me: LocalPid,
        wants: Wants,
        state: &mut State,
    ) -> Term<'a> {
        let Some(monitor) = self.monitor(env, &me) else {
            return error::encode(env, &Fault::Stop(Stop::CallerDied));
        };
        let turn = env.make_ref();
        state.line.get_or_insert_default().queue.push_back(Waiter {
            pid: me,
            wants,
            monitor,
            turn: Arc::new(HeldTerm::new(*turn)),
        });
        (atoms::queue(), turn).encode(env)
    }

    /// Takes the caller out of the queue; false where it has been called up already, so that the
    /// message is there or on its way. Its turn is passed on then.
    fn leave(&self, env: Env, state: &mut State) -> bool {
        let me = env.pid();
        let Some(line) = &mut state.line else { return false };
        if let Some(at) = line.queue.iter().position(|waiter| waiter.pid == me) {
            self.unwatch(env, line.queue.remove(at).map(|waiter| waiter.monitor));
            return true;
        }
        if let Some(waiter) = line.turn.take_if(|waiter| waiter.pid == me) {
            self.unwatch(env, Some(waiter.monitor));
            state.pass_turn(env);
        }
        false
    }

    /// Answers the import that is suspended, or lets a guest whose slice had ended go on.
    #[inline(always)]
    pub fn resume<'a>(&self, env: Env<'a>, answer: Answer<'a>, state: &mut State) -> Term<'a> {
        match &state.holder {
            Holder::Running(flight) if flight.caller == env.pid() => {}
            _ => return error::encode(env, &Fault::Stop(Stop::Closed)),
        }
        let room = &mut state.room;
        self.exchange.respond(|index| match answer {
            Answer::Return(term) => {
                let mut values = std::mem::take(room);
                match call::results(self, index, term, &mut values) {
                    true => Ok(values),
                    false => Err(Stop::ImportResult),
                }
            }
            Answer::Raise | Answer::Continue => Err(Stop::ImportRaised),
        });
        self.step(env, state)
    }
}

enum Admission<'a> {
    /// The store is idle; the turn that was waited for, if it was.
    Idle(Option<Waiter>),
    Nested,
    Refused(Term<'a>),
}

enum Polled {
    Suspended,
    Finished(Outcome),
    Panicked,
}

async fn top_instantiate(mut store: Store<Host>, given: Vec<Given>) -> (Store<Host>, Outcome) {
    let mut outcome = instantiate(&mut store, given).await.map(|()| Results::None);
    if store.data().wasi.is_some() {
        if outcome.is_ok() {
            outcome = wasi::initialize(&mut store).await;
        }
        outcome = wasi::finish(&mut store, outcome).await;
    }
    (store, outcome)
}

async fn instantiate(store: &mut Store<Host>, given: Vec<Given>) -> wasmtime::Result<()> {
    store::new_slice(&mut *store);
    let module = store.data().module.clone();
    let instantiated = match &module.pre {
        Some(pre) => pre.instantiate_async(&mut *store).await,
        None => match import::externs(store, &module, given) {
            Ok(imports) => {
                store.data_mut().imported.clone_from(&imports);
                wasmtime::Instance::new_async(&mut *store, &module.module, &imports).await
            }
            Err(error) => Err(error),
        },
    };
    store.data_mut().instance = Some(instantiated.map_err(|error| limit_of(store, error))?);
    let places = module.memories.iter();
    let memories = places.filter_map(|(_, place)| store.find(*place)?.into_memory()).collect();
    store.data_mut().set_memories(memories);
    Ok(())
}

/// What the instance is made of may go over its limits; wasmtime says so in prose only.
fn limit_of(store: &Store<Host>, error: wasmtime::Error) -> wasmtime::Error {
    let is_of_guest = error.is::<Trap>() || error.is::<Stop>() || error.is::<ThrownException>();
    match store.data().limits.refused {
        Some(limit) if !is_of_guest => limit.into(),
        _ => error,
    }
}

pub fn timeout(milliseconds: i64) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// The state of an instance, locked for one operation of a NIF, which ends with [`Self::answer`]:
/// to drop it is to overlook the deaths that were told meanwhile.
pub struct Locked<'e, 'i> {
    env: Env<'e>,
    instance: &'i InstanceResource,
    wait: Wait,
    /// The tick in which it was locked.
    since: u64,
    pub state: MutexGuard<'i, State>,
}

impl<'e, 'i> Locked<'e, 'i> {
    /// None where a normal scheduler would wait.
    #[inline(always)]
    pub fn new(env: Env<'e>, instance: &'i InstanceResource, wait: Wait) -> Option<Self> {
        let since = engine::ticks();
        let state = instance.lock(wait)?;
        Some(Locked { env, instance, wait, since, state })
    }

    /// Lets go with what the operation answers. A normal scheduler is told how much of the
    /// process's time the guest has used.
    #[inline(always)]
    pub fn answer(self, answer: Term<'e>) -> Term<'e> {
        self.instance.unlock(self.env, self.state);
        if self.wait == Wait::Briefly {
            let ticks = engine::ticks().wrapping_sub(self.since);
            // A guest that has used up its slice gives way to other processes at once.
            let percent = match atoms::yield_() == answer {
                true => 100,
                false => (ticks * TIMESLICE_PERCENT_PER_TICK).min(100),
            };
            if percent > 0 {
                rustler::schedule::consume_timeslice(self.env, percent as i32);
            }
        }
        answer
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// `{timeout, max_depth, max_memory, max_table_elements, fuel, wasi}`; limits are nil where there
/// are none.
struct InstanceOptions {
    timeout: Option<Duration>,
    max_depth: usize,
    max_memory: Option<u64>,
    max_table_elements: Option<u64>,
    fuel: Option<u64>,
    wasi: wasi::Grant,
}

impl<'a> Decoder<'a> for InstanceOptions {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let (milliseconds, max_depth, max_memory, max_table_elements, fuel, wasi) =
            term.decode()?;
        let timeout = timeout(milliseconds);
        Ok(InstanceOptions { timeout, max_depth, max_memory, max_table_elements, fuel, wasi })
    }
}

/// `{resource, step}`, or `:dirty`. `given` is what [`import::given`] reads.
fn start<'a>(
    env: Env<'a>,
    module: &ModuleResource,
    options: Term<'a>,
    given: Term<'a>,
    wait: Wait,
) -> NifResult<Term<'a>> {
    let given = import::given(&module.0, given)?;
    if wait == Wait::Briefly && (module.0.is_heavy() || import::is_heavy(&given)) {
        return Ok(atoms::dirty().encode(env));
    }
    Ok(make(env, &module.0, &options.decode()?, given, wait))
}

operation!(instance_start, instance_start_dirty on DirtyCpu, start(options, given));

fn make<'a>(
    env: Env<'a>,
    module: &Arc<Compiled>,
    options: &InstanceOptions,
    given: Vec<Given>,
    wait: Wait,
) -> Term<'a> {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let exchange = Arc::new(Exchange::new());
    let compiled = module.clone();
    let size = |limit: Option<u64>| limit.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let limits = Limits::new(size(options.max_memory), size(options.max_table_elements));
    let mut host = Host::new(id, compiled.clone(), exchange.clone(), limits);
    let wasi = options.wasi.take(compiled.imports.len()).map(|(wasi, attached)| {
        host.wasi = Some(wasi);
        attached
    });
    let mut store = store::new(host, compiled.module.engine());
    if compiled.options.fuel {
        // Refused where the module is not metered only, and that is costly.
        let _ = store.set_fuel(options.fuel.unwrap_or(u64::MAX));
    }
    exchange.begin(options.timeout, false);
    let state =
        State { holder: Holder::Closed, exchange: exchange.clone(), room: Vec::new(), line: None };
    let instance = InstanceResource {
        id,
        module: compiled,
        exchange,
        held: Held::default(),
        wasi,
        max_depth: options.max_depth,
        in_flight: AtomicBool::new(true),
        closing: AtomicBool::new(false),
        state: Mutex::new(state),
        deaths: Deaths::new(),
        _live: Live::new(),
    };
    let (instance, term) = instance.into_resource(env);
    let future = Box::pin(top_instantiate(store, given));
    let Some(mut locked) = Locked::new(env, instance, wait) else {
        return atoms::dirty().encode(env);
    };
    instance.take_off(&mut locked.state, future, env.pid(), None);
    let step = instance.step(env, &mut locked.state);
    let step = locked.answer(step);
    (term, step).encode(env)
}

fn close<'a>(env: Env<'a>, instance: &InstanceResource, wait: Wait) -> Term<'a> {
    instance.closing.store(true, Ordering::SeqCst);
    let Some(mut state) = instance.lock(wait) else {
        instance.exchange.request_stop(Stop::Closed);
        engine::bump();
        return atoms::dirty().encode(env);
    };
    if matches!(state.holder, Holder::Running(_)) {
        instance.exchange.request_stop(Stop::Closed);
        instance.ring(env);
        instance.run_out(&mut state);
    }
    let holder = std::mem::replace(&mut state.holder, Holder::Closed);
    state.pass_turn(env);
    instance.unlock(env, state);
    instance.held.clear();
    free(holder);
    atoms::ok().encode(env)
}

operation!(instance_close, instance_close_dirty, close());

/// Asks the call in flight, if there is one, to end.
#[rustler::nif]
fn instance_interrupt(env: Env, instance: &InstanceResource) -> Atom {
    if instance.in_flight.load(Ordering::Acquire) {
        instance.exchange.request_stop(Stop::Interrupted);
        instance.hurry(env);
        instance.ring(env);
    }
    atoms::ok()
}

/// Takes the calling process out of the queue; false where it has been called up already.
#[rustler::nif(schedule = "DirtyIo")]
fn instance_leave<'a>(env: Env<'a>, instance: &'a InstanceResource) -> Term<'a> {
    let Some(mut locked) = Locked::new(env, instance, Wait::AsLongAsNeeded) else {
        return atoms::dirty().encode(env);
    };
    let in_queue = instance.leave(env, &mut locked.state);
    locked.answer(in_queue.encode(env))
}
