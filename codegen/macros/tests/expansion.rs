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
