//! Names of every kind that Rust, C++ or the generated code might claim, in every place of a declaration: each is refused
//! at its place with a message, or the bindings compile.

#[path = "support/library.rs"]
mod library;

use library::{LIBRARY, rustc};
use std::collections::BTreeSet;
use std::fmt::Write;
use tilewright_codegen::dsl::Kernel;
use tilewright_codegen::{Error, Family, generated};

const RUST: &str = "abstract as async auto await become box break const continue crate default do dyn else enum extern false \
    final fn for gen if impl in let loop macro macro_rules match mod move mut override priv pub raw ref return safe self Self \
    static struct super trait true try type typeof union unsafe unsized use virtual where while yield bool char f32 f64 i32 \
    i64 str u8 u64 usize Some None Ok Err Option Result Box String Vec std core alloc tilewright main test derive cfg";

const CPP: &str = "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t \
    class co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype default \
    delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable \
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires \
    return short signed sizeof static static_assert static_cast struct switch template this thread_local throw true try \
    typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq";

const CUDA: &str = "__device__ __global__ __shared__ __half __CUDA_ARCH__ NULL NAN INFINITY INT_MAX CUDA_VERSION CUDART_VERSION \
    TILEWRIGHT_KERNEL TILEWRIGHT_OFFSETOF TW_FN tw linux unix errno";

const GENERATED: &str = "BINDER CANDIDATE DTYPE GRID PARAMS PADDING SELF OTHER binder candidate dtype grid params padding other \
    Rows TYPE LOOP IN FN x kernel source declaration args dim dims tensor constant pointer strides THREADS \
    HAS_SCORE_MOD CTAS_PER_SM GRID_PER_SM SM_COUNT SOURCE SPECS";

const LISTED: [&str; 4] = [RUST, CPP, CUDA, GENERATED];

/// Those words and every name in generated bindings, as they are, in capitals, in small letters and with one capital.
fn words() -> BTreeSet<String> {
    let bindings = include_str!("../../generated/score.rs");
    let idents = bindings.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    // The strides of a tensor are a member of its name, so the two do not go together.
    let idents = idents
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()) && !word.ends_with("_stride"));
    let listed = LISTED.iter().copied().flat_map(str::split_whitespace);
    let spelt = |word: &str| {
        let capital = word[..1].to_uppercase() + &word[1..];
        [word.to_owned(), word.to_uppercase(), word.to_lowercase(), capital]
    };
    listed.chain(idents).flat_map(spelt).collect()
}

/// A declaration of `kernel` with names in one place.
type Place = (&'static str, fn(&str, &[String]) -> String);

const PLACES: &[Place] = &[
    ("tensors", |kernel, names| {
        let args = list(names, |name| format!("{name}: out Tensor<T, [zz_m | 1, zz_n]>"));
        format!("kernel! {{ fn {kernel}({args}) specialize {{ T: [f16] }} {BODY} }}")
    }),
    ("scalars", |kernel, names| {
        let args = list(names, |name| format!("{name}: f32"));
        format!("kernel! {{ fn {kernel}(zz_t: Option<Tensor<i32, [zz_n]>>, {args}) {BODY} }}")
    }),
    ("dimensions", |kernel, names| {
        let args = tensors(names, |name| format!("f32, [{name}]"));
        let sum = names.join(" + ");
        format!(
            "kernel! {{ fn {kernel}({args}) let zz_d = {sum}; require {sum} > 0, \"none\";
            body sm80 {{ launch {{ grid = [zz_d, {sum}, 1], threads = 32 }} }} }}"
        )
    }),
    ("derived dimensions", |kernel, names| {
        let lets: String = names.iter().map(|name| format!("let {name} = zz_n + 1; ")).collect();
        let sum = names.join(" + ");
        format!(
            "kernel! {{ fn {kernel}(zz_t: Tensor<f32, [zz_n]>) {lets}
            body sm80 {{ launch {{ grid = [{sum}, 1, 1], threads = 32 }} }} }}"
        )
    }),
    ("parameters", |kernel, names| {
        let (params, sum) = (list(names, |name| format!("{name}: [1]")), names.join(" + "));
        format!(
            "kernel! {{ fn {kernel}(zz_t: Tensor<f32, [zz_n]>) specialize {{ {params} }} functions {{ score_mod: ScoreMod }}
            let zz_d = zz_n + {sum}; require {sum} > 0 && zz_n > 0, \"none\";
            body sm80 {{ launch {{ grid = [zz_d, {sum}, 1], threads = 32 }} }} }}"
        )
    }),
    ("constants", |kernel, names| {
        let constants: String = names.iter().map(|name| format!("const {name} = 1; ")).collect();
        let sum = names.join(" + ");
        format!(
            "kernel! {{ fn {kernel}(zz_t: Tensor<f32, [zz_n]>) {constants} functions {{ score_mod: ScoreMod }}
            specialize {{ ZZ_P: [1] }} body sm80 {{ launch {{ grid = [{sum}, ZZ_P, 1], threads = 32 }} }} }}"
        )
    }),
    ("element types", |kernel, names| {
        let params = list(names, |name| format!("{name}: [f16]"));
        let args = tensors(names, |name| format!("{name}, [zz_n]"));
        format!("kernel! {{ fn {kernel}({args}) specialize {{ {params} }} {BODY} }}")
    }),
    ("tuning parameters", |kernel, names| {
        let (params, sum) = (list(names, |name| format!("{name}: [1]")), names.join(" + "));
        format!(
            "kernel! {{ fn {kernel}(zz_t: Tensor<f32, [zz_m, zz_n]>)
            body sm80 {{ tune {{ {params} }} launch {{ grid = [zz_n, {sum}, 1], threads = {sum} }} }}
            body sm90 {{ tune {{ {params} }} tensor_maps {{ zz_t: [{sum}, 64] }}
                launch {{ grid = [zz_n, {sum}, 1], threads = {sum} }} }} }}"
        )
    }),
    ("functions", |kernel, names| {
        let slot = format!("{}: ScoreMod", names[0]);
        format!(
            "kernel! {{ fn {kernel}(zz_t: Tensor<f32, [zz_n]>) specialize {{ A: [1] }} functions {{ {slot} }} {BODY} }}"
        )
    }),
    ("kernels", |_, names| format!("kernel! {{ fn {}(zz_t: Tensor<f32, [zz_n]>) {BODY} }}", names[0])),
];

const BODY: &str = "body sm80 { launch { grid = [zz_n, 1, 1], threads = 32 } }";

fn list(names: &[String], item: impl Fn(&String) -> String) -> String {
    names.iter().map(item).collect::<Vec<_>>().join(", ")
}

/// A tensor argument for each name.
fn tensors(names: &[String], ty: impl Fn(&String) -> String) -> String {
    let args = names.iter().enumerate().map(|(at, name)| format!("zz_t{at}: Tensor<{}>", ty(name)));
    args.collect::<Vec<_>>().join(", ")
}

#[test]
fn every_name_is_refused_or_compiles() {
    let folder = tempfile::tempdir().unwrap();
    let templates = folder.path().join("templates");
    let (mut kernels, mut refused) = (0, 0);
    let mut write = |kernel: &str, declaration: &str| {
        let kernel_folder = templates.join(kernel);
        std::fs::create_dir_all(&kernel_folder).unwrap();
        std::fs::write(kernel_folder.join("kernel.rs"), declaration).unwrap();
        for family in Family::ALL
            .map(Family::name)
            .into_iter()
            .filter(|family| declaration.contains(&format!("body {family}")))
        {
            std::fs::write(kernel_folder.join(format!("{family}.cu")), "").unwrap();
        }
        kernels += 1;
    };
    for (place, declare) in PLACES {
        let mut accepted = Vec::new();
        for word in words() {
            let text = declare("k", std::slice::from_ref(&word));
            match Kernel::parse("kernel.rs", &text) {
                Ok(_) => accepted.push(word),
                Err(Error::Declaration { line, column, message, .. }) => {
                    let at: String = text.lines().nth(line - 1).unwrap().chars().skip(column - 1).collect();
                    // Rust's own words are syn's to refuse, which may point at what it looked for instead.
                    let named =
                        at.starts_with(&word) || message.contains(&word) || message.contains("expected");
                    assert!(named, "`{word}` among {place}: {line}:{column}: {message}");
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(accepted.len() > 20, "among {place} only {accepted:?} are accepted");
        match *place {
            // A file for each: those of the lists are enough.
            "kernels" => {
                let listed =
                    |name: &&String| LISTED.iter().any(|list| list.split(' ').any(|word| word == **name));
                let names = accepted.iter().filter(listed);
                names.for_each(|name| write(name, &declare(name, std::slice::from_ref(name))));
            }
            // One function to a kernel; a few stand for all, which become members of one CUDA struct alone.
            "functions" => write("k_function", &declare("k_function", &accepted[..1])),
            _ => {
                for (at, names) in accepted.chunks(60).enumerate() {
                    let kernel = format!("k_{}_{at}", place.replace(' ', "_"));
                    write(&kernel, &declare(&kernel, names));
                }
            }
        }
    }
    println!("{refused} refused, {kernels} kernels");

    let out = folder.path().join("generated");
    std::fs::create_dir(&out).unwrap();
    for (name, text) in generated(&templates).unwrap().iter().filter(|(name, _)| name.ends_with(".rs")) {
        std::fs::write(out.join(name), text).unwrap();
    }
    std::fs::write(folder.path().join("library.rs"), LIBRARY).unwrap();
    rustc(folder.path(), &["--crate-name=tilewright", "--crate-type=lib", "--emit=metadata", "library.rs"])
        .unwrap();
    let extern_library = format!("tilewright={}", folder.path().join("libtilewright.rmeta").display());
    let said = rustc(
        &out,
        &[
            "--crate-name=bindings",
            "--crate-type=lib",
            "--emit=metadata",
            "-Dwarnings",
            "-Aspecial-module-name",
            "--extern",
            &extern_library,
            "mod.rs",
        ],
    );
    assert_eq!(said.map_err(|said| said.chars().take(4000).collect::<String>()), Ok(()));
}

/// C++ has no edition to refuse its words in, so none may get through.
#[test]
fn words_of_cpp_and_cuda_are_refused_everywhere() {
    let mut through = String::new();
    for (place, declare) in PLACES {
        for word in [CPP, CUDA].into_iter().flat_map(str::split_whitespace) {
            if Kernel::parse("kernel.rs", &declare("k", &[word.to_owned()])).is_ok() {
                writeln!(through, "{word} among {place}").unwrap();
            }
        }
    }
    assert_eq!(through, "");
}
