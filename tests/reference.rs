//! The gradients of the f64 reference against differences of its forward.

mod support;

use support::{Case, Random, tensor};
use tilewright::reference::{attention_backward_f64, attention_f64, relative_error};
use tilewright::{BlockMask, DType, MaskMod, ScoreMod, SeqLens, Tensor, mask_mod, score_mod};

#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

#[mask_mod]
fn window(b: i32, h: i32, q: i32, kv: i32, width: i32) -> bool {
    (q - kv).abs() <= width + 5 * h
}

/// `sum(out · d_out) + sum(lse · d_lse)`, over the queries that attend to something.
fn loss(
    [q, k, v]: &[Tensor; 3],
    (d_out, d_lse): (&[f32], &[f32]),
    mask: &BlockMask,
    functions: (Option<&dyn ScoreMod>, Option<&dyn MaskMod>),
) -> f64 {
    let found = attention_f64(q, k, v, mask, 0.5, functions.0, functions.1).unwrap();
    let sum = |values: &[f64], weights: &[f32]| -> f64 {
        let kept = values.iter().zip(weights).filter(|(value, _)| value.is_finite());
        kept.map(|(value, weight)| value * f64::from(*weight)).sum()
    };
    sum(&found.out, d_out) + sum(&found.lse, d_lse)
}

#[test]
fn the_reference_gives_the_slopes_of_its_forward() {
    let case = Case { dtype: DType::F32, heads: 2, kv_heads: 1, seq_q: 70, seq_kv: 75, d: 4, ..Case::SMALL };
    let mut random = Random(3);
    let qkv = case.qkv(&mut random);
    let map = [true, false, true, true, false, false, false, true];
    let mask =
        BlockMask::from_dense(&map, case.grid(), case.block_size(), SeqLens { q: 70, kv: 75 }).unwrap();
    let d_out = random.tensor(DType::F32, &[1, 2, 70, 4]);
    let d_lse = random.tensor(DType::F32, &[1, 2, 70]);
    let (out_weights, lse_weights) = (d_out.to_f32_vec().unwrap(), d_lse.to_f32_vec().unwrap());
    let (cap, near) = (softcap { cap: 1.5 }, window { width: 9 });
    // Functions compute in f32: their steps have to be larger, and so is what is left of the third derivative.
    for (functions, step, bound) in [
        ((None, None), 1.0f32 / 1024.0, 1e-5),
        ((None, Some(&near as &dyn MaskMod)), 1.0 / 1024.0, 1e-5),
        ((Some(&cap as &dyn ScoreMod), Some(&near as &dyn MaskMod)), 1.0 / 64.0, 1e-3),
    ] {
        let [q, k, v] = &qkv;
        let weights = (&d_out, Some(&d_lse));
        let exact = attention_backward_f64([q, k, v], weights, &mask, 0.5, functions.0, functions.1).unwrap();
        for (at, exact) in [exact.dq, exact.dk, exact.dv].iter().enumerate() {
            let (mut slopes, mut sampled) = (Vec::new(), Vec::new());
            for element in (0..exact.len()).step_by(7) {
                let moved = |by: f32| {
                    let mut data = qkv[at].to_f32_vec().unwrap();
                    data[element] += by;
                    let here = f64::from(data[element]);
                    let mut tensors = qkv.clone();
                    tensors[at] = tensor(DType::F32, &data, qkv[at].shape());
                    (here, loss(&tensors, (&out_weights, &lse_weights), &mask, functions))
                };
                let (low, high) = (moved(-step), moved(step));
                slopes.push(((high.1 - low.1) / (high.0 - low.0)) as f32);
                sampled.push(exact[element]);
            }
            let error = relative_error(&slopes, &sampled);
            println!("tensor {at}: {error:.1e} over {} elements", slopes.len());
            assert!(error <= bound, "tensor {at} is off by {error:e}, bound {bound:e}");
            assert!(sampled.iter().filter(|x| x.abs() > 1e-3).count() > sampled.len() / 3);
        }
    }
}
