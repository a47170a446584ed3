//! Stores: what each knows of its instance, what limits it, and when its guest gives way.

use std::sync::Arc;

use smallvec::SmallVec;
use wasmtime::{
    AsContextMut, Engine, Extern, Instance, Memory, ResourceLimiter, Store, StoreContextMut,
    UpdateDeadline, Val,
};

use crate::call::Called;
use crate::count::{self, Live};
use crate::engine;
use crate::error::{Limit, LimitKind};
use crate::exchange::Exchange;
use crate::memory::View;
use crate::module::Compiled;
use crate::slice::Slice;
use crate::value::Value;
use crate::wasi::Wasi;

pub struct Host {
    /// The instance's identity on this node.
    pub id: u64,
    pub module: Arc<Compiled>,
    /// None until instantiation has ended well.
    pub instance: Option<Instance>,
    /// By import index, for a module that does not import functions only.
    pub imported: Vec<Extern>,
    /// In the order of [`Compiled::memories`]. Changed by [`Host::set_memories`] only.
    pub memories: SmallVec<[Memory; 1]>,
    pub exchange: Arc<Exchange>,
    pub limits: Limits,
    /// None where WASI was not granted.
    pub wasi: Option<Box<Wasi>>,
    /// The exported functions that have been called.
    pub called: Vec<Called>,
    /// Room for the values of a call, kept from one call to the next.
    pub room: Vec<Val>,
    /// The same for imports.
    pub import_room: Vec<Value>,
    /// The ticks that the slice that is running has had.
    ticks: u32,
    /// Whether the guest has given way, and is asked for the first time since.
    yielded: bool,
    _live: Live<{ count::STORE }>,
}

impl Host {
    pub fn new(id: u64, module: Arc<Compiled>, exchange: Arc<Exchange>, limits: Limits) -> Self {
        Host {
            id,
            module,
            instance: None,
            imported: Vec::new(),
            memories: SmallVec::new(),
            exchange,
            limits,
            wasi: None,
            called: Vec::new(),
            room: Vec::new(),
            import_room: Vec::new(),
            ticks: 0,
            yielded: false,
            _live: Live::new(),
        }
    }
}

impl Host {
    pub fn set_memories(&mut self, memories: SmallVec<[Memory; 1]>) {
        self.memories = memories;
        self.limits.has_grown = true;
    }
}

/// What an instance may have of memory (bytes) and of table elements, all of them together.
pub struct Limits {
    memory: Budget,
    table_elements: Budget,
    /// The last growth that went over a limit.
    pub refused: Option<Limit>,
    /// Whether a memory may have been made, grown or moved since it was recorded where they are.
    /// None does without asking for leave here.
    has_grown: bool,
}

struct Budget {
    allowed: usize,
    used: usize,
    /// What the growth under way adds, to be given back if it fails for another reason.
    pending: usize,
}

impl Limits {
    pub fn new(max_memory: Option<usize>, max_table_elements: Option<usize>) -> Self {
        let budget = |allowed: Option<usize>| Budget {
            allowed: allowed.unwrap_or(usize::MAX),
            used: 0,
            pending: 0,
        };
        Limits {
            memory: budget(max_memory),
            table_elements: budget(max_table_elements),
            refused: None,
            has_grown: true,
        }
    }
}

impl Budget {
    /// Takes what a growth adds, if its own maximum and the budget allow it.
    fn grow(
        &mut self,
        kind: LimitKind,
        (current, desired): (usize, usize),
        maximum: Option<usize>,
    ) -> Result<bool, Limit> {
        self.pending = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let added = desired.saturating_sub(current);
        let wanted = self.used.saturating_add(added);
        if wanted > self.allowed {
            return Err(Limit { kind, allowed: self.allowed, wanted });
        }
        self.used = wanted;
        self.pending = added;
        Ok(true)
    }

    fn give_back(&mut self) {
        self.used -= std::mem::take(&mut self.pending);
    }
}

impl Limits {
    fn note(&mut self, grown: Result<bool, Limit>) -> wasmtime::Result<bool> {
        self.refused = grown.err();
        Ok(grown.unwrap_or(false))
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.has_grown = true;
        let grown = self.memory.grow(LimitKind::Memory, (current, desired), maximum);
        self.note(grown)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory.give_back();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let kind = LimitKind::TableElements;
        let grown = self.table_elements.grow(kind, (current, desired), maximum);
        self.note(grown)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.table_elements.give_back();
        Ok(())
    }
}

/// Makes a store whose slices end with the ticks of its engine.
pub fn new(host: Host, engine: &Engine) -> Store<Host> {
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.limits);
    store.epoch_deadline_callback(tick);
    store
}

/// Asked at every tick. At its slice's end the guest gives way; when it is polled again, it is
/// asked whether it may go on at all before its next slice begins. (A deadline of no ticks
/// brings the guest back here at once.)
fn tick(mut store: StoreContextMut<'_, Host>) -> wasmtime::Result<UpdateDeadline> {
    let host = store.data_mut();
    if let Some(stop) = host.exchange.stop() {
        return Err(stop.into());
    }
    if std::mem::take(&mut host.yielded) {
        host.ticks = 0;
        host.exchange.outlast_tick();
        return Ok(UpdateDeadline::Continue(1));
    }
    host.ticks += 1;
    if host.exchange.may_go_on(host.ticks) {
        host.exchange.outlast_tick();
        return Ok(UpdateDeadline::Continue(1));
    }
    host.yielded = true;
    capture(&mut store);
    store.data().exchange.suspended();
    Ok(UpdateDeadline::Yield(0))
}

/// Gives the guest that is about to run a full first slice.
pub fn new_slice(mut store: impl AsContextMut<Data = Host>) {
    let mut store = store.as_context_mut();
    let host = store.data_mut();
    host.yielded = false;
    host.ticks = 0;
    host.exchange.set_slice(Slice::First);
    store.set_epoch_deadline(1);
    engine::slice_begins();
}

/// Records where the memories are, for those who reach them while the guest is suspended, unless
/// they are where they were when it was done last.
pub fn capture(mut store: impl AsContextMut<Data = Host>) {
    let mut store = store.as_context_mut();
    if std::mem::take(&mut store.data_mut().limits.has_grown) {
        let host = store.data();
        let views = host.memories.iter().map(|memory| View::of(memory, &store));
        host.exchange.set_views(views);
    }
}
