//! More heads, or batches, than a grid has blocks along y or z: what the CPU computes, in every kernel of the chain.

use super::Test;
use super::support::{Random, blocks};
use libtest_mimic::Failed;
use tilewright::reference::relative_error;
use tilewright::{
    Attention, AttentionBuilder, BlockMask, DType, Device, Error, Gradients, HeadDim, Output, SeqLens,
    TokenGrid, mask_mod, score_mod, top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("folded::heads", heads),
    ("folded::batches", batches),
    ("folded::functions", functions),
    ("folded::lists_of_the_callers", callers_lists),
    ("folded::batches_and_heads_of_tokens_moved", moved),
];

/// More than 65,535.
const MANY: usize = 70_000;

/// What two sums in another order, and P rounded to the dtype, may differ by.
const BOUND: f64 = 1e-2;

#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
    20.0 * (score / 20.0).tanh() + (h % 3) as f32 * 0.1 + (b % 5) as f32 * 0.1
}

#[mask_mod]
fn window(b: i32, h: i32, q: i32, kv: i32) -> bool {
    (q - kv).abs() < 50 + h % 7 + b % 7
}

fn heads(device: &Device) -> Result<(), Failed> {
    compare(device, [1, MANY, 140, 8], &|builder| builder)
}

fn batches(device: &Device) -> Result<(), Failed> {
    compare(device, [MANY, 1, 140, 8], &|builder| builder)
}

/// Functions are told the head and the batch. In f16 at this head dimension those with a score function run on the body for every GPU.
fn functions(device: &Device) -> Result<(), Failed> {
    for (batch, heads) in [(1, MANY), (MANY, 1)] {
        compare(device, [batch, heads, 70, 8], &|builder| builder.mask_mod(window {}))?;
        compare(device, [batch, heads, 8, 104], &|builder| builder.score_mod(softcap {}))?;
    }
    Ok(())
}

/// The forward, its mask and the backward.
fn compare(
    device: &Device,
    shape: [usize; 4],
    with: &dyn Fn(AttentionBuilder) -> AttentionBuilder,
) -> Result<(), Failed> {
    let mut random = Random(43);
    let inputs = [(); 4].map(|()| random.tensor(DType::F16, &shape));
    let run = |device: &Device| -> Result<(Output, Gradients), Error> {
        let builder = Attention::builder(HeadDim::new(shape[3])?, DType::F16).select(top_k(0.4) | top_p(0.5));
        let attention = with(builder).build(device)?;
        let to = |i: usize| inputs[i].to(device);
        let (q, k, v, d_out) = (to(0)?, to(1)?, to(2)?, to(3)?);
        let output = attention.forward(&q, &k, &v)?;
        let gradients = attention.backward(&q, &k, &v, &output, &d_out, None)?;
        Ok((output, gradients))
    };
    let ((found, gradients), (expected, expected_gradients)) = (run(device)?, run(&Device::cpu())?);
    let (map, expected_map) = (found.mask.to_dense()?, expected.mask.to_dense()?);
    let blocks = map.classes.len() / (shape[0] * shape[1]);
    let (of_heads, expected_of_heads) = (map.classes.chunks(blocks), expected_map.classes.chunks(blocks));
    let apart: Vec<bool> = of_heads.zip(expected_of_heads).map(|(a, b)| a != b).collect();
    // Where a row's mass lands on p within rounding.
    let number = apart.iter().filter(|apart| **apart).count();
    if number * 100 > apart.len() {
        return Err(format!("{shape:?}: blocks of {number} of {} heads differ", apart.len()).into());
    }
    if number > 0 {
        println!("{shape:?}: blocks of {number} of {} heads differ at the threshold", apart.len());
    }
    all_close(shape, [&found, &expected], [&gradients, &expected_gradients], &apart)
}

/// But for heads that are known to be apart.
fn all_close(
    shape: [usize; 4],
    [found, expected]: [&Output; 2],
    [gradients, expected_gradients]: [&Gradients; 2],
    apart: &[bool],
) -> Result<(), Failed> {
    for (what, found, expected) in [
        ("out", &found.out, &expected.out),
        ("lse", &found.lse, &expected.lse),
        ("dq", &gradients.dq, &expected_gradients.dq),
        ("dk", &gradients.dk, &expected_gradients.dk),
        ("dv", &gradients.dv, &expected_gradients.dv),
    ] {
        let expected: Vec<f64> = expected.to_f32_vec()?.into_iter().map(f64::from).collect();
        let (found, elements) = (found.to_f32_vec()?, expected.len() / apart.len());
        // Head by head: of so many a single one in another's place is nothing.
        let heads = found.chunks(elements).zip(expected.chunks(elements)).zip(apart).enumerate();
        for (head, ((found, expected), _)) in heads.filter(|(_, (_, apart))| !**apart) {
            let error = relative_error(found, expected);
            // Written so that a NaN fails.
            let close = error <= 3.0 * BOUND;
            if !close {
                return Err(format!("{shape:?}: {what} is off by {error:.1e} in head {head}").into());
            }
        }
    }
    Ok(())
}

/// Lists with no order of rows and no transpose: both are made on the way.
fn callers_lists(device: &Device) -> Result<(), Failed> {
    let mut random = Random(47);
    for (batch, heads) in [(1, MANY), (MANY, 1)] {
        let shape = [batch, heads, 140, 8];
        let inputs = [(); 4].map(|()| random.tensor(DType::Bf16, &shape));
        let map: Vec<bool> = (0..batch * heads * 2 * 3).map(|_| random.chance(0.6)).collect();
        let mask = BlockMask::from_dense(&map, [batch, heads, 2, 3], blocks(128, 64), SeqLens::same(140))?;
        let run = |device: &Device| -> Result<(Output, Gradients), Error> {
            let attention = Attention::builder(HeadDim::new(8)?, DType::Bf16).build(device)?;
            let to = |i: usize| inputs[i].to(device);
            let (q, k, v, d_out) = (to(0)?, to(1)?, to(2)?, to(3)?);
            let mask = mask.to(device)?;
            let (out, lse) = attention.attend_with(&q, &k, &v, &mask)?;
            let output = Output { out, lse, mask };
            let gradients = attention.backward(&q, &k, &v, &output, &d_out, None)?;
            Ok((output, gradients))
        };
        let ((found, gradients), (expected, expected_gradients)) = (run(device)?, run(&Device::cpu())?);
        all_close(shape, [&found, &expected], [&gradients, &expected_gradients], &vec![false; MANY])?;
    }
    Ok(())
}

fn moved(device: &Device) -> Result<(), Failed> {
    let (grid, mut random) = (TokenGrid::new([2, 3, 5])?, Random(53));
    for shape in [[MANY, 1, 30, 3], [1, MANY, 30, 8], [2, MANY, 30, 2]] {
        let x = random.tensor(DType::Bf16, &shape);
        let on_gpu = grid.regroup(&x.to(device)?)?;
        if on_gpu.to_f32_vec()? != grid.regroup(&x)?.to_f32_vec()? {
            return Err(format!("{shape:?}: other rows than on the CPU").into());
        }
        if grid.restore(&on_gpu)?.to_f32_vec()? != x.to_f32_vec()? {
            return Err(format!("{shape:?}: they do not come back").into());
        }
    }
    Ok(())
}
