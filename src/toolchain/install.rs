//! Installing NVRTC from pip's packages into Tilewright's data folder.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ToolchainError;
use super::environment::Environment;
use super::find::{inspect, package_root};

/// The packages: the compiler, and the headers that sources include.
pub const PACKAGES: [&str; 2] = ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-runtime==13.0.96"];

/// How many of a failed command's lines are shown.
const LAST_LINES: usize = 12;

/// A command that installs Python packages, up to the part that is the same for all.
#[derive(Clone, Debug)]
pub(super) struct Installer {
    pub program: PathBuf,
    pub arguments: &'static [&'static str],
    /// Text in its output that means it is not there after all.
    pub absent: &'static str,
}

/// `--no-user` and `--no-compile` undo settings of the user's that would break `--target` or litter it.
const PIP: &[&str] = &[
    "-m",
    "pip",
    "install",
    "--no-user",
    "--no-compile",
    "--no-input",
    "--progress-bar",
    "off",
    "--disable-pip-version-check",
    "--only-binary",
    ":all:",
];

fn installers() -> Vec<Installer> {
    let pip =
        |program: &str| Installer { program: program.into(), arguments: PIP, absent: "No module named pip" };
    let uv = ["pip", "install", "--only-binary", ":all:", "--no-progress"].as_slice();
    // uv is asked last: it needs an interpreter too, and a user who has both expects pip's settings to count.
    vec![
        pip("python3"),
        pip("python"),
        Installer { program: "uv".into(), arguments: uv, absent: "No interpreter found" },
    ]
}

/// Installs [`PACKAGES`] into Tilewright's data folder, unless a complete installation is there, and returns the
/// folder with `lib` and `include`. `report` is given a line for every step.
///
/// The packages are fetched into a folder of their own that is renamed when complete, so an interrupted
/// installation is never found; installers that run at the same time end up with the same one.
///
/// # Errors
/// No data folder, no pip, pip's failure with its last lines, or a folder that cannot be written.
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
    let parent = target.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io("create", parent))?;

    // The lock only saves a second download: where locks do not work (some network file systems), the rename
    // below still decides.
    let lock_path = parent.join("toolchain.lock");
    let lock = File::create(&lock_path).map_err(io("create", &lock_path))?;
    if lock.try_lock().is_err() {
        report("waiting for another installation to finish");
        let _ = lock.lock();
    }
    if inspect(&root).is_ok() {
        report(&format!("another process has installed NVRTC in {}", root.display()));
        return Ok(root);
    }

    let partial = tempfile::Builder::new()
        .prefix("toolchain.partial-")
        .tempdir_in(parent)
        .map_err(io("create a folder in", parent))?;
    report(&format!("installing {} into {}", PACKAGES.join(" and "), target.display()));
    fetch(installers, partial.path(), report)?;
    if let Err(refusal) = inspect(&package_root(partial.path())) {
        return Err(ToolchainError::Incomplete { place: package_root(partial.path()), refusal });
    }
    make_readable(partial.path())?;
    publish(partial.path(), target, parent)?;
    report(&format!("NVRTC is installed in {}", root.display()));
    Ok(root)
}

/// Runs the first installer that is there.
fn fetch(installers: &[Installer], target: &Path, report: &dyn Fn(&str)) -> Result<(), ToolchainError> {
    let mut tried = Vec::new();
    for installer in installers {
        let mut command = Command::new(&installer.program);
        command.args(installer.arguments).arg("--no-deps").arg("--target").arg(target).args(PACKAGES);
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

/// `tempfile` makes folders that only their owner may read, but a data folder may be shared.
fn make_readable(folder: &Path) -> Result<(), ToolchainError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
            .map_err(io("set the permissions of", folder))?;
    }
    let _ = folder;
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
    let aside = tempfile::Builder::new()
        .prefix("toolchain.broken-")
        .tempdir_in(parent)
        .map_err(io("create a folder in", parent))?;
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
