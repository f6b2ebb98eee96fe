//! The tuner on real kernels: what it picks computes the same, and is found again without timing.

use super::Test;
use super::support::Random;
use libtest_mimic::Failed;
use std::process::Command;
use std::time::Instant;
use tilewright::attention::MaskLists;
use tilewright::reference::relative_error;
use tilewright::tune::{Policy, Workload, synthetic_mask};
use tilewright::{
    Attention, BlockSize, DType, Device, Error, Gradients, HeadDim, Output, Selection, Tensor, mask_mod,
    top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("tuned::every_policy_computes_the_same", same_result),
    ("tuned::an_empty_cache_is_an_error_in_production", cache_only),
    ("tuned::the_printed_command_fills_the_cache", printed_command),
    ("tuned::long_rows_survive_the_tuning", long_rows),
    ("tuned::what_does_not_bind_is_the_callers_error", does_not_bind),
];

#[mask_mod]
fn band(b: i32, h: i32, q: i32, kv: i32, width: i32) -> bool {
    (q - kv).abs() < width
}

fn build(device: &Device, d: usize, policy: Policy, width: Option<i32>) -> Result<Attention, Error> {
    let rule = top_k(0.1) | top_p(0.2);
    let builder = Attention::builder(HeadDim::new(d)?, DType::Bf16).select(rule).policy(policy);
    match width {
        Some(width) => builder.mask_mod(band { width }).build(device),
        None => builder.build(device),
    }
}

fn inputs(device: &Device, shape: &[usize], seed: u64) -> Result<[Tensor; 3], Failed> {
    let mut random = Random(seed);
    let mut tensor = || random.tensor(DType::Bf16, shape).to(device);
    Ok([tensor()?, tensor()?, tensor()?])
}

/// Tuned, found again, and untuned: one result, and the second time nothing is timed.
fn same_result(device: &Device) -> Result<(), Failed> {
    for (d, width) in [(128, None), (64, Some(300)), (256, None)] {
        let [q, k, v] = inputs(device, &[1, 4, 3000, d], d as u64)?;
        let expected = build(device, d, Policy::FirstValid, width)?.forward(&q, &k, &v)?;
        let reference: Vec<f64> = expected.out.to_f32_vec()?.into_iter().map(f64::from).collect();
        let start = Instant::now();
        let tuned = build(device, d, Policy::Tune, width)?;
        check(&tuned.forward(&q, &k, &v)?, &expected, &reference)?;
        let cold = start.elapsed();
        let timed: Vec<_> = tuned.choices().into_iter().filter(|choice| choice.record.is_some()).collect();
        if timed.is_empty() {
            return Err("nothing was timed".into());
        }
        for choice in &timed {
            println!("{}", choice.record.as_ref().unwrap().explain(&choice.pruned));
        }
        let start = Instant::now();
        for policy in [Policy::CacheOnly, Policy::Tune] {
            let again = build(device, d, policy, width)?;
            check(&again.forward(&q, &k, &v)?, &expected, &reference)?;
            let names = |attention: &Attention| -> Vec<String> {
                attention.kernels().iter().map(|kernel| kernel.variant().name.clone()).collect()
            };
            if names(&again) != names(&tuned) {
                return Err(format!("{policy}: {:?} instead of {:?}", names(&again), names(&tuned)).into());
            }
        }
        println!("d {d}: tuned in {cold:.1?}, found again twice in {:.1?}", start.elapsed());
    }
    Ok(())
}

fn check(found: &Output, expected: &Output, reference: &[f64]) -> Result<(), Failed> {
    let blocks = (found.mask.to_dense()?, expected.mask.to_dense()?);
    let apart = blocks.0.classes.iter().zip(&blocks.1.classes).filter(|(a, b)| a != b).count();
    let error = relative_error(&found.out.to_f32_vec()?, reference);
    // A block at the threshold may differ with the schedule of the selection; then the outputs do too.
    // Written so that a NaN fails.
    let close = error <= 5e-3;
    if (apart == 0 && !close) || apart > 4 {
        return Err(format!("{apart} blocks and {error:.1e} from the untuned result").into());
    }
    Ok(())
}

fn cache_only(device: &Device) -> Result<(), Failed> {
    // Sizes no other test tunes.
    let [q, k, v] = inputs(device, &[1, 1, 20_000, 96], 5)?;
    match build(device, 96, Policy::CacheOnly, None)?.forward(&q, &k, &v) {
        Err(error @ Error::CacheOnly { .. }) => {
            println!("{error}");
            Ok(())
        }
        Err(other) => Err(format!("{other} instead of Error::CacheOnly").into()),
        Ok(_) => Err("it ran".into()),
    }
}

/// What [`Error::CacheOnly`] says to run is run, and the same calls pass then: of a rule with and without a selection, over masks
/// whose density the host knows and over a caller's lists, forward and backward.
fn printed_command(device: &Device) -> Result<(), Failed> {
    // Sizes no other test tunes.
    let [q, k, v] = inputs(device, &[1, 3, 6100, 80], 6)?;
    let workload = Workload { batch: 1, heads: 3, seq_q: 6100, seq_kv: 6100, density: 0.25 };
    let mask = synthetic_mask(&workload, BlockSize::default(), 0.3)?.to(device)?;
    let new = |selection: Option<Selection>| {
        let builder = Attention::builder(HeadDim::new(80)?, DType::Bf16).policy(Policy::CacheOnly);
        match selection {
            Some(selection) => builder.select(selection).build(device),
            None => builder.build(device),
        }
    };
    let selected = |backward: bool| {
        let attention = new(Some(top_k(0.1) | top_p(0.2)))?;
        let output = attention.forward(&q, &k, &v)?;
        if backward { attention.backward(&q, &k, &v, &output, &q, None).map(drop) } else { Ok(()) }
    };
    let masked = |backward: bool| {
        let attention = new(None)?;
        let (out, lse) = attention.attend_with(&q, &k, &v, &mask)?;
        let output = Output { out, lse, mask: mask.clone() };
        if backward { attention.backward(&q, &k, &v, &output, &q, None).map(drop) } else { Ok(()) }
    };
    // As PyTorch calls: the host does not know what the lists hold.
    let listed = |backward: bool| {
        let attention = new(None)?;
        let like = |tensor: &Tensor| Tensor::uninit(device, tensor.dtype(), tensor.shape());
        let scratch = |bytes| Tensor::uninit(device, DType::U8, &[bytes]);
        let (mut out, mut lse) = (like(&q)?, Tensor::uninit(device, DType::F32, &q.shape()[..3])?);
        let mut work = scratch(attention.attend_scratch_bytes(&q, &k, mask.kv())?)?;
        attention.attend_in([&q, &k, &v], (mask.kv(), None), [&mut out, &mut lse], &mut work)?;
        if !backward {
            return Ok(());
        }
        let lists = MaskLists { kv: mask.kv().clone(), full_kv: None, q: None, full_q: None };
        let mut work = scratch(attention.backward_scratch_bytes(&q, &k, &lists)?)?;
        let mut gradients = Gradients { dq: like(&q)?, dk: like(&k)?, dv: like(&v)? };
        attention.backward_in([&q, &k, &v], [&out, &lse], (&q, None), &lists, &mut gradients, &mut work)
    };
    type Call<'a> = &'a dyn Fn(bool) -> Result<(), Error>;
    let calls: [(&str, Call); 3] = [("selected", &selected), ("listed", &listed), ("masked", &masked)];
    for (name, call) in calls {
        for backward in [false, true] {
            match call(backward) {
                Err(Error::CacheOnly { command, .. }) => run_printed(&command)?,
                Err(other) => return Err(format!("{name}: {other} instead of Error::CacheOnly").into()),
                Ok(()) => return Err(format!("{name}: it ran on an empty cache").into()),
            }
            call(backward).map_err(|error| format!("{name}, backward {backward}: {error}"))?;
        }
    }
    Ok(())
}

fn run_printed(command: &str) -> Result<(), Failed> {
    println!("{command}");
    let Some(arguments) = command.strip_prefix("tilewright ") else {
        return Err(format!("`{command}` is no command of this program").into());
    };
    // An archive of the tests has the program elsewhere.
    let built = || env!("CARGO_BIN_EXE_tilewright").into();
    let program = std::env::var_os("NEXTEST_BIN_EXE_tilewright").unwrap_or_else(built);
    let output = Command::new(&program)
        .args(arguments.split(' '))
        .env_remove("TILEWRIGHT_POLICY")
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Selection overwrites its logits on long rows, and the tuner runs it many times.
fn long_rows(device: &Device) -> Result<(), Failed> {
    let mut random = Random(31);
    let mut tensor = |seq: usize| random.tensor(DType::Bf16, &[1, 1, seq, 64]).to(device);
    let (q, k, v) = (tensor(700)?, tensor(64 * 2500)?, tensor(64 * 2500)?);
    let expected = build(device, 64, Policy::FirstValid, None)?.forward(&q, &k, &v)?;
    let reference: Vec<f64> = expected.out.to_f32_vec()?.into_iter().map(f64::from).collect();
    check(&build(device, 64, Policy::Tune, None)?.forward(&q, &k, &v)?, &expected, &reference)
}

/// Rows that no 16-byte copy can read are refused as by any launch, whatever the policy: no candidate is blamed for it.
fn does_not_bind(device: &Device) -> Result<(), Failed> {
    let [wide, ..] = inputs(device, &[1, 1, 300, 136], 9)?;
    let wide = wide.with_strides(&[1, 1, 300, 128], &[300 * 129, 300 * 129, 129, 1])?;
    for policy in [Policy::FirstValid, Policy::Tune] {
        match build(device, 128, policy, None)?.forward(&wide, &wide, &wide) {
            Err(Error::Bind(error)) => println!("{policy}: {error}"),
            Err(other) => return Err(format!("{policy}: {other} instead of Error::Bind").into()),
            Ok(_) => return Err(format!("{policy}: it ran").into()),
        }
    }
    Ok(())
}
