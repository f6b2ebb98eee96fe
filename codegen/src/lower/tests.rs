//! Tests of the layer as a whole: its CUDA text, its messages and its meaning.

mod derivative;
mod errors;
mod meaning;
mod text;

use super::{DeviceFunction, FunctionKind};

fn score(source: &str) -> DeviceFunction {
    DeviceFunction::from_source(FunctionKind::ScoreMod, source)
        .unwrap_or_else(|error| panic!("{error}\n{source}"))
}

fn mask(source: &str) -> DeviceFunction {
    DeviceFunction::from_source(FunctionKind::MaskMod, source)
        .unwrap_or_else(|error| panic!("{error}\n{source}"))
}

/// Defines a Rust function and a constant `SOURCE` with its text, in a module of its own.
macro_rules! both {
    ($name:ident, $($function:tt)*) => {
        mod $name {
            #![allow(unused_variables, clippy::too_many_arguments, clippy::nonminimal_bool)]
            pub(crate) const SOURCE: &str = stringify!($($function)*);
            pub(crate) $($function)*
        }
    };
}

both! { softcap, fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
} }

both! { alibi, fn alibi(score: f32, b: i32, h: i32, q: i32, kv: i32, heads: i32) -> f32 {
    let slope = (-8.0 * (h + 1) as f32 / heads as f32).exp2();
    score - slope * (q - kv).abs() as f32
} }

both! { causal, fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool { q >= kv } }

both! { sliding_window, fn sliding_window(b: i32, h: i32, q: i32, kv: i32, window: i32) -> bool {
    q >= kv && q - kv < window
} }

both! { document, fn document(b: i32, h: i32, q: i32, kv: i32, doc: &[i32]) -> bool {
    doc[q as usize] == doc[kv as usize]
} }

both! { everything, fn everything(
    score: f32, _b: i32, h: i32, q: i32, kv: i32,
    float: f32, r#struct: bool, window: u32, bias: &[f32], ids: &[u32]
) -> f32 {
    let n: i64 = -3;
    let x = 2;
    let score = if r#struct && !(h == 0) { score } else { -score };
    let distance = {
        let d = q - kv;
        if d < 0 { -d } else { d }
    };
    let near = (distance as u32) < window || ids[x] == 4_000_000_000;
    let score = if near {
        let at = (distance % 7) as usize;
        score + bias[at] * float.powi(2)
    } else if bias.len() > 3 {
        f32::exp(score).min(1e-3) - (n * 5_000_000_000) as f32
    } else {
        f32::NEG_INFINITY
    };
    let mixed = (score.abs().sqrt() as i32 & 15 | x as i32 ^ !h) / (q - 5);
    return score.max(mixed as f32 + 0.1 % float) * 0.5;
} }
