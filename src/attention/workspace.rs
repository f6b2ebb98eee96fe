//! Calls that allocate nothing: for loops, for streams of one's own and for CUDA graphs.

use super::gpu::{Ranked, Scratch};
use super::memory::{Fill, Memory};
use super::{Attention, MaskLists, Output, Rule, Sizes, is_empty};
use crate::launch::FunctionArgs;
use crate::tensor::expect_apart;
use crate::{DType, Error, Tensor};
use std::sync::Arc;

/// Memory for calls of one shape: the intermediate tensors of the selection and the output.
pub struct Workspace {
    /// Absent on the CPU, where a call makes its own.
    buffers: Option<(Scratch, MaskLists)>,
    output: Output,
    /// Shapes of q and k.
    shapes: [Vec<usize>; 2],
    /// The attention it was made for.
    rule: Arc<Rule>,
    /// Captures that a graph of calls into this workspace goes on reading.
    _functions: Vec<Arc<FunctionArgs>>,
}

impl Workspace {
    /// What the last [`Attention::forward_into`] wrote; unspecified before the first.
    pub fn output(&self) -> &Output {
        &self.output
    }
}

impl Attention {
    /// Memory for [`forward_into`](Self::forward_into) on tensors of these shapes: `out` has the width of v.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); a device error when the GPU's memory does not suffice.
    pub fn workspace(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Workspace, Error> {
        let shape = self.check(q, k, Some(v))?;
        let shapes = [q.shape().to_vec(), k.shape().to_vec()];
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| !is_empty(q, k)) else {
            let output = self.forward(q, k, v)?;
            return Ok(Workspace {
                buffers: None,
                output,
                shapes,
                rule: self.rule.clone(),
                _functions: Vec::new(),
            });
        };
        let mut memory = Memory::Device { device: &self.device, fill: Fill::Empty };
        let sizes = Sizes::of(&self.rule, q, k);
        let scratch = pipeline.scratch(&sizes, true, &mut memory)?;
        let lists = pipeline.lists(&sizes, true, &mut memory)?;
        let rows = [shape.batch, shape.heads, shape.seq_q];
        let out = [rows[0], rows[1], rows[2], self.rule.value_dim.get()];
        let output = Output {
            out: Tensor::uninit(&self.device, self.rule.dtype, &out)?,
            lse: Tensor::uninit(&self.device, DType::F32, &rows)?,
            mask: lists.share().into_mask(self.rule.blocks, (shape.seq_q, shape.seq_kv)),
        };
        let _functions = pipeline.functions();
        Ok(Workspace { buffers: Some((scratch, lists)), output, shapes, rule: self.rule.clone(), _functions })
    }

    /// As [`forward`](Self::forward), into a workspace. On a GPU it only launches: it allocates nothing, waits for
    /// nothing, and can be captured into a CUDA graph on a stream of the caller's
    /// ([`on_stream`](Self::on_stream)). Tensors and workspace must then outlive the graph.
    ///
    /// # Errors
    /// [`Error::Workspace`] for tensors of other sizes, [`Error::ForeignWorkspace`] for a workspace of another
    /// attention, [`Error::Aliased`] when q, k or v lies in the workspace; otherwise as [`forward`](Self::forward).
    pub fn forward_into<'a>(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        workspace: &'a mut Workspace,
    ) -> Result<&'a Output, Error> {
        self.check(q, k, Some(v))?;
        if !Arc::ptr_eq(&workspace.rule, &self.rule) {
            return Err(Error::ForeignWorkspace);
        }
        let Output { out, lse, .. } = &workspace.output;
        let lists = workspace.buffers.iter().flat_map(|(_, lists)| lists.named());
        expect_apart(lists.chain([("out", out), ("lse", lse)]), [("q", q), ("k", k), ("v", v)])?;
        if workspace.shapes[0] != q.shape() || workspace.shapes[1] != k.shape() {
            let text = |q: &[usize], k: &[usize]| format!("q {q:?} and k {k:?}");
            return Err(Error::Workspace {
                found: text(q.shape(), k.shape()),
                expected: text(&workspace.shapes[0], &workspace.shapes[1]),
            });
        }
        match (&self.pipeline, &mut workspace.buffers) {
            (Some(pipeline), Some((scratch, lists))) => {
                let sizes = Sizes::of(&self.rule, q, k);
                pipeline.select(&self.rule, &sizes, Ranked::Tensors(q, k), scratch, lists)?;
                let Output { out, lse, mask } = &mut workspace.output;
                let lists = (mask.kv(), mask.full_kv(), scratch.row_order());
                pipeline.attend(&self.rule, [q, k, v], lists, None, [out, lse])?;
            }
            // Over nothing, what the workspace was made with is the result: it depends on the sizes alone.
            (Some(_), None) => {}
            (None, _) => workspace.output = self.forward(q, k, v)?,
        }
        Ok(&workspace.output)
    }
}
