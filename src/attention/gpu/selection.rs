//! From q and k to lists of key blocks: pool → rank, or for long rows pool → score → select; transpose after. With a mask function
//! classify before, and score_partial for the blocks that it keeps in part.

use super::parts::{Call, Parts, parts_of};
use super::ranking::{Partial, Ranking, rank_blocks};
use super::tail::Whole;
use crate::attention::memory::Memory;
use crate::attention::work::Ranked;
use crate::attention::{MaskLists, Rule, Sizes};
use crate::codegen::lower::DeviceFunction;
use crate::device::CudaDevice;
use crate::kernels::{classify, dropped, pool, score_partial, select, transpose};
use crate::launch::{FunctionArgs, Lazy, Request, TensorDecl, Tuned};
use crate::select::FINE;
use crate::tune::Bucket;
use crate::{BlockIndex, Device, Error, Tensor};
use std::sync::Arc;

/// The kernels that select blocks.
#[derive(Clone)]
pub(super) struct Selector {
    device: Device,
    /// Absent when nothing is ranked.
    ranking: Option<Ranking>,
    /// Absent without a mask function.
    pub(super) classify: Option<(Tuned, Arc<FunctionArgs>)>,
    /// For rows of logits in memory.
    select: Lazy,
    /// For a tail.
    dropped: Option<Lazy>,
    transpose: Lazy,
}

/// What the kernels of the selection work in.
pub(in crate::attention) struct Scratch {
    /// Of q and of k.
    means: Option<[Tensor; 2]>,
    /// Of a few keys each, where blocks are ranked by these.
    k_fine: Option<Tensor>,
    /// Absent where one kernel keeps them to itself.
    logits: Option<Tensor>,
    classes: Option<Tensor>,
    /// Of blocks that the mask function keeps in part, where one kernel keeps the rest to itself.
    partial_logits: Option<Tensor>,
    /// A bit a block: kept in the main list.
    keep: Tensor,
    /// Kept in the list of full blocks.
    full_keep: Option<Tensor>,
    /// The query blocks of each head by falling length. Absent where nothing is ranked.
    row_order: Option<Tensor>,
    /// In which a head's thread blocks count themselves. Absent where nothing is ranked.
    finished: Option<Tensor>,
}

impl Scratch {
    /// `[batch, heads, q_blocks]` i32: the query blocks of each head, those with the most key blocks first, once the blocks
    /// are selected.
    pub(in crate::attention) fn row_order(&self) -> Option<&Tensor> {
        self.row_order.as_ref()
    }

    /// Of q and of k, where anything is ranked by them.
    pub(super) fn means(&self) -> Option<[&Tensor; 2]> {
        self.means.as_ref().map(|[q, k]| [q, k])
    }

    /// The selected blocks that a query may attend to as a whole.
    pub(super) fn whole(&self) -> Whole<'_> {
        match (&self.means, &self.full_keep) {
            (None, _) => Whole::Listed,
            (Some(_), None) => Whole::All,
            (Some(_), Some(bits)) => Whole::Bits(bits),
        }
    }
}

impl Selector {
    pub(super) fn new(
        cuda: &CudaDevice,
        rule: &Rule,
        classify: Option<(Tuned, Arc<FunctionArgs>)>,
        mask_mod: Option<&Arc<DeviceFunction>>,
        lazy: &dyn Fn(Request) -> Lazy,
    ) -> Self {
        Selector {
            device: Device::Cuda(cuda.clone()),
            ranking: rule.selection.is_some().then(|| Ranking::new(rule, mask_mod, lazy)),
            classify,
            select: lazy(Request::new(&select::SOURCE)),
            dropped: rule.has_tail().then(|| lazy(Request::new(&dropped::SOURCE))),
            transpose: lazy(Request::new(&transpose::SOURCE)),
        }
    }

    /// The stages for such rows in the order they run, those that were ever wanted.
    pub(super) fn stages(&self, rule: &Rule, sizes: &Sizes) -> impl Iterator<Item = &Tuned> {
        let by_keys = rule.by_keys();
        let classify = self.classify.iter().map(|(kernel, _)| kernel);
        let of_tensors = self.ranking.iter().flat_map(move |ranking| ranking.of_tensors(by_keys));
        let rank = self.rank(rule, sizes);
        let to_memory = self
            .ranking
            .as_ref()
            .map(|ranking| ranking.score_kernel(by_keys))
            .into_iter()
            .chain([&self.select]);
        let select = rank.into_iter().chain(to_memory.filter(move |_| rank.is_none()));
        classify.chain(
            of_tensors.chain(select).chain(&self.dropped).chain([&self.transpose]).filter_map(Lazy::known),
        )
    }

    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        Selector {
            device: Device::Cuda(cuda.clone()),
            ranking: self.ranking.as_ref().map(|ranking| ranking.on(cuda)),
            classify: self.classify.as_ref().map(|(kernel, functions)| (kernel.on(cuda), functions.clone())),
            select: self.select.on(cuda),
            dropped: self.dropped.as_ref().map(|kernel| kernel.on(cuda)),
            transpose: self.transpose.on(cuda),
        }
    }

    /// `rank` for such rows, where they fit and means of blocks decide.
    fn rank(&self, rule: &Rule, sizes: &Sizes) -> Option<&Lazy> {
        self.ranking.as_ref().filter(|_| !rule.by_keys())?.rank(sizes.kv_blocks)
    }

    /// Whether the kernel that picks the blocks is chosen, and those before it, which block means of a caller's do without; `by_key`:
    /// the one for the lists by key block too.
    pub(super) fn knows(&self, (rule, sizes): (&Rule, &Sizes), bucket: Bucket, by_key: bool) -> bool {
        let known = |kernel: &Lazy| kernel.known().is_some_and(|kernel| kernel.knows(bucket));
        let by_keys = rule.by_keys();
        let mut before = self.ranking.iter().flat_map(|ranking| ranking.of_tensors(by_keys));
        let picks = known(self.rank(rule, sizes).unwrap_or(&self.select));
        let scores = !by_keys || self.ranking.iter().all(|ranking| known(ranking.score_kernel(true)));
        picks
            && scores
            && before.all(known)
            && self.dropped.iter().all(known)
            && (!by_key || known(&self.transpose))
    }

    /// Room for what the selection works in. Means that the caller has made need none.
    pub(super) fn scratch(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        of_tensors: bool,
        memory: &mut Memory<'_>,
    ) -> Result<Scratch, Error> {
        use select::tensors as of_select;
        let (ranked, split, fits) =
            (self.ranking.is_some(), self.classify.is_some(), self.rank(rule, sizes).is_some());
        let means = of_tensors && ranked;
        let mut k_fine = None;
        if means && rule.by_keys() {
            let &Sizes { batch, kv_heads, seq_kv, head_dim, .. } = sizes;
            k_fine = Some(memory.tensor(rule.dtype, &[batch, kv_heads, seq_kv.div_ceil(FINE), head_dim])?);
        }
        let mut room = |wanted: bool, argument: &TensorDecl| {
            wanted.then(|| memory.argument(argument, sizes)).transpose()
        };
        let q_mean = room(means, &pool::tensors::Q_MEAN)?;
        let k_mean = room(means, &pool::tensors::K_MEAN)?;
        Ok(Scratch {
            means: q_mean.zip(k_mean).map(|(q, k)| [q, k]),
            k_fine,
            logits: room(!fits, &of_select::LOGITS)?,
            partial_logits: room(split && means && fits, &score_partial::tensors::LOGITS)?,
            classes: room(split, &classify::tensors::CLASSES)?,
            full_keep: room(split, &of_select::FULL_KEEP)?,
            row_order: room(ranked, &of_select::ROW_ORDER)?,
            finished: room(ranked, &of_select::FINISHED)?,
            keep: memory.argument(&of_select::KEEP, sizes)?,
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
        let Scratch { means, k_fine, logits, classes, partial_logits, keep, full_keep, row_order, finished } =
            scratch;
        if let (Some((kernel, functions)), Some(classes)) = (&self.classify, &mut *classes) {
            let (seq_q, seq_kv) = (sizes.seq_q as i32, sizes.seq_kv as i32);
            let args = classify::Args { classes, seq_q, seq_kv };
            // SAFETY: the sequences are those that the grid of blocks was made of; all work is on one stream.
            unsafe { kernel.launch_in(sizes.bucket(rule, None), &args, Some(functions))? };
        }
        let call = Call { rule, sizes };
        let means = match (&self.ranking, ranked, &mut *means) {
            (Some(ranking), Ranked::Tensors { q, k }, Some(means)) => {
                ranking.pool(&call, [q, k], means, (finished.as_mut(), k_fine.as_mut()))?;
                let [q, k] = means;
                Some([&*q, &*k])
            }
            (Some(_), Ranked::Means { q_mean: q, k_mean: k }, _) => {
                if let (Some(finished), Some(cuda)) = (&mut *finished, self.device.as_cuda()) {
                    finished.fill_words(cuda, 0)?;
                }
                Some([q, k])
            }
            _ => None,
        };
        // Means that the caller has made are all there is to score.
        let partial = match (ranked, &self.classify, &*classes) {
            (Ranked::Tensors { k, .. }, Some((_, functions)), Some(classes)) => {
                Some(Partial { k, classes, functions })
            }
            _ => None,
        };
        if let (Some(ranking), Some(means), Some(partial), Some(logits)) =
            (&self.ranking, means, &partial, &mut *partial_logits)
        {
            ranking.score_partial(&call, partial, means, logits)?;
        }
        let order = row_order.as_mut().zip(finished.as_mut());
        let mut parts = Parts { classes: classes.as_ref(), keep, full_keep, order, lists };
        match (self.rank(rule, sizes), means, logits) {
            (Some(rank), Some(means), _) => {
                rank_blocks(rank.get()?, &call, means, partial_logits.as_ref(), &mut parts)?;
            }
            (_, means, Some(logits)) => {
                let means = means.map(|means| (means, k_fine.as_ref()));
                self.score_and_select(&call, means, partial, logits, &mut parts)?;
            }
            _ => unreachable!("without `rank` there is room for logits"),
        }
        self.dropped(&call, &mut parts)?;
        self.transpose(&call, &mut parts)
    }

    /// The bits of the blocks that are dropped, where a tail stands for them.
    fn dropped(&self, call: &Call<'_>, parts: &mut Parts<'_>) -> Result<(), Error> {
        let Parts { classes, keep, full_keep, lists, .. } = parts;
        let (Some(kernel), Some(dropped)) = (&self.dropped, &mut lists.dropped) else { return Ok(()) };
        let (full_keep, blocks) = (full_keep.as_ref(), call.sizes.kv_blocks as i32);
        let args = dropped::Args { keep, full_keep, classes: *classes, dropped, blocks };
        // SAFETY: bits may hold anything; all work is on one stream.
        unsafe { kernel.get()?.launch_in(call.bucket(), &args, None) }
    }

    /// Scores to memory, and the selection from there: for rows of any length, and where nothing is ranked.
    fn score_and_select(
        &self,
        call: &Call<'_>,
        means: Option<([&Tensor; 2], Option<&Tensor>)>,
        partial: Option<Partial<'_>>,
        logits: &mut Tensor,
        parts: &mut Parts<'_>,
    ) -> Result<(), Error> {
        let score = |ranking: &Ranking, means: ([&Tensor; 2], _), logits: &mut Tensor| {
            ranking.score(call, means, logits)?;
            partial.map_or(Ok(()), |partial| ranking.score_partial(call, &partial, means.0, logits))
        };
        match (&self.ranking, means) {
            (Some(ranking), Some(means)) => score(ranking, means, logits)?,
            // All scores are alike. The kernel overwrites them, so that they are set anew.
            _ => self.device.as_cuda().map_or(Ok(()), |cuda| logits.fill_words(cuda, 0))?,
        }
        let (top_k, top_p) = call.rule.thresholds();
        let Parts { classes, keep, full_keep, order, lists } = &mut *parts;
        let (row_order, finished) =
            order.as_mut().map(|(order, finished)| (&mut **order, &mut **finished)).unzip();
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
            row_order,
            finished,
            top_k,
            top_p,
        };
        // SAFETY: as for `rank`: `finished` was set to 0 before, and every launch leaves it there.
        unsafe { self.select.get()?.launch_in(call.bucket(), &args, None) }
    }

    /// The lists by key block, where they are wanted.
    fn transpose(&self, call: &Call<'_>, parts: &mut Parts<'_>) -> Result<(), Error> {
        let Parts { keep, full_keep, lists, .. } = parts;
        let Some(by_kv) = &mut lists.q else { return Ok(()) };
        let bits = (&**keep, full_keep.as_ref());
        transpose_bits(self.transpose.get()?, call.bucket(), bits, (by_kv, &mut lists.full_q), None)
    }
}

/// The lists by key block of the bits of the main lists and of those of full blocks. `order`: of the key blocks, and the heads'
/// counters.
pub(super) fn transpose_bits(
    kernel: &Tuned,
    bucket: Bucket,
    (keep, full_keep): (&Tensor, Option<&Tensor>),
    (by_kv, full_by_kv): (&mut BlockIndex, &mut Option<BlockIndex>),
    order: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<(), Error> {
    let (full_q_counts, full_q_indices) = parts_of(full_by_kv);
    let (key_order, finished) = order.unzip();
    let args = transpose::Args {
        keep,
        full_keep,
        q_counts: &mut by_kv.counts,
        q_indices: &mut by_kv.indices,
        full_q_counts,
        full_q_indices,
        key_order,
        finished,
    };
    // SAFETY: the bits are those of blocks that exist, and `mark` has set `finished` to 0; all work is on one stream.
    unsafe { kernel.launch_in(bucket, &args, None) }
}
