//! The demonstration and the doctor.

use crate::support::{command, fails, has_nvrtc, json, makes_no_sense, nowhere, stderr, stdout, tilewright};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use tilewright::toolchain::Toolchain;

#[test]
fn the_demo_on_the_cpu_compares_both_orders_and_draws_them() {
    let folder = tempfile::tempdir().unwrap();
    let png = folder.path().join("mask.png");
    // By way of a link, which stays one.
    #[cfg(unix)]
    std::os::unix::fs::symlink("picture.png", &png).unwrap();
    let report = json(&["demo", "--device", "cpu", "--png", png.to_str().unwrap()]);
    #[cfg(unix)]
    assert!(png.is_symlink() && folder.path().join("picture.png").is_file());
    assert_eq!(report["device"], "CPU");
    let sparsity = report["sparsity"].as_f64().unwrap();
    let sparsity_cubes = report["sparsity_cubes"].as_f64().unwrap();
    assert!((0.90..0.98).contains(&sparsity), "{sparsity}");
    assert!((sparsity..0.98).contains(&sparsity_cubes), "cubes need fewer blocks: {sparsity_cubes}");

    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        assert_eq!(layer["grid"], serde_json::json!([8, 16, 28]));
        // Cubes make the diffuse head of layer 2 worse, which is what its bound allows for.
        for (order, most) in [("raster", 1.2), ("cubes", 1.7)] {
            let number = |name: &str| layer[order][name].as_f64().unwrap();
            assert!(number("error_arithmetic") <= 4e-3, "{layer}");
            assert!((0.01..most).contains(&number("error_dense")), "{layer}");
            assert!(number("mask_ms") > 0.0 && number("attention_ms") > 0.0, "{layer}");
            let dense = layer["dense_ms"].as_f64().unwrap();
            assert!(dense > number("attention_ms"), "skipping does not pay: {layer}");
            for tail in ["block_tail", "row_tail"] {
                let of = &layer[order][tail];
                let error = of["error_dense"].as_f64().unwrap();
                assert!(error < number("error_dense"), "the means are worth nothing: {layer}");
                assert!(of["call_ms"].as_f64().unwrap() > 0.0, "{layer}");
                let by_keys = of["error_dense_by_keys"].as_f64().unwrap();
                assert!(by_keys < number("error_dense"), "the means are worth nothing: {layer}");
            }
        }
    }
    let error = |layer: usize, order: &str| layers[layer][order]["error_dense"].as_f64().unwrap();
    assert!(error(0, "raster") < error(1, "raster"), "layer 6 is the local one");
    // What a token grid is for: not much more than half of the error, and no more blocks.
    assert!(error(0, "cubes") < 0.6 * error(0, "raster"), "{}", layers[0]);
    assert!(layers[0]["cubes"]["kept_blocks"].as_u64() <= layers[0]["raster"]["kept_blocks"].as_u64());

    let kernels = report["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|kernel| kernel["kernel"] == "forward"));
    if has_nvrtc("the demo's kernels") {
        assert!(kernels.iter().all(|kernel| kernel["compiled"][0]["ptxas"]["registers"].as_u64() > Some(0)));
    } else {
        assert!(report["notes"][0].as_str().unwrap().contains("no NVRTC"));
    }

    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(png).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    assert!(frame.width > frame.height && frame.height > 500, "four panels side by side: {frame:?}");
    let kept = pixels.iter().filter(|&&pixel| pixel == 2).count() as f64;
    let panels = pixels.iter().filter(|&&pixel| pixel != 0).count() as f64;
    let shown = 1.0 - kept / panels;
    assert!((shown - (sparsity + sparsity_cubes) / 2.0).abs() < 1e-9, "the picture shows the masks: {shown}");
}

#[test]
fn the_demo_takes_other_rules() {
    // In a folder where nothing may be written: nobody asked for a picture.
    let folder = tempfile::tempdir().unwrap();
    let mut demo = command();
    demo.args(["demo", "--device", "cpu", "--top-k", "0.1", "--block", "64x128", "--json"]);
    let output = demo.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["png"].is_null());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
    assert_eq!((report["top_k"].as_f64(), report["top_p"].as_f64()), (Some(0.1), None));
    assert_eq!(report["block"], serde_json::json!([64, 128]));
    // Every row keeps ceil(0.1 · 28) = 3 of its 28 blocks.
    assert!((report["sparsity"].as_f64().unwrap() - 25.0 / 28.0).abs() < 1e-9);
}

#[test]
fn the_demo_scores_by_keys() {
    let demo =
        |scores| json(&["demo", "--device", "cpu", "--top-k", "0.1", "--block", "64x64", "--scores", scores]);
    let (means, keys) = (demo("means"), demo("keys"));
    assert_eq!((&means["scores"], &keys["scores"]), (&"means".into(), &"keys".into()));
    assert_eq!(means["sparsity"], keys["sparsity"], "top-k keeps as many of either");
    for (means, keys) in means["layers"].as_array().unwrap().iter().zip(keys["layers"].as_array().unwrap()) {
        for order in ["raster", "cubes"] {
            assert_ne!(means[order]["error_dense"], keys[order]["error_dense"], "other blocks");
            assert_eq!(means[order]["sparsity_by_keys"], keys[order]["sparsity"]);
            for tail in ["block_tail", "row_tail"] {
                let (means, keys) = (&means[order][tail], &keys[order][tail]);
                assert_eq!(means["error_dense_by_keys"], keys["error_dense"], "{order}, {tail}");
                assert_eq!(keys["error_dense_by_keys"], keys["error_dense"], "{order}, {tail}");
            }
        }
    }
}

#[test]
fn the_demo_measures_tensors_of_the_users() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let q: Vec<u8> = (0..150 * 128u32).flat_map(|i| bf16((i as f32 * 0.7).sin())).collect();
    let tensor = |name| (name, TensorView::new(Dtype::BF16, vec![1, 1, 150, 128], &q).unwrap());
    let tensors = || ["q", "k", "v"].map(tensor);
    let write = |name: &str, grid: &str| {
        let metadata = HashMap::from([("token_grid".to_owned(), grid.to_owned())]);
        std::fs::write(path(name), safetensors::serialize(tensors(), Some(metadata)).unwrap()).unwrap();
    };
    write("own.safetensors", "2x5x15");
    let (png, own) = (path("mask.png"), path("own.safetensors"));
    let report = json(&["demo", "--device", "cpu", "--png", &png, "--tensors", &own]);
    let layers = report["layers"].as_array().unwrap();
    assert_eq!((layers.len(), &layers[2]["grid"]), (3, &serde_json::json!([2, 5, 15])));
    assert_eq!((&layers[2]["layer"], &layers[2]["blocks"]), (&"?".into(), &6.into()));

    write("other.safetensors", "2x5x14");
    let other = path("other.safetensors");
    fails_after_notes(
        &["demo", "--device", "cpu", "--png", &png, "--tensors", &other],
        &format!("{other}: the tensor"),
    );
    write("none.safetensors", "no grid");
    let none = path("none.safetensors");
    fails(&["demo", "--tensors", &none], &["no grid", "token_grid", "8x16x28"]);
    // A file does not write lines of its own.
    write("forged.safetensors", "2x5\nerror: \x1b[2J");
    let said = stderr(&tilewright(&["demo", "--tensors", &path("forged.safetensors")]));
    assert!(said.contains("2x5\\nerror: \\u{1b}[2J as") && said.lines().count() == 1, "{said}");
}

/// A failure that comes after notes of what has been done.
fn fails_after_notes(arguments: &[&str], says: &str) {
    let output = command().args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: ") && said.contains(says) && !said.contains("panicked"), "{said}");
}

fn bf16(x: f32) -> [u8; 2] {
    [x.to_bits().to_le_bytes()[2], x.to_bits().to_le_bytes()[3]]
}

#[test]
fn the_demo_refuses_what_it_cannot_do() {
    makes_no_sense(&["demo", "--device", "cpu", "--top-k", "0"], &["top-k is 0", "(0, 1]"]);
    let nowhere = nowhere();
    let nowhere = nowhere.to_str().unwrap();
    fails(&["demo", "--device", "cpu", "--png", nowhere], &["cannot write ", nowhere, "--png"]);
    makes_no_sense(&["demo", "--block", "32x32"], &["32"]);
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    fails(&["demo", "--device", "cuda:99"], &[]);
}

#[test]
fn the_doctor_is_content_with_a_cpu() {
    let report = json(&["doctor"]);
    assert_eq!(report["cpu"], true);
    let whats: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["what"].as_str().unwrap())
        .collect();
    for what in ["CPU", "driver", "GPU", "NVRTC", "data folder"] {
        assert!(whats.contains(&what), "{what}");
    }
    let text = stdout(&command().arg("doctor").output().unwrap());
    assert!(
        text.contains("Attention runs on the CPU") || text.contains("attention runs on the GPU"),
        "{text}"
    );
}

/// A folder of NVRTC's that is read only is in order; one that is to hold an NVRTC is not.
#[test]
fn the_doctor_asks_for_a_data_folder_only_where_it_is_needed() {
    let data_folder = |library: &Path| {
        let mut doctor = command();
        doctor.env("TILEWRIGHT_DATA", nowhere()).env("TILEWRIGHT_NVRTC", library);
        let output = doctor.args(["doctor", "--json"]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["what"] == "data folder").unwrap();
        assert!(found["found"].as_str().unwrap().contains("cannot be written to"), "{found}");
        found["ok"].as_bool().unwrap()
    };
    assert!(!data_folder(&nowhere()));
    if has_nvrtc("the doctor's data folder") {
        assert!(data_folder(Toolchain::find().unwrap().library()));
    }
}

#[test]
fn a_closed_standard_output_is_no_failure() {
    let mut child =
        command().args(["inspect", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
