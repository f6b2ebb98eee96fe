//! What sparse attention makes of one layer, its tokens in raster order and in cubes, without a tail and with each: how much is kept, how far the
//! result is off, how long it takes.

use super::data::Layer;
use crate::cli::error::CliError;
use serde::Serialize;
use std::time::{Duration, Instant};
use tilewright::reference::{attention_f64, relative_error};
use tilewright::{Attention, BlockMask, Device, Selection, SeqLens, Tensor, TokenGrid};

/// The most times a thing is timed, and for how long at most.
const RUNS: usize = 15;
const TIME: Duration = Duration::from_millis(400);
/// The most times a call with a tail is timed: there are two for each order.
const TAIL_RUNS: usize = 5;

#[derive(Serialize)]
pub struct LayerReport {
    pub layer: String,
    pub heads: String,
    pub tokens: usize,
    /// t, h, w.
    pub grid: [usize; 3],
    pub blocks: usize,
    /// Attention over all blocks, by the same kernels.
    pub dense_ms: f64,
    /// Tokens in raster order.
    pub raster: OrderReport,
    /// Tokens regrouped so that a block is a cube.
    pub cubes: OrderReport,
}

/// What sparse attention makes of a layer in one order of its tokens.
#[derive(Serialize)]
pub struct OrderReport {
    pub kept_blocks: usize,
    pub sparsity: f64,
    /// `‖sparse − dense‖₁ / ‖dense‖₁`, the mean over the heads: what dropping blocks costs.
    pub error_dense: f64,
    /// The same in the Frobenius norm, over all heads together.
    pub error_dense_frobenius: f64,
    /// Against f64 over the same blocks, in the Frobenius norm: what rounding costs.
    pub error_arithmetic: f64,
    pub mask_ms: f64,
    pub attention_ms: f64,
    /// What the same rule drops where it scores blocks by keys. Top-p may keep another number of these.
    pub sparsity_by_keys: f64,
    /// The same blocks, and a mean for each of the others, which the mean query of a block scores.
    pub block_tail: TailReport,
    /// The means scored by every query.
    pub row_tail: TailReport,
}

/// What a tail makes of the same blocks.
#[derive(Serialize)]
pub struct TailReport {
    /// As [`OrderReport::error_dense`].
    pub error_dense: f64,
    /// The same where the rule scores blocks by keys: see [`OrderReport::sparsity_by_keys`].
    pub error_dense_by_keys: f64,
    /// Mask, tail and attention.
    pub call_ms: f64,
}

/// The attentions that are measured, all of one rule on one device.
pub struct Attentions {
    pub no_tail: Attention,
    pub block_tail: Attention,
    pub row_tail: Attention,
    /// Their rule, over scores by keys.
    pub by_keys: Selection,
}

/// Measures these on a layer, in both orders; `dense` is attention over all blocks on the CPU, the exact result.
/// The masks are those of either order.
pub fn layer(
    layer: &Layer,
    attentions: &Attentions,
    dense: &Attention,
) -> Result<(LayerReport, [BlockMask; 2]), CliError> {
    let attention = &attentions.no_tail;
    let device = attention.device();
    let grid = TokenGrid::builder(layer.grid).blocks(attention.blocks()).build()?;
    let exact: Vec<f64> =
        dense.forward(&layer.q, &layer.k, &layer.v)?.out.to_f32_vec()?.into_iter().map(f64::from).collect();
    let in_raster = [layer.q.to(device)?, layer.k.to(device)?, layer.v.to(device)?];
    let [q, k, v] = &in_raster;
    let in_cubes = [grid.regroup(q)?, grid.regroup(k)?, grid.regroup(v)?];
    let (raster, raster_mask) = order(&in_raster, None, attentions, &exact)?;
    let (cubes, cubes_mask) = order(&in_cubes, Some(&grid), attentions, &exact)?;

    let [batch, heads, tokens, _] = <[usize; 4]>::try_from(q.shape()).unwrap_or_default();
    let blocks = attention.blocks();
    let full = BlockMask::full(batch, heads, blocks, SeqLens::same(tokens))?.to(device)?;
    let report = LayerReport {
        layer: layer.layer.clone(),
        heads: layer.heads.clone(),
        tokens,
        grid: layer.grid,
        blocks: raster_mask.shape().iter().product(),
        dense_ms: median_ms(device, || attention.attend_with(q, k, v, &full).map(drop))?,
        raster,
        cubes,
    };
    Ok((report, [raster_mask, cubes_mask]))
}

/// Measures one order of the tokens; `grid` is how they were regrouped, and `exact` is in raster order.
fn order(
    [q, k, v]: &[Tensor; 3],
    grid: Option<&TokenGrid>,
    attentions: &Attentions,
    exact: &[f64],
) -> Result<(OrderReport, BlockMask), CliError> {
    let attention = &attentions.no_tail;
    let device = attention.device();
    let mask = attention.mask(q, k)?;
    let (out, _) = attention.attend_with(q, k, v, &mask)?;
    let cpu = Device::cpu();
    let same_blocks =
        attention_f64(&q.to(&cpu)?, &k.to(&cpu)?, &v.to(&cpu)?, &mask, attention.scale(), None, None)?;
    let error_arithmetic = relative_error(&out.to_f32_vec()?, &same_blocks.out);
    let of_a_head = out.shape()[2..].iter().product::<usize>().max(1);
    let in_raster = |out: Tensor| match grid {
        Some(grid) => grid.restore(&out)?.to_f32_vec(),
        None => out.to_f32_vec(),
    };
    let error_dense = |found: &[f32]| {
        let heads = found.chunks(of_a_head).zip(exact.chunks(of_a_head));
        let count = heads.len() as f64;
        heads.map(|(found, exact)| relative_l1(found, exact)).sum::<f64>() / count
    };
    let by_keys =
        |attention: &Attention| attention.with_parameters(Some(attentions.by_keys), Some(attention.scale()));
    let with_tail = |attention: &Attention| -> Result<TailReport, CliError> {
        let error_of = |attention: &Attention| -> Result<f64, CliError> {
            Ok(error_dense(&in_raster(attention.forward(q, k, v)?.out)?))
        };
        Ok(TailReport {
            error_dense: error_of(attention)?,
            error_dense_by_keys: error_of(&by_keys(attention)?)?,
            call_ms: median_of(TAIL_RUNS, device, || attention.forward(q, k, v).map(drop))?,
        })
    };
    let found = in_raster(out)?;
    let report = OrderReport {
        kept_blocks: mask.kept_blocks()?,
        sparsity: mask.sparsity()?,
        error_dense: error_dense(&found),
        error_dense_frobenius: relative_error(&found, exact),
        error_arithmetic,
        mask_ms: median_ms(device, || attention.mask(q, k).map(drop))?,
        attention_ms: median_ms(device, || attention.attend_with(q, k, v, &mask).map(drop))?,
        sparsity_by_keys: by_keys(attention)?.mask(q, k)?.sparsity()?,
        block_tail: with_tail(&attentions.block_tail)?,
        row_tail: with_tail(&attentions.row_tail)?,
    };
    Ok((report, mask))
}

/// `‖found − exact‖₁ / ‖exact‖₁`; a NaN anywhere makes it NaN.
fn relative_l1(found: &[f32], exact: &[f64]) -> f64 {
    let difference: f64 =
        found.iter().zip(exact).map(|(&found, exact)| (f64::from(found) - exact).abs()).sum();
    difference / exact.iter().map(|exact| exact.abs()).sum::<f64>()
}

/// The median time of `work`, after one run that is not counted. A GPU is timed by its own clock.
fn median_ms(device: &Device, work: impl Fn() -> Result<(), tilewright::Error>) -> Result<f64, CliError> {
    median_of(RUNS, device, work)
}

/// The same of at most so many runs.
fn median_of(
    runs: usize,
    device: &Device,
    work: impl Fn() -> Result<(), tilewright::Error>,
) -> Result<f64, CliError> {
    work()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < runs && (times.len() < 3 || start.elapsed() < TIME) {
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
