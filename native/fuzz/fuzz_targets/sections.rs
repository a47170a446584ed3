//! Custom sections and data: against wasmparser, wherever that finds nothing wrong.

#![no_main]

use fuzz::sections::{CustomSections, custom_sections, data_size};
use libfuzzer_sys::fuzz_target;
use wasmparser::{Parser, Payload};

fuzz_target!(|bytes: &[u8]| {
    custom_sections(bytes);
    data_size(bytes);
    let module = [b"\0asm\x01\0\0\0", bytes].concat();
    let found = (custom_sections(&module), data_size(&module));
    if let Ok(parsed) = parsed(&module) {
        assert_eq!(found, parsed);
    }
});

fn parsed(module: &[u8]) -> wasmparser::Result<(CustomSections, usize)> {
    let (mut sections, mut data) = (Vec::new(), 0);
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::CustomSection(section) => {
                sections.push((section.name().into(), section.data().len()));
            }
            Payload::DataSection(section) => data += section.range().len(),
            _ => {}
        }
    }
    Ok((sections, data))
}
