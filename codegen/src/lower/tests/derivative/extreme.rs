//! Derivatives where something on the way overflows or vanishes: no 0 · ∞, no ∞ / ∞, no 0 / 0.

use super::*;
use proptest::prelude::*;

/// Scores at the ends of what `exp` takes, of what a model gives and of what f32 holds.
const SCORES: &[f32] = &[
    0.0, 1e-40, 1e-30, 1e-5, 0.5, 1.0, 3.0, 8.7, 8.8, 8.9, 9.2, 17.0, 43.0, 44.4, 60.0, 80.0, 86.0, 87.3,
    88.0, 88.5, 88.8, 90.0, 100.0, 104.0, 120.0, 300.0, 1000.0, 1e4,
];

fn scores() -> impl Iterator<Item = f32> {
    SCORES.iter().flat_map(|&score| [score, -score])
}

/// The logistic function and its derivative, exact at both ends.
fn logistic(s: f64) -> f64 {
    if s < 0.0 { s.exp() / (1.0 + s.exp()) } else { 1.0 / (1.0 + (-s).exp()) }
}

fn logistic_slope(s: f64) -> f64 {
    logistic(s) * logistic(-s)
}

#[test]
fn derivatives_at_both_ends() {
    type Exact = fn(f64) -> f64;
    let table: &[(&str, Exact)] = &[
        ("1.0 / (1.0 + (-score).exp())", logistic_slope),
        ("1.0 / (1.0 + (-10.0 * score).exp())", |s| 10.0 * logistic_slope(10.0 * s)),
        ("let e = (-10.0 * score).exp(); let b = 1.0 + e; let y = 1.0 / b; y", |s| {
            10.0 * logistic_slope(10.0 * s)
        }),
        ("let x = score * 10.0; (1.0 + (-x).exp()).powi(-1)", |s| 10.0 * logistic_slope(10.0 * s)),
        ("(1.0 + (-score * 10.0).exp()).powi(n - 4)", |s| 10.0 * logistic_slope(10.0 * s)),
        ("1.0 / (1.0 + (-2.0 * score).exp2())", |s| 2.0 * 2f64.ln() * logistic_slope(2.0 * 2f64.ln() * s)),
        ("score / (1.0 + (-4.0 * score).exp())", |s| logistic(4.0 * s) + 4.0 * s * logistic_slope(4.0 * s)),
        ("score * (1.0 / (1.0 + (-1.75 * score).exp()))", |s| {
            logistic(1.75 * s) + 1.75 * s * logistic_slope(1.75 * s)
        }),
        // The sum of two slopes that overflow.
        ("1.0 / (1.0 + (-3.0 * score).exp() + (-9.0 * score).exp())", |s| {
            let (e, f) = ((-3.0 * s).exp(), (-9.0 * s).exp());
            if f.is_infinite() { 0.0 } else { (3.0 * e + 9.0 * f) / (1.0 + e + f) / (1.0 + e + f) }
        }),
        // A square that overflows before its root, and a root of what overflows.
        ("let b = 1.0 + (-3.0 * score).exp(); 1.0 / (b * b)", |s| {
            6.0 * logistic(3.0 * s) * logistic_slope(3.0 * s)
        }),
        ("let b = 1.0 + (-3.0 * score).exp(); 1.0 / b.powi(2)", |s| {
            6.0 * logistic(3.0 * s) * logistic_slope(3.0 * s)
        }),
        ("1.0 / (1.0 + (-3.0 * score).exp()).sqrt()", |s| {
            1.5 * logistic(3.0 * s).sqrt() * logistic(-3.0 * s)
        }),
        // Softplus without and with a bound, and the logarithm of the logistic function.
        ("(score + score.abs()) * 0.5 + ((-(score.abs())).exp() + 1.0).ln()", |s| logistic(s)),
        (
            "(1.0 + (5.0 * score).exp()).ln().min(60.0)",
            |s| if s < 12.0 { 5.0 * logistic(5.0 * s) } else { 0.0 },
        ),
        ("(1.0 + (score * 3.0).exp2()).log2().min(100.0)", |s| {
            if s < 33.0 { 3.0 * logistic(3.0 * 2f64.ln() * s) } else { 0.0 }
        }),
        ("(score - score.abs()) * 0.5 - ((-(score.abs())).exp() + 1.0).ln()", |s| logistic(-s)),
        // What saturates, of what overflows.
        ("(2.0 * score).exp().tanh()", |s| {
            let e = (2.0 * s).exp();
            if e > 500.0 { 0.0 } else { 2.0 * e / e.cosh().powi(2) }
        }),
        ("(-(-3.0 * score).exp()).exp()", |s| {
            let e = (-3.0 * s).exp();
            if e > 1e6 { 0.0 } else { 3.0 * e * (-e).exp() }
        }),
        ("(-score * score * score * score).exp()", |s| {
            let x = s.powi(4);
            if x > 1e6 { 0.0 } else { -4.0 * s.powi(3) * (-x).exp() }
        }),
        ("30.0 * (score / 30.0).tanh()", |s| 1.0 / (s / 30.0).cosh().powi(2)),
        ("1.0 / (1.0 + score.powi(20))", |s| {
            if s.abs() > 1e10 { 0.0 } else { -20.0 * s.powi(19) / (1.0 + s.powi(20)) / (1.0 + s.powi(20)) }
        }),
        ("(1.0 + score.abs()).powi(-8)", |s| {
            -8.0 * s.signum() * (1.0 + s.abs()).powi(-9) * f64::from(s != 0.0)
        }),
        // The logarithm of what vanishes, which has a slope of its own.
        ("(1.0 / (1.0 + (-score).exp())).ln()", |s| logistic(-s)),
        ("(1.0 + (-score).exp()).powi(-1).ln()", |s| logistic(-s)),
        ("((-2.0 * score).exp() + 1.0).powi(-3).log2()", |s| 6.0 / 2f64.ln() * logistic(-2.0 * s)),
        ("(1.0 + (-score).exp()).powi(n - 4).ln()", |s| logistic(-s)),
        ("score.exp().powi(-1).ln()", |_| -1.0),
        ("score.exp().ln()", |_| 1.0),
        ("(2.0 / (score.exp() + (-score).exp())).ln()", |s| -s.tanh()),
        ("(score.exp() + (-score).exp()).ln()", |s| s.tanh()),
        ("(score * score + 1.0).powi(-1).ln()", |s| -2.0 * s / (s * s + 1.0)),
        ("let e = score.exp(); (e - 1.0) / (e + 1.0)", |s| 0.5 / (0.5 * s).cosh().powi(2)),
        ("c % (1.0 + score.exp())", |s| if s.exp() > 0.75 { 0.0 } else { -s.exp() }),
        // Branches and bounds that are not taken take no part.
        ("if score < 2.0 { score.exp() } else { 1.0 / (score - 2.0 - (score - 2.0)) * 0.0 + 1.0 }", |s| {
            if s < 2.0 { s.exp() } else { f64::NAN }
        }),
        ("if score > -5.0 { score } else { (1.0 + (-score).exp()).ln().max(score).min(0.0) }", |s| {
            f64::from(s > -5.0)
        }),
        ("score.exp().min(4.0)", |s| if s.exp() < 4.0 { s.exp() } else { 0.0 }),
        ("score.max(0.0).sqrt()", |s| if s > 0.0 { 0.5 / s.sqrt() } else { 0.0 }),
        ("(score * score).sqrt()", |s| if (s as f32 * s as f32) > 0.0 { s.signum() } else { 0.0 }),
        ("((3.0 * score).exp() + 1.0).powi(-1) * ((-3.0 * score).exp() + 1.0).powi(-1)", |s| {
            3.0 * logistic_slope(3.0 * s) * (logistic(-3.0 * s) - logistic(3.0 * s))
        }),
    ];
    let mut seen = 0;
    for (body, exact) in table {
        let function = made(body);
        for at in scores() {
            let slope = exact(f64::from(at));
            // Past f32, an infinity; of a function that has no value there, anything.
            let value = function.eval(at, 1, 2, 3, 4, &captures()).unwrap().as_f32().unwrap();
            if !slope.is_finite() || !value.is_finite() || slope.abs() > f64::from(f32::MAX) {
                continue;
            }
            let found = f64::from(function.gradient(at, 1, 2, 3, 4, &captures()).unwrap());
            let error = (found - slope).abs();
            assert!(error <= 1e-4 * slope.abs() + 1e-6, "{body} at {at}: {found}, {slope}");
            seen += 1;
        }
    }
    // The function itself overflows at the others.
    assert!(seen > table.len() * SCORES.len() * 3 / 2, "{seen}");
}

/// A score of ±∞ has a slope wherever the function has reached a value.
#[test]
fn slopes_at_infinity_are_numbers_where_the_function_has_a_value() {
    for body in [
        "1.0 / (1.0 + (-10.0 * score).exp())",
        "(1.0 + (-score * 10.0).exp()).powi(-1)",
        "let b = 1.0 + (-3.0 * score).exp(); 1.0 / (b * b)",
        "1.0 / (1.0 + (-3.0 * score).exp()).sqrt()",
        "(2.0 * score).exp().tanh()",
        "(-(-3.0 * score).exp()).exp()",
        "30.0 * (score / 30.0).tanh()",
        "score.max(-50.0).min(50.0)",
        "if score > -5.0 { 0.0 } else { (1.0 + (-score).exp()).ln().max(score).min(0.0) }",
    ] {
        for at in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(made(body).gradient(at, 1, 2, 3, 4, &captures()), Ok(0.0), "{body} at {at}");
        }
    }
}

/// A sum, product, quotient or method of functions that have a value and a slope everywhere.
fn smooth() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        3 => Just("score".to_owned()),
        1 => (-40i32..40).prop_map(|n| format!("({:.2})", f64::from(n) / 4.0)),
        1 => Just("c".to_owned()),
    ];
    leaf.prop_recursive(7, 48, 3, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            2 => pair.clone().prop_map(|(a, b)| format!("({a} + {b})")),
            1 => pair.clone().prop_map(|(a, b)| format!("({a} - {b})")),
            2 => pair.clone().prop_map(|(a, b)| format!("({a} * {b})")),
            1 => pair.clone().prop_map(|(a, b)| format!("({a} / (1.0 + ({b}).exp()))")),
            1 => pair.clone().prop_map(|(a, b)| format!("({a} / (1.5 + ({b}) * ({b})))")),
            1 => pair.clone().prop_map(|(a, b)| format!("{{ let x = {a}; let y = {b}; x * y + x }}")),
            1 => pair.clone().prop_map(|(a, b)| format!("({a}).min({b})")),
            1 => pair.clone().prop_map(|(a, b)| format!("({a}).max({b})")),
            1 => (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("(if {a} > 0.5 {{ {b} }} else {{ {c} }})")),
            1 => inner.clone().prop_map(|a| format!("{{ let e = (-({a})).exp(); 1.0 / (1.0 + e) }}")),
            1 => inner.clone().prop_map(|a| format!("(1.0 + (-({a})).exp2()).powi(-2)")),
            1 => inner.clone().prop_map(|a| format!("(-({a}).exp()).exp()")),
            1 => inner.clone().prop_map(|a| format!("(({a}).exp() + 1.0).ln().min(80.0)")),
            1 => inner.clone().prop_map(|a| format!("(({a}) * ({a}) + 0.25).sqrt()")),
            1 => inner.clone().prop_map(|a| format!("({a}).tanh()")),
            1 => inner.clone().prop_map(|a| format!("({a}).sin()")),
            1 => inner.clone().prop_map(|a| format!("({a}).abs()")),
            1 => inner.clone().prop_map(|a| format!("({a}).powi(3)")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Wherever f64 gives a value and a slope within f32, and f32 gives a value, it gives a slope.
    #[test]
    fn derivatives_of_random_compositions_are_finite(body in smooth()) {
        let Ok(function) = DeviceFunction::from_source(FunctionKind::ScoreMod, &format!("{HEAD} {{ {body} }}"))
        else { return Ok(()) };
        for at in scores() {
            let value = function.eval(at, 1, 2, 3, 4, &captures()).unwrap().as_f32().unwrap();
            let (wide, _) = wide::run(&function.body, &captures(), at.into());
            let (slope, _) = wide::run(function.gradient.as_ref().unwrap(), &captures(), at.into());
            let within = |number: f64| number.abs() < 1e38;
            if !value.is_finite() || !within(wide) || !within(slope) {
                continue;
            }
            let found = function.gradient(at, 1, 2, 3, 4, &captures()).unwrap();
            prop_assert!(found.is_finite(), "{} at {}: {}, in f64 {}", body, at, found, slope);
        }
    }
}
