//! What `{:?}` prints of an attention: its rule and where it runs. Functions show their names.

use super::{Attention, Plan, Workspace};
use crate::{MaskMod, ScoreMod};
use std::fmt;

impl fmt::Debug for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attention")
            .field("rule", &self.rule)
            .field("device", &format_args!("{}", self.device))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("attention", &self.attention)
            .field("shapes", &self.shapes())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace").field("output", self.output()).finish_non_exhaustive()
    }
}

impl fmt::Debug for dyn ScoreMod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for dyn MaskMod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use crate::attention::Shapes;
    use crate::{Attention, DType, Device, HeadDim, Tensor, mask_mod, top_k};

    #[mask_mod]
    fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
        kv <= q
    }

    #[test]
    fn an_attention_shows_its_rule() {
        let builder = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.25)).mask_mod(causal {});
        let text = format!("{builder:?}");
        assert!(text.contains("mask_mod: Some(causal)") && text.contains("dtype: Bf16"), "{text}");
        let attention = builder.build(&Device::cpu()).unwrap();
        let text = format!("{attention:?}");
        assert!(text.contains("mask_mod: Some(causal)") && text.contains("device: CPU"), "{text}");
    }

    #[test]
    fn what_holds_results_prints_little_of_them() {
        let x = Tensor::zeros(DType::Bf16, &[1, 2, 500, 64]).unwrap();
        let attention =
            Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.1)).build(&Device::cpu()).unwrap();
        let workspace = attention.plan(Shapes::of(&x, &x).unwrap()).unwrap().workspace().unwrap();
        for text in [
            format!("{workspace:?}"),
            format!("{:?}", attention.backward(&x, &x, &x, workspace.output(), &x, None)),
        ] {
            assert!(text.contains("[1, 2, 500, 64]") && text.len() < 4000, "{} bytes", text.len());
        }
    }
}
