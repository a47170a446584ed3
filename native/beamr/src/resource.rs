//! Instances as resources of the VM, which every operation begins with.
//!
//! The other resources are rustler's, which looks their type up in a hash map each time that it
//! decodes one. That took a tenth of the time of reading eight bytes, and there is no way around
//! it but to hold the type here.
//!
//! Invariants: [`TYPE`] is the type that the library registered when it was loaded last, and
//! each of its objects is an [`InstanceResource`], whole from before the first term refers to it
//! until after the last.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use rustler::sys::{
    ErlNifEnv, ErlNifMonitor, ErlNifPid, ErlNifResourceDown, ErlNifResourceDtor,
    ErlNifResourceFlags, ErlNifResourceType, ErlNifResourceTypeInit, enif_alloc_resource,
    enif_demonitor_process, enif_get_resource, enif_make_resource, enif_monitor_process,
    enif_open_resource_type_x, enif_release_resource,
};
use rustler::{Decoder, Env, Error, LocalPid, Monitor, NifResult, Term};

use crate::instance::InstanceResource;

static TYPE: AtomicPtr<ErlNifResourceType> = AtomicPtr::new(ptr::null_mut());

/// Registers the type; false where the VM refuses. To be called while the library is loaded.
pub fn register(env: Env) -> bool {
    let callbacks = ErlNifResourceTypeInit {
        dtor: destroy as *const ErlNifResourceDtor,
        stop: ptr::null(),
        down: down as *const ErlNifResourceDown,
    };
    let mut tried = MaybeUninit::uninit();
    // SAFETY: this is the environment of a load, the name ends with a zero, and the callbacks
    // have the types that their names say.
    let registered = unsafe {
        enif_open_resource_type_x(
            env.as_c_arg(),
            c"instance".as_ptr(),
            &callbacks,
            ErlNifResourceFlags::ERL_NIF_RT_CREATE,
            tried.as_mut_ptr(),
        )
    };
    // What was registered before stays where it is refused: there may be objects of it.
    if registered.is_null() {
        return false;
    }
    TYPE.store(registered.cast_mut(), Relaxed);
    true
}

unsafe extern "C" fn destroy(_env: *mut ErlNifEnv, object: *mut c_void) {
    // SAFETY: the VM calls this once, when nothing refers to the object any more.
    let drop = || unsafe { ptr::drop_in_place(object.cast::<InstanceResource>()) };
    // There is nobody to tell of a panic, which must not reach the VM.
    let _ = catch_unwind(AssertUnwindSafe(drop));
}

unsafe extern "C" fn down(
    env: *mut ErlNifEnv,
    object: *mut c_void,
    pid: *const ErlNifPid,
    _monitor: *const ErlNifMonitor,
) {
    // SAFETY: what the VM gives is good as long as this runs.
    let (env, instance, pid) =
        unsafe { (Env::new(&env, env), &*object.cast::<InstanceResource>(), *pid) };
    let _ = catch_unwind(AssertUnwindSafe(|| instance.down(env, LocalPid::from_c_arg(pid))));
}

impl<'a> Decoder<'a> for &'a InstanceResource {
    #[inline]
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let mut object = MaybeUninit::uninit();
        // SAFETY: the term is of this environment, and the type is registered, or there would be
        // no NIF to come here from.
        let found = unsafe {
            enif_get_resource(
                term.get_env().as_c_arg(),
                term.as_c_arg(),
                TYPE.load(Relaxed),
                object.as_mut_ptr(),
            )
        };
        if found == 0 {
            return Err(Error::BadArg);
        }
        // SAFETY: it has been written where something was found, which is an object of the type;
        // the term keeps it alive as long as its environment lives.
        Ok(unsafe { &*object.assume_init().cast::<InstanceResource>() })
    }
}

impl InstanceResource {
    /// Makes it a resource, which lives as long as any term refers to it.
    pub fn into_resource<'a>(self, env: Env<'a>) -> (&'a Self, Term<'a>) {
        // What the VM allocates is aligned for every type of C.
        const { assert!(align_of::<Self>() <= align_of::<u64>()) };
        // SAFETY: the object has room for an instance, which is written before a term refers to it.
        // The term then holds the only reference, for at least as long as its environment lives.
        unsafe {
            let object = enif_alloc_resource(TYPE.load(Relaxed), size_of::<Self>());
            object.cast::<Self>().write(self);
            let term = enif_make_resource(env.as_c_arg(), object);
            enif_release_resource(object);
            (&*object.cast::<Self>(), Term::new(env, term))
        }
    }

    /// Has [`Self::down`] called when the process ends; None where it has ended already.
    pub fn monitor(&self, env: Env, pid: &LocalPid) -> Option<Monitor> {
        let mut monitor = MaybeUninit::uninit();
        // SAFETY: every instance that NIFs are given is an object of the type, and this is the
        // environment of the NIF.
        unsafe {
            let failed = enif_monitor_process(
                env.as_c_arg(),
                ptr::from_ref(self).cast(),
                pid.as_c_arg(),
                monitor.as_mut_ptr(),
            );
            (failed == 0).then(|| Monitor::from_c_arg(monitor.assume_init()))
        }
    }

    pub fn demonitor(&self, env: Env, monitor: &Monitor) {
        // SAFETY: as for `monitor`, which made what is given up.
        unsafe {
            enif_demonitor_process(env.as_c_arg(), ptr::from_ref(self).cast(), monitor.as_c_arg());
        }
    }
}
