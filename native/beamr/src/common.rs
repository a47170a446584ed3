//! Functions of the commonest signatures, whose types wasmtime checks once and not in each call.
//!
//! A call of a [`Func`] looks its type up in the engine's registry, twice, under a lock that all
//! processors share. A [`TypedFunc`] does not, but its type is one of Rust, so there is one here
//! for each of a few signatures; functions of others are called as they are.

use wasmtime::{AsContextMut, Func, TypedFunc, Val};

use crate::store::Host;
use crate::value::Signature;

/// What a value is taken from and put into.
trait Number: Sized {
    fn of(val: &Val) -> Self;
    fn val(self) -> Val;
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
                mut store: impl AsContextMut<Data = Host>,
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
                store: impl AsContextMut<Data = Host>,
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
    fn new(store: &mut impl AsContextMut<Data = Host>, func: Func) -> Option<Self> {
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
        store: impl AsContextMut<Data = Host>,
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
