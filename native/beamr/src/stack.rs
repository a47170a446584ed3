//! The stacks that guests run on, kept for others when they are given back.
//!
//! A store keeps the stack of its last call, but each call nested in another needs one more, and
//! to map it, fault it in and unmap it again costs many times what the call does. Invariant: a
//! stack is either free, here, or in use by one fiber.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::{StackCreator, StackMemory};
use wasmtime_internal_fiber::FiberStack;

/// More stacks than these are unmapped when they are given back. What a stack has been used of,
/// mostly a few pages, stays resident.
const KEPT: usize = 256;

#[derive(Default)]
pub struct Stacks(Arc<Mutex<Vec<FiberStack>>>);

struct Stack {
    /// None once it has been given back.
    mapped: Option<FiberStack>,
    free: Arc<Mutex<Vec<FiberStack>>>,
}

// SAFETY: the stacks are those that wasmtime maps for itself, with a guard page below, of the
// size that is asked for: an engine asks for stacks of one size only, and each has its own pool.
unsafe impl StackCreator for Stacks {
    fn new_stack(&self, size: usize, zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let kept = if zeroed { None } else { self.0.lock().pop() };
        let mapped = match kept {
            Some(stack) => stack,
            None => FiberStack::new(size, zeroed)?,
        };
        Ok(Box::new(Stack { mapped: Some(mapped), free: self.0.clone() }))
    }
}

// SAFETY: all three answers are wasmtime's own, for a mapping that lives as long as this does.
unsafe impl StackMemory for Stack {
    fn top(&self) -> *mut u8 {
        self.mapped.as_ref().and_then(FiberStack::top).unwrap_or(std::ptr::null_mut())
    }

    fn range(&self) -> Range<usize> {
        self.mapped.as_ref().and_then(FiberStack::range).unwrap_or_default()
    }

    fn guard_range(&self) -> Range<*mut u8> {
        let none = std::ptr::null_mut()..std::ptr::null_mut();
        self.mapped.as_ref().and_then(FiberStack::guard_range).unwrap_or(none)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let Some(stack) = self.mapped.take() else { return };
        let mut free = self.free.lock();
        if free.len() < KEPT {
            free.push(stack);
        }
    }
}
