//! Whole ranges of bytes: filled, copied, compared and searched where they lie.
//!
//! Lock order: of two instances, the one that was made first is locked first, so that two
//! processes that copy in opposite directions do not wait for each other.

use std::cmp::Ordering;

use memchr::memmem;
use rustler::{Binary, Encoder, Env, Term};

use crate::atoms;
use crate::error::Fault;
use crate::instance::{InstanceResource, Wait};
use crate::memory::{Answer, LONG, Refusal, View, finish, range, unsigned, with_memory};
use crate::nif::operation;

fn fill<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    byte: Term,
    length: Term,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let byte = byte.decode::<u8>().map_err(|_| Refusal::BadArgument)?;
        let range = range(unsigned(offset), unsigned(length), memory.len())?;
        if wait == Wait::Briefly && range.len() > LONG {
            return Err(Refusal::TooLong);
        }
        memory[range].fill(byte);
        Ok(atoms::ok().encode(env))
    })
}

fn find<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    memory: Term,
    offset: Term,
    length: Term,
    pattern: Term<'a>,
    wait: Wait,
) -> Term<'a> {
    with_memory(env, instance, memory, wait, |memory| {
        let pattern = Binary::from_term(pattern).map_err(|_| Refusal::BadArgument)?;
        let range = range(unsigned(offset), unsigned(length), memory.len())?;
        if wait == Wait::Briefly && range.len().saturating_add(pattern.len()) > LONG {
            return Err(Refusal::TooLong);
        }
        let start = range.start;
        let found = memmem::find(&memory[range], pattern.as_slice()).map(|at| start + at);
        Ok((atoms::ok(), found).encode(env))
    })
}

/// A memory of an instance.
type Of<'a> = (&'a InstanceResource, Term<'a>);

/// Runs `f` while both instances, which may be one, are locked.
fn with_two<'a>(
    env: Env<'a>,
    (one, one_memory): Of<'a>,
    (other, other_memory): Of<'a>,
    wait: Wait,
    f: impl FnOnce(View, View) -> Answer<'a>,
) -> Answer<'a> {
    let second = |fault| Refusal::Fault(Fault::At(1, Box::new(fault)));
    let one_index = one.memory_index(one_memory).ok_or(Fault::UnknownMemory)?;
    let other_index =
        other.memory_index(other_memory).ok_or(Fault::UnknownMemory).map_err(second)?;
    if one.id == other.id {
        let state = one.lock(wait).ok_or(Refusal::TooLong)?;
        let views = state.view(one_index).and_then(|view| Ok((view, state.view(other_index)?)));
        let answer = views.map_err(Refusal::from).and_then(|(view, other)| f(view, other));
        one.unlock(env, state);
        return answer;
    }
    let (first, last) = if one.id < other.id { (one, other) } else { (other, one) };
    let first_state = first.lock(wait).ok_or(Refusal::TooLong)?;
    let Some(last_state) = last.lock(wait) else {
        first.unlock(env, first_state);
        return Err(Refusal::TooLong);
    };
    let answer = {
        let (one_state, other_state) = match one.id < other.id {
            true => (&first_state, &last_state),
            false => (&last_state, &first_state),
        };
        match (one_state.view(one_index), other_state.view(other_index)) {
            (Ok(view), Ok(other)) => f(view, other),
            (Err(fault), _) => Err(fault.into()),
            (_, Err(fault)) => Err(second(fault)),
        }
    };
    last.unlock(env, last_state);
    first.unlock(env, first_state);
    answer
}

/// As [`range`], for the second of two.
fn second_range(
    offset: Term,
    length: Term,
    size: usize,
) -> Result<std::ops::Range<usize>, Refusal> {
    range(unsigned(offset), unsigned(length), size)
        .map_err(|fault| Fault::At(1, Box::new(fault)).into())
}

/// `{instance, memory, offset}`.
fn place<'a>(term: Term<'a>) -> Result<(Of<'a>, Term<'a>), Refusal> {
    let (instance, memory, offset): (Term, Term, Term) =
        term.decode().map_err(|_| Refusal::BadArgument)?;
    let instance = instance.decode::<&InstanceResource>().map_err(|_| Refusal::BadArgument)?;
    Ok(((instance, memory), offset))
}

fn copy<'a>(
    env: Env<'a>,
    target: &'a InstanceResource,
    memory: Term<'a>,
    offset: Term<'a>,
    source: Term<'a>,
    length: Term<'a>,
    wait: Wait,
) -> Term<'a> {
    let copied = place(source).and_then(|(source, source_offset)| {
        with_two(env, (target, memory), source, wait, |view, from| {
            let target = range(unsigned(offset), unsigned(length), view.size())?;
            let source = second_range(source_offset, length, from.size())?;
            if wait == Wait::Briefly && target.len() > LONG {
                return Err(Refusal::TooLong);
            }
            view.copy_from(target, &from, source);
            Ok(atoms::ok().encode(env))
        })
    });
    finish(env, copied)
}

fn compare<'a>(
    env: Env<'a>,
    one: &'a InstanceResource,
    memory: Term<'a>,
    offset: Term<'a>,
    other: Term<'a>,
    length: Term<'a>,
    wait: Wait,
) -> Term<'a> {
    let compared = place(other).and_then(|(other, other_offset)| {
        with_two(env, (one, memory), other, wait, |view, other| {
            let these = range(unsigned(offset), unsigned(length), view.size())?;
            let those = second_range(other_offset, length, other.size())?;
            if wait == Wait::Briefly && these.len() > LONG {
                return Err(Refusal::TooLong);
            }
            let order = match view.compare(these, &other, those) {
                Ordering::Less => atoms::lt(),
                Ordering::Equal => atoms::eq(),
                Ordering::Greater => atoms::gt(),
            };
            Ok((atoms::ok(), order).encode(env))
        })
    });
    finish(env, compared)
}

operation!(block_fill, block_fill_dirty, fill(memory, offset, byte, length));
operation!(block_find, block_find_dirty, find(memory, offset, length, pattern));
operation!(block_copy, block_copy_dirty, copy(memory, offset, source, length));
operation!(block_compare, block_compare_dirty, compare(memory, offset, other, length));
