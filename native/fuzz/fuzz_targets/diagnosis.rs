//! Messages about modules that are refused: against what wasmparser's own errors hold, on any
//! bytes and on modules whose names are any text.

#![no_main]

use fuzz::diagnosis::{Diagnosis, Kind};
use libfuzzer_sys::fuzz_target;
use wasmparser::Validator;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    Diagnosis::of(text.to_string());
    let diagnosis = Diagnosis::of(format!("Unsupported feature: {text}"));
    assert_eq!((diagnosis.kind, &*diagnosis.message), (Kind::Unsupported, &*text));
    validate(&[HEADER, bytes].concat());
    if let Ok(name) = std::str::from_utf8(bytes) {
        let place_before = format!("{name} at offset 7: {name}");
        let place_behind = format!("{name} (at offset 0x7)");
        let feature = format!("` unsupported `{name}` legacy exceptions `");
        for name in [name, &place_before, &place_behind, &feature] {
            assert_eq!(validate(&exports_twice(name)), Some(Kind::Invalid));
        }
    }
});

/// The kind of what wasmparser has against the module, if anything.
fn validate(module: &[u8]) -> Option<Kind> {
    let error = Validator::new().validate_all(module).err()?;
    let (message, offset) = (error.message(), error.offset());
    let wasmtime_s = format!("Invalid input WebAssembly code at offset {offset}: {message}");
    let [parser_s, wasmtime_s] = [error.to_string(), wasmtime_s].map(Diagnosis::of);
    for diagnosis in [&parser_s, &wasmtime_s] {
        assert_eq!(diagnosis.message, message);
        assert_eq!(diagnosis.offset, Some(offset));
    }
    assert_eq!(parser_s.kind, wasmtime_s.kind);
    Some(parser_s.kind)
}

const HEADER: &[u8] = b"\0asm\x01\0\0\0";

/// A module with a global and two exports of it, both of this name.
fn exports_twice(name: &str) -> Vec<u8> {
    const GLOBAL: &[u8] = b"\x06\x06\x01\x7f\0\x41\0\x0b";
    let export = [&length(name.len())[..], name.as_bytes(), b"\x03\0"].concat();
    let exports = [b"\x02", &export[..], &export[..]].concat();
    [HEADER, GLOBAL, b"\x07", &length(exports.len()), &exports].concat()
}

/// In LEB128, of five bytes.
fn length(length: usize) -> [u8; 5] {
    let byte = |n: u32| (length >> (7 * n)) as u8 & 0x7f | if n < 4 { 0x80 } else { 0 };
    [0, 1, 2, 3, 4].map(byte)
}
