mod extreme;
mod wide;

use super::*;
use crate::lower::CaptureValue;
use crate::lower::ir::Body;
use crate::lower::testing::{Methods, grow};
use std::collections::HashSet;

const HEAD: &str = "fn f(score: f32, b: i32, h: i32, q: i32, kv: i32, c: f32, n: i32, xs: &[f32]) -> f32";

fn captures() -> Vec<CaptureValue> {
    vec![CaptureValue::F32(1.75), CaptureValue::I32(3), CaptureValue::F32s(vec![0.5, -2.0, 0.25, 3.0])]
}

fn made(body: &str) -> DeviceFunction {
    score(&format!("{HEAD} {{ {body} }}"))
}

/// The functor's second method.
fn gradient_text(function: &DeviceFunction) -> String {
    let text = function.cuda_with_gradient();
    let (_, gradient) = text.split_once(" gradient(").expect("a score function has a derivative");
    let (_, body) = gradient.split_once("{\n").unwrap();
    body.split_once("    }\n};").unwrap().0.replace("        ", "")
}

#[test]
fn derivatives_of_the_usual_functions() {
    let temperature = score(
        "fn temperature(score: f32, b: i32, h: i32, q: i32, kv: i32, heads: &[f32]) -> f32 {
            score / heads[h as usize]
        }",
    );
    let bias_table = score(
        "fn bias_table(score: f32, b: i32, h: i32, q: i32, kv: i32, table: &[f32], gain: f32) -> f32 {
            let at = (q - kv).max(-64).min(64) + 64;
            let bias = table[at as usize] * gain;
            score + bias
        }",
    );
    let piecewise = score(
        "fn piecewise(score: f32, b: i32, h: i32, q: i32, kv: i32, knee: f32) -> f32 {
            let distance = (q - kv).abs() as f32;
            let soft = if score > knee {
                let over = score - knee;
                knee + (over + 1.0).ln() / (1.0 + distance).sqrt()
            } else {
                score
            };
            if kv <= q { soft.max(-100.0) } else { f32::NEG_INFINITY }
        }",
    );
    let sigmoid = score(
        "fn sigmoid(score: f32, b: i32, h: i32, q: i32, kv: i32, steepness: f32) -> f32 {
            let x = score * steepness;
            1.0 / (1.0 + (-x).exp())
        }",
    );
    for function in [
        sigmoid,
        score(softcap::SOURCE),
        score(alibi::SOURCE),
        score(everything::SOURCE),
        temperature,
        bias_table,
        piecewise,
    ] {
        insta::assert_snapshot!(format!("gradient_{}", function.name()), function.cuda_with_gradient());
    }
    let absent = DeviceFunction::absent_with_gradient(FunctionKind::ScoreMod);
    insta::assert_snapshot!("gradient_absent", absent);
    assert_eq!(mask(causal::SOURCE).cuda_with_gradient(), mask(causal::SOURCE).cuda());
}

#[test]
fn what_is_constant_leaves_no_trace() {
    let table = [
        ("score", "1.0f"),
        ("c", "0.0f"),
        ("score + xs[q as usize] * c.exp()", "1.0f"),
        ("let bias = { let at = h * n; xs[at as usize] }; bias + score", "1.0f"),
        ("-score", "-1.0f"),
        ("c - score", "-1.0f"),
        ("-(-score * 3.0)", "3.0f"),
        ("score * c", "c_c"),
        ("c * (score + 1.0)", "c_c"),
        ("score / c", "1.0f / c_c"),
        ("score as i32 as f32 + score.floor() * 2.0 + score.ceil()", "0.0f"),
        ("score - score", "0.0f"),
        ("score * 0.0", "0.0f"),
        ("score.powi(1) + score.powi(0)", "1.0f"),
        ("score.powi(2)", "2.0f * v_score"),
        ("if q < kv { score } else { score + c }", "1.0f"),
        ("if q < kv { score } else { 2.0 * score }", "(v_q < v_kv) ? 1.0f : 2.0f"),
        ("let d = xs[n as usize]; if d > score { c } else { d }", "0.0f"),
        ("score % c", "1.0f"),
        ("(score as f32).min(c)", "(fminf(v_score, c_c) == v_score) ? 1.0f : 0.0f"),
        ("c * (score / c).exp()", "expf(v_score / c_c)"),
    ];
    for (body, expected) in table {
        assert_eq!(gradient_text(&made(body)), format!("return {expected};\n"), "{body}");
    }
}

#[test]
fn the_sides_taken_at_kinks() {
    let inf = f32::INFINITY;
    let table: [(&str, f32, f32); 16] = [
        ("score.abs()", 0.0, 0.0),
        ("score.abs()", -2.0, -1.0),
        ("score.max(0.0)", 0.0, 1.0),
        ("0f32.max(score)", 0.0, 0.0),
        ("score.max(-2.0).min(2.0)", -2.0, 1.0),
        ("score.max(-2.0).min(2.0)", 2.0, 1.0),
        ("score.max(-2.0).min(2.0)", 2.5, 0.0),
        ("score.max(f32::NAN)", 3.0, 1.0),
        ("f32::NAN.min(score)", 3.0, 1.0),
        ("score.sqrt()", 0.0, 0.0),
        ("(score * score).sqrt()", 0.0, 0.0),
        ("score.ln()", 0.0, inf),
        ("score.powi(n - 3)", 0.0, 0.0),
        ("score.powi(n - 2)", 0.0, 1.0),
        ("if score > 0.0 { score.ln() } else { score }", 0.0, 1.0),
        ("if score == f32::NEG_INFINITY { -1e30 } else { score.exp() }", -inf, 0.0),
    ];
    for (body, at, expected) in table {
        assert_eq!(made(body).gradient(at, 0, 0, 0, 0, &captures()), Ok(expected), "{body} at {at}");
    }
}

/// Against the same function in f64, written again by hand.
#[test]
fn derivatives_are_the_slopes() {
    type Exact = fn(f64) -> f64;
    const C: f64 = 1.75;
    let table: [(&str, Exact); 26] = [
        ("c * (score / c).tanh()", |s| C * (s / C).tanh()),
        ("score * score * score - 2.0 * score", |s| s * s * s - 2.0 * s),
        ("(score + 4.0) / (score * score + c)", |s| (s + 4.0) / (s * s + C)),
        ("c / score", |s| C / s),
        ("score.exp() * (-score).exp2()", |s| s.exp() * (-s).exp2()),
        ("(score.exp() + 1.0).ln()", |s| s.exp().ln_1p()),
        ("(score * score + 1.0).log2() / c", |s| (s * s + 1.0).log2() / C),
        ("(score * score + c).sqrt()", |s| (s * s + C).sqrt()),
        ("(c * score).sin() + (score / c).cos()", |s| (C * s).sin() + (s / C).cos()),
        ("score.sin().cos().tanh()", |s| s.sin().cos().tanh()),
        ("score.powi(3) + score.powi(-2)", |s| s.powi(3) + s.powi(-2)),
        ("score.powi(n) * score.powi(-n + 1)", |s| s.powi(3) * s.powi(-2)),
        ("(score - 0.5).abs() * score", |s| (s - 0.5).abs() * s),
        ("score.max(c * score - 1.0)", |s| s.max(C * s - 1.0)),
        ("(score * 0.3).min(c)", |s| (s * 0.3).min(C)),
        ("score % c * score", |s| s % C * s),
        ("c % (score * score + 0.3)", |s| C % (s * s + 0.3)),
        ("-(-score).tanh() * -c", |s| (-(-s).tanh()) * -C),
        ("let x = score * c; let y = x * x; let x = y - x; x * y", |s| {
            let x = s * C;
            (x * x - x) * (x * x)
        }),
        ("({ let a = score + 1.0; a * a }) * { let a = score.exp(); a - c }", |s| {
            (s + 1.0).powi(2) * (s.exp() - C)
        }),
        ("if score > 0.7 { let t = score - 0.7; t * t + c } else { c * score }", |s| {
            if s > 0.7 { (s - 0.7).powi(2) + C } else { C * s }
        }),
        ("(if { let t = score.sin(); t * t } > 0.4 { score } else { score * score }) * score", |s| {
            if s.sin().powi(2) > 0.4 { s * s } else { s * s * s }
        }),
        ("let s = if q < 9 { if kv > 1 { score.exp() } else { 1.0 } } else { score }; s * s", |s| {
            (2.0 * s).exp()
        }),
        ("score * xs[(score * 2.0) as usize]", |s| {
            s * [0.5, -2.0, 0.25, 3.0].get((s * 2.0) as usize).copied().unwrap_or(0.0)
        }),
        ("score.floor() * score + (score as i32) as f32 * score", |s| s.floor() * s + s.trunc() * s),
        ("score + (kv as f32 / (q + 1) as f32).sqrt()", |s| s),
    ];
    for (body, exact) in table {
        let function = made(body);
        for at in [-3.21f32, -1.17, -0.38, 0.11, 0.63, 1.42, 2.9] {
            let (s, step) = (f64::from(at), 1e-5);
            let slope = (exact(s + step) - exact(s - step)) / (2.0 * step);
            let found = f64::from(function.gradient(at, 1, 2, 3, 4, &captures()).unwrap());
            assert!((found - slope).abs() <= 2e-5 * slope.abs().max(1.0), "{body} at {at}: {found}, {slope}");
        }
    }
}

/// Functions grown at random and their derivatives, both run in f64: the derivative is the slope wherever the slopes to
/// both sides agree, and every name of its text is declared once.
#[test]
fn derivatives_of_random_functions_are_their_slopes() {
    let (mut seen, mut state) = ([0, 0], 1u64);
    for _ in 0..6000 {
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u8
        };
        let length = 20 + usize::from(byte());
        let tape: Vec<u8> = (0..length).map(|_| byte()).collect();
        let (source, captures) = grow(FunctionKind::ScoreMod, Methods::All, &tape);
        let function = score(&source);
        names_are_declared_once(&function.cuda_with_gradient());
        for at in [-2.3f64, -0.7, 0.4, 1.9] {
            let mut peak = 0.0f64;
            let mut run = |body: &Body, score: f64| {
                let (value, reached) = wide::run(body, &captures, score);
                peak = peak.max(reached);
                value
            };
            let step = 1e-5;
            let [low, here, high] = [-step, 0.0, step].map(|by| run(&function.body, at + by));
            let found = run(function.gradient.as_ref().unwrap(), at);
            let (left, right) = ((here - low) / step, (high - here) / step);
            // Beyond this the difference is lost in the rounding of what it is taken of.
            if !(peak < 1e5 && here.is_finite()) || (left - right).abs() > 1e-3 * left.abs().max(1.0) {
                continue;
            }
            let slope = (high - low) / (2.0 * step);
            assert!(
                (found - slope).abs() <= 1e-3 * slope.abs().max(1.0),
                "{source} at {at}: {found}, {slope}"
            );
            seen[usize::from(slope.abs() > 1e-3)] += 1;
        }
    }
    assert!(seen[1] >= 1000, "{seen:?}");
}

/// Every rule reads a slope once: what would double with each step of these ends in no time and memory otherwise.
#[test]
fn long_functions_have_long_derivatives_and_not_more() {
    let lets = "let score = score * score.sin() + c.min(score) / (score + 2.0);".repeat(300);
    let product = vec!["(score + c)"; 90].join(" * ");
    let nested = format!("{}score{}", "(score * ".repeat(20), ".tanh() + 1.0)".repeat(20));
    let branches = format!(
        "{}score{}",
        "if score > c { let x = score.exp(); x } else { let x = ".repeat(30),
        "; x * score }".repeat(30)
    );
    for body in [format!("{lets} score"), product, nested, branches] {
        let function = made(&body);
        let (plain, both) = (function.cuda().len(), function.cuda_with_gradient().len());
        println!("{plain} bytes, {both} with the derivative");
        assert!(both < 40 * plain, "{plain} bytes became {both}");
        assert!(function.gradient(0.3, 0, 0, 0, 0, &captures()).unwrap().is_finite());
    }
}

fn names_are_declared_once(text: &str) {
    let mut scopes = vec![HashSet::new()];
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with('}') {
            scopes.pop();
        }
        let declaration = line.split(" = ").next().unwrap_or_default().trim_end_matches(';');
        if let Some((ty, name)) = declaration.rsplit_once(' ')
            && (name.starts_with("v_") || name.starts_with("t_"))
            && ty != "return"
            && !ty.contains(' ') | ty.starts_with("const ") | ty.starts_with("unsigned ")
        {
            assert!(scopes.last_mut().unwrap().insert(name.to_owned()), "{name} twice in\n{text}");
        }
        if line.ends_with('{') {
            scopes.push(HashSet::new());
        }
    }
}
