//! What wasmtime's message about a module that it refuses says. `native/fuzz` includes this file.
//!
//! Invariant: names in a message, which are the module's own, decide nothing.

pub struct Diagnosis {
    pub kind: Kind,
    /// Without the place.
    pub message: String,
    /// The place in the module's bytes.
    pub offset: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LegacyExceptions,
    /// In need of what wasmtime does not have, or of a proposal that is not enabled.
    Unsupported,
    Invalid,
}

impl Diagnosis {
    pub fn of(message: String) -> Self {
        if let Some(message) = message.strip_prefix("Unsupported feature: ") {
            return Diagnosis { kind: Kind::Unsupported, message: message.into(), offset: None };
        }
        let (message, offset) = split_place(message);
        Diagnosis { kind: kind(&message), message, offset }
    }
}

/// The place stands before the message, in wasmtime's own, or behind it, in wasmparser's.
fn split_place(message: String) -> (String, Option<usize>) {
    let before = message.strip_prefix("Invalid input WebAssembly code at offset ");
    let before = before.and_then(|rest| {
        let (place, text) = rest.split_once(": ")?;
        Some((text.to_string(), place.parse().ok()?))
    });
    let behind = || {
        let (text, place) = message.rsplit_once(" (at offset 0x")?;
        let place = usize::from_str_radix(place.strip_suffix(')')?, 16).ok()?;
        Some((text.to_string(), place))
    };
    match before.or_else(behind) {
        Some((text, place)) => (text, Some(place)),
        None => (message, None),
    }
}

/// wasmparser says of a proposal that is switched off that it "is not enabled", that its
/// "feature" or "proposal" is "required", or names a support that is missing.
const MISSING: [&str; 10] = [
    "not enabled",
    "must be enabled",
    "support is required",
    "proposal required",
    "not supported",
    "without the",
    "is disabled",
    "feature required",
    "requires the",
    "unsupported",
];

fn kind(message: &str) -> Kind {
    // Names are in backquotes, and may have some in them.
    let (before, rest) = message.split_once('`').unwrap_or((message, ""));
    let behind = rest.rsplit_once('`').map_or(rest, |(_, behind)| behind);
    let says = |phrase| before.contains(phrase) || behind.contains(phrase);
    if says("legacy_exceptions") || says("legacy exceptions") {
        Kind::LegacyExceptions
    } else if MISSING.into_iter().any(says) {
        Kind::Unsupported
    } else {
        Kind::Invalid
    }
}
