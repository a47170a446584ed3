//! Values between Erlang terms and WebAssembly. No other file converts them.
//!
//! A value crosses in two steps, because terms live in the environment of a NIF call and
//! references live in a store, and the two are not always at hand together:
//! term ⇄ [`Value`] (no store) and [`Value`] ⇄ [`Val`] (no environment). Numbers live nowhere,
//! and cross in one: term ⇄ [`Val`].

use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use rustler::env::SavedTerm;
use rustler::{Atom, Binary, Encoder, Env, NewBinary, OwnedEnv, Resource, ResourceArc, Term};
use wasmtime::{AsContextMut, ExternRef, Func, FuncType, HeapType, RefType, Rooted, Val, ValType};

use crate::atoms;
use crate::count::{self, Live};
use crate::list;
use crate::number::{Number, low_bytes};

#[derive(Clone)]
pub enum Value {
    /// Never a reference.
    Number(Val),
    Null,
    Func(Arc<FuncHandle>),
    Extern(Arc<HeldTerm>),
    /// A reference that has no Erlang form (`anyref`, `exnref` and what is below them).
    Opaque,
}

/// Why a term is not a value of the wanted type.
pub enum Mismatch {
    /// Of another kind of term altogether.
    Type,
    /// The right kind of term, but not one that the type can hold.
    Range,
}

impl Mismatch {
    pub fn atom(&self) -> Atom {
        match self {
            Mismatch::Type => atoms::type_(),
            Mismatch::Range => atoms::out_of_bounds(),
        }
    }
}

/// A function of one store, as Elixir holds it.
pub struct FuncHandle {
    pub func: Func,
    /// The identity of the instance that the function belongs to.
    pub owner: u64,
    pub signature: Signature,
    ty: FuncType,
    _live: Live<{ count::FUNCTION }>,
}

impl FuncHandle {
    fn is_a(&self, wanted: &HeapType) -> bool {
        match wanted {
            HeapType::Func => true,
            HeapType::ConcreteFunc(wanted) => self.ty.matches(wanted),
            _ => false,
        }
    }
}

pub struct FuncResource(pub Arc<FuncHandle>);

#[rustler::resource_impl]
impl Resource for FuncResource {}

/// An Erlang term that outlives the NIF call it came with: what a guest holds by `externref`.
pub struct HeldTerm(Mutex<(OwnedEnv, SavedTerm)>, Live<{ count::TERM }>);

impl HeldTerm {
    pub fn new(term: Term) -> Self {
        let env = OwnedEnv::new();
        let saved = env.save(term);
        HeldTerm(Mutex::new((env, saved)), Live::new())
    }

    pub fn load<'a>(&self, env: Env<'a>) -> Term<'a> {
        let held = self.0.lock();
        held.0.run(|own| held.1.load(own).in_env(env))
    }
}

/// Parameter and result types, in the form that Elixir sees and converts by.
#[derive(Clone)]
pub struct Signature {
    pub params: Arc<[ValType]>,
    pub results: Arc<[ValType]>,
    /// Whether there are numbers only, and no references.
    pub numeric: bool,
}

impl Signature {
    pub fn new(ty: &FuncType) -> Self {
        let numeric = ty.params().chain(ty.results()).all(|ty| !ty.is_ref());
        Signature { params: ty.params().collect(), results: ty.results().collect(), numeric }
    }

    pub fn empty() -> Self {
        Signature { params: Arc::new([]), results: Arc::new([]), numeric: true }
    }
}

/// The type's name: the specification's for numbers, vectors and the abstract reference types.
pub fn type_name(ty: &ValType) -> Atom {
    match ty {
        ValType::I32 => atoms::i32(),
        ValType::I64 => atoms::i64(),
        ValType::F32 => atoms::f32(),
        ValType::F64 => atoms::f64(),
        ValType::V128 => atoms::v128(),
        ValType::Ref(reference) => reference_name(reference),
    }
}

/// The name of the hierarchy that the reference type belongs to.
pub fn reference_name(ty: &RefType) -> Atom {
    match ty.heap_type().top() {
        HeapType::Func => atoms::funcref(),
        HeapType::Extern => atoms::externref(),
        HeapType::Exn => atoms::exnref(),
        HeapType::Cont => atoms::contref(),
        _ => atoms::anyref(),
    }
}

pub fn type_names(types: &[ValType]) -> Vec<Atom> {
    types.iter().map(type_name).collect()
}

/// Reads a term as a value of type `ty`.
pub fn decode(term: Term, ty: &ValType) -> Result<Value, Mismatch> {
    match ty {
        ValType::Ref(reference) => decode_reference(term, reference),
        number => decode_number(term, number).map(Value::Number),
    }
}

/// Reads a term as a number of type `ty`, or as a vector.
pub fn decode_number(term: Term, ty: &ValType) -> Result<Val, Mismatch> {
    with_number(term, ty, std::convert::identity)
}

/// The same for what happens in every call. `take` puts the number where it belongs while it is
/// still in a register: to copy a [`Val`] that has just been written is slow, since it is not
/// read in the parts that it was written in.
#[inline(always)]
pub fn with_number<R>(
    term: Term,
    ty: &ValType,
    take: impl FnOnce(Val) -> R,
) -> Result<R, Mismatch> {
    match ty {
        ValType::I32 => match term.decode::<i64>() {
            Ok(n) if i32::try_from(n).is_ok() || u32::try_from(n).is_ok() => {
                Ok(take(Val::I32(n as i32)))
            }
            Ok(_) => Err(Mismatch::Range),
            Err(_) => Err(integer_mismatch(term)),
        },
        ValType::I64 => match term.decode::<i64>() {
            Ok(n) => Ok(take(Val::I64(n))),
            Err(_) => match term.decode::<u64>() {
                Ok(n) => Ok(take(Val::I64(n as i64))),
                Err(_) => Err(integer_mismatch(term)),
            },
        },
        ValType::F32 => {
            let (value, is_finite) = decode_float(term, |n| n as f32, |x| x as f32)?;
            match is_finite && value.is_infinite() {
                true => Err(Mismatch::Range),
                false => Ok(take(Val::F32(value.to_bits()))),
            }
        }
        ValType::F64 => {
            let (value, _) = decode_float(term, |n| n as f64, |x| x)?;
            Ok(take(Val::F64(value.to_bits())))
        }
        ValType::V128 => {
            let bytes = Binary::from_term(term).map_err(|_| Mismatch::Type)?;
            match bytes.as_slice().try_into() {
                Ok(lanes) => Ok(take(Val::V128(u128::from_le_bytes(lanes).into()))),
                Err(_) => Err(Mismatch::Range),
            }
        }
        ValType::Ref(_) => Err(Mismatch::Type),
    }
}

fn integer_mismatch(term: Term) -> Mismatch {
    if term.is_integer() { Mismatch::Range } else { Mismatch::Type }
}

/// The largest float has 1,024 bits; as an external term it is not longer than this.
const LARGEST_FLOAT: usize = 1024 / 8 + 8;

/// The float, rounded once whatever number it comes from, and whether that number is finite.
fn decode_float<F: FromStr + From<f32> + Into<f64> + Copy>(
    term: Term,
    from_integer: fn(i64) -> F,
    from_float: fn(f64) -> F,
) -> Result<(F, bool), Mismatch> {
    if let Ok(n) = term.decode::<i64>() {
        return Ok((from_integer(n), true));
    }
    if term.is_integer() {
        if term.to_binary().len() > LARGEST_FLOAT {
            return Err(Mismatch::Range);
        }
        // A big integer's debug form is its decimal digits, which parse with correct rounding.
        return match format!("{term:?}").parse::<F>() {
            Ok(float) if float.into().is_finite() => Ok((float, true)),
            _ => Err(Mismatch::Range),
        };
    }
    if let Ok(float) = term.decode::<f64>() {
        return Ok((from_float(float), true));
    }
    match term {
        t if atoms::nan() == t => Ok((F::from(f32::NAN), false)),
        t if atoms::infinity() == t => Ok((F::from(f32::INFINITY), false)),
        t if atoms::neg_infinity() == t => Ok((F::from(f32::NEG_INFINITY), false)),
        _ => Err(Mismatch::Type),
    }
}

fn decode_reference(term: Term, ty: &RefType) -> Result<Value, Mismatch> {
    let is_nil = atoms::nil() == term;
    match ty.heap_type().top() {
        _ if is_nil && ty.is_nullable() => Ok(Value::Null),
        HeapType::Func => match term.decode::<ResourceArc<FuncResource>>() {
            Ok(func) if func.0.is_a(ty.heap_type()) => Ok(Value::Func(func.0.clone())),
            _ => Err(Mismatch::Type),
        },
        // Bottom types hold nothing but null.
        HeapType::Extern if matches!(ty.heap_type(), HeapType::NoExtern) => Err(Mismatch::Type),
        HeapType::Extern => Ok(Value::Extern(Arc::new(HeldTerm::new(term)))),
        _ => Err(Mismatch::Type),
    }
}

/// Writes a value as a term; integers are signed unless `unsigned` is asked for.
pub fn encode<'a>(env: Env<'a>, value: &Value, unsigned: bool) -> Term<'a> {
    match value {
        Value::Number(number) => encode_number(env, number, unsigned),
        Value::Null => atoms::nil().encode(env),
        Value::Func(func) => ResourceArc::new(FuncResource(func.clone())).encode(env),
        Value::Extern(term) => term.load(env),
        Value::Opaque => atoms::other().encode(env),
    }
}

fn encode_number<'a>(env: Env<'a>, number: &Val, unsigned: bool) -> Term<'a> {
    match number {
        Val::I32(n) if unsigned => (*n as u32).encode(env),
        Val::I64(n) if unsigned => (*n as u64).encode(env),
        Val::I32(n) => n.encode(env),
        Val::I64(n) => n.encode(env),
        Val::F32(bits) => encode_float(env, f64::from(f32::from_bits(*bits))),
        Val::F64(bits) => encode_float(env, f64::from_bits(*bits)),
        Val::V128(bits) => {
            let mut binary = NewBinary::new(env, 16);
            binary.as_mut_slice().copy_from_slice(&bits.as_u128().to_le_bytes());
            binary.into()
        }
        _ => atoms::other().encode(env),
    }
}

pub fn encode_numbers<'a>(env: Env<'a>, numbers: &[Val], unsigned: bool) -> Term<'a> {
    list::of(env, numbers.iter().map(|number| encode_number(env, number, unsigned)))
}

pub fn encode_all<'a>(env: Env<'a>, values: &[Value], unsigned: bool) -> Term<'a> {
    list::of(env, values.iter().map(|value| encode(env, value, unsigned)))
}

fn encode_float(env: Env<'_>, x: f64) -> Term<'_> {
    if x.is_finite() {
        x.encode(env)
    } else if x.is_nan() {
        atoms::nan().encode(env)
    } else if x > 0.0 {
        atoms::infinity().encode(env)
    } else {
        atoms::neg_infinity().encode(env)
    }
}

/// Brings a value into a store. References are rooted in the store's current scope.
pub fn to_val(mut store: impl AsContextMut, value: &Value, ty: &ValType) -> wasmtime::Result<Val> {
    Ok(match value {
        Value::Number(number) => *number,
        Value::Null | Value::Opaque => match ty {
            ValType::Ref(reference) => Val::null_ref(reference.heap_type()),
            _ => Val::null_ref(&HeapType::Extern),
        },
        Value::Func(func) => Val::FuncRef(Some(func.func)),
        Value::Extern(term) => {
            Val::ExternRef(Some(ExternRef::new(store.as_context_mut(), term.clone())?))
        }
    })
}

pub fn is_number(val: &Val) -> bool {
    matches!(val, Val::I32(_) | Val::I64(_) | Val::F32(_) | Val::F64(_) | Val::V128(_))
}

/// Takes a value out of a store; `owner` is the identity of the store's instance.
pub fn from_val(mut store: impl AsContextMut, val: &Val, owner: u64) -> Value {
    match val {
        number if is_number(number) => Value::Number(*number),
        Val::FuncRef(Some(func)) => {
            let ty = func.ty(store.as_context());
            let signature = Signature::new(&ty);
            Value::Func(Arc::new(FuncHandle {
                func: *func,
                owner,
                signature,
                ty,
                _live: Live::new(),
            }))
        }
        Val::ExternRef(Some(reference)) => extern_value(store.as_context_mut(), *reference),
        Val::AnyRef(Some(_)) | Val::ExnRef(Some(_)) => Value::Opaque,
        _ => Value::Null,
    }
}

fn extern_value(store: impl AsContextMut, reference: Rooted<ExternRef>) -> Value {
    let data = reference.data(store.as_context());
    match data.ok().flatten().and_then(|data| data.downcast_ref::<Arc<HeldTerm>>()) {
        Some(term) => Value::Extern(term.clone()),
        None => Value::Opaque,
    }
}

/// By name; atoms are the same for as long as the VM lives.
static NUMBERS: LazyLock<[(Atom, Number); 10]> = LazyLock::new(|| {
    [
        (atoms::i32(), Number::I32),
        (atoms::u32(), Number::U32),
        (atoms::i64(), Number::I64),
        (atoms::u64(), Number::U64),
        (atoms::f32(), Number::F32),
        (atoms::f64(), Number::F64),
        (atoms::i8(), Number::I8),
        (atoms::u8(), Number::U8),
        (atoms::i16(), Number::I16),
        (atoms::u16(), Number::U16),
    ]
});

impl Number {
    pub fn named(name: Term) -> Option<Number> {
        NUMBERS.iter().find_map(|(known, number)| (*known == name).then_some(*number))
    }

    /// The first number of `bytes`, which there is.
    pub fn load<'a>(self, env: Env<'a>, bytes: &[u8]) -> Term<'a> {
        match self {
            Number::I8 => i8::from_le_bytes(first(bytes)).encode(env),
            Number::U8 => u8::from_le_bytes(first(bytes)).encode(env),
            Number::I16 => i16::from_le_bytes(first(bytes)).encode(env),
            Number::U16 => u16::from_le_bytes(first(bytes)).encode(env),
            Number::I32 => i32::from_le_bytes(first(bytes)).encode(env),
            Number::U32 => u32::from_le_bytes(first(bytes)).encode(env),
            Number::I64 => i64::from_le_bytes(first(bytes)).encode(env),
            Number::U64 => u64::from_le_bytes(first(bytes)).encode(env),
            Number::F32 => encode_float(env, f64::from(f32::from_le_bytes(first(bytes)))),
            Number::F64 => encode_float(env, f64::from_le_bytes(first(bytes))),
        }
    }

    /// The list of all numbers of `bytes`.
    pub fn load_all<'a>(self, env: Env<'a>, bytes: &[u8]) -> Term<'a> {
        let numbers = bytes.rchunks_exact(self.size());
        numbers.fold(Term::list_new_empty(env), |list, number| {
            list.list_prepend(self.load(env, number))
        })
    }

    /// The number's bytes, [`Number::size`] of them and then others. With `wrap`, integers are
    /// taken modulo the number's range.
    pub fn bytes(self, term: Term, wrap: bool) -> Result<[u8; 8], Mismatch> {
        match self {
            Number::F32 => {
                let Val::F32(bits) = decode_number(term, &ValType::F32)? else {
                    return Err(Mismatch::Type);
                };
                return Ok(u64::from(bits).to_le_bytes());
            }
            Number::F64 => {
                if let Ok(x) = term.decode::<f64>() {
                    return Ok(x.to_le_bytes());
                }
                let (x, _) = decode_float(term, |n| n as f64, |x| x)?;
                return Ok(x.to_le_bytes());
            }
            Number::U64 if !wrap => {
                return match term.decode::<u64>() {
                    Ok(n) => Ok(n.to_le_bytes()),
                    Err(_) => Err(integer_mismatch(term)),
                };
            }
            _ => {}
        }
        match term.decode::<i64>() {
            Ok(n) if wrap || self.holds(n) => Ok(n.to_le_bytes()),
            Ok(_) => Err(Mismatch::Range),
            Err(_) if wrap && term.is_integer() => Ok(low_bytes(&term.to_binary())),
            Err(_) => Err(integer_mismatch(term)),
        }
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[..N]);
    number
}
