//! From q and k to lists of key blocks: pool → rank, or score → select for long rows; classify before, transpose after.

use super::{SUMS, tuning};
use crate::attention::memory::Memory;
use crate::attention::{MaskLists, Rule, Sizes, oracle};
use crate::device::CudaDevice;
use crate::kernels::{classify, pool, rank, score, select, transpose};
use crate::launch::{FunctionArgs, Outputs, Request, Tolerance, Tuned};
use crate::tune::Bucket;
use crate::{BlockIndex, DType, Error, Tensor};
use std::sync::Arc;

/// The kernels that select blocks.
#[derive(Clone)]
pub(super) struct Selector {
    device: crate::Device,
    /// Absent when nothing is ranked.
    ranking: Option<Ranking>,
    /// Absent without a mask function.
    pub(super) classify: Option<(Tuned, Arc<FunctionArgs>)>,
    select: Tuned,
    transpose: Tuned,
}

/// Block means and what is made of them.
#[derive(Clone)]
struct Ranking {
    pool: Tuned,
    /// By the most key blocks of a row that it takes, ascending.
    rank: Vec<(usize, Tuned)>,
    /// For rows longer than that.
    score: Tuned,
}

/// The key blocks of a row that `rank` is built for.
const CAPACITIES: [usize; 4] = [384, 640, 1280, 3328];

/// Rows whose number differs between two schedules: where a row's mass lands on p within rounding, the order of
/// summation decides.
const AT_THE_EDGE: Tolerance = Tolerance::Mostly(0.01);

/// What the kernels of the selection work in.
pub(in crate::attention) struct Scratch {
    /// Of q and of k.
    means: Option<[Tensor; 2]>,
    /// Absent where `rank` keeps them to itself.
    logits: Option<Tensor>,
    classes: Option<Tensor>,
    /// A bit a block: kept in the main list.
    keep: Tensor,
    /// Kept in the list of full blocks.
    full_keep: Option<Tensor>,
    /// The query blocks of each head by falling length, and what `rank` counts its thread blocks in for it. Absent where
    /// `rank` is.
    order: Option<[Tensor; 2]>,
}

impl Scratch {
    /// `[batch, heads, q_blocks]` i32: the query blocks of each head, those with the most key blocks first, once the blocks
    /// are selected.
    pub(in crate::attention) fn row_order(&self) -> Option<&Tensor> {
        self.order.as_ref().map(|[row_order, _]| row_order)
    }
}

/// What is ranked.
#[derive(Clone, Copy)]
pub(in crate::attention) enum Ranked<'a> {
    /// The blocks of q and k.
    Tensors(&'a Tensor, &'a Tensor),
    /// Block means that the caller has made.
    Means(&'a Tensor, &'a Tensor),
}

impl Selector {
    pub(super) fn new(
        cuda: &CudaDevice,
        rule: &Rule,
        classify: Option<(Tuned, Arc<FunctionArgs>)>,
        tuned: &dyn Fn(Request) -> Result<Tuned, Error>,
    ) -> Result<Self, Error> {
        let (block_q, block_kv) = (rule.blocks.q() as i64, rule.blocks.kv() as i64);
        let tile = rule.head_dim.tile() as i64;
        let ranking = match rule.selection {
            Some(_) => {
                let pool = Request::new(&pool::SOURCE).value("T", rule.dtype).value("D", tile);
                let rank = |capacity: usize| {
                    let request = Request::new(&rank::SOURCE).value("D", tile);
                    Ok((capacity, tuned(request.value("CAPACITY", capacity as i64))?))
                };
                Some(Ranking {
                    pool: tuned(pool.value("BLOCK_Q", block_q).value("BLOCK_KV", block_kv))?,
                    rank: CAPACITIES.into_iter().map(rank).collect::<Result<_, Error>>()?,
                    score: tuned(Request::new(&score::SOURCE))?,
                })
            }
            None => None,
        };
        Ok(Selector {
            device: crate::Device::Cuda(cuda.clone()),
            ranking,
            classify,
            select: tuned(Request::new(&select::SOURCE))?,
            transpose: tuned(Request::new(&transpose::SOURCE))?,
        })
    }

    /// The stages in the order they run.
    pub(super) fn stages(&self) -> impl Iterator<Item = &Tuned> {
        let ranking = self.ranking.iter();
        let pool = ranking.clone().map(|ranking| &ranking.pool);
        let rank = ranking.clone().flat_map(|ranking| ranking.rank.iter().map(|(_, rank)| rank));
        let score = ranking.map(|ranking| &ranking.score);
        let classify = self.classify.iter().map(|(kernel, _)| kernel);
        pool.chain(classify).chain(rank).chain(score).chain([&self.select, &self.transpose])
    }

    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        let on = |kernel: &Tuned| kernel.on(cuda);
        Selector {
            device: crate::Device::Cuda(cuda.clone()),
            ranking: self.ranking.as_ref().map(|ranking| Ranking {
                pool: on(&ranking.pool),
                rank: ranking.rank.iter().map(|(capacity, rank)| (*capacity, on(rank))).collect(),
                score: on(&ranking.score),
            }),
            classify: self.classify.as_ref().map(|(kernel, functions)| (on(kernel), functions.clone())),
            select: on(&self.select),
            transpose: on(&self.transpose),
        }
    }

    /// `rank` for rows of `kv_blocks`, where there is one.
    fn rank(&self, kv_blocks: usize) -> Option<&Tuned> {
        let ranking = self.ranking.as_ref()?;
        ranking.rank.iter().find(|(capacity, _)| kv_blocks <= *capacity).map(|(_, rank)| rank)
    }

    /// Whether the kernel that picks the blocks is chosen. The index by key block does not count.
    pub(super) fn knows(&self, sizes: &Sizes, bucket: Bucket) -> bool {
        self.rank(sizes.kv_blocks).unwrap_or(&self.select).knows(bucket)
    }

    /// Room for what the selection works in. Means that the caller has made need none.
    pub(super) fn scratch(
        &self,
        sizes: &Sizes,
        means: bool,
        memory: &mut Memory<'_>,
    ) -> Result<Scratch, Error> {
        let &Sizes { batch, heads, kv_heads, q_blocks, kv_blocks, head_dim, .. } = sizes;
        let map = [batch, heads, q_blocks, kv_blocks];
        let words = [batch, heads, q_blocks, kv_blocks.div_ceil(32)];
        let mut optional =
            |wanted: bool, dtype, shape: &[usize]| wanted.then(|| memory.tensor(dtype, shape)).transpose();
        let means = means && self.ranking.is_some();
        let means_of_q = optional(means, DType::F32, &[batch, heads, q_blocks, head_dim])?;
        let means_of_k = optional(means, DType::F32, &[batch, kv_heads, kv_blocks, head_dim])?;
        let ranks = self.rank(kv_blocks).is_some();
        let row_order = optional(ranks, DType::I32, &[batch, heads, q_blocks])?;
        let finished = optional(ranks, DType::I32, &[batch, heads])?;
        Ok(Scratch {
            order: row_order.zip(finished).map(|(order, finished)| [order, finished]),
            means: means_of_q.zip(means_of_k).map(|(q, k)| [q, k]),
            logits: optional(!ranks, DType::F32, &map)?,
            classes: optional(self.classify.is_some(), DType::U8, &map)?,
            full_keep: optional(self.classify.is_some(), DType::I32, &words)?,
            keep: memory.tensor(DType::I32, &words)?,
        })
    }

    /// Fills `lists`. Launches only, once the kernels are chosen: nothing is allocated and nothing waits.
    pub(super) fn run(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        ranked: Ranked<'_>,
        scratch: &mut Scratch,
        lists: &mut MaskLists,
    ) -> Result<(), Error> {
        let bucket = sizes.bucket(rule, None);
        let Scratch { means, logits, classes, keep, full_keep, order } = scratch;
        let finished = order.as_mut().map(|[_, finished]| finished);
        if let (Some(ranking), Ranked::Tensors(q, k), Some(means)) = (&self.ranking, ranked, &mut *means) {
            self.pool(rule, sizes, &ranking.pool, [q, k], means, finished)?;
        } else if let (Some(finished), Some(cuda)) = (finished, self.device.as_cuda()) {
            finished.fill_words(cuda, 0)?;
        }
        if let (Some((kernel, functions)), Some(classes)) = (&self.classify, &mut *classes) {
            let (seq_q, seq_kv) = (sizes.seq_q as i32, sizes.seq_kv as i32);
            let outputs = tuning(kernel, sizes, bucket, || {
                Outputs::new(vec![classes.clone()], Tolerance::Exact)
                    .with_oracle(|kernel| oracle::check_classify(rule, &self.device, functions, kernel))
            });
            kernel.run(bucket, outputs, &mut |kernel| {
                kernel.launch(&classify::Args { classes, seq_q, seq_kv }, Some(functions))
            })?;
        }
        let means = match (ranked, &*means) {
            (Ranked::Means(q, k), _) => Some([q, k]),
            (_, Some([q, k])) => Some([q, k]),
            (_, None) => None,
        };
        let mut parts = Parts { classes: classes.as_ref(), keep, full_keep, order, lists };
        match (self.rank(sizes.kv_blocks), means) {
            (Some(rank), Some(means)) => self.rank_blocks(rule, sizes, rank, means, &mut parts)?,
            (_, means) => {
                let Some(logits) = logits else { unreachable!("there is room for them where `rank` is not") };
                self.score_and_select(rule, sizes, means, logits, &mut parts)?;
            }
        }
        self.transpose(rule, sizes, &mut parts)
    }

    /// The means of the blocks of q and k.
    fn pool(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        kernel: &Tuned,
        [q, k]: [&Tensor; 2],
        [q_mean, k_mean]: &mut [Tensor; 2],
        mut finished: Option<&mut Tensor>,
    ) -> Result<(), Error> {
        let bucket = sizes.bucket(rule, None);
        let outputs = tuning(kernel, sizes, bucket, || {
            Outputs::new(vec![q_mean.clone(), k_mean.clone()], SUMS)
                .with_oracle(|kernel| oracle::check_pool(rule, &self.device, kernel))
        });
        kernel.run(bucket, outputs, &mut |kernel| {
            let finished = finished.as_deref_mut();
            kernel.launch(&pool::Args { q, k, q_mean, k_mean, finished }, None)
        })
    }

    /// Scores and selection in one.
    fn rank_blocks(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        kernel: &Tuned,
        [q_mean, k_mean]: [&Tensor; 2],
        parts: &mut Parts<'_>,
    ) -> Result<(), Error> {
        let (bucket, split) = (sizes.bucket(rule, None), self.classify.is_some());
        let outputs = tuning(kernel, sizes, bucket, || {
            parts.outputs().with_oracle(|kernel| oracle::check_rank(rule, &self.device, split, kernel))
        });
        let (top_k, top_p) = rule.thresholds();
        kernel.run(bucket, outputs, &mut |kernel| {
            let Parts { classes, keep, full_keep, order, lists } = &mut *parts;
            let (full_kv_counts, full_kv_indices) = parts_of(&mut lists.full_kv);
            let (row_order, finished) = match order {
                Some([row_order, finished]) => (Some(row_order), Some(finished)),
                None => (None, None),
            };
            let args = rank::Args {
                q_mean,
                k_mean,
                classes: *classes,
                kv_counts: &mut lists.kv.counts,
                kv_indices: &mut lists.kv.indices,
                full_kv_counts,
                full_kv_indices,
                keep,
                full_keep: full_keep.as_mut(),
                row_order,
                finished,
                scale: rule.scale,
                top_k,
                top_p,
            };
            kernel.launch(&args, None)
        })
    }

    /// Scores to memory, and the selection from there: for rows of any length, and where nothing is ranked.
    fn score_and_select(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        means: Option<[&Tensor; 2]>,
        logits: &mut Tensor,
        parts: &mut Parts<'_>,
    ) -> Result<(), Error> {
        let (bucket, split) = (sizes.bucket(rule, None), self.classify.is_some());
        match (&self.ranking, means) {
            (Some(Ranking { score, .. }), Some([q_mean, k_mean])) => {
                let outputs = tuning(score, sizes, bucket, || {
                    Outputs::new(vec![logits.clone()], SUMS)
                        .with_oracle(|kernel| oracle::check_score(rule, &self.device, kernel))
                });
                score.run(bucket, outputs, &mut |kernel| {
                    kernel.launch(&score::Args { q_mean, k_mean, logits, scale: rule.scale }, None)
                })?;
            }
            // All scores are alike. The kernel overwrites them, so that they are set anew.
            _ => self.device.as_cuda().map_or(Ok(()), |cuda| logits.fill_words(cuda, 0))?,
        }
        let outputs = tuning(&self.select, sizes, bucket, || {
            parts.outputs().with_oracle(|kernel| oracle::check_select(rule, &self.device, split, kernel))
        });
        // Rows are worked on in place: what one candidate leaves is no input for the next. (Where nothing is ranked, what it
        // leaves is alike again.)
        let again = match &self.ranking {
            Some(ranking) if outputs.is_some() => ranking.score.chosen(bucket),
            _ => None,
        };
        let (top_k, top_p) = rule.thresholds();
        self.select.run(bucket, outputs, &mut |kernel| {
            if let (Some(score), Some([q_mean, k_mean])) = (&again, means) {
                score.launch(&score::Args { q_mean, k_mean, logits, scale: rule.scale }, None)?;
            }
            let Parts { classes, keep, full_keep, lists, .. } = &mut *parts;
            let (full_kv_counts, full_kv_indices) = parts_of(&mut lists.full_kv);
            let args = select::Args {
                logits,
                classes: *classes,
                kv_counts: &mut lists.kv.counts,
                kv_indices: &mut lists.kv.indices,
                full_kv_counts,
                full_kv_indices,
                keep,
                full_keep: full_keep.as_mut(),
                top_k,
                top_p,
            };
            kernel.launch(&args, None)
        })
    }

    /// The lists by key block, where they are wanted.
    fn transpose(&self, rule: &Rule, sizes: &Sizes, parts: &mut Parts<'_>) -> Result<(), Error> {
        let (bucket, split) = (sizes.bucket(rule, None), self.classify.is_some());
        let Parts { keep, full_keep, lists, .. } = parts;
        let Some(by_kv) = &mut lists.q else { return Ok(()) };
        let full_by_kv = &mut lists.full_q;
        let outputs = tuning(&self.transpose, sizes, bucket, || {
            let full = full_by_kv.as_ref().map(|full| full.counts.clone());
            let tensors = [Some(by_kv.counts.clone()), Some(by_kv.indices.clone()), full];
            Outputs::new(tensors.into_iter().flatten().collect(), Tolerance::Exact)
                .with_oracle(|kernel| oracle::check_transpose(rule, &self.device, split, kernel))
        });
        self.transpose.run(bucket, outputs, &mut |kernel| {
            let (full_q_counts, full_q_indices) = parts_of(full_by_kv);
            let args = transpose::Args {
                keep,
                full_keep: full_keep.as_ref(),
                q_counts: &mut by_kv.counts,
                q_indices: &mut by_kv.indices,
                full_q_counts,
                full_q_indices,
            };
            kernel.launch(&args, None)
        })
    }
}

/// What the selecting kernels read beside the scores, and write.
struct Parts<'a> {
    classes: Option<&'a Tensor>,
    keep: &'a mut Tensor,
    full_keep: &'a mut Option<Tensor>,
    order: &'a mut Option<[Tensor; 2]>,
    lists: &'a mut MaskLists,
}

impl Parts<'_> {
    fn outputs<'a>(&self) -> Outputs<'a> {
        let MaskLists { kv, full_kv, .. } = &*self.lists;
        let full = full_kv.as_ref().map(|full| full.counts.clone());
        let tensors = [Some(kv.counts.clone()), Some(kv.indices.clone()), full];
        Outputs::new(tensors.into_iter().flatten().collect(), AT_THE_EDGE)
    }
}

fn parts_of(index: &mut Option<BlockIndex>) -> (Option<&mut Tensor>, Option<&mut Tensor>) {
    match index {
        Some(BlockIndex { counts, indices }) => (Some(counts), Some(indices)),
        None => (None, None),
    }
}
