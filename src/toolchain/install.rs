//! Installing NVRTC from pip's packages into Tilewright's data folder.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ToolchainError;
use super::environment::Environment;
use super::find::package_root;
use super::layout::{inspect, trusted};
use crate::leftover;

/// The packages with the SHA-256 of their wheels, those for x86-64 and those for 64-bit Arm: from wherever a wheel comes, it is
/// the one that was tested.
const WHEELS: [(&str, [&str; 2]); 2] = [
    (
        "nvidia-cuda-nvrtc==13.0.88",
        [
            "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
            "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b",
        ],
    ),
    (
        "nvidia-cuda-runtime==13.0.96",
        [
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        ],
    ),
];

/// The packages: the compiler, and the headers that sources include.
pub(super) const PACKAGES: [&str; 2] = [WHEELS[0].0, WHEELS[1].0];

/// How many of a failed command's lines are shown.
const LAST_LINES: usize = 12;

/// A command that installs Python packages, up to the part that is the same for all.
#[derive(Clone, Debug)]
pub(super) struct Installer {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Text in its output that means it is not there after all.
    pub absent: &'static str,
}

/// `-I` and `--isolated`: neither modules in the current folder nor settings of the user's have a say in what is installed.
const PIP: &[&str] = &[
    "-I",
    "-m",
    "pip",
    "--isolated",
    "install",
    "--no-compile",
    "--no-input",
    "--progress-bar",
    "off",
    "--disable-pip-version-check",
];

/// Settings of pip's without which a closed network cannot be left. They are the only ones that count, and cannot change what is
/// installed: of the packages the hashes are known. Of the first kind are arguments, of the second lines of the
/// requirements, since an address may hold a password, which an argument would show to all.
const PIP_ARGUMENTS: [(&str, &str); 3] =
    [("PIP_CERT", "--cert"), ("PIP_CLIENT_CERT", "--client-cert"), ("PIP_DEFAULT_TIMEOUT", "--timeout")];
const PIP_SOURCES: [(&str, &str); 4] = [
    ("PIP_INDEX_URL", "--index-url"),
    ("PIP_EXTRA_INDEX_URL", "--extra-index-url"),
    ("PIP_FIND_LINKS", "--find-links"),
    ("PIP_TRUSTED_HOST", "--trusted-host"),
];

fn installers() -> Vec<Installer> {
    let mut pip_arguments: Vec<OsString> = PIP.iter().map(OsString::from).collect();
    for (variable, argument) in PIP_ARGUMENTS {
        if let Some(value) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
            pip_arguments.extend([argument.into(), value]);
        }
    }
    let pip = |program: &str| Installer {
        program: program.into(),
        arguments: pip_arguments.clone(),
        absent: "No module named pip",
    };
    let uv = ["--no-config", "pip", "install", "--no-progress"].map(OsString::from).to_vec();
    // uv is asked last: it needs an interpreter too, and a user who has both expects pip's settings to count.
    vec![
        pip("python3"),
        pip("python"),
        Installer { program: "uv".into(), arguments: uv, absent: "No interpreter found" },
    ]
}

/// What is to be installed, as a file for `pip install --requirement`.
pub(super) fn requirements(variable: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::new();
    for (name, option) in PIP_SOURCES {
        let values = variable(name).unwrap_or_default();
        // A relative folder would be looked for beside the file.
        let absolute = |value: &str| match value.contains("://") || !Path::new(value).exists() {
            true => value.to_string(),
            false => std::path::absolute(value).unwrap_or_else(|_| value.into()).display().to_string(),
        };
        values.split_whitespace().for_each(|value| text += &format!("{option} {}\n", absolute(value)));
    }
    for (package, hashes) in WHEELS {
        let hashes = hashes.map(|hash| format!(" --hash=sha256:{hash}")).concat();
        text += &format!("{package}{hashes}\n");
    }
    text
}

/// Installs NVRTC and the CUDA headers, two packages of pip, into Tilewright's data folder, unless a complete installation is there,
/// and returns the folder with `lib` and `include`. `report` is given a line for every step.
///
/// The packages are fetched into a folder of their own that is renamed when complete, so an interrupted
/// installation is never found; installers that run at the same time end up with the same one. What a killed one leaves
/// is removed by the next.
///
/// # Errors
/// No data folder, or one that other users can change; no pip; pip's failure with its last lines, which a package of another hash
/// is too; a folder that cannot be written.
pub fn install(environment: &Environment, report: &dyn Fn(&str)) -> Result<PathBuf, ToolchainError> {
    let target = environment.toolchain_folder().ok_or(ToolchainError::NoDataFolder)?;
    install_with(&target, &installers(), report)
}

pub(super) fn install_with(
    target: &Path,
    installers: &[Installer],
    report: &dyn Fn(&str),
) -> Result<PathBuf, ToolchainError> {
    let root = package_root(target);
    if inspect(&root).is_ok() {
        report(&format!("NVRTC is already installed in {}", root.display()));
        return Ok(root);
    }
    // Installers run in a folder of their own, so a relative name would mean another.
    let target = &std::path::absolute(target).map_err(io("look at", target))?;
    let parent = target.parent().unwrap_or(Path::new("/"));
    // Asked before 92 MB are fetched: there it would be refused afterwards. First of what is there, so that nothing is made
    // where others could change it.
    let there = parent.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(parent);
    let may_be_loaded = |folder: &Path| {
        trusted(folder).map_err(|refusal| ToolchainError::Shared { place: parent.to_path_buf(), refusal })
    };
    may_be_loaded(there)?;
    create_folders(parent).map_err(io("create", parent))?;
    may_be_loaded(parent)?;

    // The lock only saves a second download: where locks do not work (some network file systems), the rename
    // below still decides.
    let lock_path = parent.join("toolchain.lock");
    let mut options = fs::OpenOptions::new();
    // Who may read a file may hold its lock, and this one is waited for.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let lock = options.write(true).create(true).truncate(false).open(&lock_path);
    let lock = lock.map_err(io("create", &lock_path))?;
    if lock.try_lock().is_err() {
        report("waiting for another installation to finish");
        let _ = lock.lock();
    }
    leftover::sweep(parent, &[PARTIAL, BROKEN]);
    if inspect(&root).is_ok() {
        report(&format!("another process has installed NVRTC in {}", root.display()));
        return Ok(root);
    }

    let (private, _alive) = leftover::folder(parent, PARTIAL).map_err(io("create a folder in", parent))?;
    report(&format!("installing {} into {}", PACKAGES.join(" and "), target.display()));
    let partial = private.path().join("packages");
    fetch(installers, private.path(), &partial, report)?;
    if partial.is_dir() {
        make_readable(&partial)?;
    }
    if let Err(refusal) = inspect(&package_root(&partial)) {
        return Err(ToolchainError::Incomplete { place: package_root(target), refusal });
    }
    publish(&partial, target, parent)?;
    report(&format!("NVRTC is installed in {}", root.display()));
    Ok(root)
}

/// What the names of folders begin with that are not complete, and of those that hold what was broken.
const PARTIAL: &str = "toolchain.partial-";
const BROKEN: &str = "toolchain.broken-";

/// Creates folders that only their user may write to, whatever the mask of the process.
fn create_folders(path: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o755);
    builder.create(path)
}

/// Runs the first installer that is there, in the folder `private`.
fn fetch(
    installers: &[Installer],
    private: &Path,
    target: &Path,
    report: &dyn Fn(&str),
) -> Result<(), ToolchainError> {
    let mut tried = Vec::new();
    let file = private.join("requirements.txt");
    let text = requirements(|name| std::env::var(name).ok());
    fs::write(&file, text).map_err(io("write", &file))?;
    for installer in installers {
        let mut command = Command::new(&installer.program);
        command.args(&installer.arguments).args(["--only-binary", ":all:", "--no-deps", "--require-hashes"]);
        command.arg("--target").arg(target).arg("--requirement").arg(&file);
        // uv takes the interpreter of a `.venv` in the current folder.
        command.current_dir(private);
        let line = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|part| part.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let Some((status, lines)) = run(&mut command, report) else {
            tried.push(installer.program.display().to_string());
            continue;
        };
        if status.success() {
            return Ok(());
        }
        // 127 is what a shim (pyenv's) answers when no interpreter stands behind it.
        if status.code() == Some(127) || lines.iter().any(|line| line.contains(installer.absent)) {
            tried.push(format!("{} (is there, without pip or an interpreter)", installer.program.display()));
            continue;
        }
        let last_lines = lines[lines.len().saturating_sub(LAST_LINES)..].to_vec();
        return Err(ToolchainError::PipFailed { command: line, status: status.to_string(), last_lines });
    }
    Err(ToolchainError::NoPython { tried })
}

/// Runs a command, reporting its lines as they come; none when it cannot be started.
fn run(command: &mut Command, report: &dyn Fn(&str)) -> Option<(std::process::ExitStatus, Vec<String>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    // Both pipes are read at once: a command that fills one while the other is waited for would never end.
    let stderr = child.stderr.take();
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.read_to_end(&mut bytes);
        }
        bytes
    });
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim().to_string();
            if !line.is_empty() {
                report(&line);
                lines.push(line);
            }
        }
    }
    let status = child.wait().ok()?;
    let errors = errors.join().unwrap_or_default();
    lines.extend(String::from_utf8_lossy(&errors).lines().map(str::to_string));
    Some((status, lines))
}

/// Lets everybody read what is installed, for a data folder may be shared, and nobody else write to it: what the mask of the process
/// lets a group write to would not be trusted.
fn make_readable(path: &Path) -> Result<(), ToolchainError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = fs::symlink_metadata(path).map_err(io("look at", path))?;
        if metadata.is_symlink() {
            return Ok(());
        }
        let mode = if metadata.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(io("set the permissions of", path))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(path).map_err(io("list", path))? {
                make_readable(&entry.map_err(io("list", path))?.path())?;
            }
        }
    }
    let _ = path;
    Ok(())
}

/// Renames a complete installation into place. A complete one that got there first is kept; what is left of a
/// broken one is moved out of the way.
fn publish(partial: &Path, target: &Path, parent: &Path) -> Result<(), ToolchainError> {
    let Err(error) = fs::rename(partial, target) else { return Ok(()) };
    if inspect(&package_root(target)).is_ok() {
        return Ok(());
    }
    if !target.exists() {
        return Err(io("create", target)(error));
    }
    let (aside, _alive) = leftover::folder(parent, BROKEN).map_err(io("create a folder in", parent))?;
    fs::rename(target, aside.path().join("toolchain")).map_err(io("move away", target))?;
    match fs::rename(partial, target) {
        Err(_) if inspect(&package_root(target)).is_ok() => Ok(()),
        result => result.map_err(io("create", target)),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ToolchainError {
    let path = path.to_path_buf();
    move |source| ToolchainError::Io { action, path, source }
}
