//! Where linear memories lie: address space that is kept for others when a memory is freed.
//!
//! To map a memory and to unmap it would cost more than all else that an instance is made of.
//! There are two kinds, as an engine's code is compiled for one or the other: [`Reserving`] has
//! all that a memory can address set aside for it, so that code needs no checks and the memory
//! never moves; [`Compact`] has as much as the memory is long, and moves it when it grows.
//! Invariant: what is spare here holds zeros, and nobody can write to it.

use std::collections::HashMap;
use std::io;
use std::ptr;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use crate::mapping::{self, Mapping, Part};
use crate::spares::Spares;

/// Memories up to this many bytes are filled with zeros where they lie and keep their physical
/// memory: it is faster than having the system do it. Of longer ones it is given back.
const SHORT: usize = 128 * 1024;

/// As many spare memories of an engine keep their physical memory. (As many of each size, where
/// they are compact.)
const WARM: usize = 128;

/// As many mappings are kept that reserve all that a memory can address.
const KEPT: usize = 1024;

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "the memory is too long")
}

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
        let mapping = Mapping::reserve(length.ok_or_else(too_long)?)?;
        Ok(Reservation { mapping, guard, accessible: 0 })
    }

    fn reserved(&self) -> usize {
        self.mapping.length() - 2 * self.guard
    }

    fn base(&self) -> *mut u8 {
        self.mapping.base().wrapping_add(self.guard)
    }

    fn make_accessible(&mut self, bytes: usize) -> io::Result<()> {
        let end = mapping::pages(bytes).ok_or_else(too_long)?;
        if end > self.accessible {
            self.mapping.allow(self.guard + self.accessible..self.guard + end)?;
            self.accessible = end;
        }
        Ok(())
    }

    fn shape(&self) -> Shape {
        Shape { guard: self.guard, reserved: self.reserved(), accessible: self.accessible }
    }

    /// Makes all of it zeros, where it lies if it is to stay warm, and no more than so many bytes
    /// accessible.
    fn reset(&mut self, accessible: usize, warm: bool) -> io::Result<()> {
        let end = self.guard + self.accessible;
        if warm {
            // SAFETY: so much is accessible, and whose memory it was is done with it.
            unsafe { ptr::write_bytes(self.base(), 0, self.accessible) };
        } else {
            self.mapping.discard(self.guard..end)?;
        }
        if self.accessible > accessible {
            self.mapping.forbid(self.guard + accessible..end)?;
            self.accessible = accessible;
        }
        Ok(())
    }
}

/// What has to be the same in two reservations for one to serve in place of the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    guard: usize,
    reserved: usize,
    accessible: usize,
}

/// Makes memories that have all they can address set aside.
#[derive(Default)]
pub struct Reserving(Arc<Mutex<Reservations>>);

/// Spare ones.
#[derive(Default)]
struct Reservations(HashMap<Shape, Spares<Reservation>>);

impl Reservations {
    fn take(&mut self, shape: Shape) -> Option<Reservation> {
        self.0.get_mut(&shape)?.take()
    }

    fn warm(&self) -> usize {
        self.0.values().map(Spares::warm).sum()
    }

    /// Answers what it has no room for: something of which there are many.
    fn give(&mut self, spare: Reservation, warm: bool) -> Option<Reservation> {
        let spares = self.0.entry(spare.shape()).or_default();
        if warm {
            spares.give_warm(spare)
        } else {
            spares.give_cold(spare)
        }
        if self.0.values().map(Spares::count).sum::<usize>() <= KEPT {
            return None;
        }
        let (&shape, _) = self.0.iter().max_by_key(|(_, spares)| spares.count())?;
        let spares = self.0.get_mut(&shape)?;
        let one = spares.take_cold();
        if spares.count() == 0 {
            self.0.remove(&shape);
        }
        one
    }
}

struct Reserved {
    /// None once it has been given back.
    reservation: Option<Reservation>,
    size: usize,
    /// What was accessible at first, and is to be for the next that takes it.
    minimum: usize,
    spares: Arc<Mutex<Reservations>>,
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
        let pages = |bytes| mapping::pages(bytes).ok_or_else(|| too_long().to_string());
        let accessible = pages(minimum)?;
        let long = if ty.is_64() { pages(maximum.unwrap_or(LONG).min(LONG))? } else { 0 };
        let reserved = reserved.unwrap_or(0).max(accessible).max(long);
        let kept = self.0.lock().take(Shape { guard, reserved, accessible });
        let reservation = match kept {
            Some(reservation) => reservation,
            None => Reservation::new(guard, reserved)
                .and_then(|mut new| new.make_accessible(accessible).map(|()| new))
                .map_err(|error| error.to_string())?,
        };
        let (reservation, spares) = (Some(reservation), self.0.clone());
        Ok(Box::new(Reserved { reservation, size: minimum, minimum: accessible, spares }))
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
                reservation.make_accessible(size)?
            }
            _ => return Err(too_long().into()),
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
        let warm = reservation.accessible <= SHORT && self.spares.lock().warm() < WARM;
        // What cannot be made as good as new is unmapped.
        if reservation.reset(self.minimum, warm).is_ok() {
            let superfluous = self.spares.lock().give(reservation, warm);
            drop(superfluous);
        }
    }
}

/// The shortest and the longest part of a mapping that a compact memory is given; a longer one
/// has a mapping of its own.
const SMALLEST: usize = 64 * 1024;
const LARGEST: usize = 2 * 1024 * 1024;

/// So much is mapped at once, for memories of one size.
const AT_ONCE: usize = 16 * 1024 * 1024;

const SIZES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;

/// Makes memories that take no more address space than twice what they are long.
#[derive(Default)]
pub struct Compact(Arc<Parts>);

/// Spare ones, by their size.
type Parts = [Mutex<Spares<Part>>; SIZES];

enum Place {
    /// None once it has been given back.
    Part(Option<Part>),
    Own(Mapping),
}

struct Movable {
    place: Place,
    size: usize,
    spares: Arc<Parts>,
}

/// Which size of part a memory of so many bytes takes.
fn class(size: usize) -> Option<usize> {
    let parts = size.div_ceil(SMALLEST).max(1).checked_next_power_of_two()?;
    let class = parts.ilog2() as usize;
    (class < SIZES).then_some(class)
}

impl Place {
    fn new(size: usize, spares: &Parts) -> io::Result<Self> {
        let Some(class) = class(size) else {
            let length = mapping::pages(size).ok_or_else(too_long)?;
            return Mapping::zeros(length).map(Place::Own);
        };
        if let Some(part) = spares[class].lock().take() {
            return Ok(Place::Part(Some(part)));
        }
        let whole = Mapping::zeros(AT_ONCE)?;
        whole.take_small_pages();
        let mut spares = spares[class].lock();
        for part in Part::all(whole, SMALLEST << class) {
            spares.give_cold(part);
        }
        Ok(Place::Part(spares.take()))
    }

    fn base(&self) -> *mut u8 {
        match self {
            Place::Part(part) => part.as_ref().map_or(ptr::null_mut(), Part::base),
            Place::Own(mapping) => mapping.base(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Place::Part(part) => part.as_ref().map_or(0, Part::length),
            Place::Own(mapping) => mapping.length(),
        }
    }
}

// SAFETY: a memory is zeros that nobody else uses. The code that is compiled for such memories
// compares every address with their size, so that it needs no guard.
unsafe impl MemoryCreator for Compact {
    fn new_memory(
        &self,
        _type: MemoryType,
        minimum: usize,
        _maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        if reserved.unwrap_or(0) > 0 || guard > 0 {
            return Err("a compact memory has no guard".into());
        }
        let place = Place::new(minimum, &self.0).map_err(|error| error.to_string())?;
        Ok(Box::new(Movable { place, size: minimum, spares: self.0.clone() }))
    }
}

// SAFETY: its place is longer than the memory, and nobody else's.
unsafe impl LinearMemory for Movable {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.place.capacity()
    }

    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        if size > self.place.capacity() {
            let length = mapping::pages(size).ok_or_else(too_long)?;
            match &mut self.place {
                Place::Own(mapping) => mapping.grow(length)?,
                Place::Part(Some(part)) if class(size).is_none() => {
                    let mut own = part.take_out(part.length())?;
                    if let Err(error) = own.grow(length) {
                        // Code that runs takes it that a memory that has not grown has not moved.
                        // SAFETY: as below; all that was taken out is put back.
                        unsafe { ptr::copy_nonoverlapping(own.base(), part.base(), self.size) };
                        return Err(error.into());
                    }
                    self.give_back(0);
                    self.place = Place::Own(own);
                }
                Place::Part(_) => {
                    let place = Place::new(size, &self.spares)?;
                    // SAFETY: nobody else uses either place, and both are as long as the memory.
                    unsafe {
                        ptr::copy_nonoverlapping(self.place.base(), place.base(), self.size);
                    }
                    self.give_back(self.size);
                    self.place = place;
                }
            }
        }
        self.size = size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.place.base()
    }
}

impl Movable {
    /// Gives a part of a mapping back, made zeros again as far as it was used.
    fn give_back(&mut self, used: usize) {
        let Place::Part(part) = &mut self.place else { return };
        let Some(part) = part.take() else { return };
        let Some(class) = class(part.length()) else { return };
        let spares = &self.spares[class];
        let warm = (1..=SHORT).contains(&used) && spares.lock().warm() < WARM;
        let used = mapping::pages(used).unwrap_or(part.length()).min(part.length());
        if warm || part.discard(used).is_err() {
            // SAFETY: the part is at least so long, and whose memory it was is done with it.
            unsafe { ptr::write_bytes(part.base(), 0, used) };
        }
        let mut spares = spares.lock();
        if warm { spares.give_warm(part) } else { spares.give_cold(part) }
    }
}

impl Drop for Movable {
    fn drop(&mut self) {
        self.give_back(self.size);
    }
}
