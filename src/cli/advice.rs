//! What to type about a failure: the library says what is missing, and knows nothing of the command.

use super::args::describe_tail;
use super::error::CliError;
use std::fmt::Write;
use tilewright::bundle::{BundleError, Refusal};
use tilewright::compile::CompileError;
use tilewright::launch::BindError;
use tilewright::toolchain::ToolchainError;
use tilewright::tune::Call;
use tilewright::{Error, Scores};

impl CliError {
    /// What people are told: the error, and what to type about it.
    pub fn told(&self) -> String {
        match advice(self) {
            Some(advice) => format!("{self}\n{advice}"),
            None => self.to_string(),
        }
    }
}

/// A sentence with the command line that helps, where there is one.
fn advice(error: &CliError) -> Option<String> {
    match error {
        CliError::Layer { source, .. } => advice(source),
        CliError::Library(error) => of_library(error),
        CliError::Toolchain(error) => of_toolchain(error),
        CliError::Bundle(error) => of_bundle(error).map(str::to_owned),
        _ => None,
    }
}

fn of_library(error: &Error) -> Option<String> {
    match error {
        Error::CacheOnly { call: Some(call), .. } => {
            Some(format!("`{}` makes such a call.", tune_command(call)?))
        }
        Error::Toolchain(error) => of_toolchain(error),
        Error::Bind(BindError::Names { .. }) => Some(
            "`--dims` has the extents, `--scalars` the scalars, `--inputs` tensors: `tilewright tune --help` explains them."
                .to_owned(),
        ),
        Error::Compile(CompileError::UnsupportedArch { is_newer: true, .. }) => {
            Some(format!("{INSTALL} a newer one."))
        }
        _ => None,
    }
}

const INSTALL: &str = "`tilewright toolchain install` brings";

/// The same for a search that found no NVRTC.
pub fn of_toolchain(error: &ToolchainError) -> Option<String> {
    matches!(error, ToolchainError::NotFound { .. }).then(|| format!("{INSTALL} it."))
}

fn of_bundle(error: &BundleError) -> Option<&'static str> {
    Some(match error {
        BundleError::Open { .. } | BundleError::Refused { refusal: Refusal::NoManifest { .. }, .. } => {
            "`tilewright export` writes bundles."
        }
        BundleError::Empty { .. } => {
            "`tilewright tune` fills the cache, and `tilewright compile --bundle` needs none."
        }
        BundleError::TooMuch { .. } | BundleError::OverLimit { .. } => {
            "`tilewright export --arch` takes one architecture."
        }
        _ => return None,
    })
}

/// The line of `tilewright tune` that makes such a call. None for functions of a program's own, and for masks sparser than the
/// command makes them, which keep a block of every row at least.
pub fn tune_command(call: &Call) -> Option<String> {
    let &Call { batch, heads, kv_heads, seq_q, seq_kv, head_dim, value_dim, dtype, blocks, .. } = call;
    let kv_blocks = seq_kv.div_ceil(blocks.kv());
    let is_sparser = call.density.is_some_and(|density| density * (kv_blocks as f64) < 1.0);
    if call.has_functions || is_sparser {
        return None;
    }
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
    let _ = write!(text, "x{head_dim}");
    if value_dim != head_dim {
        let _ = write!(text, "/{value_dim}");
    }
    let _ = write!(text, " --dtype {dtype} --block {}x{}", blocks.q(), blocks.kv());
    // Without a selection every block counts as kept where the mask's density is not known.
    let (k, p) = call.selection.map_or((Some(1.0), None), |selection| (selection.k(), selection.p()));
    for (option, share) in [("--top-k", k), ("--top-p", p), ("--density", call.density)] {
        if let Some(share) = share {
            let _ = write!(text, " {option} {share}");
        }
    }
    if call.selection.is_some_and(|selection| selection.scores() == Scores::Keys) {
        text += " --scores keys";
    }
    if let Some(tail) = describe_tail(call.tail) {
        let _ = write!(text, " --tail {tail}");
    }
    if call.backward {
        text += " --backward";
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tilewright::{BlockSize, DType, HeadDim, Scores, Tail, top_k, top_p};

    fn square() -> Call {
        Call {
            batch: 1,
            heads: 12,
            kv_heads: 12,
            seq_q: 32_760,
            seq_kv: 32_760,
            head_dim: HeadDim::D128,
            value_dim: HeadDim::D128,
            dtype: DType::Bf16,
            blocks: BlockSize::default(),
            selection: Some(top_k(0.03) | top_p(0.2)),
            density: None,
            tail: Tail::None,
            has_functions: false,
            backward: false,
        }
    }

    fn missing(call: Option<Call>) -> CliError {
        let [kernel, device, what] = ["forward", "H200", "no cubin"].map(str::to_owned);
        Error::CacheOnly { kernel, device, what, call: call.map(Box::new) }.into()
    }

    #[test]
    fn the_command_is_for_the_very_call() {
        let selected =
            "tilewright tune --shapes 12x32760x128 --dtype bf16 --block 128x64 --top-k 0.03 --top-p 0.2";
        let dense = "tilewright tune --shapes 2x24/8x4096:512x128 --dtype bf16 --block 128x64 --top-k 1";
        let cross =
            Call { batch: 2, heads: 24, kv_heads: 8, seq_q: 4096, seq_kv: 512, selection: None, ..square() };
        for (call, command) in [
            (square(), Some(selected.to_owned())),
            (Call { density: Some(0.125), ..square() }, Some(format!("{selected} --density 0.125"))),
            (Call { backward: true, ..square() }, Some(format!("{selected} --backward"))),
            (Call { tail: Tail::Row { keys: 128 }, ..square() }, Some(format!("{selected} --tail row:128"))),
            (
                Call { selection: square().selection.map(|rule| rule.by(Scores::Keys)), ..square() },
                Some(format!("{selected} --scores keys")),
            ),
            // Less than a block of each row.
            (Call { density: Some(0.001), ..square() }, None),
            (Call { has_functions: true, ..square() }, None),
            (cross, Some(dense.to_owned())),
            (Call { density: Some(0.5), ..cross }, Some(format!("{dense} --density 0.5"))),
        ] {
            assert_eq!(tune_command(&call), command);
            let told = missing(Some(call)).told();
            match command {
                Some(command) => {
                    assert!(told.ends_with(&format!("\n`{command}` makes such a call.")), "{told}")
                }
                None => assert!(!told.contains('\n'), "{told}"),
            }
        }
    }

    #[test]
    fn what_to_type_follows_what_the_library_says() {
        let path = || PathBuf::from("file");
        let not_found = || ToolchainError::NotFound { searched: Vec::new() };
        let layer = |source: CliError| CliError::Layer { path: path(), source: Box::new(source) };
        for (error, ending) in [
            (CliError::from(not_found()), "toolchain install` brings it."),
            (Error::from(not_found()).into(), "toolchain install` brings it."),
            (layer(Error::from(not_found()).into()), "toolchain install` brings it."),
            (BundleError::Empty { cache: path() }.into(), "`tilewright compile --bundle` needs none."),
        ] {
            let (told, said) = (error.told(), error.to_string());
            assert!(told.starts_with(&said) && told.ends_with(ending), "{told}");
            assert!(!said.contains("`tilewright "), "{said}");
        }
        for error in [missing(None), CliError::Offline] {
            assert_eq!(error.told(), error.to_string());
        }
    }
}
