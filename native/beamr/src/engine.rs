//! The engines of this node and the one thread that ends their slices.
//!
//! An engine is made for each combination of compile options that is in use and lives as long
//! as the node. Guest code checks an engine's epoch at function entries and loop headers; the
//! ticker advances it, and rests while no slice needs it ([`Rest`]).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use rustler::Atom;
use wasmtime::{Config, Engine};

use crate::atoms;
use crate::compact::Compact;
use crate::reserving::Reserving;
use crate::rest::Rest;
use crate::stack::Stacks;

/// The unit in which slices are counted.
pub const TICK: Duration = Duration::from_micros(200);

/// Ticks in which no slice has begun and none lasted, after which the ticker goes to sleep.
const IDLE_TICKS: u32 = 50;

/// The host's share of a guest's stack: what wasmtime and this crate use on top of the guest.
const HOST_STACK: usize = 512 * 1024;

const DEFAULT_MAX_STACK: usize = 512 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    pub fuel: bool,
    pub deterministic: bool,
    pub memory: Memory,
}

/// How the memories of a module are made.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    /// In address space that is used again and again, with the module's data copied to it.
    #[default]
    Reserved,
    /// Each mapped for itself, for modules with so much data that they had better share it until
    /// they write to it.
    Mapped,
    /// As long as they are, so that many have room.
    Compact,
}

impl Memory {
    const ALL: [Memory; 3] = [Memory::Reserved, Memory::Mapped, Memory::Compact];
}

impl Options {
    pub fn of(names: &[Atom]) -> Self {
        Options {
            fuel: names.contains(&atoms::fuel()),
            deterministic: names.contains(&atoms::deterministic()),
            memory: match names.contains(&atoms::compact()) {
                true => Memory::Compact,
                false => Memory::Reserved,
            },
        }
    }

    /// For a module with so many bytes of data.
    pub fn with_data(mut self, bytes: usize) -> Self {
        if self.memory == Memory::Reserved && bytes > MUCH_DATA {
            self.memory = Memory::Mapped;
        }
        self
    }

    /// Whether these are the options that one who wants `wanted` asks for: how much data there is
    /// is the module's own affair.
    pub fn satisfy(self, wanted: Options) -> bool {
        let of_user = |options: Options| {
            (options.fuel, options.deterministic, options.memory == Memory::Compact)
        };
        of_user(self) == of_user(wanted)
    }

    /// One bit for each of the first two, and two for the third.
    pub fn bits(self) -> u8 {
        u8::from(self.fuel) + 2 * u8::from(self.deterministic) + 4 * self.memory as u8
    }

    pub fn from_bits(bits: u8) -> Option<Self> {
        let memory = *Memory::ALL.get(usize::from(bits >> 2))?;
        Some(Options { fuel: bits & 1 != 0, deterministic: bits & 2 != 0, memory })
    }
}

/// To copy so many bytes of data takes as long as to map them.
const MUCH_DATA: usize = 32 * 1024;

/// By [`Options::bits`].
static ENGINES: [OnceLock<Engine>; 4 * Memory::ALL.len()] =
    [const { OnceLock::new() }; 4 * Memory::ALL.len()];
static MAX_STACK: AtomicUsize = AtomicUsize::new(DEFAULT_MAX_STACK);

/// Sets the guest stack size, in bytes, of every engine made from now on.
pub fn set_max_stack(bytes: usize) {
    MAX_STACK.store(bytes, SeqCst);
}

pub fn get(options: Options) -> wasmtime::Result<&'static Engine> {
    let slot = &ENGINES[usize::from(options.bits())];
    let engine = match slot.get() {
        Some(engine) => engine,
        None => {
            let engine = Engine::new(&config(options))?;
            slot.get_or_init(|| engine)
        }
    };
    // Where a ticker that goes to sleep has not found it, its slices find the ticker asleep.
    fence(SeqCst);
    Ok(engine)
}

fn config(options: Options) -> Config {
    let max_stack = MAX_STACK.load(SeqCst);
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(max_stack)
        .async_stack_size(max_stack + HOST_STACK)
        .with_host_stack(Arc::new(Stacks::default()))
        .consume_fuel(options.fuel)
        .cranelift_nan_canonicalization(options.deterministic)
        .relaxed_simd_deterministic(options.deterministic)
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
    match options.memory {
        Memory::Mapped => {}
        Memory::Reserved => {
            config.memory_init_cow(false).with_host_memory(Arc::new(Reserving));
        }
        Memory::Compact => {
            config
                .memory_init_cow(false)
                .memory_reservation(0)
                .memory_guard_size(0)
                .memory_reservation_for_growth(0)
                .with_host_memory(Arc::new(Compact));
        }
    }
    config
}

/// Ends every slice that is running now, at its next safe point.
pub fn bump() {
    for engine in ENGINES.iter().filter_map(OnceLock::get) {
        engine.increment_epoch();
    }
}

static REST: Rest = Rest {
    begun: AtomicBool::new(false),
    lasting: AtomicUsize::new(0),
    asleep: AtomicBool::new(false),
};
static TICKER: OnceLock<Thread> = OnceLock::new();

/// Starts the ticker, once for the node.
pub fn start_ticker() -> std::io::Result<()> {
    if TICKER.get().is_none() {
        let handle = std::thread::Builder::new().name("beamr-ticker".into()).spawn(tick)?;
        let _ = TICKER.set(handle.thread().clone());
    }
    Ok(())
}

fn wake_ticker() {
    if let Some(ticker) = TICKER.get() {
        ticker.unpark();
    }
}

/// To be called whenever guest code goes on, after its deadline has been set: before each poll,
/// and where a deadline is set within one.
#[inline]
pub fn slice_begins() {
    REST.begin(wake_ticker);
}

/// To be called once for a slice that goes on after a tick, before its next deadline is set, and
/// [`slice_ended`] when it ends.
pub fn slice_outlasts_tick() {
    REST.outlast(wake_ticker);
}

pub fn slice_ended() {
    REST.end();
}

static TICKS: AtomicU64 = AtomicU64::new(0);

/// How often the ticker has ticked. Coarse, but costs nothing to ask.
pub fn ticks() -> u64 {
    TICKS.load(Acquire)
}

/// Whether no more ticks may come before a slice begins. Who has asked for [`ticks`] and then
/// hears that this is not so is in a tick that ends.
pub fn is_at_rest() -> bool {
    REST.asleep.load(Relaxed)
}

fn advance() {
    TICKS.fetch_add(1, AcqRel);
    bump();
}

fn tick() {
    let mut idle = 0;
    loop {
        std::thread::sleep(TICK);
        advance();
        idle = if REST.was_idle() { idle + 1 } else { 0 };
        if idle > IDLE_TICKS {
            REST.sleep(advance, std::thread::park);
            idle = 0;
        }
    }
}
