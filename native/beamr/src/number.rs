//! The types of numbers in memory, and which integers they hold. `native/fuzz` includes this file.

/// A number as it lies in memory: little-endian, anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl Number {
    pub fn size(self) -> usize {
        match self {
            Number::I8 | Number::U8 => 1,
            Number::I16 | Number::U16 => 2,
            Number::I32 | Number::U32 | Number::F32 => 4,
            Number::I64 | Number::U64 | Number::F64 => 8,
        }
    }

    /// Whether this is a type of integers, and the integer is one of them.
    pub fn holds(self, n: i64) -> bool {
        let (low, high) = match self {
            Number::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
            Number::U8 => (0, i64::from(u8::MAX)),
            Number::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
            Number::U16 => (0, i64::from(u16::MAX)),
            Number::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
            Number::U32 => (0, i64::from(u32::MAX)),
            Number::I64 => (i64::MIN, i64::MAX),
            Number::U64 => (0, i64::MAX),
            Number::F32 | Number::F64 => return false,
        };
        (low..=high).contains(&n)
    }
}

/// A big integer modulo 2^64, from its external form: a tag, the number of bytes in its size (one
/// byte or four), the sign, and the bytes of its magnitude, lowest first.
pub fn low_bytes(external: &[u8]) -> [u8; 8] {
    const VERSION: usize = 1;
    const SMALL_BIG: u8 = 110;
    let sign = VERSION + if external[VERSION] == SMALL_BIG { 2 } else { 5 };
    let magnitude = external[sign + 1..].iter().take(8);
    let n = magnitude.rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    let n = if external[sign] == 0 { n } else { n.wrapping_neg() };
    n.to_le_bytes()
}
