//! The CPU executor against dense f64 attention over the same blocks.

mod support;

use support::{Case, Mask, Random, Score, blocks, compare, tensor};
use tilewright::TensorError;
use tilewright::cpu::attend;
use tilewright::reference::{attention_f64, largest_difference, relative_error};
use tilewright::{BlockMask, DType, Error, MaskError, SeqLens, Tensor};

const DTYPES: [DType; 2] = [DType::Bf16, DType::F16];

fn check(case: Case, density: f64) {
    let mut random = Random(7);
    let qkv = case.qkv(&mut random);
    let mask = case.random_mask(&mut random, density);
    compare(&case, &qkv, &mask, None, None);
}

#[test]
fn ragged_lengths() {
    for (i, seq_q) in [1, 63, 64, 65, 127, 129].into_iter().enumerate() {
        for (j, seq_kv) in [1, 63, 64, 65, 127, 129].into_iter().enumerate() {
            let blocks = [(128, 64), (128, 128), (64, 64), (64, 128)][(i + j) % 4];
            let dtype = DTYPES[(i + j / 2) % 2];
            check(Case { dtype, heads: 1, kv_heads: 1, seq_q, seq_kv, blocks, d: 16, ..Case::SMALL }, 1.0);
        }
    }
    for (dtype, seq_q, seq_kv) in
        [(DType::Bf16, 1000, 1000), (DType::F16, 1000, 1000), (DType::Bf16, 1000, 65), (DType::F16, 63, 1000)]
    {
        let blocks = (128, 64);
        check(Case { dtype, seq_q, seq_kv, blocks, heads: 1, kv_heads: 1, d: 64, ..Case::SMALL }, 0.3);
    }
}

#[test]
fn head_dims() {
    for d in [64, 96, 128, 80, 40, 8, 256, 1] {
        for dtype in DTYPES {
            check(Case { dtype, d, heads: 1, kv_heads: 1, seq_q: 70, seq_kv: 130, ..Case::SMALL }, 0.8);
        }
    }
}

#[test]
fn values_of_another_width() {
    for (d, value_d) in [(192, 128), (64, 128), (40, 8), (8, 72), (1, 3)] {
        for dtype in DTYPES {
            check(Case { dtype, d, value_d: Some(value_d), heads: 4, kv_heads: 2, ..Case::SMALL }, 0.6);
        }
    }
}

#[test]
fn heads_and_groups() {
    for (batch, heads, kv_heads) in
        [(1, 1, 1), (2, 3, 3), (1, 4, 1), (2, 8, 2), (3, 8, 1), (1, 40, 10), (1, 40, 5), (1, 40, 40)]
    {
        check(Case { batch, heads, kv_heads, seq_q: 66, seq_kv: 65, d: 8, ..Case::SMALL }, 0.6);
    }
}

#[test]
fn rows_without_blocks_are_zero() {
    let case = Case { seq_q: 300, seq_kv: 300, heads: 3, kv_heads: 1, ..Case::SMALL };
    check(case, 0.25);
    check(case, 0.0);
    let none = Case { seq_kv: 0, ..case };
    let [q, k, v] = none.qkv(&mut Random(1));
    let mask = BlockMask::full(1, 1, none.block_size(), SeqLens { q: 300, kv: 0 }).unwrap();
    let (out, lse) = attend(&q, &k, &v, &mask, 1.0, None, None).unwrap();
    assert!(out.to_f32_vec().unwrap().iter().all(|&x| x == 0.0));
    assert!(lse.to_f32_vec().unwrap().iter().all(|&x| x == f32::NEG_INFINITY));
}

#[test]
fn sizes_of_zero() {
    for (batch, heads, seq_q) in [(0, 2, 5), (1, 0, 5), (1, 2, 0)] {
        let case = Case { batch, heads, seq_q, kv_heads: heads, ..Case::SMALL };
        let [q, k, v] = case.qkv(&mut Random(1));
        let mask = BlockMask::full(1, 1, case.block_size(), SeqLens { q: seq_q, kv: case.seq_kv }).unwrap();
        let (out, lse) = attend(&q, &k, &v, &mask, 1.0, None, None).unwrap();
        assert_eq!((out.elements(), lse.elements()), (0, 0));
    }
}

#[test]
fn strides() {
    let case = Case { batch: 2, heads: 4, kv_heads: 2, ..Case::SMALL };
    let mut random = Random(3);
    // [batch, seq, heads, d] seen as [batch, heads, seq, d], and keys with room between their rows.
    let q = random.tensor(case.dtype, &[2, case.seq_q, 4, case.d]).permute(&[0, 2, 1, 3]).unwrap();
    let v = random.tensor(case.dtype, &[2, case.seq_kv, 2, case.d]).permute(&[0, 2, 1, 3]).unwrap();
    let wide = random.tensor(case.dtype, &[2, 2, case.seq_kv, case.d + 8]);
    let k = wide.with_strides(&[2, 2, case.seq_kv, case.d], wide.strides()).unwrap();
    let mask = case.random_mask(&mut random, 0.7);
    compare(&case, &[q, k, v], &mask, None, None);
}

#[test]
fn a_mask_may_be_shared_by_batches_and_heads() {
    let case = Case { batch: 2, heads: 3, kv_heads: 3, ..Case::SMALL };
    let mut random = Random(5);
    let qkv = case.qkv(&mut random);
    for (batch, heads) in [(1, 1), (2, 1), (1, 3)] {
        let mask = Case { batch, heads, ..case }.random_mask(&mut random, 0.6);
        compare(&case, &qkv, &mask, None, None);
    }
}

#[test]
fn functions() {
    let case = Case { heads: 4, kv_heads: 2, seq_q: 150, seq_kv: 260, batch: 2, ..Case::SMALL };
    let mut random = Random(11);
    let qkv = case.qkv(&mut random);
    let softcap = Score(|s: f32, _, _, _, _| 3.0 * (s / 3.0).tanh());
    let alibi = Score(|s: f32, _, h: i32, q: i32, kv: i32| {
        s - (-2.0 * (h + 1) as f32).exp2() * (q - kv).abs() as f32
    });
    let causal = Mask(|_, _, q, kv| kv <= q);
    let window = Mask(|_, h: i32, q: i32, kv: i32| (q - kv).abs() <= 20 + 10 * h);
    let doc: Vec<i32> = (0..260).map(|i| i / 90).collect();
    let document = Mask(move |b: i32, _, q: i32, kv: i32| doc[q as usize] + b == doc[kv as usize]);
    let everything = BlockMask::full(1, 1, case.block_size(), case.seqs()).unwrap();
    compare(&case, &qkv, &everything, Some(&softcap), None);
    compare(&case, &qkv, &everything, Some(&alibi), None);
    for mask_mod in [&causal as &dyn tilewright::MaskMod, &window, &document] {
        let [batch, heads, ..] = case.grid();
        let own = BlockMask::from_mask_mod(mask_mod, batch, heads, case.block_size(), case.seqs()).unwrap();
        assert!(own.full_kv().is_some() && own.sparsity().unwrap() > 0.0);
        compare(&case, &qkv, &own, Some(&softcap), Some(mask_mod));
        compare(&case, &qkv, &everything, None, Some(mask_mod));
        // Its own blocks lose nothing: the same result as asking everywhere.
        let scale = case.scale();
        let [q, k, v] = &qkv;
        let (out, lse) = attend(q, k, v, &own, scale, None, Some(mask_mod)).unwrap();
        let dense = attention_f64(q, k, v, &everything, scale, None, Some(mask_mod)).unwrap();
        assert!(relative_error(&out.to_f32_vec().unwrap(), &dense.out) <= 4e-3);
        assert!(largest_difference(&lse.to_f32_vec().unwrap(), &dense.lse) <= 1e-3);
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let case = Case { d: 64, ..Case::SMALL };
    let mut random = Random(13);
    let [q, k, v] = case.qkv(&mut random);
    let loud = |t: &Tensor| {
        let data: Vec<f32> = t.to_f32_vec().unwrap().iter().map(|x| x * 40.0).collect();
        tensor(case.dtype, &data, t.shape())
    };
    compare(&case, &[loud(&q), k, v], &case.random_mask(&mut random, 0.7), None, None);
}

#[test]
fn a_nan_query_stays_in_its_row() {
    let case = Case::SMALL;
    let mut random = Random(17);
    let [q, k, v] = case.qkv(&mut random);
    let mask = BlockMask::full(1, 1, case.block_size(), case.seqs()).unwrap();
    let clean = attend(&q, &k, &v, &mask, case.scale(), None, None).unwrap();
    for poison in [f32::NAN, f32::INFINITY] {
        let mut data = q.to_f32_vec().unwrap();
        let row = case.seq_q + 77; // of head 1
        data[row * case.d + 5] = poison;
        let q = tensor(case.dtype, &data, q.shape());
        let found = attend(&q, &k, &v, &mask, case.scale(), None, None).unwrap();
        let rows = |t: &Tensor| t.to_f32_vec().unwrap();
        for (i, (found, clean)) in
            rows(&found.0).chunks(case.d).zip(rows(&clean.0).chunks(case.d)).enumerate()
        {
            if i == row {
                assert!(found.iter().all(|x| x.is_nan()));
            } else {
                assert_eq!(found, clean, "row {i}");
            }
        }
        assert!(rows(&found.1)[row].is_nan());
    }
}

#[test]
fn a_nan_key_reaches_those_who_attend_to_it() {
    let case = Case { seq_q: 128, seq_kv: 128, heads: 1, kv_heads: 1, ..Case::SMALL };
    let [q, k, v] = case.qkv(&mut Random(19));
    let mut data = k.to_f32_vec().unwrap();
    data[100 * case.d] = f32::NAN;
    let k = tensor(case.dtype, &data, k.shape());
    let map = [true, false, true, true];
    let mask = BlockMask::from_dense(&map, [1, 1, 2, 2], blocks(64, 64), SeqLens::same(128)).unwrap();
    let (out, lse) = attend(&q, &k, &v, &mask, case.scale(), None, None).unwrap();
    let nan_rows = lse.to_f32_vec().unwrap().iter().map(|x| x.is_nan()).collect::<Vec<_>>();
    assert!((0..128).all(|i| nan_rows[i] == (i >= 64)));
    let reference = attention_f64(&q, &k, &v, &mask, case.scale(), None, None).unwrap();
    assert!(relative_error(&out.to_f32_vec().unwrap(), &reference.out) <= 4e-3);
}

#[test]
fn a_panic_in_a_function_is_an_error_that_names_it() {
    let case = Case::SMALL;
    let [q, k, v] = case.qkv(&mut Random(23));
    let full = BlockMask::full(1, 1, case.block_size(), case.seqs()).unwrap();
    let table = [0.0f32; 4];
    let bad_score = Score(move |s: f32, _, _, _, kv: i32| s + table[kv as usize]);
    let bad_mask = Mask(|_, _, q: i32, _| 1 / (q - 40) != 7);
    let name = |result: Result<_, Error>| match result {
        Err(Error::DeviceFunction { name, message }) => (name, message),
        other => panic!("{other:?}"),
    };
    let (found, message) = name(attend(&q, &k, &v, &full, 1.0, Some(&bad_score), None));
    assert_eq!(found, "score");
    assert!(message.contains("out of bounds"), "{message}");
    let good_score = Score(|s: f32, _, _, _, _| s);
    let (found, message) = name(attend(&q, &k, &v, &full, 1.0, Some(&good_score), Some(&bad_mask)));
    assert_eq!(found, "keep");
    assert!(message.contains("divide by zero"), "{message}");
    let made = BlockMask::from_mask_mod(&bad_mask, 1, 1, blocks(64, 64), SeqLens::same(200));
    assert!(matches!(made, Err(Error::DeviceFunction { .. })));
}

#[test]
fn tensors_that_do_not_belong_together() {
    let t = |shape: &[usize]| Tensor::zeros(DType::Bf16, shape).unwrap();
    let q = t(&[2, 4, 64, 16]);
    let mask = BlockMask::full(1, 1, blocks(64, 64), SeqLens::same(64)).unwrap();
    let dimension = |k: &Tensor, v: &Tensor| match attend(&q, k, v, &mask, 1.0, None, None) {
        Err(Error::Tensor(TensorError::Dimension { dimension, .. })) => dimension,
        other => panic!("{other:?}"),
    };
    let kv = t(&[2, 2, 64, 16]);
    assert_eq!(dimension(&t(&[1, 2, 64, 16]), &kv), "batch");
    assert_eq!(dimension(&t(&[2, 2, 64, 8]), &kv), "d");
    assert_eq!(dimension(&kv, &t(&[2, 4, 64, 16])), "kv_heads");
    assert_eq!(dimension(&kv, &t(&[2, 2, 65, 16])), "seq_kv");
    assert_eq!(dimension(&kv, &t(&[2, 2, 64, 0])), "d");
    let refused = |q: &Tensor, k: &Tensor, v: &Tensor| attend(q, k, v, &mask, 1.0, None, None).unwrap_err();
    let three = t(&[2, 3, 64, 16]);
    assert!(matches!(
        refused(&q, &three, &three),
        Error::Tensor(TensorError::HeadGroups { heads: 4, kv_heads: 3 })
    ));
    let f32s = Tensor::zeros(DType::F32, &[2, 4, 64, 16]).unwrap();
    assert!(matches!(refused(&f32s, &kv, &kv), Error::Tensor(TensorError::DType { .. })));
    let f16s = Tensor::zeros(DType::F16, &[2, 2, 64, 16]).unwrap();
    assert!(matches!(refused(&q, &f16s, &kv), Error::Tensor(TensorError::DType { .. })));
    assert!(matches!(refused(&q, &kv, &t(&[2, 64, 16])), Error::Tensor(TensorError::Rank { .. })));
    let turned = t(&[2, 4, 16, 64]).permute(&[0, 1, 3, 2]).unwrap();
    assert!(matches!(refused(&turned, &kv, &kv), Error::Tensor(TensorError::Strides { .. })));
    let other = BlockMask::full(1, 1, blocks(64, 64), SeqLens { q: 128, kv: 64 }).unwrap();
    let error = attend(&q, &kv, &kv, &other, 1.0, None, None).unwrap_err();
    assert!(matches!(error, Error::Mask(MaskError::Fit { dimension: "seq_q", found: 128, needed: 64, .. })));
}

#[test]
fn nan_never_passes_a_comparison() {
    assert!(relative_error(&[f32::NAN, 1.0], &[0.0, 1.0]).is_nan());
    assert!(relative_error(&[0.0, 1.0], &[f64::NAN, 1.0]).is_nan());
    assert!(relative_error(&[f32::INFINITY], &[1.0]).is_nan());
    assert!(relative_error(&[1.0], &[1.0, 1.0]).is_nan());
    assert!(largest_difference(&[f32::NAN, 1.0], &[0.0, 1.0]).is_nan());
    assert_eq!(relative_error(&[f32::NAN, 1.0], &[f64::NAN, 1.0]), 0.0);
    assert_eq!(relative_error(&[1.0], &[0.0]), f64::INFINITY);
    assert_eq!(relative_error(&[3.0, 5.0], &[3.0, 4.0]), 0.2);
    assert_eq!(largest_difference(&[f32::NEG_INFINITY, 1.5], &[f64::NEG_INFINITY, 1.0]), 0.5);
}
