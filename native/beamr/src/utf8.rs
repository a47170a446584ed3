//! UTF-8 text of known length, in memory.

use std::str::Utf8Error;

use rustler::{Binary, Encoder, Env, Term};

use crate::atoms;
use crate::error::Fault;
use crate::instance::{InstanceResource, Wait};
use crate::memory::{LONG, Refusal, finish, new_binary, range, unsigned, with_memory};
use crate::nif::operation;
use crate::text::Text;

impl From<Utf8Error> for Fault {
    fn from(error: Utf8Error) -> Self {
        Fault::InvalidUtf8 { at: error.valid_up_to() }
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
        let text = Text::of(&memory[range], atoms::true_() == replace).map_err(Fault::from)?;
        let binary = new_binary(env, text.length(), |binary| text.copy_to(binary))?;
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
        Err(error) => return finish(env, Err(Fault::from(error).into())),
    };
    with_memory(env, instance, memory, wait, |memory| {
        let found = range(unsigned(offset), Some(text.length() as u64), memory.len());
        // The length is that of what would have been written, which may be longer than the string.
        let range = found.map_err(|fault| Fault::At(text.length(), Box::new(fault)))?;
        text.copy_to(&mut memory[range]);
        Ok((atoms::ok(), text.length()).encode(env))
    })
}

operation!(utf8_read, utf8_read_dirty, read(memory, offset, length, replace));
operation!(utf8_write, utf8_write_dirty, write(memory, offset, string, replace));
