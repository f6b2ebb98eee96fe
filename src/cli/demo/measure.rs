//! What sparse attention makes of one layer: how much is kept, how far the result is off, how long it takes.

use super::data::Layer;
use crate::cli::error::CliError;
use serde::Serialize;
use std::time::{Duration, Instant};
use tilewright::reference::{attention_f64, relative_error};
use tilewright::{Attention, BlockMask, Device};

/// The most times a thing is timed, and for how long at most.
const RUNS: usize = 15;
const TIME: Duration = Duration::from_millis(400);

#[derive(Serialize)]
pub struct LayerReport {
    pub layer: String,
    pub heads: String,
    pub tokens: usize,
    pub blocks: usize,
    pub kept_blocks: usize,
    pub sparsity: f64,
    /// `‖sparse − dense‖₁ / ‖dense‖₁`: what dropping blocks costs.
    pub error_dense: f64,
    /// The same in the Frobenius norm.
    pub error_dense_frobenius: f64,
    /// Against f64 over the same blocks, in the Frobenius norm: what rounding costs.
    pub error_arithmetic: f64,
    pub mask_ms: f64,
    pub attention_ms: f64,
    /// Attention over all blocks, by the same kernels.
    pub dense_ms: f64,
}

/// Measures `attention` on a layer; `dense` is attention over all blocks on the CPU, the exact result.
pub fn layer(
    layer: &Layer,
    attention: &Attention,
    dense: &Attention,
) -> Result<(LayerReport, BlockMask), CliError> {
    let device = attention.device();
    let (q, k, v) = (layer.q.to(device)?, layer.k.to(device)?, layer.v.to(device)?);
    let mask = attention.mask(&q, &k)?;
    let (out, _) = attention.attend_with(&q, &k, &v, &mask)?;
    let found = out.to_f32_vec()?;

    let exact: Vec<f64> =
        dense.forward(&layer.q, &layer.k, &layer.v)?.out.to_f32_vec()?.into_iter().map(f64::from).collect();
    let same_blocks = attention_f64(&layer.q, &layer.k, &layer.v, &mask, attention.scale(), None, None)?;

    let [_, _, tokens, _] = <[usize; 4]>::try_from(q.shape()).unwrap_or_default();
    let blocks = attention.blocks();
    let full = BlockMask::full(1, 1, (blocks.q(), blocks.kv()), (tokens, tokens))?;
    let full = on(device, &full, tokens)?;
    let report = LayerReport {
        layer: layer.layer.clone(),
        heads: layer.heads.clone(),
        tokens,
        blocks: mask.shape().iter().product(),
        kept_blocks: mask.kept_blocks()?,
        sparsity: mask.sparsity()?,
        error_dense: relative_l1(&found, &exact),
        error_dense_frobenius: relative_error(&found, &exact),
        error_arithmetic: relative_error(&found, &same_blocks.out),
        mask_ms: median_ms(device, || attention.mask(&q, &k).map(drop))?,
        attention_ms: median_ms(device, || attention.attend_with(&q, &k, &v, &mask).map(drop))?,
        dense_ms: median_ms(device, || attention.attend_with(&q, &k, &v, &full).map(drop))?,
    };
    Ok((report, mask))
}

/// The mask with its lists on `device`.
fn on(device: &Device, mask: &BlockMask, tokens: usize) -> Result<BlockMask, CliError> {
    let (counts, indices) = (mask.kv().counts.to(device)?, mask.kv().indices.to(device)?);
    let blocks = (mask.block_q(), mask.block_kv());
    Ok(BlockMask::from_kv_indices(counts, indices, None, blocks, (tokens, tokens))?)
}

/// `‖found − exact‖₁ / ‖exact‖₁`; a NaN anywhere makes it NaN.
fn relative_l1(found: &[f32], exact: &[f64]) -> f64 {
    let difference: f64 =
        found.iter().zip(exact).map(|(&found, exact)| (f64::from(found) - exact).abs()).sum();
    difference / exact.iter().map(|exact| exact.abs()).sum::<f64>()
}

/// The median time of `work`, after one run that is not counted. A GPU is timed by its own clock.
fn median_ms(device: &Device, work: impl Fn() -> Result<(), tilewright::Error>) -> Result<f64, CliError> {
    work()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < RUNS && (times.len() < 3 || start.elapsed() < TIME) {
        times.push(time_ms(device, &work)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn time_ms(device: &Device, work: impl Fn() -> Result<(), tilewright::Error>) -> Result<f64, CliError> {
    let Some(gpu) = device.as_cuda() else {
        let start = Instant::now();
        work()?;
        return Ok(start.elapsed().as_secs_f64() * 1e3);
    };
    let mut result = Ok(());
    let ms = gpu.time_ms(|_| {
        result = work();
        Ok(())
    })?;
    result?;
    Ok(f64::from(ms))
}
