//! `demo`: sparse attention on real tensors, measured, with the kernels behind it and a picture of the mask.

mod data;
mod kernels;
mod measure;
mod text;

use super::args::{AttentionArgs, describe_scores};
use super::error::CliError;
use super::files::{self, Destination};
use super::mask_image::{self, ImageError};
use super::nvrtc;
use super::progress::note;
use super::report::Report;
use super::source::Source;
use super::variants::VariantReport;
use clap::Args;
use measure::{Attentions, LayerReport, OrderReport};
use serde::Serialize;
use tilewright::attention::Shapes;
use tilewright::toolchain::ToolchainError;
use tilewright::{Attention, Device, Scores, Tail};

#[derive(Args)]
pub struct DemoArgs {
    #[command(flatten)]
    attention: AttentionArgs,
    /// Measure these as well: a safetensors file with q, k and v [batch, heads, tokens, 128] bf16, tokens in raster order,
    /// and TxHxW as `token_grid` in its metadata. Can be given several times; `-` is standard
    /// input.
    #[arg(long, value_name = "FILE")]
    tensors: Vec<Source>,
    /// Draw the block masks of the tensors that come with the program, as a PNG. `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub png: Option<Destination>,
}

#[derive(Serialize)]
struct DemoReport {
    version: &'static str,
    device: String,
    top_k: Option<f64>,
    top_p: Option<f64>,
    /// What blocks are scored by: means or keys.
    scores: &'static str,
    block: [usize; 2],
    /// The share of blocks dropped, over all layers, tokens in raster order.
    sparsity: f64,
    /// The same, tokens in cubes.
    sparsity_cubes: f64,
    layers: Vec<LayerReport>,
    /// How many of the layers, from the first, are in the picture.
    #[serde(skip)]
    pictured: usize,
    nvrtc: Option<String>,
    kernels: Vec<VariantReport>,
    png: Option<String>,
    notes: Vec<String>,
}

/// The argument that names the picture.
const PNG: &str = "--png";

pub fn run(args: &DemoArgs, offline: bool) -> Result<Report, CliError> {
    let picture = args.png.as_ref().map(|png| png.open(PNG)).transpose()?;
    let mut layers = data::layers()?;
    let pictured = layers.len();
    layers.extend(data::layers_of(&args.tensors)?);
    let selection = args.attention.selection();
    let mut notes = Vec::new();
    let mut device = args.attention.device.open()?;
    let toolchain = match nvrtc::find_or_install(offline) {
        Ok(toolchain) => Some(toolchain),
        Err(error) => {
            let instead = if device.is_cuda() { "running on the CPU" } else { "no kernel is compiled" };
            let why = match &error {
                // The command and all its last lines are for `toolchain install` to show.
                ToolchainError::PipFailed { status, last_lines, .. } => {
                    let last = last_lines.last().map_or("", String::as_str);
                    format!("its installation failed ({status}): {last}")
                }
                ToolchainError::NotFound { .. } if offline => {
                    "none is installed, and --offline installs none".to_owned()
                }
                other => other.to_string().lines().next().unwrap_or_default().to_owned(),
            };
            device = args.attention.device.without_nvrtc(&device, error)?;
            notes.push(format!("no NVRTC, {instead}: {why}"));
            None
        }
    };

    let builder = || Attention::builder(data::HEAD_DIM, data::DTYPE).blocks(args.attention.block);
    let sparse = |tail| builder().select(selection).tail(tail).build(&device);
    let attentions = Attentions {
        no_tail: sparse(Tail::None)?,
        block_tail: sparse(Tail::Block)?,
        row_tail: sparse(Tail::row(args.attention.block))?,
        by_keys: selection.by(Scores::Keys),
    };
    let exact = builder().build(&Device::cpu())?;
    let mut reports = Vec::new();
    let mut masks = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        note(&format!(
            "layer {}: mask, sparse attention, tails and dense attention on {device}",
            layer.layer
        ));
        let measured = measure::layer(layer, &attentions, &exact);
        let (report, [raster, cubes]) = measured
            .map_err(|source| CliError::Layer { path: layer.path.clone(), source: Box::new(source) })?;
        reports.push(report);
        if at < pictured {
            let [_, height, width] = layer.grid;
            masks.extend([(raster, Some(height * width)), (cubes, None)]);
        }
    }
    if let Some(output) = picture {
        let png = mask_image::png(&masks).map_err(|error| match error {
            ImageError::Mask(error) => CliError::Library(error),
            ImageError::Png(error) => files::write_error(output.path(), PNG)(std::io::Error::other(error)),
        })?;
        files::write(output, PNG, &png)?;
    }
    let loaded = match layers.last() {
        Some(layer) => attentions.no_tail.plan(Shapes::of(&layer.q, &layer.k)?)?.kernels(),
        None => Vec::new(),
    };
    let kernels = kernels::reports(&attentions.no_tail, &loaded, toolchain.as_ref())?;

    let blocks: usize = reports.iter().map(|report| report.blocks).sum();
    let dropped = |of: fn(&LayerReport) -> &OrderReport| {
        1.0 - reports.iter().map(|report| of(report).kept_blocks).sum::<usize>() as f64 / blocks as f64
    };
    let report = DemoReport {
        version: env!("CARGO_PKG_VERSION"),
        device: device.to_string(),
        top_k: selection.k(),
        top_p: selection.p(),
        scores: describe_scores(selection.scores()),
        block: [args.attention.block.q(), args.attention.block.kv()],
        sparsity: dropped(|layer| &layer.raster),
        sparsity_cubes: dropped(|layer| &layer.cubes),
        pictured,
        layers: reports,
        nvrtc: toolchain.map(|toolchain| format!("{}.{}", toolchain.version().0, toolchain.version().1)),
        kernels,
        png: args.png.as_ref().map(|png| png.path().to_string_lossy().into_owned()),
        notes,
    };
    Ok(Report::new(text::describe(&report, &selection), &report))
}
