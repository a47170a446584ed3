//! Compiled modules: compilation, and what a module imports and exports.
//!
//! A module is immutable and shared by every process. Its function imports are resolved here,
//! once: they all lead to [`import::run`], which asks the calling process by index, so one
//! [`InstancePre`] serves every instance whatever Elixir functions stand behind its imports.

use std::collections::HashMap;
use std::sync::Arc;

use rustler::{Atom, Binary, Encoder, Env, NifResult, Resource, ResourceArc, Term};
use wasmtime::{
    ExternType, FuncType, InstancePre, Linker, Module, ModuleExport, Mutability, ValType,
};

use crate::engine::{self, Options};
use crate::store::Host;
use crate::value::{self, Signature};
use crate::wasi::{self, Function};
use crate::{atoms, error, import, stdio};

const HEAVY_IMAGE: usize = 4 * 1024 * 1024;

/// Compilation needs a deeper stack than a dirty scheduler has.
const COMPILER_STACK: usize = 16 * 1024 * 1024;

pub struct Compiled {
    pub module: Module,
    /// Functions by export name.
    pub functions: HashMap<Box<str>, Arc<ExportedFunction>>,
    pub globals: HashMap<Box<str>, ExportedGlobal>,
    pub tables: HashMap<Box<str>, ExportedTable>,
    /// Exported memories; the first is the one that is meant where none is named.
    pub memories: Vec<(Box<str>, ModuleExport)>,
    /// Signatures of imported functions by import index; other kinds of import have none. Behind
    /// them come those of the standard streams, where anything is imported from WASI.
    pub imports: Vec<Option<Signature>>,
    pub pre: Option<InstancePre<Host>>,
    /// Name and size in bytes of each custom section.
    custom_sections: Vec<(Box<str>, usize)>,
}

pub struct ExportedFunction {
    pub export: ModuleExport,
    pub signature: Signature,
}

pub struct ExportedGlobal {
    pub export: ModuleExport,
    pub content: ValType,
    pub mutable: bool,
}

pub struct ExportedTable {
    pub export: ModuleExport,
    pub element: ValType,
}

pub struct ModuleResource(pub Arc<Compiled>);

#[rustler::resource_impl]
impl Resource for ModuleResource {}

impl Compiled {
    /// Whether making an instance takes longer than a normal scheduler should be held: there may
    /// be megabytes of data to be copied.
    pub fn is_heavy(&self) -> bool {
        let image = self.module.image_range();
        image.end as usize - image.start as usize > HEAVY_IMAGE
    }

    fn new(module: Module, binary: &[u8]) -> wasmtime::Result<Self> {
        let mut functions = HashMap::new();
        let mut globals = HashMap::new();
        let mut tables = HashMap::new();
        let mut memories = Vec::new();
        for exported in module.exports() {
            let name: Box<str> = exported.name().into();
            let Some(export) = module.get_export_index(&name) else { continue };
            match exported.ty() {
                ExternType::Func(ty) => {
                    let signature = Signature::new(&ty);
                    functions.insert(name, Arc::new(ExportedFunction { export, signature }));
                }
                ExternType::Global(ty) => {
                    let mutable = ty.mutability() == Mutability::Var;
                    let content = ty.content().clone();
                    globals.insert(name, ExportedGlobal { export, content, mutable });
                }
                ExternType::Table(ty) => {
                    let element = ValType::Ref(ty.element().clone());
                    tables.insert(name, ExportedTable { export, element });
                }
                ExternType::Memory(_) if &*name == "memory" => memories.insert(0, (name, export)),
                ExternType::Memory(_) => memories.push((name, export)),
                ExternType::Tag(_) => {}
            }
        }
        let mut imports: Vec<_> =
            module.imports().map(|import| import.ty().func().map(Signature::new)).collect();
        if module.imports().any(|import| import.module() == wasi::MODULE) {
            imports.extend(vec![Some(Signature::empty()); stdio::STREAMS]);
        }
        let pre = resolve_imports(&module)?;
        let custom_sections = custom_sections(binary);
        Ok(Compiled { module, functions, globals, tables, memories, imports, pre, custom_sections })
    }
}

/// None where an import is no function, or one name is imported twice with different types:
/// such modules are linked for each instance.
fn resolve_imports(module: &Module) -> wasmtime::Result<Option<InstancePre<Host>>> {
    let mut linker = Linker::new(module.engine());
    let mut seen: HashMap<(&str, &str), FuncType> = HashMap::new();
    for (index, import) in module.imports().enumerate() {
        let ExternType::Func(ty) = import.ty() else { return Ok(None) };
        let name = (import.module(), import.name());
        match seen.get(&name) {
            Some(earlier) if FuncType::eq(earlier, &ty) => continue,
            Some(_) => return Ok(None),
            None => {
                seen.insert(name, ty.clone());
            }
        }
        match Function::of(name.0, name.1) {
            Some(named) => {
                linker.func_new_async(name.0, name.1, ty, wasi::function(index, named))?
            }
            None => linker.func_new_async(name.0, name.1, ty, import::function(index))?,
        };
    }
    linker.instantiate_pre(module).map(Some)
}

/// The work is done on a thread; the dirty I/O scheduler only waits for it, and the dirty CPU
/// schedulers are left to guests.
#[rustler::nif(schedule = "DirtyIo")]
fn module_compile<'a>(env: Env<'a>, source: Binary<'a>, options: Vec<Atom>) -> Term<'a> {
    let options = Options {
        fuel: options.contains(&atoms::fuel()),
        deterministic: options.contains(&atoms::deterministic()),
    };
    let bytes = source.as_slice();
    let result = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("beamr-compile".into())
            .stack_size(COMPILER_STACK)
            .spawn_scoped(scope, || compile(bytes, options))
            .map_err(|error| CompileFault::System(error.to_string()))?
            .join()
            .unwrap_or_else(|_| Err(CompileFault::System("the compiler panicked".into())))
    });
    match result {
        Ok(compiled) => {
            let resource = ResourceArc::new(ModuleResource(Arc::new(compiled)));
            (atoms::ok(), resource).encode(env)
        }
        Err(fault) => (atoms::error(), fault.encode(env)).encode(env),
    }
}

enum CompileFault {
    NotUtf8 { offset: usize },
    Text { message: String, line: usize, column: usize },
    Component,
    Binary { kind: Atom, message: String, offset: Option<usize> },
    System(String),
}

impl CompileFault {
    /// `{reason, message, offset | nil, {line, column} | nil}`
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let text = |message: &str| error::text(env, message);
        let no_place: (Option<usize>, Option<usize>) = (None, None);
        match self {
            CompileFault::NotUtf8 { offset } => {
                (atoms::utf8(), text(""), Some(*offset), no_place).encode(env)
            }
            CompileFault::Text { message, line, column } => {
                (atoms::text(), text(message), None::<usize>, (line, column)).encode(env)
            }
            CompileFault::Component => {
                (atoms::component(), text(""), None::<usize>, no_place).encode(env)
            }
            CompileFault::Binary { kind, message, offset } => {
                (kind, text(message), offset, no_place).encode(env)
            }
            CompileFault::System(message) => {
                (atoms::system(), text(message), None::<usize>, no_place).encode(env)
            }
        }
    }
}

fn compile(source: &[u8], options: Options) -> Result<Compiled, CompileFault> {
    let binary = match source.starts_with(b"\0asm") {
        true => std::borrow::Cow::Borrowed(source),
        false => std::borrow::Cow::Owned(assemble(source)?),
    };
    if binary.get(4..8).is_some_and(|version| version[2..] == [1, 0]) {
        return Err(CompileFault::Component);
    }
    engine::get(options)
        .and_then(|engine| Module::from_binary(engine, &binary))
        .and_then(|module| Compiled::new(module, &binary))
        .map_err(|error| describe(&error))
}

fn assemble(source: &[u8]) -> Result<Vec<u8>, CompileFault> {
    let text = std::str::from_utf8(source)
        .map_err(|error| CompileFault::NotUtf8 { offset: error.valid_up_to() })?;
    wat::parse_str(text).map_err(|error| {
        // The first line is the message, the second "     --> <anon>:LINE:COLUMN".
        let full = error.to_string();
        let (message, rest) = full.split_once('\n').unwrap_or((&full, ""));
        let mut place = rest.lines().next().unwrap_or("").rsplit(':');
        let column = place.next().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        let line = place.next().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        CompileFault::Text { message: message.trim().into(), line, column }
    })
}

fn describe(error: &wasmtime::Error) -> CompileFault {
    let (message, offset) = split_place(error.root_cause().to_string());
    let kind = if message.contains("legacy_exceptions") || message.contains("legacy exceptions") {
        atoms::legacy_exceptions()
    } else if names_missing_feature(&message) {
        atoms::unsupported()
    } else {
        atoms::binary()
    };
    CompileFault::Binary { kind, message, offset }
}

/// The place stands before the message ("Invalid input WebAssembly code at offset 31: ...") or
/// behind it ("... (at offset 0x1f)").
fn split_place(message: String) -> (String, Option<usize>) {
    let before = message.split_once(" at offset ").and_then(|(_, rest)| {
        let (place, text) = rest.split_once(": ")?;
        Some((text.to_string(), place.parse().ok()?))
    });
    let behind = message.rsplit_once(" (at offset 0x").and_then(|(text, place)| {
        let place = usize::from_str_radix(place.strip_suffix(')')?, 16).ok()?;
        Some((text.to_string(), place))
    });
    match before.or(behind) {
        Some((text, place)) => (text, Some(place)),
        None => (message, None),
    }
}

/// wasmparser says of a proposal that is switched off that it "is not enabled", that its
/// "feature" or "proposal" is "required", or names a support that is missing.
fn names_missing_feature(message: &str) -> bool {
    [
        "not enabled",
        "must be enabled",
        "support is required",
        "proposal required",
        "not supported",
        "without the",
        "is disabled",
        "feature required",
        "requires the",
        "unsupported",
    ]
    .iter()
    .any(|phrase| message.contains(phrase))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn module_imports<'a>(env: Env<'a>, module: &'a ModuleResource) -> NifResult<Term<'a>> {
    let mut list = Vec::new();
    for import in module.0.module.imports() {
        let module = error::text(env, import.module());
        let name = error::text(env, import.name());
        list.push((module, name, extern_type(env, &import.ty())?));
    }
    Ok(list.encode(env))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn module_exports<'a>(env: Env<'a>, module: &'a ModuleResource) -> NifResult<Term<'a>> {
    let mut list = Vec::new();
    for export in module.0.module.exports() {
        list.push((error::text(env, export.name()), extern_type(env, &export.ty())?));
    }
    Ok(list.encode(env))
}

/// The custom sections of a valid module: id 0, the section's size, and the name in front of
/// its contents.
fn custom_sections(binary: &[u8]) -> Vec<(Box<str>, usize)> {
    let mut sections = Vec::new();
    let mut rest = binary.get(8..).unwrap_or_default();
    while let Some((&id, after)) = rest.split_first() {
        let Some((section, after)) = split_sized(after) else { break };
        if id == 0
            && let Some((name, contents)) = split_sized(section)
        {
            sections.push((String::from_utf8_lossy(name).into(), contents.len()));
        }
        rest = after;
    }
    sections
}

/// The bytes that a LEB128 length stands before, and those behind them.
fn split_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let last = bytes.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    let (length, rest) = bytes.split_at(last + 1);
    let length = length.iter().rev().fold(0u64, |n, byte| n << 7 | u64::from(byte & 0x7f));
    rest.split_at_checked(usize::try_from(length).ok()?)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn module_custom_sections<'a>(env: Env<'a>, module: &'a ModuleResource) -> Vec<Term<'a>> {
    let sections = module.0.custom_sections.iter();
    sections.map(|(name, size)| (error::text(env, name), size).encode(env)).collect()
}

#[rustler::nif]
fn module_name<'a>(env: Env<'a>, module: &'a ModuleResource) -> Option<Term<'a>> {
    module.0.module.name().map(|name| error::text(env, name))
}

/// `{kind, %{...}}`, in the form that `t:Beamr.Module.extern_type/0` documents.
fn extern_type<'a>(env: Env<'a>, ty: &ExternType) -> NifResult<Term<'a>> {
    let (kind, fields) = match ty {
        ExternType::Func(ty) => {
            let signature = Signature::new(ty);
            let fields = vec![
                (atoms::params(), value::type_names(&signature.params).encode(env)),
                (atoms::results(), value::type_names(&signature.results).encode(env)),
            ];
            (atoms::function(), fields)
        }
        ExternType::Memory(ty) => {
            let fields = vec![
                (atoms::minimum(), ty.minimum().encode(env)),
                (atoms::maximum(), ty.maximum().encode(env)),
                (atoms::index_type(), index_type(ty.is_64()).encode(env)),
                (atoms::page_size(), ty.page_size().encode(env)),
                (atoms::shared(), ty.is_shared().encode(env)),
            ];
            (atoms::memory(), fields)
        }
        ExternType::Global(ty) => {
            let fields = vec![
                (atoms::type_(), value::type_name(ty.content()).encode(env)),
                (atoms::mutable(), (ty.mutability() == Mutability::Var).encode(env)),
            ];
            (atoms::global(), fields)
        }
        ExternType::Table(ty) => {
            let fields = vec![
                (atoms::element(), value::reference_name(ty.element()).encode(env)),
                (atoms::minimum(), ty.minimum().encode(env)),
                (atoms::maximum(), ty.maximum().encode(env)),
                (atoms::index_type(), index_type(ty.is_64()).encode(env)),
            ];
            (atoms::table(), fields)
        }
        ExternType::Tag(ty) => {
            let params: Vec<Atom> = ty.ty().params().map(|ty| value::type_name(&ty)).collect();
            (atoms::tag(), vec![(atoms::params(), params.encode(env))])
        }
    };
    Ok((kind, Term::map_from_pairs(env, &fields)?).encode(env))
}

fn index_type(is_64: bool) -> Atom {
    if is_64 { atoms::i64() } else { atoms::i32() }
}
