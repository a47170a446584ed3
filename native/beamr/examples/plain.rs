//! What guests cost in wasmtime alone: the baseline of `bench/engine.exs`.
//!
//!     plain MODULE
//!
//! Each line of its input is an operation and a count; each line of its output is how many
//! nanoseconds so many of them took. The engine is configured as Beamr's.

use std::future::Future;
use std::io::{BufRead, Write};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use wasmtime::{
    Config, Engine, Instance, InstancePre, Linker, Module, Result, Store, UpdateDeadline, Val,
};

/// The first two as in `engine.rs`; a slice, in ticks, as `slice.rs` has it beside other guests.
const STACK: usize = 512 * 1024;
const TICK: std::time::Duration = std::time::Duration::from_micros(200);
const SLICE: u64 = 5;

struct Guest {
    store: Store<()>,
    instance: Instance,
}

fn engine() -> Result<Engine> {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(STACK)
        .async_stack_size(2 * STACK)
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
    Engine::new(&config)
}

/// Runs a future to its end, polled as Beamr's NIFs do, by nobody's order.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

fn instantiate(pre: &InstancePre<()>, engine: &Engine) -> Result<Guest> {
    let mut store = Store::new(engine, ());
    store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Yield(SLICE)));
    store.set_epoch_deadline(SLICE);
    let instance = run(pre.instantiate_async(&mut store))?;
    Ok(Guest { store, instance })
}

/// Calls as Beamr does: on a fiber, by a function that is known and values of any type.
fn call(guest: &mut Guest, name: &str, argument: i32, count: u64) -> Result<()> {
    let func = guest.instance.get_func(&mut guest.store, name).expect("an exported function");
    for _ in 0..count {
        guest.store.set_epoch_deadline(SLICE);
        let mut results = [Val::I32(0)];
        run(func.call_async(&mut guest.store, &[Val::I32(argument)], &mut results))?;
    }
    Ok(())
}

/// Calls as a program without fibers would, where types are known to the compiler.
fn call_directly(guest: &mut Guest, count: u64) -> Result<()> {
    let func = guest.instance.get_typed_func::<i32, i32>(&mut guest.store, "id")?;
    guest.store.set_epoch_deadline(u64::MAX / 2);
    for n in 0..count {
        func.call(&mut guest.store, n as i32)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).expect("the path of a module");
    let engine = engine()?;
    let ticking = engine.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(TICK);
            ticking.increment_epoch();
        }
    });

    let source = std::fs::read(path)?;
    let module = Module::new(&engine, &source)?;
    let pre = Linker::new(&engine).instantiate_pre(&module)?;
    let mut guest = instantiate(&pre, &engine)?;
    let mut fresh = Store::new(&engine, ());
    let directly = Linker::new(&engine).instantiate(&mut fresh, &module)?;
    let mut direct = Guest { store: fresh, instance: directly };

    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
        let (argument, count): (u64, u64) = (number(), number());
        let start = Instant::now();
        match name {
            "direct" => call_directly(&mut direct, count)?,
            "compile" => {
                for _ in 0..count {
                    drop(Module::new(&engine, &source)?);
                }
            }
            "instantiate" => {
                for _ in 0..count {
                    drop(instantiate(&pre, &engine)?);
                }
            }
            name => call(&mut guest, name, argument as i32, count)?,
        }
        println!("{}", start.elapsed().as_nanos());
        std::io::stdout().flush()?;
    }
    Ok(())
}
