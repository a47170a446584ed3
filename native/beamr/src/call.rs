//! Calls: what is asked for and converted, and how a guest function is run to its end.

use std::sync::Arc;
use std::time::Duration;

use rustler::{Atom, Binary, Encoder, Env, NifResult, ResourceArc, Term};
use wasmtime::{AsContext, AsContextMut, Func, RootScope, Store, StoreContextMut, Val, ValType};

use crate::atoms;
use crate::common::Common;
use crate::error::{Exit, Fault, Stop};
use crate::export::Reach;
use crate::instance::{InstanceResource, Locked, Wait, timeout};
use crate::list;
use crate::module::Compiled;
use crate::nif::operation;
use crate::slice::Slice;
use crate::store::{self, Host};
use crate::value::{self, FuncHandle, FuncResource, Signature, Value};
use crate::wasi;

pub type Outcome = wasmtime::Result<Results>;

#[derive(Clone)]
pub enum Target {
    /// An exported function, by its place in [`Compiled::functions`].
    Export(usize),
    Func(Arc<FuncHandle>),
}

impl Target {
    pub fn signature<'a>(&'a self, module: &'a Compiled) -> &'a Signature {
        match self {
            Target::Export(index) => &module.functions[*index].signature,
            Target::Func(handle) => &handle.signature,
        }
    }

    pub fn find(&self, reach: &mut impl Reach) -> Option<Callee> {
        match self {
            Target::Func(handle) => Some(handle.func.into()),
            Target::Export(index) => find_export(*index, reach),
        }
    }
}

/// A function of a store.
pub struct Callee {
    func: Func,
    /// The quicker way to call it, where there is one that no other call is using, and where that
    /// belongs in [`Host::called`].
    common: Option<(usize, Box<Common>)>,
}

impl From<Func> for Callee {
    fn from(func: Func) -> Self {
        Callee { func, common: None }
    }
}

/// An exported function that has been called.
pub struct Called {
    /// Its place in [`Compiled::functions`].
    index: usize,
    func: Func,
    common: Option<Box<Common>>,
}

/// So many of an instance's functions are found at once; others are looked up in each call.
const REMEMBERED: usize = 8;

fn find_export(index: usize, reach: &mut impl Reach) -> Option<Callee> {
    let mut store = reach.store();
    let called = &mut store.data_mut().called;
    if let Some(place) = called.iter().position(|called| called.index == index) {
        let common = called[place].common.take().map(|common| (place, common));
        return Some(Callee { func: called[place].func, common });
    }
    let module = store.data().module.clone();
    let function = &module.functions[index];
    let func = reach.export(&function.export)?.into_func()?;
    let mut store = reach.store();
    let place = store.data().called.len();
    if place >= REMEMBERED {
        return Some(func.into());
    }
    let common = Common::new(store.as_context_mut(), func, &function.signature).map(Box::new);
    store.data_mut().called.push(Called { index, func, common: None });
    Some(Callee { func, common: common.map(|common| (place, common)) })
}

/// The arguments of a call. Numbers come with room for the results behind them.
pub enum Args {
    Numbers { values: Vec<Val>, params: usize },
    Values { values: Vec<Value>, signature: Signature },
}

/// The results of a call. Of numbers, those behind the arguments.
pub enum Results {
    None,
    Numbers { values: Vec<Val>, params: usize },
    Values(Vec<Value>),
}

impl Results {
    pub fn encode<'a>(&self, env: Env<'a>, unsigned: bool) -> Term<'a> {
        match self {
            Results::None => list::of(env, []),
            Results::Numbers { values, params } => {
                value::encode_numbers(env, &values[*params..], unsigned)
            }
            Results::Values(values) => value::encode_all(env, values, unsigned),
        }
    }
}

/// A call as Elixir asks for it.
pub struct Request<'a> {
    pub target: Term<'a>,
    pub args: Term<'a>,
    pub timeout: Option<Duration>,
    pub unsigned: bool,
}

/// The driving process's answer to a step.
pub enum Answer<'a> {
    Continue,
    Return(Term<'a>),
    Raise,
}

/// The function that is to be called, and its arguments as values, put into `room` where they
/// are numbers.
pub fn prepare(
    instance: &InstanceResource,
    request: &Request,
    room: Vec<Val>,
) -> Result<(Target, Args), Fault> {
    let target = if let Ok(name) = Binary::from_term(request.target) {
        let names = &instance.module.function_names;
        Target::Export(*names.get(name.as_slice()).ok_or(Fault::UnknownFunction)?)
    } else {
        let func = request.target.decode::<ResourceArc<FuncResource>>();
        let handle = func.map_err(|_| Fault::ForeignFunction)?.0.clone();
        if handle.owner != instance.id {
            return Err(Fault::ForeignFunction);
        }
        Target::Func(handle)
    };
    let signature = target.signature(&instance.module);
    let params = signature.params.len();
    let given = request.args.list_length().unwrap_or(0);
    if given != params {
        return Err(Fault::Arity { wanted: params, given });
    }
    let args = if signature.numeric {
        let mut values = room;
        values.clear();
        each_argument(request.args, signature, |term, ty| {
            let put = value::with_number(term, ty, |number| values.push(number));
            put.map_err(|mismatch| mismatch.atom())
        })?;
        values.resize(params + signature.results.len(), Val::I32(0));
        Args::Numbers { values, params }
    } else {
        let mut values = Vec::with_capacity(params);
        each_argument(request.args, signature, |term, ty| {
            let value = value::decode(term, ty).map_err(|mismatch| mismatch.atom())?;
            values.push(own(instance, value).map_err(|_| atoms::funcref())?);
            Ok(())
        })?;
        Args::Values { values, signature: signature.clone() }
    };
    Ok((target, args))
}

fn each_argument<'a>(
    args: Term<'a>,
    signature: &Signature,
    mut take: impl FnMut(Term<'a>, &ValType) -> Result<(), Atom>,
) -> Result<(), Fault> {
    let mut rest = args;
    for (position, ty) in signature.params.iter().enumerate() {
        let refuse = |problem| Fault::Argument {
            position: position + 1,
            wanted: value::type_name(ty),
            problem,
        };
        let (head, tail) = rest.list_get_cell().map_err(|_| refuse(atoms::type_()))?;
        take(head, ty).map_err(refuse)?;
        rest = tail;
    }
    Ok(())
}

/// Refuses functions of other instances.
pub fn own(instance: &InstanceResource, value: Value) -> Result<Value, Fault> {
    match &value {
        Value::Func(handle) if handle.owner != instance.id => Err(Fault::ForeignFunction),
        _ => Ok(value),
    }
}

/// Takes what an import returned, as values of its result types; false where it is none. Without
/// results the term does not matter; one result is the term itself; several are a list.
pub fn results(
    instance: &InstanceResource,
    index: usize,
    term: Term,
    values: &mut Vec<Value>,
) -> bool {
    let Some(Some(signature)) = instance.module.imports.get(index) else { return false };
    let mut take = |term: Term, ty: &ValType| match ty {
        ValType::Ref(_) => value::decode(term, ty)
            .ok()
            .and_then(|value| own(instance, value).ok())
            .map(|value| values.push(value))
            .is_some(),
        number => {
            value::with_number(term, number, |number| values.push(Value::Number(number))).is_ok()
        }
    };
    match &signature.results[..] {
        [] => true,
        [ty] => take(term, ty),
        types => {
            let mut rest = term;
            term.list_length().is_ok_and(|length| length == types.len())
                && types.iter().all(|ty| match rest.list_get_cell() {
                    Ok((head, tail)) => {
                        rest = tail;
                        take(head, ty)
                    }
                    Err(_) => false,
                })
        }
    }
}

/// A call that is nested in no other: it takes the store, and gives it back.
pub async fn top_call(
    mut store: Store<Host>,
    target: Target,
    args: Args,
) -> (Store<Host>, Outcome) {
    let mut outcome = match target.find(&mut store) {
        Some(callee) => run(store.as_context_mut(), callee, args).await,
        None => Err(Stop::Closed.into()),
    };
    if store.data().wasi.is_some() {
        outcome = wasi::finish(&mut store, outcome).await;
    }
    (store, outcome)
}

/// Runs a guest function to its end.
pub async fn run(mut store: StoreContextMut<'_, Host>, callee: Callee, args: Args) -> Outcome {
    match args {
        Args::Numbers { mut values, params } => {
            store::new_slice(&mut store);
            let (given, results) = values.split_at_mut(params);
            let called = match callee.common {
                None => callee.func.call_async(&mut store, given, results).await,
                Some((place, common)) => {
                    let called = common.call(store.as_context_mut(), given, results).await;
                    store.data_mut().called[place].common = Some(common);
                    called
                }
            };
            match called {
                Ok(()) => Ok(Results::Numbers { values, params }),
                // A program that exits with 0 has come to its end, as one whose `_start` returns.
                Err(error) if results.is_empty() && error.downcast_ref() == Some(&Exit(0)) => {
                    Ok(Results::None)
                }
                Err(error) => Err(error),
            }
        }
        Args::Values { values, signature } => {
            // References that the call makes live no longer than the call.
            let mut scope = RootScope::new(store);
            let params = values
                .iter()
                .zip(signature.params.iter())
                .map(|(arg, ty)| value::to_val(&mut scope, arg, ty))
                .collect::<wasmtime::Result<Vec<Val>>>()?;
            let mut results = vec![Val::I32(0); signature.results.len()];
            store::new_slice(&mut scope);
            callee.func.call_async(&mut scope, &params, &mut results).await?;
            let owner = scope.as_context().data().id;
            let values = results.iter().map(|val| value::from_val(&mut scope, val, owner));
            Ok(Results::Values(values.collect()))
        }
    }
}

#[inline(always)]
fn start<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    target: Term<'a>,
    args: Term<'a>,
    milliseconds: Term<'a>,
    unsigned: Term<'a>,
    wait: Wait,
) -> NifResult<Term<'a>> {
    if instance.is_deep_for(wait) {
        return Ok(atoms::dirty().encode(env));
    }
    let timeout = timeout(milliseconds.decode()?);
    let request = Request { target, args, timeout, unsigned: atoms::true_() == unsigned };
    let Some(mut locked) = Locked::new(env, instance, wait) else {
        return Ok(atoms::dirty().encode(env));
    };
    let step = instance.begin(env, &request, &mut locked.state);
    Ok(locked.answer(step))
}

#[inline(always)]
fn resume<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    answer: Term<'a>,
    value: Term<'a>,
    wait: Wait,
) -> Term<'a> {
    if instance.is_deep_for(wait) {
        return atoms::dirty().encode(env);
    }
    let answer = if atoms::return_() == answer {
        Answer::Return(value)
    } else if atoms::raise() == answer {
        Answer::Raise
    } else {
        Answer::Continue
    };
    let slice = match wait {
        Wait::Briefly => Slice::Normal,
        Wait::AsLongAsNeeded => Slice::Dirty,
    };
    let Some(mut locked) = Locked::new(env, instance, wait) else {
        return atoms::dirty().encode(env);
    };
    instance.exchange.set_slice(slice);
    let step = instance.resume(env, answer, &mut locked.state);
    locked.answer(step)
}

/// In milliseconds, rounded up so that the time is over once so many have passed; or `:infinity`.
#[rustler::nif]
fn call_time_left<'a>(env: Env<'a>, instance: &'a InstanceResource) -> Term<'a> {
    match instance.exchange.time_left() {
        None => atoms::infinity().encode(env),
        Some(left) => {
            u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).encode(env)
        }
    }
}

operation!(call_start, call_start_dirty on DirtyCpu, start(target, args, milliseconds, unsigned));
operation!(call_resume, call_resume_dirty on DirtyCpu, resume(answer, value));
