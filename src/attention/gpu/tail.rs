//! What stands for dropped blocks, before the forward: (pool) → pool_values → tail_block, or → tail_keys and tail_weights.

use super::parts::Call;
use crate::attention::memory::Memory;
use crate::attention::{MaskLists, Rule, Sizes};
use crate::device::CudaDevice;
use crate::kernels::{mark, pool, pool_values, tail_block, tail_keys, tail_weights};
use crate::launch::{Lazy, Request, Tuned};
use crate::tail::Tail;
use crate::tune::Bucket;
use crate::{BlockIndex, DType, Error, Tensor};

/// Means that are taken or left together.
const PIECE: usize = tail_weights::SECTION as usize;

/// The kernels, each with its tuning space.
#[derive(Clone)]
pub(super) struct Tails {
    device: CudaDevice,
    /// For the block tail, where nothing has pooled q and k.
    pool: Lazy,
    /// The same of keys alone, for the row tail.
    pool_keys: Lazy,
    pool_values: Lazy,
    of: Of,
}

#[derive(Clone)]
enum Of {
    Block {
        block: Lazy,
    },
    Row {
        /// Blocks that have one mean.
        run: usize,
        mark: Lazy,
        keys: Lazy,
        weights: Lazy,
    },
}

/// Which of the blocks that are not dropped a query may attend to as a whole.
#[derive(Clone, Copy)]
pub(in crate::attention) enum Whole<'a> {
    /// All of them.
    All,
    /// Those with a bit.
    Bits(&'a Tensor),
    /// Those that the lists name.
    Listed,
}

/// What the tail of a call works in, and what the forward reads of it.
pub(in crate::attention) struct TailScratch {
    /// Of q (for the block tail) and of k, where nothing else has made them.
    pub(super) q_mean: Option<Tensor>,
    pub(super) k_mean: Option<Tensor>,
    pub(super) v_mean: Tensor,
    /// Bits of the blocks that lists name.
    whole: Option<Tensor>,
    pub(super) made: Made,
}

/// What stands for dropped blocks.
pub(in crate::attention) enum Made {
    Block(Box<Value>),
    Row(Box<Means>),
}

/// A value for each query block, and the logarithm of its weight.
pub(in crate::attention) struct Value {
    pub(super) out: Tensor,
    pub(super) lse: Tensor,
}

/// Means that are attended to as further keys.
pub(in crate::attention) struct Means {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
    /// The logarithms of the numbers of keys that they stand for.
    pub(super) weights: Tensor,
    /// A bit for each piece of them that stands for any.
    pub(super) pieces: Tensor,
}

impl Tails {
    /// Nothing where the rule has no tail.
    pub(super) fn new(
        cuda: &CudaDevice,
        rule: &Rule,
        lazy: &dyn Fn(Request) -> Lazy,
    ) -> Result<Option<Self>, Error> {
        let run = rule.tail.blocks_a_mean(rule.blocks)?;
        let [d, d_v] = rule.head_dim.tiles(rule.value_dim).map(|tile| tile as i64);
        let (block_q, block_kv) = (rule.blocks.q() as i64, rule.blocks.kv() as i64);
        let of = match rule.tail {
            Tail::None => return Ok(None),
            Tail::Block => {
                let request = Request::new(&tail_block::SOURCE).value("D", d).value("D_V", d_v);
                Of::Block { block: lazy(request) }
            }
            Tail::Row { .. } => Of::Row {
                run,
                mark: lazy(Request::new(&mark::SOURCE)),
                keys: lazy(Request::new(&tail_keys::SOURCE).value("T", rule.dtype)),
                weights: lazy(Request::new(&tail_weights::SOURCE)),
            },
        };
        let pooled = |source, d| {
            Request::new(source)
                .value("T", rule.dtype)
                .value("D", d)
                .value("BLOCK_Q", block_q)
                .value("BLOCK_KV", block_kv)
        };
        Ok(Some(Tails {
            device: cuda.clone(),
            pool: lazy(pooled(&pool::SOURCE, rule.head_dim.tile() as i64)),
            pool_keys: lazy(pooled(&pool_values::SOURCE, rule.head_dim.tile() as i64)),
            pool_values: lazy(pooled(&pool_values::SOURCE, rule.value_dim.tile() as i64)),
            of,
        }))
    }

    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        let on = |kernel: &Lazy| kernel.on(cuda);
        Tails {
            device: cuda.clone(),
            pool: on(&self.pool),
            pool_keys: on(&self.pool_keys),
            pool_values: on(&self.pool_values),
            of: match &self.of {
                Of::Block { block } => Of::Block { block: on(block) },
                Of::Row { run, mark, keys, weights } => {
                    Of::Row { run: *run, mark: on(mark), keys: on(keys), weights: on(weights) }
                }
            },
        }
    }

    /// The kernels of a call, in the order they run. `selected`: whether the selection has made the block means; `marks`: whether there are lists
    /// that say which blocks are whole.
    fn kernels(&self, selected: bool, marks: bool) -> impl Iterator<Item = &Lazy> {
        let pool = match &self.of {
            Of::Block { .. } => &self.pool,
            Of::Row { .. } => &self.pool_keys,
        };
        let rest = match &self.of {
            Of::Block { block } => [Some(block), None, None],
            Of::Row { mark, keys, weights, .. } => {
                [Some(mark).filter(|_| !selected && marks), Some(keys), Some(weights)]
            }
        };
        let pool = Some(pool).filter(|_| !selected);
        pool.into_iter().chain([&self.pool_values]).chain(rest.into_iter().flatten())
    }

    /// The stages that were ever wanted, in the order they run.
    pub(super) fn stages(&self) -> impl Iterator<Item = &Tuned> {
        self.kernels(false, true).filter_map(Lazy::known)
    }

    /// Whether every kernel is chosen.
    pub(super) fn knows(&self, (selected, marks): (bool, bool), bucket: Bucket) -> bool {
        self.kernels(selected, marks).all(|kernel| kernel.known().is_some_and(|kernel| kernel.knows(bucket)))
    }

    /// Room for the tail of a call over lists of this shape. `selected`: whether the selection has made the block means and the lists, in the same
    /// call.
    pub(super) fn scratch(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        lists: &MaskLists,
        selected: bool,
        memory: &mut Memory<'_>,
    ) -> Result<TailScratch, Error> {
        let &Sizes { batch, heads, kv_heads, q_blocks, kv_blocks, head_dim, .. } = sizes;
        let value_dim = rule.value_dim.get();
        let mut room =
            |wanted: bool, dtype, shape: &[usize]| wanted.then(|| memory.tensor(dtype, shape)).transpose();
        let by_block = matches!(self.of, Of::Block { .. });
        let q_mean = room(by_block && !selected, DType::F32, &[batch, heads, q_blocks, head_dim])?;
        let k_mean = room(!selected, DType::F32, &[batch, kv_heads, kv_blocks, head_dim])?;
        let v_mean = memory.tensor(DType::F32, &[batch, kv_heads, kv_blocks, value_dim])?;
        let mut whole = None;
        let made = match &self.of {
            Of::Block { .. } => Made::Block(Box::new(Value {
                out: memory.tensor(DType::F32, &[batch, heads, q_blocks, value_dim])?,
                lse: memory.tensor(DType::F32, &[batch, heads, q_blocks])?,
            })),
            Of::Row { run, .. } => {
                // One mask for all heads and batches stays one.
                let (dropped, listed) = (
                    mask_of(lists.dropped.as_ref()),
                    mask_of(whole_lists(rule, lists).map(|whole| &whole.counts)),
                );
                let row = [dropped[0].max(listed[0]), dropped[1].max(listed[1]), q_blocks];
                let keys =
                    means((*run).min(kv_blocks), kv_blocks, !selected || rule.is_split(), rule.blocks.kv());
                let pieces = (keys / PIECE).div_ceil(32);
                if !selected {
                    whole = Some(
                        memory.tensor(DType::I32, &[listed[0], listed[1], row[2], kv_blocks.div_ceil(32)])?,
                    );
                }
                Made::Row(Box::new(Means {
                    keys: memory.tensor(rule.dtype, &[batch, kv_heads, keys, head_dim])?,
                    values: memory.tensor(rule.dtype, &[batch, kv_heads, keys, value_dim])?,
                    weights: memory.tensor(DType::F32, &[row[0], row[1], row[2], keys])?,
                    pieces: memory.tensor(DType::I32, &[row[0], row[1], row[2], pieces])?,
                }))
            }
        };
        Ok(TailScratch { q_mean, k_mean, v_mean, whole, made })
    }

    /// Makes what stands for the blocks that `lists` drop. `means`: those of q and k, where something has made them. Launches only, once the kernels
    /// are chosen.
    pub(super) fn run(
        &self,
        call: &Call<'_>,
        [q, k, v]: [&Tensor; 3],
        means: Option<[&Tensor; 2]>,
        whole: Whole<'_>,
        lists: &MaskLists,
        scratch: &mut TailScratch,
    ) -> Result<(), Error> {
        let bucket = call.bucket();
        let TailScratch { q_mean, k_mean, v_mean, whole: bits, made } = scratch;
        if let (None, Some(k_mean)) = (means, &mut *k_mean) {
            match q_mean {
                Some(q_mean) => {
                    let args = pool::Args { q, k, q_mean, k_mean, finished: None, k_fine: None };
                    // SAFETY: it asks for nothing that the checks do not see; all work is on one stream, here and below.
                    unsafe { self.pool.get()?.launch_in(bucket, &args, None)? };
                }
                None => {
                    let args = pool_values::Args { v: k, v_mean: k_mean };
                    // SAFETY: as above.
                    unsafe { self.pool_keys.get()?.launch_in(bucket, &args, None)? };
                }
            }
        }
        let args = pool_values::Args { v, v_mean };
        // SAFETY: as above.
        unsafe { self.pool_values.get()?.launch_in(bucket, &args, None)? };
        let v_mean = &*v_mean;
        let k_mean = means.map(|[_, k]| k).or(k_mean.as_ref());
        let q_mean = means.map(|[q, _]| q).or(q_mean.as_ref());
        let (Some(k_mean), Some(dropped)) = (k_mean, &lists.dropped) else {
            unreachable!("there is room for means that nobody has made, and the bits were asked for");
        };
        let (seq_kv, block_kv) = (call.sizes.seq_kv as i32, call.rule.blocks.kv() as i32);
        let scale = call.rule.scale;
        match (&self.of, made, q_mean) {
            (Of::Block { block }, Made::Block(value), Some(q_mean)) => {
                let Value { out: tail_out, lse: tail_lse } = &mut **value;
                let args = tail_block::Args {
                    q_mean,
                    k_mean,
                    v_mean,
                    dropped,
                    tail_out,
                    tail_lse,
                    scale,
                    seq_kv,
                    block_kv,
                };
                // SAFETY: bits may hold anything, and the means are of this call's blocks.
                unsafe { block.get()?.launch_in(bucket, &args, None) }
            }
            (Of::Row { run, mark, keys: of_keys, weights: of_weights }, Made::Row(means), _) => {
                let Means { keys, values, weights, pieces } = &mut **means;
                // No run is longer than all there is, and a number of the kernels' holds it.
                let run = (*run).min(call.sizes.kv_blocks) as i32;
                let args =
                    tail_keys::Args { k_mean, v_mean, tail_k: keys, tail_v: values, seq_kv, block_kv, run };
                // SAFETY: the means are of this call's blocks.
                unsafe { of_keys.get()?.launch_in(bucket, &args, None)? };
                let whole = match (whole, &mut *bits) {
                    (Whole::Bits(bits), _) => Some(bits),
                    (Whole::Listed, Some(bits)) => Some(self.listed(call, mark, lists, bits)?),
                    _ => None,
                };
                let blocks = call.sizes.kv_blocks as i32;
                let args =
                    tail_weights::Args { dropped, whole, weights, pieces, blocks, seq_kv, block_kv, run };
                // SAFETY: bits may hold anything.
                unsafe { of_weights.get()?.launch_in(bucket, &args, None) }
            }
            _ => unreachable!("the scratch is of this tail"),
        }
    }

    /// The bits of the listed blocks within which no mask function applies.
    fn listed<'a>(
        &self,
        call: &Call<'_>,
        mark: &Lazy,
        lists: &MaskLists,
        bits: &'a mut Tensor,
    ) -> Result<&'a Tensor, Error> {
        let Some(BlockIndex { counts, indices }) = whole_lists(call.rule, lists) else {
            bits.fill_words(&self.device, 0)?;
            return Ok(bits);
        };
        let kv_blocks = call.sizes.kv_blocks as i32;
        let args =
            mark::Args { kv_counts: counts, kv_indices: indices, keep: bits, finished: None, kv_blocks };
        // SAFETY: lists may hold anything; all work is on one stream.
        unsafe { mark.get()?.launch_in(call.bucket(), &args, None)? };
        Ok(bits)
    }
}

/// The lists of blocks within which no mask function applies.
fn whole_lists<'a>(rule: &Rule, lists: &'a MaskLists) -> Option<&'a BlockIndex> {
    if rule.is_split() { lists.full_kv.as_ref() } else { Some(&lists.kv) }
}

/// Batches and heads of bits or counts, each the call's or 1. What other shapes there are the kernels' bindings find.
fn mask_of(mask: Option<&Tensor>) -> [usize; 2] {
    let shape = mask.map_or(&[][..], |mask| mask.shape());
    [0, 1].map(|axis| shape.get(axis).copied().unwrap_or(1))
}

/// The means of runs of blocks, and where `by_block` of single blocks too, each in whole pieces, all of them a multiple of a block's keys. A run of one
/// block needs no other mean.
fn means(run: usize, kv_blocks: usize, by_block: bool, block: usize) -> usize {
    let runs = kv_blocks.div_ceil(run).next_multiple_of(PIECE);
    let all = if by_block && run > 1 { runs + kv_blocks.next_multiple_of(PIECE) } else { runs };
    all.next_multiple_of(block)
}

#[cfg(test)]
mod tests {
    use super::means;

    #[test]
    fn means_come_in_pieces() {
        assert_eq!(means(1, 130, true, 64), 192);
        assert_eq!(means(1, 130, true, 128), 256);
        assert_eq!(means(2, 130, false, 64), 128);
        assert_eq!(means(2, 130, true, 64), 128 + 192);
        assert_eq!(means(512, 130, false, 64), 64);
    }
}
