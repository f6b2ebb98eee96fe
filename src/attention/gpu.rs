//! The chain of kernels on a GPU: pool → score → (classify) → select → transpose → forward. Nothing goes to the host.

use super::Rule;
use crate::codegen::lower::{DeviceFunction, FunctionKind};
use crate::device::{CudaDevice, Device};
use crate::kernels::{classify, forward, pool, score, select, transpose};
use crate::launch::{FunctionArgs, Kernel, Request, load};
use crate::{BlockIndex, BlockMask, DType, DeviceFn, Error, Tensor};
use std::sync::Arc;

/// Loaded kernels and the functions' captures.
pub(super) struct Pipeline {
    device: Device,
    /// Absent when nothing is selected.
    rank: Option<Rank>,
    /// Absent without a mask function.
    classify: Option<(Kernel, FunctionArgs)>,
    select: Kernel,
    transpose: Kernel,
    forward: Kernel,
    functions: FunctionArgs,
}

/// Block means and their products.
struct Rank {
    pool_q: Kernel,
    pool_kv: Kernel,
    score: Kernel,
}

impl Pipeline {
    /// Loads every kernel the rule needs, compiling in parallel.
    pub(super) fn new(cuda: &CudaDevice, rule: &Rule) -> Result<Self, Error> {
        let score_mod = parse(FunctionKind::ScoreMod, rule.score_mod.as_deref().map(|f| f as &dyn DeviceFn))?;
        let mask_mod = parse(FunctionKind::MaskMod, rule.mask_mod.as_deref().map(|f| f as &dyn DeviceFn))?;
        let (block_q, block_kv) = (rule.blocks.q() as i64, rule.blocks.kv() as i64);
        let tile = rule.head_dim.tile() as i64;
        let pool = |block: i64| {
            Request::new(&pool::SOURCE).value("T", rule.dtype).value("D", tile).value("BLOCK", block)
        };
        let mut requests = vec![
            Request::new(&forward::SOURCE)
                .value("T", rule.dtype)
                .value("D", tile)
                .value("BLOCK_Q", block_q)
                .value("BLOCK_KV", block_kv)
                .function("score_mod", score_mod.as_ref())
                .function("mask_mod", mask_mod.as_ref()),
            Request::new(&select::SOURCE),
            Request::new(&transpose::SOURCE),
        ];
        if mask_mod.is_some() {
            let request =
                Request::new(&classify::SOURCE).value("BLOCK_Q", block_q).value("BLOCK_KV", block_kv);
            requests.push(request.function("mask_mod", mask_mod.as_ref()));
        }
        if rule.selection.is_some() {
            requests.extend([pool(block_q), pool(block_kv), Request::new(&score::SOURCE)]);
        }
        let mut kernels = load(cuda, &requests)?.into_iter();
        let mut next = || kernels.next().expect("a kernel for every request");
        let (forward, select, transpose) = (next(), next(), next());
        let mask_fn = rule.mask_mod.as_deref().map(|f| f as &dyn DeviceFn);
        let score_fn = rule.score_mod.as_deref().map(|f| f as &dyn DeviceFn);
        let functions = FunctionArgs::new(cuda, &forward.variant().candidate.spec, &[score_fn, mask_fn])?;
        let classify = match mask_fn {
            Some(_) => {
                let kernel = next();
                let args = FunctionArgs::new(cuda, &kernel.variant().candidate.spec, &[mask_fn])?;
                Some((kernel, args))
            }
            None => None,
        };
        let rank = rule.selection.is_some().then(|| Rank { pool_q: next(), pool_kv: next(), score: next() });
        Ok(Pipeline {
            device: Device::Cuda(cuda.clone()),
            rank,
            classify,
            select,
            transpose,
            forward,
            functions,
        })
    }

    /// The kernels in the order they run.
    pub(super) fn kernels(&self) -> Vec<&Kernel> {
        let rank = self.rank.iter().flat_map(|rank| [&rank.pool_q, &rank.pool_kv, &rank.score]);
        let classify = self.classify.iter().map(|(kernel, _)| kernel);
        rank.chain(classify).chain([&self.select, &self.transpose, &self.forward]).collect()
    }

    fn uninit(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        Tensor::uninit(&self.device, dtype, shape)
    }

    /// The block mask of `q` and `k`.
    pub(super) fn mask(&self, rule: &Rule, q: &Tensor, k: &Tensor) -> Result<BlockMask, Error> {
        let &[batch, heads, seq_q, _] = q.shape() else { unreachable!("checked by the caller") };
        let seq_kv = k.shape()[2];
        let (q_blocks, kv_blocks) = (seq_q.div_ceil(rule.blocks.q()), seq_kv.div_ceil(rule.blocks.kv()));
        let map = [batch, heads, q_blocks, kv_blocks];

        let mut logits = self.logits(rule, q, k, &map)?;
        let classes = self.classes(&map, seq_q, seq_kv)?;
        let split = classes.is_some();
        let mut kv = self.index(&[batch, heads, q_blocks], kv_blocks)?;
        let mut full_kv = split.then(|| self.index(&[batch, heads, q_blocks], kv_blocks)).transpose()?;
        let mut keep = self.uninit(DType::U8, &map)?;
        let (full_kv_counts, full_kv_indices) = parts(&mut full_kv);
        self.select.launch(
            &select::Args {
                logits: &mut logits,
                classes: classes.as_ref(),
                kv_counts: &mut kv.counts,
                kv_indices: &mut kv.indices,
                full_kv_counts,
                full_kv_indices,
                keep: &mut keep,
                // Without a rule every admissible block is kept: a mass of 1 is all of them.
                top_k: rule.selection.map_or(0.0, |selection| selection.k_f32()),
                top_p: rule.selection.map_or(1.0, |selection| selection.p_f32()),
            },
            None,
        )?;

        let mut by_kv = self.index(&[batch, heads, kv_blocks], q_blocks)?;
        let mut full_by_kv = split.then(|| self.index(&[batch, heads, kv_blocks], q_blocks)).transpose()?;
        let (full_q_counts, full_q_indices) = parts(&mut full_by_kv);
        self.transpose.launch(
            &transpose::Args {
                keep: &keep,
                q_counts: &mut by_kv.counts,
                q_indices: &mut by_kv.indices,
                full_q_counts,
                full_q_indices,
            },
            None,
        )?;
        Ok(BlockMask::from_parts(rule.blocks, (seq_q, seq_kv), (kv, full_kv), (by_kv, full_by_kv)))
    }

    /// Scores of every pair of blocks; zeros when nothing is selected by score.
    fn logits(&self, rule: &Rule, q: &Tensor, k: &Tensor, map: &[usize; 4]) -> Result<Tensor, Error> {
        let Some(Rank { pool_q, pool_kv, score }) = &self.rank else {
            return Tensor::zeros_on(&self.device, DType::F32, map);
        };
        let &[batch, heads, q_blocks, kv_blocks] = map;
        let (kv_heads, head_dim) = (k.shape()[1], k.shape()[3]);
        let mut q_mean = self.uninit(DType::F32, &[batch, heads, q_blocks, head_dim])?;
        let mut k_mean = self.uninit(DType::F32, &[batch, kv_heads, kv_blocks, head_dim])?;
        let mut logits = self.uninit(DType::F32, map)?;
        pool_q.launch(&pool::Args { x: q, mean: &mut q_mean }, None)?;
        pool_kv.launch(&pool::Args { x: k, mean: &mut k_mean }, None)?;
        let args = score::Args { q_mean: &q_mean, k_mean: &k_mean, logits: &mut logits, scale: rule.scale };
        score.launch(&args, None)?;
        Ok(logits)
    }

    /// What the mask function makes of every block.
    fn classes(&self, map: &[usize; 4], seq_q: usize, seq_kv: usize) -> Result<Option<Tensor>, Error> {
        let Some((kernel, functions)) = &self.classify else { return Ok(None) };
        let mut classes = self.uninit(DType::U8, map)?;
        let args = classify::Args { classes: &mut classes, seq_q: seq_q as i32, seq_kv: seq_kv as i32 };
        kernel.launch(&args, Some(functions))?;
        Ok(Some(classes))
    }

    fn index(&self, rows: &[usize; 3], width: usize) -> Result<BlockIndex, Error> {
        let counts = self.uninit(DType::I32, rows)?;
        let indices = self.uninit(DType::I32, &[rows[0], rows[1], rows[2], width])?;
        Ok(BlockIndex { counts, indices })
    }

    /// Attention over the kept blocks.
    pub(super) fn attend(
        &self,
        rule: &Rule,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error> {
        let mut out = self.uninit(rule.dtype, q.shape())?;
        let mut lse = self.uninit(DType::F32, &q.shape()[..3])?;
        let args = forward::Args {
            q,
            k,
            v,
            kv_counts: &mask.kv().counts,
            kv_indices: &mask.kv().indices,
            full_kv_counts: mask.full_kv().map(|full| &full.counts),
            full_kv_indices: mask.full_kv().map(|full| &full.indices),
            out: &mut out,
            lse: &mut lse,
            scale: rule.scale,
        };
        self.forward.launch(&args, Some(&self.functions))?;
        Ok((out, lse))
    }
}

fn parse(kind: FunctionKind, function: Option<&dyn DeviceFn>) -> Result<Option<Arc<DeviceFunction>>, Error> {
    let Some(function) = function else { return Ok(None) };
    DeviceFunction::from_source(kind, function.source())
        .map(|parsed| Some(Arc::new(parsed)))
        .map_err(|error| Error::Function { name: function.name().to_owned(), message: error.to_string() })
}

fn parts(index: &mut Option<BlockIndex>) -> (Option<&mut Tensor>, Option<&mut Tensor>) {
    match index {
        Some(BlockIndex { counts, indices }) => (Some(counts), Some(indices)),
        None => (None, None),
    }
}
