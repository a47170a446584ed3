//! Bounds: ranges against arithmetic that cannot overflow, zeros against a search byte by byte.

#![no_main]

use std::num::NonZeroUsize;

use fuzz::bounds::{find_nul, range};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    offset: Option<u64>,
    length: Option<u64>,
    size: usize,
    chunk: NonZeroUsize,
    small_chunk: u8,
    bytes: &'a [u8],
}

fuzz_target!(|input: Input| {
    for size in [input.size, input.bytes.len()] {
        let wanted = input.offset.zip(input.length).and_then(|(offset, length)| {
            let end = u128::from(offset) + u128::from(length);
            (end <= size as u128).then_some((u128::from(offset), end))
        });
        let found = range(input.offset, input.length, size);
        assert_eq!(found.map(|range| (range.start as u128, range.end as u128)), wanted);
    }

    let wanted = input.bytes.iter().position(|byte| *byte == 0);
    for chunk in [input.chunk.get(), usize::from(input.small_chunk) + 1] {
        assert_eq!(find_nul(input.bytes, chunk), wanted);
    }
});
