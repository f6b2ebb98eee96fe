//! The gradients of the CPU executor against f64.

mod support;

use support::{Case, Mask, Random, tensor};
use tilewright::TensorError;
use tilewright::cpu::{Upstream, attend, backward};
use tilewright::reference::{attention_backward_f64, relative_error};
use tilewright::{
    Attention, BlockMask, BlockSize, DType, Device, Error, Gradients, HeadDim, MaskError, MaskMod, Output,
    ScoreMod, SeqLens, Tensor, mask_mod, score_mod, top_k,
};

const DTYPES: [DType; 2] = [DType::Bf16, DType::F16];

#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

/// Bent, biased and, for some keys, hidden.
#[score_mod]
fn bent(score: f32, b: i32, h: i32, q: i32, kv: i32, knee: f32, bias: &[f32]) -> f32 {
    let bias = bias[(q + kv) as usize % bias.len()] * (h + 1) as f32;
    let soft =
        if score > knee { knee + (score - knee + 1.0).ln() } else { score * (1.0 + 0.1 * score.sin()) };
    if kv % 17 == 3 { f32::NEG_INFINITY } else { soft + bias }
}

#[mask_mod]
fn window(b: i32, h: i32, q: i32, kv: i32, width: i32) -> bool {
    (q - kv).abs() <= width + 5 * h
}

fn bent_by() -> bent {
    bent { knee: 0.7, bias: vec![0.5, -0.25, 0.0] }
}

fn full(case: &Case) -> BlockMask {
    BlockMask::full(1, 1, case.block_size(), case.seqs()).unwrap()
}

/// Gradients by `out` and by `lse`.
fn upstream(case: &Case, random: &mut Random) -> (Tensor, Tensor) {
    let rows = [case.batch, case.heads, case.seq_q];
    (random.tensor(case.dtype, &case.out()), random.tensor(DType::F32, &rows))
}

/// The executor's gradients, with the forward they need.
fn gradients(
    [q, k, v]: &[Tensor; 3],
    (d_out, d_lse): (&Tensor, Option<&Tensor>),
    mask: &BlockMask,
    scale: f32,
    functions: (Option<&dyn ScoreMod>, Option<&dyn MaskMod>),
) -> Gradients {
    let (out, lse) = attend(q, k, v, mask, scale, functions.0, functions.1).unwrap();
    let upstream = Upstream { q, k, v, out: &out, lse: &lse, d_out, d_lse };
    backward(upstream, mask, scale, functions.0, functions.1).unwrap()
}

fn parts(gradients: &Gradients) -> [Vec<f32>; 3] {
    [&gradients.dq, &gradients.dk, &gradients.dv].map(|part| part.to_f32_vec().unwrap())
}

/// Compares with f64, without and with a gradient of lse.
fn compare(
    case: &Case,
    qkv: &[Tensor; 3],
    mask: &BlockMask,
    functions: (Option<&dyn ScoreMod>, Option<&dyn MaskMod>),
) {
    let (d_out, d_lse) = upstream(case, &mut Random(case.seq_q as u64));
    let [q, k, v] = qkv;
    for d_lse in [None, Some(&d_lse)] {
        let found = gradients(qkv, (&d_out, d_lse), mask, case.scale(), functions);
        assert_eq!([&found.dq, &found.dk, &found.dv].map(Tensor::shape), [q, k, v].map(Tensor::shape));
        assert_eq!([&found.dq, &found.dk, &found.dv].map(Tensor::dtype), [case.dtype; 3]);
        let scale = case.scale();
        let exact = attention_backward_f64([q, k, v], (&d_out, d_lse), mask, scale, functions.0, functions.1)
            .unwrap();
        let bound = if case.dtype == DType::F16 { 1e-3 } else { 6e-3 };
        for ((what, found), exact) in
            ["dq", "dk", "dv"].into_iter().zip(parts(&found)).zip([&exact.dq, &exact.dk, &exact.dv])
        {
            let error = relative_error(&found, exact);
            println!("{case:?}: {what} {error:.1e}");
            assert!(error <= bound, "{case:?}: {what} is off by {error:e}, bound {bound:e}");
        }
    }
}

fn check(case: Case, density: f64) {
    let mut random = Random(7);
    let qkv = case.qkv(&mut random);
    let mask = case.random_mask(&mut random, density);
    compare(&case, &qkv, &mask, (None, None));
}

#[test]
fn ragged_lengths() {
    for (i, seq_q) in [1, 64, 65, 129].into_iter().enumerate() {
        for (j, seq_kv) in [1, 63, 128, 130].into_iter().enumerate() {
            let blocks = [(128, 64), (128, 128), (64, 64), (64, 128)][(i + j) % 4];
            let dtype = DTYPES[(i + j / 2) % 2];
            check(Case { dtype, heads: 1, kv_heads: 1, seq_q, seq_kv, blocks, d: 16, ..Case::SMALL }, 1.0);
        }
    }
    for (dtype, seq_q, seq_kv) in [(DType::Bf16, 500, 700), (DType::F16, 600, 65), (DType::F16, 63, 500)] {
        let blocks = (128, 64);
        check(Case { dtype, seq_q, seq_kv, blocks, heads: 1, kv_heads: 1, d: 64, ..Case::SMALL }, 0.4);
    }
}

#[test]
fn head_dims_and_groups() {
    for (i, d) in [64, 96, 128, 40, 256, 1].into_iter().enumerate() {
        let dtype = DTYPES[i % 2];
        check(Case { dtype, d, heads: 1, kv_heads: 1, seq_q: 70, seq_kv: 130, ..Case::SMALL }, 0.8);
    }
    for (i, (batch, heads, kv_heads)) in
        [(2, 3, 3), (1, 4, 1), (2, 8, 2), (3, 8, 1), (1, 20, 5)].into_iter().enumerate()
    {
        let dtype = DTYPES[i % 2];
        check(Case { dtype, batch, heads, kv_heads, seq_q: 66, seq_kv: 65, d: 8, ..Case::SMALL }, 0.6);
    }
}

#[test]
fn values_of_another_width() {
    for (dtype, d, value_d) in [(DType::Bf16, 192, 128), (DType::F16, 40, 64), (DType::Bf16, 8, 3)] {
        check(Case { dtype, d, value_d: Some(value_d), heads: 4, kv_heads: 2, ..Case::SMALL }, 0.6);
    }
}

#[test]
fn functions_carry_their_derivatives() {
    for (dtype, batch) in [(DType::Bf16, 1), (DType::F16, 2)] {
        let case = Case { dtype, batch, heads: 4, kv_heads: 2, seq_q: 150, seq_kv: 170, ..Case::SMALL };
        let mut random = Random(11);
        let qkv = case.qkv(&mut random);
        let (cap, bent, near) = (softcap { cap: 0.8 }, bent_by(), window { width: 30 });
        let sparse = case.random_mask(&mut random, 0.6);
        let own =
            BlockMask::from_mask_mod(&near, 1, case.heads, case.block_size(), SeqLens { q: 150, kv: 170 })
                .unwrap();
        assert!(own.sparsity().unwrap() > 0.0);
        compare(&case, &qkv, &sparse, (Some(&cap), None));
        compare(&case, &qkv, &sparse, (Some(&bent), Some(&near)));
        compare(&case, &qkv, &own, (Some(&bent), Some(&near)));
        compare(&case, &qkv, &full(&case), (None, Some(&near)));
    }
}

#[test]
fn a_function_made_at_run_time_has_the_same_gradient() {
    let case = Case::SMALL;
    let qkv = case.qkv(&mut Random(5));
    let (d_out, _) = upstream(&case, &mut Random(6));
    let written = bent_by();
    let captures = tilewright::DeviceFn::captures(&written);
    let dynamic = tilewright::DynamicScoreMod::new(tilewright::DeviceFn::source(&written), captures).unwrap();
    let run = |function: &dyn ScoreMod| {
        parts(&gradients(&qkv, (&d_out, None), &full(&case), case.scale(), (Some(function), None)))
    };
    for (written, dynamic) in run(&written).into_iter().zip(run(&dynamic)) {
        let exact: Vec<f64> = written.iter().map(|&x| x.into()).collect();
        assert!(relative_error(&dynamic, &exact) <= 1e-4);
    }
}

#[test]
fn what_nobody_attends_to_has_no_gradient_whatever_it_holds() {
    // Query block 1 keeps nothing, key block 2 is kept by nobody; the mask function hides query 5 from everything.
    let case = Case { seq_q: 200, seq_kv: 180, heads: 2, kv_heads: 1, ..Case::SMALL };
    let (rows, columns) = (4, 3);
    let kept = |block: usize| block / columns % rows != 1 && block % columns != 2;
    let map: Vec<bool> = (0..2 * rows * columns).map(kept).collect();
    let mask =
        BlockMask::from_dense(&map, case.grid(), case.block_size(), SeqLens { q: 200, kv: 180 }).unwrap();
    let seen = Mask(|_, _, q: i32, _| q != 5);
    let mut random = Random(29);
    let [q, k, v] = case.qkv(&mut random);
    let (d_out, d_lse) = upstream(&case, &mut random);
    let dead_row = |row: usize| row % 200 == 5 || (64..128).contains(&(row % 200));
    let dead_key = |row: usize| row % 180 >= 128;
    // NaN where nothing is read.
    let poisoned = |t: &Tensor, dead: &dyn Fn(usize) -> bool| {
        let width = t.elements() / t.shape()[..3].iter().product::<usize>();
        let mut data = t.to_f32_vec().unwrap();
        data.chunks_mut(width)
            .enumerate()
            .filter(|(row, _)| dead(*row))
            .for_each(|(_, row)| row.fill(f32::NAN));
        tensor(t.dtype(), &data, t.shape())
    };
    let run = |qkv: &[Tensor; 3], d_out: &Tensor, d_lse: &Tensor| {
        parts(&gradients(qkv, (d_out, Some(d_lse)), &mask, case.scale(), (None, Some(&seen))))
    };
    let clean = run(&[q.clone(), k.clone(), v.clone()], &d_out, &d_lse);
    let poisoned_qkv = [
        poisoned(&q, &|row| (64..128).contains(&(row % 200))),
        poisoned(&k, &dead_key),
        poisoned(&v, &dead_key),
    ];
    let d_out = poisoned(&d_out, &dead_row);
    let d_lse = {
        let mut data = d_lse.to_f32_vec().unwrap();
        data.iter_mut().enumerate().filter(|(row, _)| dead_row(*row)).for_each(|(_, x)| *x = f32::NAN);
        tensor(DType::F32, &data, d_lse.shape())
    };
    let found = run(&poisoned_qkv, &d_out, &d_lse);
    assert_eq!(found, clean);
    let [dq, dk, dv] = found;
    for (row, dq) in dq.chunks(case.d).enumerate() {
        assert_eq!(dq.iter().all(|x| x.to_bits() == 0), dead_row(row), "query {row}");
    }
    for (row, (dk, dv)) in dk.chunks(case.d).zip(dv.chunks(case.d)).enumerate() {
        for part in [dk, dv] {
            assert_eq!(part.iter().all(|x| x.to_bits() == 0), dead_key(row), "key {row}");
        }
    }
    let none = case.random_mask(&mut random, 0.0);
    let nothing = gradients(&[q, k, v], (&d_out, Some(&d_lse)), &none, 1.0, (None, None));
    assert!(parts(&nothing).into_iter().flatten().all(|x| x.to_bits() == 0));
}

#[test]
fn nothing_to_attend_to_gives_zeros() {
    for (seq_q, seq_kv) in [(5, 0), (0, 5), (0, 0)] {
        let case = Case { seq_q, seq_kv, ..Case::SMALL };
        let qkv = case.qkv(&mut Random(1));
        let (d_out, d_lse) = upstream(&case, &mut Random(2));
        let found = gradients(&qkv, (&d_out, Some(&d_lse)), &full(&case), 1.0, (None, None));
        let [dq, dk, dv] = parts(&found);
        assert_eq!((dq.len(), dk.len()), (2 * seq_q * 32, 2 * seq_kv * 32));
        assert!(dq.iter().chain(&dk).chain(&dv).all(|x| *x == 0.0));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let case = Case { batch: 2, heads: 4, kv_heads: 2, seq_q: 300, seq_kv: 260, ..Case::SMALL };
    let mut random = Random(31);
    let qkv = case.qkv(&mut random);
    let mask = case.random_mask(&mut random, 0.5);
    let (d_out, d_lse) = upstream(&case, &mut random);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let function = bent_by();
        pool.install(|| {
            parts(&gradients(&qkv, (&d_out, Some(&d_lse)), &mask, case.scale(), (Some(&function), None)))
        })
    };
    let first = run(1).map(|part| part.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    for threads in [1, 2, 3, 7] {
        assert_eq!(run(threads).map(|part| part.into_iter().map(f32::to_bits).collect::<Vec<_>>()), first);
    }
}

#[test]
fn tokens_before_heads_need_no_copy() {
    let case = Case { heads: 4, kv_heads: 2, ..Case::SMALL };
    let mut random = Random(37);
    let qkv = case.qkv(&mut random);
    let mask = case.random_mask(&mut random, 0.7);
    let (d_out, _) = upstream(&case, &mut random);
    let turned = |t: &Tensor| {
        let order = [0, 2, 1, 3];
        let swapped = t.permute(&order).unwrap();
        tensor(t.dtype(), &swapped.to_f32_vec().unwrap(), swapped.shape()).permute(&order).unwrap()
    };
    let plain = gradients(&qkv, (&d_out, None), &mask, case.scale(), (None, None));
    let other =
        gradients(&qkv.each_ref().map(turned), (&turned(&d_out), None), &mask, case.scale(), (None, None));
    assert_eq!(parts(&plain), parts(&other));
}

#[test]
fn the_attention_differentiates_its_forward() {
    let random = |seed, heads| Random(seed).tensor(DType::Bf16, &[1, heads, 400, 64]);
    let (q, k, v, d_out) = (random(1, 4), random(2, 2), random(3, 2), random(4, 4));
    let attention = Attention::builder(HeadDim::D64, DType::Bf16)
        .select(top_k(0.4))
        .score_mod(softcap { cap: 2.0 })
        .build(&Device::cpu())
        .unwrap();
    let output = attention.forward(&q, &k, &v).unwrap();
    let found = attention.backward(&q, &k, &v, &output, &d_out, None).unwrap();
    let cap = softcap { cap: 2.0 };
    let exact =
        attention_backward_f64([&q, &k, &v], (&d_out, None), &output.mask, 0.125, Some(&cap), None).unwrap();
    for (found, exact) in parts(&found).iter().zip([exact.dq, exact.dk, exact.dv]) {
        assert!(relative_error(found, &exact) <= 6e-3);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let t = |dtype, shape: &[usize]| Tensor::zeros(dtype, shape).unwrap();
    let half = |shape: &[usize]| t(DType::Bf16, shape);
    let attention = Attention::builder(HeadDim::D64, DType::Bf16).build(&Device::cpu()).unwrap();
    let (q, k) = (half(&[1, 4, 100, 64]), half(&[1, 2, 100, 64]));
    let output = attention.forward(&q, &k, &k).unwrap();
    let refused = |output: &Output, d_out: &Tensor, d_lse: Option<&Tensor>| {
        attention.backward(&q, &k, &k, output, d_out, d_lse).unwrap_err()
    };
    let of = |out: Tensor, lse: Tensor, mask: BlockMask| Output { out, lse, mask };
    let (lse, mask) = (output.lse.clone(), output.mask.clone());
    let tensor_error = |error: Error| match error {
        Error::Tensor(error) => error,
        other => panic!("{other}"),
    };
    let named = |error: Error| match tensor_error(error) {
        TensorError::Dimension { dimension, first, second, .. } => (dimension, first, second),
        other => panic!("{other}"),
    };
    assert_eq!(named(refused(&output, &half(&[1, 4, 99, 64]), None)), ("seq_q", "q", "d_out"));
    assert_eq!(named(refused(&output, &half(&[1, 2, 100, 64]), None)), ("heads", "q", "d_out"));
    assert_eq!(named(refused(&output, &q, Some(&t(DType::F32, &[1, 4, 99])))), ("seq_q", "q", "d_lse"));
    let other_out = of(half(&[2, 4, 100, 64]), lse.clone(), mask.clone());
    assert_eq!(named(refused(&other_out, &q, None)), ("batch", "q", "out"));
    for (error, message) in [
        (refused(&output, &t(DType::F32, &[1, 4, 100, 64]), None), "d_out has dtype f32, needed bf16"),
        (refused(&output, &q, Some(&half(&[1, 4, 100]))), "d_lse has dtype bf16, needed f32"),
        (refused(&output, &q, Some(&t(DType::F32, &[4, 100]))), "d_lse has 2 dimensions"),
        (refused(&output, &half(&[4, 100, 64]), None), "d_out has 3 dimensions"),
        (refused(&of(q.clone(), half(&[1, 4, 100]), mask), &q, None), "lse has dtype bf16"),
    ] {
        assert!(error.to_string().contains(message), "{error}");
    }
    let mask = |blocks: BlockSize, seq| BlockMask::full(1, 1, blocks, SeqLens::same(seq)).unwrap();
    let error = refused(&of(q.clone(), lse.clone(), mask(BlockSize::new(128, 128).unwrap(), 100)), &q, None);
    assert!(matches!(error, Error::Mask(MaskError::Blocks { .. })), "{error}");
    let error = refused(&of(q.clone(), lse, mask(BlockSize::default(), 128)), &q, None);
    assert!(matches!(error, Error::Mask(MaskError::Fit { dimension: "seq_q", .. })), "{error}");
}

#[test]
fn a_panic_in_a_function_is_an_error_that_names_it() {
    let case = Case::SMALL;
    let [q, k, v] = case.qkv(&mut Random(23));
    let (d_out, _) = upstream(&case, &mut Random(24));
    let (out, lse) = attend(&q, &k, &v, &full(&case), 1.0, None, None).unwrap();
    let bad = Mask(|_, _, q: i32, _| 1 / (q - 40) != 7);
    let upstream = Upstream { q: &q, k: &k, v: &v, out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let result = backward(upstream, &full(&case), 1.0, None, Some(&bad));
    match result {
        Err(Error::DeviceFunction { name, message }) => {
            assert_eq!(name, "keep");
            assert!(message.contains("divide by zero"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}
