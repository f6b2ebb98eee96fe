use crate::toolchain::environment::{PYTHON_PATH_VARIABLE, PYTHON_VARIABLES};
use std::fs;
use std::path::Path;

use super::find::{ask, search};
use super::layout::{Located, inspect};
use super::*;

#[cfg(unix)]
mod install;

fn touch(path: impl AsRef<Path>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    fs::write(path, "").expect("a file");
}

/// Files that look like a toolchain.
fn plant(root: &Path, libraries: &str, version: (i32, i32)) {
    let (major, minor) = version;
    touch(root.join(libraries).join(format!("libnvrtc.so.{major}")));
    touch(root.join(libraries).join(format!("libnvrtc-builtins.so.{major}.{minor}")));
    touch(root.join("include/cuda_fp16.h"));
    touch(root.join("include/cuda_bf16.h"));
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The place that would be loaded, and the list.
fn found(environment: &Environment) -> (Option<Located>, Vec<Searched>) {
    search(environment, |located| Ok((located.clone(), (13, 0))))
}

#[test]
fn places_are_tried_in_order() {
    let dir = folder();
    let root = dir.path();
    let data = root.join("data");
    let python = root.join("python");
    plant(&data.join("toolchain/nvidia/cu13"), "lib", (13, 0));
    let mut environment = Environment::empty(root)
        .with_variable(DATA_VARIABLE, &data)
        .with_python_folders(vec![python.clone()]);
    let expect = |environment: &Environment, place: &Path, source: Source| {
        let (located, searched) = found(environment);
        assert!(located.expect("a toolchain").library.starts_with(place));
        let last = searched.last().expect("an entry");
        assert_eq!((last.place.as_path(), last.source), (place, source));
        assert_eq!(last.outcome, Outcome::Used { version: (13, 0) });
    };
    // Each place that is added stands before the ones that are there.
    expect(&environment, &data.join("toolchain/nvidia/cu13"), Source::DataFolder);
    plant(&python.join("nvidia/cu13"), "lib", (13, 0));
    expect(&environment, &python.join("nvidia/cu13"), Source::Python);
    plant(&root.join("usr/local/cuda-12.9"), "lib64", (12, 9));
    expect(&environment, &root.join("usr/local/cuda-12.9"), Source::DefaultFolder);
    plant(&root.join("usr/local/cuda-13.1"), "targets/x86_64-linux/lib", (13, 1));
    expect(&environment, &root.join("usr/local/cuda-13.1"), Source::DefaultFolder);
    plant(&root.join("home"), "lib64", (13, 0));
    environment = environment.with_variable("CUDA_HOME", root.join("home"));
    expect(&environment, &root.join("home"), Source::Variable("CUDA_HOME"));
    plant(&root.join("told"), "lib", (13, 0));
    environment = environment.with_variable(NVRTC_VARIABLE, root.join("told/lib"));
    expect(&environment, &root.join("told/lib"), Source::Variable(NVRTC_VARIABLE));
    environment = environment.with_variable(NVRTC_VARIABLE, root.join("told/lib/libnvrtc.so.13"));
    expect(&environment, &root.join("told/lib/libnvrtc.so.13"), Source::Variable(NVRTC_VARIABLE));
}

#[test]
fn every_refusal_has_its_reason() {
    let dir = folder();
    let root = dir.path();
    let place = |name: &str| root.join(name);
    let refusal = |name: &str| inspect(&place(name)).expect_err(name);

    assert_eq!(refusal("nowhere"), Refusal::Missing);
    fs::create_dir(place("empty")).expect("a folder");
    assert_eq!(refusal("empty"), Refusal::NoLibrary);
    touch(place("alone/lib/libnvrtc.so.13"));
    touch(place("alone/lib/libnvrtc.alt.so.13"));
    assert!(matches!(refusal("alone"), Refusal::NoBuiltins { .. }));
    plant(&place("old"), "lib", (12, 4));
    assert_eq!(refusal("old"), Refusal::TooOld { major: 12, minor: 4 });
    assert!(refusal("old").to_string().contains("NVRTC 12.4, and 12.8 or newer"));
    plant(&place("bare"), "lib", (13, 0));
    fs::remove_file(place("bare/include/cuda_bf16.h")).expect("a file");
    assert!(matches!(refusal("bare"), Refusal::NoHeaders { .. }));
}

#[test]
fn builtins_belong_to_their_library() {
    let dir = folder();
    plant(dir.path(), "lib", (13, 0));
    touch(dir.path().join("lib/libnvrtc-builtins.so.12.9"));
    touch(dir.path().join("lib/libnvrtc-builtins.so.14.0"));
    let located = inspect(dir.path()).expect("a toolchain");
    assert!(located.builtins.ends_with("lib/libnvrtc-builtins.so.13.0"), "{located:?}");
}

#[test]
fn the_packages_of_cuda_12_are_two_folders() {
    let dir = folder();
    let nvidia = dir.path().join("site-packages/nvidia");
    touch(nvidia.join("cuda_nvrtc/lib/libnvrtc.so.12"));
    touch(nvidia.join("cuda_nvrtc/lib/libnvrtc-builtins.so.12.8"));
    touch(nvidia.join("cuda_runtime/include/cuda_fp16.h"));
    touch(nvidia.join("cuda_runtime/include/cuda_bf16.h"));
    let environment =
        Environment::empty(dir.path()).with_python_folders(vec![dir.path().join("site-packages")]);
    let located = found(&environment).0.expect("a toolchain");
    assert!(located.include.join("cuda_fp16.h").is_file());

    let prefix = dir.path().join("venv");
    plant(&prefix.join("lib/python3.12/site-packages/nvidia/cu13"), "lib", (13, 0));
    let environment = Environment::empty(dir.path()).with_variable("VIRTUAL_ENV", &prefix);
    assert!(found(&environment).0.expect("a toolchain").library.starts_with(&prefix));
}

#[test]
fn nothing_found_lists_every_place() {
    let dir = folder();
    let environment = Environment::empty(dir.path())
        .with_variable("CUDA_HOME", dir.path().join("gone"))
        .with_variable(DATA_VARIABLE, dir.path().join("data"));
    let error = Toolchain::find_in(&environment).expect_err("there is nothing");
    let ToolchainError::NotFound { searched } = &error else { panic!("{error:?}") };
    let sources: Vec<_> = searched.iter().map(|searched| searched.source).collect();
    assert_eq!(
        sources,
        [Source::Variable("CUDA_HOME"), Source::DefaultFolder, Source::Python, Source::DataFolder]
    );
    let text = error.to_string();
    assert!(text.contains("gone (CUDA_HOME): it does not exist"), "{text}");
    assert!(text.contains("`toolchain::install` brings one; or set TILEWRIGHT_NVRTC"), "{text}");
}

#[test]
fn a_library_that_does_not_load_is_passed_over() {
    let dir = folder();
    plant(&dir.path().join("usr/local/cuda"), "lib64", (13, 0));
    let error = Toolchain::find_in(&Environment::empty(dir.path())).expect_err("empty files do not load");
    let ToolchainError::NotFound { searched } = &error else { panic!("{error:?}") };
    assert!(matches!(searched[0].outcome, Outcome::Refused(Refusal::CannotLoad { .. })), "{error}");
}

#[test]
fn a_wrong_variable_is_not_passed_over() {
    let dir = folder();
    plant(&dir.path().join("usr/local/cuda"), "lib64", (13, 0));
    let environment = Environment::empty(dir.path()).with_variable(NVRTC_VARIABLE, dir.path().join("typo"));
    let error = Toolchain::find_in(&environment).expect_err("the variable is wrong");
    assert!(matches!(&error, ToolchainError::Told { refusal: Refusal::Missing, .. }), "{error:?}");
    assert!(error.to_string().contains("TILEWRIGHT_NVRTC is set to"), "{error}");
}

/// Conda keeps the libraries in `targets` with links to them in `lib`, and the headers in `targets` alone.
#[cfg(unix)]
fn plant_conda(prefix: &Path, links: bool) {
    use std::os::unix::fs::symlink;
    let target = format!("targets/{}-linux", if cfg!(target_arch = "aarch64") { "sbsa" } else { "x86_64" });
    let real = prefix.join(&target);
    touch(real.join("lib/libnvrtc.so.13.0.88"));
    touch(real.join("lib/libnvrtc-builtins.so.13.0.88"));
    symlink("libnvrtc.so.13.0.88", real.join("lib/libnvrtc.so.13")).expect("a link");
    symlink("libnvrtc-builtins.so.13.0.88", real.join("lib/libnvrtc-builtins.so.13.0")).expect("a link");
    touch(real.join("include/cuda_fp16.h"));
    touch(real.join("include/cuda_bf16.h"));
    if links {
        fs::create_dir_all(prefix.join("lib")).expect("a folder");
        for name in ["libnvrtc.so.13", "libnvrtc.so.13.0.88"] {
            symlink(Path::new("..").join(&target).join("lib").join(name), prefix.join("lib").join(name))
                .expect("a link");
        }
    }
}

/// Whatever names an installation, and whether its folders are links, all of it is found, and by its real place.
#[cfg(unix)]
#[test]
fn layouts_and_links_lead_to_the_same_files() {
    use std::os::unix::fs::symlink;
    let dir = folder();
    let root = dir.path().canonicalize().expect("a path");
    let path = |name: &str| root.join(name);
    let target = if cfg!(target_arch = "aarch64") { "targets/sbsa-linux" } else { "targets/x86_64-linux" };
    plant_conda(&path("conda"), true);
    plant_conda(&path("conda bare"), false);
    plant(&path("cuda-13.0"), "lib64", (13, 0));
    symlink("cuda-13.0", path("cuda")).expect("a link");
    // NVIDIA's installer: everything is below `targets`, with links to its folders.
    plant(&path("runfile").join(target), "lib", (13, 0));
    symlink(Path::new(target).join("lib"), path("runfile/lib64")).expect("a link");
    symlink(Path::new(target).join("include"), path("runfile/include")).expect("a link");
    // Debian's.
    plant(&path("debian"), "lib/x86_64-linux-gnu", (13, 0));
    // A folder of links, one of which is all that is there.
    fs::create_dir(path("alone")).expect("a folder");
    symlink(path("cuda-13.0/lib64/libnvrtc.so.13"), path("alone/libnvrtc.so.13")).expect("a link");
    fs::create_dir(path("lib64 alone")).expect("a folder");
    symlink(path("cuda-13.0/lib64"), path("lib64 alone/lib64")).expect("a link");

    let conda = path("conda").join(target);
    let bare = path("conda bare").join(target);
    let runfile = path("runfile").join(target);
    let cuda = path("cuda-13.0");
    for (place, real) in [
        ("conda", &conda),
        ("conda/lib", &conda),
        ("conda/lib/libnvrtc.so.13", &conda),
        ("conda bare", &bare),
        ("cuda", &cuda),
        ("cuda/lib64", &cuda),
        ("cuda/lib64/libnvrtc.so.13", &cuda),
        ("runfile", &runfile),
        ("runfile/lib64", &runfile),
        ("debian/lib/x86_64-linux-gnu", &path("debian")),
        ("alone", &cuda),
        ("alone/libnvrtc.so.13", &cuda),
        ("lib64 alone", &cuda),
    ] {
        let located = inspect(&path(place)).unwrap_or_else(|refusal| panic!("{place}: {refusal}"));
        assert!(located.library.starts_with(path(place)), "{place}: as it was found: {located:?}");
        for file in [&located.opened, &located.builtins, &located.include.join("cuda_fp16.h")] {
            assert!(file.starts_with(real), "{place}: {located:?}");
            assert_eq!(
                &file.canonicalize().expect("it is there"),
                file,
                "{place}: what is opened is no link"
            );
        }
    }
    for name in PYTHON_VARIABLES {
        for place in ["conda", "conda bare"] {
            let environment = Environment::empty(&path("nowhere")).with_variable(name, path(place));
            assert!(
                found(&environment).0.expect("a toolchain").library.starts_with(path(place)),
                "{name}, {place}"
            );
        }
    }
}

/// What is executed is nobody else's to change: the library, its builtins, the headers and the folders above, whatever led to
/// them.
#[cfg(unix)]
#[test]
fn what_others_can_change_is_not_loaded() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let root = dir.path().canonicalize().expect("a path");
    let home = root.join("above/cuda");
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode is set");
    };
    plant(&home, "lib", (13, 0));
    let elsewhere = root.join("elsewhere/nvidia/cu13");
    plant(&elsewhere, "lib", (13, 0));
    let environment = Environment::empty(&root)
        .with_variable("CUDA_HOME", &home)
        .with_python_folders(vec![root.join("elsewhere")]);
    let told = Environment::empty(&root).with_variable(NVRTC_VARIABLE, &home);
    assert!(found(&environment).0.expect("it is ours").library.starts_with(&home));
    for exposed in [
        "above",
        "above/cuda",
        "above/cuda/lib",
        "above/cuda/lib/libnvrtc.so.13",
        "above/cuda/lib/libnvrtc-builtins.so.13.0",
        "above/cuda/include",
        "above/cuda/include/cuda_fp16.h",
        "above/cuda/include/cuda_bf16.h",
    ] {
        let path = root.join(exposed);
        let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
        set_mode(&path, mode | 0o002);
        let refusal =
            Refusal::Exposed { path: path.clone(), exposure: Exposure::Writable { mode: mode | 0o002 } };
        // The next place is taken, and the list says why.
        let (located, searched) = found(&environment);
        assert!(located.expect("the next one").library.starts_with(&elsewhere), "{exposed}");
        assert_eq!(searched[0].outcome, Outcome::Refused(refusal.clone()), "{exposed}");
        // The user's word is no exception.
        let error = Toolchain::find_in(&told).expect_err("it is exposed");
        assert!(
            matches!(&error, ToolchainError::Told { refusal: found, .. } if *found == refusal),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("other users"), "{text}");
        serde_json::to_value(&searched).expect("it has a JSON form");
        set_mode(&path, mode);
    }
    assert!(found(&environment).0.expect("as before").library.starts_with(&home));
}

/// Neither what lies in the current folder nor a relative entry of the path is Python's module or a package folder; what the
/// user added is.
#[cfg(unix)]
#[test]
fn the_current_folder_has_no_say() {
    let dir = folder();
    plant(&dir.path().join("added/nvidia/cu13"), "lib", (13, 0));
    let environment = Environment::empty(dir.path())
        .with_python_folders(vec!["added".into(), ".".into(), "".into()])
        .with_variable(PYTHON_PATH_VARIABLE, "added::.");
    assert_eq!(found(&environment).0, None);
    let added = std::env::join_paths([Path::new("."), &dir.path().join("added")]).expect("a path");
    let environment = environment.with_variable(PYTHON_PATH_VARIABLE, added);
    assert!(found(&environment).0.expect("a toolchain").library.starts_with(dir.path().join("added")));

    // The interpreter itself, in a folder where `site.py`, `json.py` and `pip.py` tell that they were run.
    let told = dir.path().join("told");
    for module in ["site", "json", "pip", "sitecustomize"] {
        let line = format!("open({told:?}, 'w').write('{module}')\n");
        fs::write(dir.path().join(format!("{module}.py")), line).expect("a module");
    }
    let mut ask = ask("python3");
    ask.current_dir(dir.path()).env("PYTHONPATH", dir.path());
    let Ok(output) = ask.output() else { panic!("the tests of this workspace need python3") };
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    assert!(!told.exists(), "a module in the current folder was run");
}
