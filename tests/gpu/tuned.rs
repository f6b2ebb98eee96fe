//! The tuner on real kernels: what it picks computes the same, and is found again without timing.

use super::Test;
use super::support::Random;
use libtest_mimic::Failed;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tilewright::attention::{Attend, Backward, MaskLists, Shapes, Step};
use tilewright::cache::KernelCache;
use tilewright::cli::tune_command;
use tilewright::reference::{largest_difference, relative_error};
use tilewright::services::Policy;
use tilewright::services::Services;
use tilewright::tune::{Workload, synthetic_mask};
use tilewright::{
    Attention, BlockSize, CaptureValue, DType, Device, DeviceFn, Error, Gradients, HeadDim, Output, ScoreMod,
    Selection, Tensor, mask_mod, score_mod, top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("tuned::every_policy_computes_the_same", same_result),
    ("tuned::an_empty_cache_is_an_error_in_production", cache_only),
    ("tuned::the_printed_command_fills_the_cache", printed_command),
    ("tuned::long_rows_survive_the_tuning", long_rows),
    ("tuned::what_does_not_bind_is_the_callers_error", does_not_bind),
    ("tuned::a_wrong_lse_is_caught", wrong_lse),
    ("tuned::a_wrong_gradient_is_caught", wrong_gradient),
    ("tuned::a_function_that_panics_is_an_error", panics),
    ("tuned::captures_need_not_reach_beyond_the_call", short_captures),
    ("tuned::services_of_ones_own", own_services),
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
        let shapes = Shapes::of(&q, &k)?;
        let timed: Vec<_> =
            tuned.plan(shapes)?.choices().into_iter().filter(|choice| choice.record.is_some()).collect();
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
            let names = |attention: &Attention| -> Result<Vec<String>, Error> {
                let kernels = attention.plan(shapes)?.kernels();
                Ok(kernels.iter().map(|kernel| kernel.variant().name.clone()).collect())
            };
            let (found, expected) = (names(&again)?, names(&tuned)?);
            if found != expected || found.is_empty() {
                return Err(format!("{policy}: {found:?} instead of {expected:?}").into());
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
    let sums: Vec<f64> = expected.lse.to_vec::<f32>()?.into_iter().map(f64::from).collect();
    let lse_error = largest_difference(&found.lse.to_vec::<f32>()?, &sums);
    // A block at the threshold may differ with the schedule of the selection; then the outputs do too.
    // Written so that a NaN fails.
    let close = error <= 5e-3 && lse_error <= 1e-4;
    if (apart == 0 && !close) || apart > 4 {
        let errors = format!("{error:.1e}, lse {lse_error:.1e}");
        return Err(format!("{apart} blocks and {errors} from the untuned result").into());
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

/// What the command says to run about [`Error::CacheOnly`] is run, and the same calls pass then: of a rule with and without a selection, over masks
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
        let plan = attention.plan(Shapes::of(&q, &k)?)?;
        let scratch = |step| Tensor::uninit(device, DType::U8, &[plan.scratch_bytes(step)?]);
        let (mut out, mut lse) = (like(&q)?, Tensor::uninit(device, DType::F32, &q.shape()[..3])?);
        let lists = &MaskLists { q: None, full_q: None, ..MaskLists::from(&mask) };
        let attend = Attend { q: &q, k: &k, v: &v, lists, out: &mut out, lse: &mut lse };
        plan.run(attend, &mut scratch(Step::Attend(lists))?)?;
        if !backward {
            return Ok(());
        }
        let gradients = &mut Gradients { dq: like(&q)?, dk: like(&k)?, dv: like(&v)? };
        let (q, k, v, out, lse, d_out, d_lse) = (&q, &k, &v, &out, &lse, &q, None);
        let backward = Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients };
        plan.run(backward, &mut scratch(Step::Backward(lists))?)
    };
    type Call<'a> = &'a dyn Fn(bool) -> Result<(), Error>;
    let calls: [(&str, Call); 3] = [("selected", &selected), ("listed", &listed), ("masked", &masked)];
    for (name, call) in calls {
        for backward in [false, true] {
            match call(backward) {
                Err(Error::CacheOnly { call: Some(call), .. }) => {
                    run_printed(&tune_command(&call).ok_or("no command makes this call")?)?;
                }
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

/// A function that is another on the GPU than on the CPU, as a kernel that is wrong would have it: by `shift`, which leaves `out` as
/// it is and moves `lse`, and by a derivative of `slope` where the GPU's is 1.
struct Wrong {
    shift: f32,
    slope: f32,
}

impl DeviceFn for Wrong {
    fn name(&self) -> &str {
        "wrong"
    }

    fn source(&self) -> &str {
        "fn wrong(score: f32, b: i32, h: i32, q: i32, kv: i32, shift: f32) -> f32 { score + shift }"
    }

    fn captures(&self) -> Vec<CaptureValue> {
        vec![CaptureValue::F32(self.shift)]
    }
}

impl ScoreMod for Wrong {
    fn score(&self, score: f32, _: i32, _: i32, _: i32, _: i32) -> f32 {
        score
    }

    fn gradient(&self, _: f32, _: i32, _: i32, _: i32, _: i32) -> f32 {
        self.slope
    }
}

fn of_wrong(device: &Device, function: Wrong) -> Result<Attention, Error> {
    Attention::builder(HeadDim::D64, DType::Bf16).policy(Policy::Tune).score_mod(function).build(device)
}

/// All candidates have the right `out`, and an `lse` within a hundredth of the right one: none is taken.
fn wrong_lse(device: &Device) -> Result<(), Failed> {
    // Sizes no other test tunes.
    let [q, k, v] = inputs(device, &[1, 3, 2100, 64], 11)?;
    match of_wrong(device, Wrong { shift: 0.03, slope: 1.0 })?.forward(&q, &k, &v) {
        Err(Error::Tune { reason, .. }) if reason.contains("lse: it is") => println!("{reason}"),
        Err(other) => return Err(format!("{other} instead of Error::Tune for lse").into()),
        Ok(_) => return Err("a wrong lse passed".into()),
    }
    // Nothing is kept of it: the function that is the same on both is tuned.
    of_wrong(device, Wrong { shift: 0.0, slope: 1.0 })?.forward(&q, &k, &v)?;
    Ok(())
}

fn wrong_gradient(device: &Device) -> Result<(), Failed> {
    let [q, k, v] = inputs(device, &[1, 3, 2100, 64], 12)?;
    let attention = of_wrong(device, Wrong { shift: 0.0, slope: 1.5 })?;
    let output = attention.forward(&q, &k, &v)?;
    match attention.backward(&q, &k, &v, &output, &q, None) {
        Err(Error::Tune { reason, .. }) if reason.contains("dq: it is off") => println!("{reason}"),
        Err(other) => return Err(format!("{other} instead of Error::Tune for dq").into()),
        Ok(_) => return Err("a wrong dq passed".into()),
    }
    Ok(())
}

#[mask_mod]
fn same_document(b: i32, h: i32, q: i32, kv: i32, ids: &[i32]) -> bool {
    ids[q as usize] == ids[kv as usize]
}

#[score_mod]
fn by_head(score: f32, b: i32, h: i32, q: i32, kv: i32, slopes: &[f32]) -> f32 {
    score * slopes[h as usize]
}

/// The GPU would read 0: on the CPU it is a panic, and a call whose kernels cannot be checked says so.
fn panics(device: &Device) -> Result<(), Failed> {
    let [q, k, v] = inputs(device, &[1, 5, 1700, 64], 13)?;
    let build = || Attention::builder(HeadDim::D64, DType::Bf16).policy(Policy::Tune);
    let of_scores = build().score_mod(by_head { slopes: vec![0.5] }).build(device)?;
    let of_masks = build().mask_mod(same_document { ids: vec![0; 200] }).build(device)?;
    for (attention, name) in [(of_scores, "by_head"), (of_masks, "same_document")] {
        match attention.forward(&q, &k, &v) {
            Err(Error::DeviceFunction { name: found, .. }) if found == name => {}
            Err(other) => return Err(format!("{name}: {other} instead of Error::DeviceFunction").into()),
            Ok(_) => return Err(format!("{name}: it ran").into()),
        }
    }
    Ok(())
}

/// Tables as long as the call, which is shorter than the case that kernels are checked on otherwise; down to one query and one key.
fn short_captures(device: &Device) -> Result<(), Failed> {
    for (heads, seq_q, seq_kv) in [(1, 1, 1), (1, 70, 1), (3, 1, 250), (2, 130, 130)] {
        let mut random = Random(17);
        let mut tensor = |seq| random.tensor(DType::Bf16, &[1, heads, seq, 64]).to(device);
        let (q, k, v, d_out) = (tensor(seq_q)?, tensor(seq_kv)?, tensor(seq_kv)?, tensor(seq_q)?);
        let attention = Attention::builder(HeadDim::D64, DType::Bf16)
            .policy(Policy::Tune)
            .score_mod(by_head { slopes: vec![0.5; heads] })
            .mask_mod(same_document { ids: vec![3; seq_q.max(seq_kv)] })
            .build(device)?;
        let output = attention.forward(&q, &k, &v)?;
        attention
            .backward(&q, &k, &v, &output, &d_out, None)
            .map_err(|error| format!("{heads} × {seq_q} × {seq_kv}: {error}"))?;
    }
    Ok(())
}

/// A device that was given a cache and a listener keeps its records there, and says what it waits for.
fn own_services(device: &Device) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let cache = KernelCache::at(&folder.path().join("kernels"))?;
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let hears = heard.clone();
    let services = Services::builder()
        .cache(cache.clone())
        .policy(Policy::Tune)
        .on_first_use(move |step| hears.lock().unwrap().push(step.to_string()))
        .build();
    let own = device.clone().with_services(&services);
    let [q, k, v] = inputs(&own, &[1, 2, 1700, 64], 5)?;
    let attend = |device: &Device| -> Result<(Output, Attention), Error> {
        let attention = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.2)).build(device)?;
        Ok((attention.forward(&q, &k, &v)?, attention))
    };
    let (out, attention) = attend(&own)?;
    let records = cache.records().len();
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    let plan = attention.plan(Shapes::of(&q, &k)?)?;
    let timed = plan.choices().iter().filter(|choice| choice.record.is_some()).count();
    if timed == 0 || records != timed {
        return Err(format!("{timed} kernels were timed, {records} records are kept: {heard:?}").into());
    }
    let done = heard.iter().filter(|line| line.ends_with("is ready")).count();
    if done != timed || !heard.last().is_some_and(|line| line.ends_with("is ready")) {
        return Err(format!("{timed} kernels were timed, and this was told: {heard:?}").into());
    }
    let quiet = Services::builder().cache(cache).policy(Policy::CacheOnly).build();
    let (again, _) = attend(&device.clone().with_services(&quiet))?;
    match again.out.to_f32_vec()? == out.out.to_f32_vec()? {
        true => Ok(()),
        false => Err("what was tuned before computes something else".into()),
    }
}
