//! Imports: functions, the guest's way into the process that called it; and the memories, tables
//! and globals that an instance is made with.
//!
//! Every imported function is an async host function that posts what was asked and then waits.
//! While it waits the guest is suspended with this function's [`Caller`] at the top of its
//! fiber, so whatever needs the store meanwhile (a nested call above all) is handed to it.

use std::future::{Future, poll_fn};
use std::task::Poll;

use rustler::{Atom, NifResult, Term};
use wasmtime::{
    AsContextMut, Caller, Extern, ExternType, Global, Memory, MemoryTypeBuilder, Ref, RootScope,
    Store, Table, TableType, Val, ValType,
};

use crate::error::Stop;
use crate::exchange::{Asked, Errand};
use crate::export::{self, Reach};
use crate::list::List;
use crate::module::{Compiled, ModuleResource};
use crate::store::{self, Host};
use crate::value::{self, Mismatch, Value};
use crate::{atoms, call};

type Hosted<'a> = Box<dyn Future<Output = wasmtime::Result<()>> + Send + 'a>;

/// The host function behind the import with this index.
pub fn function(
    index: usize,
) -> impl for<'a> Fn(Caller<'a, Host>, &'a [Val], &'a mut [Val]) -> Hosted<'a> + Send + Sync + 'static
{
    move |caller, params, results| Box::new(run(caller, index, params, results))
}

pub async fn run(
    mut caller: Caller<'_, Host>,
    index: usize,
    params: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    if let Some(stop) = caller.data().exchange.stop_of_tick() {
        return Err(stop.into());
    }
    find_memories(&mut caller);
    let args = arguments(&mut caller, params);
    store::capture(&mut caller);
    caller.data().exchange.post_import(index, args);
    let mut values = answered(&mut caller).await?;
    give(&mut caller, index, &values, results)?;
    // Nothing that is kept may hold a term, which might hold this very instance.
    values.clear();
    caller.data_mut().import_room = values;
    store::new_slice(&mut caller);
    Ok(())
}

/// Waits for the answer to what was asked, and does what is handed in meanwhile.
pub async fn answered(
    store: &mut (impl Reach + AsContextMut<Data = Host>),
) -> wasmtime::Result<Vec<Value>> {
    loop {
        let mut has_waited = false;
        let errand = poll_fn(|_| {
            let store = store.as_context_mut();
            let exchange = &store.data().exchange;
            // At first there cannot be one.
            if !std::mem::replace(&mut has_waited, true) {
                exchange.suspended();
                return Poll::Pending;
            }
            exchange.poll_errand()
        })
        .await;
        let asked = match errand {
            Errand::Return(values) => {
                return match store.as_context().data().exchange.stop_of_tick() {
                    Some(stop) => Err(stop.into()),
                    None => Ok(values),
                };
            }
            Errand::Stop(stop) => return Err(stop.into()),
            Errand::Call { target, args } => Asked::Called(match target.find(store) {
                // Boxed, so that those that call nothing take no room for it.
                Some(callee) => Box::pin(call::run(store.as_context_mut(), callee, args)).await,
                None => Err(wasmtime::Error::from(Stop::Closed)),
            }),
            Errand::Perform(operation) => Asked::Performed(export::perform(store, operation)),
        };
        store::capture(&mut *store);
        store.as_context().data().exchange.post(asked);
    }
}

fn arguments(caller: &mut Caller<'_, Host>, params: &[Val]) -> Vec<Value> {
    let host = caller.data_mut();
    let owner = host.id;
    let mut args = std::mem::take(&mut host.import_room);
    for val in params {
        args.push(match value::is_number(val) {
            true => Value::Number(*val),
            false => value::from_val(&mut *caller, val, owner),
        });
    }
    args
}

/// Gives the guest what the import returned.
fn give(
    caller: &mut Caller<'_, Host>,
    index: usize,
    values: &[Value],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    if let ([result], [Value::Number(number)]) = (&mut *results, values) {
        *result = *number;
        return Ok(());
    }
    let signature = caller.data().module.imports[index].clone();
    let types = signature.iter().flat_map(|signature| signature.results.iter());
    for ((slot, value), ty) in results.iter_mut().zip(values).zip(types) {
        *slot = value::to_val(&mut *caller, value, ty)?;
    }
    Ok(())
}

/// Finds the memories by the caller, because a start function may call imports before the
/// instance is known.
pub fn find_memories(caller: &mut Caller<'_, Host>) {
    let host = caller.data();
    if host.memories.len() != host.module.memories.len() {
        let module = host.module.clone();
        let places = module.memories.iter();
        let memories = places.filter_map(|(_, place)| caller.find(*place)?.into_memory()).collect();
        caller.data_mut().set_memories(memories);
    }
}

/// What an instance is given for an import that is no function.
pub enum Given {
    /// Of a memory in pages, of a table in elements.
    Limits {
        minimum: u64,
        maximum: Option<u64>,
    },
    Value(Value),
}

/// Reads what is given for the imports that are no functions, in their order. Elixir has seen to
/// it that it fits the module.
pub fn given(module: &Compiled, list: Term) -> NifResult<Vec<Given>> {
    if list.is_empty_list() {
        return Ok(Vec::new());
    }
    let terms = list.decode::<List<Term>>()?.0.into_iter();
    terms.zip(&module.items).map(|(term, item)| given_for(&item.ty, term)).collect()
}

fn given_for(ty: &ExternType, term: Term) -> NifResult<Given> {
    match ty {
        ExternType::Global(ty) => {
            let value = initial(term, ty.content()).map_err(|_| rustler::Error::BadArg)?;
            Ok(Given::Value(value))
        }
        _ => term.decode().map(|(minimum, maximum)| Given::Limits { minimum, maximum }),
    }
}

/// More null elements than this take a normal scheduler too long.
const LONG: u64 = 100_000;

pub fn is_heavy(given: &[Given]) -> bool {
    given.iter().any(|given| matches!(given, Given::Limits { minimum, .. } if *minimum > LONG))
}

/// A value that is there before the instance is: whatever function it is, it is another's.
fn initial(term: Term, ty: &ValType) -> Result<Value, Mismatch> {
    match value::decode(term, ty)? {
        Value::Func(_) => Err(Mismatch::Type),
        value => Ok(value),
    }
}

/// Whether the item, by its place among the imports that are no functions, can begin with the
/// value, if it is a global, or with null, if it is a table.
#[rustler::nif]
fn import_check(module: &ModuleResource, item: usize, value: Term) -> Atom {
    let checked = match module.0.items.get(item).map(|item| &item.ty) {
        Some(ExternType::Global(ty)) => initial(value, ty.content()),
        Some(ExternType::Table(ty)) if ty.element().is_nullable() => Ok(Value::Null),
        _ => Err(Mismatch::Type),
    };
    match checked {
        Ok(_) => atoms::ok(),
        Err(mismatch) => mismatch.atom(),
    }
}

/// The imports of a module that [`crate::module::Compiled`] could not resolve for all
/// instances at once, made for one store.
pub fn externs(
    store: &mut Store<Host>,
    module: &Compiled,
    given: Vec<Given>,
) -> wasmtime::Result<Vec<Extern>> {
    let missing = || wasmtime::Error::msg("an import is missing");
    let mut items = module.items.iter().zip(given);
    let mut externs: Vec<Extern> = Vec::with_capacity(module.imports.len());
    for (index, function) in module.imports[..module.module.imports().len()].iter().enumerate() {
        let made = if function.is_some() {
            let functions = module.host_functions.as_ref().ok_or_else(missing)?;
            functions.get(&mut *store, "", &index.to_string())?
        } else {
            let (item, given) = items.next().ok_or_else(missing)?;
            match item.same_as {
                Some(earlier) => externs[earlier].clone(),
                None => make(store, &item.ty, given)?,
            }
        };
        externs.push(made);
    }
    Ok(externs)
}

fn make(store: &mut Store<Host>, ty: &ExternType, given: Given) -> wasmtime::Result<Extern> {
    match (ty, given) {
        (ExternType::Memory(ty), Given::Limits { minimum, maximum }) => {
            let ty = MemoryTypeBuilder::new()
                .min(minimum)
                .max(maximum)
                .memory64(ty.is_64())
                .page_size_log2(ty.page_size_log2())
                .build()?;
            Ok(Memory::new(store, ty)?.into())
        }
        (ExternType::Table(ty), Given::Limits { minimum, maximum }) => {
            let element = ty.element().clone();
            let null = Ref::null(element.heap_type());
            let ty = if ty.is_64() {
                TableType::new64(element, minimum, maximum)
            } else {
                let maximum = maximum.map(u32::try_from).transpose()?;
                TableType::new(element, u32::try_from(minimum)?, maximum)
            };
            Ok(Table::new(store, ty, null)?.into())
        }
        (ExternType::Global(ty), Given::Value(value)) => {
            let mut scope = RootScope::new(store);
            let val = value::to_val(&mut scope, &value, ty.content())?;
            Ok(Global::new(&mut scope, ty.clone(), val)?.into())
        }
        _ => Err(wasmtime::Error::msg("nothing can be given for this kind of import")),
    }
}
