//! Memories that take about as much address space as they are long, and move when they grow.
//!
//! They lie in mappings that many share, and that are kept for others when a memory is freed.
//! Invariant: a part that is spare here holds zeros, and nobody has a way to it.

use std::io;
use std::ptr;

use parking_lot::Mutex;
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use crate::mapping::{self, Mapping, Part};
use crate::reserving::with_room;
use crate::spares::{SHORT, Spares};

/// The shortest and the longest part of a mapping that a compact memory is given; a longer one
/// has a mapping of its own.
const SMALLEST: usize = 64 * 1024;
const LARGEST: usize = 2 * 1024 * 1024;

/// So much is mapped at once, for memories of one size.
const AT_ONCE: usize = 16 * 1024 * 1024;

const SIZES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;

/// As many spare parts of each size keep their physical memory, and as many more are kept. The rest
/// is unmapped, each mapping when the last of its parts is.
const WARM: usize = 32;
const COLD: usize = 1024;

/// Spare parts, of all engines, by their size.
static PARTS: [Mutex<Spares<Part>>; SIZES] = [const { Mutex::new(Spares::new()) }; SIZES];

/// Makes memories that take about as much address space as they are long.
pub struct Compact;

enum Place {
    /// None once it has been given back.
    Part(Option<Part>),
    Own(Mapping),
}

struct Movable {
    place: Place,
    size: usize,
}

/// Which size of part a memory of so many bytes takes.
fn class(size: usize) -> Option<usize> {
    let parts = size.div_ceil(SMALLEST).max(1).checked_next_power_of_two()?;
    let class = parts.ilog2() as usize;
    (class < SIZES).then_some(class)
}

impl Place {
    fn new(size: usize) -> io::Result<Self> {
        let Some(class) = class(size) else {
            let length = mapping::pages(size).ok_or_else(mapping::too_long)?;
            return with_room(|| Mapping::zeros(length)).map(Place::Own);
        };
        if let Some(part) = PARTS[class].lock().take() {
            return Ok(Place::Part(Some(part)));
        }
        let whole = with_room(|| Mapping::zeros(AT_ONCE))?;
        whole.take_small_pages();
        let mut spares = PARTS[class].lock();
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
        let place = Place::new(minimum).map_err(|error| error.to_string())?;
        Ok(Box::new(Movable { place, size: minimum }))
    }
}

// SAFETY: its place is at least as long as the memory, and nobody else's.
unsafe impl LinearMemory for Movable {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.place.capacity()
    }

    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        if size > self.place.capacity() {
            let grow = |mapping: &mut Mapping| {
                // With some to spare, if there is, so that it need not move for each page.
                let length = mapping::pages(size).ok_or_else(mapping::too_long)?;
                let longer = size.checked_add(size / 8).and_then(mapping::pages);
                let grown = mapping.grow(longer.unwrap_or(length));
                grown.or_else(|_| with_room(|| mapping.grow(length)))
            };
            match &mut self.place {
                Place::Own(mapping) => grow(mapping)?,
                Place::Part(Some(part)) if class(size).is_none() => {
                    let mut own = with_room(|| part.take_out(part.length()))?;
                    if let Err(error) = grow(&mut own) {
                        // Code that runs takes it that a memory that has not grown has not moved.
                        // SAFETY: as below; all that was taken out is put back.
                        unsafe { ptr::copy_nonoverlapping(own.base(), part.base(), self.size) };
                        return Err(error.into());
                    }
                    self.give_back(0);
                    self.place = Place::Own(own);
                }
                Place::Part(_) => {
                    let place = Place::new(size)?;
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
        let warm = (1..=SHORT).contains(&used) && PARTS[class].lock().warm() < WARM;
        let used = mapping::pages(used).unwrap_or(part.length()).min(part.length());
        if warm || part.discard(0..used).is_err() {
            // SAFETY: the part is at least so long, and whose memory it was is done with it.
            unsafe { ptr::write_bytes(part.base(), 0, used) };
        }
        let mut spares = PARTS[class].lock();
        if warm {
            spares.give_warm(part);
        } else if spares.cold() < COLD {
            spares.give_cold(part);
        } else {
            drop(spares);
            drop(part);
        }
    }
}

impl Drop for Movable {
    fn drop(&mut self) {
        self.give_back(self.size);
    }
}
