//! Values between Erlang terms and WebAssembly. No other file converts them.
//!
//! A value crosses in two steps, because terms live in the environment of a NIF call and
//! references live in a store, and the two are not always at hand together:
//! term ⇄ [`Value`] (no store) and [`Value`] ⇄ [`Val`] (no environment).

use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use rustler::env::SavedTerm;
use rustler::{Atom, Binary, Encoder, Env, NewBinary, OwnedEnv, Resource, ResourceArc, Term};
use wasmtime::{AsContextMut, ExternRef, Func, FuncType, HeapType, RefType, Rooted, Val, ValType};

use crate::atoms;

#[derive(Clone)]
pub enum Value {
    I32(i32),
    I64(i64),
    F32(f32),
    F64(f64),
    V128(u128),
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
pub struct HeldTerm(Mutex<(OwnedEnv, SavedTerm)>);

impl HeldTerm {
    pub fn new(term: Term) -> Self {
        let env = OwnedEnv::new();
        let saved = env.save(term);
        HeldTerm(Mutex::new((env, saved)))
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
}

impl Signature {
    pub fn new(ty: &FuncType) -> Self {
        Signature { params: ty.params().collect(), results: ty.results().collect() }
    }

    pub fn empty() -> Self {
        Signature { params: Arc::new([]), results: Arc::new([]) }
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
        ValType::I32 => match term.decode::<i64>() {
            Ok(n) => (i64::from(i32::MIN)..=i64::from(u32::MAX))
                .contains(&n)
                .then_some(Value::I32(n as i32))
                .ok_or(Mismatch::Range),
            Err(_) => Err(integer_mismatch(term)),
        },
        ValType::I64 => match term.decode::<i64>() {
            Ok(n) => Ok(Value::I64(n)),
            Err(_) => match term.decode::<u64>() {
                Ok(n) => Ok(Value::I64(n as i64)),
                Err(_) => Err(integer_mismatch(term)),
            },
        },
        ValType::F32 => {
            let (value, is_finite) = decode_float(term, |n| n as f32, |x| x as f32)?;
            match is_finite && value.is_infinite() {
                true => Err(Mismatch::Range),
                false => Ok(Value::F32(value)),
            }
        }
        ValType::F64 => decode_float(term, |n| n as f64, |x| x).map(|(x, _)| Value::F64(x)),
        ValType::V128 => {
            let bytes = Binary::from_term(term).map_err(|_| Mismatch::Type)?;
            match bytes.as_slice().try_into() {
                Ok(lanes) => Ok(Value::V128(u128::from_le_bytes(lanes))),
                Err(_) => Err(Mismatch::Range),
            }
        }
        ValType::Ref(reference) => decode_reference(term, reference),
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
        Value::I32(n) if unsigned => (*n as u32).encode(env),
        Value::I64(n) if unsigned => (*n as u64).encode(env),
        Value::I32(n) => n.encode(env),
        Value::I64(n) => n.encode(env),
        Value::F32(x) => encode_float(env, f64::from(*x)),
        Value::F64(x) => encode_float(env, *x),
        Value::V128(bits) => {
            let mut binary = NewBinary::new(env, 16);
            binary.as_mut_slice().copy_from_slice(&bits.to_le_bytes());
            binary.into()
        }
        Value::Null => atoms::nil().encode(env),
        Value::Func(func) => ResourceArc::new(FuncResource(func.clone())).encode(env),
        Value::Extern(term) => term.load(env),
        Value::Opaque => atoms::other().encode(env),
    }
}

pub fn encode_all<'a>(env: Env<'a>, values: &[Value], unsigned: bool) -> Term<'a> {
    let empty = Term::list_new_empty(env);
    values.iter().rev().fold(empty, |list, value| list.list_prepend(encode(env, value, unsigned)))
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
        Value::I32(n) => Val::I32(*n),
        Value::I64(n) => Val::I64(*n),
        Value::F32(x) => Val::F32(x.to_bits()),
        Value::F64(x) => Val::F64(x.to_bits()),
        Value::V128(bits) => Val::V128((*bits).into()),
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

/// Takes a value out of a store; `owner` is the identity of the store's instance.
pub fn from_val(mut store: impl AsContextMut, val: &Val, owner: u64) -> Value {
    match val {
        Val::I32(n) => Value::I32(*n),
        Val::I64(n) => Value::I64(*n),
        Val::F32(bits) => Value::F32(f32::from_bits(*bits)),
        Val::F64(bits) => Value::F64(f64::from_bits(*bits)),
        Val::V128(bits) => Value::V128(bits.as_u128()),
        Val::FuncRef(Some(func)) => {
            let ty = func.ty(store.as_context());
            let signature = Signature::new(&ty);
            Value::Func(Arc::new(FuncHandle { func: *func, owner, signature, ty }))
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
