//! Declarations that several kernels share: what one includes is part of it, with its constants, its hash and its mistakes.

mod support;

use std::fs;
use std::path::Path;
use support::{BODY, DECLARATION, write_kernel};
use tilewright_codegen::dsl::Kernel;
use tilewright_codegen::{Arch, Generator, KernelSource, bindings, generated};

const SHARED: &str = "shared! {
    // Beside comments.
    const WIDTHS = [64, 128];
    const PIECE = 8;
    const TWO_PIECES = 2 * PIECE;
    specialize { T: [f16, bf16], BLOCK: WIDTHS }
    ship { T: [bf16] }
    functions { score_mod: ScoreMod }
    let blocks = ceil_div(columns, BLOCK);
    require columns % PIECE == 0, \"pad the columns\";
}
";

/// The declaration of `support` with its sections in a file of their own.
fn declaration() -> String {
    let (start, end) = (DECLARATION.find("    specialize").unwrap(), DECLARATION.find("    body").unwrap());
    format!("{}    include \"lib/rows.rs\";\n{}", &DECLARATION[..start], &DECLARATION[end..])
        .replace("4 * BLOCK * WARPS", "4 * BLOCK * WARPS + PIECE")
}

fn source(declaration: &str, shared: &str) -> KernelSource {
    let mut source = support::source(declaration, BODY);
    source.files.to_mut().push(("lib/rows.rs".into(), shared.to_owned().into()));
    source
}

#[test]
fn what_is_included_is_part_of_the_declaration() {
    let whole = DECLARATION.replace("4 * BLOCK * WARPS", "4 * BLOCK * WARPS + 8");
    let whole = Kernel::of(&support::source(&whole, BODY)).unwrap();
    let kernel = Kernel::of(&source(&declaration(), SHARED)).unwrap();
    let of = |kernel: &Kernel| {
        let Kernel { specialize, ship, functions, derived, requires, bodies, .. } = kernel;
        format!("{specialize:?} {ship:?} {functions:?} {derived:?} {requires:?} {bodies:?}")
    };
    assert_eq!(of(&kernel), of(&whole));
    assert_eq!(kernel.includes, ["lib/rows.rs"]);
    let constants = kernel.constants.iter().map(|constant| (constant.name.as_str(), constant.value));
    assert_eq!(constants.collect::<Vec<_>>(), [("PIECE", 8), ("TWO_PIECES", 16)]);
}

/// The constants reach the CUDA source and Rust, and Rust has the combinations that there are.
#[test]
fn constants_reach_both_sides() {
    let shared = SHARED.replace("BLOCK: WIDTHS", "BLOCK: WIDTHS, HALF: [32, 64] = BLOCK / 2");
    let shared = shared
        .replace("    let blocks", "    require HALF < BLOCK, \"less than the whole\";\n    let blocks");
    let source = source(&declaration(), &shared);
    let generator = Generator::new(&source).unwrap();
    let spec = generator.shipped_specs().unwrap().remove(0);
    let candidate = &generator.candidates(&spec, Arch::Sm80).unwrap().accepted[0];
    assert_eq!(candidate.budget.smem_bytes, 4 * 64 * 4 + 8);
    let cuda = generator.render(candidate).unwrap().source;
    for constant in ["PIECE = 8;", "TWO_PIECES = 16;"] {
        assert!(cuda.contains(&format!("[[maybe_unused]] constexpr int {constant}")), "{cuda}");
    }
    assert!(!cuda.contains("WIDTHS"), "a list is the declaration's alone: {cuda}");
    let rust = bindings(&source).unwrap();
    for item in [
        "pub const PIECE: i64 = 8;",
        "pub const TWO_PIECES: i64 = 16;",
        "    Spec::of([64, 32]),\n    Spec::of([128, 32]),\n    Spec::of([128, 64]),\n];",
    ] {
        assert!(rust.contains(item), "{item}: {rust}");
    }
}

/// A list of more than 4096 combinations is not written.
#[test]
fn bindings_list_what_can_be_listed() {
    let rust = |values: usize| {
        let shared = SHARED.replace("BLOCK: WIDTHS", &format!("BLOCK: WIDTHS, A: 1..={values}, B: 1..=32"));
        bindings(&source(&declaration(), &shared)).unwrap()
    };
    assert_eq!(rust(64).matches("Spec::of(").count(), 4096);
    assert!(!rust(65).contains("Spec"));
}

#[test]
fn the_hash_covers_what_is_included() {
    let of = |declaration: &str, shared: &str| Kernel::of(&source(declaration, shared)).unwrap().declaration;
    let hash = of(&declaration(), SHARED);
    assert_eq!(hash, of(&declaration().replace('\n', "\r\n"), &SHARED.replace('\n', "\r\n")));
    assert_ne!(hash, of(&declaration(), &SHARED.replace("// Beside", "// Among")));
    assert_ne!(hash, of(&declaration(), &SHARED.replace("PIECE == 0", "PIECE == 1")));
    // What lies beside and is not included is none of it.
    let mut more = source(&declaration(), SHARED);
    more.files.to_mut().push(("lib/others.rs".into(), "shared! {}".into()));
    assert_eq!(hash, Kernel::of(&more).unwrap().declaration);
    // Nor is a text that moved from one file to another the same.
    let sections = SHARED.strip_prefix("shared! {\n").unwrap().strip_suffix("}\n").unwrap();
    let moved = declaration().replace("    include \"lib/rows.rs\";\n", sections);
    assert_ne!(hash, of(&moved, SHARED));
}

/// The mistake, what of the shared file it replaces and what with, and the message with its place.
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    (
        "a name of another kernel's",
        "require columns",
        "require cols",
        "lib/rows.rs:10:13: `cols` is not known in a requirement: it can use rows, columns, blocks, BLOCK \
         (included at scale/kernel.rs:10:13)",
    ),
    (
        "a misspelt section",
        "ship {",
        "shipped {",
        "lib/rows.rs:7:5: `shipped` is no section of a declaration: expected one of: `include`, `const`, `specialize`, `ship`, `functions`, `let`, `require`, `body` \
         (included at scale/kernel.rs:10:13)",
    ),
    (
        "a body",
        "    ship",
        "    body sm80 { launch { grid = [1, 1, 1], threads = 32 } }\n    ship",
        "lib/rows.rs:7:5: a body is one kernel's: it stands in the kernel.rs beside it (included at scale/kernel.rs:10:13)",
    ),
    (
        "an include",
        "    ship",
        "    include \"lib/row_order.rs\";\n    ship",
        "lib/rows.rs:7:5: a shared declaration includes no other: let the kernel include both \
         (included at scale/kernel.rs:10:13)",
    ),
    (
        "a brace without a partner",
        "    ship { T: [bf16] }",
        "    ship { T: [bf16]",
        "lib/rows.rs:1:9: a bracket, a brace or a quote from here on has no partner (included at scale/kernel.rs:10:13)",
    ),
    (
        "a kernel",
        "shared!",
        "kernel!",
        "lib/rows.rs:1:1: lib/rows.rs holds one `shared! { … }` and nothing else (included at scale/kernel.rs:10:13)",
    ),
    ("nothing", SHARED, "", "scale/kernel.rs:10:13: no `shared! { … }` in `lib/rows.rs`: write one"),
    (
        "two of them",
        "shared! {",
        "shared! {}\nshared! {",
        "lib/rows.rs:2:1: a second one in a file: join the two (included at scale/kernel.rs:10:13)",
    ),
    (
        "a constant that the body's parameters have too",
        "const PIECE = 8;",
        "const PIECE = 8; const WARPS = 4;",
        "scale/kernel.rs:12:16: `WARPS` already names something else, upper and lower case being alike: rename one",
    ),
];

#[test]
fn mistakes_are_in_the_file_that_has_them() {
    for (mistake, found, replacement, expected) in MISTAKES {
        assert_eq!(SHARED.matches(found).count(), 1, "{mistake}");
        let error = Generator::new(&source(&declaration(), &SHARED.replace(found, replacement)));
        assert_eq!(error.expect_err(mistake).to_string(), *expected, "{mistake}");
    }
    // What comes with the generator is not the author's to change.
    let clash = declaration()
        .replace("    include", "    include \"lib/row_order.rs\";\n    const ORDER_WORDS = 8;\n    include");
    let error = Generator::new(&source(&clash, SHARED)).unwrap_err().to_string();
    assert_eq!(error, "scale/kernel.rs:11:11: `ORDER_WORDS` is a constant already: rename it");
    let clash = declaration()
        .replace("factor: f32", "order_bins: f32, factor: f32")
        .replace("    include", "    include \"lib/row_order.rs\";\n    include");
    let error = Generator::new(&source(&clash, SHARED)).unwrap_err().to_string();
    assert_eq!(
        error,
        "scale/kernel.rs:10:13: in lib/row_order.rs of the tile library: `ORDER_BINS` already names something else, upper and \
         lower case being alike: rename one"
    );
    // Both places are seen from where the folder is.
    let error = Generator::new(&source(&declaration(), &SHARED.replace("shared!", "sharing!"))).unwrap_err();
    let error = error.within(std::path::Path::new("kernels")).to_string();
    assert!(
        error.starts_with("kernels/lib/rows.rs:1:1: ")
            && error.ends_with(" (included at kernels/scale/kernel.rs:10:13)"),
        "{error}"
    );
    let long = SHARED.to_owned() + &" ".repeat(300_000);
    let error = Generator::new(&source(&declaration(), &long)).unwrap_err().to_string();
    assert!(error.starts_with("scale/kernel.rs:10:13: lib/rows.rs: the text has 300"), "{error}");
}

/// From files: of the kernel's folder, of `lib`, and of the tile library, where the folder's own does not win.
#[test]
fn a_folder_has_shared_declarations_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    write_kernel(folder.path());
    let lib = folder.path().join("lib");
    fs::create_dir(&lib).unwrap();
    fs::write(lib.join("rows.rs"), SHARED).unwrap();
    fs::write(lib.join("others.rs"), "no Rust at all (").unwrap();
    let constants = |text: &str| format!("shared! {{ const {text}; }}\n");
    fs::write(folder.path().join("scale/own.rs"), constants("OWN = 3")).unwrap();
    let write = |more: &str| {
        let text = declaration()
            .replace("    include", &format!("    include \"scale/own.rs\";\n{more}    include"));
        fs::write(folder.path().join("scale/kernel.rs"), text).unwrap();
        let files = generated(folder.path()).unwrap();
        let text = |name: &str| files.iter().find(|(known, _)| known == name).unwrap().1.clone();
        text("scale.rs") + &text("specs.rs")
    };
    let rust = write("");
    assert!(rust.contains("pub use super::specs::scale::*;"), "{rust}");
    for included in ["lib/rows.rs", "scale/own.rs"] {
        assert!(rust.contains(&format!("include_str!(\"../templates/{included}\")")), "{rust}");
    }
    assert!(!rust.contains("others.rs"), "what is not included is not embedded: {rust}");
    let order = "    include \"lib/row_order.rs\";\n";
    assert!(write(order).contains("pub const ORDER_BINS: i64 = 1024;"));
    fs::write(lib.join("row_order.rs"), constants("ORDER_BINS = 64")).unwrap();
    assert!(write(order).contains("pub const ORDER_BINS: i64 = 64;"));
}

/// The kernels' own: what a tile, a block size or a capacity is stands in one file each.
#[test]
fn shipped_kernels_say_tiles_and_blocks_once() {
    let templates = support::root().join("templates");
    let texts = |folder: &Path| -> Vec<String> {
        let mut texts = Vec::new();
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let kernel = entry.join("kernel.rs");
            let file = if kernel.is_file() { kernel } else { entry };
            if file.extension().is_some_and(|ending| ending == "rs") {
                texts.push(fs::read_to_string(file).unwrap());
            }
        }
        texts
    };
    let all = [texts(&templates), texts(&templates.join("lib"))].concat();
    assert!(all.len() > 12, "{}", all.len());
    for list in ["D: ", "HEAD_DIMS = ", "BLOCK_Q: ", "BLOCK_KV: ", "CAPACITY: "] {
        // `ship` picks from a list; the body of a list begins with it after `specialize {` or `const`.
        let lists = all.iter().flat_map(|text| text.lines());
        let lists = lists.filter(|line| line.contains("specialize {") || line.contains("const "));
        let found = lists.filter(|line| line.contains(list) && line.contains('[')).count();
        let most = if list == "D: " { 0 } else { 1 };
        assert_eq!(found, most, "{list}");
    }
}
