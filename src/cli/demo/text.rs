//! The demonstration for people.

use super::DemoReport;
use super::data;
use super::measure::LayerReport;
use crate::cli::args;
use crate::cli::table::{self, milliseconds, number, table};
use std::fmt::Write;
use tilewright::output::printable;
use tilewright::{Selection, Tail};

pub fn describe(report: &DemoReport, selection: &Selection) -> String {
    let mut text = format!("Tilewright {} on {}\n", report.version, report.device);
    let _ = writeln!(
        text,
        "q, k, v of a trained video transformer: {}, d {}, {}",
        tokens(&report.layers),
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
    text += "  order            raster: a block is a line of tokens in a frame; cubes: tokens regrouped, a block is a cube of\n";
    text += "                   the video (docs/token-order.md).\n";
    text += "  error to dense   relative L1 distance to exact attention, mean over the heads: what the dropped blocks held. 0 is exact,\n";
    text += "                   1 as far off as an output of zeros. The model was not fine-tuned for the mask, and this is one layer of it:\n";
    text += "                   what a whole model is off by is in docs/tails.md.\n";
    text +=
        "  arithmetic       relative Frobenius distance to f64 over the same blocks: what rounding costs.\n";
    text += "  speed-up         attention over all blocks, by the same executor, over mask and attention together.\n";
    let _ = writeln!(
        text,
        "  sparsity         {:.1} % of the blocks are dropped in raster order, {:.1} % in cubes\n",
        100.0 * report.sparsity,
        100.0 * report.sparsity_cubes
    );

    text += "The same blocks with a tail: means of keys and values stand for what is dropped, one for each block, scored by a block's mean\n";
    let _ = writeln!(
        text,
        "query (block tail), or one for {} keys, scored by every query (row tail): docs/tails.md. Errors are those to dense attention,",
        Tail::ROW_KEYS
    );
    text += "as above; times are of mask, tail and attention together. \"By keys\": the rule scores a block by the best of its keys and\n";
    text += "not by their mean (`--scores keys`), and top-p may keep another number of blocks then.\n\n";
    let _ = writeln!(text, "{}\n", errors_of_tails(report));
    let _ = writeln!(text, "{}\n", times_of_tails(report));

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
    let pictured = report.layers.iter().take(report.pictured);
    let heads = pictured.map(|layer| format!("layer {} head {}", layer.layer, layer.heads));
    let heads = heads.collect::<Vec<_>>().join(", ");
    let _ = match &report.png {
        Some(png) => writeln!(
            text,
            "block masks: {} ({heads}, each in raster order and in cubes; queries down, keys across, in raster order a line a video frame)",
            printable(png)
        ),
        None => writeln!(text, "`--png FILE` draws the block masks of {heads}"),
    };
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// `3584 tokens (8 frames of 16 × 28)`, for every grid there is.
fn tokens(layers: &[LayerReport]) -> String {
    let mut all: Vec<String> = Vec::new();
    for LayerReport { tokens, grid: [t, h, w], .. } in layers {
        let this = format!("{tokens} tokens ({t} frames of {h} × {w})");
        if !all.contains(&this) {
            all.push(this);
        }
    }
    all.join(", ")
}

fn layers(report: &DemoReport) -> comfy_table::Table {
    let headings = [
        "layer",
        "head",
        "order",
        "kept",
        "error to dense",
        "arithmetic",
        "mask",
        "attention",
        "dense",
        "speed-up",
    ];
    let mut table = table(&headings);
    for layer in &report.layers {
        for (name, order) in [("raster", &layer.raster), ("cubes", &layer.cubes)] {
            table.add_row(vec![
                number(&layer.layer),
                number(&layer.heads),
                name.into(),
                number(format!("{:.1} %", 100.0 * (1.0 - order.sparsity))),
                number(format!("{:.3}", order.error_dense)),
                number(format!("{:.1e}", order.error_arithmetic)),
                number(milliseconds(order.mask_ms)),
                number(milliseconds(order.attention_ms)),
                number(milliseconds(layer.dense_ms)),
                number(format!("{:.1}×", layer.dense_ms / (order.mask_ms + order.attention_ms))),
            ]);
        }
    }
    table
}

fn errors_of_tails(report: &DemoReport) -> comfy_table::Table {
    let headings = [
        "layer",
        "head",
        "order",
        "kept",
        "error: no tail",
        "block tail",
        "row tail",
        "kept by keys",
        "error: block tail",
        "row tail",
    ];
    let mut table = table(&headings);
    for layer in &report.layers {
        for (name, order) in [("raster", &layer.raster), ("cubes", &layer.cubes)] {
            let errors = [order.error_dense, order.block_tail.error_dense, order.row_tail.error_dense];
            let mut row = vec![
                number(&layer.layer),
                number(&layer.heads),
                name.into(),
                number(format!("{:.1} %", 100.0 * (1.0 - order.sparsity))),
            ];
            row.extend(errors.map(|error| number(format!("{error:.3}"))));
            row.push(number(format!("{:.1} %", 100.0 * (1.0 - order.sparsity_by_keys))));
            let by_keys = [&order.block_tail, &order.row_tail].map(|tail| tail.error_dense_by_keys);
            row.extend(by_keys.map(|error| number(format!("{error:.3}"))));
            table.add_row(row);
        }
    }
    table
}

fn times_of_tails(report: &DemoReport) -> comfy_table::Table {
    let mut table = table(&["layer", "head", "order", "time: no tail", "block tail", "row tail"]);
    for layer in &report.layers {
        for (name, order) in [("raster", &layer.raster), ("cubes", &layer.cubes)] {
            let times =
                [order.mask_ms + order.attention_ms, order.block_tail.call_ms, order.row_tail.call_ms];
            let mut row = vec![number(&layer.layer), number(&layer.heads), name.into()];
            row.extend(times.map(|ms| number(milliseconds(ms))));
            table.add_row(row);
        }
    }
    table
}
