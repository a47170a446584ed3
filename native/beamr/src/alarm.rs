//! How a guest waits without a thread: its call answers `{:wait, ref}`, and its waker sends
//! `{:beamr_wake, ref}` to the process that made it.
//!
//! Invariant: whoever takes the pid out of the alarm sends the message, under the alarm's lock; so
//! who disarms it knows whether one was sent. Lock order: the instance's state, then the alarm.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use rustler::{Encoder, Env, LocalPid, OwnedEnv, Term};
use tokio::runtime::{Handle, Runtime};

use crate::atoms;
use crate::value::HeldTerm;

/// Files are read and written on threads of this pool, so that a slow disk holds no scheduler.
/// They are started when they are needed, and end when they are not.
const FILE_THREADS: usize = 32;

/// The alarm of one instance.
pub struct Alarm {
    bell: Arc<Bell>,
    waker: Waker,
    runtime: Handle,
}

impl Alarm {
    pub fn new() -> std::io::Result<Self> {
        let bell = Arc::new(Bell(Mutex::default()));
        let waker = Waker::from(bell.clone());
        Ok(Alarm { bell, waker, runtime: runtime()?.handle().clone() })
    }

    /// Polls a call, which may wait for whatever the runtime has.
    pub fn poll<F: Future + ?Sized>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
        *self.bell.0.lock() = Ringing::default();
        let _entered = self.runtime.enter();
        future.poll(&mut Context::from_waker(&self.waker))
    }

    /// Has the calling process told when the call that was just polled can go on; None where it
    /// can already.
    pub fn arm<'a>(&self, env: Env<'a>) -> Option<Term<'a>> {
        let mut ringing = self.bell.0.lock();
        if ringing.rung {
            return None;
        }
        let wait = env.make_ref();
        ringing.waiting = Some((env.pid(), HeldTerm::new(*wait)));
        Some(*wait)
    }

    /// Sends nobody a message any more; false where one was sent already.
    pub fn disarm(&self) -> bool {
        self.bell.0.lock().waiting.take().is_some()
    }

    /// Has the call look whether it must end.
    pub fn ring(&self, env: Env) {
        self.bell.ring(Some(env));
    }
}

struct Bell(Mutex<Ringing>);

#[derive(Default)]
struct Ringing {
    /// Since the call was last polled.
    rung: bool,
    /// The process that waits for the message, and what it knows it by.
    waiting: Option<(LocalPid, HeldTerm)>,
}

impl Bell {
    fn ring(&self, env: Option<Env>) {
        let mut ringing = self.0.lock();
        ringing.rung = true;
        let Some((pid, wait)) = ringing.waiting.take() else { return };
        if let Some(env) = env
            && env.send(&pid, (atoms::beamr_wake(), wait.load(env))).is_ok()
        {
            return;
        }
        let send = move || {
            let _ = OwnedEnv::new()
                .send_and_clear(&pid, |env| (atoms::beamr_wake(), wait.load(env)).encode(env));
        };
        // Only a thread of no scheduler may send for no process. Wakers are called on tokio's;
        // but a process that was killed inside a dirty NIF can send nothing itself.
        if rustler::thread::is_scheduler_thread() {
            let _ = std::thread::Builder::new().name("beamr-send".into()).spawn(send);
        } else {
            send();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring(None);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring(None);
    }
}

/// One for the node: a thread that keeps its timers, and those that wait for files.
fn runtime() -> std::io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(FILE_THREADS)
        .thread_name("beamr-wasi")
        .enable_time()
        .build()?;
    Ok(RUNTIME.get_or_init(|| runtime))
}
