//! More heads, or batches, than a grid has blocks along y or z: what the CPU computes, in every kernel of the chain.

use super::Test;
use super::support::Random;
use libtest_mimic::Failed;
use tilewright::reference::relative_error;
use tilewright::{
    Attention, AttentionBuilder, BlockMask, DType, Device, Error, Gradients, HeadDim, Output, Tensor,
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
    let apart = map.classes.iter().zip(&expected_map.classes).filter(|(a, b)| a != b).count();
    // Where a row's mass lands on p within rounding.
    if apart * 500 > map.classes.len() {
        return Err(format!("{shape:?}: {apart} of {} blocks differ", map.classes.len()).into());
    }
    if apart > 0 {
        println!("{shape:?}: {apart} of {} blocks differ at the threshold", map.classes.len());
    }
    close("out", shape, &found.out, &expected.out)?;
    close("lse", shape, &found.lse, &expected.lse)?;
    close("dq", shape, &gradients.dq, &expected_gradients.dq)?;
    close("dk", shape, &gradients.dk, &expected_gradients.dk)?;
    close("dv", shape, &gradients.dv, &expected_gradients.dv)
}

fn close(what: &str, shape: [usize; 4], found: &Tensor, expected: &Tensor) -> Result<(), Failed> {
    let expected: Vec<f64> = expected.to_f32_vec()?.into_iter().map(f64::from).collect();
    let error = relative_error(&found.to_f32_vec()?, &expected);
    // A block that one of them keeps moves a head in thousands.
    if error <= 3.0 * BOUND { Ok(()) } else { Err(format!("{shape:?}: {what} is off by {error:.1e}").into()) }
}

/// Lists with no order of rows and no transpose: both are made on the way.
fn callers_lists(device: &Device) -> Result<(), Failed> {
    let mut random = Random(47);
    for (batch, heads) in [(1, MANY), (MANY, 1)] {
        let shape = [batch, heads, 140, 8];
        let inputs = [(); 4].map(|()| random.tensor(DType::Bf16, &shape));
        let map: Vec<bool> = (0..batch * heads * 2 * 3).map(|_| random.chance(0.6)).collect();
        let mask = BlockMask::from_dense(&map, [batch, heads, 2, 3], (128, 64), (140, 140))?;
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
        close("out", shape, &found.out, &expected.out)?;
        close("lse", shape, &found.lse, &expected.lse)?;
        close("dq", shape, &gradients.dq, &expected_gradients.dq)?;
        close("dk", shape, &gradients.dk, &expected_gradients.dk)?;
        close("dv", shape, &gradients.dv, &expected_gradients.dv)?;
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
