//! The custom sections of a module's bytes. `native/fuzz` includes this file.
//!
//! Invariant: no bytes make it panic; what it answers is meant for modules that are valid, which
//! wasmtime finds out.

/// Name and size in bytes of each custom section.
pub type CustomSections = Vec<(Box<str>, usize)>;

/// The custom sections of a valid module: id 0, the section's size, and the name in front of
/// its contents.
pub fn custom_sections(binary: &[u8]) -> CustomSections {
    let mut sections = Vec::new();
    let mut rest = binary.get(8..).unwrap_or_default();
    while let Some((&id, after)) = rest.split_first() {
        let Some((section, after)) = split_sized(after) else { break };
        if id == 0
            && let Some((name, contents)) = split_sized(section)
        {
            sections.push((String::from_utf8_lossy(name).into(), contents.len()));
        }
        rest = after;
    }
    sections
}

/// The bytes that a LEB128 length stands before, and those behind them.
fn split_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let last = bytes.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    let (length, rest) = bytes.split_at(last + 1);
    let length = length.iter().rev().fold(0u64, |n, byte| n << 7 | u64::from(byte & 0x7f));
    rest.split_at_checked(usize::try_from(length).ok()?)
}
