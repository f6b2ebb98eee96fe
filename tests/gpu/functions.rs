//! A user's score and mask functions on the GPU, against the same Rust functions in the oracle.

use super::Test;
use super::support::Random;
use libtest_mimic::Failed;
use tilewright::reference::{attention_f64, largest_difference, relative_error};
use tilewright::{
    Attention, BlockSize, DType, Device, HeadDim, MaskMod, Output, ScoreMod, mask_mod, score_mod, top_k,
};

pub const TESTS: &[Test] = &[
    ("functions::softcap", |device| check(device, Some(softcap { cap: 5.0 }), None::<causal>)),
    ("functions::alibi", |device| check(device, Some(alibi { heads: 4 }), None::<causal>)),
    ("functions::causal", |device| check(device, None::<softcap>, Some(causal {}))),
    ("functions::sliding_window", |device| {
        check(device, None::<softcap>, Some(window { left: 200, right: 30 }))
    }),
    ("functions::documents", |device| {
        check(device, None::<softcap>, Some(same_document { ids: documents() }))
    }),
    ("functions::both", |device| check(device, Some(alibi { heads: 4 }), Some(causal {}))),
    ("functions::nothing_is_kept", |device| check(device, None::<softcap>, Some(nothing {}))),
];

#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

#[score_mod]
fn alibi(score: f32, b: i32, h: i32, q: i32, kv: i32, heads: i32) -> f32 {
    let slope = (-8.0 * (h + 1) as f32 / heads as f32).exp2();
    score - slope * (q - kv).abs() as f32
}

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

#[mask_mod]
fn window(b: i32, h: i32, q: i32, kv: i32, left: i32, right: i32) -> bool {
    q - kv <= left && kv - q <= right
}

#[mask_mod]
fn same_document(b: i32, h: i32, q: i32, kv: i32, ids: &[i32]) -> bool {
    ids[q as usize] == ids[kv as usize]
}

#[mask_mod]
fn nothing(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q < 0
}

const SEQ: usize = 777;

/// Five documents of uneven lengths.
fn documents() -> Vec<i32> {
    (0..SEQ as i32)
        .map(|token| [0, 100, 164, 500, 650].iter().filter(|&&start| token >= start).count() as i32)
        .collect()
}

fn check<S: ScoreMod + Clone, M: MaskMod + Clone>(
    device: &Device,
    score: Option<S>,
    mask: Option<M>,
) -> Result<(), Failed> {
    let mut random = Random(29);
    for blocks in BlockSize::ALL {
        for (dtype, d, select) in
            [(DType::Bf16, 128, false), (DType::F16, 64, true), (DType::Bf16, 256, false)]
        {
            let [q, k, v] = [(); 3].map(|()| random.tensor(dtype, &[2, 4, SEQ, d]));
            let mut builder = Attention::builder(HeadDim::new(d)?, dtype).blocks(blocks);
            if let Some(score) = &score {
                builder = builder.score_mod(score.clone());
            }
            if let Some(mask) = &mask {
                builder = builder.mask_mod(mask.clone());
            }
            if select {
                builder = builder.select(top_k(0.5));
            }
            let attention = builder.build(device)?;
            let Output { out, lse, mask: kept } =
                attention.forward(&q.to(device)?, &k.to(device)?, &v.to(device)?)?;
            let (score, mask) =
                (score.as_ref().map(|f| f as &dyn ScoreMod), mask.as_ref().map(|f| f as &dyn MaskMod));
            let expected = attention_f64(&q, &k, &v, &kept, attention.scale(), score, mask)?;
            let error = relative_error(&out.to_f32_vec()?, &expected.out);
            let lse_error = largest_difference(&lse.to_vec::<f32>()?, &expected.lse);
            println!("{blocks} {dtype} d {d}: out {error:.2e}, lse {lse_error:.2e}");
            let bound = if dtype == DType::F16 { 6e-4 } else { 4e-3 };
            if !(error <= bound && lse_error <= 1e-3) {
                return Err(format!("{blocks} {dtype} d {d}: out {error:.2e}, lse {lse_error:.2e}").into());
            }
        }
    }
    Ok(())
}
