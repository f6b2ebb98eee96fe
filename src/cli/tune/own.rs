//! `tune --templates`: the schedules of a kernel of the user's own.

use super::arguments::Arguments;
use super::{Files, TuneArgs, explain, to_json};
use crate::cli::args::{ExtentList, ScalarList, SpecList, spec};
use crate::cli::error::CliError;
use crate::cli::report::Report;
use crate::cli::source::Source;
use crate::cli::templates::{Kernels, specialised};
use crate::cli::tensor_file::TensorFile;
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tilewright::codegen::Generator;
use tilewright::launch::{DynamicKernel, Tuned};
use tilewright::tune::Policy;

#[derive(Args)]
#[command(next_help_heading = "A kernel of your own")]
pub struct OwnArgs {
    /// Tune a kernel of this folder, each a folder with kernel.rs and its bodies, on tensors made as its declaration
    /// has them: noise for real numbers that are read, zeros for integers and counters. Its schedules are checked
    /// against the first; a check.rs is Rust of your crate and is not asked. Functions are left out. The crate's
    /// launches of these extents find the record.
    #[arg(
        long,
        value_name = "DIR",
        requires = "kernel",
        conflicts_with_all = ["shapes", "dtype", "top_k", "top_p", "scores", "block", "density", "spread", "tail", "backward"]
    )]
    pub templates: Option<PathBuf>,
    /// The kernel of the folder.
    #[arg(long, value_name = "NAME", requires = "templates")]
    kernel: Option<String>,
    /// What to specialise: `T=bf16,D=128`. What is not given is as in the first variant that it ships.
    #[arg(
        long,
        value_name = "NAME=VALUE,…",
        default_value = "",
        hide_default_value = true,
        value_parser = spec,
        allow_hyphen_values = true,
        requires = "templates"
    )]
    spec: SpecList,
    /// The extents of the dimensions, but for those that the declaration computes: `rows=4096,width=128`.
    #[arg(long, value_name = "NAME=EXTENT,…", allow_hyphen_values = true, requires = "templates")]
    dims: Option<ExtentList>,
    /// The scalars: `epsilon=1e-6`.
    #[arg(long, value_name = "NAME=NUMBER,…", allow_hyphen_values = true, requires = "templates")]
    scalars: Option<ScalarList>,
    /// A safetensors file with values for some of the tensors, by their names; its shapes say extents. Optional
    /// tensors are given where they are in it. `-` is standard input.
    #[arg(long, value_name = "FILE", requires = "templates")]
    inputs: Option<Source>,
}

pub fn run(folder: &Path, args: &TuneArgs) -> Result<Report, CliError> {
    let own = &args.own;
    let kernels = Kernels::of(Some(folder))?;
    let source = kernels.named(own.kernel.as_deref().unwrap_or_default())?;
    let kernel = kernels.placed(DynamicKernel::new(source.clone()))?;
    let generator = kernels.placed(Generator::new(source))?;
    // Rendering what would ship finds mistakes in templates before a GPU is asked for.
    kernels.placed(generator.shipped())?;
    let spec = specialised(&generator, &own.spec)?;
    let file = own.inputs.as_ref().map(TensorFile::read).transpose()?;
    let (dims, scalars) = (own.dims.clone().unwrap_or_default(), own.scalars.clone().unwrap_or_default());
    let arguments = Arguments::plan(kernel, &spec, &dims.0, scalars.0, file.as_ref())?;

    let device = args.gpu()?;
    let files = Files::open(args)?;
    let Some(cuda) = device.as_cuda() else { return Err(CliError::NothingToTune) };
    let tuned = Tuned::with_policy(cuda, &kernel.request(&spec), Policy::Tune)?;
    let launched = arguments.make(&device)?;
    let start = Instant::now();
    // SAFETY: the tensors are the declaration's, and the body is the user's own program, which they ask to run.
    unsafe { launched.launch_tuned(&tuned)? };
    // A launch that fails says so when it is waited for.
    cuda.synchronize()?;
    let seconds = start.elapsed().as_secs_f64();

    let listed = |pairs: Vec<(&str, String)>| {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    let values = spec.values().iter().map(|(name, value)| (name.as_str(), value.to_string())).collect();
    let extents = arguments.extents();
    let dims = listed(extents.iter().map(|&(dim, extent)| (dim, extent.to_string())).collect());
    let mut text =
        format!("{device}, {} {}\n\n{dims}: ready in {seconds:.2} s\n", source.name, listed(values));
    let choice = tuned.choice();
    if let Some(choice) = &choice {
        let _ = writeln!(text, "  {}", choice.variant.name);
        if source.has_check {
            text += "  its check.rs was not asked: the schedules were checked against the first, and the crate's first launch asks it about the winner\n";
        }
        if args.explain {
            text += &explain(choice);
        }
    }
    let drawing = choice.as_ref().and_then(|choice| Some(choice.record.as_ref()?.plot(&choice.pruned)));
    let json = json!({
        "device": device.to_string(),
        "kernel": source.name,
        "spec": spec.values().iter().map(|(name, value)| (name, json!(value))).collect::<BTreeMap<_, _>>(),
        "dims": extents.iter().copied().collect::<BTreeMap<_, _>>(),
        "seconds": seconds,
        "kernels": choice.iter().map(to_json).collect::<Vec<_>>(),
    });
    files.finish(&device, text, json, drawing)
}
