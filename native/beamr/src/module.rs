//! Compiled modules: compilation, and what a module imports and exports.
//!
//! A module is immutable and shared by every process. Its function imports are resolved here,
//! once: they all lead to [`import::run`], which asks the calling process by index, so one
//! [`InstancePre`] serves every instance whatever Elixir functions stand behind its imports.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustler::{Atom, Binary, Encoder, Env, NifResult, Resource, ResourceArc, Term};
use wasmtime::{
    ExternType, FuncType, GlobalType, InstancePre, Linker, Module, ModuleExport, Mutability,
    RefType, TableType, ValType,
};

use crate::common::{self, Import};
use crate::count::{self, Live};
use crate::diagnosis::{Diagnosis, Kind};
use crate::engine::{self, Memory, Options};
use crate::list::List;
use crate::sections::{CustomSections, custom_sections, data_size};
use crate::store::Host;
use crate::value::{self, Signature};
use crate::wasi::{self, Function};
use crate::{artifact, atoms, error, import, stdio};

const HEAVY_IMAGE: usize = 4 * 1024 * 1024;

/// Where all the data there is may have to be copied.
const HEAVY_COPY: usize = 512 * 1024;

/// Compilation needs a deeper stack than a dirty scheduler has.
const COMPILER_STACK: usize = 16 * 1024 * 1024;

pub struct Compiled {
    pub module: Module,
    pub options: Options,
    pub functions: Vec<ExportedFunction>,
    /// The places of the functions in `functions`, by export name. Looked up in every call.
    pub function_names: HashMap<Box<[u8]>, usize, foldhash::fast::RandomState>,
    /// Globals and tables by export name, or by the name of an import where none is exported
    /// under it.
    pub globals: HashMap<Box<str>, GlobalPlace>,
    pub tables: HashMap<Box<str>, TablePlace>,
    /// Memories by their names, exported ones before those that are imported only; the first is
    /// the one that is meant where none is named.
    pub memories: Vec<(Box<str>, Place)>,
    /// Signatures of imported functions by import index; other kinds of import have none. Behind
    /// them come those of the standard streams, where anything is imported from WASI.
    pub imports: Vec<Option<Signature>>,
    /// The imports that are no functions, in their order.
    pub items: Vec<ImportedItem>,
    pub pre: Option<InstancePre<Host>>,
    /// The imported functions, each under no module and its index, where there is no `pre`.
    pub host_functions: Option<Linker<Host>>,
    pub custom_sections: CustomSections,
    _live: Live<{ count::MODULE }>,
}

/// Where an instance's memory, global or table is found.
#[derive(Clone, Copy)]
pub enum Place {
    Export(ModuleExport),
    /// In [`Host::imported`].
    Import(usize),
}

pub struct ImportedItem {
    pub ty: ExternType,
    /// The first import of its name, where the two are one and the same thing.
    pub same_as: Option<usize>,
}

pub struct ExportedFunction {
    pub export: ModuleExport,
    pub signature: Signature,
}

pub struct GlobalPlace {
    pub place: Place,
    pub content: ValType,
    pub mutable: bool,
}

impl GlobalPlace {
    fn new(place: Place, ty: &GlobalType) -> Self {
        let mutable = ty.mutability() == Mutability::Var;
        GlobalPlace { place, content: ty.content().clone(), mutable }
    }
}

pub struct TablePlace {
    pub place: Place,
    pub element: ValType,
}

impl TablePlace {
    fn new(place: Place, ty: &TableType) -> Self {
        TablePlace { place, element: ValType::Ref(ty.element().clone()) }
    }
}

pub struct ModuleResource(pub Arc<Compiled>);

#[rustler::resource_impl]
impl Resource for ModuleResource {}

impl Compiled {
    /// Whether making an instance takes longer than a normal scheduler should be held: there may
    /// be megabytes of data to be copied.
    pub fn is_heavy(&self) -> bool {
        let image = self.module.image_range();
        let heavy = if self.options.memory == Memory::Compact { HEAVY_COPY } else { HEAVY_IMAGE };
        image.end as usize - image.start as usize > heavy
    }

    pub fn new(
        module: Module,
        options: Options,
        custom_sections: CustomSections,
    ) -> wasmtime::Result<Self> {
        let mut functions = Vec::new();
        let mut function_names = HashMap::default();
        let mut globals = HashMap::new();
        let mut tables = HashMap::new();
        let mut memories = Vec::new();
        for exported in module.exports() {
            let name: Box<str> = exported.name().into();
            let Some(export) = module.get_export_index(&name) else { continue };
            let place = Place::Export(export);
            match exported.ty() {
                ExternType::Func(ty) => {
                    let signature = Signature::new(&ty);
                    function_names.insert(name.into(), functions.len());
                    functions.push(ExportedFunction { export, signature });
                }
                ExternType::Global(ty) => {
                    globals.insert(name, GlobalPlace::new(place, &ty));
                }
                ExternType::Table(ty) => {
                    tables.insert(name, TablePlace::new(place, &ty));
                }
                ExternType::Memory(_) => add_memory(&mut memories, name, place),
                ExternType::Tag(_) => {}
            }
        }
        let mut imported_memories = Vec::new();
        for (index, import) in module.imports().enumerate() {
            let name: Box<str> = import.name().into();
            let place = Place::Import(index);
            match import.ty() {
                ExternType::Global(ty) => {
                    globals.entry(name).or_insert_with(|| GlobalPlace::new(place, &ty));
                }
                ExternType::Table(ty) => {
                    tables.entry(name).or_insert_with(|| TablePlace::new(place, &ty));
                }
                ExternType::Memory(_) if !is_known(&memories, &name) => {
                    add_memory(&mut imported_memories, name, place);
                }
                _ => {}
            }
        }
        memories.append(&mut imported_memories);
        let mut imports: Vec<_> =
            module.imports().map(|import| import.ty().func().map(Signature::new)).collect();
        if module.imports().any(|import| import.module() == wasi::MODULE) {
            imports.extend(vec![Some(Signature::empty()); stdio::STREAMS]);
        }
        let items = imported_items(&module);
        let pre = resolve_imports(&module)?;
        let host_functions = match pre {
            Some(_) => None,
            None => Some(host_functions(&module)?),
        };
        Ok(Compiled {
            module,
            options,
            functions,
            function_names,
            globals,
            tables,
            memories,
            imports,
            items,
            pre,
            host_functions,
            custom_sections,
            _live: Live::new(),
        })
    }
}

fn is_known(memories: &[(Box<str>, Place)], name: &str) -> bool {
    memories.iter().any(|(known, _)| &**known == name)
}

/// The one named "memory" is put first. Of several imports of one name the first counts.
fn add_memory(memories: &mut Vec<(Box<str>, Place)>, name: Box<str>, place: Place) {
    if is_known(memories, &name) {
        return;
    }
    let at = if &*name == "memory" { 0 } else { memories.len() };
    memories.insert(at, (name, place));
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
        let wasi = Function::of(name.0, name.1);
        define(&mut linker, &Import { module: name.0, name: name.1, index }, ty, wasi)?;
    }
    linker.instantiate_pre(module).map(Some)
}

fn imported_items(module: &Module) -> Vec<ImportedItem> {
    let mut first: HashMap<(&str, &str), (usize, ExternType)> = HashMap::new();
    let mut items = Vec::new();
    for (index, import) in module.imports().enumerate() {
        let ty = import.ty();
        if ty.func().is_none() {
            let (first, first_ty) = first
                .entry((import.module(), import.name()))
                .or_insert_with(|| (index, ty.clone()));
            let same_as = (*first < index && is_same(first_ty, &ty)).then_some(*first);
            items.push(ImportedItem { ty, same_as });
        }
    }
    items
}

/// Whether two imports can be one thing; whether its limits satisfy both is another question.
fn is_same(one: &ExternType, other: &ExternType) -> bool {
    match (one, other) {
        (ExternType::Memory(one), ExternType::Memory(other)) => {
            one.is_64() == other.is_64() && one.page_size() == other.page_size()
        }
        (ExternType::Table(one), ExternType::Table(other)) => {
            one.is_64() == other.is_64() && RefType::eq(one.element(), other.element())
        }
        (ExternType::Global(one), ExternType::Global(other)) => {
            one.mutability() == other.mutability() && ValType::eq(one.content(), other.content())
        }
        _ => false,
    }
}

fn host_functions(module: &Module) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(module.engine());
    for (index, import) in module.imports().enumerate() {
        if let ExternType::Func(ty) = import.ty() {
            let wasi = Function::of(import.module(), import.name());
            let name = index.to_string();
            define(&mut linker, &Import { module: "", name: &name, index }, ty, wasi)?;
        }
    }
    Ok(linker)
}

fn define(
    linker: &mut Linker<Host>,
    import: &Import,
    ty: FuncType,
    wasi: Option<Function>,
) -> wasmtime::Result<()> {
    let Import { module, name, index } = *import;
    if let Some(function) = wasi {
        linker.func_new_async(module, name, ty, wasi::function(index, function))?;
    } else if !common::define(linker, import, &ty)? {
        linker.func_new_async(module, name, ty, import::function(index))?;
    }
    Ok(())
}

/// With a `cache`, the path of a folder, what is found there is not compiled again.
#[rustler::nif(schedule = "DirtyIo")]
fn module_compile<'a>(
    env: Env<'a>,
    source: Binary<'a>,
    options: List<Atom>,
    cache: Option<Binary<'a>>,
) -> Term<'a> {
    let options = Options::of(&options.0);
    let bytes = source.as_slice();
    let cache = cache.as_ref().map(|path| Path::new(OsStr::from_bytes(path.as_slice())));
    let compiled = on_compiler_thread(|| match cache {
        Some(folder) => artifact::cached(folder, bytes, options),
        None => compile(bytes, options),
    });
    match compiled {
        Ok(compiled) => (atoms::ok(), to_resource(compiled)).encode(env),
        Err(fault) => (atoms::error(), fault.encode(env)).encode(env),
    }
}

pub fn to_resource(compiled: Compiled) -> ResourceArc<ModuleResource> {
    ResourceArc::new(ModuleResource(Arc::new(compiled)))
}

/// The work is done on a thread; the dirty I/O scheduler only waits for it, and the dirty CPU
/// schedulers are left to guests.
pub fn on_compiler_thread<T: Send>(
    work: impl FnOnce() -> Result<T, CompileFault> + Send,
) -> Result<T, CompileFault> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("beamr-compile".into())
            .stack_size(COMPILER_STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| CompileFault::System(error.to_string()))?
            .join()
            .unwrap_or_else(|_| Err(CompileFault::System("the compiler panicked".into())))
    })
}

pub enum CompileFault {
    NotUtf8 {
        offset: usize,
    },
    Text {
        message: String,
        line: usize,
        column: usize,
    },
    Component,
    Binary {
        kind: Atom,
        message: String,
        offset: Option<usize>,
    },
    /// No artifact, or one that has changed since it was written.
    Damaged,
    /// An artifact that was written for another engine than this one.
    Incompatible(String),
    System(String),
}

impl CompileFault {
    /// `{reason, message, offset | nil, {line, column} | nil}`
    pub fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
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
            CompileFault::Damaged => {
                (atoms::damaged(), text(""), None::<usize>, no_place).encode(env)
            }
            CompileFault::Incompatible(message) => {
                (atoms::incompatible(), text(message), None::<usize>, no_place).encode(env)
            }
            CompileFault::System(message) => {
                (atoms::system(), text(message), None::<usize>, no_place).encode(env)
            }
        }
    }
}

pub fn compile(source: &[u8], options: Options) -> Result<Compiled, CompileFault> {
    let binary = match source.starts_with(b"\0asm") {
        true => std::borrow::Cow::Borrowed(source),
        false => std::borrow::Cow::Owned(assemble(source)?),
    };
    if binary.get(4..8).is_some_and(|version| version[2..] == [1, 0]) {
        return Err(CompileFault::Component);
    }
    let options = options.with_data(data_size(&binary));
    engine::get(options)
        .and_then(|engine| Module::from_binary(engine, &binary))
        .and_then(|module| Compiled::new(module, options, custom_sections(&binary)))
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
    let Diagnosis { kind, message, offset } = Diagnosis::of(error.root_cause().to_string());
    let kind = match kind {
        Kind::LegacyExceptions => atoms::legacy_exceptions(),
        Kind::Unsupported => atoms::unsupported(),
        Kind::Invalid => atoms::binary(),
    };
    CompileFault::Binary { kind, message, offset }
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
