//! Erlang terms, as far as scripts need them, and their external format.

pub enum Term {
    Atom(&'static str),
    Integer(i128),
    Binary(Vec<u8>),
    Tuple(Vec<Term>),
    List(Vec<Term>),
}

impl Term {
    pub fn text(text: &str) -> Term {
        Term::Binary(text.as_bytes().to_vec())
    }

    pub fn external(&self) -> Vec<u8> {
        let mut out = vec![131];
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Term::Atom(name) => {
                out.extend([119, name.len() as u8]);
                out.extend(name.as_bytes());
            }
            Term::Integer(n) => {
                out.extend([110, 16, u8::from(*n < 0)]);
                out.extend(n.unsigned_abs().to_le_bytes());
            }
            Term::Binary(bytes) => {
                out.push(109);
                write_length(bytes.len(), out);
                out.extend(bytes);
            }
            Term::Tuple(terms) => {
                out.extend([104, terms.len() as u8]);
                terms.iter().for_each(|term| term.write(out));
            }
            Term::List(terms) => {
                out.push(108);
                write_length(terms.len(), out);
                terms.iter().for_each(|term| term.write(out));
                out.push(106);
            }
        }
    }
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend((length as u32).to_be_bytes());
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl From<$type> for Term {
            fn from(n: $type) -> Term {
                Term::Integer(n.into())
            }
        }
    )*};
}

integers!(i8, i16, i32, u32, i64, u64);

/// A tuple; its parts are terms already, or the names of atoms.
macro_rules! tuple {
    ($($part:expr),* $(,)?) => { $crate::term::Term::Tuple(vec![$($part.into()),*]) };
}
pub(crate) use tuple;

impl From<&'static str> for Term {
    fn from(name: &'static str) -> Term {
        Term::Atom(name)
    }
}

impl From<Vec<Term>> for Term {
    fn from(terms: Vec<Term>) -> Term {
        Term::List(terms)
    }
}
