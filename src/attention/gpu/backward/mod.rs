//! The kernels of the backward on a GPU: by query → by key, and before them the lists by key where a caller has none.

mod tail;

use super::selection::transpose_bits;
use super::tail::{Made, Whole};
use super::{Pipeline, tail_value};
use crate::attention::advice::advise_backward;
use crate::attention::memory::Memory;
use crate::attention::{Gradients, MaskLists, Rule, Sizes};
use crate::codegen::lower::DeviceFunction;
use crate::device::CudaDevice;
use crate::kernels::{backward_kv, backward_q, mark, transpose};
use crate::launch::{Lazy, Request, TensorDecl, Tuned};
use crate::operands::Upstream;
use crate::tune::Bucket;
use crate::{BlockIndex, Error, Tensor};
use std::sync::Arc;

/// The kernels, each with its tuning space.
#[derive(Clone)]
pub(super) struct Backward {
    by_query: Lazy,
    by_key: Lazy,
    mark: Lazy,
    transpose: Lazy,
    /// Absent without a tail.
    tails: Option<tail::Tails>,
}

/// What a backward works in.
pub(in crate::attention) struct BackwardScratch {
    /// Of each query, from the kernel by query to the one by key.
    delta: Tensor,
    /// Where the caller has no lists by key.
    transposed: Option<Transposed>,
    /// Where there is a tail.
    tail: Option<tail::Scratch>,
}

struct Transposed {
    keep: Tensor,
    full_keep: Option<Tensor>,
    q: BlockIndex,
    full_q: Option<BlockIndex>,
    order: Option<KeyOrder>,
}

/// The order in which a head's key blocks are started.
struct KeyOrder {
    of_keys: Tensor,
    /// Counters of the kernel that makes it.
    finished: Tensor,
}

/// Lists with the same of full blocks.
type Lists<'a> = (&'a BlockIndex, Option<&'a BlockIndex>);

/// Lists by key, and the order of the keys where there is one.
type ByKey<'a> = (Lists<'a>, Option<&'a Tensor>);

impl Backward {
    /// Over the parsed functions of the rule.
    pub(super) fn new(
        rule: &Rule,
        score_mod: Option<&Arc<DeviceFunction>>,
        mask_mod: Option<&Arc<DeviceFunction>>,
        lazy: &dyn Fn(Request) -> Lazy,
    ) -> Self {
        let [d, d_v] = rule.head_dim.backward_tiles(rule.value_dim).map(|tile| tile as i64);
        let blocked = |request: Request| {
            request
                .value("T", rule.dtype)
                .value("D", d)
                .value("D_V", d_v)
                .value("BLOCK_Q", rule.blocks.q() as i64)
                .value("BLOCK_KV", rule.blocks.kv() as i64)
        };
        let with_functions = |request: Request| {
            blocked(request).function("score_mod", score_mod).function("mask_mod", mask_mod)
        };
        let by_query = Request::new(&backward_q::SOURCE).value("TAIL", tail_value(rule.tail));
        // Of either tail, what the keys of a block get is made before.
        let of_keys = if rule.has_tail() { backward_kv::TAIL_BLOCK } else { backward_kv::TAIL_NONE };
        let by_key = Request::new(&backward_kv::SOURCE).value("TAIL", of_keys);
        Backward {
            by_query: lazy(with_functions(by_query)),
            by_key: lazy(with_functions(by_key)),
            tails: tail::Tails::new(rule, mask_mod, &blocked, lazy),
            mark: lazy(Request::new(&mark::SOURCE)),
            transpose: lazy(Request::new(&transpose::SOURCE)),
        }
    }

    /// The stages in the order they run.
    pub(super) fn stages(&self) -> impl Iterator<Item = &Tuned> {
        let tails = self.tails.iter().flat_map(tail::Tails::stages);
        let before = [&self.mark, &self.transpose].into_iter().filter_map(Lazy::known);
        before.chain(tails).chain([&self.by_query, &self.by_key].into_iter().filter_map(Lazy::known))
    }

    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        let Backward { by_query, by_key, mark, transpose, tails } = self;
        let [by_query, by_key, mark, transpose] =
            [by_query, by_key, mark, transpose].map(|kernel| kernel.on(cuda));
        Backward { by_query, by_key, mark, transpose, tails: tails.as_ref().map(|tails| tails.on(cuda)) }
    }

    /// Whether every kernel is chosen for a call over these lists.
    pub(super) fn knows(&self, lists: &MaskLists, bucket: Bucket) -> bool {
        let Backward { by_query, by_key, mark, transpose, tails } = self;
        let known = |kernel: &Lazy| kernel.known().is_some_and(|kernel| kernel.knows(bucket));
        let by_lists = has_lists_by_key(lists) || [mark, transpose].into_iter().all(known);
        let of_tail = tails.as_ref().is_none_or(|tails| tails.knows(bucket));
        by_lists && of_tail && [by_query, by_key].into_iter().all(known)
    }
}

impl Pipeline {
    /// Whether key blocks of uneven length are worth an order, which the declaration of the kernel by key says.
    fn orders_keys(&self, sizes: &Sizes) -> Result<bool, Error> {
        Ok(self.backward.by_key.get()?.is_worth("key_order", &sizes.dims()))
    }

    /// Room for what a backward over these lists works in.
    pub(in crate::attention) fn backward_scratch(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        lists: &MaskLists,
        memory: &mut Memory<'_>,
    ) -> Result<BackwardScratch, Error> {
        let delta = memory.argument(&backward_q::tensors::DELTA, sizes)?;
        let mut tail = None;
        if let (Some(tails), Some(forward)) =
            (&self.backward.tails, self.tail_scratch(rule, sizes, lists, false, memory)?)
        {
            tail = Some(tails.scratch(rule, sizes, forward, memory)?);
        }
        if has_lists_by_key(lists) {
            return Ok(BackwardScratch { delta, transposed: None, tail });
        }
        use transpose::tensors as by_key;
        // One mask for all heads and batches stays one.
        let of = |index: &BlockIndex| {
            let &[batch, heads, ..] = index.indices.shape() else {
                unreachable!("the shapes of lists were looked at");
            };
            Sizes { batch, heads, ..*sizes }
        };
        let mut one = |lists: &Sizes, keep, by_key: [&TensorDecl; 2]| -> Result<_, Error> {
            Ok((memory.argument(keep, lists)?, memory.index(by_key, lists)?))
        };
        let listed = of(&lists.kv);
        let (keep, q) = one(&listed, &by_key::KEEP, [&by_key::Q_COUNTS, &by_key::Q_INDICES])?;
        let full = lists.full_kv.as_ref().map(|full| {
            one(&of(full), &by_key::FULL_KEEP, [&by_key::FULL_Q_COUNTS, &by_key::FULL_Q_INDICES])
        });
        let (full_keep, full_q) = full.transpose()?.unzip();
        // A key head that several lists name would want the order of their sum.
        let one_list = listed.heads == 1 || listed.heads == sizes.kv_heads;
        let order = (one_list && self.orders_keys(sizes)?)
            .then(|| -> Result<_, Error> {
                Ok(KeyOrder {
                    of_keys: memory.argument(&by_key::KEY_ORDER, &listed)?,
                    finished: memory.argument(&by_key::FINISHED, &listed)?,
                })
            })
            .transpose()?;
        Ok(BackwardScratch {
            delta,
            transposed: Some(Transposed { keep, full_keep, q, full_q, order }),
            tail,
        })
    }

    /// The gradients, into `gradients`. Launches only, once the kernels are chosen: nothing is allocated and nothing waits.
    pub(in crate::attention) fn backward(
        &self,
        rule: &Rule,
        upstream: Upstream<'_>,
        lists: &MaskLists,
        density: Option<f64>,
        scratch: &mut BackwardScratch,
        gradients: &mut Gradients,
    ) -> Result<(), Error> {
        let sizes = Sizes::of(rule, upstream.q, upstream.k);
        let run = Run { pipeline: self, rule, sizes, bucket: sizes.bucket(rule, density), upstream };
        let done = run.all(&self.backward, lists, scratch, gradients);
        done.map_err(|error| advise_backward(error, rule, &sizes, density))
    }
}

/// Whether no list by key is missing.
fn has_lists_by_key(lists: &MaskLists) -> bool {
    lists.q.is_some() && (lists.full_q.is_some() || lists.full_kv.is_none())
}

/// One backward.
struct Run<'a> {
    pipeline: &'a Pipeline,
    rule: &'a Rule,
    sizes: Sizes,
    bucket: Bucket,
    upstream: Upstream<'a>,
}

impl Run<'_> {
    fn all(
        &self,
        kernels: &Backward,
        lists: &MaskLists,
        scratch: &mut BackwardScratch,
        gradients: &mut Gradients,
    ) -> Result<(), Error> {
        let BackwardScratch { delta, transposed, tail } = scratch;
        let by_key = match (transposed, &lists.q) {
            (Some(transposed), _) => {
                self.transpose(kernels, lists, transposed)?;
                let order = transposed.order.as_ref().map(|order| &order.of_keys);
                ((&transposed.q, transposed.full_q.as_ref()), order)
            }
            (None, Some(q)) => ((q, lists.full_q.as_ref()), None),
            (None, None) => unreachable!("the scratch has lists by key where the caller has none"),
        };
        let Gradients { dq, dk, dv } = gradients;
        let mut tail = kernels.tails.as_ref().zip(tail.as_mut()).zip(lists.dropped.as_ref());
        if let Some(((tails, scratch), dropped)) = &mut tail {
            let Upstream { q, k, v, .. } = self.upstream;
            let (qkv, made_here) = ([q, k, v], (None, Whole::Listed));
            self.pipeline.tail(self.rule, &self.sizes, qkv, made_here, lists, Some(&mut scratch.forward))?;
            self.of_block_tail(tails, dropped, scratch)?;
        }
        let of_tail = tail.as_ref().map(|((_, scratch), _)| &**scratch);
        self.by_query(kernels, (&lists.kv, lists.full_kv.as_ref()), of_tail, dq, delta)?;
        if let Some(((tails, scratch), _)) = &mut tail {
            self.of_row_tail(tails, delta, scratch)?;
        }
        let of_tail = tail.as_ref().map(|((_, scratch), _)| scratch.of_keys());
        self.by_key(kernels, by_key, of_tail, delta, [dk, dv])
    }

    /// The lists by key of the lists by query, and the order of the keys.
    fn transpose(
        &self,
        kernels: &Backward,
        lists: &MaskLists,
        transposed: &mut Transposed,
    ) -> Result<(), Error> {
        let mark = kernels.mark.get()?;
        let Transposed { keep, full_keep, q, full_q, order } = transposed;
        let mut order = order.as_mut();
        let kv_blocks = self.sizes.kv_blocks as i32;
        let full = lists.full_kv.as_ref().zip(full_keep.as_mut());
        for (BlockIndex { counts, indices }, keep) in [(&lists.kv, &mut *keep)].into_iter().chain(full) {
            let finished = order.as_deref_mut().map(|order| &mut order.finished);
            let args = mark::Args { kv_counts: counts, kv_indices: indices, keep, finished, kv_blocks };
            // SAFETY: lists may hold anything; all work is on one stream.
            unsafe { mark.launch_in(self.bucket, &args, None)? };
        }
        let bits = (&*keep, full_keep.as_ref());
        let order = order.map(|order| (&mut order.of_keys, &mut order.finished));
        transpose_bits(kernels.transpose.get()?, self.bucket, bits, (q, full_q), order)
    }

    /// dq and delta.
    fn by_query(
        &self,
        kernels: &Backward,
        (kv, full): Lists<'_>,
        tail: Option<&tail::Scratch>,
        dq: &mut Tensor,
        delta: &mut Tensor,
    ) -> Result<(), Error> {
        let Upstream { q, k, v, out, lse, d_out, d_lse } = self.upstream;
        let [tail_k, tail_v, tail_weights, tail_pieces] = match tail.map(|tail| &tail.forward.made) {
            Some(Made::Row(means)) => [&means.keys, &means.values, &means.weights, &means.pieces].map(Some),
            _ => [None; 4],
        };
        let args = backward_q::Args {
            q,
            k,
            v,
            out,
            d_out,
            lse,
            d_lse,
            kv_counts: &kv.counts,
            kv_indices: &kv.indices,
            full_kv_counts: full.map(|full| &full.counts),
            full_kv_indices: full.map(|full| &full.indices),
            dq_mean: tail.and_then(tail::Scratch::dq_mean),
            tail_k,
            tail_v,
            tail_weights,
            tail_pieces,
            dq,
            delta,
            scale: self.rule.scale,
        };
        // SAFETY: lists may hold anything; all work is on one stream.
        unsafe { kernels.by_query.get()?.launch_in(self.bucket, &args, Some(&self.pipeline.functions)) }
    }

    /// dk and dv, from the delta of [`Run::by_query`].
    fn by_key(
        &self,
        kernels: &Backward,
        ((by_key, full), key_order): ByKey<'_>,
        tail: Option<[&Tensor; 2]>,
        delta: &Tensor,
        [dk, dv]: [&mut Tensor; 2],
    ) -> Result<(), Error> {
        let Upstream { q, k, v, lse, d_out, .. } = self.upstream;
        let args = backward_kv::Args {
            q,
            k,
            v,
            d_out,
            lse,
            delta,
            q_counts: &by_key.counts,
            q_indices: &by_key.indices,
            full_q_counts: full.map(|full| &full.counts),
            full_q_indices: full.map(|full| &full.indices),
            key_order,
            dk_mean: tail.map(|[dk, _]| dk),
            dv_mean: tail.map(|[_, dv]| dv),
            tail_weights: None,
            tail_pieces: None,
            dk,
            dv,
            scale: self.rule.scale,
        };
        // SAFETY: lists and orders may hold anything; all work is on one stream.
        unsafe { kernels.by_key.get()?.launch_in(self.bucket, &args, Some(&self.pipeline.functions)) }
    }
}
