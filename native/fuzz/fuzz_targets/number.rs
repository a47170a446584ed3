//! Integers: a type holds those that come back from their bytes; of big ones, the low bytes are
//! those of the two's complement.

#![no_main]

use fuzz::number::{Number, low_bytes};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    n: i64,
    is_negative: bool,
    magnitude: &'a [u8],
}

fuzz_target!(|input: Input| {
    let bytes = input.n.to_le_bytes();
    for (number, read) in TYPES {
        let read = read(&bytes[..number.size()]);
        assert_eq!(number.holds(input.n), read == i128::from(input.n), "{number:?}");
    }
    for number in [Number::F32, Number::F64] {
        assert!(!number.holds(input.n));
    }

    let mut low = [0; 8];
    let length = input.magnitude.len().min(8);
    low[..length].copy_from_slice(&input.magnitude[..length]);
    let n = i128::from(u64::from_le_bytes(low));
    let n = if input.is_negative { -n } else { n };
    let wanted = n.rem_euclid(1 << 64) as u64;
    for external in external(input.is_negative, input.magnitude) {
        assert_eq!(low_bytes(&external), wanted.to_le_bytes());
    }
});

macro_rules! read {
    ($ty:ty) => {
        |bytes| <$ty>::from_le_bytes(bytes.try_into().unwrap()).into()
    };
}

/// Reads a number from as many bytes as it has.
type Read = fn(&[u8]) -> i128;

const TYPES: [(Number, Read); 8] = [
    (Number::I8, read!(i8)),
    (Number::U8, read!(u8)),
    (Number::I16, read!(i16)),
    (Number::U16, read!(u16)),
    (Number::I32, read!(i32)),
    (Number::U32, read!(u32)),
    (Number::I64, read!(i64)),
    (Number::U64, read!(u64)),
];

/// The integer as SMALL_BIG_EXT, if it is small enough, and as LARGE_BIG_EXT.
fn external(is_negative: bool, magnitude: &[u8]) -> Vec<Vec<u8>> {
    let sign = u8::from(is_negative);
    let small = u8::try_from(magnitude.len()).ok().map(|length| vec![131, 110, length, sign]);
    let length = (magnitude.len() as u32).to_be_bytes();
    let large = [&[131, 111][..], &length, &[sign]].concat();
    small.into_iter().chain([large]).map(|head| [&head, magnitude].concat()).collect()
}
