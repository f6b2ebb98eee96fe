//! What the tuner picks on the workloads of video diffusion: no slower than the model's pick, and the same every time.

use super::Test;
use half::bf16;
use libtest_mimic::Failed;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;
use tilewright::attention::Shapes;
use tilewright::device::{CudaDevice, DeviceError};
use tilewright::services::Policy;
use tilewright::tune::{Outcome, Workload, synthetic_mask};
use tilewright::{Attention, BlockMask, BlockSize, DType, Device, Error, HeadDim, Tensor, top_k, top_p};

pub const TESTS: &[Test] = &[
    ("choice::tuned_is_as_fast_as_the_models_pick", as_fast_as_the_models_pick),
    ("choice::five_cold_runs_agree", five_cold_runs),
];

/// Heads, tokens, head dimension: Wan 2.1 at 480p and 720p, CogVideoX.
const WORKLOADS: [[usize; 3]; 3] = [[12, 32_760, 128], [10, 75_600, 128], [30, 17_776, 64]];
/// Names the workload a child process tunes, by its index: see [`child`].
const CHILD: &str = "TILEWRIGHT_TEST_COLD_RUN";
/// Times further apart than this are different.
const NOISE: f64 = 1.03;

struct Inputs {
    qkv: [Tensor; 3],
    mask: BlockMask,
}

impl Inputs {
    fn new(device: &Device, [heads, seq, d]: [usize; 3]) -> Result<Self, Error> {
        let tensor =
            |seed| Tensor::from_slice(&noise(heads * seq * d, seed), &[1, heads, seq, d])?.to(device);
        let workload = Workload { batch: 1, heads, seq_q: seq, seq_kv: seq, density: 0.05 };
        let mask = synthetic_mask(&workload, BlockSize::default(), 0.5)?.to(device)?;
        Ok(Inputs { qkv: [tensor(1)?, tensor(2)?, tensor(3)?], mask })
    }

    fn call(&self, attention: &Attention) -> Result<(), Error> {
        let [q, k, v] = &self.qkv;
        attention.mask(q, k)?;
        attention.attend_with(q, k, v, &self.mask).map(drop)
    }
}

fn attention(device: &Device, d: usize, policy: Policy) -> Result<Attention, Error> {
    let builder = Attention::builder(HeadDim::new(d)?, DType::Bf16).select(top_k(0.03) | top_p(0.2));
    builder.policy(policy).build(device)
}

fn as_fast_as_the_models_pick(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().ok_or("no GPU")?;
    for workload in WORKLOADS {
        let inputs = Inputs::new(device, workload)?;
        let both = [Policy::FirstValid, Policy::Tune].map(|policy| attention(device, workload[2], policy));
        let [untuned, tuned] = both;
        let (untuned, tuned) = (untuned?, tuned?);
        // By turns, so that a clock that slows slows both.
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..25 {
            for (attention, times) in [&untuned, &tuned].into_iter().zip(&mut times) {
                let ms = time(cuda, || inputs.call(attention))?;
                if round >= 5 {
                    times.push(ms);
                }
            }
        }
        let [untuned_ms, tuned_ms] = times.map(median);
        println!("{workload:?}: tuned {tuned_ms:.3} ms, the model's pick {untuned_ms:.3} ms");
        // Written so that a NaN fails.
        let as_fast = tuned_ms <= untuned_ms * NOISE;
        if !as_fast {
            return Err(format!("{workload:?}: {tuned_ms:.3} ms tuned, {untuned_ms:.3} ms not").into());
        }
    }
    Ok(())
}

/// A kernel's candidates with their times, and which one won.
type Race = (String, BTreeMap<String, f64>);

/// Five processes, each with an empty cache: whatever one of them picked is within 3 % of the best in the middle of all.
fn five_cold_runs(_: &Device) -> Result<(), Failed> {
    for index in [0, 2] {
        let runs = (0..5).map(|_| cold_run(index)).collect::<Result<Vec<_>, Failed>>()?;
        for kernel in runs[0].keys() {
            for (picked, _) in runs.iter().filter_map(|run| run.get(kernel)) {
                let relative = runs.iter().filter_map(|run| {
                    let (_, times) = run.get(kernel)?;
                    let best = times.values().copied().fold(f64::INFINITY, f64::min);
                    Some(times.get(picked)? / best)
                });
                let relative = median(relative.collect());
                println!("{:?} {kernel}: {picked} at {relative:.3} of the best", WORKLOADS[index]);
                let stable = relative <= NOISE;
                if !stable {
                    return Err(format!("{kernel}: {picked} takes {relative:.3} of the best time").into());
                }
            }
        }
    }
    Ok(())
}

fn cold_run(index: usize) -> Result<BTreeMap<String, Race>, Failed> {
    let cache = tempfile::tempdir()?;
    let output = Command::new(std::env::current_exe()?)
        .env(CHILD, index.to_string())
        .env("TILEWRIGHT_CACHE", cache.path().join("tilewright"))
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Does the work of a child process, where this is one, and says so.
pub fn child() -> bool {
    let Some(index) = std::env::var(CHILD).ok().and_then(|index| index.parse::<usize>().ok()) else {
        return false;
    };
    let races = || -> Result<String, Box<dyn std::error::Error>> {
        let device = Device::cuda(0)?;
        let inputs = Inputs::new(&device, WORKLOADS[index])?;
        let start = Instant::now();
        let attention = attention(&device, WORKLOADS[index][2], Policy::Tune)?;
        inputs.call(&attention)?;
        eprintln!("ready in {:.1?}", start.elapsed());
        let mut races: BTreeMap<String, Race> = BTreeMap::new();
        let [q, k, _] = &inputs.qkv;
        let plan = attention.plan(Shapes::of(q, k)?)?.for_mask(&inputs.mask);
        for (stage, choice) in plan.choices().into_iter().enumerate() {
            let Some(record) = choice.record else { continue };
            let times = record.candidates().iter().filter_map(|timing| match timing.outcome {
                Outcome::Timed { median_us, .. } => Some((timing.candidate.schedule.to_string(), median_us)),
                _ => None,
            });
            let kernel = format!("{stage} {}", choice.variant.candidate.spec.kernel());
            races.insert(kernel, (choice.variant.candidate.schedule.to_string(), times.collect()));
        }
        Ok(serde_json::to_string(&races)?)
    };
    match races() {
        Ok(json) => println!("{json}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
    true
}

fn time(cuda: &CudaDevice, work: impl Fn() -> Result<(), Error>) -> Result<f64, Error> {
    let mut failure = None;
    let ms = cuda.time_ms(|_| {
        failure = work().err();
        Ok::<(), DeviceError>(())
    })?;
    failure.map_or(Ok(f64::from(ms)), Err)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Evenly spread with variance 1, the same on every run.
fn noise(count: usize, seed: u64) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32(((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt())
    };
    (0..count).map(|_| next()).collect()
}
