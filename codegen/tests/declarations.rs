//! What the declaration language refuses: each mistake with its place and message, as an author sees it.

use std::fmt::Write;
use tilewright_codegen::Error;
use tilewright_codegen::dsl::Kernel;

/// A declaration with one of everything, without a mistake.
const GOOD: &str = r#"kernel! {
    /// Scales rows.
    fn scale(
        #[align(16)] x: Tensor<T, [rows, columns]>,
        bias: Option<Tensor<f32, [rows | 1, columns]>>,
        y: out Tensor<T, [rows, columns]>,
        factor: f32,
    )
    specialize { T: [f16, bf16], BLOCK: [64, 128] }
    ship { T: [bf16] }
    functions { score_mod: ScoreMod }
    let blocks = ceil_div(columns, BLOCK);
    require columns % 8 == 0, "pad the columns";
    body sm80 {
        tune { WARPS: [4, 8], STAGES: 2..=4 }
        where { BLOCK % WARPS == 0, smem_bytes = 4 * BLOCK * STAGES, registers = 32, prefer = CTAS_PER_SM }
        launch { grid = [blocks, rows, 1], threads = 32 * WARPS }
    }
}
"#;

/// The mistake, the text of [`GOOD`] it replaces, and what with.
const MISTAKES: &[(&str, &str, &str)] = &[
    // The file.
    ("no kernel", GOOD, "// nothing here\n"),
    ("something beside the kernel", "kernel! {\n    ///", "use std::fmt;\nkernel! {\n    ///"),
    ("an unclosed brace", "tune { WARPS: [4, 8], STAGES: 2..=4 }", "tune { WARPS: [4, 8], STAGES: 2..=4"),
    ("an attribute on the kernel", "/// Scales rows.", "#[inline]"),
    ("a misspelt section", "specialize {", "specialise {"),
    ("brackets where a section stands", "specialize {", "(1) specialize {"),
    // Arguments.
    ("an unknown argument type", "factor: f32", "factor: f64"),
    ("a mutable tensor", "y: out Tensor", "y: mut Tensor"),
    ("a written scalar", "factor: f32", "factor: out f32"),
    ("an unknown access", "y: out Tensor", "y: output Tensor"),
    ("an access inside of an option", "bias: Option<Tensor<f32", "bias: Option<inout Tensor<f32"),
    ("an optional scalar", "bias: Option<Tensor<f32, [rows | 1, columns]>>", "bias: Option<f32>"),
    ("an unknown element type", "y: out Tensor<T,", "y: out Tensor<f8,"),
    ("an integer as element type", "y: out Tensor<T,", "y: out Tensor<BLOCK,"),
    (
        "a tensor without dimensions",
        "bias: Option<Tensor<f32, [rows | 1, columns]>>",
        "bias: Tensor<f32, []>",
    ),
    ("a repeated extent of 2", "rows | 1", "rows | 2"),
    (
        "a last dimension that is repeated",
        "bias: Option<Tensor<f32, [rows | 1, columns]>>",
        "bias: Option<Tensor<f32, [rows | 1, columns | 1]>>",
    ),
    ("an alignment of 24", "align(16)", "align(24)"),
    ("an alignment of 512", "align(16)", "align(512)"),
    ("an alignment that is no number", "align(16)", "align(\"16\")"),
    ("a negative alignment", "align(16)", "align(-16)"),
    ("an alignment beyond any number", "align(16)", "align(99999999999999999999)"),
    ("an alignment of a scalar", "factor: f32", "#[align(16)] factor: f32"),
    ("two alignments", "#[align(16)]", "#[align(16)] #[align(8)]"),
    ("an unknown attribute", "#[align(16)]", "#[aligned(16)]"),
    ("a tolerance of what is read", "#[align(16)] x", "#[tolerance(0.01)] x"),
    ("a tolerance of scratch", "y: out Tensor", "#[tolerance(any)] y: scratch Tensor"),
    ("a tolerance of counters", "y: out Tensor", "#[tolerance(any)] y: counters Tensor"),
    ("a tolerance of a scalar", "factor: f32", "#[tolerance(0.01)] factor: f32"),
    ("a tolerance of nothing", "y: out Tensor", "#[tolerance(0)] y: out Tensor"),
    ("a tolerance of everything", "y: out Tensor", "#[tolerance(1.5)] y: out Tensor"),
    ("a negative tolerance", "y: out Tensor", "#[tolerance(-0.1)] y: out Tensor"),
    ("a tolerance in words", "y: out Tensor", "#[tolerance(some)] y: out Tensor"),
    ("a tolerance that is a number in words", "y: out Tensor", "#[tolerance(nan)] y: out Tensor"),
    ("a share of something else", "y: out Tensor", "#[tolerance(rows = 0.1)] y: out Tensor"),
    ("a tolerance without one", "y: out Tensor", "#[tolerance] y: out Tensor"),
    ("two tolerances", "y: out Tensor", "#[tolerance(0.1)] #[tolerance(any)] y: out Tensor"),
    ("a tolerance of several numbers", "y: out Tensor", "#[tolerance(0.1, 0.2)] y: out Tensor"),
    // Names.
    ("an argument declared twice", "y: out Tensor", "x: out Tensor"),
    ("an argument named like a dimension", "factor: f32", "rows: f32"),
    ("an argument named like strides", "factor: f32", "x_stride: f32"),
    ("an argument named like a parameter", "factor: f32", "block: f32"),
    ("a word of C++", "factor: f32", "double: f32"),
    ("a raw name", "factor: f32", "r#type: f32"),
    ("a tuning parameter in small letters", "WARPS: [4, 8]", "warps: [4, 8]"),
    ("a dimension in capitals", "let blocks", "let BLOCKS"),
    ("a name of the generated code", "factor: f32", "params: f32"),
    ("a parameter declared twice", "BLOCK: [64, 128] }", "BLOCK: [64, 128], T: [f32] }"),
    ("a tuning parameter declared twice", "STAGES: 2..=4", "BLOCK: [1]"),
    ("a tuning parameter named like a dimension", "STAGES: 2..=4", "ROWS: [1]"),
    // Values.
    ("an unknown dtype", "T: [f16, bf16]", "T: [f16, half]"),
    ("a parameter without values", "BLOCK: [64, 128]", "BLOCK: []"),
    ("a value listed twice", "BLOCK: [64, 128]", "BLOCK: [64, 64]"),
    ("a value that is no integer", "BLOCK: [64, 128]", "BLOCK: [64, 12.8]"),
    ("a value with a suffix", "BLOCK: [64, 128]", "BLOCK: [64, 128u8]"),
    ("a negative value", "BLOCK: [64, 128]", "BLOCK: [-64, 128]"),
    ("a negative start of a range", "STAGES: 2..=4", "STAGES: -2..=4"),
    ("a value without brackets", "STAGES: 2..=4", "STAGES: 4"),
    ("a default of a dtype", "T: [f16, bf16]", "T: [f16, bf16] = f16"),
    ("a value over 64 bits", "BLOCK: [64, 128]", "BLOCK: [64, 9223372036854775808]"),
    ("an empty range", "2..=4", "4..=2"),
    ("a half-open range", "2..=4", "2..4"),
    ("ship outside specialize", "ship { T: [bf16] }", "ship { BLOCK: [256] }"),
    ("ship of an unknown parameter", "ship { T: [bf16] }", "ship { TILE: [64] }"),
    ("a default of a later parameter", "BLOCK: [64, 128] }", "BLOCK: [64, 128] = WIDTH, WIDTH: [64] }"),
    ("a default of itself", "BLOCK: [64, 128] }", "BLOCK: [64, 128] = BLOCK }"),
    ("a default in ship", "ship { T: [bf16] }", "ship { BLOCK: [64] = 64 }"),
    // Constants.
    ("a constant in small letters", "    specialize {", "    const width = 8;\n    specialize {"),
    ("a constant without a value", "    specialize {", "    const WIDTH;\n    specialize {"),
    ("a constant with a type", "    specialize {", "    const WIDTH: i32 = 8;\n    specialize {"),
    ("a constant of an unknown name", "    specialize {", "    const WIDTH = 2 * BLOCK;\n    specialize {"),
    (
        "a constant of a later one",
        "    specialize {",
        "    const WIDTH = 2 * HALF; const HALF = 4;\n    specialize {",
    ),
    (
        "a constant of a list",
        "    specialize {",
        "    const WIDTHS = [8, 16]; const WIDTH = 2 * WIDTHS;\n    specialize {",
    ),
    (
        "a constant over 64 bits",
        "    specialize {",
        "    const WIDTH = 99999999999999999999;\n    specialize {",
    ),
    ("a constant with a suffix", "    specialize {", "    const WIDTH = 8f32;\n    specialize {"),
    ("a negative constant", "    specialize {", "    const WIDTH = 8 - 9;\n    specialize {"),
    ("a constant over 31 bits", "    specialize {", "    const WIDTH = 65536 * 65536;\n    specialize {"),
    ("a constant that divides by zero", "    specialize {", "    const WIDTH = 8 / 0;\n    specialize {"),
    ("a constant twice", "    specialize {", "    const WIDTH = 8; const WIDTH = 16;\n    specialize {"),
    ("a constant named like a parameter", "    specialize {", "    const BLOCK = 8;\n    specialize {"),
    ("a constant named like a dimension", "    specialize {", "    const ROWS = 8;\n    specialize {"),
    (
        "a constant named like an item of the bindings",
        "    specialize {",
        "    const SPECS = 8;\n    specialize {",
    ),
    (
        "a constant named like that of a function",
        "    specialize {",
        "    const HAS_SCORE_MOD = 1;\n    specialize {",
    ),
    (
        "a list in an expression of a body",
        "    body sm80 {\n",
        "    const SIDES = [8, 16];\n    body sm80 { where { BLOCK % SIDES == 0 }\n",
    ),
    ("a requirement without quotes", "\"pad the columns\"", "pad"),
    ("a list with a value twice", "    specialize {", "    const WIDTHS = [8, 8];\n    specialize {"),
    (
        "a tuning parameter named like a constant",
        BODY,
        "    const WARPS = 4;\n    body sm80 { tune { WARPS: [4] } launch { grid = [1, 1, 1], threads = 32 } }\n",
    ),
    ("a parameter with the values of a number", "BLOCK: [64, 128] }", "BLOCK: WIDTH }"),
    (
        "a parameter with the values of no list",
        "    specialize { T: [f16, bf16], BLOCK: [64, 128] }",
        "    const WIDTHS = [8, 16]; const WIDTH = 8;\n    specialize { T: [f16, bf16], BLOCK: WIDTH }",
    ),
    // What is included: the rest is in tests/shared.rs.
    ("a file that is not there", "    specialize {", "    include \"lib/tiles.rs\";\n    specialize {"),
    ("an include without quotes", "    specialize {", "    include lib;\n    specialize {"),
    ("a header among the sections", "    specialize {", "    include \"lib/warp.cuh\";\n    specialize {"),
    (
        "a file twice",
        "    specialize {",
        "    include \"lib/row_order.rs\";\n    include \"lib/row_order.rs\";\n    specialize {",
    ),
    // Functions.
    ("an unknown kind of function", "score_mod: ScoreMod", "score_mod: ScoreFn"),
    ("an unknown part of a function", "score_mod: ScoreMod", "score_mod: ScoreMod + Hessian"),
    ("a function with half a gradient", "score_mod: ScoreMod", "score_mod: ScoreMod +"),
    ("a gradient of a mask function", "score_mod: ScoreMod", "mask_mod: MaskMod + Gradient"),
    ("a kind of function twice", "score_mod: ScoreMod", "score_mod: ScoreMod, bias_mod: ScoreMod"),
    // Expressions.
    ("an unknown name in a derived dimension", "ceil_div(columns, BLOCK)", "ceil_div(columns, TILE)"),
    ("a tuning parameter in a derived dimension", "ceil_div(columns, BLOCK)", "columns / WARPS"),
    ("a dimension derived from itself", "ceil_div(columns, BLOCK)", "blocks + 1"),
    ("a dimension derived twice", "require columns", "let blocks = rows;\n    require columns"),
    ("an unknown name in a requirement", "require columns % 8", "require cols % 8"),
    ("a requirement that is no comparison", "require columns % 8 == 0", "require columns % 8"),
    ("a constraint that is no comparison", "BLOCK % WARPS == 0", "BLOCK % WARPS"),
    ("a dimension in a constraint", "BLOCK % WARPS == 0", "columns % WARPS == 0"),
    ("a dimension in a budget", "4 * BLOCK * STAGES", "4 * columns"),
    ("an unknown budget", "registers = 32", "register = 32"),
    ("a budget given twice", "registers = 32", "smem_bytes = 32"),
    ("an unknown name in the preference", "CTAS_PER_SM", "WARPS_PER_SM"),
    ("an unknown name in the threads", "32 * WARPS", "32 * WARP"),
    ("an unknown name in the grid", "[blocks, rows, 1]", "[blocks, row, 1]"),
    ("an assignment for a comparison", "BLOCK % WARPS == 0", "BLOCK % WARPS = 0"),
    ("an unsupported operator", "32 * WARPS", "WARPS << 5"),
    ("an unknown function", "ceil_div(columns, BLOCK)", "div_ceil(columns, BLOCK)"),
    ("a function of one argument", "ceil_div(columns, BLOCK)", "ceil_div(columns)"),
    ("an if without an else", "ceil_div(columns, BLOCK)", "if columns > 64 { 1 }"),
    ("a float", "registers = 32", "registers = 1.5 * BLOCK"),
    // Bodies.
    ("no body", BODY, ""),
    ("an unknown family", "body sm80", "body sm75"),
    ("a second body for a family", "    body sm80 {", SECOND_BODY),
    ("no launch", "        launch { grid = [blocks, rows, 1], threads = 32 * WARPS }\n", ""),
    (
        "a second launch",
        "        launch {",
        "        launch { grid = [1, 1, 1], threads = 32 }\n        launch {",
    ),
    ("a grid of two dimensions", "[blocks, rows, 1]", "[blocks, rows]"),
    ("a launch without threads", ", threads = 32 * WARPS", ""),
    ("an unknown section of a body", "tune {", "tuning {"),
    // Other values on some architectures.
    (
        "an architecture that there is none",
        "        where {",
        "        tune on sm_75 { WARPS: [4] }\n        where {",
    ),
    (
        "an architecture by another name",
        "        where {",
        "        tune on sm86 { WARPS: [4] }\n        where {",
    ),
    ("no architecture", "        where {", "        tune on { WARPS: [4] }\n        where {"),
    (
        "an architecture twice",
        "        where {",
        "        tune on sm_86, sm_86 { WARPS: [4] }\n        where {",
    ),
    (
        "a parameter that `tune` has not",
        "        where {",
        "        tune on sm_86 { STEPS: [4] }\n        where {",
    ),
    (
        "a parameter twice on an architecture",
        "        where {",
        "        tune on sm_86, sm_89 { WARPS: [4], WARPS: [8] }\n        where {",
    ),
    (
        "no values on an architecture",
        "        where {",
        "        tune on sm_86 { WARPS: [] }\n        where {",
    ),
    (
        "values on an architecture twice",
        "        where {",
        "        tune on sm_86, sm_89 { WARPS: [4] } tune on sm_89 { WARPS: [8] }\n        where {",
    ),
    ("nothing on an architecture", "        where {", "        tune on sm_86 {}\n        where {"),
    (
        "values for an architecture of another family",
        BODY,
        "    body sm90 { tune { A: [1, 2] } tune on sm_86 { A: [1] } launch { grid = [1, 1, 1], threads = 32 } }\n",
    ),
    (
        "values on an architecture before the others",
        "        tune {",
        "        tune on sm_86 { WARPS: [4] }\n        tune {",
    ),
    (
        "too many combinations on an architecture",
        "        where {",
        "        tune on sm_86 { WARPS: 1..=256, STAGES: 1..=256 } tune { C: [1, 2] }\n        where {",
    ),
    // What is worth making.
    ("worth of nothing", "        tune {", "        worth { z: rows > 1 }\n        tune {"),
    ("worth of a dimension", "        tune {", "        worth { rows: rows > 1 }\n        tune {"),
    ("worth of what is always there", "        tune {", "        worth { x: rows > 1 }\n        tune {"),
    ("worth of a scalar", "        tune {", "        worth { factor: rows > 1 }\n        tune {"),
    ("worth that is no comparison", "        tune {", "        worth { bias: rows }\n        tune {"),
    ("worth of a tuning parameter", "        tune {", "        worth { bias: rows > WARPS }\n        tune {"),
    ("worth of an unknown name", "        tune {", "        worth { bias: rows > SMS }\n        tune {"),
    (
        "worth said twice",
        "        tune {",
        "        worth { bias: rows > 1, bias: rows > 2 }\n        tune {",
    ),
    ("worth without a condition", "        tune {", "        worth { bias }\n        tune {"),
    // Tensor maps.
    ("a tensor map on sm_80", "        tune {", "        tensor_maps { x: [BLOCK, 64] }\n        tune {"),
    (
        "a tensor map of nothing",
        BODY,
        "    body sm90 { tensor_maps { z: [64, 64] } launch { grid = [1, 1, 1], threads = 32 } }\n",
    ),
    (
        "a tensor map of a scalar",
        BODY,
        "    body sm90 { tensor_maps { factor: [64, 64] } launch { grid = [1, 1, 1], threads = 32 } }\n",
    ),
    (
        "two maps of a tensor",
        BODY,
        "    body sm90 { tensor_maps { x: [64, 64], x: [64, 64] } launch { grid = [1, 1, 1], threads = 32 } }\n",
    ),
    (
        "a box of one side",
        BODY,
        "    body sm90 { tensor_maps { x: [64] } launch { grid = [1, 1, 1], threads = 32 } }\n",
    ),
    (
        "a dimension in a box",
        BODY,
        "    body sm90 { tensor_maps { x: [rows, 64] } launch { grid = [1, 1, 1], threads = 32 } }\n",
    ),
    ("a misspelt persistent", ", threads = 32 * WARPS", ", threads = 32 * WARPS, persist"),
    ("a misspelt queue", ", threads = 32 * WARPS", ", threads = 32 * WARPS, persistent, queues"),
    ("a queue of a grid that is not persistent", ", threads = 32 * WARPS", ", threads = 32 * WARPS, queue"),
];

const BODY: &str = "    body sm80 {
        tune { WARPS: [4, 8], STAGES: 2..=4 }
        where { BLOCK % WARPS == 0, smem_bytes = 4 * BLOCK * STAGES, registers = 32, prefer = CTAS_PER_SM }
        launch { grid = [blocks, rows, 1], threads = 32 * WARPS }
    }
";

const SECOND_BODY: &str = "    body sm80 { launch { grid = [1, 1, 1], threads = 32 } }\n    body sm80 {";

#[test]
fn every_mistake_has_its_place_and_message() {
    let mut report = String::new();
    for (mistake, found, replacement) in MISTAKES {
        assert_eq!(GOOD.matches(found).count(), 1, "`{found}` does not name one place");
        let text = GOOD.replace(found, replacement);
        let error = Kernel::parse("scale/kernel.rs", &text).expect_err(mistake);
        let Error::Declaration { file, line, column, message } = &error else { panic!("{error:?}") };
        assert_eq!(error.to_string(), format!("{file}:{line}:{column}: {message}"));
        writeln!(report, "# {mistake}").unwrap();
        if let Some(text) = line.checked_sub(1).and_then(|at| text.lines().nth(at)) {
            let indent = text.len() - text.trim_start().len();
            let caret = " ".repeat((column - 1).saturating_sub(indent));
            writeln!(report, "    {}\n    {caret}^", text.trim()).unwrap();
        }
        writeln!(report, "{error}\n").unwrap();
    }
    insta::assert_snapshot!("mistakes", report);
}

#[test]
fn a_second_kernel_needs_a_folder_of_its_own() {
    let error = Kernel::parse("scale/kernel.rs", &GOOD.repeat(2)).expect_err("two kernels");
    assert_eq!(error.to_string(), "scale/kernel.rs:20:1: a second kernel: give it a folder of its own");
}

/// The same expression may be right in one place and wrong in another.
#[test]
fn equal_expressions_keep_their_own_places() {
    let text = GOOD.replace("ceil_div(columns, BLOCK)", "columns").replace("4 * BLOCK * STAGES", "columns");
    let error = Kernel::parse("scale/kernel.rs", &text).expect_err("a dimension in a budget");
    let Error::Declaration { line, column, .. } = error else { panic!("{error:?}") };
    let written = text.lines().nth(line - 1).unwrap();
    assert!(written[column - 1..].starts_with("columns, registers"), "{line}:{column}");
}

#[test]
fn a_declaration_without_a_mistake_is_read_as_it_stands() {
    let kernel = Kernel::parse("scale/kernel.rs", GOOD).unwrap();
    assert_eq!((kernel.name.as_str(), kernel.doc.as_str()), ("scale", "Scales rows."));
    assert_eq!(kernel.dims(), ["rows", "columns", "blocks"]);
    assert_eq!(kernel.args.len(), 4);
    assert_eq!(kernel.bodies[0].tune[1].values, [2, 3, 4]);
    assert_eq!(kernel.bodies[0].smem_bytes.to_string(), "4 * BLOCK * STAGES");
    assert_eq!(kernel.requires[0].message, "pad the columns");
    assert!(!kernel.functions[0].gradient);
}

#[test]
fn a_gradient_is_asked_for_beside_the_function() {
    let text = GOOD.replace("score_mod: ScoreMod", "score_mod: ScoreMod + Gradient, mask_mod: MaskMod");
    let kernel = Kernel::parse("scale/kernel.rs", &text).unwrap();
    let slots: Vec<_> = kernel.functions.iter().map(|slot| (slot.name.as_str(), slot.gradient)).collect();
    assert_eq!(slots, [("score_mod", true), ("mask_mod", false)]);
}

/// Two crates may have a kernel of one name, with parameters of one size: the hash of the declaration tells them apart, and is no matter of
/// how a checkout ends its lines.
#[test]
fn the_hash_is_that_of_the_declaration() {
    let of = |text: &str| Kernel::parse("scale/kernel.rs", text).unwrap().declaration;
    let good = of(GOOD);
    assert_eq!((good.len(), of(&GOOD.replace('\n', "\r\n"))), (64, good.clone()));
    for other in [GOOD.replace("align(16)", "align(8)"), GOOD.replace("rows | 1", "rows")] {
        assert_ne!(of(&other), good);
    }
}
