//! `tune`: time the schedules for some shapes now, so that no later process has to, and explain the choice.

use super::args::{AttentionArgs, describe};
use super::bundle::{exported, exported_json};
use super::error::CliError;
use super::report::Report;
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;
use tilewright::bundle::{Contents, export};
use tilewright::cache::KernelCache;
use tilewright::launch::Choice;
use tilewright::tune::Policy;
use tilewright::{Attention, DType, Device, HeadDim, Tensor};

#[derive(Args)]
pub struct TuneArgs {
    /// What to tune for, HEADSxTOKENSxHEAD_DIM, several with commas. Without it the sizes of Wan 2.1 at 480p and 720p and
    /// of CogVideoX.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SHAPES",
        default_value = "12x32760x128,10x75600x128,30x17776x64"
    )]
    shapes: Vec<ShapeArg>,
    /// The dtype of q, k and v: bf16 or f16.
    #[arg(long, default_value = "bf16", value_parser = dtype)]
    dtype: DType,
    #[command(flatten)]
    attention: AttentionArgs,
    /// Print every candidate: schedule, registers, shared memory, time, or why it was rejected.
    #[arg(long)]
    explain: bool,
    /// Draw the times of the forward's candidates into an SVG file; of several shapes, the last one's.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write the cache's kernels and tuning records of this GPU's architecture to a bundle, for other machines.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

/// Sizes to tune for.
#[derive(Clone, Copy, Debug)]
struct ShapeArg {
    heads: usize,
    tokens: usize,
    head_dim: HeadDim,
}

impl FromStr for ShapeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<usize> = text.split(['x', '×']).map_while(|number| number.parse().ok()).collect();
        match numbers[..] {
            [heads, tokens, head_dim] if heads > 0 && tokens > 0 && text.split(['x', '×']).count() == 3 => {
                let head_dim = HeadDim::new(head_dim).map_err(|error| error.to_string())?;
                Ok(ShapeArg { heads, tokens, head_dim })
            }
            _ => Err("write it as HEADSxTOKENSxHEAD_DIM, such as 12x32760x128".to_owned()),
        }
    }
}

fn dtype(text: &str) -> Result<DType, String> {
    DType::from_name(text)
        .filter(|dtype| matches!(dtype, DType::Bf16 | DType::F16))
        .ok_or_else(|| "needed bf16 or f16".to_owned())
}

pub fn run(args: &TuneArgs) -> Result<Report, CliError> {
    let device = args.attention.device.open()?;
    if !device.is_cuda() {
        return Err(CliError::NothingToTune);
    }
    let selection = args.attention.selection();
    let mut text =
        format!("{device}, {}, blocks of {}, {}\n", args.dtype, args.attention.block, describe(&selection));
    let mut shapes = Vec::new();
    for shape in &args.shapes {
        let attention = Attention::builder(shape.head_dim, args.dtype)
            .blocks(args.attention.block)
            .select(selection)
            .policy(Policy::Tune)
            .build(&device)?;
        let [q, k, v] = inputs(&device, args.dtype, shape)?;
        let start = Instant::now();
        attention.forward(&q, &k, &v)?;
        let seconds = start.elapsed().as_secs_f64();
        let choices = attention.choices();
        let _ = writeln!(
            text,
            "\n{} heads × {} × {}: ready in {seconds:.2} s",
            shape.heads, shape.tokens, shape.head_dim
        );
        for choice in &choices {
            let _ = writeln!(text, "  {}", choice.variant.name);
        }
        if args.explain {
            choices.iter().for_each(|choice| text.push_str(&explain(choice)));
        }
        if let Some(path) = &args.plot {
            plot(path, &choices)?;
        }
        shapes.push(json!({
            "heads": shape.heads,
            "tokens": shape.tokens,
            "head_dim": shape.head_dim.get(),
            "seconds": seconds,
            "kernels": choices.iter().map(to_json).collect::<Vec<_>>(),
        }));
    }
    let mut json = json!({ "device": device.to_string(), "shapes": shapes });
    if let Some(path) = &args.export {
        let arch = device.arch().unwrap_or_default();
        let report = export(&KernelCache::open()?, &Contents::Archs(&[&arch]), path)?;
        text += &format!("\n{}", exported(&report));
        json["bundle"] = exported_json(&report);
    }
    Ok(Report::new(text, &json))
}

fn explain(choice: &Choice) -> String {
    match &choice.record {
        Some(record) => {
            format!("\n{}\n{}\n", choice.variant.candidate.spec.kernel(), record.explain(&choice.pruned))
        }
        None => {
            format!("\n{}: nothing to time, there is one candidate\n", choice.variant.candidate.spec.kernel())
        }
    }
}

fn to_json(choice: &Choice) -> serde_json::Value {
    json!({
        "variant": choice.variant.name,
        "fingerprint": choice.variant.fingerprint,
        "candidates": choice.record.as_ref().map(|record| record.explain_json(&choice.pruned)),
    })
}

fn plot(path: &Path, choices: &[Choice]) -> Result<(), CliError> {
    let forward = choices.iter().find(|choice| choice.variant.candidate.spec.kernel() == "forward");
    let Some((choice, record)) = forward.and_then(|choice| Some((choice, choice.record.as_ref()?))) else {
        return Ok(());
    };
    std::fs::write(path, record.plot(&choice.pruned)).map_err(|source| CliError::Write {
        path: path.to_owned(),
        option: "--plot",
        source,
    })
}

/// Noise: zeros would run faster than anything real.
fn inputs(device: &Device, dtype: DType, shape: &ShapeArg) -> Result<[Tensor; 3], CliError> {
    let dims = [1, shape.heads, shape.tokens, shape.head_dim.get()];
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Evenly spread with variance 1.
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt()
    };
    let mut tensor = || -> Result<Tensor, CliError> {
        let count = dims.iter().product();
        let tensor = match dtype {
            DType::F16 => {
                let values: Vec<_> = (0..count).map(|_| half::f16::from_f32(next())).collect();
                Tensor::from_slice(&values, &dims)?
            }
            _ => {
                let values: Vec<_> = (0..count).map(|_| half::bf16::from_f32(next())).collect();
                Tensor::from_slice(&values, &dims)?
            }
        };
        Ok(tensor.to(device)?)
    };
    Ok([tensor()?, tensor()?, tensor()?])
}
