//! The backward of what stands for dropped blocks.
//!
//! The block tail: tail_gather → tail_block_q before the kernel by query, tail_block_kv before the kernel by key. The row tail: the kernel by query takes the
//! means as further keys, the one by key takes them once more for themselves, in parts of the queries → tail_spread, before the keys.

use super::Run;
use crate::attention::memory::Memory;
use crate::attention::{Rule, Sizes};
use crate::codegen::lower::DeviceFunction;
use crate::device::CudaDevice;
use crate::kernels::{backward_kv, tail_block_kv, tail_block_q, tail_gather, tail_spread};
use crate::launch::{Lazy, Request, Tuned};
use crate::tail::Tail;
use crate::tune::Bucket;
use crate::{BlockIndex, DType, Error, Tensor};
use std::sync::Arc;

use super::super::tail::{Made, Means, TailScratch};

/// Thread blocks that the means' own gradients are shared out among, some for each multiprocessor of today's largest GPUs.
const TILES: usize = 1056;

/// The kernels, each with its tuning space.
#[derive(Clone)]
pub(super) enum Tails {
    Block { gather: Lazy, by_query: Lazy, by_key: Lazy },
    Row { run: usize, by_mean: Lazy, spread: Lazy },
}

/// What the backward of a tail works in, beside what the forward has made.
pub(super) struct Scratch {
    pub(super) forward: TailScratch,
    of: Of,
    /// What every key and value of a block gets.
    dk_mean: Tensor,
    dv_mean: Tensor,
}

enum Of {
    Block {
        g: Tensor,
        delta: Tensor,
        dq_mean: Tensor,
    },
    Row {
        dk_parts: Tensor,
        dv_parts: Tensor,
        /// What the kernel by key has for lists, and does not read.
        unread: BlockIndex,
    },
}

impl Tails {
    /// `blocked`: a request for the backward's tiles.
    pub(super) fn new(
        rule: &Rule,
        mask_mod: Option<&Arc<DeviceFunction>>,
        blocked: &dyn Fn(Request) -> Request,
        lazy: &dyn Fn(Request) -> Lazy,
    ) -> Option<Self> {
        let [d, d_v] = rule.head_dim.backward_tiles(rule.value_dim).map(|tile| tile as i64);
        let of_means = |source| lazy(Request::new(source).value("D", d).value("D_V", d_v));
        match rule.tail {
            Tail::None => None,
            Tail::Block => {
                let gather = Request::new(&tail_gather::SOURCE)
                    .value("T", rule.dtype)
                    .value("D", rule.value_dim.tile() as i64)
                    .value("BLOCK_Q", rule.blocks.q() as i64)
                    .value("BLOCK_KV", rule.blocks.kv() as i64);
                Some(Tails::Block {
                    gather: lazy(gather),
                    by_query: of_means(&tail_block_q::SOURCE),
                    by_key: of_means(&tail_block_kv::SOURCE),
                })
            }
            Tail::Row { keys } => {
                let by_mean =
                    blocked(Request::new(&backward_kv::SOURCE).value("TAIL", backward_kv::TAIL_ROW));
                Some(Tails::Row {
                    run: keys / rule.blocks.kv(),
                    by_mean: lazy(by_mean.function("mask_mod", mask_mod)),
                    spread: lazy(Request::new(&tail_spread::SOURCE).value("T", rule.dtype)),
                })
            }
        }
    }

    fn kernels(&self) -> Vec<&Lazy> {
        match self {
            Tails::Block { gather, by_query, by_key } => vec![gather, by_query, by_key],
            Tails::Row { by_mean, spread, .. } => vec![by_mean, spread],
        }
    }

    pub(super) fn stages(&self) -> impl Iterator<Item = &Tuned> {
        self.kernels().into_iter().filter_map(Lazy::known)
    }

    pub(super) fn knows(&self, bucket: Bucket) -> bool {
        self.kernels().into_iter().all(|kernel| kernel.known().is_some_and(|kernel| kernel.knows(bucket)))
    }

    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        let on = |kernel: &Lazy| kernel.on(cuda);
        match self {
            Tails::Block { gather, by_query, by_key } => {
                Tails::Block { gather: on(gather), by_query: on(by_query), by_key: on(by_key) }
            }
            Tails::Row { run, by_mean, spread } => {
                Tails::Row { run: *run, by_mean: on(by_mean), spread: on(spread) }
            }
        }
    }

    /// Room for the backward of what `forward` has room for.
    pub(super) fn scratch(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        forward: TailScratch,
        memory: &mut Memory<'_>,
    ) -> Result<Scratch, Error> {
        let &Sizes { batch, heads, kv_heads, q_blocks, kv_blocks, head_dim, .. } = sizes;
        let value_dim = rule.value_dim.get();
        let of = match &forward.made {
            Made::Block(_) => Of::Block {
                g: memory.tensor(DType::F32, &[batch, heads, q_blocks, value_dim])?,
                delta: memory.tensor(DType::F32, &[batch, heads, q_blocks])?,
                dq_mean: memory.tensor(DType::F32, &[batch, heads, q_blocks, head_dim])?,
            },
            Made::Row(means) => {
                let means = means.keys.shape()[2];
                let tiles = means.div_ceil(64) * kv_heads * batch;
                let rows = means * TILES.div_ceil(tiles).min(q_blocks);
                let blocks = rows / rule.blocks.kv();
                Of::Row {
                    dk_parts: memory.tensor(rule.dtype, &[batch, kv_heads, rows, head_dim])?,
                    dv_parts: memory.tensor(rule.dtype, &[batch, kv_heads, rows, value_dim])?,
                    unread: BlockIndex {
                        counts: memory.tensor(DType::I32, &[1, 1, blocks])?,
                        indices: memory.tensor(DType::I32, &[1, 1, blocks, 1])?,
                    },
                }
            }
        };
        let dk_mean = memory.tensor(DType::F32, &[batch, kv_heads, kv_blocks, head_dim])?;
        let dv_mean = memory.tensor(DType::F32, &[batch, kv_heads, kv_blocks, value_dim])?;
        Ok(Scratch { forward, of, dk_mean, dv_mean })
    }
}

impl Scratch {
    /// What every query of a block gets, where that is the same for all.
    pub(super) fn dq_mean(&self) -> Option<&Tensor> {
        match &self.of {
            Of::Block { dq_mean, .. } => Some(dq_mean),
            Of::Row { .. } => None,
        }
    }

    /// What every key and value of a block gets.
    pub(super) fn of_keys(&self) -> [&Tensor; 2] {
        [&self.dk_mean, &self.dv_mean]
    }
}

impl Run<'_> {
    /// What a block tail's means have as gradients, before the kernels by query and by key.
    pub(super) fn of_block_tail(
        &self,
        tails: &Tails,
        dropped: &Tensor,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let (Tails::Block { gather, by_query, by_key }, Of::Block { g, delta, dq_mean }) =
            (tails, &mut scratch.of)
        else {
            return Ok(());
        };
        let TailScratch { q_mean, k_mean, v_mean, made, .. } = &scratch.forward;
        let (Some(q_mean), Some(k_mean), Made::Block(value)) = (q_mean, k_mean, made) else {
            unreachable!("the block tail of lists makes its own means");
        };
        let tail_lse = &value.lse;
        let &Sizes { seq_q, seq_kv, .. } = &self.sizes;
        let (seq_q, seq_kv, scale) = (seq_q as i32, seq_kv as i32, self.rule.scale);
        let [block_q, block_kv] = [self.rule.blocks.q(), self.rule.blocks.kv()].map(|block| block as i32);
        let args = tail_gather::Args {
            out: self.upstream.out,
            d_out: self.upstream.d_out,
            lse: self.upstream.lse,
            d_lse: self.upstream.d_lse,
            tail_lse,
            g,
            tail_delta: delta,
        };
        // SAFETY: all is of this call's blocks; all work is on one stream, here and below.
        unsafe { gather.get()?.launch_in(self.bucket, &args, None)? };
        let (g, tail_delta) = (&*g, &*delta);
        let args = tail_block_q::Args {
            q_mean,
            k_mean,
            v_mean,
            dropped,
            tail_lse,
            g,
            tail_delta,
            dq_mean,
            scale,
            seq_q,
            seq_kv,
            block_q,
            block_kv,
        };
        // SAFETY: bits may hold anything, and the means are of this call's blocks.
        unsafe { by_query.get()?.launch_in(self.bucket, &args, None)? };
        let args = tail_block_kv::Args {
            q_mean,
            k_mean,
            v_mean,
            dropped,
            tail_lse,
            g,
            tail_delta,
            dk_mean: &mut scratch.dk_mean,
            dv_mean: &mut scratch.dv_mean,
            scale,
            seq_kv,
            block_kv,
        };
        // SAFETY: as above.
        unsafe { by_key.get()?.launch_in(self.bucket, &args, None) }
    }

    /// What a row tail's means have as gradients, between the kernels by query and by key.
    pub(super) fn of_row_tail(
        &self,
        tails: &Tails,
        delta: &Tensor,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let (Tails::Row { run, by_mean, spread }, Of::Row { dk_parts, dv_parts, unread }) =
            (tails, &mut scratch.of)
        else {
            return Ok(());
        };
        let Made::Row(means) = &scratch.forward.made else {
            unreachable!("the scratch is of this tail");
        };
        let Means { keys, values, weights, pieces } = &**means;
        let args = backward_kv::Args {
            q: self.upstream.q,
            k: keys,
            v: values,
            d_out: self.upstream.d_out,
            lse: self.upstream.lse,
            delta,
            q_counts: &unread.counts,
            q_indices: &unread.indices,
            full_q_counts: None,
            full_q_indices: None,
            key_order: None,
            dk_mean: None,
            dv_mean: None,
            tail_weights: Some(weights),
            tail_pieces: Some(pieces),
            dk: &mut *dk_parts,
            dv: &mut *dv_parts,
            scale: self.rule.scale,
        };
        // SAFETY: lists are not read; all work is on one stream, here and below.
        unsafe { by_mean.get()?.launch_in(self.bucket, &args, Some(&self.pipeline.functions))? };
        let args = tail_spread::Args {
            dk_parts,
            dv_parts,
            dk_mean: &mut scratch.dk_mean,
            dv_mean: &mut scratch.dv_mean,
            entries: keys.shape()[2] as i32,
            seq_kv: self.sizes.seq_kv as i32,
            block_kv: self.rule.blocks.kv() as i32,
            run: (*run).min(self.sizes.kv_blocks) as i32,
        };
        // SAFETY: the parts are of this call's means.
        unsafe { spread.get()?.launch_in(self.bucket, &args, None) }
    }
}
