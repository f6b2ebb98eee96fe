//! Device functions made from text at run time: the same results as the macros' functions, and errors with positions.

mod support;

use support::{Case, Random, compare};
use tilewright::codegen::lower::CaptureError;
use tilewright::{
    Attention, BlockMask, CaptureValue, Device, DeviceFn, DynamicMaskMod, DynamicScoreMod, Error,
    FunctionError, HeadDim, MaskMod, Output, ScoreMod, SeqLens, mask_mod, score_mod, top_k,
};

#[score_mod]
fn bent(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32, slopes: &[f32]) -> f32 {
    let near = (q - kv).abs() <= 8 * (h + 1);
    let capped = cap * (score / cap).tanh();
    if near { capped } else { capped - slopes[h as usize] * ((q - kv).abs() as f32).ln() - b as f32 }
}

#[mask_mod]
fn document(b: i32, h: i32, q: i32, kv: i32, ids: &[i32], causal: bool) -> bool {
    ids[q as usize] == ids[kv as usize] && (!causal || q >= kv + h)
}

/// The dynamic twins of a score and a mask function.
fn twins(score: &bent, mask: &document) -> (DynamicScoreMod, DynamicMaskMod) {
    (
        DynamicScoreMod::new(score.source(), score.captures()).unwrap(),
        DynamicMaskMod::new(mask.source(), mask.captures()).unwrap(),
    )
}

fn functions() -> (bent, document) {
    let ids = (0..260).map(|i| i * i / 5000).collect();
    (bent { cap: 4.0, slopes: vec![0.5, 0.25] }, document { ids, causal: true })
}

#[test]
fn element_by_element_it_is_the_function_of_the_macro() {
    let (score, mask) = functions();
    let (score_twin, mask_twin) = twins(&score, &mask);
    assert_eq!((score_twin.name(), mask_twin.name()), ("bent", "document"));
    for q in 0..70 {
        for kv in 0..260 {
            for (b, h) in [(0, 0), (1, 1), (0, 1)] {
                let s = (q * 31 + kv * 17) as f32 / 1e3 - 9.0;
                let (found, expected) = (score_twin.score(s, b, h, q, kv), score.score(s, b, h, q, kv));
                assert_eq!(found.to_bits(), expected.to_bits(), "score {s} {b} {h} {q} {kv}");
                assert_eq!(mask_twin.keep(b, h, q, kv), mask.keep(b, h, q, kv), "mask {b} {h} {q} {kv}");
            }
        }
    }
}

#[test]
fn attention_on_the_cpu_is_the_same() {
    let case = Case { seq_q: 150, seq_kv: 260, batch: 2, d: 64, ..Case::SMALL };
    let [q, k, v] = case.qkv(&mut Random(29));
    let (score, mask) = functions();
    let (score_twin, mask_twin) = twins(&score, &mask);
    let builder = || Attention::builder(HeadDim::D64, case.dtype).select(top_k(0.7));
    let run = |attention: Attention| {
        let Output { out, lse, mask } = attention.forward(&q, &k, &v).unwrap();
        let kept = mask.sparsity().unwrap();
        (out.to_f32_vec().unwrap(), lse.to_f32_vec().unwrap(), kept)
    };
    let dynamic = run(builder()
        .score_mod(score_twin.clone())
        .mask_mod(mask_twin.clone())
        .build(&Device::cpu())
        .unwrap());
    let compiled = run(builder().score_mod(score).mask_mod(mask).build(&Device::cpu()).unwrap());
    assert_eq!(dynamic, compiled);
    assert!(dynamic.2 > 0.0);

    // And against f64, over blocks of its own.
    let [batch, heads, ..] = case.grid();
    let own =
        BlockMask::from_mask_mod(&mask_twin, batch, heads, case.block_size(), SeqLens { q: 150, kv: 260 })
            .unwrap();
    compare(&case, &[q, k, v], &own, Some(&score_twin), Some(&mask_twin));
}

#[test]
fn other_captures_leave_the_text_alone() {
    let source = "fn window(b: i32, h: i32, q: i32, kv: i32, size: i32) -> bool { q - kv < size }";
    let narrow = DynamicMaskMod::new(source, vec![CaptureValue::I32(2)]).unwrap();
    let wide = narrow.with_captures(vec![CaptureValue::I32(9)]).unwrap();
    assert!(!narrow.keep(0, 0, 5, 0) && wide.keep(0, 0, 5, 0));
    assert_eq!(narrow.source(), wide.source());
    assert_eq!(narrow.function().cuda(), wide.function().cuda());
    let error = narrow.with_captures(vec![CaptureValue::F32(2.0)]).unwrap_err();
    assert!(matches!(error, FunctionError::Captures(CaptureError::Type { .. })), "{error}");
}

#[test]
fn many_locals_are_run_too() {
    let lets: String = (1..60).map(|i| format!("let x{i} = x{} + {i}.0;\n", i - 1)).collect();
    let source =
        format!("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ let x0 = score;\n{lets} x59 }}");
    let function = DynamicScoreMod::new(&source, vec![]).unwrap();
    assert_eq!(function.score(0.5, 0, 0, 0, 0), 1770.5);
}

#[test]
fn what_rust_would_panic_on_is_total() {
    let source = "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32, xs: &[f32]) -> f32 {
        xs[(q - kv) as usize] + (q / kv) as f32
    }";
    let function = DynamicScoreMod::new(source, vec![CaptureValue::F32s(vec![1.0, 2.0])]).unwrap();
    assert_eq!(function.score(0.0, 0, 0, 1, 0), 2.0);
    assert_eq!(function.score(0.0, 0, 0, 1, 4), 0.0);
}

#[test]
fn errors_have_positions() {
    let refused = |source: &str| DynamicMaskMod::new(source, vec![]).unwrap_err();
    let source =
        "fn late(b: i32, h: i32, q: i32, kv: i32) -> bool {\n    let d = q - kv;\n    d.cbrt() > 2\n}";
    let error = refused(source);
    let FunctionError::Source { line, column, width, message, text } = &error else { panic!("{error:?}") };
    assert_eq!((*line, *column, *width, text.as_str()), (3, 7, 4, "    d.cbrt() > 2"));
    assert!(message.contains("`cbrt` is not supported in a device function: the methods are"), "{message}");
    let shown = Error::from(error.clone()).to_string();
    assert!(shown.starts_with("3:7: `cbrt`"), "{shown}");
    assert!(shown.ends_with("\n        d.cbrt() > 2\n          ^^^^"), "{shown}");

    for (source, message) in [
        ("fn f(b: i32, h: i32, q: i32, kv: i32) -> f32 { 1.0 }", "a mask_mod returns `bool`"),
        ("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> bool { true }", "leading parameters"),
        ("q >= kv", "expected"),
        ("", "expected"),
    ] {
        let shown = refused(source).to_string();
        assert!(shown.contains(message), "{source}\n{shown}");
    }
    let deep = format!(
        "fn f(b: i32, h: i32, q: i32, kv: i32) -> bool {{ {}true{} }}",
        "(".repeat(500),
        ")".repeat(500)
    );
    assert!(refused(&deep).to_string().contains("brackets may nest"));
    let missing = "fn f(b: i32, h: i32, q: i32, kv: i32, n: i32) -> bool { q < n }";
    assert!(matches!(
        refused(missing),
        FunctionError::Captures(CaptureError::Count { expected: 1, found: 0, .. })
    ));
}

/// A text of one long line, or with what a terminal would obey, makes a message that can be read.
#[test]
fn messages_show_what_is_around_the_mistake() {
    let sum = "score + ".repeat(90);
    let ask = "let \u{7}x = 1; ";
    for text in [
        format!("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ {sum} wrong + {sum} score }}"),
        format!(
            "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ score as {} }}",
            "A<B>::".repeat(300)
        ),
        format!(
            "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ {}{ask} }}",
            "let y = score; ".repeat(50)
        ),
        format!("fn f(score: f32, {} b: i32) -> f32 {{ score }}", " ".repeat(60_000)),
    ] {
        let shown = DynamicScoreMod::new(&text, vec![]).unwrap_err().to_string();
        assert!(shown.len() < 1000 && shown.contains('^'), "{} bytes: {shown}", shown.len());
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
}

/// What is too deep is an error on a thread of any stack, and what is not runs there.
#[test]
fn small_stacks_are_enough() {
    let head = "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32";
    let on_a_small_stack = |body: String| {
        let text = format!("{head} {{ {body} }}");
        let run = move || {
            DynamicScoreMod::new(&text, vec![])
                .map(|made| (made.score(0.5, 0, 0, 0, 0), made.gradient(0.5, 0, 0, 0, 0)))
        };
        std::thread::Builder::new().stack_size(512 << 10).spawn(run).unwrap().join().unwrap()
    };
    for (nested, n) in
        [("A<", 1100), ("|| ", 2100), ("return ", 3200), ("-", 6300), ("score + ", 7000), ("& ", 2500)]
    {
        let error = on_a_small_stack(format!("{}score", nested.repeat(n))).unwrap_err();
        assert!(matches!(error, FunctionError::Source { .. }), "{error}");
    }
    let deep = format!("{}score{}", "(0.5 + ".repeat(30), ".tanh())".repeat(30));
    assert!(on_a_small_stack(deep).unwrap().1 > 0.0);
    assert_eq!(on_a_small_stack(format!("{}score", "score + ".repeat(98))).unwrap(), (49.5, 99.0));
}
