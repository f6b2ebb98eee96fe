use super::*;
use crate::lower::source_text;

#[test]
fn cuda_of_the_usual_functions() {
    for function in [
        score(softcap::SOURCE),
        score(alibi::SOURCE),
        score(everything::SOURCE),
        mask(causal::SOURCE),
        mask(sliding_window::SOURCE),
        mask(document::SOURCE),
    ] {
        insta::assert_snapshot!(function.name(), function.cuda());
    }
}

#[test]
fn cuda_of_absent_functions() {
    let text = [FunctionKind::ScoreMod, FunctionKind::MaskMod].map(DeviceFunction::absent).join("\n");
    insta::assert_snapshot!("absent", text);
}

#[test]
fn expressions() {
    let table = [
        ("1.0", "1.0f"),
        ("-0.0", "-0.0f"),
        ("16777217.0", "16777216.0f"),
        ("1e-45", "1e-45f"),
        ("f32::NEG_INFINITY", "__int_as_float(0xff800000)"),
        ("1f32 + 2.5e3", "1.0f + 2500.0f"),
        ("(i32::MIN + -2147483648) as f32", "(float)tw::add(-2147483647 - 1, -2147483647 - 1)"),
        ("-5 as i64 as f32", "(float)((long long)(-5ll))"),
        ("(q as usize + 3) as f32", "(float)(((unsigned long long)v_q) + 3ull)"),
        ("(q as u32 / 3) as f32", "(float)tw::div((unsigned)v_q, 3u)"),
        ("score as i64 as f32", "(float)tw::to_i64(v_score)"),
        ("score % 2.0", "fmodf(v_score, 2.0f)"),
        ("f32::max(1.0, score)", "fmaxf(1.0f, v_score)"),
        ("-score.powi(-2)", "-tw::powi(v_score, -2)"),
        ("if q < kv || true { score } else { 0.0 }", "((v_q < v_kv) || true) ? v_score : 0.0f"),
        ("if (q == 1) ^ (kv == 1) { 1.0 } else { 0.0 }", "((v_q == 1) != (v_kv == 1)) ? 1.0f : 0.0f"),
        ("return score;", "v_score"),
    ];
    for (rust, cuda) in table {
        let text =
            score(&format!("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ {rust} }}")).cuda();
        let expected = format!("        return {cuda};\n");
        assert!(text.contains(&expected), "{rust}\n{text}");
    }
}

#[test]
fn shadowing_and_odd_names_stay_apart() {
    let text = score(
        "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32, x: &[f32], x_len: f32) -> f32 {
            let x_len = x_len + x[0]; let x = x_len; let x_2 = x; let x = x + x_2; let é = x; é
        }",
    )
    .cuda();
    for line in [
        "const float* c_x;",
        "int c_x_len_2;",
        "float c_x_len;",
        "const float v_x_len = c_x_len + tw::read(c_x, c_x_len_2, 0ull);",
        "const float v_x_2 = v_x;",
        "const float v_x_3 = v_x + v_x_2;",
        "return v_ue9;",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn source_text_reads_back_as_the_same_function() {
    let item: syn::ItemFn = syn::parse_str(&format!("#[inline] pub {}", everything::SOURCE)).unwrap();
    let text = source_text(&item);
    assert!(text.starts_with("fn everything("), "{text}");
    assert_eq!(score(&text).cuda(), score(everything::SOURCE).cuda());
}
