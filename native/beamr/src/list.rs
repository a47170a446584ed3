//! Lists of Erlang as they are decoded here, where an improper one is refused, and short ones as
//! they are made.

use rustler::sys::{ErlNifTerm, enif_make_list_from_array};
use rustler::{Decoder, Env, NifResult, Term};
use smallvec::SmallVec;

/// In place of a `Vec`, whose decoding panics in the middle of an improper list.
pub struct List<T>(pub Vec<T>);

impl<'a, T: Decoder<'a>> Decoder<'a> for List<T> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        // It is an error where the list is improper, or none.
        term.list_length()?;
        term.decode().map(List)
    }
}

/// A list of so many terms needs no allocation but its own.
const SHORT: usize = 8;

/// The list of some terms of this environment.
pub fn of<'a>(env: Env<'a>, terms: impl IntoIterator<Item = Term<'a>>) -> Term<'a> {
    let mut list: SmallVec<[ErlNifTerm; SHORT]> = SmallVec::new();
    for term in terms {
        list.push(term.as_c_arg());
    }
    // SAFETY: as many terms are there as is said, and they are of this environment.
    unsafe {
        let list = enif_make_list_from_array(env.as_c_arg(), list.as_ptr(), list.len() as u32);
        Term::new(env, list)
    }
}
