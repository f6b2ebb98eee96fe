//! `--templates`: kernels of a user's own crate, without a Rust build.

use crate::support::{fails, has_nvrtc, json, makes_no_sense, nowhere, stdout, tilewright, write_tensors};
use safetensors::Dtype;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The kernels of the example crate.
fn custom() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/custom-kernel/kernels");
    folder.to_str().expect("a plain path").to_owned()
}

const DECLARATION: &str = r#"kernel! {
    /// Rows times a number, and a bias. More of it.
    fn blend(
        x: Tensor<T, [rows, width]>,
        bias: Option<Tensor<f32, [bias_rows | 1, width]>>,
        done: counters Tensor<i32, [tiles]>,
        y: out Tensor<T, [rows, width]>,
        gain: f32,
        steps: i32,
    )
    specialize { T: [bf16, f32] }
    include "lib/tile.rs";
    functions { score_mod: ScoreMod }
    let tiles = ceil_div(rows, TILE);
    require width % 8 == 0, "pad the rows";
    body sm80 {
        tune { WARPS: [4, 8] }
        launch { grid = [tiles, 1, 1], threads = 32 * WARPS }
    }
}
"#;

const BODY: &str = r#"<% include "lib/gain.cuh" %>
extern "C" __global__ void __launch_bounds__(THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f) {
    for (int i = threadIdx.x; i < p.width; i += THREADS) p.y[i] = static_cast<T>(gained(static_cast<float>(p.x[i]), p.gain));
}
"#;

/// A folder with a kernel that has what kernels have: derived dimensions, optional tensors, counters, scalars, functions, shared files.
fn blend() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("blend/kernel.rs", DECLARATION);
    write("blend/sm80.cu", BODY);
    write("lib/tile.rs", "shared! {\n    specialize { TILE: [32, 64] }\n}\n");
    write("lib/gain.cuh", "__device__ float gained(float x, float gain) { return x * gain; }\n");
    folder
}

fn path(folder: &TempDir) -> String {
    folder.path().to_str().expect("a plain path").to_owned()
}

#[test]
fn a_folder_takes_the_place_of_the_shipped_kernels() {
    let (custom, own) = (custom(), blend());
    for (folder, name, params) in [
        (custom, "rms_norm", vec!["T: bf16 f16", "D: 64 128 256"]),
        (path(&own), "blend", vec!["T: bf16 f32", "TILE: 32 64"]),
    ] {
        let all = json(&["inspect", "--templates", &folder]);
        let kernels = all["kernels"].as_array().unwrap();
        assert_eq!(kernels.len(), 1);
        assert_eq!((kernels[0]["kernel"].as_str(), &kernels[0]["specialize"]), (Some(name), &params.into()));
        let one = json(&["inspect", name, "--templates", &folder, "--arch", "sm_86", "--candidate", "1"]);
        assert_eq!((&one["kernel"], &one["arch"]), (&name.into(), &"sm_86".into()));
        let source = stdout(&tilewright(&["inspect", name, "--templates", &folder, "--source"]));
        assert!(source.contains(&format!("TILEWRIGHT_KERNEL {name}_sm80_bf16")), "{source}");
        for command in [&["inspect", "forward"][..], &["compile", "--kernel", "forward"]] {
            let command = [command, &["--templates", &folder]].concat();
            fails(&command, &[&format!("no kernel `forward`: there are {name}")]);
        }
        if has_nvrtc("compile --templates") {
            let report = json(&["compile", "--templates", &folder, "--arch", "sm_80,sm_90a"]);
            assert_eq!(
                (report["failed"].as_u64(), report["spilled"].as_u64()),
                (Some(0), Some(0)),
                "{report}"
            );
            let bundle = own.path().join("bundle");
            let bundle = bundle.to_str().unwrap();
            let arguments =
                ["compile", "--kernel", name, "--templates", &folder, "--arch", "sm_80", "--bundle", bundle];
            assert!(json(&arguments)["bundle"].is_object());
            fs::remove_file(bundle).unwrap();
        }
    }
    // A body that does not compile says where.
    if has_nvrtc("a body that does not compile") {
        fs::write(
            own.path().join("lib/gain.cuh"),
            "__device__ float gained(float x, float gain) { return y; }\n",
        )
        .unwrap();
        let said = stdout(&tilewright(&["compile", "--templates", &path(&own), "--arch", "sm_80"]));
        assert!(said.contains("lib/gain.cuh") && said.contains("\"y\" is undefined"), "{said}");
    }
}

#[test]
fn folders_that_hold_no_kernels_say_what_is_wrong() {
    let nowhere = nowhere();
    let spoilt = |spoil: &dyn Fn(&Path), says: &[&str]| {
        let own = blend();
        spoil(own.path());
        let folder = path(&own);
        for command in [&["inspect"][..], &["compile"], &["tune", "--device", "cpu", "--kernel", "blend"]] {
            let says: Vec<String> = says.iter().map(|says| says.replace("FOLDER", &folder)).collect();
            let says: Vec<&str> = says.iter().map(String::as_str).collect();
            fails(&[command, &["--templates", &folder]].concat(), &says);
        }
    };
    let declare = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            assert!(DECLARATION.contains(from));
            fs::write(folder.join("blend/kernel.rs"), DECLARATION.replace(from, to)).unwrap();
        }
    };
    spoilt(
        &|folder| fs::remove_dir_all(folder.join("blend")).unwrap(),
        &["FOLDER holds no kernel", "kernel.rs"],
    );
    spoilt(
        &|folder| fs::remove_file(folder.join("blend/kernel.rs")).unwrap(),
        &["FOLDER/blend has no kernel.rs"],
    );
    spoilt(
        &|folder| fs::remove_file(folder.join("blend/sm80.cu")).unwrap(),
        &["blend/sm80.cu is missing: write it"],
    );
    spoilt(&declare("[rows, width]", "[rows, 7]"), &["FOLDER/blend/kernel.rs:4:"]);
    spoilt(&declare("rows, TILE", "rows, TITLE"), &["FOLDER/blend/kernel.rs:14:", "TITLE"]);
    spoilt(
        &|folder| fs::write(folder.join("blend/sm80.cu"), "<% if D %>\n").unwrap(),
        &["template FOLDER/blend/sm80.cu", "--> FOLDER/blend/sm80.cu:"],
    );
    // Files of a kernel: the folder itself is right.
    spoilt(
        &|folder| fs::write(folder.join("blend/sm80.cu"), b"\xff").unwrap(),
        &["cannot read FOLDER/blend/sm80.cu, a file of the kernels", "its text is not UTF-8 from byte 0 on"],
    );
    spoilt(
        &|folder| std::os::unix::fs::symlink("/dev/zero", folder.join("lib/zero.cuh")).unwrap(),
        &["cannot read FOLDER/lib/zero.cuh, a file of the kernels", "is no file"],
    );
    for command in [&["inspect"][..], &["compile"], &["tune", "--device", "cpu", "--kernel", "blend"]] {
        let nowhere: PathBuf = nowhere.clone();
        let nowhere = nowhere.to_str().unwrap();
        fails(
            &[command, &["--templates", nowhere]].concat(),
            &["cannot read the kernels of ", nowhere, "`--templates` names"],
        );
    }
}

/// What is wrong with the arguments is said before a GPU is asked for.
fn tune(folder: &str, kernel: &str, arguments: &str, says: &[&str]) {
    let words = arguments.split(' ').filter(|word| !word.is_empty());
    let tune = ["tune", "--device", "cpu", "--templates", folder, "--kernel", kernel];
    fails(&tune.into_iter().chain(words).collect::<Vec<_>>(), says);
}

const ALL_IS_WELL: &str = "there is nothing to tune on the CPU";

#[test]
fn arguments_that_are_none_are_refused_with_those_that_there_are() {
    let own = blend();
    let own = path(&own);
    let tune = |arguments: &str, says: &[&str]| tune(&own, "blend", arguments, says);
    let good = "--scalars gain=2,steps=-3 --dims rows=1000,width=64";
    tune(good, &[ALL_IS_WELL]);
    tune(&format!("{good} --spec T=f32,TILE=64 --explain"), &[ALL_IS_WELL]);
    for (arguments, says) in [
        (
            "--scalars gain=1e-6,steps=3 --dims rows=8",
            "`--dims` has no extent of `width`; its dimensions: rows, width",
        ),
        (
            "--scalars gain=1,steps=3",
            "`--dims` has no extent of `rows`, `width`; its dimensions: rows, width",
        ),
        (
            "--scalars gain=1,steps=3 --dims rows=8,wide=8",
            "`wide` in `--dims` is no dimension; its dimensions: rows, width",
        ),
        (
            "--scalars gain=1,steps=3 --dims rows=8,rows=9",
            "`rows` is twice in `--dims`; its dimensions: rows, width",
        ),
        (
            "--scalars gain=1,steps=3 --dims rows=8,tiles=1",
            "`tiles` in `--dims` is computed from others; its",
        ),
        (
            "--scalars gain=1,steps=3 --dims rows=8,bias_rows=1",
            "`bias_rows` in `--dims` is of no tensor that is given; its",
        ),
        (
            "--scalars gain=1,steps=3 --dims rows=8,width=9",
            "needs width % 8 == 0, found width = 9: pad the rows",
        ),
        ("--scalars gain=1", "the scalar `steps` is not given; its scalars: gain, steps"),
        ("--scalars gain=1,step=3", "there is no scalar `step`; its scalars: gain, steps"),
        ("--scalars gain=1,steps=0.5", "the scalar `steps` is 0.5, needed a whole number of 32 bits"),
        (
            "--scalars gain=-1e39,steps=3",
            "the scalar `gain` is -1e39, needed a number from -3.4028235e38 to 3.4028235e38",
        ),
        ("--scalars gain=1,gain=2,steps=3", "the scalar `gain` is given twice"),
        ("--spec T=f16", "T = f16 is not supported: use one of bf16, f32"),
        ("--spec E=1", "`E` is no parameter: it has T, TILE"),
    ] {
        tune(arguments, &["kernel `blend`", says]);
    }
    super::templates::tune(&own, "blond", good, &["there is no kernel `blond`: there are blend"]);
    let templates = ["tune", "--templates", &own];
    for (arguments, says) in [
        (&["--kernel", "blend", "--dims", "rows=0"][..], "`rows=0`: write NAME=EXTENT"),
        (&["--kernel", "blend", "--dims", "rows=-4"], "`rows=-4`: write NAME=EXTENT"),
        (&["--kernel", "blend", "--dims", "rows=2147483648"], "`rows=2147483648`: write NAME=EXTENT"),
        (&["--kernel", "blend", "--dims", "rows"], "`rows`: write NAME=EXTENT"),
        (&["--kernel", "blend", "--scalars", "gain=many"], "`gain=many`: write NAME=NUMBER"),
        (&["--kernel", "blend", "--scalars", "gain=1e999"], "`gain=1e999`: write NAME=NUMBER"),
        (&["--kernel", "blend", "--shapes", "1x100x64"], "cannot be used with '--shapes"),
        (&["--kernel", "blend", "--top-k", "0.5"], "cannot be used with '--top-k"),
        (&["--kernel", "blend", "--scores", "keys"], "cannot be used with '--scores"),
        (&["--kernel", "blend", "--backward"], "cannot be used with '--backward'"),
        (&[], "--kernel <NAME>"),
    ] {
        makes_no_sense(&[&templates[..], arguments].concat(), &[says]);
    }
    for option in ["--kernel", "--dims", "--scalars", "--spec", "--inputs"] {
        makes_no_sense(&["tune", option, "a=1"], &["--templates <DIR>"]);
    }
    // More than any memory holds.
    tune(
        "--spec T=f32 --scalars gain=1,steps=3 --dims rows=2147483647,width=2147483640",
        &["does not fit into memory"],
    );
}

#[test]
fn a_file_s_tensors_say_extents() {
    let (own, folder) = (blend(), tempfile::tempdir().unwrap());
    let (own, file) = (path(&own), folder.path().join("inputs"));
    let scalars = "--scalars gain=1,steps=3 --inputs";
    let tune = |tensors: &[(&str, Dtype, &[usize])], dims: &str, says: &[&str]| {
        write_tensors(&file, tensors);
        tune(&own, "blend", &format!("{scalars} {} {dims}", file.to_str().unwrap()), says);
    };
    let x = ("x", Dtype::BF16, &[100, 64][..]);
    tune(&[x], "", &[ALL_IS_WELL]);
    tune(&[x], "--dims rows=100", &[ALL_IS_WELL]);
    tune(&[x, ("bias", Dtype::F32, &[7, 64])], "", &[ALL_IS_WELL]);
    tune(&[x, ("bias", Dtype::F32, &[7, 64])], "--dims bias_rows=7", &[ALL_IS_WELL]);
    // Only the bias is at hand.
    let bias = ("bias", Dtype::F32, &[1, 64][..]);
    tune(&[bias], "", &["`--dims` has no extent of `rows`; its dimensions: rows, width, bias_rows"]);
    tune(&[bias], "--dims rows=9", &[ALL_IS_WELL]);
    for (tensors, dims, says) in [
        (&[x][..], "--dims rows=99", "`rows` is 100 in `x` and 99 in `--dims`: they must be equal"),
        (&[x, ("bias", Dtype::F32, &[1, 32])], "", "`width` is 64 in `x` and 32 in `bias`"),
        (&[x, ("done", Dtype::F32, &[4])], "", "`done` has dtype f32, needed i32"),
        (&[("x", Dtype::F32, &[100, 64])], "", "`x` has dtype f32, needed bf16"),
        (&[("x", Dtype::BF16, &[100])], "", "`x` has shape [100], needed [rows, width]"),
        (&[("x", Dtype::BF16, &[0, 64])], "", "`rows` is 0 in `x`, needed 1 to 2147483647"),
        (
            &[x, ("z", Dtype::BF16, &[1])],
            "",
            "`--inputs` has a tensor `z` that is none of its arguments; its tensors: x, bias, done, y",
        ),
    ] {
        tune(tensors, dims, &["kernel `blend`", says]);
    }
    tune(&[("x", Dtype::U32, &[1, 8])], "", &["`x` in ", "has dtype u32, needed f16, bf16, f32, i32 or u8"]);
    super::templates::tune(
        &own,
        "blend",
        &format!("{scalars} {}", nowhere().display()),
        &["cannot read ", "check the path"],
    );
}
