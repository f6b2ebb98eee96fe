//! `doctor`: what this machine has for Tilewright, in plain words.

use super::advice::of_toolchain;
use super::error::CliError;
use super::report::Report;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use tilewright::cache::{CacheError, KernelCache};
use tilewright::device::{DeviceError, driver_version};
use tilewright::output::shown;
use tilewright::reference::{attention_f64, relative_error};
use tilewright::toolchain::{Environment, Toolchain, ToolchainError};
use tilewright::{Attention, DType, Device, HeadDim, Output, Tensor, top_k};

/// The largest relative error of a bf16 result against f64 over the same blocks.
const BOUND: f64 = 4e-3;

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// What was found.
    found: String,
    /// More of the same, a line each.
    details: Vec<String>,
}

#[derive(Serialize)]
struct DoctorReport {
    /// Whether attention can be computed here at all.
    cpu: bool,
    /// Whether it runs on a GPU.
    gpu: bool,
    findings: Vec<Finding>,
}

pub fn run() -> Result<Report, CliError> {
    let environment = Environment::current();
    let toolchain = Toolchain::find_in(&environment);
    let gpus = gpus();
    let cpu = self_test(&Device::cpu());
    let cpu_works = cpu.is_ok();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut findings = vec![
        finding("CPU", cpu.map(|said| format!("{threads} threads; {said}"))),
        driver(),
        gpu(&gpus),
        nvrtc(&toolchain),
        data_folder(&environment, toolchain.is_ok()),
        kernel_cache(),
    ];
    let mut gpu_works = false;
    if let (Ok(found), Ok(toolchain)) = (&gpus, &toolchain) {
        let tested = found[0]
            .as_cuda()
            .map_or(Ok(()), |gpu| gpu.check_toolchain(toolchain).map_err(|error| error.to_string()))
            .and_then(|()| self_test(&found[0]));
        gpu_works = tested.is_ok();
        findings.push(finding("kernels", tested));
    }

    let mut text = String::new();
    for Finding { what, ok, found, details } in &findings {
        let mark = if *ok { "ok" } else { "--" };
        let _ = writeln!(text, "{what:<12} {mark}  {}", found.replace('\n', "\n                 "));
        for detail in details {
            let _ = writeln!(text, "                 {detail}");
        }
    }
    text += match (cpu_works, gpu_works) {
        (_, true) => "\nEverything is there: attention runs on the GPU.\n",
        (true, false) => "\nAttention runs on the CPU. For the GPU, see to what is marked --.\n",
        (false, false) => "\nAttention does not run here. Please report this with the lines above.\n",
    };
    let report = DoctorReport { cpu: cpu_works, gpu: gpu_works, findings };
    Ok(Report::new(text, &report).with_outcome(cpu_works))
}

fn finding(what: &'static str, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    let found = result.unwrap_or_else(|error| error);
    Finding { what, ok, found, details: Vec::new() }
}

fn driver() -> Finding {
    let version = driver_version().map(|(major, minor)| format!("it knows CUDA up to {major}.{minor}"));
    finding("driver", version.map_err(|error| error.to_string()))
}

/// Every GPU, or why the first cannot be used.
fn gpus() -> Result<Vec<Device>, DeviceError> {
    let mut found = vec![Device::cuda(0)?];
    // Those after the first are told of; that one of them is too old must not hide the first.
    while let Ok(next) = Device::cuda(found.len()) {
        found.push(next);
    }
    Ok(found)
}

fn gpu(gpus: &Result<Vec<Device>, DeviceError>) -> Finding {
    let gpus = match gpus {
        Ok(gpus) => gpus,
        Err(DeviceError::NoDriver) => {
            return finding("GPU", Err("none can be seen without a driver".to_owned()));
        }
        Err(error) => return finding("GPU", Err(error.to_string())),
    };
    let mut lines = gpus.iter().filter_map(Device::as_cuda).map(|gpu| {
        let info = gpu.info();
        let (major, minor) = info.compute_capability;
        format!(
            "cuda:{} {}, compute capability {major}.{minor} ({}), {} multiprocessors, {:.0} GiB",
            info.ordinal,
            info.name,
            info.arch,
            info.sm_count,
            info.total_memory as f64 / f64::from(1 << 30)
        )
    });
    let found = lines.next().unwrap_or_default();
    Finding { what: "GPU", ok: true, found, details: lines.collect() }
}

fn nvrtc(toolchain: &Result<Toolchain, ToolchainError>) -> Finding {
    match toolchain {
        Ok(toolchain) => {
            let (major, minor) = toolchain.version();
            let found = format!("NVRTC {major}.{minor}: {}", shown(toolchain.library()));
            let details = toolchain.searched().iter().map(ToString::to_string).collect();
            Finding { what: "NVRTC", ok: true, found, details }
        }
        Err(error) => {
            let details = of_toolchain(error).into_iter().collect();
            Finding { what: "NVRTC", ok: false, found: error.to_string(), details }
        }
    }
}

/// The folder that NVRTC is installed into: where there is one, nothing need be written there.
fn data_folder(environment: &Environment, has_nvrtc: bool) -> Finding {
    let Some(folder) = environment.data_folder() else {
        return finding("data folder", Err(ToolchainError::NoDataFolder.to_string()));
    };
    let toolchain = environment.toolchain_folder().is_some_and(|folder| folder.is_dir());
    let holds = if toolchain { "holds an NVRTC" } else { "holds no NVRTC" };
    finding(
        "data folder",
        match writable(folder) {
            Ok(()) => Ok(format!("{}: writable, {holds}", shown(folder))),
            Err(error) if has_nvrtc => {
                Ok(format!("{}: {holds}, and cannot be written to ({error})", shown(folder)))
            }
            Err(error) => Err(format!(
                "{}: {holds} and cannot be written to ({error}); set TILEWRIGHT_DATA to a folder that can",
                shown(folder)
            )),
        },
    )
}

fn kernel_cache() -> Finding {
    // A look at the machine does not change it.
    let look = || {
        Ok(match KernelCache::open_existing()? {
            Some(cache) => {
                let (kernels, records) = (cache.entries().len(), cache.records().len());
                format!("{}: {kernels} kernels, {records} tuning records", shown(cache.root()))
            }
            None => format!("{}: is not there yet", shown(&KernelCache::folder()?)),
        })
    };
    finding("kernel cache", look().map_err(|error: CacheError| error.to_string()))
}

/// Whether a folder, or the nearest place above it that exists, can be written to.
fn writable(folder: &Path) -> std::io::Result<()> {
    let existing = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(existing).map(drop)
}

/// A small sparse attention, compared with f64 over the same blocks.
fn self_test(device: &Device) -> Result<String, String> {
    let measure = || -> Result<f64, tilewright::Error> {
        let shape = [1, 2, 300, 64];
        // Noise: on waves the values cancel out over a row, and what is left is the rounding of the weights.
        let tensor = |seed: u32| {
            let value = |i: usize| {
                let mut bits = (i as u32 ^ seed.rotate_left(16)).wrapping_mul(0x9E37_79B1);
                bits = (bits ^ (bits >> 15)).wrapping_mul(0x85EB_CA77);
                half::bf16::from_f32((bits >> 8) as f32 / (1 << 22) as f32 - 2.0)
            };
            let values: Vec<_> = (0..shape.iter().product()).map(value).collect();
            Tensor::from_slice(&values, &shape)
        };
        let (q, k, v) = (tensor(1)?, tensor(2)?, tensor(3)?);
        let attention = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.4)).build(device)?;
        let Output { out, mask, .. } = attention.forward(&q.to(device)?, &k.to(device)?, &v.to(device)?)?;
        let exact = attention_f64(&q, &k, &v, &mask, attention.scale(), None, None)?;
        Ok(relative_error(&out.to_f32_vec()?, &exact.out))
    };
    match measure() {
        Ok(error) if error <= BOUND => {
            Ok(format!("a small attention agrees with f64 (relative error {error:.1e})"))
        }
        Ok(error) => Err(format!("a small attention is off by {error:.1e}, needed {BOUND:.0e}")),
        Err(error) => Err(error.to_string()),
    }
}
