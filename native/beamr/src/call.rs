//! Calls: what is asked for and converted, and how a guest function is run to its end.

use std::sync::Arc;
use std::time::Duration;

use rustler::{Atom, Binary, Encoder, Env, NifResult, ResourceArc, Term};
use wasmtime::{AsContext, AsContextMut, Extern, Func, RootScope, Store, Val};

use crate::atoms;
use crate::error::{Exit, Fault, Stop};
use crate::export::Reach;
use crate::instance::{InstanceResource, Wait, locked, timeout};
use crate::module::ExportedFunction;
use crate::store::{self, Host};
use crate::value::{self, FuncHandle, FuncResource, Signature, Value};
use crate::wasi;

pub type Outcome = wasmtime::Result<Vec<Value>>;

#[derive(Clone)]
pub enum Target {
    Export(Arc<ExportedFunction>),
    Func(Arc<FuncHandle>),
}

impl Target {
    pub fn signature(&self) -> &Signature {
        match self {
            Target::Export(function) => &function.signature,
            Target::Func(handle) => &handle.signature,
        }
    }

    pub fn find(&self, reach: &mut impl Reach) -> Option<Func> {
        match self {
            Target::Func(handle) => Some(handle.func),
            Target::Export(function) => reach.export(&function.export).and_then(Extern::into_func),
        }
    }
}

/// A call as Elixir asks for it.
pub struct Request<'a> {
    pub this: Term<'a>,
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

/// The function that is to be called, and its arguments as values.
pub fn prepare(
    instance: &InstanceResource,
    request: &Request,
) -> Result<(Target, Vec<Value>), Fault> {
    let target = if let Ok(name) = Binary::from_term(request.target) {
        let name = std::str::from_utf8(name.as_slice()).map_err(|_| Fault::UnknownFunction)?;
        let function = instance.module.functions.get(name).ok_or(Fault::UnknownFunction)?;
        Target::Export(function.clone())
    } else {
        let func = request.target.decode::<ResourceArc<FuncResource>>();
        let handle = func.map_err(|_| Fault::ForeignFunction)?.0.clone();
        if handle.owner != instance.id {
            return Err(Fault::ForeignFunction);
        }
        Target::Func(handle)
    };
    let params = &target.signature().params;
    let given = request.args.list_length().unwrap_or(0);
    if given != params.len() {
        return Err(Fault::Arity { wanted: params.len(), given });
    }
    let mut args = Vec::with_capacity(given);
    let mut rest = request.args;
    for (position, ty) in params.iter().enumerate() {
        let refuse = |problem| Fault::Argument {
            position: position + 1,
            wanted: value::type_name(ty),
            problem,
        };
        let (head, tail) = rest.list_get_cell().map_err(|_| refuse(atoms::type_()))?;
        let value = value::decode(head, ty).map_err(|mismatch| refuse(mismatch.atom()))?;
        args.push(own(instance, value).map_err(|_| refuse(atoms::funcref()))?);
        rest = tail;
    }
    Ok((target, args))
}

/// Refuses functions of other instances.
pub fn own(instance: &InstanceResource, value: Value) -> Result<Value, Fault> {
    match &value {
        Value::Func(handle) if handle.owner != instance.id => Err(Fault::ForeignFunction),
        _ => Ok(value),
    }
}

/// What an import returned, as values of its result types. Without results the term does
/// not matter; one result is the term itself; several are a list.
pub fn results(instance: &InstanceResource, index: usize, term: Term) -> Option<Vec<Value>> {
    let signature = instance.module.imports.get(index)?.as_ref()?;
    let value = |term: Term, ty| own(instance, value::decode(term, ty).ok()?).ok();
    match &signature.results[..] {
        [] => Some(Vec::new()),
        [ty] => Some(vec![value(term, ty)?]),
        types => {
            if term.list_length().ok()? != types.len() {
                return None;
            }
            let mut rest = term;
            let next = |ty| {
                let (head, tail) = rest.list_get_cell().ok()?;
                rest = tail;
                value(head, ty)
            };
            types.iter().map(next).collect()
        }
    }
}

/// A call that is nested in no other: it takes the store, and gives it back.
pub async fn top_call(
    mut store: Store<Host>,
    target: Target,
    args: Vec<Value>,
) -> (Store<Host>, Outcome) {
    let mut outcome = match target.find(&mut store) {
        Some(func) => run(&mut store, func, target.signature(), args).await,
        None => Err(Stop::Closed.into()),
    };
    if store.data().wasi.is_some() {
        outcome = wasi::finish(&mut store, outcome).await;
    }
    (store, outcome)
}

/// Runs a guest function to its end.
pub async fn run(
    store: impl AsContextMut<Data = Host>,
    func: Func,
    signature: &Signature,
    args: Vec<Value>,
) -> Outcome {
    // References that the call makes live no longer than the call.
    let mut scope = RootScope::new(store);
    let params = args
        .iter()
        .zip(signature.params.iter())
        .map(|(arg, ty)| value::to_val(&mut scope, arg, ty))
        .collect::<wasmtime::Result<Vec<Val>>>()?;
    let mut results = vec![Val::I32(0); signature.results.len()];
    store::new_slice(&mut scope);
    if let Err(error) = func.call_async(&mut scope, &params, &mut results).await {
        // A program that exits with 0 has come to its end, as one whose `_start` returns.
        let ended = results.is_empty() && error.downcast_ref() == Some(&Exit(0));
        return if ended { Ok(Vec::new()) } else { Err(error) };
    }
    let owner = scope.as_context().data().id;
    Ok(results.iter().map(|val| value::from_val(&mut scope, val, owner)).collect())
}

fn start<'a>(env: Env<'a>, request: &Request<'a>, wait: Wait) -> NifResult<Term<'a>> {
    let instance: &InstanceResource = request.this.decode()?;
    if instance.is_deep_for(wait) {
        return Ok(atoms::dirty().encode(env));
    }
    Ok(locked(env, instance, wait, |state| instance.begin(env, request, state)))
}

#[rustler::nif]
fn call_start<'a>(
    env: Env<'a>,
    this: Term<'a>,
    target: Term<'a>,
    arguments: Term<'a>,
    milliseconds: i64,
    unsigned: bool,
) -> NifResult<Term<'a>> {
    let timeout = timeout(milliseconds);
    start(env, &Request { this, target, args: arguments, timeout, unsigned }, Wait::Briefly)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn call_start_dirty<'a>(
    env: Env<'a>,
    this: Term<'a>,
    target: Term<'a>,
    arguments: Term<'a>,
    milliseconds: i64,
    unsigned: bool,
) -> NifResult<Term<'a>> {
    let timeout = timeout(milliseconds);
    start(env, &Request { this, target, args: arguments, timeout, unsigned }, Wait::AsLongAsNeeded)
}

fn resume<'a>(
    env: Env<'a>,
    this: Term<'a>,
    answer: Atom,
    value: Term<'a>,
    wait: Wait,
) -> NifResult<Term<'a>> {
    let instance: &InstanceResource = this.decode()?;
    if instance.is_deep_for(wait) {
        return Ok(atoms::dirty().encode(env));
    }
    let answer = if answer == atoms::return_() {
        Answer::Return(value)
    } else if answer == atoms::raise() {
        Answer::Raise
    } else {
        Answer::Continue
    };
    let slice = match wait {
        Wait::Briefly => store::NORMAL_SLICE,
        Wait::AsLongAsNeeded => store::DIRTY_SLICE,
    };
    Ok(locked(env, instance, wait, |state| {
        instance.exchange.set_slice(slice);
        instance.resume(env, this, answer, state)
    }))
}

#[rustler::nif]
fn call_resume<'a>(
    env: Env<'a>,
    this: Term<'a>,
    answer: Atom,
    value: Term<'a>,
) -> NifResult<Term<'a>> {
    resume(env, this, answer, value, Wait::Briefly)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn call_resume_dirty<'a>(
    env: Env<'a>,
    this: Term<'a>,
    answer: Atom,
    value: Term<'a>,
) -> NifResult<Term<'a>> {
    resume(env, this, answer, value, Wait::AsLongAsNeeded)
}
