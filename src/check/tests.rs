use super::*;
use crate::mask::PARTIAL;
use crate::tune::tests::fake::Fake;
use crate::tune::{Finish, RaceError, RaceSettings, race};
use crate::{BlockSize, MaskMod, ScoreMod, mask_mod, score_mod};

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

/// Out of range for positions that the table does not reach.
#[mask_mod]
fn same_document(b: i32, h: i32, q: i32, kv: i32, ids: &[i32]) -> bool {
    ids[q as usize] == ids[kv as usize]
}

#[score_mod]
fn by_head(score: f32, b: i32, h: i32, q: i32, kv: i32, slopes: &[f32]) -> f32 {
    score * slopes[h as usize]
}

#[score_mod]
fn not_a_number(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
    if q % 50 == 7 { (0.0f32 - 1.0).sqrt() } else { score }
}

/// Of a long call.
fn subject(blocks: BlockSize) -> Subject<'static> {
    Subject {
        head_dim: 64,
        value_dim: 24,
        dtype: DType::Bf16,
        blocks,
        scale: 0.125,
        score_mod: None,
        mask_mod: None,
        call: [8, 5000, 5000],
    }
}

fn masked(blocks: BlockSize, function: impl MaskMod) -> Subject<'static> {
    Subject { mask_mod: Some(Box::leak(Box::new(function))), ..subject(blocks) }
}

fn scored(function: impl ScoreMod) -> Subject<'static> {
    Subject { score_mod: Some(Box::leak(Box::new(function))), ..subject(BlockSize::default()) }
}

/// The same for a call of these query heads, queries and keys.
fn short(subject: Subject<'static>, call: [usize; 3]) -> Subject<'static> {
    Subject { call, ..subject }
}

fn case(subject: &Subject<'_>) -> Case {
    Case::new(subject).unwrap()
}

/// What a candidate gave, `out` and `lse`, and what is wrong with it.
fn forward_verdict(case: &Case, jumps: bool, spoil: impl Fn(&mut [f32], &mut [f32])) -> Result<(), String> {
    let (out, lse) = (case.out.to_f32_vec().unwrap(), case.lse.to_f32_vec().unwrap());
    let (mut found, mut sums) = (out.clone(), lse.clone());
    spoil(&mut found, &mut sums);
    close_forward([&found, &sums], [&out, &lse], OUT, jumps)
}

#[test]
fn the_case_has_what_kernels_go_wrong_on() {
    for blocks in BlockSize::ALL {
        for subject in [subject(blocks), masked(blocks, causal {})] {
            let case = case(&subject);
            let (rows, columns) = (case.without_keys().unwrap(), case.without_queries().unwrap());
            let classes = case.mask.to_dense().unwrap().classes;
            let has_full = classes.contains(&crate::mask::FULL);
            assert!(rows.contains(&true) && rows.contains(&false), "{blocks}: rows that attend to nothing");
            let few = columns.len() < 4;
            assert!(few || columns.contains(&true), "{blocks}: keys that nobody attends to");
            assert!(columns.contains(&false) && classes.contains(&crate::mask::PARTIAL));
            assert_eq!(has_full, subject.mask_mod.is_some(), "{blocks}: full blocks");
            assert_eq!(
                (case.qkv[0].shape()[1], case.qkv[1].shape()[1]),
                (2, 1),
                "heads that share a key head"
            );
        }
    }
}

#[test]
fn a_forward_with_a_wrong_lse_does_not_pass() {
    type Spoil<'a> = &'a dyn Fn(&mut [f32], &mut [f32]);
    for subject in [
        subject(BlockSize::default()),
        masked(BlockSize::new(64, 64).unwrap(), causal {}),
        scored(by_head { slopes: vec![0.5; 8] }),
    ] {
        let case = case(&subject);
        let jumps = subject.score_mod.is_some();
        let empty = case.without_keys().unwrap().iter().position(|&empty| empty).unwrap();
        assert_eq!(forward_verdict(&case, jumps, |_, _| {}), Ok(()));
        // As another order of sums would have it.
        assert_eq!(
            forward_verdict(&case, jumps, |_, lse| lse.iter_mut().for_each(|x| *x *= 1.0 + 1e-6)),
            Ok(())
        );
        let wrong: [(&str, Spoil); 8] = [
            // Far within what two schedules' outputs may differ by, 1e-2 relative.
            ("lse: it is", &|_, lse| lse.iter_mut().for_each(|x| *x += 0.02)),
            ("lse: it is", &|_, lse| lse.iter_mut().for_each(|x| *x *= std::f32::consts::LOG2_E)),
            ("lse: it is", &|_, lse| lse.iter_mut().for_each(|x| *x = f32::NAN)),
            ("lse: it is", &|_, lse| lse.iter_mut().for_each(|x| *x = x.max(-1e30))),
            ("lse: it is", &|_, lse| lse[..130].iter_mut().for_each(|x| *x += 0.002)),
            ("out: it is not 0 in row", &|out, _| out[empty * 24 + 5] = 1e-6),
            ("out: it is off by", &|out, _| out.iter_mut().for_each(|x| *x *= 1.02)),
            ("out: it is off by", &|out, _| out[3] = f32::NAN),
        ];
        for (message, spoil) in wrong {
            let verdict = forward_verdict(&case, jumps, spoil);
            let found = verdict.expect_err(message);
            assert!(found.starts_with(message), "{found}");
        }
        // A single row may be a function's doing, where there is one.
        let one_row = forward_verdict(&case, jumps, |_, lse| lse[0] += 0.5);
        assert_eq!(one_row.is_ok(), jumps, "{one_row:?}");
    }
}

#[test]
fn where_the_executor_has_no_number_the_kernel_has_none() {
    let case = case(&scored(not_a_number {}));
    let lse = case.lse.to_f32_vec().unwrap();
    assert!(lse[7].is_nan() && lse[8].is_finite());
    assert_eq!(forward_verdict(&case, true, |_, lse| lse[7] = f32::INFINITY), Ok(()));
    let numbers = forward_verdict(&case, true, |out, lse| {
        lse.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 1.0);
        out.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
    });
    assert!(numbers.unwrap_err().starts_with("lse: it is 1 in row"));
    let out_alone = forward_verdict(&case, true, |out, _| out[7 * 24] = 0.0);
    assert!(out_alone.unwrap_err().starts_with("out: it is 0 at 168, where the CPU executor has NaN"));
}

/// The fastest of a race has outputs as the executor's but for its sums of exponentials: it is dropped, and the record says why.
#[test]
fn a_race_is_not_won_with_a_wrong_lse() {
    let mut bench = Fake::new(&[50.0, 100.0]);
    bench.check = |candidate| {
        let off = if candidate == 0 { 0.02 } else { 0.0 };
        let case = case(&subject(BlockSize::default()));
        forward_verdict(&case, false, |_, lse| lse.iter_mut().for_each(|x| *x += off))
    };
    let result = bench.race();
    assert_eq!(result.winner().name, "f1");
    let Finish::Failed { reason } = &result.entries()[0].finish else { panic!("the wrong one was timed") };
    assert!(reason.starts_with("check: lse: it is"), "{reason}");
    assert!(bench.launches[0].is_empty());
}

#[test]
fn a_function_that_panics_is_an_error() {
    let panics = short(masked(BlockSize::default(), same_document { ids: vec![1; 100] }), [1, 101, 101]);
    let error = Case::new(&panics).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::DeviceFunction { name, .. } if name == "same_document"), "{error}");
    // In a race, no candidate passes.
    let mut bench = Fake::new(&[50.0, 100.0]);
    bench.check = |_| {
        let ids = vec![1; 100];
        let panics = short(masked(BlockSize::default(), same_document { ids }), [1, 101, 101]);
        Case::new(&panics).map(|_| ()).map_err(|error| error.to_string())
    };
    let lost = race(&mut bench, &RaceSettings::default(), &mut |_| {}).unwrap_err();
    assert!(
        matches!(lost, RaceError::AllFailed { .. }) && lost.to_string().contains("same_document"),
        "{lost}"
    );
}

/// A call that is ended while its kernels are being checked is no candidate's fault: nothing of it may go to a record.
#[test]
fn an_interrupted_check_is_an_error_and_no_verdict() {
    let interrupt = crate::Interrupt::default();
    interrupt.set();
    let subject = short(masked(BlockSize::default(), causal {}), [1, 101, 101]);
    let check = || Case::new(&subject).map(|_| ());
    let error = interrupt.over(check).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    check().unwrap();
}

#[mask_mod]
fn all(b: i32, h: i32, q: i32, kv: i32) -> bool {
    true
}

#[mask_mod]
fn nothing(b: i32, h: i32, q: i32, kv: i32) -> bool {
    false
}

/// Whatever a function keeps of the small case, there are blocks that its kernel must score and blocks that it must leave.
#[test]
fn scores_of_partial_blocks_are_always_compared() {
    for (blocks, by_keys) in BlockSize::ALL.into_iter().flat_map(|blocks| [(blocks, false), (blocks, true)]) {
        let case =
            |subject: &Subject<'_>| PartialCase::new(subject, subject.mask_mod.unwrap(), by_keys).unwrap();
        for subject in [masked(blocks, causal {}), masked(blocks, all {}), masked(blocks, nothing {})] {
            let PartialCase { classes, before, expected, .. } = case(&subject);
            let partial: Vec<bool> =
                classes.to_vec::<u8>().unwrap().iter().map(|&class| class == PARTIAL).collect();
            assert!(partial.contains(&true) && partial.contains(&false), "{blocks}");
            assert_eq!(close_scores(&expected, &expected), Ok(()));
            let spoilt = |spoil: &dyn Fn(bool, f32) -> f32| -> Vec<f32> {
                partial.iter().zip(&expected).map(|(partial, x)| spoil(*partial, *x)).collect()
            };
            let no_score = f32::NEG_INFINITY;
            for wrong in [
                before.to_f32_vec().unwrap(),
                spoilt(&|partial, x| if partial { x } else { no_score }),
                spoilt(&|partial, x| if partial && x == no_score { f32::INFINITY } else { 1.001 * x }),
            ] {
                assert!(close_scores(&wrong, &expected).is_err(), "{blocks}: {wrong:?} for {expected:?}");
            }
        }
    }
    // One query and one key.
    let subject = short(masked(BlockSize::default(), causal {}), [1, 1, 1]);
    let PartialCase { classes, .. } = PartialCase::new(&subject, subject.mask_mod.unwrap(), false).unwrap();
    assert_eq!(classes.to_vec::<u8>().unwrap(), [PARTIAL]);
}

/// Captures need not reach beyond the call: the case is within it.
#[test]
fn functions_are_asked_about_the_calls_own_positions() {
    for (seq_q, seq_kv) in [(1, 1), (100, 100), (1, 290), (290, 7), (5000, 5000)] {
        let ids = vec![1; seq_q.max(seq_kv)];
        let subject = short(masked(BlockSize::default(), same_document { ids }), [1, seq_q, seq_kv]);
        assert_eq!(subject.extents(), [1, seq_q.min(TOKENS), seq_kv.min(TOKENS)]);
        case(&subject).gradients(&subject, true).unwrap();
    }
    for heads in [1, 2, 40] {
        let subject = short(scored(by_head { slopes: vec![0.5; heads] }), [heads, 9, 9]);
        assert_eq!(subject.extents()[0], heads.min(2));
        case(&subject);
    }
    // Without a function nothing stands against the whole case.
    assert_eq!(short(subject(BlockSize::default()), [1, 1, 1]).extents(), [2, TOKENS, TOKENS]);
}

#[test]
fn wrong_gradients_do_not_pass() {
    let subject = masked(BlockSize::new(64, 64).unwrap(), causal {});
    let case = case(&subject);
    let (expected, delta) = (case.gradients(&subject, true).unwrap(), case.delta(true).unwrap());
    let (empty, unlisted) = (case.without_keys().unwrap(), case.without_queries().unwrap());
    let spoilt = |of: &Tensor, spoil: &dyn Fn(usize, f32) -> f32| {
        let values = of.to_f32_vec().unwrap().into_iter().enumerate().map(|(i, x)| spoil(i, x));
        Tensor::from_slice(&values.collect::<Vec<f32>>(), of.shape()).unwrap()
    };
    let of_q = |element: usize| empty[element / 64];
    let of_k = |element: usize| unlisted[element / 64 / 64];
    let of_v = |element: usize| unlisted[element / 24 / 64];
    let of_delta = |row: usize| empty[row];
    type Part<'a> = (&'a str, &'a Tensor, [f64; 2], &'a dyn Fn(usize) -> bool);
    let parts: [Part; 4] = [
        ("dq", &expected.dq, GRADIENT, &of_q),
        ("dk", &expected.dk, GRADIENT, &of_k),
        ("dv", &expected.dv, GRADIENT, &of_v),
        ("delta", &delta, SUM, &of_delta),
    ];
    for (name, expected, bounds, is_zero) in parts {
        let verdict = |spoil: &dyn Fn(usize, f32) -> f32| {
            compare(&[(name, [&spoilt(expected, spoil), expected], bounds, is_zero)]).unwrap()
        };
        assert_eq!(verdict(&|_, x| x), Ok(()), "{name}");
        let zero = (0..expected.elements()).find(|&i| is_zero(i)).unwrap();
        // One of two heads that share a key head; a row of nothing; nothing written.
        for spoil in [&|_, x| 0.5 * x, &|i, x| if i == zero { 1e-9 } else { x }, &|_, _| f32::NAN]
            as [&dyn Fn(usize, f32) -> f32; 3]
        {
            let wrong = verdict(spoil).expect_err(name);
            assert!(wrong.starts_with(name), "{wrong}");
        }
    }
    // A delta without the gradient by lse.
    let without = case.delta(false).unwrap();
    assert!(compare(&[("delta", [&without, &delta], SUM, &of_delta)]).unwrap().is_err());
}

/// The gradient of a query with a single key is 0 but for rounding, which is nothing to compare.
#[test]
fn rounding_is_no_gradient() {
    let tensor = |values: [f32; 4]| Tensor::from_slice(&values, &[1, 1, 1, 4]).unwrap();
    let (noise, other) = (tensor([1e-7, -2e-7, 0.0, 3e-8]), tensor([-1e-7, 1e-7, 2e-7, 0.0]));
    let verdict = |found: &Tensor| compare(&[("dq", [found, &noise], GRADIENT, &|_| false)]).unwrap();
    assert_eq!(verdict(&other), Ok(()));
    assert!(verdict(&tensor([0.01, 0.0, 0.0, 0.0])).is_err());
    // The terms that cancel are as large as the scale makes them.
    let scaled = tensor([-1e-5, 2e-5, -8e-5, 3e-5]);
    assert!(verdict(&scaled).is_err());
    assert_eq!(compare(&[("dq", [&scaled, &noise], of_scores(10.0), &|_| false)]).unwrap(), Ok(()));
    assert_eq!(of_scores(0.125), GRADIENT);
}
