//! What to do about a kernel that is missing where nothing may be compiled.

use super::{Rule, Sizes};
use crate::Error;
use std::fmt::Write;

/// Completes [`Error::CacheOnly`] with the command that fills the cache for this very call; other errors pass. `density`: the
/// share of blocks kept, where it is known.
pub(super) fn advise(error: Error, rule: &Rule, sizes: &Sizes, density: Option<f64>) -> Error {
    with_command(error, || tune_command(rule, sizes, density))
}

/// As [`advise`], for a call of the backward.
pub(super) fn advise_backward(error: Error, rule: &Rule, sizes: &Sizes, density: Option<f64>) -> Error {
    with_command(error, || Some(tune_command(rule, sizes, density)? + " --backward"))
}

/// `command`: nothing where `tilewright tune` cannot make such a call.
fn with_command(error: Error, command: impl FnOnce() -> Option<String>) -> Error {
    match error {
        Error::CacheOnly { kernel, device, what, .. } => {
            let program = || "your program itself, run once with TILEWRIGHT_POLICY=tune".to_owned();
            Error::CacheOnly { kernel, device, what, command: command().unwrap_or_else(program) }
        }
        other => other,
    }
}

/// Nothing for functions of the program's own, and for masks sparser than the command makes them.
fn tune_command(rule: &Rule, sizes: &Sizes, density: Option<f64>) -> Option<String> {
    // The command's masks keep a block of every row at least.
    let is_sparser = density.is_some_and(|density| density * (sizes.kv_blocks as f64) < 1.0);
    if rule.score_mod.is_some() || rule.mask_mod.is_some() || is_sparser {
        return None;
    }
    let &Sizes { batch, heads, kv_heads, seq_q, seq_kv, head_dim, .. } = sizes;
    let mut text = "tilewright tune --shapes ".to_owned();
    if batch != 1 {
        let _ = write!(text, "{batch}x");
    }
    let _ = write!(text, "{heads}");
    if kv_heads != heads {
        let _ = write!(text, "/{kv_heads}");
    }
    let _ = write!(text, "x{seq_q}");
    if seq_kv != seq_q {
        let _ = write!(text, ":{seq_kv}");
    }
    let (block_q, block_kv) = (rule.blocks.q(), rule.blocks.kv());
    let _ = write!(text, "x{head_dim}");
    if rule.value_dim != rule.head_dim {
        let _ = write!(text, "/{}", rule.value_dim);
    }
    let _ = write!(text, " --dtype {} --block {block_q}x{block_kv}", rule.dtype);
    // Without a selection every block counts as kept where the mask's density is not known.
    let (k, p) = rule.selection.map_or((Some(1.0), None), |selection| (selection.k(), selection.p()));
    for (option, share) in [("--top-k", k), ("--top-p", p), ("--density", density)] {
        if let Some(share) = share {
            let _ = write!(text, " {option} {share}");
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockSize, DType, HeadDim, Tensor, top_k, top_p};

    #[test]
    fn the_command_is_for_the_very_call() {
        let mut rule = Rule {
            head_dim: HeadDim::D128,
            value_dim: HeadDim::D128,
            dtype: DType::Bf16,
            blocks: BlockSize::default(),
            selection: Some(top_k(0.03) | top_p(0.2)),
            scale: 1.0,
            score_mod: None,
            mask_mod: None,
        };
        let sizes = |rule: &Rule, q: &[usize], k: &[usize]| {
            let tensor = |shape| Tensor::zeros(DType::Bf16, shape).expect("it is small");
            Sizes::of(rule, &tensor(q), &tensor(k))
        };
        let square = sizes(&rule, &[1, 12, 32_760, 128], &[1, 12, 32_760, 128]);
        let selected =
            "tilewright tune --shapes 12x32760x128 --dtype bf16 --block 128x64 --top-k 0.03 --top-p 0.2";
        assert_eq!(tune_command(&rule, &square, None).as_deref(), Some(selected));
        assert_eq!(tune_command(&rule, &square, Some(0.125)), Some(format!("{selected} --density 0.125")));
        // Less than a block of each row.
        assert_eq!(tune_command(&rule, &square, Some(0.001)), None);
        let missing = Error::CacheOnly {
            kernel: String::new(),
            device: String::new(),
            what: String::new(),
            command: String::new(),
        };
        let advice = advise_backward(missing, &rule, &square, Some(0.001)).to_string();
        assert!(advice.contains("your program itself, run once with TILEWRIGHT_POLICY=tune"), "{advice}");
        rule.selection = None;
        let cross = sizes(&rule, &[2, 24, 4096, 128], &[2, 8, 512, 128]);
        let dense = "tilewright tune --shapes 2x24/8x4096:512x128 --dtype bf16 --block 128x64 --top-k 1";
        assert_eq!(tune_command(&rule, &cross, None).as_deref(), Some(dense));
        assert_eq!(tune_command(&rule, &cross, Some(0.5)), Some(format!("{dense} --density 0.5")));
    }
}
