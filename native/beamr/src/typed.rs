//! Numbers in memory: one, an array of one type, or many here and there, in one crossing each.
//!
//! Invariant: a write is all or nothing. Values become bytes before the lock is taken, and every
//! range is checked before the first byte is written.

use std::ops::Range;

use rustler::{Encoder, Env, Term};

use crate::atoms;
use crate::error::Fault;
use crate::instance::{InstanceResource, Wait};
use crate::memory::{
    LONG, MANY, Parts, Refusal, finish, new_binary, no_room, range, unsigned, with_memory,
};
use crate::nif::operation;
use crate::number::Number;
use crate::value::Mismatch;

impl From<Mismatch> for Refusal {
    fn from(mismatch: Mismatch) -> Self {
        match mismatch {
            Mismatch::Range => Fault::ValueOutOfRange.into(),
            Mismatch::Type => Refusal::BadArgument,
        }
    }
}

/// Says which of several it is that is refused.
fn at(place: usize) -> impl Fn(Refusal) -> Refusal {
    move |refusal| match refusal {
        Refusal::Fault(fault) => Fault::At(place, Box::new(fault)).into(),
        refusal => refusal,
    }
}

fn number(name: Term) -> Result<Number, Refusal> {
    Number::named(name).ok_or(Refusal::BadArgument)
}

/// A type to write, and whether integers are wrapped: its name, or `{:wrap, name}`.
fn kind(term: Term) -> Result<(Number, bool), Refusal> {
    if let Some(number) = Number::named(term) {
        return Ok((number, false));
    }
    let (wrap, name) = term.decode::<(Term, Term)>().map_err(|_| Refusal::BadArgument)?;
    match atoms::wrap() == wrap {
        true => Ok((number(name)?, true)),
        false => Err(Refusal::BadArgument),
    }
}

fn read<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    ty: Term,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let number = number(ty)?;
        let range = range(unsigned(offset), Some(number.size() as u64), memory.len())?;
        Ok((atoms::ok(), number.load(env, &memory[range])).encode(env))
    })
}

fn write<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    ty: Term,
    value: Term,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let (number, wrap) = kind(ty)?;
        let bytes = number.bytes(value, wrap)?;
        let range = range(unsigned(offset), Some(number.size() as u64), memory.len())?;
        memory[range].copy_from_slice(&bytes[..number.size()]);
        Ok(atoms::ok().encode(env))
    })
}

fn read_array<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    ty: Term,
    count: Term,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let number = number(ty)?;
        let length = unsigned(count).and_then(|count| count.checked_mul(number.size() as u64));
        let range = range(unsigned(offset), length, memory.len())?;
        if wait == Wait::Briefly && range.len() / number.size() > MANY {
            return Err(Refusal::TooLong);
        }
        Ok((atoms::ok(), number.load_all(env, &memory[range])).encode(env))
    })
}

fn write_array<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    ty: Term,
    values: Term<'a>,
    wait: Wait,
) -> Term<'a> {
    let bytes = match packed(ty, values, wait) {
        Ok(bytes) => bytes,
        Err(refusal) => return finish(env, Err(refusal)),
    };
    with_memory(env, instance, memory, wait, |memory| {
        let range = range(unsigned(offset), Some(bytes.len() as u64), memory.len())?;
        memory[range].copy_from_slice(&bytes);
        Ok(atoms::ok().encode(env))
    })
}

/// The bytes of a list of numbers.
fn packed(ty: Term, values: Term, wait: Wait) -> Result<Vec<u8>, Refusal> {
    let (number, wrap) = kind(ty)?;
    let mut bytes = Vec::new();
    each(values, wait, |place, value| {
        let value = number.bytes(value, wrap).map_err(Refusal::from).map_err(at(place))?;
        bytes.extend_from_slice(&value[..number.size()]);
        Ok(())
    })?;
    Ok(bytes)
}

/// Goes through a proper list; on a normal scheduler, through one that is not long.
fn each<'a>(
    list: Term<'a>,
    wait: Wait,
    mut f: impl FnMut(usize, Term<'a>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut rest = list;
    let mut place = 0;
    while !rest.is_empty_list() {
        if wait == Wait::Briefly && place == MANY {
            return Err(Refusal::TooLong);
        }
        let (head, tail) = rest.list_get_cell().map_err(|_| Refusal::BadArgument)?;
        f(place, head)?;
        place += 1;
        rest = tail;
    }
    Ok(())
}

/// What is wanted of one place: a number, or so many bytes.
enum Wanted {
    Number(Number),
    Bytes(Option<u64>),
}

fn read_many<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    places: Term<'a>,
    wait: Wait,
) -> Term<'a> {
    let wanted = match wanted(places, wait) {
        Ok(wanted) => wanted,
        Err(refusal) => return finish(env, Err(refusal)),
    };
    with_memory(env, instance, memory, wait, |memory| {
        let mut ranges = Vec::with_capacity(wanted.len());
        let mut total = 0_usize;
        for (place, (offset, wanted)) in wanted.iter().enumerate() {
            let length = match wanted {
                Wanted::Number(number) => Some(number.size() as u64),
                Wanted::Bytes(length) => *length,
            };
            let found = range(*offset, length, memory.len());
            let found = found.map_err(|fault| Fault::At(place, Box::new(fault)))?;
            // Places may overlap, so that all together may come to any number.
            total = total.saturating_add(found.len());
            ranges.push(found);
        }
        if wait == Wait::Briefly && total > LONG {
            return Err(Refusal::TooLong);
        }
        if isize::try_from(total).is_err() {
            return Err(no_room(total).into());
        }
        let mut list = Term::list_new_empty(env);
        for ((_, wanted), range) in wanted.iter().zip(ranges).rev() {
            let bytes = &memory[range];
            list = list.list_prepend(match wanted {
                Wanted::Number(number) => number.load(env, bytes),
                Wanted::Bytes(_) => {
                    new_binary(env, bytes.len(), |binary| binary.copy_from_slice(bytes))?
                }
            });
        }
        Ok((atoms::ok(), list).encode(env))
    })
}

fn wanted(places: Term, wait: Wait) -> Result<Vec<(Option<u64>, Wanted)>, Refusal> {
    let mut all = Vec::new();
    each(places, wait, |_, place| {
        let (offset, what) = place.decode::<(Term, Term)>().map_err(|_| Refusal::BadArgument)?;
        let wanted = match what.is_atom() {
            true => Wanted::Number(number(what)?),
            false => Wanted::Bytes(natural(what)?),
        };
        all.push((natural(offset)?, wanted));
        Ok(())
    })?;
    Ok(all)
}

/// A non-negative integer in a place where no guard looks; None where it has more than 64 bits.
fn natural(term: Term) -> Result<Option<u64>, Refusal> {
    match unsigned(term) {
        Some(n) => Ok(Some(n)),
        None if term.is_integer() && term.decode::<i64>().is_err() && !is_negative(term) => {
            Ok(None)
        }
        None => Err(Refusal::BadArgument),
    }
}

/// Whether a big integer is: the term order puts every integer before every atom, and numbers
/// among themselves by their value.
fn is_negative(term: Term) -> bool {
    term < 0_u8.encode(term.get_env())
}

enum Given<'a> {
    Number([u8; 8], usize),
    Bytes(Parts<'a>),
}

impl Given<'_> {
    fn length(&self) -> usize {
        match self {
            Given::Number(_, size) => *size,
            Given::Bytes(parts) => parts.length,
        }
    }

    fn copy_to(&self, target: &mut [u8]) {
        match self {
            Given::Number(bytes, size) => target.copy_from_slice(&bytes[..*size]),
            Given::Bytes(parts) => parts.copy_to(target),
        }
    }
}

fn write_many<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    writes: Term<'a>,
    wrap: Term,
    wait: Wait,
) -> Term<'a> {
    let given = match given(writes, atoms::true_() == wrap, wait) {
        Ok(given) => given,
        Err(refusal) => return finish(env, Err(refusal)),
    };
    with_memory(env, instance, memory, wait, |memory| {
        let ranges = given.iter().enumerate().map(|(place, (offset, given))| {
            let found = range(*offset, Some(given.length() as u64), memory.len());
            found.map_err(|fault| Fault::At(place, Box::new(fault)))
        });
        let ranges = ranges.collect::<Result<Vec<Range<usize>>, Fault>>()?;
        if wait == Wait::Briefly && ranges.iter().map(Range::len).sum::<usize>() > LONG {
            return Err(Refusal::TooLong);
        }
        for ((_, given), range) in given.iter().zip(ranges) {
            given.copy_to(&mut memory[range]);
        }
        Ok(atoms::ok().encode(env))
    })
}

fn given<'a>(
    writes: Term<'a>,
    wrap: bool,
    wait: Wait,
) -> Result<Vec<(Option<u64>, Given<'a>)>, Refusal> {
    // What is left of the parts that a normal scheduler may go through, of all iodata together.
    let mut left = if wait == Wait::Briefly { MANY } else { usize::MAX };
    let mut all = Vec::new();
    each(writes, wait, |place, write| {
        if let Ok((offset, data)) = write.decode::<(Term, Term)>() {
            let parts = Parts::of(data, left)?;
            left = left.saturating_sub(parts.cells());
            all.push((natural(offset)?, Given::Bytes(parts)));
            return Ok(());
        }
        let write = write.decode::<(Term, Term, Term)>();
        let (offset, ty, value) = write.map_err(|_| Refusal::BadArgument)?;
        let number = number(ty)?;
        let offset = natural(offset)?;
        let bytes = number.bytes(value, wrap).map_err(Refusal::from).map_err(at(place))?;
        all.push((offset, Given::Number(bytes, number.size())));
        Ok(())
    })?;
    Ok(all)
}

operation!(typed_read, typed_read_dirty, read(memory, offset, ty));
operation!(typed_write, typed_write_dirty, write(memory, offset, ty, value));
operation!(typed_read_array, typed_read_array_dirty, read_array(memory, offset, ty, count));
operation!(typed_write_array, typed_write_array_dirty, write_array(memory, offset, ty, values));
operation!(typed_read_many, typed_read_many_dirty, read_many(memory, places));
operation!(typed_write_many, typed_write_many_dirty, write_many(memory, writes, wrap));
