//! The processor.

use super::{Call, Executor};
use crate::attention::work::{Inputs, Ranked};
use crate::attention::{MaskLists, Output};
use crate::operands::{Gradients, Shape, Upstream};
use crate::{BlockMask, Error, Selection, Tensor, cpu};

/// Computes in host memory, into tensors of its own.
pub(in crate::attention) struct Cpu;

impl Executor for Cpu {
    fn mask(&self, call: &Call<'_>, ranked: Ranked<'_>) -> Result<BlockMask, Error> {
        let rule = call.rule;
        let mask = selected(call, ranked, rule.selection.as_ref())?;
        match (rule.has_tail(), rule.is_split()) {
            (false, _) => Ok(mask),
            (true, false) => mask.with_unlisted_dropped(),
            (true, true) => mask.with_admissible(&selected(call, ranked, None)?),
        }
    }

    fn attend(
        &self,
        call: &Call<'_>,
        Inputs { q, k, v }: Inputs<'_>,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error> {
        let rule = call.rule;
        let mask_mod = rule.mask_mod.as_deref();
        if rule.has_tail() {
            return cpu::attend_with_tail([q, k, v], mask, rule.scale, mask_mod, rule.tail);
        }
        cpu::attend(q, k, v, mask, rule.scale, rule.score_mod.as_deref(), mask_mod)
    }

    fn backward(
        &self,
        call: &Call<'_>,
        upstream: Upstream<'_>,
        mask: &BlockMask,
    ) -> Result<Gradients, Error> {
        let rule = call.rule;
        let mask_mod = rule.mask_mod.as_deref();
        if rule.has_tail() {
            return cpu::backward_with_tail(upstream, mask, rule.scale, mask_mod, rule.tail);
        }
        cpu::backward(upstream, mask, rule.scale, rule.score_mod.as_deref(), mask_mod)
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

/// The blocks that a selection keeps of those that the mask function admits; all of them without one.
fn selected(
    &Call { rule, sizes, .. }: &Call<'_>,
    ranked: Ranked<'_>,
    selection: Option<&Selection>,
) -> Result<BlockMask, Error> {
    let mask_mod = rule.mask_mod.as_deref();
    match ranked {
        Ranked::Tensors { q, k } => cpu::mask(q, k, selection, rule.scale, rule.blocks, mask_mod),
        Ranked::Means { q_mean, k_mean } => {
            let means = [q_mean.to_f32_vec()?, k_mean.to_f32_vec()?];
            let (d, value_d) = (rule.head_dim.get(), rule.value_dim.get());
            let (batch, heads, kv_heads) = (sizes.batch, sizes.heads, sizes.kv_heads);
            let (seq_q, seq_kv) = (sizes.seq_q, sizes.seq_kv);
            let shape = Shape { batch, heads, kv_heads, seq_q, seq_kv, d, value_d };
            cpu::mask_of_means(means, &shape, selection, rule.scale, rule.blocks, mask_mod)
        }
    }
}
