//! The reference of the DSL: every example is a declaration, and every clause there is has a place in it.

use tilewright_codegen::dsl::Kernel;

const REFERENCE: &str = include_str!("../../docs/dsl.md");

/// The examples that are declarations.
fn examples() -> Vec<&'static str> {
    let blocks = REFERENCE.split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix("rust\n")).collect()
}

#[test]
fn every_example_is_a_declaration() {
    let examples = examples();
    assert!(examples.len() >= 8, "{} examples were found", examples.len());
    for example in examples {
        assert!(example.starts_with("kernel! {"), "{example}");
        if let Err(error) = Kernel::parse("docs/dsl.md", example) {
            panic!("{error}\n{example}");
        }
    }
}

/// What the parser knows, the examples show and the text explains.
#[test]
fn every_clause_is_explained_and_shown() {
    let parser = [include_str!("../src/dsl/parse.rs"), include_str!("../src/dsl/parse_body.rs")].concat();
    let mut clauses: Vec<&str> = parser
        .split("syn::custom_keyword!(")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
        .chain(["let", "where", "Option", "Tensor", "align", "ScoreMod", "MaskMod", "Gradient"])
        .chain(["out", "inout", "scratch", "counters", "tolerance", "share", "any"])
        .chain(["smem_bytes", "registers", "prefer", "CTAS_PER_SM", "GRID_PER_SM", "ceil_div"])
        .collect();
    clauses.sort_unstable();
    clauses.dedup();
    assert!(clauses.len() > 20, "{clauses:?}");
    let code = examples().concat();
    let prose: String = REFERENCE.split("\n```").step_by(2).collect();
    let has = |text: &str, word: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
    };
    for clause in clauses {
        assert!(has(&code, clause), "no example shows `{clause}`");
        assert!(has(&prose, clause), "`{clause}` is not explained");
    }
}

/// What the text says of limits and element types is what the parser says.
#[test]
fn the_limits_are_those_of_the_parser() {
    let declare = |argument: &str, more: &str| {
        let text = format!(
            "kernel! {{ fn f({argument}) {more} body sm80 {{ launch {{ grid = [1, 1, 1], threads = 32 }} }} }}"
        );
        Kernel::parse("kernel.rs", &text).map_err(|error| error.to_string())
    };
    let dims = |count: usize| {
        let dims: Vec<String> = (0..count).map(|at| format!("d{at}")).collect();
        declare(&format!("x: Tensor<f32, [{}]>", dims.join(", ")), "")
    };
    assert!(dims(16).is_ok() && dims(17).is_err(), "of 1 to 16 dimensions");
    for element in ["f16", "bf16", "f32", "i32", "u8"] {
        assert!(declare(&format!("x: Tensor<{element}, [n]>"), "").is_ok(), "{element}");
    }
    let align = |bytes: usize| declare(&format!("#[align({bytes})] x: Tensor<f32, [n]>"), "");
    assert!(align(256).is_ok() && align(512).is_err() && align(3).is_err());
    let range = |end: usize| declare("x: Tensor<f32, [n]>", &format!("specialize {{ A: 1..={end} }}"));
    assert!(range(256).is_ok() && range(257).is_err());
    for said in
        ["1 to 16 dimensions", "power of two up to 256", "at most 64 parameters", "4,096 bytes", "65,536"]
    {
        assert!(REFERENCE.contains(said), "{said}");
    }
}
