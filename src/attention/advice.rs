//! Which call it was that found nothing in the cache.

use super::{Rule, Sizes};
use crate::Error;
use crate::tune::Call;

/// Completes [`Error::CacheOnly`] with the call; other errors pass. `density`: the share of blocks kept, where it is known.
pub(super) fn advise(error: Error, rule: &Rule, sizes: &Sizes, density: Option<f64>) -> Error {
    with_call(error, rule, sizes, density, false)
}

/// As [`advise`], for a call of the backward.
pub(super) fn advise_backward(error: Error, rule: &Rule, sizes: &Sizes, density: Option<f64>) -> Error {
    with_call(error, rule, sizes, density, true)
}

fn with_call(error: Error, rule: &Rule, sizes: &Sizes, density: Option<f64>, backward: bool) -> Error {
    let Error::CacheOnly { kernel, device, what, .. } = error else { return error };
    let &Sizes { batch, heads, kv_heads, seq_q, seq_kv, .. } = sizes;
    let call = Call {
        batch,
        heads,
        kv_heads,
        seq_q,
        seq_kv,
        head_dim: rule.head_dim,
        value_dim: rule.value_dim,
        dtype: rule.dtype,
        blocks: rule.blocks,
        selection: rule.selection,
        density,
        tail: rule.tail,
        has_functions: rule.score_mod.is_some() || rule.mask_mod.is_some(),
        backward,
    };
    Error::CacheOnly { kernel, device, what, call: Some(Box::new(call)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockSize, DType, HeadDim, Tensor, top_k};

    #[test]
    fn the_call_is_that_which_missed() {
        let rule = Rule {
            head_dim: HeadDim::D128,
            value_dim: HeadDim::D64,
            dtype: DType::Bf16,
            blocks: BlockSize::default(),
            selection: Some(top_k(0.03)),
            scale: 1.0,
            score_mod: None,
            mask_mod: None,
            tail: crate::Tail::Block,
        };
        let tensor = |shape| Tensor::zeros(DType::Bf16, shape).expect("it is small");
        let sizes = Sizes::of(&rule, &tensor(&[2, 24, 4096, 128]), &tensor(&[2, 8, 512, 128]));
        let missing = || Error::CacheOnly {
            kernel: "forward".to_owned(),
            device: "H200".to_owned(),
            what: "no cubin".to_owned(),
            call: None,
        };
        for (advised, backward) in [
            (advise(missing(), &rule, &sizes, Some(0.5)), false),
            (advise_backward(missing(), &rule, &sizes, Some(0.5)), true),
        ] {
            let Error::CacheOnly { kernel, call: Some(call), .. } = advised else { panic!("{advised}") };
            assert_eq!(kernel, "forward");
            assert_eq!(
                (call.batch, call.heads, call.kv_heads, call.seq_q, call.seq_kv),
                (2, 24, 8, 4096, 512)
            );
            assert_eq!(
                (call.head_dim, call.value_dim, call.dtype),
                (HeadDim::D128, HeadDim::D64, DType::Bf16)
            );
            assert_eq!((call.selection, call.density), (Some(top_k(0.03)), Some(0.5)));
            assert_eq!((call.backward, call.has_functions), (backward, false));
            assert_eq!(call.tail, crate::Tail::Block);
        }
        assert!(matches!(advise(Error::Selects, &rule, &sizes, None), Error::Selects));
    }
}
