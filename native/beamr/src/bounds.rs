//! Bounds in a memory: of ranges of bytes, and of strings that end with a zero. `native/fuzz`
//! includes this file.

use std::ops::Range;

/// The range `offset..offset + length` if it lies inside a memory of `size` bytes. Numbers that
/// do not fit 64 bits come as None.
pub fn range(offset: Option<u64>, length: Option<u64>, size: usize) -> Option<Range<usize>> {
    let start = offset?;
    let end = start.checked_add(length?)?;
    (end <= size as u64).then_some(start as usize..end as usize)
}

/// How many bytes come before the first zero, if there is one. No more than a chunk is looked at
/// beyond it.
pub fn find_nul(bytes: &[u8], chunk: usize) -> Option<usize> {
    let mut start = 0;
    for part in bytes.chunks(chunk) {
        if let Some(at) = memchr::memchr(0, part) {
            return Some(start + at);
        }
        start += part.len();
    }
    None
}
