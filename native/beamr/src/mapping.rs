//! Address space from the operating system: for linear memories and for stacks.
//!
//! Invariant: a mapping belongs to one owner, who unmaps it by dropping it. That nobody uses what
//! lies in it by then, or in a part of it that is forbidden or discarded, is for that owner to
//! see to.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::{Arc, LazyLock};

use libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE};

pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is only a place and a length.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared one gives away nothing but its place.
unsafe impl Sync for Mapping {}

static PAGE: LazyLock<usize> = LazyLock::new(|| {
    // SAFETY: it reads a constant of the system's.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
});

/// The operating system's page size, in bytes.
pub fn page() -> usize {
    *PAGE
}

/// Rounds up to whole pages of the operating system's; None where there is no such number.
pub fn pages(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(page())
}

pub fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "the memory is too long")
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Mapping {
    /// Space that can be neither read nor written yet.
    pub fn reserve(length: usize) -> io::Result<Self> {
        Self::map(length, PROT_NONE)
    }

    /// Zeros. Physical memory is taken where they are touched.
    pub fn zeros(length: usize) -> io::Result<Self> {
        Self::map(length, PROT_READ | PROT_WRITE)
    }

    /// Has no more physical memory taken than is touched: no huge pages.
    pub fn take_small_pages(&self) {
        #[cfg(target_os = "linux")]
        // SAFETY: it changes how physical memory is given to this mapping, which is ours. Where
        // the system knows no huge pages it fails, and there is nothing to be prevented.
        unsafe {
            libc::madvise(self.at(0), self.length, libc::MADV_NOHUGEPAGE);
        }
    }

    fn map(length: usize, protection: libc::c_int) -> io::Result<Self> {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        // SAFETY: a new mapping, at a place that the system chooses, touches no other.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Mapping { base, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub fn length(&self) -> usize {
        self.length
    }

    fn at(&self, offset: usize) -> *mut libc::c_void {
        assert!(offset <= self.length);
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    fn part(&self, range: &Range<usize>) -> (*mut libc::c_void, usize) {
        assert!(range.start <= range.end && range.end <= self.length);
        (self.at(range.start), range.len())
    }

    /// Lets whole pages be read and written.
    pub fn allow(&self, range: Range<usize>) -> io::Result<()> {
        let (start, length) = self.part(&range);
        // SAFETY: the range is one of this mapping's.
        done(unsafe { libc::mprotect(start, length, PROT_READ | PROT_WRITE) })
    }

    /// Takes that back. What the pages hold stays.
    pub fn forbid(&self, range: Range<usize>) -> io::Result<()> {
        let (start, length) = self.part(&range);
        // SAFETY: as for `allow`; the owner sees to it that nobody uses the range.
        done(unsafe { libc::mprotect(start, length, PROT_NONE) })
    }

    /// Has whole pages hold zeros again, and gives back the physical memory that they took.
    pub fn discard(&self, range: Range<usize>) -> io::Result<()> {
        let (start, length) = self.part(&range);
        // SAFETY: as for `forbid`. That the pages of a private mapping are zeros afterwards is
        // what Linux promises, and Linux alone.
        #[cfg(target_os = "linux")]
        let result = done(unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) });
        #[cfg(not(target_os = "linux"))]
        let result = {
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | libc::MAP_FIXED;
            let protection = PROT_READ | PROT_WRITE;
            // SAFETY: a new mapping takes the place of the range, which is one of this mapping's
            // and is used by nobody.
            let base = unsafe { libc::mmap(start, length, protection, flags, -1, 0) };
            if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        result
    }

    /// Makes one page a guard, for good: whoever touches it is stopped. Where the system can, it
    /// does not count as a mapping of its own.
    pub fn guard(&self, offset: usize) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            /// Since Linux 6.13.
            const MADV_GUARD_INSTALL: libc::c_int = 102;
            let (start, length) = self.part(&(offset..offset + page()));
            // SAFETY: the page is one of this mapping's, and the owner lets nobody use it.
            if unsafe { libc::madvise(start, length, MADV_GUARD_INSTALL) } == 0 {
                return Ok(());
            }
        }
        self.forbid(offset..offset + page())
    }

    /// Makes a mapping of [`Mapping::zeros`] longer, wherever there is room for it: zeros behind
    /// what it holds.
    pub fn grow(&mut self, length: usize) -> io::Result<()> {
        assert!(length >= self.length);
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the system moves the pages of this mapping, which is ours, as they are; the
            // owner uses its new place from now on.
            let base =
                unsafe { libc::mremap(self.at(0), self.length, length, libc::MREMAP_MAYMOVE) };
            match NonNull::new(base.cast::<u8>()) {
                Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => {
                    (self.base, self.length) = (base, length);
                    Ok(())
                }
                _ => Err(io::Error::last_os_error()),
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let longer = Self::zeros(length)?;
            // SAFETY: two mappings do not overlap, and the new one is the longer.
            unsafe { ptr::copy_nonoverlapping(self.base(), longer.base(), self.length) };
            *self = longer;
            Ok(())
        }
    }
}

/// One of the equal parts of a mapping, which lasts as long as any of them.
pub struct Part {
    whole: Arc<Mapping>,
    range: Range<usize>,
}

impl Part {
    /// All the parts of a mapping that are this long.
    pub fn all(whole: Mapping, length: usize) -> impl Iterator<Item = Part> {
        let whole = Arc::new(whole);
        (0..whole.length / length)
            .map(move |n| Part { whole: whole.clone(), range: n * length..(n + 1) * length })
    }

    pub fn base(&self) -> *mut u8 {
        self.whole.at(self.range.start).cast()
    }

    pub fn length(&self) -> usize {
        self.range.len()
    }

    /// As [`Mapping::discard`], for some of its bytes.
    pub fn discard(&self, range: Range<usize>) -> io::Result<()> {
        assert!(range.end <= self.range.len());
        self.whole.discard(self.range.start + range.start..self.range.start + range.end)
    }

    /// Takes the first so many bytes out of the part, whole pages, and leaves zeros there. They are
    /// moved to where there is room and not copied, if the system can.
    pub fn take_out(&self, length: usize) -> io::Result<Mapping> {
        assert!(length <= self.range.len());
        let from = self.base();
        #[cfg(target_os = "linux")]
        {
            // What is moved stays mapped where it was, so that nobody else is given that place.
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
            // SAFETY: the bytes are some of this part's, and the owner uses them no longer.
            let base = unsafe { libc::mremap(from.cast(), length, length, flags) };
            if let Some(base) = NonNull::new(base.cast::<u8>())
                && base.as_ptr().cast() != libc::MAP_FAILED
            {
                return Ok(Mapping { base, length });
            }
        }
        let copy = Mapping::zeros(length)?;
        // SAFETY: as above; two mappings do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, copy.base(), length) };
        self.discard(0..length)?;
        Ok(copy)
    }

    /// As [`Mapping::guard`], for the part's first page.
    pub fn guard(&self) -> io::Result<()> {
        self.whole.guard(self.range.start)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its owner is done with it. Where the system cannot
        // unmap it, which it says it cannot for want of memory only, it stays mapped, unused.
        unsafe {
            libc::munmap(self.at(0), self.length);
        }
    }
}
