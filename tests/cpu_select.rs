//! The selection rule against a sort, and the mask it makes of real shapes.

mod support;

use proptest::prelude::*;
use support::{Case, Mask, Random, tensor};
use tilewright::cpu::{mask, select_row};
use tilewright::{BlockSize, DType, DenseMap, Error, MaskError, Selection, Tensor, top_k, top_p};

/// The rule as it is written down: sort, count, add up.
fn by_sorting(logits: &[f32], admissible: &[bool], k: Option<f64>, p: Option<f64>) -> Vec<bool> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&j| admissible[j]).collect();
    let max = order.iter().fold(f32::NEG_INFINITY, |max, &j| max.max(logits[j]));
    let mut probability = vec![0.0f32; logits.len()];
    if max > f32::NEG_INFINITY {
        let sum: f32 = order.iter().map(|&j| (logits[j] - max).exp()).sum();
        order.iter().for_each(|&j| probability[j] = (logits[j] - max).exp() / sum);
    }
    let mass = |j: usize| (f64::from(probability[j]) * 1073741824.0).round_ties_even() as u64;
    order.sort_by(|&a, &b| probability[b].total_cmp(&probability[a]).then(a.cmp(&b)));
    let n = order.len();
    let total: u64 = order.iter().map(|&j| mass(j)).sum();
    let n_k = k.map_or(1, |k| {
        let x = k as f32 * n as f32;
        ((x - x * 1e-6).ceil() as usize).max(1)
    });
    let n_p = match p.map(|p| p as f32) {
        None => 0,
        Some(p) if p >= 1.0 => n,
        Some(p) => {
            let target = (f64::from(p) * total as f64).ceil() as u64;
            (0..=n).find(|&r| order[..r].iter().map(|&j| mass(j)).sum::<u64>() >= target).unwrap_or(n)
        }
    };
    let mut keep = vec![false; logits.len()];
    order[..n_k.max(n_p).min(n)].iter().for_each(|&j| keep[j] = true);
    keep
}

fn selected(logits: &[f32], admissible: &[bool], rule: Selection) -> Vec<bool> {
    let mut keep = vec![true; logits.len()];
    select_row(logits, |j| admissible[j], &rule, &mut keep);
    keep
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -20.0f32..20.0,
        4 => (-3i32..3).prop_map(|x| x as f32),
        1 => Just(f32::NEG_INFINITY),
        1 => prop_oneof![Just(3e38f32), Just(-3e38f32)],
    ]
}

/// Rows of every shape: mixed, flat, one-hot, all of them without any mass.
fn row() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        6 => prop::collection::vec(logit(), 1..150),
        2 => (1usize..150, -5.0f32..5.0).prop_map(|(n, x)| vec![x; n]),
        2 => (1usize..150, any::<prop::sample::Index>()).prop_map(|(n, at)| {
            let mut row = vec![0.0; n];
            row[at.index(n)] = 60.0;
            row
        }),
        1 => (1usize..20).prop_map(|n| vec![f32::NEG_INFINITY; n]),
    ]
}

fn share() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![1 => Just(None), 1 => Just(Some(1.0)), 4 => (1e-4f64..1.0).prop_map(Some), 2 => (1u32..20).prop_map(|x| Some(f64::from(x) * 0.05))]
}

fn rule(k: Option<f64>, p: Option<f64>) -> Option<Selection> {
    match (k, p) {
        (Some(k), Some(p)) => Some(top_k(k) | top_p(p)),
        (Some(k), None) => Some(top_k(k)),
        (None, Some(p)) => Some(top_p(p)),
        (None, None) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn selection_is_the_sorted_one(logits in row(), k in share(), p in share(), seed: u64, density in prop_oneof![Just(1.0), 0.0..1.0]) {
        let Some(rule) = rule(k, p) else { return Ok(()) };
        let mut random = Random(seed);
        let admissible: Vec<bool> = logits.iter().map(|_| random.chance(density)).collect();
        let keep = selected(&logits, &admissible, rule);
        prop_assert_eq!(&keep, &by_sorting(&logits, &admissible, k, p));

        // What the rule is for, in f64 and without its fixed point.
        let of = |wanted: bool| (0..logits.len()).filter(|&j| admissible[j] && keep[j] == wanted).collect::<Vec<_>>();
        let (kept, dropped) = (of(true), of(false));
        let n = kept.len() + dropped.len();
        prop_assert!(keep.iter().zip(&admissible).all(|(keep, admissible)| *admissible || !keep));
        prop_assert_eq!(kept.is_empty(), n == 0);
        prop_assert!(kept.len() as f64 >= k.unwrap_or(0.0) * n as f64 * (1.0 - 2e-6));
        if n > 0 {
            let max = kept.iter().fold(f32::NEG_INFINITY, |max, &j| max.max(logits[j]));
            let weight = |j: &usize| if max == f32::NEG_INFINITY { 0.0 } else { f64::from(logits[*j] - max).exp() };
            let (inside, outside) = (kept.iter().map(weight).sum::<f64>(), dropped.iter().map(weight).sum::<f64>());
            prop_assert!(inside >= (inside + outside) * (p.unwrap_or(0.0) - 1e-5));
            let least = kept.iter().map(weight).fold(f64::INFINITY, f64::min);
            prop_assert!(dropped.iter().all(|j| weight(j) <= least * (1.0 + 1e-6)));
        }
    }
}

#[test]
fn examples() {
    let all = [true; 20];
    let kept = |logits: &[f32], rule| {
        let keep = selected(logits, &all[..logits.len()], rule);
        (0..keep.len()).filter(|&j| keep[j]).collect::<Vec<_>>()
    };
    let flat = [1.0; 20];
    assert_eq!(kept(&flat, top_k(0.15)), [0, 1, 2], "ties go to the lower index, and 0.15 · 20 is 3");
    assert_eq!(kept(&flat, top_p(0.25)), [0, 1, 2, 3, 4]);
    assert_eq!(kept(&flat, top_k(1.0)).len(), 20);
    assert_eq!(kept(&flat, top_p(1.0)).len(), 20);
    let peaked = [0.0, 0.0, 50.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(kept(&peaked, top_p(0.9)), [2], "a sink has all the mass");
    assert_eq!(kept(&peaked, top_k(0.3) | top_p(0.9)), [0, 1, 2], "and the union still keeps three");
    assert_eq!(kept(&peaked, top_p(1.0)).len(), 10, "p = 1 keeps even what has no mass");
    assert_eq!(kept(&[f32::NEG_INFINITY; 4], top_p(0.9)), [0]);
    assert_eq!(kept(&[-3.0], top_k(0.001)), [0]);
}

#[test]
fn masks_of_tensors() {
    let case = Case { heads: 4, kv_heads: 2, seq_q: 300, seq_kv: 500, batch: 2, ..Case::SMALL };
    let mut random = Random(29);
    let [q, k, _] = case.qkv(&mut random);
    let blocks = BlockSize::new(64, 64).unwrap();
    let found = mask(&q, &k, Some(&(top_k(0.3) | top_p(0.4))), case.scale(), blocks, None).unwrap();
    assert_eq!(found.shape(), [2, 4, 5, 8]);
    assert!(found.full_kv().is_none());

    // The same from means in f64.
    let means = |t: &tilewright::Tensor, block: usize| -> Vec<Vec<f64>> {
        let (seq, d) = (t.shape()[2], t.shape()[3]);
        let data = t.to_f32_vec().unwrap();
        let heads = data.chunks(seq * d);
        heads
            .flat_map(|head| head.chunks(block * d))
            .map(|rows| {
                let count = (rows.len() / d) as f64;
                (0..d)
                    .map(|c| rows.iter().skip(c).step_by(d).map(|&x| f64::from(x)).sum::<f64>() / count)
                    .collect()
            })
            .collect()
    };
    let (pooled_q, pooled_k) = (means(&q, 64), means(&k, 64));
    let dense = found.to_dense().unwrap();
    for (row, q) in pooled_q.iter().enumerate() {
        let head = row / 5;
        let unit = head / 4 * 2 + head % 4 / 2;
        let logits: Vec<f32> = pooled_k[unit * 8..][..8]
            .iter()
            .map(|k| (q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * f64::from(case.scale())) as f32)
            .collect();
        let expected = by_sorting(&logits, &[true; 8], Some(0.3), Some(0.4));
        let classes: Vec<u8> =
            expected.iter().map(|&keep| if keep { DenseMap::PARTIAL } else { DenseMap::EMPTY }).collect();
        assert_eq!(dense.classes[row * 8..][..8], classes, "row {row}");
    }
}

#[test]
fn a_mask_function_admits_and_splits() {
    let case = Case { seq_q: 256, seq_kv: 256, ..Case::SMALL };
    let [q, k, _] = case.qkv(&mut Random(31));
    let causal = Mask(|_, _, q, kv| kv <= q);
    let blocks = BlockSize::new(64, 64).unwrap();
    let all =
        mask(&q, &k, Some(&top_k(1.0)), case.scale(), blocks, Some(&causal)).unwrap().to_dense().unwrap();
    for (i, &class) in all.classes.iter().enumerate() {
        let (row, column) = (i / 4 % 4, i % 4);
        let expected = if column < row {
            DenseMap::FULL
        } else if column == row {
            DenseMap::PARTIAL
        } else {
            DenseMap::EMPTY
        };
        assert_eq!(class, expected);
    }
    let half = mask(&q, &k, Some(&top_k(0.5)), case.scale(), blocks, Some(&causal)).unwrap();
    assert_eq!(half.row_counts().unwrap(), [1, 1, 2, 2, 1, 1, 2, 2], "ceil(n / 2) of the n admissible");
    let nothing = Mask(|_, _, _, _| false);
    let none = mask(&q, &k, Some(&top_p(0.9)), case.scale(), blocks, Some(&nothing)).unwrap();
    assert_eq!(none.kept_blocks().unwrap(), 0);
}

#[test]
fn nan_and_infinity_are_values() {
    let case = Case { heads: 1, kv_heads: 1, seq_q: 256, seq_kv: 256, ..Case::SMALL };
    let [q, k, _] = case.qkv(&mut Random(37));
    let blocks = BlockSize::new(64, 64).unwrap();
    let rule = top_k(0.5);
    let clean = mask(&q, &k, Some(&rule), case.scale(), blocks, None).unwrap().to_dense().unwrap();
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let spoil = |t: &tilewright::Tensor| {
            let mut data = t.to_f32_vec().unwrap();
            data[100 * case.d..][..case.d].fill(poison);
            tensor(DType::Bf16, &data, t.shape())
        };
        let found = mask(&spoil(&q), &k, Some(&rule), case.scale(), blocks, None).unwrap();
        assert_eq!(found.row_counts().unwrap(), [2; 4]);
        let found = found.to_dense().unwrap().classes;
        for row in [0, 2, 3] {
            assert_eq!(found[row * 4..][..4], clean.classes[row * 4..][..4], "only block 1 of q is touched");
        }
        let found = mask(&q, &spoil(&k), Some(&rule), case.scale(), blocks, None).unwrap();
        assert_eq!(found.row_counts().unwrap(), [2; 4]);
        if poison.is_nan() {
            let found = found.to_dense().unwrap().classes;
            assert!((0..4).all(|row| found[row * 4 + 1] == DenseMap::EMPTY), "NaN is the lowest score");
        }
    }
}

#[test]
fn rules_out_of_range() {
    let [q, k, _] = Case::SMALL.qkv(&mut Random(41));
    for rule in [top_k(0.0), top_p(0.0), top_k(1.5), top_p(-0.1), top_p(f64::NAN), top_k(0.1) | top_p(0.0)] {
        let error = mask(&q, &k, Some(&rule), 1.0, BlockSize::default(), None).unwrap_err();
        assert!(matches!(error, Error::Select(_)), "{error}");
    }
}

/// Functions would be asked about positions below 0.
#[test]
fn sequences_of_more_positions_than_32_bits_count_are_refused() {
    let (short, row) = (Tensor::zeros(DType::Bf16, &[1, 1, 1, 64]).unwrap(), [0, 0, 0, 1]);
    for found in [i32::MAX as usize - 255, 3_000_000_000] {
        let long = short.with_strides(&[1, 1, found, 64], &row).unwrap();
        for [q, k] in [[&short, &long], [&long, &short]] {
            let error = mask(q, k, None, 1.0, BlockSize::default(), None).unwrap_err();
            assert!(matches!(error, Error::Mask(MaskError::TooLong { found: it }) if it == found), "{error}");
        }
    }
}
