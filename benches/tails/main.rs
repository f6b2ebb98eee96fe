//! Error against time with and without tails, on q, k and v of trained models: `cargo bench --bench tails -- FILE…`.
//!
//! A file is a safetensors file with q, k and v `[batch, heads, tokens, d]`, f16 or bf16; three files with one of them each are given as one argument, with
//! commas between. A name for it may come first: `NAME=FILE`. With a token grid, from `--grid` or `token_grid` in a file's metadata, tokens are measured in raster order and in cubes. For each share of kept
//! blocks (`--top-k`) and each tail: the relative L1 error against dense attention of the same executor, the mean over the heads, and the time of a whole call (mask, tail,
//! attention) into memory that it has. On a GPU that is the median of 30 calls by CUDA events, the tails by turns; on the CPU of 3 by the wall clock. `--json` and `--plot` write
//! both; `--from-json` draws again what was measured elsewhere.

mod measure;
mod plot;

use clap::Parser;
use measure::{Layer, Report};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use tilewright::Device;

#[derive(Parser)]
struct Options {
    /// Files with q, k and v.
    #[arg(required_unless_present = "from_json")]
    files: Vec<String>,
    /// T,H,W of the tokens; what the metadata says when not given.
    #[arg(long, value_parser = sides)]
    grid: Option<[usize; 3]>,
    /// The cube, of as many tokens as a block has keys.
    #[arg(long, value_parser = sides, default_value = "4,4,4")]
    tile: [usize; 3],
    /// Shares of key blocks to keep.
    #[arg(long, value_delimiter = ',', default_values_t = [0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25])]
    top_k: Vec<f64>,
    /// The tensors as often along the batch: a layer of few tokens leaves most of a GPU idle.
    #[arg(long, default_value_t = 1)]
    copies: usize,
    /// On the CPU, though there is a GPU.
    #[arg(long)]
    cpu: bool,
    /// Where to write all figures.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to draw error against time, as an SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Measure nothing: draw the figures of another run.
    #[arg(long, value_name = "FILE", requires = "plot", conflicts_with_all = ["files", "json"])]
    from_json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn sides(text: &str) -> Result<[usize; 3], String> {
    let sides: Option<Vec<usize>> =
        text.split([',', 'x']).map(|side| side.parse().ok().filter(|&n| n > 0)).collect();
    let sides = sides.and_then(|sides| sides.try_into().ok());
    sides.ok_or_else(|| "needed three sizes, such as 8,16,28".to_owned())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    if let (Some(json), Some(path)) = (&options.from_json, &options.plot) {
        let report: Report = serde_json::from_slice(&std::fs::read(json)?)?;
        return Ok(std::fs::write(path, plot::svg(&report))?);
    }
    let device = if options.cpu { Device::cpu() } else { Device::best() };
    let mut report = Report::new(&device, options.copies);
    println!("{device}, blocks of 128×64, median of {} calls", report.calls);
    for file in &options.files {
        let layer = Layer::read(file)?;
        for order in layer.orders(options.grid, options.tile)? {
            let panel = measure::panel(&layer, order, options, &device)?;
            println!("{panel}");
            report.panels.push(panel);
            // What was measured is there, should a later file fail.
            if let Some(path) = &options.json {
                std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
            }
            if let Some(path) = &options.plot {
                std::fs::write(path, plot::svg(&report))?;
            }
        }
    }
    Ok(())
}
