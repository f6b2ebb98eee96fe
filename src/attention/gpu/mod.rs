//! The chain of kernels on a GPU: (classify) → pool → (score_partial) → rank → (transpose) → forward, or (order) → forward over lists of a caller's.
//! With a tail, what stands for dropped blocks is made before the forward.
//! Nothing goes to the host.

mod backward;
mod executor;
mod parts;
mod ranking;
mod selection;
mod tail;

use selection::Scratch;

use super::advice::advise;
use super::memory::Memory;
use super::work::Ranked;
use super::{MaskLists, Rule, Sizes};
use crate::codegen::lower::{DeviceFunction, FunctionKind};
use crate::device::CudaDevice;
use crate::kernels::{classify, forward, order};
use crate::launch::{Function, FunctionArgs, Lazy, Request, Tuned};
use crate::tail::Tail;
use crate::tune::{Bucket, Policy};
use crate::{BlockIndex, DType, DeviceFn, Error, Tensor};
use backward::Backward;
use parts::Call;
use selection::Selector;
use std::sync::Arc;
use tail::{Made, Means, TailScratch, Tails, Whole};

/// The kernels of the chain, each with its tuning space, and the functions' captures.
#[derive(Clone)]
pub(super) struct Pipeline {
    device: CudaDevice,
    selector: Selector,
    /// For masks that come without an order of their rows.
    order: Lazy,
    forward: Tuned,
    functions: Arc<FunctionArgs>,
    /// Absent without a tail.
    tails: Option<Tails>,
    backward: Backward,
}

impl Pipeline {
    /// Prepares the tuning space of every kernel the rule needs. What is compiled is decided at the first call.
    pub(super) fn new(cuda: &CudaDevice, rule: &Rule, policy: Policy) -> Result<Self, Error> {
        let score_fn = rule.score_mod.clone().map(Function::Score);
        let mask_fn = rule.mask_mod.clone().map(Function::Mask);
        let score_mod = parse(FunctionKind::ScoreMod, rule.score_mod.as_deref().map(|f| f as &dyn DeviceFn))?;
        let mask_mod = parse(FunctionKind::MaskMod, rule.mask_mod.as_deref().map(|f| f as &dyn DeviceFn))?;
        let (block_q, block_kv) = (rule.blocks.q() as i64, rule.blocks.kv() as i64);
        let tuned = |request: Request| Tuned::with_policy(cuda, &request, policy);
        let lazy = |request: Request| Lazy::new(cuda, request, policy);
        let [d, d_v] = rule.head_dim.tiles(rule.value_dim).map(|tile| tile as i64);
        let forward = tuned(
            Request::new(&forward::SOURCE)
                .value("T", rule.dtype)
                .value("D", d)
                .value("D_V", d_v)
                .value("BLOCK_Q", block_q)
                .value("BLOCK_KV", block_kv)
                .value("TAIL", tail_value(rule.tail))
                .function("score_mod", score_mod.as_ref())
                .function("mask_mod", mask_mod.as_ref()),
        )?;
        let classify = match &mask_fn {
            Some(_) => {
                let request =
                    Request::new(&classify::SOURCE).value("BLOCK_Q", block_q).value("BLOCK_KV", block_kv);
                let kernel = tuned(request.function("mask_mod", mask_mod.as_ref()))?;
                let args = FunctionArgs::new(cuda, kernel.spec(), std::slice::from_ref(&mask_fn))?;
                Some((kernel, Arc::new(args)))
            }
            None => None,
        };
        let functions = Arc::new(FunctionArgs::new(cuda, forward.spec(), &[score_fn, mask_fn])?);
        Ok(Pipeline {
            device: cuda.clone(),
            selector: Selector::new(cuda, rule, classify, mask_mod.as_ref(), &lazy),
            order: lazy(Request::new(&order::SOURCE)),
            forward,
            functions,
            tails: Tails::new(cuda, rule, &lazy)?,
            backward: Backward::new(rule, score_mod.as_ref(), mask_mod.as_ref(), &lazy),
        })
    }

    /// The same chain on another stream of the same GPU.
    fn on(&self, cuda: &CudaDevice) -> Self {
        Pipeline {
            device: cuda.clone(),
            selector: self.selector.on(cuda),
            order: self.order.on(cuda),
            forward: self.forward.on(cuda),
            functions: self.functions.clone(),
            tails: self.tails.as_ref().map(|tails| tails.on(cuda)),
            backward: self.backward.on(cuda),
        }
    }

    /// Room for what the selection works in; `means`: for the block means too.
    pub(super) fn scratch(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        means: bool,
        memory: &mut Memory<'_>,
    ) -> Result<Scratch, Error> {
        self.selector.scratch(rule, sizes, means, memory)
    }

    /// Whether the kernel that puts the rows of lists in order is chosen, where such an order pays.
    fn knows_order(&self, sizes: &Sizes, bucket: Bucket) -> bool {
        !self.orders_rows(sizes) || self.order.known().is_some_and(|kernel| kernel.knows(bucket))
    }

    /// Whether rows of uneven length are worth an order, which the forward's declaration says.
    fn orders_rows(&self, sizes: &Sizes) -> bool {
        self.forward.is_worth("row_order", &sizes.dims())
    }

    /// Room for the order of the rows of lists that come without one, where it pays. One list for all heads has one order.
    pub(super) fn row_order(
        &self,
        sizes: &Sizes,
        kv: &BlockIndex,
        memory: &mut Memory<'_>,
    ) -> Result<Option<Tensor>, Error> {
        // What the shape of lists must be, the kernels' bindings say.
        self.orders_rows(sizes).then(|| memory.tensor(DType::I32, kv.counts.shape())).transpose()
    }

    /// The query blocks of each head by falling length of their lists, where such an order pays.
    pub(super) fn ordered(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        (kv, full_kv): (&BlockIndex, Option<&BlockIndex>),
        memory: &mut Memory<'_>,
    ) -> Result<Option<Tensor>, Error> {
        let Some(mut row_order) = self.row_order(sizes, kv, memory)? else { return Ok(None) };
        let (kernel, bucket) = (self.order.get()?, sizes.bucket(rule, None));
        let args = order::Args {
            counts: &kv.counts,
            full_counts: full_kv.map(|full| &full.counts),
            row_order: &mut row_order,
            longest: sizes.kv_blocks as i32,
        };
        // SAFETY: any counts will do, and any longest; all work is on one stream.
        let launched = unsafe { kernel.launch_in(bucket, &args, None) };
        launched.map_err(|error| advise(error, rule, sizes, None))?;
        Ok(Some(row_order))
    }

    /// Fills `lists`. Launches only, once the kernels are chosen: nothing is allocated and nothing waits.
    pub(super) fn select(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        ranked: Ranked<'_>,
        scratch: &mut Scratch,
        lists: &mut MaskLists,
    ) -> Result<(), Error> {
        let selected = self.selector.run(rule, sizes, ranked, scratch, lists);
        selected.map_err(|error| advise(error, rule, sizes, None))
    }

    /// Room for what stands for the blocks that `lists` drop, where there is a tail. `selected`: whether the same call selects them, by means that
    /// it makes.
    pub(super) fn tail_scratch(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        lists: &MaskLists,
        selected: bool,
        memory: &mut Memory<'_>,
    ) -> Result<Option<TailScratch>, Error> {
        self.tails.as_ref().map(|tails| tails.scratch(rule, sizes, lists, selected, memory)).transpose()
    }

    /// Makes what stands for the blocks that `lists` drop, where there is a tail: see [`Tails::run`].
    pub(super) fn tail(
        &self,
        rule: &Rule,
        sizes: &Sizes,
        qkv: [&Tensor; 3],
        (means, whole): (Option<[&Tensor; 2]>, Whole<'_>),
        lists: &MaskLists,
        scratch: Option<&mut TailScratch>,
    ) -> Result<(), Error> {
        let (Some(tails), Some(scratch)) = (&self.tails, scratch) else { return Ok(()) };
        let made = tails.run(&Call { rule, sizes }, qkv, means, whole, lists, scratch);
        made.map_err(|error| advise(error, rule, sizes, None))
    }

    /// Attention over the kept blocks, into `out` and `lse`. `row_order`: the order in which each head's query blocks are begun;
    /// `density`: the share of blocks kept, where it is known.
    pub(super) fn attend(
        &self,
        rule: &Rule,
        [q, k, v]: [&Tensor; 3],
        (kv, full_kv, row_order): (&BlockIndex, Option<&BlockIndex>, Option<&Tensor>),
        tail: Option<&Made>,
        density: Option<f64>,
        [out, lse]: [&mut Tensor; 2],
    ) -> Result<(), Error> {
        let sizes = Sizes::of(rule, q, k);
        let bucket = sizes.bucket(rule, density);
        let [value, value_lse, keys, values, weights, pieces] = match tail {
            None => [None; 6],
            Some(Made::Block(value)) => [Some(&value.out), Some(&value.lse), None, None, None, None],
            Some(Made::Row(means)) => {
                let Means { keys, values, weights, pieces } = &**means;
                [None, None, Some(keys), Some(values), Some(weights), Some(pieces)]
            }
        };
        let args = forward::Args {
            q,
            k,
            v,
            kv_counts: &kv.counts,
            kv_indices: &kv.indices,
            full_kv_counts: full_kv.map(|full| &full.counts),
            full_kv_indices: full_kv.map(|full| &full.indices),
            row_order,
            tail_out: value,
            tail_lse: value_lse,
            tail_k: keys,
            tail_v: values,
            tail_weights: weights,
            tail_pieces: pieces,
            out,
            lse,
            scale: rule.scale,
        };
        // SAFETY: lists and orders may hold anything; all work is on one stream.
        let launched = unsafe { self.forward.launch_in(bucket, &args, Some(&self.functions)) };
        launched.map_err(|error| advise(error, rule, &sizes, density))
    }
}

/// TAIL of the forward.
fn tail_value(tail: Tail) -> i64 {
    match tail {
        Tail::None => forward::TAIL_NONE,
        Tail::Block => forward::TAIL_BLOCK,
        Tail::Row { .. } => forward::TAIL_ROW,
    }
}

fn parse(kind: FunctionKind, function: Option<&dyn DeviceFn>) -> Result<Option<Arc<DeviceFunction>>, Error> {
    let Some(function) = function else { return Ok(None) };
    DeviceFunction::from_source(kind, function.source())
        .map(|parsed| Some(Arc::new(parsed)))
        .map_err(|error| Error::Function { name: function.name().to_owned(), message: error.to_string() })
}
