//! What `native/models` has its own of, to try every order in which threads can get through the
//! files that take it from here.

pub use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

pub use parking_lot::{Mutex, MutexGuard};
