//! Text: against the decoder that the WHATWG describes, and against Rust's own.

#![no_main]

use fuzz::text::{Text, complete};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let decoded = Decoded::of(bytes);
    match Text::of(bytes, false) {
        Ok(text) => {
            assert_eq!(decoded.first_bad, None);
            assert_eq!(copied(&text), bytes);
        }
        Err(error) => assert_eq!(decoded.first_bad, Some(error.valid_up_to())),
    }
    let replaced = copied(&Text::of(bytes, true).unwrap());
    assert_eq!(replaced, decoded.text.as_bytes());
    assert_eq!(replaced, String::from_utf8_lossy(bytes).as_bytes());
    assert_eq!(complete(bytes), decoded.complete);
});

fn copied(text: &Text) -> Vec<u8> {
    let mut target = vec![0; text.length()];
    text.copy_to(&mut target);
    target
}

struct Decoded {
    text: String,
    first_bad: Option<usize>,
    /// Where the character begins that has not ended.
    complete: usize,
}

impl Decoded {
    /// The algorithm "UTF-8 decoder" of the WHATWG's Encoding Standard, byte by byte.
    fn of(bytes: &[u8]) -> Self {
        let mut text = String::new();
        let mut first_bad = None;
        let (mut point, mut needed, mut start) = (0, 0, 0);
        let (mut lower, mut upper) = (0x80, 0xbf);
        let mut bad = |text: &mut String, at| {
            text.push('\u{FFFD}');
            first_bad.get_or_insert(at);
        };
        for (at, byte) in bytes.iter().copied().enumerate() {
            if needed > 0 {
                if (lower..=upper).contains(&byte) {
                    point = point << 6 | u32::from(byte & 0x3f);
                    needed -= 1;
                    if needed == 0 {
                        text.push(char::from_u32(point).unwrap());
                    }
                    (lower, upper) = (0x80, 0xbf);
                    continue;
                }
                // The byte is looked at once more, as the first of a character.
                bad(&mut text, start);
                (lower, upper) = (0x80, 0xbf);
            }
            start = at;
            (point, needed) = match byte {
                0..=0x7f => {
                    text.push(char::from(byte));
                    (0, 0)
                }
                0xc2..=0xdf => (u32::from(byte & 0x1f), 1),
                0xe0..=0xef => (u32::from(byte & 0xf), 2),
                0xf0..=0xf4 => (u32::from(byte & 0x7), 3),
                _ => {
                    bad(&mut text, at);
                    (0, 0)
                }
            };
            match byte {
                0xe0 => lower = 0xa0,
                0xed => upper = 0x9f,
                0xf0 => lower = 0x90,
                0xf4 => upper = 0x8f,
                _ => {}
            }
        }
        if needed > 0 {
            bad(&mut text, start);
        }
        Decoded { text, first_bad, complete: if needed > 0 { start } else { bytes.len() } }
    }
}
