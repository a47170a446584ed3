//! UTF-8 text out of any bytes. `native/fuzz` includes this file.
//!
//! Where bad bytes are replaced, each maximal part that is no UTF-8 becomes one U+FFFD, as the
//! WHATWG decoder has it, and as Rust's own lossy conversion does.

use std::str::Utf8Error;

const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// Bytes that become text when they are copied.
pub struct Text<'a> {
    bytes: &'a [u8],
    is_valid: bool,
    length: usize,
}

impl<'a> Text<'a> {
    /// With `replace`, there is nothing that is refused.
    pub fn of(bytes: &'a [u8], replace: bool) -> Result<Self, Utf8Error> {
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(Text { bytes, is_valid: true, length: bytes.len() }),
            Err(error) if !replace => Err(error),
            Err(_) => {
                let chunks = bytes.utf8_chunks();
                let lengths = chunks.map(|chunk| {
                    let bad = if chunk.invalid().is_empty() { 0 } else { REPLACEMENT.len() };
                    chunk.valid().len() + bad
                });
                Ok(Text { bytes, is_valid: false, length: lengths.sum() })
            }
        }
    }

    /// How many bytes the text has.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Copies the text to a place of its length.
    pub fn copy_to(&self, target: &mut [u8]) {
        if self.is_valid {
            return target.copy_from_slice(self.bytes);
        }
        let mut rest = target;
        for chunk in self.bytes.utf8_chunks() {
            let bad = if chunk.invalid().is_empty() { &[] } else { REPLACEMENT };
            for bytes in [chunk.valid().as_bytes(), bad] {
                let (here, after) = rest.split_at_mut(bytes.len());
                here.copy_from_slice(bytes);
                rest = after;
            }
        }
    }
}

/// How many of the bytes come before a character of UTF-8 that has begun and not ended.
pub fn complete(bytes: &[u8]) -> usize {
    // Such a character is in the last three bytes, and nothing before its first byte matters.
    let mut start = bytes.len().saturating_sub(3);
    while let Err(error) = std::str::from_utf8(&bytes[start..]) {
        start += error.valid_up_to();
        match error.error_len() {
            Some(bad) => start += bad,
            None => return start,
        }
    }
    bytes.len()
}
