//! The NIFs that are there twice: for normal schedulers, where they answer `:dirty` if they would
//! have to wait or work for long, and for dirty ones, where they wait and do it all.
//!
//! They are the hot ones too. rustler's attribute copies the arguments of a NIF to the heap, which
//! takes longer than to look at them; here they stay on the stack.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustler::codegen_runtime::NifReturnable;
use rustler::sys::{ErlNifEnv, ErlNifTerm};
use rustler::{Env, Error, NifResult, Term};

/// Makes the two NIFs of a function that takes the environment, what the first argument is (an
/// instance mostly), the other arguments as terms, and a [`crate::instance::Wait`]. The second
/// runs on dirty I/O schedulers where no others are named.
macro_rules! operation {
    ($name:ident, $dirty:ident, $body:ident($($arg:ident),*)) => {
        $crate::nif::operation!($name, $dirty on DirtyIo, $body($($arg),*));
    };
    ($name:ident, $dirty:ident on $schedulers:ident, $body:ident($($arg:ident),*)) => {
        $crate::nif::nif!($name, Normal, $body($($arg),*), $crate::instance::Wait::Briefly);
        $crate::nif::nif!(
            $dirty, $schedulers, $body($($arg),*), $crate::instance::Wait::AsLongAsNeeded
        );
    };
}

macro_rules! nif {
    ($name:ident, $schedulers:ident, $body:ident($($arg:ident),*), $wait:expr) => {
        rustler::codegen_runtime::inventory::submit!(rustler::Nif {
            name: concat!(stringify!($name), "\0").as_ptr().cast(),
            arity: 1 + <[&str]>::len(&[$(stringify!($arg)),*]) as std::ffi::c_uint,
            flags: rustler::SchedulerFlags::$schedulers as std::ffi::c_uint,
            raw_func: {
                unsafe extern "C" fn raw(
                    env: *mut rustler::sys::ErlNifEnv,
                    _argc: std::ffi::c_int,
                    argv: *const rustler::sys::ErlNifTerm,
                ) -> rustler::sys::ErlNifTerm {
                    // SAFETY: the VM passes as many arguments as the arity says, which counts the
                    // names in the pattern; they are terms of the environment that comes with them.
                    unsafe {
                        $crate::nif::run(env, argv, |env, &[this, $($arg),*]| {
                            let of_call = |term| rustler::Term::new(env, term);
                            let this = of_call(this).decode()?;
                            let answer = $body(env, this, $(of_call($arg),)* $wait);
                            $crate::nif::Answer::into_result(answer)
                        })
                    }
                }
                raw
            },
        });
    };
}

pub(crate) use {nif, operation};

/// What the body of a NIF may answer.
pub trait Answer<'a> {
    fn into_result(self) -> NifResult<Term<'a>>;
}

impl<'a> Answer<'a> for Term<'a> {
    #[inline]
    fn into_result(self) -> NifResult<Term<'a>> {
        Ok(self)
    }
}

impl<'a> Answer<'a> for NifResult<Term<'a>> {
    #[inline]
    fn into_result(self) -> NifResult<Term<'a>> {
        self
    }
}

/// Runs the body of a NIF. An error is raised as rustler raises it, and so is a panic.
///
/// # Safety
///
/// These are what the VM has passed to a NIF of `N` arguments.
// SAFETY: the macro above, which alone comes here, counts them.
#[inline]
pub unsafe fn run<const N: usize>(
    env: *mut ErlNifEnv,
    argv: *const ErlNifTerm,
    body: impl for<'a> FnOnce(Env<'a>, &[ErlNifTerm; N]) -> NifResult<Term<'a>>,
) -> ErlNifTerm {
    let call = ();
    // SAFETY: the environment and the arguments, which belong to it, live as long as the call.
    let (env, args) = unsafe { (Env::new(&call, env), &*argv.cast::<[ErlNifTerm; N]>()) };
    let error = match catch_unwind(AssertUnwindSafe(|| body(env, args))) {
        Ok(Ok(answer)) => return answer.as_c_arg(),
        Ok(Err(error)) => error,
        Err(_) => Error::RaiseAtom("nif_panicked"),
    };
    // SAFETY: this is the environment of the call, which ends with what is raised.
    unsafe { error.into_returned(env).apply(env) }
}
