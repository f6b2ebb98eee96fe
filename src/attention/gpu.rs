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
    classify: Option<(Kernel, Arc<FunctionArgs>)>,
    select: Kernel,
    transpose: Kernel,
    forward: Kernel,
    functions: Arc<FunctionArgs>,
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
        let functions =
            Arc::new(FunctionArgs::new(cuda, &forward.variant().candidate.spec, &[score_fn, mask_fn])?);
        let classify = match mask_fn {
            Some(_) => {
                let kernel = next();
                let args = FunctionArgs::new(cuda, &kernel.variant().candidate.spec, &[mask_fn])?;
                Some((kernel, Arc::new(args)))
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

    /// The same chain on another stream of the same GPU.
    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        let on = |kernel: &Kernel| kernel.on(cuda);
        Pipeline {
            device: Device::Cuda(cuda.clone()),
            rank: self.rank.as_ref().map(|rank| Rank {
                pool_q: on(&rank.pool_q),
                pool_kv: on(&rank.pool_kv),
                score: on(&rank.score),
            }),
            classify: self.classify.as_ref().map(|(kernel, functions)| (on(kernel), functions.clone())),
            select: on(&self.select),
            transpose: on(&self.transpose),
            forward: on(&self.forward),
            functions: self.functions.clone(),
        }
    }

    /// Room for everything between `q`, `k` and a block mask of these tensors' sizes.
    pub(super) fn buffers(&self, rule: &Rule, q: &Tensor, k: &Tensor) -> Result<MaskBuffers, Error> {
        let &[batch, heads, seq_q, head_dim] = q.shape() else { unreachable!("checked by the caller") };
        let (kv_heads, seq_kv) = (k.shape()[1], k.shape()[2]);
        let (q_blocks, kv_blocks) = (seq_q.div_ceil(rule.blocks.q()), seq_kv.div_ceil(rule.blocks.kv()));
        let map = [batch, heads, q_blocks, kv_blocks];
        let uninit = |dtype, shape: &[usize]| Tensor::uninit(&self.device, dtype, shape);
        let index = |rows, width| -> Result<BlockIndex, Error> {
            Ok(BlockIndex {
                counts: uninit(DType::I32, &[batch, heads, rows])?,
                indices: uninit(DType::I32, &[batch, heads, rows, width])?,
            })
        };
        let split = self.classify.is_some();
        Ok(MaskBuffers {
            means: match self.rank {
                Some(_) => Some((
                    uninit(DType::F32, &[batch, heads, q_blocks, head_dim])?,
                    uninit(DType::F32, &[batch, kv_heads, kv_blocks, head_dim])?,
                )),
                None => None,
            },
            // Where nothing is selected by score they stay zeros.
            logits: Tensor::zeros_on(&self.device, DType::F32, &map)?,
            classes: if split { Some(uninit(DType::U8, &map)?) } else { None },
            keep: uninit(DType::U8, &map)?,
            kv: index(q_blocks, kv_blocks)?,
            full_kv: if split { Some(index(q_blocks, kv_blocks)?) } else { None },
            by_kv: index(kv_blocks, q_blocks)?,
            full_by_kv: if split { Some(index(kv_blocks, q_blocks)?) } else { None },
        })
    }

    /// Fills the lists of `buffers` for `q` and `k`. Launches only: nothing is allocated and nothing waits.
    pub(super) fn select(
        &self,
        rule: &Rule,
        q: &Tensor,
        k: &Tensor,
        buffers: &mut MaskBuffers,
    ) -> Result<(), Error> {
        if let (Some(Rank { pool_q, pool_kv, score }), Some((q_mean, k_mean))) =
            (&self.rank, &mut buffers.means)
        {
            pool_q.launch(&pool::Args { x: q, mean: q_mean }, None)?;
            pool_kv.launch(&pool::Args { x: k, mean: k_mean }, None)?;
            let args = score::Args { q_mean, k_mean, logits: &mut buffers.logits, scale: rule.scale };
            score.launch(&args, None)?;
        }
        if let (Some((kernel, functions)), Some(classes)) = (&self.classify, &mut buffers.classes) {
            let args = classify::Args { classes, seq_q: q.shape()[2] as i32, seq_kv: k.shape()[2] as i32 };
            kernel.launch(&args, Some(functions))?;
        }
        let (full_kv_counts, full_kv_indices) = parts(&mut buffers.full_kv);
        self.select.launch(
            &select::Args {
                logits: &mut buffers.logits,
                classes: buffers.classes.as_ref(),
                kv_counts: &mut buffers.kv.counts,
                kv_indices: &mut buffers.kv.indices,
                full_kv_counts,
                full_kv_indices,
                keep: &mut buffers.keep,
                // Without a rule every admissible block is kept: a mass of 1 is all of them.
                top_k: rule.selection.map_or(0.0, |selection| selection.k_f32()),
                top_p: rule.selection.map_or(1.0, |selection| selection.p_f32()),
            },
            None,
        )?;
        let (full_q_counts, full_q_indices) = parts(&mut buffers.full_by_kv);
        self.transpose.launch(
            &transpose::Args {
                keep: &buffers.keep,
                q_counts: &mut buffers.by_kv.counts,
                q_indices: &mut buffers.by_kv.indices,
                full_q_counts,
                full_q_indices,
            },
            None,
        )
    }

    /// Attention over the kept blocks, into `out` and `lse`.
    pub(super) fn attend(
        &self,
        rule: &Rule,
        [q, k, v]: [&Tensor; 3],
        mask: &BlockMask,
        out: &mut Tensor,
        lse: &mut Tensor,
    ) -> Result<(), Error> {
        let args = forward::Args {
            q,
            k,
            v,
            kv_counts: &mask.kv().counts,
            kv_indices: &mask.kv().indices,
            full_kv_counts: mask.full_kv().map(|full| &full.counts),
            full_kv_indices: mask.full_kv().map(|full| &full.indices),
            out,
            lse,
            scale: rule.scale,
        };
        self.forward.launch(&args, Some(&self.functions))
    }
}

/// What the kernels of the selection write.
pub(super) struct MaskBuffers {
    means: Option<(Tensor, Tensor)>,
    logits: Tensor,
    classes: Option<Tensor>,
    keep: Tensor,
    kv: BlockIndex,
    full_kv: Option<BlockIndex>,
    by_kv: BlockIndex,
    full_by_kv: Option<BlockIndex>,
}

impl MaskBuffers {
    /// A mask that shares the lists: what the kernels write later, it shows.
    pub(super) fn mask(&self, rule: &Rule, seqs: (usize, usize)) -> BlockMask {
        let (kv, by_kv) =
            ((self.kv.clone(), self.full_kv.clone()), (self.by_kv.clone(), self.full_by_kv.clone()));
        BlockMask::from_parts(rule.blocks, seqs, kv, by_kv)
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
