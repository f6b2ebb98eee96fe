//! The processor.

use super::{Call, Executor};
use crate::attention::work::{Inputs, Ranked};
use crate::attention::{MaskLists, Output};
use crate::operands::{Gradients, Shape, Upstream};
use crate::{BlockMask, Error, Tensor, cpu};

/// Computes in host memory, into tensors of its own.
pub(in crate::attention) struct Cpu;

impl Executor for Cpu {
    fn mask(&self, call: &Call<'_>, ranked: Ranked<'_>) -> Result<BlockMask, Error> {
        let &Call { rule, sizes, .. } = call;
        let (selection, mask_mod) = (rule.selection.as_ref(), rule.mask_mod.as_deref());
        match ranked {
            Ranked::Tensors { q, k } => cpu::mask(q, k, selection, rule.scale, rule.blocks, mask_mod),
            Ranked::Means { q_mean, k_mean } => {
                let means = (q_mean.to_f32_vec()?, k_mean.to_f32_vec()?);
                let (d, value_d) = (rule.head_dim.get(), rule.value_dim.get());
                let (batch, heads, kv_heads) = (sizes.batch, sizes.heads, sizes.kv_heads);
                let (seq_q, seq_kv) = (sizes.seq_q, sizes.seq_kv);
                let shape = Shape { batch, heads, kv_heads, seq_q, seq_kv, d, value_d };
                cpu::mask_of_means(&means, &shape, selection, rule.scale, rule.blocks, mask_mod)
            }
        }
    }

    fn attend(
        &self,
        call: &Call<'_>,
        Inputs { q, k, v }: Inputs<'_>,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error> {
        let rule = call.rule;
        cpu::attend(q, k, v, mask, rule.scale, rule.score_mod.as_deref(), rule.mask_mod.as_deref())
    }

    fn backward(
        &self,
        call: &Call<'_>,
        upstream: Upstream<'_>,
        mask: &BlockMask,
    ) -> Result<Gradients, Error> {
        let rule = call.rule;
        cpu::backward(upstream, mask, rule.scale, rule.score_mod.as_deref(), rule.mask_mod.as_deref())
    }

    fn forward_into(
        &self,
        call: &Call<'_>,
        inputs: Inputs<'_>,
        output: &mut Output,
        _: &mut MaskLists,
        _: &mut Tensor,
    ) -> Result<(), Error> {
        let mask = self.mask(call, Ranked::Tensors { q: inputs.q, k: inputs.k })?;
        let (out, lse) = self.attend(call, inputs, &mask)?;
        *output = Output { out, lse, mask };
        Ok(())
    }
}
