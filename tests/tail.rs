//! Tails: the f64 reference against figures of the heads in `tests/data`, against dense attention where a tail is exact, and its gradients
//! against differences.

mod support;

use support::{Case, Mask, Random, blocks, tensor};
use tilewright::reference::{
    attention_f64, attention_with_tail_backward_f64, attention_with_tail_f64, largest_difference,
    relative_error,
};
use tilewright::{
    BlockMask, BlockSize, DType, Error, MaskMod, Scores, SeqLens, Tail, TailError, Tensor, TensorError,
    TokenGrid, cpu, mask_mod, top_k,
};

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

const TAILS: [Tail; 3] = [Tail::Block, Tail::Row { keys: 64 }, Tail::Row { keys: 128 }];

fn read(file: &str, name: &str) -> Tensor {
    let bytes = std::fs::read(format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    Tensor::from_bytes(DType::Bf16, tensor.data(), tensor.shape()).unwrap()
}

/// `Σ |found - dense| / Σ |dense|`.
fn l1(found: &Tensor, dense: &Tensor) -> f64 {
    let [found, dense] = [found, dense].map(|tensor| tensor.to_f32_vec().unwrap());
    let apart: f64 = found.iter().zip(&dense).map(|(a, b)| f64::from((a - b).abs())).sum();
    apart / dense.iter().map(|x| f64::from(x.abs())).sum::<f64>()
}

/// Tokens in raster order and in cubes, 5 % of the key blocks by top-k: the errors that a separate program found in f64, without a tail and
/// with each.
#[test]
fn figures_of_a_video_transformer() {
    let of_means: [(&str, bool, &[f64]); 4] = [
        ("layer2-head5.safetensors", false, &[0.9659, 0.4268, 0.4209, 0.4233]),
        ("layer2-head5.safetensors", true, &[1.193, 1.1153, 1.1163, 1.1147]),
        ("layer6-head1.safetensors", false, &[0.427, 0.4022, 0.3627, 0.3897]),
        ("layer6-head1.safetensors", true, &[0.2365, 0.2288, 0.2184, 0.2226]),
    ];
    let of_keys: [(&str, bool, &[f64]); 4] = [
        ("layer2-head5.safetensors", false, &[0.9639, 0.4229, 0.4172]),
        ("layer2-head5.safetensors", true, &[0.9357, 0.2379, 0.211]),
        ("layer6-head1.safetensors", false, &[0.3497, 0.3369, 0.3112]),
        ("layer6-head1.safetensors", true, &[0.1937, 0.1863, 0.1777]),
    ];
    let of = |scores, cases: [(&'static str, bool, &'static [f64]); 4]| cases.map(|case| (scores, case));
    let all = [of(Scores::Means, of_means), of(Scores::Keys, of_keys)].concat();
    for (scores, (file, cubes, expected)) in all {
        let [mut q, mut k, mut v] = ["q", "k", "v"].map(|name| read(file, name));
        if cubes {
            let grid = TokenGrid::builder([8, 16, 28]).tile([4, 4, 4]).build().unwrap();
            [q, k, v] = [q, k, v].map(|x| grid.regroup(&x).unwrap());
        }
        let scale = 1.0 / 128f32.sqrt();
        let all = BlockMask::full(1, 1, BlockSize::default(), SeqLens::same(3584)).unwrap();
        let (dense, _) = cpu::attend(&q, &k, &v, &all, scale, None, None).unwrap();
        let rule = top_k(0.05).by(scores);
        let mask = cpu::mask(&q, &k, Some(&rule), scale, BlockSize::default(), None).unwrap();
        let mask = mask.with_unlisted_dropped().unwrap();
        for (tail, expected) in [Tail::None].into_iter().chain(TAILS).zip(expected) {
            let (found, _) = cpu::attend_with_tail([&q, &k, &v], &mask, scale, None, tail).unwrap();
            let found = l1(&found, &dense);
            assert!(
                (found - expected).abs() < 2e-3,
                "{file}, cubes {cubes}, {scores:?}, {tail:?}: {found:.4}, {expected}"
            );
        }
    }
}

/// The rows of a `[batch, heads, seq, d]` tensor, each block's the same.
fn constant_within(random: &mut Random, [batch, heads, seq, d]: [usize; 4], block: usize) -> Tensor {
    let mut data = Vec::new();
    for _ in 0..batch * heads {
        let rows: Vec<Vec<f32>> =
            (0..seq.div_ceil(block)).map(|_| (0..d).map(|_| random.normal()).collect()).collect();
        (0..seq).for_each(|row| data.extend(&rows[row / block]));
    }
    tensor(DType::F32, &data, &[batch, heads, seq, d])
}

fn random_map(random: &mut Random, shape: [usize; 4], share: f64) -> Vec<bool> {
    (0..shape.iter().product()).map(|_| random.chance(share)).collect()
}

/// Where keys are alike within what a mean stands for, and queries within blocks for the block tail, nothing is lost: short last blocks,
/// groups of heads and values of another width among them.
#[test]
fn a_tail_is_exact_where_keys_are_alike() {
    let mut random = Random(11);
    for (heads, kv_heads, seq_q, seq_kv) in [(2, 2, 256usize, 512usize), (4, 2, 200, 330), (3, 1, 129, 65)] {
        let mask_shape = [1, heads, seq_q.div_ceil(128), seq_kv.div_ceil(64)];
        for (tail, block) in TAILS.into_iter().zip([64, 64, 128]) {
            let q = match tail {
                Tail::Block => constant_within(&mut random, [1, heads, seq_q, 8], 128),
                _ => random.tensor(DType::F32, &[1, heads, seq_q, 8]),
            };
            let k = constant_within(&mut random, [1, kv_heads, seq_kv, 8], block);
            // A run that is kept in part has the mean of all its values: they are alike too then.
            let v = match block {
                128 => constant_within(&mut random, [1, kv_heads, seq_kv, 5], block),
                _ => random.tensor(DType::F32, &[1, kv_heads, seq_kv, 5]),
            };
            let seqs = SeqLens { q: seq_q, kv: seq_kv };
            let all = BlockMask::full(1, 1, BlockSize::default(), seqs).unwrap();
            let dense = attention_f64(&q, &k, &v, &all, 0.7, None, None).unwrap();
            let map = random_map(&mut random, mask_shape, 0.3);
            let mask = BlockMask::from_dense(&map, mask_shape, BlockSize::default(), seqs).unwrap();
            let mask = mask.with_unlisted_dropped().unwrap();
            let found = attention_with_tail_f64([&q, &k, &v], &mask, 0.7, None, tail).unwrap();
            for (found, dense) in found.out.iter().chain(&found.lse).zip(dense.out.iter().chain(&dense.lse)) {
                assert!((found - dense).abs() < 1e-12, "{tail:?}, {heads} heads, {seq_q}: {found}, {dense}");
            }
        }
    }
}

/// Nothing dropped, nothing changed, to the bit; and what no mask says is refused.
#[test]
fn what_is_kept_has_no_tail() {
    let case = Case { dtype: DType::F32, d: 8, ..Case::SMALL };
    let mut random = Random(12);
    let [q, k, v] = case.qkv(&mut random);
    let full = BlockMask::full(1, 1, case.block_size(), SeqLens { q: 129, kv: 200 }).unwrap();
    let dense = attention_f64(&q, &k, &v, &full, 0.5, None, None).unwrap();
    for tail in TAILS {
        let refused = attention_with_tail_f64([&q, &k, &v], &full, 0.5, None, tail).unwrap_err();
        assert!(matches!(refused, Error::Tail(TailError::Unknown)), "{refused}");
        let mask = full.with_unlisted_dropped().unwrap();
        assert_eq!(attention_with_tail_f64([&q, &k, &v], &mask, 0.5, None, tail).unwrap(), dense, "{tail:?}");
    }
    let tail = Tail::Row { keys: 100 };
    let refused = attention_with_tail_f64([&q, &k, &v], &full, 0.5, None, tail).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a row tail over 100 keys, needed a multiple of the 64 keys of a sparse block: take 64 or 128"
    );
}

/// Of a causal mask's blocks some are kept and the whole ones dropped: what the future holds changes nothing, whatever runs there are.
#[test]
fn forbidden_keys_do_not_show() {
    let mut random = Random(13);
    let size = blocks(64, 64);
    let seqs = SeqLens::same(512);
    let shape = [1, 1, 512, 8];
    let [q, k, v] = [0; 3].map(|_| random.tensor(DType::F32, &shape));
    let admissible = BlockMask::from_mask_mod(&causal {}, 1, 1, size, seqs).unwrap();
    let classes = admissible.to_dense().unwrap().classes;
    // The diagonal, and a few of the whole blocks.
    let kept: Vec<u8> =
        classes.iter().map(|&class| if class == 2 && random.chance(0.7) { 0 } else { class }).collect();
    let mask = BlockMask::from_classes(&kept, [1, 1, 8, 8], size, seqs).unwrap();
    let mask = mask.with_admissible(&admissible).unwrap();
    let dropped: usize = kept.iter().zip(&classes).filter(|(kept, class)| kept != class).count();
    assert!(dropped > 10, "{dropped} of the blocks are dropped");
    let of = |k: &Tensor, v: &Tensor, tail| {
        attention_with_tail_f64([&q, k, v], &mask, 0.5, Some(&causal {} as &dyn MaskMod), tail).unwrap()
    };
    for tail in TAILS.into_iter().chain([Tail::Row { keys: 256 }]) {
        let before = of(&k, &v, tail);
        for at in [64, 200, 448] {
            let changed = |x: &Tensor| {
                let mut data = x.to_f32_vec().unwrap();
                data[at * 8..].iter_mut().for_each(|x| *x = 1e3 - *x);
                tensor(DType::F32, &data, &shape)
            };
            let after = of(&changed(&k), &changed(&v), tail);
            // Queries before `at` may not see what changed.
            assert_eq!(before.out[..at * 8], after.out[..at * 8], "{tail:?}, from {at} on");
            assert_eq!(before.lse[..at], after.lse[..at], "{tail:?}, from {at} on");
            assert_ne!(before.out[at * 8..], after.out[at * 8..]);
        }
    }
}

/// With a mask function, blocks that it keeps in part and that are not listed are dropped without a tail.
#[test]
fn what_is_forbidden_in_part_has_no_mean() {
    let size = blocks(64, 64);
    let seqs = SeqLens::same(128);
    let by_halves = Mask(|_: i32, _: i32, q: i32, kv: i32| q < 64 || kv % 2 == 0);
    let admissible = BlockMask::from_mask_mod(&by_halves, 1, 1, size, seqs).unwrap();
    let mask = BlockMask::from_classes(&[2, 0, 1, 0], [1, 1, 2, 2], size, seqs).unwrap();
    let mask = mask.with_admissible(&admissible).unwrap();
    assert_eq!(mask.dropped().unwrap().to_vec::<i32>().unwrap(), [0b10, 0]);
    // Without full blocks all that is listed is whole.
    let listed = BlockMask::from_dense(&[true, true, false, true], [1, 1, 2, 2], size, seqs).unwrap();
    let few = BlockMask::from_dense(&[false, true, false, false], [1, 1, 2, 2], size, seqs).unwrap();
    let few = few.with_admissible(&listed).unwrap();
    assert_eq!(few.dropped().unwrap().to_vec::<i32>().unwrap(), [0b01, 0b10]);
    assert!(few.with_admissible(&BlockMask::full(1, 1, size, SeqLens::same(64)).unwrap()).is_err());
    let other = BlockMask::full(1, 1, blocks(128, 64), seqs).unwrap();
    assert!(few.with_admissible(&other).is_err());
}

/// Bits beyond a word, and one admissible mask for heads that keep other blocks.
#[test]
fn dropped_blocks_are_bits() {
    let seqs = SeqLens { q: 64, kv: 64 * 70 };
    let map = |head: usize| (0..70).map(move |block| block % 3 == head);
    let kept: Vec<bool> = map(0).chain(map(1)).collect();
    let mask = BlockMask::from_dense(&kept, [1, 2, 1, 70], blocks(64, 64), seqs).unwrap();
    let allowed: Vec<bool> = (0..70).map(|block| block < 66).collect();
    let allowed = BlockMask::from_dense(&allowed, [1, 1, 1, 70], blocks(64, 64), seqs).unwrap();
    let bits = mask.with_admissible(&allowed).unwrap();
    let dropped = bits.dropped().unwrap();
    assert_eq!(dropped.shape(), [1, 2, 1, 3]);
    let words = dropped.to_vec::<i32>().unwrap();
    for head in 0..2 {
        for block in 0..96 {
            let bit = words[3 * head + block / 32] >> (block % 32) & 1 == 1;
            assert_eq!(bit, block < 66 && block % 3 != head, "head {head}, block {block}");
        }
    }
    // Bits of a caller's are those of the same batch, heads and blocks.
    let again = mask.with_dropped(dropped.clone()).unwrap();
    assert_eq!(again.dropped().unwrap().to_vec::<i32>().unwrap(), words);
    assert!(matches!(allowed.with_dropped(dropped.clone()), Err(Error::Tensor(TensorError::Shape { .. }))));
    let other = tensor(DType::F32, &[0.0; 6], &[1, 2, 1, 3]);
    assert!(matches!(mask.with_dropped(other), Err(Error::Tensor(TensorError::DType { .. }))));
}

#[test]
fn the_reference_gives_the_slopes_of_its_forward() {
    let case =
        Case { dtype: DType::F32, heads: 4, kv_heads: 2, seq_q: 150, seq_kv: 200, d: 4, ..Case::SMALL };
    let mut random = Random(14);
    let qkv = case.qkv(&mut random);
    let grid = case.grid();
    let map = random_map(&mut random, grid, 0.4);
    let mask =
        BlockMask::from_dense(&map, grid, case.block_size(), SeqLens { q: case.seq_q, kv: case.seq_kv })
            .unwrap();
    let mask = mask.with_unlisted_dropped().unwrap();
    let d_out = random.tensor(DType::F32, &[1, 4, 150, 4]);
    let d_lse = random.tensor(DType::F32, &[1, 4, 150]);
    let (out_weights, lse_weights) = (d_out.to_f32_vec().unwrap(), d_lse.to_f32_vec().unwrap());
    let step = 1.0f32 / 1024.0;
    for tail in TAILS {
        let [q, k, v] = &qkv;
        let weights = (&d_out, Some(&d_lse));
        let exact = attention_with_tail_backward_f64([q, k, v], weights, &mask, 0.5, None, tail).unwrap();
        for (at, exact) in [exact.dq, exact.dk, exact.dv].iter().enumerate() {
            for element in (0..exact.len()).step_by(197) {
                let loss = |by: f32| -> f64 {
                    let mut data = qkv[at].to_f32_vec().unwrap();
                    data[element] += by;
                    let moved = tensor(DType::F32, &data, qkv[at].shape());
                    let mut tensors = [q, k, v];
                    tensors[at] = &moved;
                    let found = attention_with_tail_f64(tensors, &mask, 0.5, None, tail).unwrap();
                    let sum = |values: &[f64], weights: &[f32]| -> f64 {
                        values.iter().zip(weights).map(|(x, weight)| x * f64::from(*weight)).sum()
                    };
                    sum(&found.out, &out_weights) + sum(&found.lse, &lse_weights)
                };
                let at_element = qkv[at].to_f32_vec().unwrap()[element];
                // As far as f32 really moved it.
                let moved = f64::from(at_element + step) - f64::from(at_element - step);
                let slope = (loss(step) - loss(-step)) / moved;
                let error = (slope - exact[element]).abs() / exact[element].abs().max(1.0);
                assert!(
                    error < 1e-4,
                    "{tail:?}, tensor {at}, element {element}: {slope} and {}",
                    exact[element]
                );
            }
        }
    }
}

/// Sizes with short last blocks, groups of heads, values of another width, one block, and every block size.
fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case { heads: 4, kv_heads: 2, seq_q: 150, seq_kv: 330, d: 16, value_d: Some(8), ..Case::SMALL },
        Case {
            batch: 2,
            heads: 3,
            kv_heads: 1,
            seq_q: 64,
            seq_kv: 200,
            d: 8,
            dtype: DType::F16,
            ..Case::SMALL
        },
        Case { seq_q: 1, seq_kv: 130, d: 8, ..Case::SMALL },
    ];
    let sizes = BlockSize::ALL.iter().map(|size| (size.q(), size.kv()));
    cases.extend(sizes.map(|blocks| Case {
        blocks,
        seq_q: 140,
        seq_kv: 410,
        d: 8,
        heads: 1,
        kv_heads: 1,
        ..Case::SMALL
    }));
    cases
}

/// The CPU executor against the reference: forward and backward, masks with a batch or heads of 1, and with a mask function.
#[test]
fn the_cpu_computes_the_tail() {
    let mut random = Random(15);
    let near = Mask(|_: i32, h: i32, q: i32, kv: i32| kv < 300 + 7 * h || q % 3 != 0);
    for case in cases() {
        let [q, k, v] = case.qkv(&mut random);
        let seqs = SeqLens { q: case.seq_q, kv: case.seq_kv };
        let [batch, heads, q_blocks, kv_blocks] = case.grid();
        let size = case.block_size();
        for (shape, function) in [
            ([batch, heads, q_blocks, kv_blocks], None),
            ([1, 1, q_blocks, kv_blocks], None),
            ([batch, heads, q_blocks, kv_blocks], Some(&near as &dyn MaskMod)),
        ] {
            let mask = match function {
                None => {
                    let map = random_map(&mut random, shape, 0.3);
                    BlockMask::from_dense(&map, shape, size, seqs).unwrap().with_unlisted_dropped().unwrap()
                }
                Some(function) => {
                    let admissible = BlockMask::from_mask_mod(function, batch, heads, size, seqs).unwrap();
                    let classes = admissible.to_dense().unwrap().classes.into_iter();
                    let kept: Vec<u8> = classes.map(|c| if random.chance(0.5) { c } else { 0 }).collect();
                    let kept = BlockMask::from_classes(&kept, shape, size, seqs).unwrap();
                    kept.with_admissible(&admissible).unwrap()
                }
            };
            let scale = 0.3;
            let d_out = random.tensor(case.dtype, &[case.batch, case.heads, case.seq_q, case.value_d()]);
            let d_lse = random.tensor(DType::F32, &[case.batch, case.heads, case.seq_q]);
            let rows = [1, 2, 4].map(|blocks| Tail::Row { keys: blocks * size.kv() });
            for tail in [Tail::Block].into_iter().chain(rows) {
                let what = format!("{case:?}, {shape:?}, function {}, {tail:?}", function.is_some());
                let expected = attention_with_tail_f64([&q, &k, &v], &mask, scale, function, tail).unwrap();
                let (out, lse) = cpu::attend_with_tail([&q, &k, &v], &mask, scale, function, tail).unwrap();
                let error = relative_error(&out.to_f32_vec().unwrap(), &expected.out);
                let lse_error = largest_difference(&lse.to_f32_vec().unwrap(), &expected.lse);
                assert!(error <= 4e-3 && lse_error <= 1e-4, "{what}: out {error:.2e}, lse {lse_error:.2e}");
                let upstream = cpu::Upstream {
                    q: &q,
                    k: &k,
                    v: &v,
                    out: &out,
                    lse: &lse,
                    d_out: &d_out,
                    d_lse: Some(&d_lse),
                };
                let found = cpu::backward_with_tail(upstream, &mask, scale, function, tail).unwrap();
                let weights = (&d_out, Some(&d_lse));
                let expected =
                    attention_with_tail_backward_f64([&q, &k, &v], weights, &mask, scale, function, tail)
                        .unwrap();
                for (name, found, expected) in [
                    ("dq", found.dq, expected.dq),
                    ("dk", found.dk, expected.dk),
                    ("dv", found.dv, expected.dv),
                ] {
                    let error = relative_error(&found.to_f32_vec().unwrap(), &expected);
                    assert!(error <= 6e-3, "{what}: {name} {error:.2e}");
                }
            }
        }
    }
}

/// Where nothing is dropped the tail changes no bit.
#[test]
fn the_cpu_leaves_whole_rows_alone() {
    let mut random = Random(16);
    let case = Case { seq_q: 200, seq_kv: 300, ..Case::SMALL };
    let [q, k, v] = case.qkv(&mut random);
    let seqs = SeqLens { q: 200, kv: 300 };
    // The first block of queries keeps all, the second some.
    let [_, _, q_blocks, kv_blocks] = case.grid();
    let map: Vec<bool> = (0..q_blocks * kv_blocks).map(|block| block < kv_blocks || block % 2 == 0).collect();
    let mask = BlockMask::from_dense(&map, [1, 1, q_blocks, kv_blocks], case.block_size(), seqs).unwrap();
    let without = cpu::attend(&q, &k, &v, &mask, 0.3, None, None).unwrap();
    let mask = mask.with_unlisted_dropped().unwrap();
    for tail in TAILS {
        let with = cpu::attend_with_tail([&q, &k, &v], &mask, 0.3, None, tail).unwrap();
        let first = |tensor: &Tensor| -> Vec<f32> {
            let data = tensor.to_f32_vec().unwrap();
            let row = data.len() / (2 * 200);
            data.chunks(200 * row).flat_map(|head| head[..64 * row].to_vec()).collect()
        };
        assert_eq!((first(&with.0), first(&with.1)), (first(&without.0), first(&without.1)), "{tail:?}");
        assert_ne!(with.0.to_f32_vec().unwrap(), without.0.to_f32_vec().unwrap(), "{tail:?}");
    }
}

/// What is no number reaches those who drop it, as docs/tails.md says.
#[test]
fn what_is_no_number_shows_where_it_is_dropped() {
    let mut random = Random(18);
    let shapes = [[1, 1, 256, 8], [1, 1, 512, 8], [1, 1, 512, 8]];
    let clean = shapes.map(|shape| random.tensor(DType::Bf16, &shape));
    // The first block of queries keeps all, the second the first three of eight blocks.
    let map: Vec<bool> = (0..16).map(|block| block < 11).collect();
    let mask = BlockMask::from_dense(&map, [1, 1, 2, 8], blocks(128, 64), SeqLens { q: 256, kv: 512 });
    let mask = mask.unwrap().with_unlisted_dropped().unwrap();
    // The rows that are NaN when one row of q, k or v is.
    let spoilt = |at: usize, row: usize, tail| -> Vec<usize> {
        let mut tensors = clean.clone();
        let mut data = clean[at].to_f32_vec().unwrap();
        data[row * 8..(row + 1) * 8].fill(f32::NAN);
        tensors[at] = tensor(DType::Bf16, &data, &shapes[at]);
        let [q, k, v] = &tensors;
        let (out, _) = cpu::attend_with_tail([q, k, v], &mask, 0.4, None, tail).unwrap();
        let out = out.to_f32_vec().unwrap();
        (0..256).filter(|row| out[row * 8..(row + 1) * 8].iter().any(|x| x.is_nan())).collect()
    };
    let (first, second, all) = (0..128, 128..256, 0..256);
    for at in [1, 2] {
        assert_eq!(spoilt(at, 300, Tail::None), first.clone().collect::<Vec<_>>());
        // Key 300 is in a block that is dropped, key 150 in one that is kept by all, of a run that is kept in part.
        for (row, tail) in [300, 150].into_iter().flat_map(|row| TAILS.map(|tail| (row, tail))) {
            assert_eq!(spoilt(at, row, tail), all.clone().collect::<Vec<_>>(), "{tail:?}, row {row} of {at}");
        }
    }
    assert_eq!(spoilt(0, 130, Tail::Block), second.collect::<Vec<_>>());
    assert_eq!(spoilt(0, 30, Tail::Block), [30], "nothing is dropped");
    for tail in [Tail::None, TAILS[1], TAILS[2]] {
        assert_eq!(spoilt(0, 130, tail), [130], "{tail:?}");
    }
}
