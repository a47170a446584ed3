//! Linear memory, reached by any process at any time that the guest is not running.
//!
//! This is the one file that touches guest memory without wasmtime's own checks: while a call
//! is suspended its store is inside the call's future, so memory is reached through the base
//! and length that were captured at the suspension. Invariant: a [`View`] is used only under
//! the instance's lock, while its guest is suspended, and dropped before the guest goes on.

use std::cell::UnsafeCell;
use std::cmp::Ordering;
use std::ops::Range;

use rustler::sys::{enif_alloc_binary, enif_release_binary};
use rustler::{Binary, Encoder, Env, NewBinary, OwnedBinary, Term};
use smallvec::SmallVec;
use wasmtime::{AsContext, Memory};

use crate::error::{self, Fault};
use crate::instance::{InstanceResource, Wait};
use crate::nif::operation;
use crate::store::Host;
use crate::{atoms, bounds};

/// Copies up to this many bytes take a normal scheduler about 100 µs at most.
pub const LONG: usize = 1024 * 1024;

/// Lists of more elements than this, iodata among them, are gone through on a dirty scheduler.
pub const MANY: usize = 10_000;

/// Where a memory lies while its guest is suspended.
#[derive(Clone, Copy)]
pub struct View {
    base: *mut u8,
    size: usize,
}

// SAFETY: a view is only a place and a length; every use of it is under the instance's lock,
// whichever thread holds that.
unsafe impl Send for View {}

impl View {
    pub fn of(memory: &Memory, store: &impl AsContext<Data = Host>) -> Self {
        View { base: memory.data_ptr(store), size: memory.data_size(store) }
    }

    /// What a module that exports no memory has.
    pub const NONE: View = View { base: std::ptr::null_mut(), size: 0 };

    pub fn size(&self) -> usize {
        self.size
    }

    /// Copies as if by way of a buffer. The ranges, of the same length, are [`range`]s of the two.
    pub fn copy_from(&self, target: Range<usize>, other: &View, source: Range<usize>) {
        if target.is_empty() {
            return;
        }
        assert!(target.end <= self.size && source.end <= other.size);
        assert!(target.len() == source.len());
        // SAFETY: both ranges lie in live memories of suspended guests (see `bytes`), whose locks
        // the caller holds both. No reference is made of either, and `copy` allows an overlap, so
        // the two may be one memory, under two names even.
        unsafe {
            std::ptr::copy(other.base.add(source.start), self.base.add(target.start), target.len());
        }
    }

    /// Compares byte by byte; the ranges are as in [`View::copy_from`].
    pub fn compare(
        &self,
        range: Range<usize>,
        other: &View,
        other_range: Range<usize>,
    ) -> Ordering {
        if range.is_empty() {
            return Ordering::Equal;
        }
        assert!(range.end <= self.size && other_range.end <= other.size);
        // SAFETY: as for `copy_from`; while the locks are held nobody writes to either.
        unsafe {
            let these = std::slice::from_raw_parts(self.base.add(range.start), range.len());
            let those =
                std::slice::from_raw_parts(other.base.add(other_range.start), other_range.len());
            these.cmp(those)
        }
    }

    /// The memory for a host function of its guest, which holds it while it waits: others use it
    /// meanwhile, each under the instance's lock, and so there are no references but to cells.
    pub fn cells(&self) -> &[UnsafeCell<u8>] {
        if self.size == 0 {
            return &[];
        }
        // SAFETY: as for `bytes`, with this difference: the view may be used for as long as the
        // host function has not returned, which is as long as the guest stands still. Cells may
        // be changed by others while they are borrowed; and never are while they are looked at,
        // since a host function runs under the instance's lock too.
        unsafe { std::slice::from_raw_parts(self.base.cast(), self.size) }
    }

    fn bytes(&mut self) -> &mut [u8] {
        if self.size == 0 {
            return &mut [];
        }
        // SAFETY: the view was captured from a live memory of a store that is suspended since, or
        // again after whatever was done with the store: a poll that ends otherwise is not the end
        // of a slice (`InstanceResource::poll`). Nothing moves or frees a memory but in a poll and
        // when its store is dropped; both need the instance's lock, which the caller holds, and
        // the lock of the views around every use makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.size) }
    }
}

/// As [`bounds::range`], with the fault where there is none.
pub fn range(offset: Option<u64>, length: Option<u64>, size: usize) -> Result<Range<usize>, Fault> {
    bounds::range(offset, length, size).ok_or(Fault::OutOfBounds { size })
}

/// Guards have made sure that it is a non-negative integer.
pub fn unsigned(term: Term) -> Option<u64> {
    term.decode().ok()
}

/// What a memory operation answers: a term, a fault, or that it wants a dirty scheduler.
pub type Answer<'a> = Result<Term<'a>, Refusal>;

pub enum Refusal {
    Fault(Fault),
    BadArgument,
    TooLong,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal::Fault(fault)
    }
}

pub fn with_memory<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    wait: Wait,
    f: impl FnOnce(&mut [u8]) -> Answer<'a>,
) -> Term<'a> {
    let Some(index) = instance.memory_index(memory) else {
        return (atoms::error(), atoms::unknown_memory()).encode(env);
    };
    let Some(mut state) = instance.lock(wait) else { return atoms::dirty().encode(env) };
    let answer = state.with_memory(index, |view| match view {
        Ok(bytes) => f(bytes),
        Err(fault) => Err(fault.into()),
    });
    instance.unlock(env, state);
    finish(env, answer)
}

pub fn finish<'a>(env: Env<'a>, answer: Answer<'a>) -> Term<'a> {
    match answer {
        Ok(term) => term,
        Err(Refusal::Fault(fault)) => error::encode(env, &fault),
        Err(Refusal::BadArgument) => atoms::badarg().encode(env),
        Err(Refusal::TooLong) => atoms::dirty().encode(env),
    }
}

pub fn with_view<R>(view: Option<&mut View>, f: impl FnOnce(&mut [u8]) -> R) -> R {
    match view {
        Some(view) => f(view.bytes()),
        None => f(&mut []),
    }
}

fn size<'a>(env: Env<'a>, instance: &InstanceResource, memory: Term, wait: Wait) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| Ok((atoms::ok(), memory.len()).encode(env)))
}

fn read<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    length: Term,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let range = range(unsigned(offset), unsigned(length), memory.len())?;
        if wait == Wait::Briefly && range.len() > LONG {
            return Err(Refusal::TooLong);
        }
        to_binary(env, &memory[range])
    })
}

fn to_binary<'a>(env: Env<'a>, bytes: &[u8]) -> Answer<'a> {
    let binary = new_binary(env, bytes.len(), |binary| binary.copy_from_slice(bytes))?;
    Ok((atoms::ok(), binary).encode(env))
}

/// A binary of `length` bytes, which `fill` writes all of.
pub fn new_binary<'a>(env: Env<'a>, length: usize, fill: impl FnOnce(&mut [u8])) -> Answer<'a> {
    if length <= LONG {
        let mut binary = NewBinary::new(env, length);
        fill(binary.as_mut_slice());
        return Ok(binary.into());
    }
    let Some(mut binary) = try_alloc(length) else {
        return Err(no_room(length).into());
    };
    fill(binary.as_mut_slice());
    Ok(binary.release(env).into())
}

pub fn no_room(length: usize) -> Fault {
    Fault::Wasm(wasmtime::Error::msg(format!("no memory for a binary of {length} bytes")))
}

/// A large binary, or None where there is no memory for it (rustler's own constructors abort).
pub fn try_alloc(size: usize) -> Option<OwnedBinary> {
    let mut raw = std::mem::MaybeUninit::uninit();
    // SAFETY: `raw` is written by a call that answers other than 0, and only read after one.
    unsafe {
        if enif_alloc_binary(size, raw.as_mut_ptr()) == 0 {
            return None;
        }
        let mut raw = raw.assume_init();
        if raw.data.is_null() || raw.size != size {
            enif_release_binary(&mut raw);
            return None;
        }
        Some(OwnedBinary::from_raw(raw))
    }
}

fn read_string<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    chunk: Term,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let size = memory.len();
        let start = range(unsigned(offset), Some(1), size)?.start;
        let chunk = unsigned(chunk).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let tail = &memory[start..];
        let within = if wait == Wait::Briefly { tail.len().min(LONG) } else { tail.len() };
        match bounds::find_nul(&tail[..within], chunk.max(1)) {
            Some(length) => to_binary(env, &tail[..length]),
            None if within < tail.len() => Err(Refusal::TooLong),
            None => Err(Fault::Unterminated { size }.into()),
        }
    })
}

fn write<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    data: Term<'a>,
    terminated: Term,
    wait: Wait,
) -> Term<'a> {
    // The parts are found before the lock is taken, and the whole length is checked before the
    // first byte is written: a write is all or nothing.
    let terminated = atoms::true_() == terminated;
    let limit = if wait == Wait::Briefly { MANY } else { usize::MAX };
    let parts;
    let source = match Binary::from_term(data) {
        Ok(bytes) => Source::Bytes(bytes.as_slice()),
        Err(_) => match Parts::of(data, limit) {
            Ok(found) => {
                parts = found;
                Source::Parts(&parts)
            }
            Err(refusal) => return finish(env, Err(refusal)),
        },
    };
    with_memory(env, instance, memory, wait, |memory| {
        let length = source.length();
        let whole = length as u64 + u64::from(terminated);
        let range = range(unsigned(offset), Some(whole), memory.len())?;
        if wait == Wait::Briefly && range.len() > LONG {
            return Err(Refusal::TooLong);
        }
        let (target, end) = memory[range].split_at_mut(length);
        source.copy_to(target);
        end.fill(0);
        Ok(atoms::ok().encode(env))
    })
}

/// What is written: nearly always one binary.
enum Source<'a, 'p> {
    Bytes(&'p [u8]),
    Parts(&'p Parts<'a>),
}

impl Source<'_, '_> {
    fn length(&self) -> usize {
        match self {
            Source::Bytes(bytes) => bytes.len(),
            Source::Parts(parts) => parts.length,
        }
    }

    fn copy_to(&self, target: &mut [u8]) {
        match self {
            Source::Bytes(bytes) => target.copy_from_slice(bytes),
            Source::Parts(parts) => parts.copy_to(target),
        }
    }
}

/// Iodata of no more parts than this is taken apart without anything being allocated.
const FEW: usize = 4;

/// Iodata, taken apart without being copied.
pub struct Parts<'a> {
    parts: SmallVec<[Part<'a>; FEW]>,
    /// The list cells that were gone through, empty lists in them included.
    cells: usize,
    pub length: usize,
}

enum Part<'a> {
    Byte(u8),
    Bytes(Binary<'a>),
}

impl<'a> Parts<'a> {
    /// Goes through so many list cells at most.
    pub fn of(data: Term<'a>, limit: usize) -> Result<Self, Refusal> {
        let mut this = Parts { parts: SmallVec::new(), cells: 0, length: 0 };
        if data.is_binary() {
            this.push(data)?;
            return Ok(this);
        }
        // The lists that are still to be gone through, innermost last.
        let mut rest = vec![data];
        while let Some(list) = rest.pop() {
            if list.is_empty_list() {
                continue;
            }
            if let Ok((head, tail)) = list.list_get_cell() {
                rest.push(tail);
                match head.is_list() {
                    true => rest.push(head),
                    false => this.push(head)?,
                }
            } else if list.is_binary() {
                // The tail of an improper list.
                this.push(list)?;
            } else {
                return Err(Refusal::BadArgument);
            }
            this.cells += 1;
            if this.cells > limit {
                return Err(Refusal::TooLong);
            }
        }
        Ok(this)
    }

    /// How much there was to go through.
    pub fn cells(&self) -> usize {
        self.cells
    }

    fn push(&mut self, term: Term<'a>) -> Result<(), Refusal> {
        let part = match term.decode::<i64>() {
            Ok(n) => Part::Byte(u8::try_from(n).map_err(|_| Refusal::BadArgument)?),
            Err(_) => Part::Bytes(Binary::from_term(term).map_err(|_| Refusal::BadArgument)?),
        };
        self.length += match &part {
            Part::Byte(_) => 1,
            Part::Bytes(bytes) => bytes.len(),
        };
        self.parts.push(part);
        Ok(())
    }

    pub fn copy_to(&self, target: &mut [u8]) {
        let mut rest = target;
        for part in &self.parts {
            let bytes = match part {
                Part::Byte(byte) => std::slice::from_ref(byte),
                Part::Bytes(bytes) => bytes.as_slice(),
            };
            let (here, after) = rest.split_at_mut(bytes.len());
            here.copy_from_slice(bytes);
            rest = after;
        }
    }
}

operation!(memory_size, memory_size_dirty, size(memory));
operation!(memory_read, memory_read_dirty, read(memory, offset, length));
operation!(memory_read_string, memory_read_string_dirty, read_string(memory, offset, chunk));
operation!(memory_write, memory_write_dirty, write(memory, offset, data, terminated));
