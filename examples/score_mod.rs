//! Functions of one's own, on scores and on who sees whom, with no change in the library: each runs on the best device,
//! GPU or CPU, and is compared with exact attention in f64. `cargo run --release --example score_mod`

use half::bf16;
use tilewright::reference::{attention_f64, relative_error};
use tilewright::{
    Attention, AttentionBuilder, DType, Device, Error, HeadDim, MaskMod, Output, ScoreMod, Tensor, mask_mod,
    score_mod, top_k,
};

/// Keeps scores within ±`cap`, as Gemma 2 does.
#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

/// Distant keys count less; each head has a slope of its own.
#[score_mod]
fn alibi(score: f32, b: i32, h: i32, q: i32, kv: i32, heads: i32) -> f32 {
    let slope = (-8.0 * (h + 1) as f32 / heads as f32).exp2();
    score - slope * (q - kv).abs() as f32
}

/// Nobody sees the future.
#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

/// Everybody sees the neighbours.
#[mask_mod]
fn sliding_window(b: i32, h: i32, q: i32, kv: i32, window: i32) -> bool {
    (q - kv).abs() <= window
}

/// Several documents in one sequence; `doc` has the document of every token.
#[mask_mod]
fn document(b: i32, h: i32, q: i32, kv: i32, doc: &[i32]) -> bool {
    doc[q as usize] == doc[kv as usize]
}

const HEADS: usize = 4;
const TOKENS: usize = 500;

fn main() -> Result<(), Error> {
    let device = Device::best();
    println!("on {device}, {HEADS} heads, {TOKENS} tokens, head dimension 64\n");
    println!("{:<24} {:>14} {:>16}", "function", "blocks dropped", "relative error");
    let tensors = [noise(1)?, noise(2)?, noise(3)?];
    let run = |name, builder: AttentionBuilder, score: Option<&dyn ScoreMod>, mask: Option<&dyn MaskMod>| {
        let attention = builder.build(&device)?;
        compare(name, &attention, &tensors, score, mask)
    };
    let new = || Attention::builder(HeadDim::D64, DType::Bf16);

    let cap = || softcap { cap: 5.0 };
    run("soft-cap", new().score_mod(cap()), Some(&cap()), None)?;

    let bias = || alibi { heads: HEADS as i32 };
    run("ALiBi", new().score_mod(bias()), Some(&bias()), None)?;

    run("causal", new().mask_mod(causal {}), None, Some(&causal {}))?;

    let window = || sliding_window { window: 100 };
    run("sliding window", new().mask_mod(window()), None, Some(&window()))?;

    // Three documents: of 128, 256 and 116 tokens.
    let documents = || document {
        doc: (0..TOKENS).map(|token| i32::from(token >= 128) + i32::from(token >= 384)).collect(),
    };
    run("documents", new().mask_mod(documents()), None, Some(&documents()))?;

    // Both kinds together, and only the best half of the blocks that the mask leaves.
    let builder = new().score_mod(cap()).mask_mod(causal {}).select(top_k(0.5));
    run("all of these, top half", builder, Some(&cap()), Some(&causal {}))
}

fn compare(
    name: &str,
    attention: &Attention,
    tensors: &[Tensor; 3],
    score: Option<&dyn ScoreMod>,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<(), Error> {
    let [q, k, v] = tensors;
    let device = attention.device();
    let Output { out, mask, .. } = attention.forward(&q.to(device)?, &k.to(device)?, &v.to(device)?)?;
    let exact = attention_f64(q, k, v, &mask, attention.scale(), score, mask_mod)?;
    let error = relative_error(&out.to_f32_vec()?, &exact.out);
    println!("{name:<24} {:>12.1} % {error:>16.1e}", 100.0 * mask.sparsity()?);
    assert!(error <= 4e-3, "more than the rounding of bf16");
    Ok(())
}

/// A tensor of noise. (On waves the values cancel out over a row, and what is left is the rounding of the weights.)
fn noise(seed: u32) -> Result<Tensor, Error> {
    let values: Vec<bf16> = (0..HEADS * TOKENS * 64)
        .map(|i| {
            let mut bits = (i as u32 ^ seed.rotate_left(16)).wrapping_mul(0x9E37_79B1);
            bits = (bits ^ (bits >> 15)).wrapping_mul(0x85EB_CA77);
            bf16::from_f32((bits >> 8) as f32 / (1 << 22) as f32 - 2.0)
        })
        .collect();
    Tensor::from_slice(&values, &[1, HEADS, TOKENS, 64])
}
