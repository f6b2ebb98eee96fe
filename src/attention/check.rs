//! Where the arguments of a call are looked at, before anything runs: shapes and dtypes, devices, gaps, aliases. The
//! same for calls over nothing, which launch nothing, as for others, whose kernels would see some of it.

use super::work::{Inputs, Kind, Select, Written};
use super::{Attention, MaskLists, Output, Plan, Rule, Shapes, Sizes, Workspace};
use crate::device::{CudaDevice, Device};
use crate::mask::MOST_POSITIONS;
use crate::operands::{Shape, Upstream};
use crate::tail::TailError;
use crate::tensor::{Named, TensorError, element_count, expect_apart};
use crate::{BlockIndex, BlockMask, DType, Error, HeadDimError, MaskError, Tensor};
use std::sync::Arc;

impl Rule {
    /// Sizes that tensors can have.
    pub(super) fn check_shapes(&self, shapes: &Shapes) -> Result<(), Error> {
        let &Shapes { batch, heads, kv_heads, seq_q, seq_kv } = shapes;
        if kv_heads == 0 && heads > 0 || kv_heads > 0 && !heads.is_multiple_of(kv_heads) {
            return Err(TensorError::HeadGroups { heads, kv_heads }.into());
        }
        for (heads, seq, dim) in
            [(heads, seq_q, self.head_dim), (kv_heads, seq_kv, self.head_dim), (heads, seq_q, self.value_dim)]
        {
            element_count(&[batch, heads, seq, dim.get()], self.dtype)?;
        }
        check_lengths(seq_q, seq_kv)
    }

    /// A tail stands for blocks that are known.
    fn check_dropped(&self, dropped: Option<&Tensor>) -> Result<(), Error> {
        match self.has_tail() && dropped.is_none() {
            true => Err(TailError::Unknown.into()),
            false => Ok(()),
        }
    }
}

fn check_lengths(seq_q: usize, seq_kv: usize) -> Result<(), Error> {
    match [seq_q, seq_kv].into_iter().find(|&seq| seq > MOST_POSITIONS) {
        Some(found) => Err(MaskError::TooLong { found }.into()),
        None => Ok(()),
    }
}

impl Attention {
    /// q, k and v belong together, and are tensors for this attention.
    pub(super) fn check(&self, q: &Tensor, k: &Tensor, v: Option<&Tensor>) -> Result<Shape, Error> {
        let rule = &self.rule;
        if q.dtype() != rule.dtype {
            let needed = format!("{}, which this attention was built for", rule.dtype);
            return Err(TensorError::DType { what: "q".into(), found: q.dtype(), needed }.into());
        }
        let shape = Shape::of(q, k, v)?;
        check_lengths(shape.seq_q, shape.seq_kv)?;
        self.check_head_dim(shape.d)?;
        let (found, needed) = (shape.value_d, rule.value_dim.get());
        if v.is_some() && found != needed {
            return Err(HeadDimError::ValuesDiffer { found, needed }.into());
        }
        self.check_places([("q", q), ("k", k)].into_iter().chain(v.map(|v| ("v", v))))?;
        Ok(shape)
    }

    /// The head dimension of q and k.
    pub(super) fn check_head_dim(&self, found: usize) -> Result<(), HeadDimError> {
        let needed = self.rule.head_dim.get();
        if found == needed { Ok(()) } else { Err(HeadDimError::Differs { found, needed }) }
    }

    /// What a backward reads beside q, k and v, which are of `shape`.
    pub(super) fn check_upstream(&self, upstream: &Upstream<'_>, shape: &Shape) -> Result<(), Error> {
        upstream.check(shape)?;
        let &Upstream { out, lse, d_out, d_lse, .. } = upstream;
        let given = [("out", out), ("lse", lse), ("d_out", d_out)].into_iter();
        self.check_places(given.chain(d_lse.map(|d_lse| ("d_lse", d_lse))))
    }

    /// A mask is of the attention's blocks, and for tensors of this shape.
    pub(super) fn check_mask(&self, mask: &BlockMask, shape: &Shape) -> Result<(), Error> {
        mask.check_fits(shape.batch, shape.heads, shape.seq_q, shape.seq_kv)?;
        mask.check_blocks(self.rule.blocks)?;
        self.rule.check_dropped(mask.dropped())
    }

    /// Tensors are where the attention runs.
    pub(super) fn check_places<'a>(&self, tensors: impl IntoIterator<Item = Named<'a>>) -> Result<(), Error> {
        Ok(tensors.into_iter().try_for_each(|(what, tensor)| tensor.expect_place(what, &self.device))?)
    }
}

impl Plan {
    /// q, k and v are of the plan's shapes.
    pub(super) fn check(&self, q: &Tensor, k: &Tensor, v: Option<&Tensor>) -> Result<Shape, Error> {
        let shape = self.attention.check(q, k, v)?;
        let (found, expected) = (Shapes::from(shape), self.shapes());
        match found == expected {
            true => Ok(shape),
            false => Err(Error::Plan { found: found.to_string(), expected: expected.to_string() }),
        }
    }

    /// A workspace is of this attention and these shapes, and holds none of what is read.
    pub(super) fn check_workspace(
        &self,
        Inputs { q, k, v }: Inputs<'_>,
        workspace: &Workspace,
    ) -> Result<(), Error> {
        let Workspace { output: Output { out, lse, .. }, lists, scratch, shapes, rule, .. } = workspace;
        if !Arc::ptr_eq(rule, &self.attention.rule) {
            return Err(Error::ForeignWorkspace);
        }
        if *shapes != self.shapes() {
            let (found, expected) = (self.shapes().to_string(), shapes.to_string());
            return Err(Error::Workspace { found, expected });
        }
        let written = lists.named().chain([("out", out), ("lse", lse), ("scratch", scratch)]);
        expect_apart(written, [("q", q), ("k", k), ("v", v)])
    }

    /// Everything that work in memory of the caller's takes: gives the GPU that it runs on.
    pub(super) fn check_work(&self, work: &Kind<'_>, scratch: &Tensor) -> Result<&CudaDevice, Error> {
        let (q, k, v) = work.qkv();
        let shape = self.check(q, k, v)?;
        let cuda = self.call().cuda()?;
        self.check_others(work, &shape, scratch)?;
        Ok(cuda)
    }

    /// What work takes beside q, k and v, which are of `shape`.
    fn check_others(&self, work: &Kind<'_>, shape: &Shape, scratch: &Tensor) -> Result<(), Error> {
        let Attention { device, rule, .. } = &self.attention;
        match work {
            Kind::Forward { .. } => {}
            Kind::Attend(attend) => rule.check_dropped(attend.lists.dropped.as_ref())?,
            Kind::Select(Select { lists, .. }) => lists.check_kind(rule)?,
            Kind::Backward(backward) => {
                self.attention.check_upstream(&backward.upstream(), shape)?;
                backward.lists.check_ranks()?;
                rule.check_dropped(backward.lists.dropped.as_ref())?;
            }
        }
        let written = work.written(rule, &self.sizes);
        written.iter().try_for_each(|written| written.check(device))?;
        written.iter().try_for_each(|written| check_dense(written.what, written.tensor))?;
        scratch.expect_place("scratch", device)?;
        let written = written.iter().map(|written| (written.what, written.tensor));
        expect_apart(written.chain([("scratch", scratch)]), work.read())
    }
}

impl Written<'_> {
    fn check(&self, device: &Device) -> Result<(), Error> {
        let &Written { what, tensor, dtype, ref shape } = self;
        tensor.expect_dtype(what, dtype)?;
        if tensor.shape() != shape.as_slice() {
            let (found, needed) = (tensor.shape().to_vec(), shape.to_vec());
            return Err(TensorError::Shape { what, found, needed }.into());
        }
        Ok(tensor.expect_place(what, device)?)
    }
}

fn check_dense(what: &'static str, tensor: &Tensor) -> Result<(), Error> {
    if tensor.is_dense() {
        return Ok(());
    }
    let (strides, shape) = (tensor.strides().to_vec(), tensor.shape().to_vec());
    Err(Error::Gaps { what, strides, shape })
}

impl MaskLists {
    /// Lists of full blocks are there where a mask function tells such blocks apart.
    fn check_kind(&self, rule: &Rule) -> Result<(), Error> {
        let split = rule.is_split();
        if self.dropped.is_some() != rule.has_tail() {
            let found = match rule.has_tail() {
                true => "the attention has a tail, and there is no room for the bits of dropped blocks",
                false => "the attention has no tail, and there is room for the bits of dropped blocks",
            };
            return Err(Error::Lists { found });
        }
        if self.full_kv.is_some() == split && self.full_q.is_some() == (split && self.q.is_some()) {
            return Ok(());
        }
        let found = match split {
            true => "the attention has a mask function, and lists of full blocks are missing",
            false => "the attention has no mask function, and there are lists of full blocks",
        };
        Err(Error::Lists { found })
    }

    /// What the scratch of a backward is made by, before the kernels' bindings look at the rest.
    pub(super) fn check_ranks(&self) -> Result<(), Error> {
        for (what, index) in [("kv_indices", Some(&self.kv)), ("full_kv_indices", self.full_kv.as_ref())] {
            let Some(shape) = index.map(|index| index.indices.shape()).filter(|shape| shape.len() != 4)
            else {
                continue;
            };
            let needed = "four dimensions: batch, heads, rows and width".to_owned();
            return Err(MaskError::ListShape { what, found: shape.to_vec(), needed }.into());
        }
        Ok(())
    }

    /// Lists by query that a call over nothing would read: where there is something, the kernels' bindings say as much.
    pub(super) fn check_unread(&self, device: &Device, sizes: &Sizes) -> Result<(), Error> {
        let (batch, heads, rows) = (sizes.batch, sizes.heads, sizes.q_blocks);
        if let Some(dropped) = &self.dropped {
            dropped.expect_dtype("dropped", DType::I32)?;
            dropped.expect_place("dropped", device)?;
        }
        for (names, index) in [
            (["kv_counts", "kv_indices"], Some(&self.kv)),
            (["full_kv_counts", "full_kv_indices"], self.full_kv.as_ref()),
        ] {
            let Some(BlockIndex { counts, indices }) = index else { continue };
            for (what, list, width) in [(names[0], counts, ""), (names[1], indices, ", width")] {
                list.expect_dtype(what, DType::I32)?;
                list.expect_place(what, device)?;
                let (rank, shape) = (if width.is_empty() { 3 } else { 4 }, list.shape());
                let fits = shape.len() == rank
                    && [1, batch].contains(&shape[0])
                    && [1, heads].contains(&shape[1])
                    && shape[2] == rows;
                if !fits {
                    let needed = format!("[{batch} or 1, {heads} or 1, {rows}{width}]");
                    return Err(MaskError::ListShape { what, found: list.shape().to_vec(), needed }.into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
