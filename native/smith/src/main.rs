//! Random valid modules for test/hostile. `smith FIRST COUNT` writes the modules with the numbers
//! FIRST, FIRST + 1, … to the standard output, each behind its length (four bytes, the highest
//! first); COUNT of 0 stands for no end. A number always gives the same module.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use arbitrary::{Arbitrary, Unstructured};
use wasm_smith::{Config, Module};

/// How many loop iterations and calls a module may do, in all, where it is made to end.
const STEPS: u32 = 100_000;

/// A module that has nothing.
const EMPTY: &[u8] = b"\0asm\x01\0\0\0";

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let [first, count] = numbers[..] else {
        eprintln!("usage: smith FIRST COUNT");
        return ExitCode::FAILURE;
    };
    let last = if count == 0 { u64::MAX } else { first.saturating_add(count) };
    let mut out = BufWriter::new(io::stdout().lock());
    // Whoever reads has enough when the pipe breaks.
    for number in first..last {
        let module = module(number);
        let length = (module.len() as u32).to_be_bytes();
        if out.write_all(&length).and_then(|()| out.write_all(&module)).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

fn module(number: u64) -> Vec<u8> {
    let mut random = SplitMix(number);
    let size = 64 << (random.next() % 8);
    let bytes: Vec<u8> = (0..size).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut unstructured = Unstructured::new(&bytes);
    let config = config(&mut random, &mut unstructured);
    match Module::new(config, &mut unstructured) {
        Ok(mut module) => {
            // One in four may run for ever. A module without room for a counter stays as it is.
            if !random.next().is_multiple_of(4) {
                let _ = module.ensure_termination(STEPS);
            }
            module.to_bytes()
        }
        Err(_) => EMPTY.to_vec(),
    }
}

/// What Beamr's engine takes: WebAssembly 3.0. Sizes are such that a module compiles in
/// milliseconds and that few are refused for what they ask.
fn config(random: &mut SplitMix, unstructured: &mut Unstructured) -> Config {
    let mut config = Config::arbitrary(unstructured).unwrap_or_default();
    config.allow_invalid_funcs = false;
    config.threads_enabled = false;
    config.shared_everything_threads_enabled = false;
    config.custom_descriptors_enabled = false;
    config.custom_page_sizes_enabled = false;
    config.wide_arithmetic_enabled = false;
    config.disallow_traps = false;
    config.export_everything = !random.next().is_multiple_of(4);
    config.min_funcs = 1 + (random.next() % 4) as usize;
    config.max_funcs = 16;
    config.max_instructions = 200;
    config.max_imports = 12;
    config.min_imports = 0;
    config.min_memories = (random.next() % 2) as u32;
    config.max_memories = 4;
    config.max_memory32_bytes = 1 << 24;
    config.max_memory64_bytes = 1 << 24;
    config.max_tables = 4;
    config.max_table_elements = 10_000;
    config
}

struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
