//! Which names a declaration may use: each becomes one in Rust and one in CUDA.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::{Error, Ident, Result};

/// Words of C++, of CUDA and of compilers that are names in Rust.
const CPP_WORDS: &[&str] = &[
    "alignas",
    "alignof",
    "and",
    "and_eq",
    "asm",
    "auto",
    "bitand",
    "bitor",
    "bool",
    "case",
    "catch",
    "char",
    "char16_t",
    "char32_t",
    "char8_t",
    "class",
    "co_await",
    "co_return",
    "co_yield",
    "compl",
    "concept",
    "const_cast",
    "consteval",
    "constexpr",
    "constinit",
    "decltype",
    "default",
    "delete",
    "double",
    "dynamic_cast",
    "explicit",
    "export",
    "float",
    "friend",
    "goto",
    "inline",
    "int",
    "long",
    "mutable",
    "namespace",
    "new",
    "noexcept",
    "not",
    "not_eq",
    "nullptr",
    "operator",
    "or",
    "or_eq",
    "private",
    "protected",
    "public",
    "register",
    "reinterpret_cast",
    "requires",
    "short",
    "signed",
    "sizeof",
    "static_assert",
    "static_cast",
    "switch",
    "template",
    "this",
    "thread_local",
    "throw",
    "typedef",
    "typeid",
    "typename",
    "union",
    "unsigned",
    "using",
    "void",
    "volatile",
    "wchar_t",
    "xor",
    "xor_eq",
    // Macros of compilers and of the headers that nvcc includes.
    "CHAR_BIT",
    "CHAR_MAX",
    "CHAR_MIN",
    "EOF",
    "HUGE_VAL",
    "INFINITY",
    "INT_MAX",
    "INT_MIN",
    "LLONG_MAX",
    "LLONG_MIN",
    "LONG_MAX",
    "LONG_MIN",
    "NAN",
    "NULL",
    "RAND_MAX",
    "SHRT_MAX",
    "SHRT_MIN",
    "UCHAR_MAX",
    "UINT_MAX",
    "ULLONG_MAX",
    "ULONG_MAX",
    "USHRT_MAX",
    "errno",
    "i386",
    "linux",
    "unix",
];

/// Words of an edition of Rust that are names in another.
const RUST_WORDS: &[&str] = &["gen"];

/// Names the generated prelude and bindings use themselves.
const RESERVED: &[&str] = &[
    "CTAS_PER_SM",
    "Functions",
    "GRID_PER_SM",
    "MaskMod",
    "Params",
    "SMEM_BYTES",
    "SM_COUNT",
    "ScoreMod",
    "TensorMap",
    "TensorMaps",
    "THREADS",
    "binder",
    "candidate",
    "dtype",
    "grid",
    "padding",
    "params",
    "tw",
    // Parameters that would be the bindings' own variables in small letters.
    "BINDER",
    "CANDIDATE",
];

/// Items in capitals of a kernel's generated module: no constant is named so.
pub(super) const OF_BINDINGS: &[&str] = &["SOURCE", "SPECS"];

/// What macros of the generated code and of CUDA's headers begin with.
const RESERVED_PREFIXES: &[&str] = &["CUDART_", "CUDA_", "TILEWRIGHT_", "TW_"];

/// The most letters of a name: variants, and the files they are kept in, are named after several.
const MOST_LETTERS: usize = 64;

/// Refuses a name that is none in Rust or in CUDA, or is taken there.
pub(super) fn check(ident: &Ident) -> Result<()> {
    let name = ident.unraw().to_string();
    if name.len() > MOST_LETTERS {
        let message = format!("a name has at most {MOST_LETTERS} letters, found {}", name.len());
        return Err(Error::new(ident.span(), message));
    }
    let reserved_in_cpp = name.contains("__")
        || name.strip_prefix('_').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    let why = if *ident == "_" || !name.is_ascii() || *ident != name {
        "is no plain name in both Rust and CUDA"
    } else if CPP_WORDS.contains(&name.as_str()) {
        "is a word of C++"
    } else if RUST_WORDS.contains(&name.as_str()) {
        "is a word of Rust"
    } else if reserved_in_cpp {
        "is of a form that C++ keeps for compilers"
    } else if RESERVED.contains(&name.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    {
        "is a name of the generated code"
    } else {
        return Ok(());
    };
    Err(refused(ident, why))
}

/// The error for a name.
pub(super) fn refused(ident: &Ident, why: &str) -> Error {
    Error::new(ident.span(), format!("`{ident}` {why}: rename it"))
}

/// The variable that a name is in generated Rust: in small letters, and raw where that is a keyword. `None` of `SELF` and
/// the few other words that no variable can have.
pub(crate) fn variable(name: &str) -> Option<Ident> {
    let small = name.to_lowercase();
    if matches!(small.as_str(), "self" | "super" | "crate" | "_") {
        return None;
    }
    let plain = syn::parse_str::<Ident>(&small).is_ok() && !RUST_WORDS.contains(&small.as_str());
    let make = if plain { Ident::new } else { Ident::new_raw };
    Some(make(&small, Span::call_site()))
}
