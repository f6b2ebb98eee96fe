//! The demonstration for people.

use super::DemoReport;
use super::data;
use crate::cli::args;
use crate::cli::table::{self, milliseconds, number, table};
use std::fmt::Write;
use tilewright::Selection;

pub fn describe(report: &DemoReport, selection: &Selection) -> String {
    let mut text = format!("Tilewright {} on {}\n", report.version, report.device);
    let tokens = report.layers.first().map_or(0, |layer| layer.tokens);
    let _ = writeln!(
        text,
        "q, k, v of a trained video transformer: {tokens} tokens (8 frames of 16 × 28), d {}, {}",
        data::HEAD_DIM,
        data::DTYPE
    );
    let _ = writeln!(
        text,
        "blocks of {} queries × {} keys, {}\n",
        report.block[0],
        report.block[1],
        args::describe(selection)
    );
    let _ = writeln!(text, "{}\n", layers(report));
    text += "  error to dense   relative L1 distance to exact attention: what the dropped blocks held. Tokens are in\n";
    text += "                   raster order and the model was not fine-tuned for the mask.\n";
    text +=
        "  arithmetic       relative Frobenius distance to f64 over the same blocks: what rounding costs.\n";
    text += "  speed-up         attention over all blocks, by the same executor, over mask and attention together.\n";
    let _ = writeln!(text, "  sparsity         {:.1} % of the blocks are dropped\n", 100.0 * report.sparsity);

    if !report.kernels.is_empty() {
        match &report.nvrtc {
            Some(version) => {
                let mut archs: Vec<&str> = Vec::new();
                for one in report.kernels.iter().flat_map(|kernel| &kernel.compiled) {
                    if !archs.contains(&one.arch.as_str()) {
                        archs.push(&one.arch);
                    }
                }
                let _ = writeln!(text, "Kernels, compiled with NVRTC {version} for {}\n", archs.join(", "));
            }
            None => text += "Kernels, not compiled\n\n",
        }
        let _ = writeln!(text, "{}\n", table::variants(&report.kernels, true));
    }
    let heads = report.layers.iter().map(|layer| format!("layer {} head {}", layer.layer, layer.heads));
    let _ = writeln!(
        text,
        "block mask: {} ({}; queries down, keys across, a line a video frame)",
        report.png.display(),
        heads.collect::<Vec<_>>().join(", ")
    );
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn layers(report: &DemoReport) -> comfy_table::Table {
    let headings =
        ["layer", "head", "kept", "error to dense", "arithmetic", "mask", "attention", "dense", "speed-up"];
    let mut table = table(&headings);
    for layer in &report.layers {
        table.add_row(vec![
            number(&layer.layer),
            number(&layer.heads),
            number(format!("{:.1} %", 100.0 * (1.0 - layer.sparsity))),
            number(format!("{:.3}", layer.error_dense)),
            number(format!("{:.1e}", layer.error_arithmetic)),
            number(milliseconds(layer.mask_ms)),
            number(milliseconds(layer.attention_ms)),
            number(milliseconds(layer.dense_ms)),
            number(format!("{:.1}×", layer.dense_ms / (layer.mask_ms + layer.attention_ms))),
        ]);
    }
    table
}
