//! WASI preview 1: what a guest is granted, and how it waits.
//!
//! The functions are wasmtime-wasi's. They are called from here, and not through its own linker
//! glue, for three reasons: which imports are WASI's is decided for each instance; the memory
//! stays readable while a guest waits in one of them; and standard input and output run in the
//! process that made the call, as imports do.
//!
//! What a guest writes is delivered, and what it reads is asked for, once no future of
//! wasmtime-wasi is alive: by three imports that stand behind the module's own, one for each
//! stream, and run in the driving process as the others do.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use rustler::{
    Atom, Binary, Decoder, Encoder, Env, NewBinary, NifResult, Resource, ResourceArc, Term,
};
use wasmtime::{AsContextMut, Caller, Store, Trap, Val, ValType};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as p1, WasiSnapshotPreview1};
use wasmtime_wasi::{FsPerms, HostMonotonicClock, HostWallClock, WasiCtxBuilder};
use wiggle::{GuestError, GuestMemory, GuestPtr};

use crate::alarm::Alarm;
use crate::call::{self, Args, Outcome, Results, Target};
use crate::count::{self, Live};
use crate::error::{self, Exit, Stop};
use crate::exchange::Exchange;
use crate::export::Reach;
use crate::instance::InstanceResource;
use crate::list::List;
use crate::memory::View;
use crate::stdio::{MAX_COPY, STDERR, STDIN, STDOUT, STREAMS, Sink, Stdio, Stream};
use crate::store::{self, Host};
use crate::value;
use crate::{atoms, import};

pub const MODULE: &str = "wasi_snapshot_preview1";

/// WASI calls that copy more than this go to a dirty scheduler first.
const LONG_COPY: u32 = 256 * 1024;

/// How many vectors of a write are looked at.
const MAX_VECTORS: u32 = 1024;

const SUCCESS: i32 = 0;

macro_rules! functions {
    ($($name:ident($($param:ident),*) $kind:ident;)*) => {
        /// The functions of WASI preview 1.
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[allow(non_camel_case_types)]
        pub enum Function { $($name),* }

        impl Function {
            fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Function::$name),)*
                    _ => None,
                }
            }

            fn params(self) -> &'static [ValType] {
                match self {
                    $(Function::$name => &[$(functions!(@type $param)),*],)*
                }
            }

            async fn call(
                self,
                wasi: &mut WasiP1Ctx,
                memory: &mut GuestMemory<'_>,
                args: &[Val],
            ) -> wasmtime::Result<i32> {
                #[allow(unused)]
                let mut args = args.iter();
                match self {
                    $(Function::$name =>
                        functions!(@call $kind $name wasi memory args $($param)*),)*
                }
            }
        }
    };
    (@type i32) => { ValType::I32 };
    (@type i64) => { ValType::I64 };
    (@call now $name:ident $wasi:ident $memory:ident $args:ident $($param:ident)*) => {
        p1::$name($wasi, $memory $(, $param($args.next()))*)
    };
    (@call later $name:ident $wasi:ident $memory:ident $args:ident $($param:ident)*) => {
        p1::$name($wasi, $memory $(, $param($args.next()))*).await
    };
    (@call all $name:ident $wasi:ident $memory:ident $args:ident $($param:ident)*) => {
        write_all($wasi, $memory $(, $param($args.next()))*).await
    };
    // wasmtime-wasi refuses codes above 125.
    (@call exit $name:ident $wasi:ident $memory:ident $args:ident $param:ident) => {
        Err(Exit($param($args.next()) as u32).into())
    };
}

functions! {
    args_get(i32, i32) now;
    args_sizes_get(i32, i32) now;
    clock_res_get(i32, i32) now;
    clock_time_get(i32, i64, i32) now;
    environ_get(i32, i32) now;
    environ_sizes_get(i32, i32) now;
    fd_advise(i32, i64, i64, i32) later;
    fd_allocate(i32, i64, i64) now;
    fd_close(i32) later;
    fd_datasync(i32) later;
    fd_fdstat_get(i32, i32) later;
    fd_fdstat_set_flags(i32, i32) now;
    fd_fdstat_set_rights(i32, i64, i64) now;
    fd_filestat_get(i32, i32) later;
    fd_filestat_set_size(i32, i64) later;
    fd_filestat_set_times(i32, i64, i64, i32) later;
    fd_pread(i32, i32, i32, i64, i32) later;
    fd_prestat_dir_name(i32, i32, i32) now;
    fd_prestat_get(i32, i32) now;
    fd_pwrite(i32, i32, i32, i64, i32) later;
    fd_read(i32, i32, i32, i32) later;
    fd_readdir(i32, i32, i32, i64, i32) later;
    fd_renumber(i32, i32) later;
    fd_seek(i32, i64, i32, i32) later;
    fd_sync(i32) later;
    fd_tell(i32, i32) now;
    fd_write(i32, i32, i32, i32) all;
    path_create_directory(i32, i32, i32) later;
    path_filestat_get(i32, i32, i32, i32, i32) later;
    path_filestat_set_times(i32, i32, i32, i32, i64, i64, i32) later;
    path_link(i32, i32, i32, i32, i32, i32, i32) later;
    path_open(i32, i32, i32, i32, i32, i64, i64, i32, i32) later;
    path_readlink(i32, i32, i32, i32, i32, i32) later;
    path_remove_directory(i32, i32, i32) later;
    path_rename(i32, i32, i32, i32, i32, i32) later;
    path_symlink(i32, i32, i32, i32, i32) later;
    path_unlink_file(i32, i32, i32) later;
    poll_oneoff(i32, i32, i32, i32) later;
    proc_exit(i32) exit;
    proc_raise(i32) now;
    random_get(i32, i32) now;
    sched_yield() now;
    sock_accept(i32, i32, i32) now;
    sock_recv(i32, i32, i32, i32, i32, i32) now;
    sock_send(i32, i32, i32, i32, i32) now;
    sock_shutdown(i32, i32) now;
}

/// Linking has made sure that the arguments are of their types.
fn i32(arg: Option<&Val>) -> i32 {
    arg.and_then(Val::i32).unwrap_or_default()
}

fn i64(arg: Option<&Val>) -> i64 {
    arg.and_then(Val::i64).unwrap_or_default()
}

impl Function {
    pub fn of(module: &str, name: &str) -> Option<Self> {
        (module == MODULE).then(|| Function::named(name))?
    }

    /// How many bytes it copies at once, as far as that is up to the guest.
    fn copies(self, memory: &GuestMemory<'_>, args: &[Val]) -> u32 {
        let arg = |at| i32(args.get(at)) as u32;
        match self {
            Function::random_get => arg(1),
            Function::fd_readdir | Function::path_readlink => arg(2),
            Function::fd_read | Function::fd_pread | Function::fd_write | Function::fd_pwrite => {
                first_length(memory, arg(1), arg(2).min(MAX_VECTORS))
            }
            _ => 0,
        }
    }
}

/// The length of the first vector that is not empty: wasmtime-wasi looks no further.
fn first_length(memory: &GuestMemory<'_>, vectors: u32, count: u32) -> u32 {
    let length = |n: u32| {
        let at = vectors.checked_add(n.checked_mul(8)?)?.checked_add(4)?;
        memory.read(GuestPtr::<u32>::new(at)).ok()
    };
    (0..count).filter_map(length).find(|length| *length > 0).unwrap_or(0)
}

/// `fd_write`. wasmtime-wasi writes one vector and leaves the others to the next call, which cuts
/// each line that C writes in two.
async fn write_all(
    wasi: &mut WasiP1Ctx,
    memory: &mut GuestMemory<'_>,
    fd: i32,
    vectors: i32,
    count: i32,
    written: i32,
) -> wasmtime::Result<i32> {
    let mut total: u32 = 0;
    for n in 0..(count as u32).min(MAX_VECTORS) {
        let vector = (vectors as u32).wrapping_add(n * 8);
        let length = memory.read(GuestPtr::<u32>::new(vector.wrapping_add(4)))?;
        if length == 0 {
            continue;
        }
        let errno = p1::fd_write(wasi, memory, fd, vector as i32, 1, written).await?;
        match errno {
            SUCCESS => {}
            errno if total == 0 => return Ok(errno),
            _ => break,
        }
        let part = memory.read(GuestPtr::<u32>::new(written as u32))?;
        total = total.saturating_add(part);
        if part < length {
            break;
        }
    }
    if total == 0 {
        return p1::fd_write(wasi, memory, fd, vectors, 0, written).await;
    }
    memory.write(GuestPtr::<u32>::new(written as u32), total)?;
    Ok(SUCCESS)
}

/// What a store has of WASI.
pub struct Wasi {
    ctx: WasiP1Ctx,
    stdio: Arc<Stdio>,
    random: Option<SplitMix>,
    /// By import index: whether it is WASI's.
    provided: Vec<bool>,
    _live: Live<{ count::WASI }>,
}

impl Wasi {
    fn provides(&self, index: usize) -> bool {
        self.provided.get(index).copied().unwrap_or(false)
    }
}

type Hosted<'a> = Box<dyn Future<Output = wasmtime::Result<()>> + Send + 'a>;

/// The host function behind the import with this index: WASI's where the instance was granted
/// it, and the user's own otherwise.
pub fn function(
    index: usize,
    function: Function,
) -> impl for<'a> Fn(Caller<'a, Host>, &'a [Val], &'a mut [Val]) -> Hosted<'a> + Send + Sync + 'static
{
    move |caller, params, results| {
        let provided = caller.data().wasi.as_ref().is_some_and(|wasi| wasi.provides(index));
        match provided {
            true => Box::new(run(caller, function, params, results)),
            false => Box::new(import::run(caller, index, params, results)),
        }
    }
}

async fn run(
    mut caller: Caller<'_, Host>,
    function: Function,
    params: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    import::find_memories(&mut caller);
    store::capture(&mut caller);
    let mut long = false;
    let errno = loop {
        match perform(&mut caller, function, params, &mut long).await.map_err(trap)? {
            Performed::Done(errno) => break errno,
            Performed::WantsInput => ask(&mut caller, STDIN).await?,
        }
    };
    deliver(&mut caller).await?;
    if let Some(slot) = results.first_mut() {
        *slot = Val::I32(errno);
    }
    Ok(())
}

/// A pointer that leads out of the memory is the trap that it would be in the guest itself.
fn trap(error: wasmtime::Error) -> wasmtime::Error {
    match error.downcast_ref() {
        Some(GuestError::PtrOutOfBounds(_) | GuestError::PtrOverflow) => {
            Trap::MemoryOutOfBounds.into()
        }
        _ => error,
    }
}

enum Performed {
    Done(i32),
    /// Nothing has happened but that standard input was found empty.
    WantsInput,
}

/// Calls a function of wasmtime-wasi. `long` is whether the call is known to be on a scheduler
/// that it may hold up.
async fn perform(
    caller: &mut Caller<'_, Host>,
    function: Function,
    params: &[Val],
    long: &mut bool,
) -> wasmtime::Result<Performed> {
    let exchange = caller.data().exchange.clone();
    let view = view(caller);
    let mut memory = GuestMemory::Shared(view.cells());
    if !*long && function.copies(&memory, params) > LONG_COPY {
        *long = true;
        store::capture(&mut *caller);
        give_way(&exchange).await;
    }
    let Some(wasi) = caller.data_mut().wasi.as_mut() else {
        return Err(Stop::Closed.into());
    };
    if let (Function::random_get, Some(random)) = (function, &mut wasi.random) {
        return random.fill(&mut memory, params).map(Performed::Done);
    }
    let stdio = wasi.stdio.clone();
    wasi.ctx.set_hostcall_fuel(MAX_COPY);
    let mut waited = false;
    let done = {
        let mut future = pin!(function.call(&mut wasi.ctx, &mut memory, params));
        poll_fn(|context| {
            if let Some(stop) = exchange.stop() {
                return Poll::Ready(Err(stop.into()));
            }
            match future.as_mut().poll(context) {
                Poll::Ready(errno) => Poll::Ready(errno.map(Performed::Done)),
                Poll::Pending if stdio.wants_input() => Poll::Ready(Ok(Performed::WantsInput)),
                Poll::Pending => {
                    waited = true;
                    exchange.suspended();
                    Poll::Pending
                }
            }
        })
        .await
    };
    if waited {
        store::new_slice(&mut *caller);
    }
    done
}

/// Ends the slice, so that a long call goes on on a dirty scheduler. The guest is suspended
/// meanwhile: where its memories are must have been recorded.
async fn give_way(exchange: &Exchange) {
    let mut given = false;
    poll_fn(|context| match std::mem::replace(&mut given, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            exchange.suspended();
            Poll::Pending
        }
    })
    .await;
}

/// The memory that WASI means: the one that is exported as "memory".
fn view(caller: &Caller<'_, Host>) -> View {
    let host = caller.data();
    match (host.module.memories.first(), host.memories.first()) {
        (Some((name, _)), Some(memory)) if &**name == "memory" => View::of(memory, caller),
        _ => View::NONE,
    }
}

/// Has the driving process take what the guest has written.
async fn deliver(store: &mut (impl Reach + AsContextMut<Data = Host>)) -> wasmtime::Result<()> {
    for stream in [STDOUT, STDERR] {
        let waiting = store
            .as_context_mut()
            .data()
            .wasi
            .as_ref()
            .is_some_and(|wasi| wasi.stdio.has_output(stream));
        if waiting {
            ask(store, stream).await?;
        }
    }
    Ok(())
}

/// Ends a call: delivers what was kept back in case more of a character followed.
pub async fn finish(store: &mut Store<Host>, outcome: Outcome) -> Outcome {
    if let Some(wasi) = &store.data().wasi {
        if wasi.stdio.is_empty() {
            return outcome;
        }
        wasi.stdio.end();
    }
    deliver(store).await.and(outcome)
}

/// Calls the function that a module without a `_start` has for its constructors.
pub async fn initialize(store: &mut Store<Host>) -> Outcome {
    let module = store.data().module.clone();
    let Some(index) = module.function_names.get(b"_initialize".as_slice()) else {
        return Ok(Results::None);
    };
    let signature = &module.functions[*index].signature;
    if !signature.params.is_empty() || !signature.results.is_empty() {
        return Ok(Results::None);
    }
    match Target::Export(*index).find(store) {
        Some(callee) => {
            call::run(
                store.as_context_mut(),
                callee,
                Args::Numbers { values: Vec::new(), params: 0 },
            )
            .await
        }
        None => Ok(Results::None),
    }
}

/// Has the driving process run the import behind a stream.
async fn ask(
    store: &mut (impl Reach + AsContextMut<Data = Host>),
    stream: usize,
) -> wasmtime::Result<()> {
    store::capture(&mut *store);
    let host = store.as_context().data();
    if let Some(stop) = host.exchange.stop() {
        return Err(stop.into());
    }
    let index = host.module.imports.len() - STREAMS + stream;
    host.exchange.post_import(index, Vec::new());
    import::answered(store).await?;
    store::new_slice(&mut *store);
    Ok(())
}

/// A clock that moves only when it is read.
struct FixedClock {
    start: u64,
    step: u64,
    readings: Arc<AtomicU64>,
}

impl FixedClock {
    fn read(&self) -> u64 {
        self.start.saturating_add(self.readings.fetch_add(1, Relaxed).saturating_mul(self.step))
    }
}

impl HostWallClock for FixedClock {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.read())
    }
}

impl HostMonotonicClock for FixedClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        self.read()
    }
}

/// Sebastiano Vigna's generator: the same bytes for the same seed, in every version of Beamr.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `random_get`.
    fn fill(&mut self, memory: &mut GuestMemory<'_>, params: &[Val]) -> wasmtime::Result<i32> {
        let (start, length) = (i32(params.first()) as u32, i32(params.get(1)) as u32);
        let mut done = 0;
        while done < length {
            let bytes = self.next().to_le_bytes();
            let part = (length - done).min(8);
            let at = start.checked_add(done).ok_or(GuestError::PtrOverflow)?;
            let place = GuestPtr::<u8>::new(at).as_array(part);
            memory.copy_from_slice(&bytes[..part as usize], place)?;
            done += part;
        }
        Ok(SUCCESS)
    }
}

/// What an instance keeps of WASI while its store is in a call.
pub struct Attached {
    pub stdio: Arc<Stdio>,
    pub alarm: Alarm,
}

/// What `wasi:` grants, until the instance that it was made for takes it.
pub struct WasiResource(Mutex<Option<(Wasi, Alarm)>>);

#[rustler::resource_impl]
impl Resource for WasiResource {}

/// The WASI of an instance: nil, or `{resource, indices of the imports that are WASI's}`.
pub struct Grant(Option<(ResourceArc<WasiResource>, List<usize>)>);

impl<'a> Decoder<'a> for Grant {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        term.decode().map(Grant)
    }
}

impl Grant {
    /// What the store gets of it, and what the instance keeps.
    pub fn take(&self, imports: usize) -> Option<(Box<Wasi>, Box<Attached>)> {
        let (resource, indices) = self.0.as_ref()?;
        let (mut wasi, alarm) = resource.0.lock().take()?;
        wasi.provided = (0..imports).map(|index| indices.0.contains(&index)).collect();
        let attached = Box::new(Attached { stdio: wasi.stdio.clone(), alarm });
        Some((Box::new(wasi), attached))
    }
}

/// `{args, env, dirs, stdin, stdout, stderr, clock, random, tty}`, all checked by Elixir.
struct Options<'a> {
    args: List<&'a str>,
    env: List<(&'a str, &'a str)>,
    /// Host path, guest path, whether it may be written to.
    dirs: List<(&'a str, &'a str, bool)>,
    /// All of it, or nil where it is to be asked for.
    stdin: Option<Binary<'a>>,
    stdout: Sink,
    stderr: Sink,
    /// Nanoseconds since 1970, and those between two readings.
    clock: Option<(u64, u64)>,
    random: Option<u64>,
    tty: bool,
}

impl<'a> Decoder<'a> for Options<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let fields = rustler::types::tuple::get_tuple(term)?;
        let [args, env, dirs, stdin, stdout, stderr, clock, random, tty] = fields[..] else {
            return Err(rustler::Error::BadArg);
        };
        Ok(Options {
            args: args.decode()?,
            env: env.decode()?,
            dirs: dirs.decode()?,
            stdin: stdin.decode()?,
            stdout: stdout.decode()?,
            stderr: stderr.decode()?,
            clock: clock.decode()?,
            random: random.decode()?,
            tty: tty.decode()?,
        })
    }
}

/// `{:ok, resource}`, or `{:error, {host path | nil, what the system says}}`; `:dirty` where
/// directories have to be opened, which may take a disk's time.
#[rustler::nif]
fn wasi_new<'a>(env: Env<'a>, options: Options<'a>) -> Term<'a> {
    match options.dirs.0.is_empty() {
        true => grant(env, options),
        false => atoms::dirty().encode(env),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn wasi_new_dirty<'a>(env: Env<'a>, options: Options<'a>) -> Term<'a> {
    grant(env, options)
}

fn grant<'a>(env: Env<'a>, options: Options<'a>) -> Term<'a> {
    let fail = |path: Option<&str>, kind: Term<'a>| {
        (atoms::error(), (path.map(|path| error::text(env, path)), kind)).encode(env)
    };
    let alarm = match Alarm::new() {
        Ok(alarm) => alarm,
        Err(error) => return fail(None, error::text(env, &error.to_string())),
    };
    let input = options.stdin.as_ref().map(Binary::as_slice);
    let stdio = Arc::new(Stdio::new(input, options.stdout, options.stderr, options.tty));
    let mut builder = WasiCtxBuilder::new();
    builder
        .args(&options.args.0)
        .envs(&options.env.0)
        .stdin(Stream::new(&stdio, STDIN))
        .stdout(Stream::new(&stdio, STDOUT))
        .stderr(Stream::new(&stdio, STDERR));
    for (host, guest, writable) in options.dirs.0 {
        let perms = if writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        if let Err(error) = builder.preopened_dir(host, guest, perms) {
            return fail(Some(host), posix(env, &error));
        }
    }
    if let Some((start, step)) = options.clock {
        let readings = Arc::new(AtomicU64::new(0));
        builder
            .wall_clock(FixedClock { start, step, readings: readings.clone() })
            .monotonic_clock(FixedClock { start: 0, step, readings });
    }
    let random = options.random.map(SplitMix);
    let wasi =
        Wasi { ctx: builder.build_p1(), stdio, random, provided: Vec::new(), _live: Live::new() };
    (atoms::ok(), ResourceArc::new(WasiResource(Mutex::new(Some((wasi, alarm)))))).encode(env)
}

/// The name that Erlang has for the error, or the system's text.
fn posix<'a>(env: Env<'a>, error: &wasmtime::Error) -> Term<'a> {
    use std::io::ErrorKind;
    match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(ErrorKind::NotFound) => atoms::enoent().encode(env),
        Some(ErrorKind::NotADirectory) => atoms::enotdir().encode(env),
        Some(ErrorKind::PermissionDenied) => atoms::eacces().encode(env),
        _ => error::text(env, &format!("{error:#}")),
    }
}

/// `{params, results}` of a function of WASI, or nil.
#[rustler::nif]
fn wasi_signature(name: &str) -> Option<(Vec<Atom>, Vec<Atom>)> {
    let function = Function::named(name)?;
    let results = match function {
        Function::proc_exit => &[][..],
        _ => &[ValType::I32][..],
    };
    Some((value::type_names(function.params()), value::type_names(results)))
}

/// Takes what the guest has written to a stream.
#[rustler::nif]
fn wasi_take<'a>(env: Env<'a>, instance: &'a InstanceResource, stream: usize) -> Term<'a> {
    let bytes = instance.wasi.as_ref().map(|wasi| wasi.stdio.take(stream)).unwrap_or_default();
    NewBinary::from_slice(env, &bytes).into()
}

/// Gives the guest input to read. No bytes are the end of it.
#[rustler::nif]
fn wasi_feed<'a>(instance: &'a InstanceResource, bytes: Binary<'a>) -> Atom {
    if let Some(wasi) = &instance.wasi {
        wasi.stdio.feed(bytes.as_slice());
    }
    atoms::ok()
}

/// Sends the caller no message for the wait that it is in; false where one was sent already.
#[rustler::nif]
fn wasi_disarm(instance: &InstanceResource) -> bool {
    instance.wasi.as_ref().is_some_and(|wasi| wasi.alarm.disarm())
}
