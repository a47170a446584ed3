//! Artifacts: what is written is read, what has changed since is refused, and what is read is
//! what would have been written.

#![no_main]

use fuzz::framing::{self, Body, MAGIC, VERSION};
use fuzz::sections::CustomSections;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    options: u8,
    sections: CustomSections,
    image: &'a [u8],
    /// Which byte is changed, which bits of it, and how many bytes are left.
    at: usize,
    bits: u8,
    left: usize,
    /// Anything.
    bytes: &'a [u8],
}

fuzz_target!(|input: Input| {
    let artifact = framing::write(input.options, &input.sections, input.image);
    let Ok(Body { options, sections, image }) = framing::read(&artifact) else {
        panic!("what was written is refused")
    };
    assert_eq!((options, &sections, image), (input.options, &input.sections, input.image));

    let mut changed = artifact.clone();
    changed[input.at % artifact.len()] ^= input.bits.max(1);
    assert!(framing::read(&changed).is_err());
    assert!(framing::read(&artifact[..input.left % artifact.len()]).is_err());
    if !input.bytes.is_empty() {
        assert!(framing::read(&[&artifact, input.bytes].concat()).is_err());
    }

    assert!(framing::read(input.bytes).is_err());
    let head = forged(&[]).len();
    for body in [input.bytes, &changed[head..]] {
        let forged = forged(body);
        if let Ok(Body { options, sections, image }) = framing::read(&forged) {
            assert_eq!(framing::write(options, &sections, image), forged);
        }
    }
});

/// An artifact whose hash is right, whatever follows it.
fn forged(body: &[u8]) -> Vec<u8> {
    let length = [u8::try_from(VERSION.len()).unwrap()];
    [MAGIC, &length, VERSION.as_bytes(), &Sha256::digest(body), body].concat()
}
