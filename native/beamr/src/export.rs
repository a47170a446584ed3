//! Globals, tables, memory growth and fuel: what needs the store but runs no guest code.
//!
//! An operation is plain data, because it may have to be handed to a suspended import, whose
//! [`Caller`] is the only way to the store while its call is in flight.

use rustler::{Atom, Binary, Encoder, Env, NifResult, Term};
use wasmtime::{
    AsContextMut, Caller, Extern, Global, Instance, ModuleExport, Ref, RootScope, Store,
    StoreContextMut, Table, Val, ValType,
};

use crate::error::{self, Fault};
use crate::instance::{InstanceResource, Locked, Wait};
use crate::module::Place;
use crate::nif::operation;
use crate::store::Host;
use crate::value::{self, Value};
use crate::{atoms, call};

pub enum Operation {
    Fuel,
    AddFuel(u64),
    GlobalGet(Place),
    GlobalSet(Place, Value),
    TableSize(Place),
    TableGet(Place, u64),
    TableSet(Place, u64, Value),
    TableGrow(Place, u64, Value),
    /// By its place in [`crate::module::Compiled::memories`], and by how many pages.
    MemoryGrow(usize, u64),
}

pub enum Product {
    Nothing,
    Number(u64),
    Value(Value),
}

/// The two ways to a store and what is in it.
pub trait Reach {
    fn store(&mut self) -> StoreContextMut<'_, Host>;
    fn export(&mut self, export: &ModuleExport) -> Option<Extern>;

    fn find(&mut self, place: Place) -> Option<Extern> {
        match place {
            Place::Export(export) => self.export(&export),
            Place::Import(index) => self.store().data().imported.get(index).cloned(),
        }
    }
}

impl Reach for Store<Host> {
    fn store(&mut self) -> StoreContextMut<'_, Host> {
        self.as_context_mut()
    }

    fn export(&mut self, export: &ModuleExport) -> Option<Extern> {
        let instance: Instance = self.data().instance?;
        instance.get_module_export(self, export)
    }
}

impl Reach for Caller<'_, Host> {
    fn store(&mut self) -> StoreContextMut<'_, Host> {
        self.as_context_mut()
    }

    fn export(&mut self, export: &ModuleExport) -> Option<Extern> {
        self.get_module_export(export)
    }
}

pub fn perform(reach: &mut impl Reach, operation: Operation) -> Result<Product, Fault> {
    match operation {
        Operation::Fuel => {
            reach.store().get_fuel().map(Product::Number).map_err(|_| Fault::NotMetered)
        }
        Operation::AddFuel(amount) => {
            let mut store = reach.store();
            let left = store.get_fuel().map_err(|_| Fault::NotMetered)?;
            let fuel = left.saturating_add(amount);
            store.set_fuel(fuel)?;
            Ok(Product::Number(fuel))
        }
        Operation::GlobalGet(place) => {
            let global = global(reach, place)?;
            let store = reach.store();
            let owner = store.data().id;
            let mut scope = RootScope::new(store);
            let val = global.get(&mut scope);
            Ok(Product::Value(value::from_val(&mut scope, &val, owner)))
        }
        Operation::GlobalSet(place, value) => {
            let global = global(reach, place)?;
            let mut scope = RootScope::new(reach.store());
            let ty = global.ty(&scope).content().clone();
            let val = value::to_val(&mut scope, &value, &ty)?;
            global.set(&mut scope, val)?;
            Ok(Product::Nothing)
        }
        Operation::TableSize(place) => {
            let table = table(reach, place)?;
            Ok(Product::Number(table.size(reach.store())))
        }
        Operation::TableGet(place, index) => {
            let table = table(reach, place)?;
            let store = reach.store();
            let owner = store.data().id;
            let mut scope = RootScope::new(store);
            let size = table.size(&scope);
            let item = table.get(&mut scope, index).ok_or(Fault::IndexOutOfBounds { size })?;
            Ok(Product::Value(value::from_val(&mut scope, &Val::from(item), owner)))
        }
        Operation::TableSet(place, index, value) => {
            let table = table(reach, place)?;
            let mut scope = RootScope::new(reach.store());
            let size = table.size(&scope);
            if index >= size {
                return Err(Fault::IndexOutOfBounds { size });
            }
            let item = item(&mut scope, &table, &value)?;
            table.set(&mut scope, index, item)?;
            Ok(Product::Nothing)
        }
        Operation::TableGrow(place, delta, value) => {
            let table = table(reach, place)?;
            let mut scope = RootScope::new(reach.store());
            let size = table.size(&scope);
            let item = item(&mut scope, &table, &value)?;
            let before = table.grow(&mut scope, delta, item);
            before.map(Product::Number).map_err(|_| Fault::CannotGrow { size })
        }
        Operation::MemoryGrow(index, pages) => {
            let mut store = reach.store();
            let Some(memory) = store.data().memories.get(index).copied() else {
                // A module that exports no memory has one of no pages that cannot grow.
                return match pages {
                    0 => Ok(Product::Number(0)),
                    _ => Err(Fault::CannotGrow { size: 0 }),
                };
            };
            let size = memory.data_size(&store) as u64;
            let before = memory.grow(&mut store, pages);
            before.map(Product::Number).map_err(|_| Fault::CannotGrow { size })
        }
    }
}

fn global(reach: &mut impl Reach, place: Place) -> Result<Global, Fault> {
    reach.find(place).and_then(Extern::into_global).ok_or(Fault::UnknownExport)
}

fn table(reach: &mut impl Reach, place: Place) -> Result<Table, Fault> {
    reach.find(place).and_then(Extern::into_table).ok_or(Fault::UnknownExport)
}

fn item(
    mut store: impl AsContextMut<Data = Host>,
    table: &Table,
    value: &Value,
) -> Result<Ref, Fault> {
    let ty = ValType::Ref(table.ty(&store).element().clone());
    let val = value::to_val(&mut store, value, &ty)?;
    val.ref_().ok_or(Fault::UnknownExport)
}

pub fn encode<'a>(env: Env<'a>, performed: Result<Product, Fault>) -> Term<'a> {
    match performed {
        Ok(Product::Nothing) => atoms::ok().encode(env),
        Ok(Product::Number(n)) => (atoms::ok(), n).encode(env),
        Ok(Product::Value(value)) => (atoms::ok(), value::encode(env, &value, false)).encode(env),
        Err(fault) => error::encode(env, &fault),
    }
}

/// What is asked of a global, table or memory, or of the fuel. Values and indices are checked
/// here, so that what is queued for can be done.
fn operation<'a>(
    instance: &InstanceResource,
    verb: Atom,
    name: Binary<'a>,
    index: Term<'a>,
    value: Term<'a>,
) -> NifResult<Result<Operation, Fault>> {
    let Ok(name) = std::str::from_utf8(name.as_slice()) else {
        return Ok(Err(Fault::UnknownExport));
    };
    let number = || index.decode::<u64>().unwrap_or(u64::MAX);
    let typed = |ty| {
        let mismatch = |_| Fault::Mismatch { wanted: value::type_name(ty) };
        call::own(instance, value::decode(value, ty).map_err(mismatch)?)
    };
    let module = &instance.module;
    let global = || module.globals.get(name).ok_or(Fault::UnknownExport);
    let table = || module.tables.get(name).ok_or(Fault::UnknownExport);
    Ok(if verb == atoms::fuel() {
        Ok(Operation::Fuel)
    } else if verb == atoms::add_fuel() {
        Ok(Operation::AddFuel(number()))
    } else if verb == atoms::global_get() {
        global().map(|global| Operation::GlobalGet(global.place))
    } else if verb == atoms::global_set() {
        global().and_then(|global| match global.mutable {
            true => Ok(Operation::GlobalSet(global.place, typed(&global.content)?)),
            false => Err(Fault::Immutable),
        })
    } else if verb == atoms::table_size() {
        table().map(|table| Operation::TableSize(table.place))
    } else if verb == atoms::table_get() {
        table().map(|table| Operation::TableGet(table.place, number()))
    } else if verb == atoms::table_set() {
        table().and_then(|table| {
            Ok(Operation::TableSet(table.place, number(), typed(&table.element)?))
        })
    } else if verb == atoms::table_grow() {
        table().and_then(|table| {
            Ok(Operation::TableGrow(table.place, number(), typed(&table.element)?))
        })
    } else if verb == atoms::memory_grow() {
        // A memory's name may be nil, for the default one, so it comes as the value.
        let index = instance.memory_index(value).ok_or(Fault::UnknownMemory);
        index.map(|index| Operation::MemoryGrow(index, number()))
    } else {
        return Err(rustler::Error::BadArg);
    })
}

fn perform_at<'a>(
    env: Env<'a>,
    instance: &InstanceResource,
    verb: Term<'a>,
    name: Term<'a>,
    index: Term<'a>,
    value: Term<'a>,
    wait: Wait,
) -> NifResult<Term<'a>> {
    let operation = match operation(instance, verb.decode()?, name.decode()?, index, value)? {
        Ok(operation) => operation,
        Err(fault) => return Ok(error::encode(env, &fault)),
    };
    let Some(mut locked) = Locked::new(env, instance, wait) else {
        return Ok(atoms::dirty().encode(env));
    };
    let answer = instance.perform(env, operation, &mut locked.state);
    Ok(locked.answer(answer))
}

operation!(export_perform, export_perform_dirty, perform_at(verb, name, index, value));
