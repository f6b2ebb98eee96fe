//! The chain of kernels as an executor of plans.

use super::Pipeline;
use super::tail::Whole;
use crate::attention::executor::{Call, Executor};
use crate::attention::memory::{Fill, Memory};
use crate::attention::work::{Attend, Backward, Forward, Inputs, Kind, Ranked, Select, Step};
use crate::attention::{MaskLists, Output};
use crate::device::Device;
use crate::launch::Tuned;
use crate::operands::{Gradients, Upstream};
use crate::tensor::Arena;
use crate::tune::Bucket;
use crate::{BlockMask, DType, Error, Tensor};
use std::ffi::c_void;
use std::sync::Arc;

impl Executor for Pipeline {
    fn mask(&self, call: &Call<'_>, ranked: Ranked<'_>) -> Result<BlockMask, Error> {
        let &Call { device, rule, sizes, .. } = call;
        let mut memory = Memory::Device { device, fill: Fill::Anything };
        let of_tensors = matches!(ranked, Ranked::Tensors { .. });
        let mut scratch = self.scratch(rule, sizes, of_tensors, &mut memory)?;
        let mut lists = MaskLists::make(rule, sizes, true, &mut memory)?;
        self.select(rule, sizes, ranked, &mut scratch, &mut lists)?;
        Ok(lists.into_mask(rule, sizes).with_row_order(scratch.row_order().cloned()))
    }

    fn attend(
        &self,
        call: &Call<'_>,
        Inputs { q, k, v }: Inputs<'_>,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error> {
        let &Call { device, rule, sizes, density } = call;
        let rows = &q.shape()[..3];
        let mut out = Tensor::uninit(device, rule.dtype, &[rows, &v.shape()[3..]].concat())?;
        let mut lse = Tensor::uninit(device, DType::F32, rows)?;
        let (kv, full_kv) = (mask.kv(), mask.full_kv());
        let mut made = None;
        if mask.lacks_row_order() {
            let mut memory = Memory::Device { device, fill: Fill::Anything };
            made = self.ordered(rule, sizes, (kv, full_kv), &mut memory)?;
        }
        let mut tail = None;
        if rule.has_tail() {
            let mut memory = Memory::Device { device, fill: Fill::Anything };
            let lists = MaskLists::from(mask);
            tail = self.tail_scratch(rule, sizes, &lists, false, &mut memory)?;
            self.tail(rule, sizes, [q, k, v], (None, Whole::Listed), &lists, tail.as_mut())?;
        }
        let lists = (kv, full_kv, mask.row_order().or(made.as_ref()));
        let tail = tail.as_ref().map(|tail| &tail.made);
        Pipeline::attend(self, rule, [q, k, v], lists, tail, density, [&mut out, &mut lse])?;
        Ok((out, lse))
    }

    fn backward(
        &self,
        call: &Call<'_>,
        upstream: Upstream<'_>,
        mask: &BlockMask,
    ) -> Result<Gradients, Error> {
        let &Call { device, rule, sizes, density } = call;
        let mut memory = Memory::Device { device, fill: Fill::Anything };
        let lists = MaskLists::from(mask);
        let mut scratch = self.backward_scratch(rule, sizes, &lists, &mut memory)?;
        let mut made = |like: &Tensor| memory.tensor(like.dtype(), like.shape());
        let mut gradients = Gradients { dq: made(upstream.q)?, dk: made(upstream.k)?, dv: made(upstream.v)? };
        Pipeline::backward(self, rule, upstream, &lists, density, &mut scratch, &mut gradients)?;
        Ok(gradients)
    }

    fn forward_into(
        &self,
        call: &Call<'_>,
        Inputs { q, k, v }: Inputs<'_>,
        Output { out, lse, .. }: &mut Output,
        lists: &mut MaskLists,
        scratch: &mut Tensor,
    ) -> Result<(), Error> {
        let forward = Forward { q, k, v, out, lse };
        self.run(call, Kind::Forward { forward, lists: Some(lists) }, scratch)
    }

    fn run(&self, call: &Call<'_>, work: Kind<'_>, scratch: &mut Tensor) -> Result<(), Error> {
        let &Call { rule, sizes, density, .. } = call;
        let mut arena = arena(scratch)?;
        let memory = &mut Memory::Arena(&mut arena);
        match work {
            Kind::Forward { forward: Forward { q, k, v, out, lse }, lists } => {
                let mut work = self.scratch(rule, sizes, true, memory)?;
                let mut made = None;
                let lists = match lists {
                    Some(lists) => lists,
                    None => made.insert(MaskLists::make(rule, sizes, false, memory)?),
                };
                let mut tail = self.tail_scratch(rule, sizes, lists, work.means().is_some(), memory)?;
                self.select(rule, sizes, Ranked::Tensors { q, k }, &mut work, lists)?;
                let of_selection = (work.means(), work.whole());
                self.tail(rule, sizes, [q, k, v], of_selection, lists, tail.as_mut())?;
                let lists = (&lists.kv, lists.full_kv.as_ref(), work.row_order());
                let tail = tail.as_ref().map(|tail| &tail.made);
                Pipeline::attend(self, rule, [q, k, v], lists, tail, density, [out, lse])
            }
            Kind::Select(Select { q, k, lists }) => {
                let mut work = self.scratch(rule, sizes, true, memory)?;
                self.select(rule, sizes, Ranked::Tensors { q, k }, &mut work, lists)
            }
            Kind::Attend(Attend { q, k, v, lists, out, lse }) => {
                let MaskLists { kv, full_kv, .. } = lists;
                let full_kv = full_kv.as_ref();
                let order = self.ordered(rule, sizes, (kv, full_kv), memory)?;
                let mut tail = self.tail_scratch(rule, sizes, lists, false, memory)?;
                self.tail(rule, sizes, [q, k, v], (None, Whole::Listed), lists, tail.as_mut())?;
                let lists = (kv, full_kv, order.as_ref());
                let tail = tail.as_ref().map(|tail| &tail.made);
                Pipeline::attend(self, rule, [q, k, v], lists, tail, density, [out, lse])
            }
            Kind::Backward(Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients }) => {
                let upstream = Upstream { q, k, v, out, lse, d_out, d_lse };
                let mut work = self.backward_scratch(rule, sizes, lists, memory)?;
                Pipeline::backward(self, rule, upstream, lists, density, &mut work, gradients)
            }
        }
    }

    fn scratch_bytes(&self, call: &Call<'_>, step: Step<'_>) -> Result<usize, Error> {
        let &Call { rule, sizes, .. } = call;
        let mut arena = Arena::to_measure();
        let memory = &mut Memory::Arena(&mut arena);
        match step {
            Step::Forward => {
                let work = self.scratch(rule, sizes, true, memory)?;
                let lists = MaskLists::make(rule, sizes, false, memory)?;
                self.tail_scratch(rule, sizes, &lists, work.means().is_some(), memory)?;
            }
            Step::Select { .. } => drop(self.scratch(rule, sizes, true, memory)?),
            // Often there is nothing to make.
            Step::Attend(lists) => {
                let order = self.row_order(sizes, &lists.kv, memory)?;
                let tail = self.tail_scratch(rule, sizes, lists, false, memory)?;
                return Ok(if order.is_none() && tail.is_none() { 0 } else { arena.needed() });
            }
            Step::Backward(lists) => {
                lists.check_ranks()?;
                self.backward_scratch(rule, sizes, lists, memory)?;
            }
        }
        Ok(arena.needed())
    }

    fn is_warm(&self, call: &Call<'_>, step: Step<'_>) -> bool {
        let &Call { rule, sizes, density, .. } = call;
        let (selected, attended) = (sizes.bucket(rule, None), sizes.bucket(rule, density));
        // Lists that a mask function has no full blocks in say nothing of which are whole.
        let marks = |lists: &MaskLists| !rule.is_split() || lists.full_kv.is_some();
        let tail = |of| self.tails.as_ref().is_none_or(|tails| tails.knows(of, selected));
        match step {
            Step::Forward => {
                let ranked = rule.selection.is_some();
                self.selector.knows((rule, sizes), selected, false)
                    && self.forward.knows(attended)
                    && tail((ranked, true))
            }
            Step::Select { by_key } => self.selector.knows((rule, sizes), selected, by_key),
            Step::Attend(lists) => {
                let of_lists = tail((false, marks(lists)));
                self.forward.knows(attended) && self.knows_order(sizes, selected) && of_lists
            }
            Step::Backward(lists) => self.backward.knows(lists, attended) && tail((false, marks(lists))),
        }
    }

    fn stages(&self, call: &Call<'_>) -> Vec<(&Tuned, Bucket)> {
        let &Call { rule, sizes, density, .. } = call;
        let (selected, attended) = (sizes.bucket(rule, None), sizes.bucket(rule, density));
        let order = self.order.known().filter(|_| self.orders_rows(sizes));
        let tail = self.tails.iter().flat_map(|tails| tails.stages());
        let before =
            self.selector.stages(rule, sizes).chain(order).chain(tail).map(|stage| (stage, selected));
        let after = [&self.forward].into_iter().chain(self.backward.stages());
        before.chain(after.map(|stage| (stage, attended))).collect()
    }

    unsafe fn on_stream(&self, stream: *mut c_void) -> Result<(Device, Arc<dyn Executor>), Error> {
        // SAFETY: the caller answers for the stream.
        let cuda = unsafe { self.device.on_stream(stream) };
        Ok((Device::Cuda(cuda.clone()), Arc::new(self.on(&cuda))))
    }
}

/// The scratch, as long as its kernels are put on the stream.
fn arena(scratch: &Tensor) -> Result<Arena, Error> {
    let found = scratch.elements() * scratch.dtype().size();
    Arena::of(scratch)?.filter(|_| scratch.is_contiguous()).ok_or(Error::Scratch { found })
}
