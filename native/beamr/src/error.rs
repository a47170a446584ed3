//! Errors as Elixir receives them: plain terms, made into exceptions by `Beamr.Error`.
//! No other file turns a wasmtime error into a term.

use std::fmt;

use rustler::{Atom, Encoder, Env, NewBinary, Term};
use wasmtime::{Trap, WasmBacktrace};

use crate::atoms;

/// What this crate itself ends a guest's call with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Timeout,
    Interrupted,
    Closed,
    CallerDied,
    /// The import's Elixir function raised; its process holds the exception.
    ImportRaised,
    /// The import's Elixir function returned something that is no result of its type.
    ImportResult,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "call ended by the host: {self:?}")
    }
}

impl std::error::Error for Stop {}

impl Stop {
    fn atom(self) -> Atom {
        match self {
            Stop::Timeout => atoms::timeout(),
            Stop::Interrupted => atoms::interrupted(),
            Stop::Closed => atoms::closed(),
            Stop::CallerDied => atoms::caller_died(),
            Stop::ImportRaised => atoms::raised(),
            Stop::ImportResult => atoms::import_result(),
        }
    }
}

/// The guest's program has ended itself, with this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u32);

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the guest exited with code {}", self.0)
    }
}

impl std::error::Error for Exit {}

/// Why a request was refused or a call did not end well.
pub enum Fault {
    Stop(Stop),
    UnknownFunction,
    Arity {
        wanted: usize,
        given: usize,
    },
    Argument {
        position: usize,
        wanted: Atom,
        problem: Atom,
    },
    ForeignFunction,
    Depth(usize),
    OutOfBounds {
        size: usize,
    },
    Unterminated {
        size: usize,
    },
    UnknownExport,
    UnknownMemory,
    Immutable,
    Mismatch {
        wanted: Atom,
    },
    IndexOutOfBounds {
        size: u64,
    },
    CannotGrow {
        size: u64,
    },
    NotMetered,
    ValueOutOfRange,
    /// `at` counts from the beginning of the text.
    InvalidUtf8 {
        at: usize,
    },
    /// What is wrong with one of several, by its place from 0.
    At(usize, Box<Fault>),
    /// A limit of the instance's own that instantiation would go over.
    Limit(Limit),
    Exit(Exit),
    Panicked,
    Wasm(wasmtime::Error),
}

/// What an instance wanted of a limited resource, and what it may have.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub kind: LimitKind,
    pub allowed: usize,
    pub wanted: usize,
}

#[derive(Clone, Copy, Debug)]
pub enum LimitKind {
    Memory,
    TableElements,
}

impl Limit {
    fn atom(&self) -> Atom {
        match self.kind {
            LimitKind::Memory => atoms::max_memory(),
            LimitKind::TableElements => atoms::max_table_elements(),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}: {} is allowed, {} was wanted", self.kind, self.allowed, self.wanted)
    }
}

impl std::error::Error for Limit {}

impl From<wasmtime::Error> for Fault {
    fn from(error: wasmtime::Error) -> Self {
        if let Some(stop) = error.downcast_ref::<Stop>() {
            Fault::Stop(*stop)
        } else if let Some(limit) = error.downcast_ref::<Limit>() {
            Fault::Limit(*limit)
        } else if let Some(exit) = error.downcast_ref::<Exit>() {
            Fault::Exit(*exit)
        } else {
            Fault::Wasm(error)
        }
    }
}

/// `{:error, reason}`.
pub fn encode<'a>(env: Env<'a>, fault: &Fault) -> Term<'a> {
    (atoms::error(), reason(env, fault)).encode(env)
}

fn reason<'a>(env: Env<'a>, fault: &Fault) -> Term<'a> {
    match fault {
        Fault::Stop(stop) => stop.atom().encode(env),
        Fault::UnknownFunction => atoms::unknown_function().encode(env),
        Fault::Arity { wanted, given } => (atoms::arity(), wanted, given).encode(env),
        Fault::Argument { position, wanted, problem } => {
            (atoms::argument(), position, wanted, problem).encode(env)
        }
        Fault::ForeignFunction => atoms::funcref().encode(env),
        Fault::Depth(limit) => (atoms::depth(), limit).encode(env),
        Fault::OutOfBounds { size } => (atoms::out_of_bounds(), size).encode(env),
        Fault::Unterminated { size } => (atoms::unterminated(), size).encode(env),
        Fault::UnknownExport => atoms::unknown_export().encode(env),
        Fault::UnknownMemory => atoms::unknown_memory().encode(env),
        Fault::Immutable => atoms::immutable().encode(env),
        Fault::Mismatch { wanted } => (atoms::mismatch(), wanted).encode(env),
        Fault::IndexOutOfBounds { size } => (atoms::out_of_bounds(), size).encode(env),
        Fault::CannotGrow { size } => (atoms::cannot_grow(), size).encode(env),
        Fault::NotMetered => atoms::not_metered().encode(env),
        Fault::ValueOutOfRange => atoms::value_out_of_range().encode(env),
        Fault::InvalidUtf8 { at } => (atoms::invalid_utf8(), at).encode(env),
        Fault::At(place, fault) => (atoms::at(), place, reason(env, fault)).encode(env),
        Fault::Limit(limit) => {
            (atoms::limit(), limit.atom(), limit.allowed, limit.wanted).encode(env)
        }
        Fault::Exit(Exit(code)) => (atoms::exit(), code).encode(env),
        Fault::Panicked => atoms::panicked().encode(env),
        Fault::Wasm(error) => wasm_reason(env, error),
    }
}

fn wasm_reason<'a>(env: Env<'a>, error: &wasmtime::Error) -> Term<'a> {
    let code = if let Some(trap) = error.downcast_ref::<Trap>() {
        trap_code(*trap)
    } else if error.is::<wasmtime::ThrownException>() {
        atoms::uncaught_exception()
    } else if error.is::<wasmtime::GcHeapOutOfMemory<()>>() {
        atoms::gc_heap_out_of_memory()
    } else {
        return (atoms::system(), text(env, &format!("{error:#}"))).encode(env);
    };
    (atoms::trap(), code, backtrace(env, error)).encode(env)
}

/// Frames from the innermost outwards: `{name | nil, function_index, module_offset | nil}`.
fn backtrace<'a>(env: Env<'a>, error: &wasmtime::Error) -> Term<'a> {
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let frames: Vec<Term> = frames
        .iter()
        .map(|frame| {
            let name = frame
                .func_name()
                .map(|name| text(env, &format!("{:#}", rustc_demangle::demangle(name))));
            (name, frame.func_index(), frame.module_offset()).encode(env)
        })
        .collect();
    frames.encode(env)
}

pub fn text<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    let mut binary = NewBinary::new(env, text.len());
    binary.as_mut_slice().copy_from_slice(text.as_bytes());
    binary.into()
}

fn trap_code(trap: Trap) -> Atom {
    match trap {
        Trap::StackOverflow => atoms::stack_overflow(),
        Trap::MemoryOutOfBounds => atoms::memory_out_of_bounds(),
        Trap::HeapMisaligned => atoms::unaligned_atomic(),
        Trap::TableOutOfBounds => atoms::table_out_of_bounds(),
        Trap::IndirectCallToNull => atoms::indirect_call_to_null(),
        Trap::BadSignature => atoms::bad_signature(),
        Trap::IntegerOverflow => atoms::integer_overflow(),
        Trap::IntegerDivisionByZero => atoms::integer_divide_by_zero(),
        Trap::BadConversionToInteger => atoms::bad_conversion_to_integer(),
        Trap::UnreachableCodeReached => atoms::unreachable(),
        Trap::Interrupt => atoms::interrupted(),
        Trap::OutOfFuel => atoms::out_of_fuel(),
        Trap::AtomicWaitNonSharedMemory => atoms::atomic_wait_on_unshared_memory(),
        Trap::NullReference => atoms::null_reference(),
        Trap::ArrayOutOfBounds => atoms::array_out_of_bounds(),
        Trap::AllocationTooLarge => atoms::allocation_too_large(),
        Trap::CastFailure => atoms::cast_failure(),
        Trap::UnhandledTag => atoms::unhandled_tag(),
        Trap::ContinuationAlreadyConsumed => atoms::continuation_already_consumed(),
        _ => atoms::other(),
    }
}
