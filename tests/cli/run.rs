//! `run` gives what the library gives.

use crate::support::{data, fails, json, makes_no_sense, small_input, write_tensors};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use tilewright::{Attention, DType, Device, HeadDim, Output, Scores, Tail, Tensor, top_k, top_p};

fn tensor(file: &SafeTensors<'_>, name: &str) -> Tensor {
    let view = file.tensor(name).unwrap();
    Tensor::from_bytes(DType::Bf16, view.data(), view.shape()).unwrap()
}

/// Runs the command on a file and the library on its tensors, and compares them bit for bit.
fn agree(input: &Path, bshd: bool, d: HeadDim) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let layout = if bshd { "bshd" } else { "bhsd" };
    let (from, to) = (input.to_str().unwrap(), output.to_str().unwrap());
    let report = json(&[
        "run", "--device", "cpu", "--mask", "--layout", layout, "--top-k", "0.1", "--top-p", "0.3",
        "--input", from, "--output", to,
    ]);

    let bytes = std::fs::read(input).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let [q, k, v] = ["q", "k", "v"].map(|name| {
        let tensor = tensor(&file, name);
        if bshd { tensor.permute(&[0, 2, 1, 3]).unwrap() } else { tensor }
    });
    let attention =
        Attention::builder(d, DType::Bf16).select(top_k(0.1) | top_p(0.3)).build(&Device::cpu()).unwrap();
    let Output { out, lse, mask } = attention.forward(&q, &k, &v).unwrap();

    let bytes = std::fs::read(&output).unwrap();
    let found = SafeTensors::deserialize(&bytes).unwrap();
    let found_out = tensor(&found, "out");
    assert_eq!(found_out.shape(), file.tensor("q").unwrap().shape(), "the layout of q");
    let found_out = if bshd { found_out.permute(&[0, 2, 1, 3]).unwrap() } else { found_out };
    assert!(found_out.to_vec::<bf16>().unwrap() == out.to_vec::<bf16>().unwrap(), "out differs");
    let words = |name: &str| -> Vec<[u8; 4]> {
        found.tensor(name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let found_lse: Vec<f32> = words("lse").into_iter().map(f32::from_le_bytes).collect();
    assert_eq!(found_lse, lse.to_vec::<f32>().unwrap());
    assert_eq!(found.tensor("lse").unwrap().shape(), lse.shape());
    for (name, expected) in [("kv_counts", &mask.kv().counts), ("kv_indices", &mask.kv().indices)] {
        let found_list: Vec<i32> = words(name).into_iter().map(i32::from_le_bytes).collect();
        assert_eq!(found_list, expected.to_vec::<i32>().unwrap(), "{name}");
        assert_eq!(found.tensor(name).unwrap().shape(), expected.shape(), "{name}");
    }
    assert!((report["sparsity"].as_f64().unwrap() - mask.sparsity().unwrap()).abs() < 1e-12);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
}

#[test]
fn real_tensors() {
    agree(&data("layer6-head1.safetensors"), false, HeadDim::D128);
}

#[test]
fn grouped_heads_batches_and_both_layouts() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.safetensors");
    let d = HeadDim::D64;
    let tensors: [(&str, Dtype, &[usize]); 3] = [
        ("q", Dtype::BF16, &[2, 4, 300, 64]),
        ("k", Dtype::BF16, &[2, 2, 517, 64]),
        ("v", Dtype::BF16, &[2, 2, 517, 64]),
    ];
    write_tensors(&input, &tensors);
    agree(&input, false, d);
    let tensors: [(&str, Dtype, &[usize]); 3] = [
        ("q", Dtype::BF16, &[2, 300, 4, 64]),
        ("k", Dtype::BF16, &[2, 517, 2, 64]),
        ("v", Dtype::BF16, &[2, 517, 2, 64]),
    ];
    write_tensors(&input, &tensors);
    agree(&input, true, d);
}

#[test]
fn a_tail_is_the_librarys() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (small_input(folder.path()), folder.path().join("out.safetensors"));
    let to = output.to_str().unwrap();
    let run = |tail| {
        let rule = ["run", "--device", "cpu", "--top-k", "0.3", "--block", "64x64"];
        [&rule[..], &["--input", &input, "--output", to, "--tail", tail]].concat()
    };
    let bytes = std::fs::read(&input).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let [q, k, v] = ["q", "k", "v"].map(|name| tensor(&file, name));
    let mut outs: Vec<Vec<bf16>> = Vec::new();
    for (written, said, tail) in [
        ("block", "block", Tail::Block),
        ("row", "row:128", Tail::Row { keys: 128 }),
        ("row:64", "row:64", Tail::Row { keys: 64 }),
    ] {
        let report = json(&run(written));
        assert_eq!(report["tail"], said);
        let builder = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.3));
        let blocks = tilewright::BlockSize::new(64, 64).unwrap();
        let attention = builder.blocks(blocks).tail(tail).build(&Device::cpu()).unwrap();
        let expected = attention.forward(&q, &k, &v).unwrap().out.to_vec::<bf16>().unwrap();
        let bytes = std::fs::read(&output).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["tail"], said);
        let found = tensor(&SafeTensors::deserialize(&bytes).unwrap(), "out").to_vec::<bf16>().unwrap();
        assert!(found == expected, "{written}: out differs");
        assert!(!outs.contains(&found), "{written}: another tail, another result");
        outs.push(found);
    }
    fails(&run("row:100"), &["over 100 keys", "multiple of the 64 keys", "take 64 or 128"]);
    for wrong in ["rows", "row:", "row:-64", "none"] {
        makes_no_sense(&run(wrong), &["--tail", "row:KEYS"]);
    }
}

#[test]
fn scores_are_the_librarys() {
    let folder = tempfile::tempdir().unwrap();
    let input = data("layer2-head5.safetensors");
    let (from, to) = (input.to_str().unwrap(), folder.path().join("out.safetensors"));
    let rule = ["run", "--device", "cpu", "--mask", "--top-k", "0.1", "--tail", "block", "--input", from];
    let run = |more: &[&'static str]| [&rule[..], &["--output", to.to_str().unwrap()], more].concat();
    let bytes = std::fs::read(&input).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let [q, k, v] = ["q", "k", "v"].map(|name| tensor(&file, name));
    let mut outs: Vec<Vec<bf16>> = Vec::new();
    for (more, scores, name, said) in [
        (&["--scores", "keys"][..], Scores::Keys, "keys", "top-k 0.1 by keys"),
        (&["--scores", "means"], Scores::Means, "means", "top-k 0.1"),
        // As in Rust, a tail does not change what is selected.
        (&[], Scores::Means, "means", "top-k 0.1"),
    ] {
        assert_eq!(json(&run(more))["scores"], name);
        let builder = Attention::builder(HeadDim::D128, DType::Bf16).select(top_k(0.1).by(scores));
        let attention = builder.tail(Tail::Block).build(&Device::cpu()).unwrap();
        let expected = attention.forward(&q, &k, &v).unwrap();
        let bytes = std::fs::read(&to).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["selection"], said);
        let found = SafeTensors::deserialize(&bytes).unwrap();
        let out = tensor(&found, "out").to_vec::<bf16>().unwrap();
        assert!(out == expected.out.to_vec::<bf16>().unwrap(), "{more:?}: out differs");
        outs.push(out);
    }
    assert!(outs[0] != outs[1] && outs[1] == outs[2]);
    for wrong in ["key", "Keys", "", "best"] {
        makes_no_sense(&run(&["--scores", wrong]), &["--scores <SCORES>", "means, keys"]);
    }
}
