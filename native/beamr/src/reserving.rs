//! Memories that have all that they can address set aside, so that code needs no checks and they
//! never move; and what is kept of such address space for others when a memory is freed.
//!
//! To map a memory and to unmap it would cost more than all else that an instance is made of.
//! Invariant: what is spare here holds zeros, and nobody has a way to it.

use std::collections::HashMap;
use std::io;
use std::ptr;
use std::sync::LazyLock;

use parking_lot::Mutex;
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use crate::mapping::{self, Mapping};
use crate::spares::{SHORT, Spares};

/// Address space with a part in it that can be used, behind a guard.
struct Reservation {
    mapping: Mapping,
    guard: usize,
    /// In bytes; whole pages.
    accessible: usize,
}

impl Reservation {
    fn new(guard: usize, reserved: usize) -> io::Result<Self> {
        let length = guard.checked_mul(2).and_then(|guards| guards.checked_add(reserved));
        let mapping = Mapping::reserve(length.ok_or_else(mapping::too_long)?)?;
        Ok(Reservation { mapping, guard, accessible: 0 })
    }

    fn reserved(&self) -> usize {
        self.mapping.length() - 2 * self.guard
    }

    fn base(&self) -> *mut u8 {
        self.mapping.base().wrapping_add(self.guard)
    }

    fn make_accessible(&mut self, bytes: usize) -> io::Result<()> {
        let end = mapping::pages(bytes).ok_or_else(mapping::too_long)?;
        if end > self.accessible {
            self.mapping.allow(self.guard + self.accessible..self.guard + end)?;
            self.accessible = end;
        }
        Ok(())
    }

    fn shape(&self) -> Shape {
        Shape { guard: self.guard, reserved: self.reserved(), accessible: self.accessible }
    }

    /// Makes it as it was at first: zeros, of which no more than so many bytes are accessible. If
    /// it is to stay warm, they are zeros where they lie.
    fn reset(&mut self, accessible: usize, warm: bool) -> io::Result<()> {
        let (start, end) = (self.guard + accessible, self.guard + self.accessible);
        if start < end {
            self.mapping.discard(start..end)?;
            self.mapping.forbid(start..end)?;
            self.accessible = accessible;
        }
        if warm {
            // SAFETY: so much is accessible, and whose memory it was is done with it.
            unsafe { ptr::write_bytes(self.base(), 0, self.accessible) };
        } else {
            self.mapping.discard(self.guard..self.guard + self.accessible)?;
        }
        Ok(())
    }
}

/// As many reservations are kept, and as many bytes of physical memory with them.
const KEPT: usize = 1024;
const WARM_BYTES: usize = 4 * 1024 * 1024;

/// Longer reservations are not kept: of address space there is an end too.
const LONGEST_KEPT: usize = 8 * 1024 * 1024 * 1024;

/// Spare reservations, of all engines.
static RESERVATIONS: LazyLock<Mutex<Reservations>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Reservations {
    shelves: HashMap<Shape, Shelf>,
    count: usize,
    warm_bytes: usize,
    /// Counts what is taken and given.
    clock: u64,
}

/// What has to be the same in two reservations for one to serve in place of the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    guard: usize,
    reserved: usize,
    accessible: usize,
}

#[derive(Default)]
struct Shelf {
    spares: Spares<Reservation>,
    /// By the clock, the last time.
    used: u64,
}

impl Reservations {
    fn shelf(&mut self, shape: Shape) -> &mut Shelf {
        self.clock += 1;
        let shelf = self.shelves.entry(shape).or_default();
        shelf.used = self.clock;
        shelf
    }

    fn take(&mut self, shape: Shape) -> Option<Reservation> {
        if !self.shelves.contains_key(&shape) {
            return None;
        }
        let spares = &mut self.shelf(shape).spares;
        let was_warm = spares.warm() > 0;
        let taken = spares.take()?;
        self.taken(shape, was_warm);
        Some(taken)
    }

    fn taken(&mut self, shape: Shape, was_warm: bool) {
        self.count -= 1;
        if was_warm {
            self.warm_bytes -= shape.accessible;
        }
        if self.shelves.get(&shape).is_some_and(|shelf| shelf.spares.is_empty()) {
            self.shelves.remove(&shape);
        }
    }

    /// Whether one more of this shape is to keep its physical memory, and what is to be unmapped
    /// for that: some of shapes that have not been used for longer.
    fn make_room(&mut self, shape: Shape) -> (bool, Vec<Reservation>) {
        let mut evicted = Vec::new();
        if shape.accessible == 0 || shape.accessible > SHORT {
            return (false, evicted);
        }
        while self.warm_bytes + shape.accessible > WARM_BYTES {
            let warm = self.shelves.iter_mut().filter(|(_, shelf)| shelf.spares.warm() > 0);
            match warm.min_by_key(|(_, shelf)| shelf.used) {
                Some((&oldest, shelf)) if oldest != shape => {
                    evicted.extend(shelf.spares.take_warm());
                    self.taken(oldest, true);
                }
                _ => return (false, evicted),
            }
        }
        (true, evicted)
    }

    /// Answers what there is no room for: one of the shape that has not been used for longest.
    fn give(&mut self, spare: Reservation, warm: bool) -> Option<Reservation> {
        let shape = spare.shape();
        let spares = &mut self.shelf(shape).spares;
        match warm {
            true => spares.give_warm(spare),
            false => spares.give_cold(spare),
        }
        self.count += 1;
        if warm {
            self.warm_bytes += shape.accessible;
        }
        if self.count <= KEPT {
            return None;
        }
        let (&oldest, shelf) = self.shelves.iter_mut().min_by_key(|(_, shelf)| shelf.used)?;
        let was_warm = shelf.spares.cold() == 0;
        let evicted = shelf.spares.take_least();
        self.taken(oldest, was_warm);
        evicted
    }
}

/// Tries again, where there is room for no more mappings, without the reservations that are spare.
pub fn with_room<T>(mut map: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    map().or_else(|error| {
        if error.raw_os_error() != Some(libc::ENOMEM) {
            return Err(error);
        }
        let spare = std::mem::take(&mut *RESERVATIONS.lock());
        drop(spare);
        map()
    })
}

/// Makes memories that have all they can address set aside.
pub struct Reserving;

struct Reserved {
    /// None once it has been given back.
    reservation: Option<Reservation>,
    size: usize,
    /// What was accessible at first, and is to be for the next that takes it.
    minimum: usize,
}

/// What is set aside for a memory with 64-bit addresses, if it may become so long: to copy it to
/// where there is more room would take seconds.
const LONG: usize = 32 * 1024 * 1024 * 1024;

// SAFETY: a memory is zeros that nobody else uses, with as much behind it as is asked for that
// can be neither read nor written, and as much before it as behind.
unsafe impl MemoryCreator for Reserving {
    fn new_memory(
        &self,
        ty: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let pages = |bytes| mapping::pages(bytes).ok_or_else(|| mapping::too_long().to_string());
        let accessible = pages(minimum)?;
        let long = if ty.is_64() { pages(maximum.unwrap_or(LONG).min(LONG))? } else { 0 };
        let reserved = reserved.unwrap_or(0).max(accessible).max(long);
        let kept = RESERVATIONS.lock().take(Shape { guard, reserved, accessible });
        let reservation = match kept {
            Some(reservation) => Ok(reservation),
            None => with_room(|| {
                let mut new = Reservation::new(guard, reserved)?;
                new.make_accessible(accessible)?;
                Ok(new)
            }),
        };
        let reservation = Some(reservation.map_err(|error| error.to_string())?);
        Ok(Box::new(Reserved { reservation, size: minimum, minimum: accessible }))
    }
}

// SAFETY: the memory is accessible as far as it is long (and to the end of that page of the
// system's: where guests have smaller ones, their code checks), and nobody else's.
unsafe impl LinearMemory for Reserved {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.reservation.as_ref().map_or(0, Reservation::reserved)
    }

    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        match &mut self.reservation {
            Some(reservation) if size <= reservation.reserved() => {
                with_room(|| reservation.make_accessible(size))?
            }
            _ => return Err(mapping::too_long().into()),
        }
        self.size = size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.reservation.as_ref().map_or(ptr::null_mut(), Reservation::base)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(mut reservation) = self.reservation.take() else { return };
        if reservation.mapping.length() > LONGEST_KEPT {
            return;
        }
        let shape = Shape { accessible: self.minimum, ..reservation.shape() };
        let (warm, evicted) = RESERVATIONS.lock().make_room(shape);
        drop(evicted);
        // What cannot be made as good as new is unmapped.
        if reservation.reset(self.minimum, warm).is_ok() {
            let evicted = RESERVATIONS.lock().give(reservation, warm);
            drop(evicted);
        }
    }
}
