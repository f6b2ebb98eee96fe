use super::*;

/// Fails unless `body` is refused with a message that contains `message`, at the token that begins with `at`.
#[track_caller]
fn refused(body: &str, at: &str, message: &str) {
    let head = "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32, xs: &[f32], n: u32) -> f32 ";
    let source = format!("{head}{{ {body} }}");
    signature_refused(FunctionKind::ScoreMod, &source, at, message);
}

#[track_caller]
fn signature_refused(kind: FunctionKind, source: &str, at: &str, message: &str) {
    let error = match DeviceFunction::from_source(kind, source) {
        Ok(function) => panic!("accepted: {source}\n{}", function.cuda()),
        Err(error) => error,
    };
    let text = error.to_string();
    assert!(text.contains(message), "{source}\nfound: {text}\nneeded: {message}");
    let start = error.span().start();
    let line = source.lines().nth(start.line - 1).unwrap_or_default();
    let found: String = line.chars().skip(start.column).collect();
    assert!(found.starts_with(at), "{source}\n{text}\nat: {found}\nneeded: {at}");
}

#[test]
fn what_rust_has_and_device_functions_lack() {
    let table = [
        ("for i in 0..3 {} score", "for", "loops are not supported"),
        ("while true {} score", "while", "loops are not supported"),
        ("loop { }", "loop", "closed form"),
        ("println!(\"x\"); score", "println", "macros are not supported"),
        ("vec![1.0][0]", "vec", "macros are not supported"),
        ("let f = |x: f32| x; score", "|x", "closures are not supported"),
        ("let mut x = score; x", "mut", "another `let`"),
        ("let x = score; x = 1.0; x", "= 1.0", "assignment is not supported"),
        ("score += 1.0; score", "+=", "assignment is not supported"),
        ("let (a, c) = (1, 2); score", "(a", "plain name"),
        ("let _ = 1; score", "_ =", "plain name"),
        ("let ref x = score; score", "ref", "plain name"),
        ("let x; score", "x;", "no value"),
        ("let x = score else { return 0.0 }; x", "else", "`let … else`"),
        ("match q { _ => score }", "match", "use `if` and `else`"),
        ("if let 1 = q { score } else { 0.0 }", "let 1", "`if let` is not supported"),
        ("unsafe { score }", "unsafe", "safe without it"),
        ("async { score }", "async", "`async` is not supported"),
        ("const { 1.0 }", "const", "`const` blocks"),
        ("'a: { score }", "'a", "labels are not supported"),
        ("return score; score", "return", "at the end of the function only"),
        ("if q > 0 { return score; } else { 0.0 }", "return", "at the end of the function only"),
        ("if q > 0 { return 1.0; } score", "return", "at the end of the function only"),
        ("if q > 0 { } score", "if", "no `else`"),
        ("const C: f32 = 1.0; C", "const", "items are not supported"),
        ("#[allow(unused)] let x = 1; score", "#", "attributes are not supported"),
        ("score; score", "score;", "no effect"),
        ("score;", "score;", "no effect"),
        ("let x = score;", ";", "ends in a `let`"),
        ("", "{", "no value"),
        ("&score", "&", "`&` is not supported"),
        ("*score", "*", "never references"),
        ("[1.0, 2.0][0]", "[1.0", "arrays are not supported"),
        ("(score, 1.0)", "(score", "tuples are not supported"),
        ("score.x", ".x", "fields are not supported"),
        ("score?", "?", "`?` is not supported"),
        ("(q << 1) as f32", "<<", "shifts are not supported"),
        ("score.mul_add(2.0, 1.0)", "mul_add", "the methods are `exp`"),
        ("sin(score)", "sin", "cannot call other functions"),
        ("std::f32::exp(score)", "std", "cannot call other functions"),
        ("f32::hypot(score, 1.0)", "hypot", "the methods are `exp`"),
        ("f32::TAU", "f32", "`f32::TAU` is not known"),
        ("LIMIT", "LIMIT", "pass anything else as a capture"),
        ("score + { let x = 1.0; x } + x", "x ", "`x` is not known"),
        ("\"text\"", "\"", "literal is not supported"),
    ];
    for (body, at, message) in table {
        refused(body, at, message);
    }
}

#[test]
fn types_that_do_not_agree() {
    let table = [
        ("score + q", "score", "found `f32` and `i32`: cast one of them with `as`"),
        ("score * 2", "score", "found `f32` and an integer: write the literal with a `.0`"),
        ("q + n", "q", "found `i32` and `u32`"),
        ("q", "q", "a score_mod returns `f32`, found `i32`"),
        ("if q { 1.0 } else { 2.0 }", "q", "the condition of `if` needs `bool`, found `i32`: compare"),
        ("if q > 0 { 1.0 } else { q }", "{ q", "the branches of `if` need one type"),
        ("if q && true { 1.0 } else { 2.0 }", "q", "`&&` needs `bool`"),
        ("xs[q]", "q", "an index needs `usize`, found `i32`: cast it with `as usize`"),
        ("xs", "xs", "`xs` is a slice"),
        ("xs.iter()", "iter", "index it, or use `len`"),
        ("score[0]", "score", "only a capture"),
        ("let x: i32 = score; score", "score;", "needs `i32`, found `f32`: cast it with `as i32`"),
        ("let x: f64 = 1.0; score", "f64", "`f64` is not a type of device functions"),
        ("q as f64", "f64", "`f64` is not a type of device functions"),
        ("1.0f64", "1.0f64", "`f64` is not a type of device functions"),
        ("1u8 as f32", "1u8", "`u8` is not a type"),
        ("(q > 0) as f32", "(q", "cannot be cast to `f32`: cast it to `i32` first"),
        ("if q as bool { 1.0 } else { 2.0 }", "q", "compare it with `!= 0`"),
        ("(-n) as f32", "-", "needs a signed number, found `u32`"),
        ("let x = -1; xs[x]", "1;", "-1 does not fit `usize`"),
        ("!score", "score", "`!` needs a `bool` or an integer"),
        ("score & 1.0", "score", "`&` needs bools or integers"),
        ("if true + false { 1.0 } else { 2.0 }", "true", "`+` needs numbers, found `bool`"),
        ("q.sqrt() as f32", "sqrt", "`sqrt` is a method of `f32`, found `i32`"),
        ("n.abs() as f32", "abs", "`abs` is a method of `f32`, `i32` and `i64`"),
        ("score.powi(2.0)", "2.0", "the argument of `powi` needs `i32`, found a float"),
        ("score.min(1)", "1", "write the literal with a `.0`"),
        ("score.min()", "min", "takes 2 value(s), receiver included, found 1"),
        ("f32::exp()", "exp", "takes 1 value(s), receiver included, found 0"),
        ("2.0.exp()", "2.0", "write a suffix"),
        ("(0.1 + 0.2) as i32 as f32", "0.1", "write the suffix"),
        ("2_147_483_648 as f32", "2_147", "2147483648 does not fit `i32`"),
        ("-1u32 as f32", "1u32", "-1 does not fit `u32`"),
        ("1e40", "1e40", "does not fit `f32`"),
        ("99999999999999999999 as f32", "999", "does not fit any integer type"),
    ];
    for (body, at, message) in table {
        refused(body, at, message);
    }
}

#[test]
fn signatures() {
    use FunctionKind::{MaskMod, ScoreMod};
    let table = [
        (
            MaskMod,
            "fn f(b: i32, h: i32, q: i32) -> bool { true }",
            "(b",
            "1 of these 4 parameters are missing",
        ),
        (
            MaskMod,
            "fn f(s: f32, b: i32, h: i32, q: i32) -> bool { true }",
            "f32",
            "parameter 1 of a mask_mod is `b",
        ),
        (ScoreMod, "fn f(s: f32, b: u32, h: i32, q: i32, kv: i32) -> f32 { s }", "u32", "is `b: i32`"),
        (MaskMod, "fn f(b: i32, h: i32, q: i32, kv: i32) -> f32 { 1.0 }", "f32", "a mask_mod returns `bool`"),
        (MaskMod, "fn f(b: i32, h: i32, q: i32, kv: i32) { }", "f(", "found `()`"),
        (
            MaskMod,
            "fn f(b: i32, h: i32, q: i32, kv: i32) -> bool { q }",
            "q }",
            "returns `bool`, found `i32`",
        ),
        (MaskMod, "fn f<T>(b: i32, h: i32, q: i32, kv: i32) -> bool { true }", "<T>", "generics are not"),
        (MaskMod, "async fn f(b: i32, h: i32, q: i32, kv: i32) -> bool { true }", "async", "`async` is not"),
        (
            MaskMod,
            "unsafe fn f(b: i32, h: i32, q: i32, kv: i32) -> bool { true }",
            "unsafe",
            "`unsafe` is not",
        ),
        (MaskMod, "extern \"C\" fn f(b: i32, h: i32, q: i32, kv: i32) -> bool { true }", "extern", "ABI"),
        (
            MaskMod,
            "fn f(&self, h: i32, q: i32, kv: i32) -> bool { true }",
            "&self",
            "`self` is not supported",
        ),
        (MaskMod, "fn f(b: i32, h: i32, q: i32, kv: i32, w: f64) -> bool { true }", "f64", "`f64` cannot be"),
        (
            MaskMod,
            "fn f(b: i32, h: i32, q: i32, kv: i32, w: &[u8]) -> bool { true }",
            "&[u8]",
            "`&[u8]` cannot be",
        ),
        (
            MaskMod,
            "fn f(b: i32, h: i32, q: i32, kv: i32, w: Vec<i32>) -> bool { true }",
            "Vec",
            "a capture is `f32`",
        ),
        (
            MaskMod,
            "fn f(b: i32, h: i32, q: i32, kv: i32, w: &mut [i32]) -> bool { true }",
            "&mut",
            "cannot be captured",
        ),
        (
            MaskMod,
            "fn f((b, h): (i32, i32), q: i32, kv: i32) -> bool { true }",
            "(b",
            "patterns are not supported",
        ),
        (MaskMod, "fn f(_: i32, h: i32, q: i32, kv: i32) -> bool { true }", "_", "plain name"),
        (
            MaskMod,
            "fn f(b: i32, h: i32, q: i32, kv: i32, q: i32) -> bool { true }",
            "q: i32)",
            "appears twice",
        ),
        (
            MaskMod,
            "fn f(b: i32, mut h: i32, q: i32, kv: i32) -> bool { true }",
            "mut",
            "`mut` is not supported",
        ),
        (MaskMod, "struct F;", "struct", "expected"),
    ];
    for (kind, source, at, message) in table {
        signature_refused(kind, source, at, message);
    }
}

#[test]
fn deep_nesting_is_refused_and_long_sums_are_not_too_deep_for_the_stack() {
    let sum = |terms: usize| vec!["score"; terms].join(" + ");
    let head = "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32";
    assert!(
        DeviceFunction::from_source(FunctionKind::ScoreMod, &format!("{head} {{ {} }}", sum(99))).is_ok()
    );
    let source = format!("{head} {{ {} }}", sum(500));
    signature_refused(FunctionKind::ScoreMod, &source, "", "name a part of this one with `let`");
    let (open, close) = ("(".repeat(32_000), ")".repeat(32_000));
    let brackets = format!("{head} {{ {open}score{close} }}");
    signature_refused(FunctionKind::ScoreMod, &brackets, "", "brackets may nest");
    signature_refused(FunctionKind::ScoreMod, &format!("{head} {{ {open} }}"), "", "no partner");
    signature_refused(
        FunctionKind::ScoreMod,
        &format!("{head} {{ {open}{open}{open} }}"),
        "",
        "at most 65536",
    );
}
