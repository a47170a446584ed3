//! UTF-8 text of known length.
//!
//! Where bad bytes are replaced, each maximal part that is no UTF-8 becomes one U+FFFD, as the
//! WHATWG decoder has it, and as Rust's own lossy conversion does.

use rustler::{Binary, Encoder, Env, Term};

use crate::atoms;
use crate::error::Fault;
use crate::instance::{InstanceResource, Wait};
use crate::memory::{LONG, Refusal, finish, new_binary, operation, range, unsigned, with_memory};

const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// Bytes that become text when they are copied.
struct Text<'a> {
    bytes: &'a [u8],
    is_valid: bool,
    length: usize,
}

impl<'a> Text<'a> {
    fn of(bytes: &'a [u8], replace: bool) -> Result<Self, Fault> {
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(Text { bytes, is_valid: true, length: bytes.len() }),
            Err(error) if !replace => Err(Fault::InvalidUtf8 { at: error.valid_up_to() }),
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

    fn copy_to(&self, target: &mut [u8]) {
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

fn read<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    length: Term,
    replace: Term,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let range = range(unsigned(offset), unsigned(length), memory.len())?;
        if wait == Wait::Briefly && range.len() > LONG {
            return Err(Refusal::TooLong);
        }
        let text = Text::of(&memory[range], atoms::true_() == replace)?;
        let binary = new_binary(env, text.length, |binary| text.copy_to(binary))?;
        Ok((atoms::ok(), binary).encode(env))
    })
}

fn write<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    string: Term<'a>,
    replace: Term,
    wait: Wait,
) -> Term<'a> {
    let Ok(string) = Binary::from_term(string) else { return atoms::badarg().encode(env) };
    if wait == Wait::Briefly && string.len() > LONG {
        return finish(env, Err(Refusal::TooLong));
    }
    let text = match Text::of(string.as_slice(), atoms::true_() == replace) {
        Ok(text) => text,
        Err(fault) => return finish(env, Err(fault.into())),
    };
    with_memory(env, instance, memory, wait, |memory| {
        let found = range(unsigned(offset), Some(text.length as u64), memory.len());
        // The length is that of what would have been written, which may be longer than the string.
        let range = found.map_err(|fault| Fault::At(text.length, Box::new(fault)))?;
        text.copy_to(&mut memory[range]);
        Ok((atoms::ok(), text.length).encode(env))
    })
}

operation!(utf8_read, utf8_read_dirty, read(memory, offset, length, replace));
operation!(utf8_write, utf8_write_dirty, write(memory, offset, string, replace));
