//! Expressions in generated bindings: each compiles wherever it stands, comes to what `Expr::eval` says, and is refused
//! where that has no value.

#[path = "support/library.rs"]
mod library;

use library::{LIBRARY, rustc};
use std::fmt::Write;
use std::process::Command;
use tilewright_codegen::dsl::{Expr, Kernel};
use tilewright_codegen::{KernelSource, bindings};

/// Values of the dimensions `a` and `b` and of the parameter `R`.
const VALUES: [[i64; 3]; 6] =
    [[7, 3, 16], [7, 3, 32], [1, 1, 16], [0, 0, 16], [i64::MAX, 2, 32], [2_000_000_000, 2_147_483_647, 16]];

const EXPRESSIONS: [&str; 33] = [
    "a",
    "64",
    "9223372036854775807",
    "a / 0",
    "1 % 0",
    "1 / (2 - 2)",
    "ceil_div(a, 0)",
    "ceil_div(a, b - b)",
    "ceil_div(a, R)",
    "ceil_div(ceil_div(a, 2), ceil_div(b, 2))",
    "ceil_div(0 - a, b)",
    "a / (R - 16)",
    "a % (R - 16)",
    "(0 - 9223372036854775807 - 1) / (0 - b)",
    "(0 - 9223372036854775807 - 1) % (1 - b)",
    "a * 9223372036854775807 * R",
    "a * b * R",
    "a - (b - R) - 1",
    "a - b * 2 + R / 4 % 3",
    "9223372036854775807 + a - a",
    "min(a * b * R, 1) + max(a, 3000000000)",
    "max(min(3, 4), 5)",
    "if R > 16 { a / (R - 16) } else { b }",
    "if a { 1 } else { 2 } * 3",
    "if if a > b { b > 1 } else { a > 1 } { 1 } else { if b == 0 { a / b } else { 3000000000 } }",
    "a > b",
    "3000000000 < 4000000000",
    "a * 9223372036854775807 > 0",
    "b != 0 && a / b > 1",
    "b == 0 || a % b == 1 && R > 16 || a / b == 3",
    "(a > b) + (b > 1) * 2",
    "(a > b) == (b > 1)",
    "a && (b || R / 0) && (if a > 0 { b } else { 0 })",
];

/// Places of an expression.
const PLACES: [(&str, &str); 4] = [
    ("grid", "body sm80 { launch { grid = [EXPR, 1, 1], threads = 32 } }"),
    ("derived", "let d = EXPR; body sm80 { launch { grid = [d, 1, 1], threads = 32 } }"),
    (
        "required",
        "require (EXPR) == 1 && a >= 0, \"\"; body sm80 { launch { grid = [1, 1, 1], threads = 32 } }",
    ),
    (
        "boxed",
        "body sm80 { launch { grid = [1, 1, 1], threads = 32 } }
        body sm90 { tensor_maps { x: [EXPR, 64] } launch { grid = [1, 1, 1], threads = 32 } }",
    ),
];

/// What binding says: a number, `refused`, or `no value: ` with the expression.
fn expected(place: &str, kernel: &Kernel, values: [i64; 3]) -> String {
    let value_of = |name: &str| match name {
        "a" => Some(values[0]),
        "b" => Some(values[1]),
        "R" => Some(values[2]),
        _ => None,
    };
    let expr: &Expr = match place {
        "grid" => &kernel.bodies[0].launch.grid[0],
        "derived" => &kernel.derived[0].value,
        "required" => &kernel.requires[0].condition,
        _ => &kernel.bodies[1].tensor_maps[0].rows_columns[0],
    };
    match expr.eval(&value_of) {
        Ok(0) if place == "required" => "refused".to_owned(),
        Ok(value) => value.to_string(),
        Err(_) => format!("no value: {expr}"),
    }
}

#[test]
fn bindings_compute_what_expressions_mean() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (mut modules, mut calls, mut expectations) = (String::new(), String::new(), Vec::new());
    for (at, expression) in EXPRESSIONS.iter().enumerate() {
        for (place, rest) in PLACES {
            let name = format!("{place}_{at}");
            let declaration = format!(
                "kernel! {{ fn {name}(x: Tensor<f32, [a, b]>) specialize {{ R: [16, 32] }} {} }}",
                rest.replace("EXPR", expression)
            );
            let kernel = match Kernel::parse("kernel.rs", &declaration) {
                Ok(kernel) => kernel,
                // A box is of the declaration's numbers alone.
                Err(_) if place == "boxed" && expression.contains(['a', 'b']) => continue,
                Err(error) => panic!("{expression}: {error}"),
            };
            let bodies: Vec<String> =
                kernel.bodies.iter().map(|body| format!("{}.cu", body.family)).collect();
            let files: Vec<_> =
                bodies.iter().map(|body| (format!("{name}/{body}").into(), "".into())).collect();
            let source = KernelSource {
                name: name.clone().into(),
                declaration: declaration.clone().into(),
                files: files.into(),
                has_check: false,
            };
            std::fs::create_dir(path(&name)).unwrap();
            std::fs::write(path(&name).join("kernel.rs"), &declaration).unwrap();
            for body in &bodies {
                std::fs::write(path(&name).join(body), "").unwrap();
            }
            let text = bindings(&source).unwrap();
            std::fs::write(path(&format!("{name}.rs")), text).unwrap();
            writeln!(modules, "#[path = \"{name}.rs\"] pub mod {name};").unwrap();
            let family = if place == "boxed" { "Sm90" } else { "Sm80" };
            let value = if place == "boxed" { "bound.maps[0][0]" } else { "bound.grid[0]" };
            for values in VALUES {
                let [a, b, r] = values;
                writeln!(
                    calls,
                    "    *VALUES.lock().unwrap() = vec![(\"a\", {a}), (\"b\", {b}), (\"R\", {r})];
    match ({name}::Args {{ x: &Tensor }}).bind(&Candidate {{ schedule: Schedule {{ family: Family::{family} }} }}) {{
        Ok(bound) => println!(\"{{}}\", {value}),
        Err(error) => println!(\"{{}}\", error.0),
    }}"
                )
                .unwrap();
                let expected = expected(place, &kernel, values);
                expectations.push((place, *expression, values, expected));
            }
        }
    }
    let main = format!(
        "{modules}use tilewright::{{Tensor, codegen::*, launch::{{KernelArgs, VALUES}}}};\nfn main() {{\n{calls}}}\n"
    );
    std::fs::write(path("main.rs"), main).unwrap();
    std::fs::write(path("library.rs"), LIBRARY).unwrap();
    rustc(folder.path(), &["--crate-name=tilewright", "--crate-type=rlib", "library.rs"]).unwrap();
    // A program reads no `SOURCE` and no `Params`, as others do.
    let flags =
        ["-Dwarnings", "-Adead-code", "-Coverflow-checks=on", "--extern", "tilewright=libtilewright.rlib"];
    let said = rustc(folder.path(), &[&flags[..], &["main.rs"]].concat());
    assert_eq!(said.map_err(|said| said.chars().take(4000).collect::<String>()), Ok(()));
    let output = Command::new(path("main")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().count(), expectations.len());
    let refused = expectations.iter().filter(|(.., expected)| expected.starts_with("no value")).count();
    assert!(refused > 100, "{refused}");
    for ((place, expression, values, expected), found) in expectations.iter().zip(printed.lines()) {
        assert_eq!(found, expected, "{place}: {expression} of {values:?}");
    }
}
