//! The kernels that rank key blocks: means, scores, and the choice among them.

use super::parts::{Call, Parts, parts_of};
use crate::attention::Rule;
use crate::codegen::lower::DeviceFunction;
use crate::device::CudaDevice;
use crate::kernels::{pool, rank, score, score_keys, score_partial};
use crate::launch::{FunctionArgs, Lazy, Request, Tuned};
use crate::select::FINE;
use crate::{Error, Tensor};
use std::sync::Arc;

/// Block means and what is made of them.
#[derive(Clone)]
pub(super) struct Ranking {
    by_means: Scorer,
    by_keys: Scorer,
    /// From means to lists in one launch, by the most key blocks of a row that it takes.
    rank: Vec<(usize, Lazy)>,
}

/// What scores blocks in one of the ways that [`Scores`](crate::Scores) says.
#[derive(Clone)]
struct Scorer {
    /// Means of blocks, and by keys those of a few keys each too.
    pool: Lazy,
    /// Scores to memory: by means for rows that `rank` does not take.
    score: Lazy,
    /// For the blocks that a mask function keeps in part. Absent without one.
    partial: Option<Lazy>,
}

impl Scorer {
    fn on(&self, cuda: &CudaDevice) -> Self {
        Scorer {
            pool: self.pool.on(cuda),
            score: self.score.on(cuda),
            partial: self.partial.as_ref().map(|kernel| kernel.on(cuda)),
        }
    }
}

const _: () = assert!(score_keys::FINE as usize == FINE);

impl Ranking {
    pub(super) fn new(
        rule: &Rule,
        mask_mod: Option<&Arc<DeviceFunction>>,
        lazy: &dyn Fn(Request) -> Lazy,
    ) -> Self {
        let tile = rule.head_dim.tile() as i64;
        let rank = |capacity: i64| {
            let request = Request::new(&rank::SOURCE).value("D", tile);
            (capacity as usize, lazy(request.value("CAPACITY", capacity)))
        };
        let capacities = rank::SPECS.iter().filter(|spec| spec.d == tile).map(|spec| spec.capacity);
        let (block_q, block_kv) = (rule.blocks.q() as i64, rule.blocks.kv() as i64);
        let of_tokens = |source| {
            let request = Request::new(source).value("T", rule.dtype).value("D", tile);
            request.value("BLOCK_Q", block_q).value("BLOCK_KV", block_kv)
        };
        // The keys of a run that has a mean of its own, 0 where there are none.
        let scorer = |fine: i64, score| {
            let of_tokens = |source| of_tokens(source).value("FINE", fine);
            let partial = |function| of_tokens(&score_partial::SOURCE).function("mask_mod", Some(function));
            Scorer {
                pool: lazy(of_tokens(&pool::SOURCE)),
                score: lazy(score),
                partial: mask_mod.map(|function| lazy(partial(function))),
            }
        };
        Ranking {
            by_means: scorer(0, Request::new(&score::SOURCE)),
            by_keys: scorer(FINE as i64, of_tokens(&score_keys::SOURCE)),
            rank: capacities.map(rank).collect(),
        }
    }

    fn scorer(&self, by_keys: bool) -> &Scorer {
        if by_keys { &self.by_keys } else { &self.by_means }
    }

    /// Scores to memory.
    pub(super) fn score_kernel(&self, by_keys: bool) -> &Lazy {
        &self.scorer(by_keys).score
    }

    /// What tensors want and block means do not.
    pub(super) fn of_tensors(&self, by_keys: bool) -> impl Iterator<Item = &Lazy> {
        let Scorer { pool, partial, .. } = self.scorer(by_keys);
        [pool].into_iter().chain(partial)
    }

    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        let rank = self.rank.iter().map(|(capacity, kernel)| (*capacity, kernel.on(cuda)));
        Ranking { by_means: self.by_means.on(cuda), by_keys: self.by_keys.on(cuda), rank: rank.collect() }
    }

    /// `rank` for rows of `kv_blocks`, where they fit.
    pub(super) fn rank(&self, kv_blocks: usize) -> Option<&Lazy> {
        let fitting = self.rank.iter().filter(|(capacity, _)| kv_blocks <= *capacity);
        fitting.min_by_key(|(capacity, _)| *capacity).map(|(_, kernel)| kernel)
    }

    /// The means of the blocks of q and k, those of a few keys each where they are wanted, and zeros for `rank` to count from.
    pub(super) fn pool(
        &self,
        call: &Call<'_>,
        [q, k]: [&Tensor; 2],
        [q_mean, k_mean]: &mut [Tensor; 2],
        (finished, k_fine): (Option<&mut Tensor>, Option<&mut Tensor>),
    ) -> Result<(), Error> {
        let kernel = &self.scorer(k_fine.is_some()).pool;
        let args = pool::Args { q, k, q_mean, k_mean, finished, k_fine };
        // SAFETY: it asks for nothing that the checks do not see; all work is on one stream.
        unsafe { kernel.get()?.launch_in(call.bucket(), &args, None) }
    }

    /// The scores of means, to memory, or of those of a few keys each.
    pub(super) fn score(
        &self,
        call: &Call<'_>,
        ([q_mean, k_mean], k_fine): ([&Tensor; 2], Option<&Tensor>),
        logits: &mut Tensor,
    ) -> Result<(), Error> {
        if let Some(k_fine) = k_fine {
            let args = score_keys::Args { q_mean, k_fine, logits, scale: call.rule.scale };
            // SAFETY: as below.
            return unsafe { self.by_keys.score.get()?.launch_in(call.bucket(), &args, None) };
        }
        let args = score::Args { q_mean, k_mean, logits, scale: call.rule.scale };
        // SAFETY: it asks for nothing that the checks do not see; all work is on one stream.
        unsafe { self.by_means.score.get()?.launch_in(call.bucket(), &args, None) }
    }

    /// The scores of the blocks that the mask function keeps in part, to their places in `logits`.
    pub(super) fn score_partial(
        &self,
        call: &Call<'_>,
        partial: &Partial<'_>,
        [q_mean, k_mean]: [&Tensor; 2],
        logits: &mut Tensor,
    ) -> Result<(), Error> {
        let &Partial { k, classes, functions } = partial;
        let Some(kernel) = &self.scorer(call.rule.by_keys()).partial else { return Ok(()) };
        let (seq_q, scale) = (call.sizes.seq_q as i32, call.rule.scale);
        let args = score_partial::Args { q_mean, k, k_mean, classes, logits, seq_q, scale };
        // SAFETY: classes, means and logits are of this call's blocks, and the functions' captures are those of its rule.
        unsafe { kernel.get()?.launch_in(call.bucket(), &args, Some(functions)) }
    }
}

/// What the scores of partial blocks are made of beside means.
#[derive(Clone, Copy)]
pub(super) struct Partial<'a> {
    pub(super) k: &'a Tensor,
    pub(super) classes: &'a Tensor,
    /// The captures of the mask function.
    pub(super) functions: &'a FunctionArgs,
}

/// From means to lists.
pub(super) fn rank_blocks(
    kernel: &Tuned,
    call: &Call<'_>,
    [q_mean, k_mean]: [&Tensor; 2],
    partial_logits: Option<&Tensor>,
    parts: &mut Parts<'_>,
) -> Result<(), Error> {
    let (top_k, top_p) = call.rule.thresholds();
    let Parts { classes, keep, full_keep, order, lists } = &mut *parts;
    let (row_order, finished) =
        order.as_mut().map(|(order, finished)| (&mut **order, &mut **finished)).unzip();
    let (full_kv_counts, full_kv_indices) = parts_of(&mut lists.full_kv);
    let args = rank::Args {
        q_mean,
        k_mean,
        classes: *classes,
        partial_logits,
        kv_counts: &mut lists.kv.counts,
        kv_indices: &mut lists.kv.indices,
        full_kv_counts,
        full_kv_indices,
        keep,
        full_keep: full_keep.as_mut(),
        row_order,
        finished,
        scale: call.rule.scale,
        top_k,
        top_p,
    };
    // SAFETY: `finished` was set to 0 before, and every launch leaves it there; all work is on one stream.
    unsafe { kernel.launch_in(call.bucket(), &args, None) }
}
