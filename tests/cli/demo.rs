//! The demonstration and the doctor.

use crate::support::{command, fails, has_nvrtc, json, stdout};
use std::process::Stdio;

#[test]
fn the_demo_on_the_cpu_gives_sane_numbers_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let png = folder.path().join("mask.png");
    let report = json(&["demo", "--device", "cpu", "--png", png.to_str().unwrap()]);
    assert_eq!(report["device"], "CPU");
    let sparsity = report["sparsity"].as_f64().unwrap();
    assert!((0.90..0.98).contains(&sparsity), "{sparsity}");

    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let number = |name: &str| layer[name].as_f64().unwrap();
        assert!(number("error_arithmetic") <= 4e-3, "{layer}");
        assert!((0.01..1.2).contains(&number("error_dense")), "{layer}");
        assert!(number("mask_ms") > 0.0 && number("attention_ms") > 0.0, "{layer}");
        assert!(number("dense_ms") > number("attention_ms"), "skipping does not pay: {layer}");
    }
    assert!(
        layers[0]["error_dense"].as_f64() < layers[1]["error_dense"].as_f64(),
        "layer 6 is the local one"
    );

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
    assert!(frame.width > frame.height && frame.height > 500, "two panels side by side: {frame:?}");
    let kept = pixels.iter().filter(|&&pixel| pixel == 2).count() as f64;
    let panels = pixels.iter().filter(|&&pixel| pixel != 0).count() as f64;
    assert!((1.0 - kept / panels - sparsity).abs() < 1e-9, "the picture shows the mask: {kept} of {panels}");
}

#[test]
fn the_demo_takes_other_rules() {
    let folder = tempfile::tempdir().unwrap();
    let png = folder.path().join("mask.png");
    let report = json(&[
        "demo",
        "--device",
        "cpu",
        "--png",
        png.to_str().unwrap(),
        "--top-k",
        "0.1",
        "--block",
        "64x128",
    ]);
    assert_eq!((report["top_k"].as_f64(), report["top_p"].as_f64()), (Some(0.1), None));
    assert_eq!(report["block"], serde_json::json!([64, 128]));
    // Every row keeps ceil(0.1 · 28) = 3 of its 28 blocks.
    assert!((report["sparsity"].as_f64().unwrap() - 25.0 / 28.0).abs() < 1e-9);
}

#[test]
fn the_demo_refuses_what_it_cannot_do() {
    fails(&["demo", "--device", "cpu", "--top-k", "0"], &["top-k is 0", "(0, 1]"]);
    let nowhere = ["demo", "--device", "cpu", "--png", "/nonexistent/mask.png"];
    let output = command().args(nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("error: cannot write /nonexistent/mask.png") && said.contains("--png"), "{said}");
    let output = command().args(["demo", "--block", "32x32"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "an argument that makes no sense");
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

#[test]
fn a_closed_standard_output_is_no_failure() {
    let mut child =
        command().args(["inspect", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
