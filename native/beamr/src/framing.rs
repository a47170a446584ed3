//! What is around the machine code of a precompiled module. `native/fuzz` includes this file.
//!
//! Invariant: an artifact is read as it was written, or not at all: any other bytes, and those of
//! another version, are refused.

use sha2::{Digest, Sha256};

use crate::sections::CustomSections;

/// What an artifact begins with. It is followed by
///
///   * the version of this library, behind its length in one byte: everything after it has the
///     form of that version;
///   * the SHA-256 of all that follows, 32 bytes;
///   * the options, one byte;
///   * the number of custom sections, and for each the length of its name, the name, and its
///     size; numbers are little-endian, u64;
///   * wasmtime's own artifact.
pub const MAGIC: &[u8] = b"\0beamr\0\x01";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
const HASH: usize = 32;

/// What is behind the hash.
pub struct Body<'a> {
    /// One bit for each option.
    pub options: u8,
    pub sections: CustomSections,
    /// Wasmtime's own artifact.
    pub image: &'a [u8],
}

/// Why an artifact is refused.
pub enum Refusal {
    /// It is none, or has changed since it was written.
    Damaged,
    /// It is of this other version.
    Version(String),
}

pub fn write(options: u8, sections: &CustomSections, image: &[u8]) -> Vec<u8> {
    let mut artifact = [MAGIC, &[VERSION.len() as u8], VERSION.as_bytes()].concat();
    let hash = artifact.len();
    let body = hash + HASH;
    artifact.resize(body, 0);
    artifact.push(options);
    artifact.extend((sections.len() as u64).to_le_bytes());
    for (name, size) in sections {
        artifact.extend((name.len() as u64).to_le_bytes());
        artifact.extend(name.as_bytes());
        artifact.extend((*size as u64).to_le_bytes());
    }
    artifact.extend(image);
    let digest = Sha256::digest(&artifact[body..]);
    artifact[hash..body].copy_from_slice(&digest);
    artifact
}

pub fn read(artifact: &[u8]) -> Result<Body<'_>, Refusal> {
    let rest = artifact.strip_prefix(MAGIC).ok_or(Refusal::Damaged)?;
    let (&length, rest) = rest.split_first().ok_or(Refusal::Damaged)?;
    let (version, rest) = rest.split_at_checked(usize::from(length)).ok_or(Refusal::Damaged)?;
    if version != VERSION.as_bytes() {
        return Err(Refusal::Version(String::from_utf8_lossy(version).into()));
    }
    let (hash, body) = rest.split_at_checked(HASH).ok_or(Refusal::Damaged)?;
    if hash != Sha256::digest(body).as_slice() {
        return Err(Refusal::Damaged);
    }
    split(body).ok_or(Refusal::Damaged)
}

fn split(body: &[u8]) -> Option<Body<'_>> {
    let (&options, mut rest) = body.split_first()?;
    let mut sections = Vec::new();
    for _ in 0..take_number(&mut rest)? {
        let length = usize::try_from(take_number(&mut rest)?).ok()?;
        let (name, after) = rest.split_at_checked(length)?;
        rest = after;
        let size = usize::try_from(take_number(&mut rest)?).ok()?;
        sections.push((std::str::from_utf8(name).ok()?.into(), size));
    }
    Some(Body { options, sections, image: rest })
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}
