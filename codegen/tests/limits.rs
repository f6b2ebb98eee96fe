//! Texts that are too large or too deep: each is an error, on small stacks too, and in no time.

use std::time::{Duration, Instant};
use tilewright_codegen::dsl::Kernel;
use tilewright_codegen::lower::{DeviceFunction, FunctionKind};

/// What a thread of a pool or of a runtime may have.
const STACKS: [usize; 2] = [512 << 10, 2 << 20];

/// Runs `work` on threads with small stacks.
fn on_small_stacks(work: impl Fn() + Copy + Send + 'static) {
    for size in STACKS {
        std::thread::Builder::new().stack_size(size).spawn(work).unwrap().join().unwrap();
    }
}

/// An expression that nests so deep.
type Nested = fn(usize) -> String;

/// Expressions that nest by tokens of their own, `n` deep, with nothing that a limit of their brackets would find.
const NESTING: &[(&str, Nested)] = &[
    ("generics", |n| format!("score as {}", "A<".repeat(n))),
    ("generics with commas", |n| format!("score as {}", "A<B, ".repeat(n))),
    ("closures", |n| "|| ".repeat(n) + "score"),
    ("closures of two", |n| "|a, b| ".repeat(n) + "score"),
    ("returns", |n| "return ".repeat(n) + "score"),
    ("breaks", |n| "break ".repeat(n) + "score"),
    ("minuses", |n| "-".repeat(n) + "score"),
    ("nots", |n| "!".repeat(n) + "score"),
    ("references", |n| "& ".repeat(n) + "score"),
    ("reference types", |n| format!("score as {}f32", "&".repeat(n))),
    ("pointer types", |n| format!("score as {}f32", "*const ".repeat(n))),
    ("function types", |n| format!("score as {}f32", "fn() -> ".repeat(n))),
    ("sums", |n| "score + ".repeat(n) + "score"),
    ("assignments", |n| "score = ".repeat(n) + "score"),
    ("powers", |n| format!("score{}", ".powi(2)".repeat(n))),
    ("calls", |n| format!("score{}", "()".repeat(n))),
    ("indices", |n| format!("score{}", "[0]".repeat(n))),
    ("question marks", |n| format!("score{}", "?".repeat(n))),
    ("casts", |n| format!("score{}", " as f32".repeat(n))),
    ("branches", |n| format!("{}{{ score }}", "if score > 1.0 { score } else ".repeat(n))),
    ("branches that differ", |n| {
        let branch = |at| format!("if score > {at}.0 {{ score * {at}.5 }} else ");
        (0..n).map(branch).collect::<String>() + "{ score }"
    }),
    ("branches with `let`", |n| {
        "if score > 1.0 { let x = score * score; x.sin() } else ".repeat(n) + "{ score }"
    }),
    ("`let` in branches", |n| {
        "if score > 1.0 { let x = ".repeat(n) + "score" + &"; x.exp() * x } else { score }".repeat(n)
    }),
    ("ranges", |n| "..".repeat(n) + "score"),
    ("blocks", |n| format!("{}score{}", "{ ".repeat(n), " }".repeat(n))),
    ("parentheses", |n| format!("{}score{}", "(".repeat(n), ")".repeat(n))),
    ("comparisons", |n| "score == ".repeat(n) + "score"),
    ("patterns", |n| format!("{{ let {}x = score; x }}", "&".repeat(n))),
    ("macros", |n| "m! { ".repeat(n) + &"}".repeat(n)),
];

#[test]
fn device_functions_too_deep_are_an_error() {
    for (what, nested) in NESTING {
        for n in [45, 90, 400, 900, 1900, 2100, 6300, 20_000] {
            let text =
                format!("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ {} }}", nested(n));
            on_small_stacks({
                let (text, what) = (text.leak() as &str, *what);
                move || {
                    let start = Instant::now();
                    match DeviceFunction::from_source(FunctionKind::ScoreMod, text) {
                        Ok(function) => {
                            assert!(n < 100, "{n} {what} are accepted");
                            assert!(function.cuda_with_gradient().len() > 100);
                            let at = |score| function.eval(score, 0, 0, 0, 0, &[]).unwrap();
                            assert!(at(0.5).as_f32().is_some());
                            function.gradient(0.5, 0, 0, 0, 0, &[]).unwrap();
                        }
                        Err(error) => assert!(!error.to_string().is_empty()),
                    }
                    assert!(start.elapsed() < Duration::from_secs(20), "{n} {what}: {:?}", start.elapsed());
                }
            });
        }
    }
}

/// Expressions of declarations that nest.
const EXPRESSIONS: &[(&str, Nested)] = &[
    ("sums", |n| "n + ".repeat(n) + "n"),
    ("parentheses", |n| format!("{}n{}", "(".repeat(n), ")".repeat(n))),
    ("branches", |n| format!("{}{{ n }}", "if n > 1 { n } else ".repeat(n))),
    ("calls", |n| format!("{}n{}", "min(n, ".repeat(n), ")".repeat(n))),
    ("minuses", |n| "-".repeat(n) + "n"),
    ("generics", |n| format!("n as {}", "A<".repeat(n))),
    ("returns", |n| "return ".repeat(n) + "n"),
];

#[test]
fn declarations_too_deep_are_an_error() {
    for (what, nested) in EXPRESSIONS {
        for n in [50, 90, 900, 1900, 10_000] {
            for place in [
                "let m = {}; body sm80 { launch { grid = [m, 1, 1], threads = 32 } }",
                "require {} > 1; body sm80 { launch { grid = [n, 1, 1], threads = 32 } }",
                "body sm80 { launch { grid = [{}, 1, 1], threads = 32 } }",
            ] {
                let rest = place.replace("{}", &nested(n));
                let text = format!("kernel! {{ fn x(input: Tensor<f32, [n]>) {rest} }}");
                on_small_stacks({
                    let (text, what) = (text.leak() as &str, *what);
                    move || match Kernel::parse("x/kernel.rs", text) {
                        Ok(kernel) => {
                            assert!(n < 100, "{n} {what} are accepted");
                            let grid = &kernel.bodies[0].launch.grid[0];
                            assert!(grid.eval(&|_| Some(3)).is_ok() && !grid.to_string().is_empty());
                        }
                        Err(error) => assert!(error.to_string().starts_with("x/kernel.rs:"), "{error}"),
                    }
                });
            }
        }
    }
}

/// Refused, with a message that has these words.
#[track_caller]
fn refused(error: Result<impl Sized, impl ToString>, words: &[&str]) {
    let Err(error) = error else { panic!("it is accepted") };
    let message = error.to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

fn function(body: &str) -> syn::Result<DeviceFunction> {
    let text = format!("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ {body} }}");
    DeviceFunction::from_source(FunctionKind::ScoreMod, &text)
}

fn declaration(rest: &str) -> Result<Kernel, tilewright_codegen::Error> {
    Kernel::parse("x/kernel.rs", &format!("kernel! {{ fn x(input: Tensor<f32, [n]>) {rest} }}"))
}

#[test]
fn what_is_too_large_says_how_large_it_may_be() {
    let digits = "1".repeat(100_000);
    let start = Instant::now();
    refused(function(&"9".repeat(300)), &["256 digits", "found 300"]);
    refused(function(&format!("0.{}", "1".repeat(300))), &["256 digits", "found 302"]);
    refused(function(&digits), &["100061 bytes: at most 65536"]);
    refused(declaration(&format!("let m = {digits};")), &["256 digits", "found 100000"]);
    refused(declaration(&" ".repeat(300_000)), &["bytes: at most 262144"]);
    for (text, words) in [
        ("score == \"(\" + '(' + (", "no partner"),
        ("score * 2.0)", "no partner"),
        ("score × 2.0", "`×` begins nothing in Rust"),
        ("score * “2.0”", "`“` begins nothing in Rust"),
        ("score * 0x", "no name, number or text"),
        ("score /* of keys", "write `*/`"),
    ] {
        refused(function(text), &[words]);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    let body = "body sm80 { launch { grid = [n, 1, 1], threads = 32 } }";
    let many = |item: fn(usize) -> String, n: usize| (0..n).map(item).collect::<Vec<_>>().join(", ");
    refused(
        declaration(
            "body sm80 { tune { A: 1..=256, B: 1..=256, C: 1..=256, D: [1] } launch { grid = [n, 1, 1], threads = 32 } }",
        ),
        &["`tune` has more than 65536 combinations", "A 256 × B 256 × C 256)"],
    );
    refused(
        declaration(&format!("specialize {{ T: [f16, bf16], A: 1..=256, B: 1..=256, C: 1..=256 }} {body}")),
        &["`specialize` has more than 65536 combinations", "T 2 × A 256 × B 256 × C 256)"],
    );
    let params = many(|at| format!("P{at}: [1]"), 65);
    refused(
        declaration(&format!("specialize {{ {params} }} {body}")),
        &["65 parameters of `specialize`", "64"],
    );
    refused(
        declaration(&format!(
            "body sm80 {{ tune {{ {params} }} launch {{ grid = [n, 1, 1], threads = 32 }} }}"
        )),
        &["65 parameters of `tune`", "64"],
    );
    let conditions = many(|_| "A > 0".to_owned(), 257);
    let clause =
        format!("tune {{ A: [1] }} where {{ {conditions} }} launch {{ grid = [n, 1, 1], threads = 32 }}");
    refused(declaration(&format!("body sm80 {{ {clause} }}")), &["257 constraints", "256"]);
    refused(
        declaration(&format!("{} {body}", "require n > 0; ".repeat(257))),
        &["257 requirements", "at most 256"],
    );
    let start = Instant::now();
    let derived: String = (0..12_000).map(|at| format!("let d{at} = 1; ")).collect();
    refused(declaration(&format!("{derived} {body}")), &["12000 derived dimensions", "1024"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let constants =
        |count: usize| -> String { (0..count).map(|at| format!("const C{at} = {at}; ")).collect() };
    refused(declaration(&format!("{} {body}", constants(257))), &["at most 256 constants"]);
    assert!(declaration(&format!("{} {body}", constants(256))).is_ok());
    let name = "A".repeat(65);
    refused(declaration(&format!("specialize {{ {name}: [1] }} {body}")), &["64 letters, found 65"]);
    for list in ["[1, 2147483648]", "2147483647..=2147483648", "[9999999999999999999]"] {
        refused(
            declaration(&format!("specialize {{ A: {list} }} {body}")),
            &["no value of a parameter", "32 bits, from 0 to 2147483647"],
        );
    }
    assert!(declaration(&format!("specialize {{ A: [2147483647] }} {body}")).is_ok());
    let params = many(|at| format!("P{at}: [1, 2]"), 64);
    refused(declaration(&format!("specialize {{ {params} }} {body}")), &["combinations", "P63 2"]);
    let values = many(|at| at.to_string(), 300);
    refused(declaration(&format!("specialize {{ A: [{values}] }} {body}")), &["300 values, at most 256"]);
    refused(declaration(&format!("specialize {{ T: [f16, f32, f16] }} {body}")), &["f16 is listed twice"]);
    let args = |n| {
        Kernel::parse(
            "x/kernel.rs",
            &format!("kernel! {{ fn x({}) {body} }}", many(|at| format!("a{at}: i32"), n)),
        )
    };
    refused(args(300), &["300 arguments", "at most 256"]);
    let dims = |n| {
        Kernel::parse(
            "x/kernel.rs",
            &format!("kernel! {{ fn x(a: Tensor<f32, [{}]>) {body} }}", many(|at| format!("d{at}"), n)),
        )
    };
    refused(dims(17), &["1 to 16 dimensions, found 17"]);
    refused(args(0), &["`x` has no arguments"]);
    refused(args(2), &["`x` has scalars alone: it needs a tensor"]);
    let tensors = many(|at| format!("a{at}: Tensor<f32, [b{at}, c{at}, d{at}, e{at}, n]>"), 100);
    refused(
        Kernel::parse("x/kernel.rs", &format!("kernel! {{ fn x({tensors}) {body} }}")),
        &["take 5608 bytes", "4096"],
    );
}

/// Comments and strings nest nothing, and documentation is no expression.
#[test]
fn what_is_no_syntax_has_no_depth() {
    assert!(function(&format!("/* {} */ score", "( ".repeat(70))).is_ok());
    assert!(function(&format!("{} score", "/**/ [".repeat(70))).is_err());
    let kernel = "fn x(input: Tensor<f32, [n]>) body sm80 { launch { grid = [n, 1, 1], threads = 32 } }";
    let (inner, outer) = ("//! In [0, 1) :(\n".repeat(2500), "/// Not (here.\n".repeat(2500));
    for text in [
        format!("{inner}kernel! {{ {outer} {kernel} }}"),
        format!("\u{feff}{inner}kernel! {{ {outer} {kernel} }}"),
    ] {
        let parsed = Kernel::parse("x/kernel.rs", &text);
        assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
    }
}

/// What is long and shallow is no matter of depth, and takes time in proportion.
#[test]
fn long_functions_take_no_longer_than_they_are_long() {
    let lets = |n: usize| {
        let start = Instant::now();
        let made =
            function(&format!("{}x", "let x = score; ".to_owned() + &"let x = x * x; ".repeat(n))).unwrap();
        let text = made.cuda_with_gradient();
        made.gradient(1.0, 0, 0, 0, 0, &[]).unwrap();
        (start.elapsed(), text.len())
    };
    let (short, long) = (lets(400), lets(4000));
    println!("{short:?} {long:?}");
    assert!(long.1 < 12 * short.1, "{} bytes became {}", short.1, long.1);
    assert!(long.0 < 40 * short.0 + Duration::from_secs(1), "{:?} became {:?}", short.0, long.0);
}
