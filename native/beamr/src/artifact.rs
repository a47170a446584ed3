//! Precompiled modules: compiled modules as artifacts and back, and the cache of such on disk.
//!
//! An artifact holds machine code that will be run as it is. Invariant: wasmtime is given no byte
//! of one whose version, options and hash are not those that this library wrote. That keeps out
//! accidents; that whoever wrote it meant well is for the user to know.

use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustler::{Atom, Binary, Encoder, Env, NifResult, Term};
use sha2::{Digest, Sha256};
use wasmtime::Module;

use crate::atoms;
use crate::engine::{self, Memory, Options};
use crate::framing::{self, Body, MAGIC, VERSION};
use crate::list::List;
use crate::memory;
use crate::module::{self, CompileFault, Compiled, ModuleResource};

fn write(compiled: &Compiled) -> wasmtime::Result<Vec<u8>> {
    let image = compiled.module.serialize()?;
    Ok(framing::write(compiled.options.bits(), &compiled.custom_sections, &image))
}

/// With `expected`, an artifact with other options than these is incompatible.
fn read(artifact: &[u8], expected: Option<Options>) -> Result<Compiled, CompileFault> {
    let Body { options, sections, image } = framing::read(artifact)?;
    let options = Options::from_bits(options).ok_or(CompileFault::Damaged)?;
    if expected.is_some_and(|expected| !options.satisfy(expected)) {
        let message = format!("it was compiled with {}", describe(options));
        return Err(CompileFault::Incompatible(message));
    }
    let system = |error: wasmtime::Error| CompileFault::System(format!("{error:#}"));
    let engine = engine::get(options).map_err(system)?;
    // SAFETY: the bytes are, by their hash, those that `write` was given by wasmtime, for an
    // engine that wasmtime itself compares with this one before it uses them. Nobody but who
    // forges an artifact, hash and all, can have it otherwise; `Beamr.Module.deserialize_trusted`
    // and the option `cache:` demand that no such artifact is given to them.
    let module = unsafe { Module::deserialize(engine, image) };
    let module = module.map_err(|error| CompileFault::Incompatible(format!("{error:#}")))?;
    Compiled::new(module, options, sections).map_err(system)
}

impl From<framing::Refusal> for CompileFault {
    fn from(refusal: framing::Refusal) -> Self {
        match refusal {
            framing::Refusal::Damaged => CompileFault::Damaged,
            framing::Refusal::Version(version) => CompileFault::Incompatible(format!(
                "it was serialized by version {version}, this is {VERSION}"
            )),
        }
    }
}

fn describe(options: Options) -> String {
    let of_code = match options {
        Options { deterministic: true, .. } => "deterministic: true",
        Options { fuel: true, .. } => "fuel: true",
        _ => "neither fuel: true nor deterministic: true",
    };
    format!("{of_code}, compact: {}", options.memory == Memory::Compact)
}

/// The module of this source from the cache in this folder, or compiled and put there.
pub fn cached(folder: &Path, source: &[u8], options: Options) -> Result<Compiled, CompileFault> {
    let name = name(source, options)?;
    if let Ok(artifact) = fs::read(folder.join(&name))
        && let Ok(compiled) = read(&artifact, Some(options))
    {
        return Ok(compiled);
    }
    let compiled = module::compile(source, options)?;
    // Where it cannot be kept, it is compiled again the next time.
    if let Ok(artifact) = write(&compiled) {
        let _ = keep(folder, &name, &artifact);
    }
    Ok(compiled)
}

/// Names an entry after all that it depends on. Where two engines have the same name for
/// different things, the artifact itself tells.
fn name(source: &[u8], options: Options) -> Result<String, CompileFault> {
    let engine = engine::get(options).map_err(|error| CompileFault::System(error.to_string()))?;
    // Of wasmtime's version, its settings, and what the processor can do.
    let mut compatibility = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut compatibility);
    let hash = Sha256::new()
        .chain_update(MAGIC)
        .chain_update([VERSION.len() as u8])
        .chain_update(VERSION)
        .chain_update([options.bits()])
        .chain_update(compatibility.finish().to_le_bytes())
        .chain_update(source)
        .finalize();
    Ok(format!("{hash:x}.beamr"))
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Others see the whole entry or none of it: it is written under another name first.
fn keep(folder: &Path, name: &str, artifact: &[u8]) -> io::Result<()> {
    // Who can write here can have their code run by this node.
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!("{name}.{time}-{}-{number}.new", process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(artifact))
        .and_then(|()| fs::rename(&temporary, folder.join(name)));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn artifact_write<'a>(env: Env<'a>, module: &'a ModuleResource) -> NifResult<Term<'a>> {
    let artifact = write(&module.0).ok();
    let binary = artifact.as_ref().and_then(|bytes| {
        let mut binary = memory::try_alloc(bytes.len())?;
        binary.as_mut_slice().copy_from_slice(bytes);
        Some(binary)
    });
    let no_room = || rustler::Error::RaiseTerm(Box::new(atoms::system_limit()));
    Ok(binary.ok_or_else(no_room)?.release(env).encode(env))
}

/// `{:ok, {module, metered}}`; `options` are those that it must have, or nil.
#[rustler::nif(schedule = "DirtyIo")]
fn artifact_read<'a>(env: Env<'a>, artifact: Binary<'a>, options: Option<List<Atom>>) -> Term<'a> {
    let expected = options.map(|names| Options::of(&names.0));
    let bytes = artifact.as_slice();
    match module::on_compiler_thread(|| read(bytes, expected)) {
        Ok(compiled) => {
            let metered = compiled.options.fuel;
            (atoms::ok(), (module::to_resource(compiled), metered)).encode(env)
        }
        Err(fault) => (atoms::error(), fault.encode(env)).encode(env),
    }
}
