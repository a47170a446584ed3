//! The stacks that guests run on, kept for others when they are given back.
//!
//! A store keeps the stack of its last call, and each call nested in another needs one more: to
//! map a stack, fault it in and unmap it again would cost many times what the call does.
//! Invariant: a stack is either free, here, or in use by one fiber.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::{StackCreator, StackMemory};

use crate::mapping::{self, Mapping, Part};
use crate::reserving::with_room;
use crate::spares::Spares;

/// As many free stacks keep the physical memory that they have been used of, mostly a few pages.
const WARM: usize = 256;

/// As many more are kept. The rest is unmapped, each mapping when the last of its stacks is.
const COLD: usize = 1024;

/// Stacks are mapped by the dozen: the system bounds the number of mappings, and where guard
/// pages are none of their own to it, it takes those beside each other for one.
const AT_ONCE: usize = 16;

/// The stacks of an engine, which asks for one size only.
#[derive(Default)]
pub struct Stacks(Arc<Mutex<Spares<Part>>>);

struct Stack {
    /// None once it has been given back.
    part: Option<Part>,
    /// Without the guard page, which is the part's lowest.
    range: Range<usize>,
    spares: Arc<Mutex<Spares<Part>>>,
}

impl Stacks {
    fn take(&self, length: usize) -> io::Result<Part> {
        if let Some(part) = self.0.lock().take() {
            return Ok(part);
        }
        let parts = with_room(|| {
            let whole = Mapping::zeros(AT_ONCE * length)?;
            whole.take_small_pages();
            let parts: Vec<_> = Part::all(whole, length).collect();
            parts.iter().try_for_each(Part::guard)?;
            Ok(parts)
        })?;
        let mut spares = self.0.lock();
        for part in parts {
            spares.give_cold(part);
        }
        spares.take().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

// SAFETY: a stack is memory that nobody else uses, of the size that is asked for, with a page
// below it that cannot be touched. It is mapped until the engine is done with it.
unsafe impl StackCreator for Stacks {
    fn new_stack(&self, size: usize, zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let guard = mapping::page();
        let length = mapping::pages(size).and_then(|size| size.checked_add(guard));
        let part = self.take(length.ok_or(io::ErrorKind::OutOfMemory).map_err(io::Error::from)?)?;
        if zeroed {
            part.discard(guard..part.length())?;
        }
        let base = part.base() as usize;
        let range = base + guard..base + part.length();
        Ok(Box::new(Stack { part: Some(part), range, spares: self.0.clone() }))
    }
}

// SAFETY: the answers are of one part of a mapping, which this keeps.
unsafe impl StackMemory for Stack {
    fn top(&self) -> *mut u8 {
        self.range.end as *mut u8
    }

    fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    fn guard_range(&self) -> Range<*mut u8> {
        let end = self.range.start as *mut u8;
        end.wrapping_sub(mapping::page())..end
    }
}

/// What a call uses of a stack is mostly much less than this, in bytes.
const SHALLOW: usize = 64 * 1024;

/// Gives back the physical memory of a stack that was used deeper than most are: each such would
/// keep half a megabyte.
fn trim(part: &Part) {
    let deep = part.length().saturating_sub(SHALLOW);
    if deep < 2 * mapping::page() {
        return;
    }
    // Frames that reach deeper have left something on the page where the deep begins.
    // SAFETY: the page is one of the stack's, which no fiber uses any more.
    let page = unsafe {
        std::slice::from_raw_parts(part.base().add(deep - mapping::page()), mapping::page())
    };
    if page.iter().any(|byte| *byte != 0) {
        // Where the system cannot take the memory, it stays with the stack.
        let _ = part.discard(mapping::page()..deep);
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let Some(part) = self.part.take() else { return };
        trim(&part);
        {
            let mut spares = self.spares.lock();
            if spares.warm() < WARM {
                spares.give_warm(part);
                return;
            }
        }
        // Where the system cannot take the memory, it stays with the stack.
        let _ = part.discard(mapping::page()..part.length());
        let mut spares = self.spares.lock();
        if spares.cold() < COLD {
            spares.give_cold(part);
        } else {
            drop(spares);
            drop(part);
        }
    }
}
