//! `demo`: sparse attention on real tensors, measured, with the kernels behind it and a picture of the mask.

mod data;
mod kernels;
mod measure;
mod text;

use super::args::AttentionArgs;
use super::error::CliError;
use super::mask_image::{self, ImageError};
use super::progress::note;
use super::report::Report;
use super::variants::VariantReport;
use clap::Args;
use measure::LayerReport;
use serde::Serialize;
use std::path::PathBuf;
use tilewright::toolchain::{Toolchain, ToolchainError};
use tilewright::{Attention, Device};

#[derive(Args)]
pub struct DemoArgs {
    #[command(flatten)]
    attention: AttentionArgs,
    /// Where to put the picture of the block mask.
    #[arg(long, value_name = "FILE", default_value = "block-mask.png")]
    png: PathBuf,
}

#[derive(Serialize)]
struct DemoReport {
    version: &'static str,
    device: String,
    top_k: Option<f64>,
    top_p: Option<f64>,
    block: [usize; 2],
    /// The share of blocks dropped, over all layers.
    sparsity: f64,
    layers: Vec<LayerReport>,
    nvrtc: Option<String>,
    kernels: Vec<VariantReport>,
    png: PathBuf,
    notes: Vec<String>,
}

pub fn run(args: &DemoArgs) -> Result<Report, CliError> {
    let layers = data::layers()?;
    let selection = args.attention.selection();
    let mut notes = Vec::new();
    let mut device = args.attention.device.open()?;
    let toolchain = match Toolchain::find_or_install(note) {
        Ok(toolchain) => Some(toolchain),
        Err(error) => {
            let instead = if device.is_cuda() { "running on the CPU" } else { "no kernel is compiled" };
            let why = match &error {
                // The command and all its last lines are for `toolchain install` to show.
                ToolchainError::PipFailed { status, last_lines, .. } => {
                    let last = last_lines.last().map_or("", String::as_str);
                    format!("its installation failed ({status}): {last}")
                }
                other => other.to_string().lines().next().unwrap_or_default().to_owned(),
            };
            device = args.attention.device.without_nvrtc(&device, error)?;
            notes.push(format!("no NVRTC, {instead}: {why}"));
            None
        }
    };

    let build = |device: &Device, sparse: bool| {
        let builder = Attention::builder(data::HEAD_DIM, data::DTYPE).blocks(args.attention.block);
        if sparse { builder.select(selection) } else { builder }.build(device)
    };
    let attention = build(&device, true)?;
    let exact = build(&Device::cpu(), false)?;
    let mut reports = Vec::new();
    let mut masks = Vec::new();
    for layer in &layers {
        note(&format!("layer {}: mask, sparse and dense attention on {device}", layer.layer));
        let (report, mask) = measure::layer(layer, &attention, &exact)?;
        reports.push(report);
        masks.push(mask);
    }
    let picture = mask_image::write(&args.png, &masks.iter().collect::<Vec<_>>(), Some(data::FRAME));
    picture.map_err(|error| match error {
        ImageError::Mask(error) => CliError::Library(error),
        other => {
            let source = std::io::Error::other(other);
            CliError::Write { path: args.png.clone(), option: "--png", source }
        }
    })?;
    let kernels = kernels::reports(&attention, toolchain.as_ref())?;

    let blocks: usize = reports.iter().map(|report| report.blocks).sum();
    let kept: usize = reports.iter().map(|report| report.kept_blocks).sum();
    let report = DemoReport {
        version: env!("CARGO_PKG_VERSION"),
        device: device.to_string(),
        top_k: selection.k(),
        top_p: selection.p(),
        block: [args.attention.block.q(), args.attention.block.kv()],
        sparsity: 1.0 - kept as f64 / blocks as f64,
        layers: reports,
        nvrtc: toolchain.map(|toolchain| format!("{}.{}", toolchain.version().0, toolchain.version().1)),
        kernels,
        png: args.png.clone(),
        notes,
    };
    Ok(Report::new(text::describe(&report, &selection), &report))
}
