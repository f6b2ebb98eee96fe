use proptest::prelude::*;

use super::*;
use crate::lower::testing::{Methods, device_function};
use crate::lower::{CaptureError, CaptureValue, EvalError, Value};

const POSITIONS: [i32; 7] = [0, 1, 2, 6, 63, 1000, 2_000_000];

#[test]
fn the_interpreter_agrees_with_the_rust_function() {
    let doc = vec![0, 0, 1, 1, 1, 2, 2];
    let (bias, ids) = (vec![0.5, -1.0, 2.0, 0.25, 8.0, 1.0, -3.0], vec![1, 2, 4_000_000_000]);
    let softcap_mod = score(softcap::SOURCE);
    let alibi_mod = score(alibi::SOURCE);
    let everything_mod = score(everything::SOURCE);
    let causal_mod = mask(causal::SOURCE);
    let window_mod = mask(sliding_window::SOURCE);
    let document_mod = mask(document::SOURCE);
    for (h, q, kv) in
        POSITIONS.iter().flat_map(|&q| POSITIONS.iter().flat_map(move |&kv| [(0, q, kv), (3, q, kv)]))
    {
        for s in [0.0, -2.75, 40.0, f32::NEG_INFINITY] {
            let run = |function: &DeviceFunction, captures: &[CaptureValue]| {
                function.eval(s, 1, h, q, kv, captures).unwrap().as_f32().unwrap().to_bits()
            };
            assert_eq!(
                run(&softcap_mod, &[CaptureValue::F32(30.0)]),
                softcap::softcap(s, 1, h, q, kv, 30.0).to_bits()
            );
            assert_eq!(run(&alibi_mod, &[CaptureValue::I32(8)]), alibi::alibi(s, 1, h, q, kv, 8).to_bits());
            for flag in [true, false] {
                if q == 5 {
                    continue; // A division by zero, where Rust panics and the device goes on.
                }
                let captures = [
                    CaptureValue::F32(1.5),
                    CaptureValue::Bool(flag),
                    CaptureValue::U32(50),
                    CaptureValue::F32s(bias.clone()),
                    CaptureValue::U32s(ids.clone()),
                ];
                assert_eq!(
                    run(&everything_mod, &captures),
                    everything::everything(s, 1, h, q, kv, 1.5, flag, 50, &bias, &ids).to_bits(),
                    "{s} {h} {q} {kv} {flag}"
                );
            }
        }
        let keep = |function: &DeviceFunction, captures: &[CaptureValue]| {
            function.eval(0.0, 1, h, q, kv, captures).unwrap().as_bool().unwrap()
        };
        assert_eq!(keep(&causal_mod, &[]), causal::causal(1, h, q, kv));
        assert_eq!(
            keep(&window_mod, &[CaptureValue::I32(64)]),
            sliding_window::sliding_window(1, h, q, kv, 64)
        );
        if q < 7 && kv < 7 {
            assert_eq!(
                keep(&document_mod, &[CaptureValue::I32s(doc.clone())]),
                document::document(1, h, q, kv, &doc)
            );
        }
    }
}

#[test]
fn where_rust_would_panic_the_device_goes_on() {
    let table: [(&str, f32); 16] = [
        ("(q / 0) as f32", 0.0),
        ("(q % 0) as f32", 0.0),
        ("(i32::MIN / -1) as f32", i32::MIN as f32),
        ("(i32::MIN % -1) as f32", 0.0),
        ("(i64::MIN / -1) as f32", i64::MIN as f32),
        ("(i32::MAX + 1) as f32", i32::MIN as f32),
        ("(0 - 1 - q as usize) as f32", u64::MAX as f32),
        ("i32::MIN.abs() as f32", i32::MIN as f32),
        ("xs[1] + xs[2]", 5.0),
        ("xs[-1 as i32 as usize]", 0.0),
        ("f32::NAN as i64 as f32", 0.0),
        ("f32::INFINITY as i32 as f32", i32::MAX as f32),
        ("(-3.9f32) as u32 as f32", 0.0),
        ("f32::NAN.min(2.0)", 2.0),
        ("2f32.powi(-3) + 0f32.powi(0)", 1.125),
        ("1.0 / 0f32.min(-0.0)", f32::NEG_INFINITY),
    ];
    for (rust, expected) in table {
        let source = format!("fn f(s: f32, b: i32, h: i32, q: i32, kv: i32, xs: &[f32]) -> f32 {{ {rust} }}");
        let value = score(&source).eval(0.0, 0, 0, 0, 0, &[CaptureValue::F32s(vec![3.0, 5.0])]);
        assert_eq!(value, Ok(Value::F32(expected)), "{rust}");
    }
}

#[test]
fn wrong_captures_are_an_error() {
    let error = score(softcap::SOURCE).eval(0.0, 0, 0, 0, 0, &[CaptureValue::I32(1)]).unwrap_err();
    assert!(matches!(error, EvalError::Captures(CaptureError::Type { .. })));
}

proptest! {
    #[test]
    fn random_functions_pass_the_checker_and_run(
        (is_score, (source, captures)) in prop_oneof![
            device_function(FunctionKind::ScoreMod, Methods::All).prop_map(|made| (true, made)),
            device_function(FunctionKind::MaskMod, Methods::Exact).prop_map(|made| (false, made)),
        ],
        s in any::<f32>(), h in 0..64i32, q in any::<i32>(), kv in 0..8i32,
    ) {
        let function = if is_score { score(&source) } else { mask(&source) };
        let value = function.eval(s, 0, h, q, kv, &captures).unwrap();
        prop_assert_eq!(is_score, value.as_f32().is_some());
        prop_assert_eq!(function.cuda(), function.cuda());
        let slices = captures.iter().filter(|capture| capture.slice_len().is_some()).count();
        prop_assert_eq!(function.pack(&captures, &vec![0; slices]).unwrap().len(), function.layout().size);
        let again = crate::lower::source_text(&syn::parse_str(&source).unwrap());
        let again = if is_score { score(&again) } else { mask(&again) };
        prop_assert_eq!(again.cuda(), function.cuda());
    }
}
