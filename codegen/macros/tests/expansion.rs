//! What the attributes make, against the run-time crate's own traits.

extern crate self as tilewright;

#[path = "../../../src/function.rs"]
pub mod function;
pub use function::{CaptureValue, DeviceFn, MaskMod, ScoreMod};

use tilewright_codegen::lower::{DeviceFunction, FunctionKind, Value};
use tilewright_macros::{mask_mod, score_mod};

/// Soft-capping.
#[score_mod]
pub fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

#[score_mod]
fn score(s: f32, _b: i32, _h: i32, q: i32, _kv: i32, r#type: bool, table: &[f32]) -> f32 {
    let at = q as usize;
    if r#type && at < table.len() { s + table[at] } else { s }
}

/// One of everything that a derivative is made of.
#[score_mod]
fn everything(
    score: f32,
    b: i32,
    h: i32,
    q: i32,
    kv: i32,
    knee: f32,
    r#struct: bool,
    window: u32,
    bias: &[f32],
    ids: &[u32],
    n: i32,
) -> f32 {
    let by = -3i64;
    let hidden = !(h != 0 && r#struct);
    let least = if !hidden || b < -2147483648 + 1 { score } else { -score };
    let distance = {
        let d = q - kv;
        if d < 0 { -d } else { d }
    };
    let near = (distance as u32) < window || ids[2] == 4_000_000_000;
    let bent = if near {
        let at = (distance % 4) as usize;
        let x = least.sin() + bias[at];
        (x * x).powi(2) - x.powi(n) / x.cos().abs()
    } else if bias.len() > 3 {
        let e = f32::exp(least).min(1e-3) + least.exp2();
        e - (by * 5_000_000_000) as f32 % knee * least
    } else {
        f32::NEG_INFINITY
    };
    let mixed = (((bent.abs() as i32 & 15 | 2 ^ !h) / n) as f32).max(least * 0.1);
    let capped = knee * (mixed / knee).tanh() % (1.5 + least.floor());
    let logs =
        (score * score + 1.0).ln() * (score.abs() + 0.5).log2() - (score * score + bias[1]).sqrt().ceil();
    let rest = 1.0 / (score * score + 1.0) + (distance.abs().min(7) - n.max(2)) as f32;
    (capped + logs.max(-30.0)) * 0.5 + rest * bent
}

#[mask_mod]
pub(crate) fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

#[cfg(any())]
#[mask_mod]
fn switched_off(b: i32, h: i32, q: i32, kv: i32) -> bool {
    compile_error!()
}

#[test]
fn the_function_stays_and_the_struct_runs_it() {
    let capped = softcap { cap: 2.0 };
    assert_eq!(capped.score(3.0, 0, 0, 0, 0), softcap(3.0, 0, 0, 0, 0, 2.0));
    assert_eq!((capped.name(), capped.captures()), ("softcap", vec![CaptureValue::F32(2.0)]));

    let biased = score { r#type: true, table: vec![0.5, 0.25] }.clone();
    assert_eq!(biased.score(1.0, 0, 0, 1, 0), 1.25);
    assert_eq!(biased.captures(), [CaptureValue::Bool(true), CaptureValue::F32s(vec![0.5, 0.25])]);

    let mask: Box<dyn MaskMod> = Box::new(causal {});
    assert!(mask.keep(0, 0, 3, 3) && !mask.keep(0, 0, 3, 4));
    assert!(mask.captures().is_empty());
}

#[test]
fn the_source_reads_back() {
    let biased = score { r#type: true, table: vec![0.5, 0.25] };
    let function = DeviceFunction::from_source(FunctionKind::ScoreMod, biased.source()).unwrap();
    assert_eq!(function.name(), "score");
    let value = function.eval(1.0, 0, 0, 1, 0, &biased.captures()).unwrap();
    assert_eq!(value, Value::F32(biased.score(1.0, 0, 0, 1, 0)));
    assert_eq!(
        softcap { cap: 1.0 }.source(),
        "fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {\n    \
         cap * (score / cap).tanh()\n}\n"
    );
}

#[test]
fn the_derivative_is_that_of_the_interpreter() {
    let bias = [0.5, -0.25, 1.0, 2.0];
    let functions = [(true, 50, 3, bias.len()), (false, 0, -2, bias.len()), (true, 0, 1, 2), (true, 9, 0, 4)]
        .map(|(flag, window, n, len)| everything {
            knee: 1.5,
            r#struct: flag,
            window,
            bias: bias[..len].to_vec(),
            ids: vec![1, 2, 3],
            n,
        });
    let mut seen = std::collections::HashSet::new();
    for function in functions {
        let parsed = DeviceFunction::from_source(FunctionKind::ScoreMod, function.source()).unwrap();
        for (h, q, kv) in [(0, 0, 0), (3, 5, 60), (1, 60, 5), (0, 3, 2)] {
            for s in [0.0, -2.75, 0.3, 1.5, 40.0] {
                let expected = parsed.gradient(s, 1, h, q, kv, &function.captures()).unwrap();
                let found = function.gradient(s, 1, h, q, kv);
                let close = (found - expected).abs() <= 1e-5 * expected.abs();
                let same = close || found == expected || found.is_nan() && expected.is_nan();
                assert!(same, "{function:?} at {s}, {h}, {q}, {kv}: {found}, {expected}");
                seen.insert(found.to_bits());
            }
        }
    }
    assert!(seen.len() > 40, "{}", seen.len());
    assert_eq!(softcap { cap: 30.0 }.gradient(0.0, 0, 0, 0, 0), 1.0);
    // An index out of range reads 0, on the host too: the branch that guards it need not be taken.
    assert_eq!(score { r#type: true, table: Vec::new() }.gradient(1.0, 0, 0, 9, 0), 1.0);
}

mod inside_a_function {
    use tilewright_macros::mask_mod;

    #[test]
    fn works() {
        #[mask_mod]
        fn even(b: i32, h: i32, q: i32, kv: i32, stride: u32) -> bool {
            (kv as u32).min(7) % stride == 0
        }
        assert!(crate::MaskMod::keep(&even { stride: 2 }, 0, 0, 0, 4));
    }
}
