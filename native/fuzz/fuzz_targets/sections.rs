//! Custom sections: against wasmparser, wherever that finds nothing wrong.

#![no_main]

use fuzz::sections::{CustomSections, custom_sections};
use libfuzzer_sys::fuzz_target;
use wasmparser::{Parser, Payload};

fuzz_target!(|bytes: &[u8]| {
    custom_sections(bytes);
    let module = [b"\0asm\x01\0\0\0", bytes].concat();
    let sections = custom_sections(&module);
    if let Ok(parsed) = parsed(&module) {
        assert_eq!(sections, parsed);
    }
});

fn parsed(module: &[u8]) -> wasmparser::Result<CustomSections> {
    let mut sections = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::CustomSection(section) = payload? {
            sections.push((section.name().into(), section.data().len()));
        }
    }
    Ok(sections)
}
