//! Imported functions: the guest's way into the process that called it.
//!
//! Every imported function is an async host function that posts what was asked and then waits.
//! While it waits the guest is suspended with this function's [`Caller`] at the top of its
//! fiber, so whatever needs the store meanwhile (a nested call above all) is handed to it.

use std::future::Future;

use wasmtime::{Caller, Extern, ExternType, Func, Store, Val};

use crate::call;
use crate::error::Stop;
use crate::exchange::{Asked, Errand};
use crate::export;
use crate::module::Compiled;
use crate::store::{self, Host};
use crate::value;
use crate::wasi::{self, Function};

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
    let exchange = caller.data().exchange.clone();
    if let Some(stop) = exchange.stop() {
        return Err(stop.into());
    }
    let owner = caller.data().id;
    let args = params.iter().map(|val| value::from_val(&mut caller, val, owner)).collect();
    find_memories(&mut caller);
    store::capture(&mut caller);
    exchange.post(Asked::Import { index, args });
    loop {
        match exchange.errand().await {
            Errand::Return(values) => {
                if let Some(stop) = exchange.stop() {
                    return Err(stop.into());
                }
                let signature = caller.data().module.imports[index].clone();
                let types = signature.iter().flat_map(|signature| signature.results.iter());
                for ((slot, value), ty) in results.iter_mut().zip(&values).zip(types) {
                    *slot = value::to_val(&mut caller, value, ty)?;
                }
                store::new_slice(&mut caller);
                return Ok(());
            }
            Errand::Stop(stop) => return Err(stop.into()),
            Errand::Call { target, args } => {
                let outcome = match target.find(&mut caller) {
                    Some(func) => call::run(&mut caller, func, target.signature(), args).await,
                    None => Err(wasmtime::Error::from(Stop::Closed)),
                };
                store::capture(&mut caller);
                exchange.post(Asked::Called(outcome));
            }
            Errand::Perform(operation) => {
                let performed = export::perform(&mut caller, operation);
                store::capture(&mut caller);
                exchange.post(Asked::Performed(performed));
            }
        }
    }
}

/// Finds the memories by the caller, because a start function may call imports before the
/// instance is known.
pub fn find_memories(caller: &mut Caller<'_, Host>) {
    let module = caller.data().module.clone();
    if caller.data().memories.len() != module.memories.len() {
        let exports = module.memories.iter();
        let memories = exports
            .filter_map(|(_, export)| caller.get_module_export(export)?.into_memory())
            .collect();
        caller.data_mut().memories = memories;
    }
}

/// The imports of a module that [`crate::module::Compiled`] could not resolve for all
/// instances at once, made for one store.
pub fn externs(store: &mut Store<Host>, module: &Compiled) -> wasmtime::Result<Vec<Extern>> {
    module
        .module
        .imports()
        .enumerate()
        .map(|(index, import)| match import.ty() {
            ExternType::Func(ty) => Ok(match Function::of(import.module(), import.name()) {
                Some(named) => Func::new_async(&mut *store, ty, wasi::function(index, named)),
                None => Func::new_async(&mut *store, ty, function(index)),
            }
            .into()),
            _ => Err(wasmtime::Error::msg("only functions can be imported")),
        })
        .collect()
}
