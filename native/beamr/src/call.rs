//! Calls: what is called, and how a guest function is run to its end.

use std::sync::Arc;

use wasmtime::{AsContext, AsContextMut, Extern, Func, RootScope, Val};

use crate::export::Reach;
use crate::module::ExportedFunction;
use crate::store::{self, Host};
use crate::value::{self, FuncHandle, Signature, Value};

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
    func.call_async(&mut scope, &params, &mut results).await?;
    let owner = scope.as_context().data().id;
    Ok(results.iter().map(|val| value::from_val(&mut scope, val, owner)).collect())
}
