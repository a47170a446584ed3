//! Lists of Erlang as they are decoded here: an improper one is refused.

use rustler::{Decoder, NifResult, Term};

/// In place of a `Vec`, whose decoding panics in the middle of an improper list.
pub struct List<T>(pub Vec<T>);

impl<'a, T: Decoder<'a>> Decoder<'a> for List<T> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        // It is an error where the list is improper, or none.
        term.list_length()?;
        term.decode().map(List)
    }
}
