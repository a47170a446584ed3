//! The sections of a module's bytes. `native/fuzz` includes this file.
//!
//! Invariant: no bytes make it panic; what it answers is meant for modules that are valid, which
//! wasmtime finds out.

/// Name and size in bytes of each custom section.
pub type CustomSections = Vec<(Box<str>, usize)>;

const CUSTOM: u8 = 0;
const DATA: u8 = 11;

/// The custom sections of a valid module, which have the name in front of their contents.
pub fn custom_sections(binary: &[u8]) -> CustomSections {
    sections(binary)
        .filter(|(id, _)| *id == CUSTOM)
        .filter_map(|(_, section)| split_sized(section))
        .map(|(name, contents)| (String::from_utf8_lossy(name).into(), contents.len()))
        .collect()
}

/// How many bytes of a valid module are data for its memories.
pub fn data_size(binary: &[u8]) -> usize {
    sections(binary).filter(|(id, _)| *id == DATA).map(|(_, section)| section.len()).sum()
}

/// Id and contents of each section.
fn sections(binary: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = binary.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&id, after) = rest.split_first()?;
        let (section, after) = split_sized(after)?;
        rest = after;
        Some((id, section))
    })
}

/// The bytes that a LEB128 length stands before, and those behind them.
fn split_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let last = bytes.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    let (length, rest) = bytes.split_at(last + 1);
    let length = length.iter().rev().fold(0u64, |n, byte| n << 7 | u64::from(byte & 0x7f));
    rest.split_at_checked(usize::try_from(length).ok()?)
}
