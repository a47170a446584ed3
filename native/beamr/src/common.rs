//! Functions of the commonest signatures, whose types wasmtime checks once and not in each call.
//!
//! A call of a [`Func`] looks its type up in the engine's registry, twice, under a lock that all
//! processors share. A [`TypedFunc`] does not, but its type is one of Rust, so there is one here
//! for each of a few signatures; functions of others are called as they are. Host functions of
//! these signatures, too, are defined so that wasmtime knows them.

use wasmtime::{Caller, Func, FuncType, Linker, StoreContextMut, TypedFunc, Val, ValType};

use crate::import;
use crate::store::Host;
use crate::value::Signature;

/// What a value is taken from and put into.
trait Number: Sized {
    fn of(val: &Val) -> Self;
    fn val(self) -> Val;
    fn is(ty: &ValType) -> bool;
}

macro_rules! number {
    ($ty:ty, $of:ident, $variant:ident, $to:expr) => {
        impl Number for $ty {
            fn of(val: &Val) -> Self {
                val.$of().unwrap_or_default()
            }

            fn val(self) -> Val {
                Val::$variant($to(self))
            }

            fn is(ty: &ValType) -> bool {
                matches!(ty, ValType::$variant)
            }
        }
    };
}

number!(i32, i32, I32, std::convert::identity);
number!(i64, i64, I64, std::convert::identity);
number!(f64, f64, F64, f64::to_bits);

macro_rules! common {
    ($($name:ident: ($($param:ident),*);)*) => {
        /// A function of a common signature, by its parameters and then its result.
        pub enum Common { $($name(Returning<($($param,)*)>)),* }

        impl Common {
            pub fn new(
                mut store: StoreContextMut<'_, Host>,
                func: Func,
                signature: &Signature,
            ) -> Option<Self> {
                if !signature.numeric || signature.results.len() > 1 {
                    return None;
                }
                $(if let Some(typed) = Returning::new(&mut store, func) {
                    return Some(Common::$name(typed));
                })*
                None
            }

            /// Runs the function; there are as many values as it takes and gives.
            pub async fn call(
                &self,
                store: StoreContextMut<'_, Host>,
                given: &[Val],
                results: &mut [Val],
            ) -> wasmtime::Result<()> {
                match self {
                    $(Common::$name(typed) => {
                        #[allow(unused_mut, unused_variables)]
                        let mut given = given.iter();
                        let params = ($(next::<$param>(&mut given),)*);
                        typed.call(store, params, results).await
                    })*
                }
            }
        }
    };
}

fn next<'a, N: Number>(vals: &mut impl Iterator<Item = &'a Val>) -> N {
    vals.next().map_or_else(|| N::of(&Val::I32(0)), N::of)
}

pub enum Returning<P> {
    Nothing(TypedFunc<P, ()>),
    I32(TypedFunc<P, i32>),
    I64(TypedFunc<P, i64>),
    F64(TypedFunc<P, f64>),
}

impl<P: wasmtime::WasmParams + Sync> Returning<P> {
    fn new(store: &mut StoreContextMut<'_, Host>, func: Func) -> Option<Self> {
        if let Ok(typed) = func.typed(&mut *store) {
            Some(Returning::Nothing(typed))
        } else if let Ok(typed) = func.typed(&mut *store) {
            Some(Returning::I32(typed))
        } else if let Ok(typed) = func.typed(&mut *store) {
            Some(Returning::I64(typed))
        } else {
            func.typed(&mut *store).ok().map(Returning::F64)
        }
    }

    async fn call(
        &self,
        store: StoreContextMut<'_, Host>,
        params: P,
        results: &mut [Val],
    ) -> wasmtime::Result<()> {
        let result = match self {
            Returning::Nothing(typed) => return typed.call_async(store, params).await,
            Returning::I32(typed) => typed.call_async(store, params).await?.val(),
            Returning::I64(typed) => typed.call_async(store, params).await?.val(),
            Returning::F64(typed) => typed.call_async(store, params).await?.val(),
        };
        if let Some(slot) = results.first_mut() {
            *slot = result;
        }
        Ok(())
    }
}

common! {
    None: ();
    I32: (i32);
    I32I32: (i32, i32);
    I32I32I32: (i32, i32, i32);
    I32I32I32I32: (i32, i32, i32, i32);
    I64: (i64);
    I64I64: (i64, i64);
    F64: (f64);
    F64F64: (f64, f64);
}

/// A host function's name, and which import of its module it is.
pub struct Import<'a> {
    pub module: &'a str,
    pub name: &'a str,
    pub index: usize,
}

/// Whether the types are these, each by [`Number::is`].
fn are(types: impl ExactSizeIterator<Item = ValType>, these: &[fn(&ValType) -> bool]) -> bool {
    types.len() == these.len() && types.zip(these).all(|(ty, is)| is(&ty))
}

macro_rules! imports {
    ($(($($param:ident: $ty:ident),*);)*) => {
        /// Defines a host function if it is of a common signature: so many parameters of these
        /// types, and one result or none. False where it is of another.
        pub fn define(
            linker: &mut Linker<Host>,
            import: &Import,
            ty: &FuncType,
        ) -> wasmtime::Result<bool> {
            // Not of a type of the same shape that is declared together with others.
            let plain = FuncType::new(linker.engine(), ty.params(), ty.results());
            if !FuncType::eq(&plain, ty) {
                return Ok(false);
            }
            let Import { module, name, index } = *import;
            $(if are(ty.params(), &[$($ty::is),*]) {
                return imports!(@returning linker, module, name, index, ty,
                    ($($param: $ty),*), [i32, i64, f64]);
            })*
            Ok(false)
        }
    };
    (@returning $linker:ident, $module:ident, $name:ident, $index:ident, $of:ident,
        $params:tt, [$($result:ident),*]) => {{
        if are($of.results(), &[]) {
            imports!(@define $linker, $module, $name, $index, $params, results, [], ())?;
            return Ok(true);
        }
        $(if are($of.results(), &[$result::is]) {
            imports!(@define $linker, $module, $name, $index, $params, results,
                [Val::I32(0)], $result::of(&results[0]))?;
            return Ok(true);
        })*
        Ok(false)
    }};
    (@define $linker:ident, $module:ident, $name:ident, $index:ident,
        ($($param:ident: $ty:ident),*), $results:ident, $room:expr, $value:expr) => {
        $linker.func_wrap_async(
            $module,
            $name,
            move |caller: Caller<'_, Host>, ($($param,)*): ($($ty,)*)| {
                Box::new(async move {
                    #[allow(unused_mut)]
                    let mut $results = $room;
                    let params = [$($param.val()),*];
                    import::run(caller, $index, &params, &mut $results).await?;
                    Ok($value)
                })
            },
        )
    };
}

imports! {
    ();
    (a: i32);
    (a: i32, b: i32);
    (a: i32, b: i32, c: i32);
    (a: i32, b: i32, c: i32, d: i32);
    (a: i64);
    (a: f64);
    (a: f64, b: f64);
}
