//! The tuner poisons what a call writes, runs every schedule over it, and leaves what lies beside it alone.

use super::guarded::{Guarded, Place};
use crate::support::Random;
use crate::{POLICY, Test};
use libtest_mimic::Failed;
use std::process::Command;
use tilewright::attention::{Attend, Backward, Forward, MaskLists, Select, Shapes, Step};
use tilewright::cache::KernelCache;
use tilewright::device::CudaDevice;
use tilewright::services::Policy;
use tilewright::{
    Attention, BlockIndex, DType, Device, Gradients, HeadDim, Tensor, TokenGrid, score_mod, top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("sound::a_tuned_call_leaves_the_rest_of_a_tensor", |device| {
        calls(device, &Case { place: Place::Owned, heads: 3, seq: 2000, d: 96, dtype: DType::Bf16 })
    }),
    // Heads enough for the rows of lists to be put in order.
    ("sound::a_tuned_call_leaves_the_rest_of_a_buffer", |device| {
        calls(device, &Case { place: Place::External, heads: 17, seq: 4300, d: 64, dtype: DType::F16 })
    }),
    (PERMUTATION, permutation),
];

const PERMUTATION: &str = "sound::a_tuned_permutation_leaves_what_lies_between_its_rows";

/// One of its own, so that nobody has tuned its kernels before.
#[score_mod]
fn slightly_more(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
    score * 1.0009
}

struct Case {
    place: Place,
    heads: usize,
    seq: usize,
    d: usize,
    dtype: DType,
}

impl Case {
    fn guarded(&self, cuda: &CudaDevice, dtype: DType, shape: &[usize]) -> Result<Guarded, Failed> {
        Guarded::new(cuda, self.place, dtype, shape)
    }

    fn index(&self, cuda: &CudaDevice, rows: usize, width: usize) -> Result<[Guarded; 2], Failed> {
        let shape = [1, self.heads, rows, width];
        Ok([self.guarded(cuda, DType::I32, &shape[..3])?, self.guarded(cuda, DType::I32, &shape)?])
    }
}

fn check(cuda: &CudaDevice, call: &str, outputs: &[(&str, &Guarded)]) -> Result<(), Failed> {
    outputs.iter().try_for_each(|(name, output)| output.check(cuda, &format!("{call}, {name}")))
}

fn calls(device: &Device, case: &Case) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let Case { heads, seq, d, dtype, .. } = *case;
    let shape = [1, heads, seq, d];
    let mut random = Random(313);
    let mut tensor = || random.tensor(dtype, &shape).to(device);
    let (q, k, v, d_out) = (tensor()?, tensor()?, tensor()?, tensor()?);
    let build = || {
        let builder = Attention::builder(HeadDim::new(d)?, dtype).score_mod(slightly_more {});
        builder.select(top_k(0.1) | top_p(0.3)).policy(Policy::Tune).build(device)
    };
    let scratch = |bytes: usize| case.guarded(cuda, DType::U8, &[bytes.max(1)]);

    let attention = build()?;
    let plan = attention.plan(Shapes::of(&q, &k)?)?;
    if plan.is_warm(Step::Forward) {
        return Err("warm before the first call".into());
    }
    let (q_blocks, kv_blocks) = (seq.div_ceil(128), seq.div_ceil(64));
    let [counts, indices] = case.index(cuda, q_blocks, kv_blocks)?;
    let [q_counts, q_indices] = case.index(cuda, kv_blocks, q_blocks)?;
    let index = |counts: &Guarded, indices: &Guarded| BlockIndex {
        counts: counts.tensor.clone(),
        indices: indices.tensor.clone(),
    };
    let mut lists =
        MaskLists { q: Some(index(&q_counts, &q_indices)), ..MaskLists::new(index(&counts, &indices)) };
    let mut work = scratch(plan.scratch_bytes(Step::Select { by_key: true })?)?;
    plan.run(Select { q: &q, k: &k, lists: &mut lists }, &mut work.tensor)?;
    let outputs = [
        ("kv_counts", &counts),
        ("kv_indices", &indices),
        ("q_counts", &q_counts),
        ("q_indices", &q_indices),
        ("scratch", &work),
    ];
    check(cuda, "run(Select)", &outputs)?;

    let mut out = case.guarded(cuda, dtype, &shape)?;
    let mut lse = case.guarded(cuda, DType::F32, &shape[..3])?;
    let mut work = scratch(plan.scratch_bytes(Step::Attend(&lists))?)?;
    let (of_out, of_lse) = (&mut out.tensor, &mut lse.tensor);
    let attend = Attend { q: &q, k: &k, v: &v, lists: &lists, out: of_out, lse: of_lse };
    plan.run(attend, &mut work.tensor)?;
    check(cuda, "run(Attend)", &[("out", &out), ("lse", &lse), ("scratch", &work)])?;
    if plan.choices().iter().all(|choice| choice.record.is_none()) {
        return Err("nothing was tuned".into());
    }

    // Lists by key are made on the way.
    lists.q = None;
    let [dq, dk, dv] = [(); 3].map(|()| case.guarded(cuda, dtype, &shape));
    let (dq, dk, dv) = (dq?, dk?, dv?);
    let of = |gradient: &Guarded| gradient.tensor.clone();
    let gradients = &mut Gradients { dq: of(&dq), dk: of(&dk), dv: of(&dv) };
    let mut work = scratch(plan.scratch_bytes(Step::Backward(&lists))?)?;
    let (of_out, of_lse) = (&out.tensor, &lse.tensor);
    let backward = Backward {
        q: &q,
        k: &k,
        v: &v,
        out: of_out,
        lse: of_lse,
        d_out: &d_out,
        d_lse: None,
        lists: &lists,
        gradients,
    };
    plan.run(backward, &mut work.tensor)?;
    check(cuda, "run(Backward)", &[("dq", &dq), ("dk", &dk), ("dv", &dv), ("scratch", &work)])?;

    // Sizes that no call has had: everything is tuned anew.
    let half = [1, heads, seq / 4, d];
    let [q, k, v] = [q, k, v].map(|tensor| tensor.with_strides(&half, tensor.strides()));
    let (q, k, v) = (q?, k?, v?);
    let mut out = case.guarded(cuda, dtype, &half)?;
    let mut lse = case.guarded(cuda, DType::F32, &half[..3])?;
    let plan = attention.plan(Shapes::of(&q, &k)?)?;
    let mut work = scratch(plan.scratch_bytes(Step::Forward)?)?;
    if plan.is_warm(Step::Forward) || !plan.choices().is_empty() {
        return Err("warm before the first call of other sizes".into());
    }
    let forward = Forward { q: &q, k: &k, v: &v, out: &mut out.tensor, lse: &mut lse.tensor };
    plan.run(forward, &mut work.tensor)?;
    check(cuda, "run(Forward)", &[("out", &out), ("lse", &lse), ("scratch", &work)])?;
    let expected = attention.forward(&q, &k, &v)?;
    if out.tensor.to_f32_vec()? != expected.out.to_f32_vec()? {
        return Err("the tuned call's own result differs from the next".into());
    }
    Ok(())
}

/// Into rows with gaps: what lies between them is another tensor's. A grid's policy is the environment's: a process that tunes.
fn permutation(device: &Device) -> Result<(), Failed> {
    if std::env::var_os(POLICY).is_none() {
        let mut tunes = Command::new(std::env::current_exe()?);
        let output = tunes.args(["--exact", PERMUTATION]).env(POLICY, "tune").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        return match output.status.success() && text.contains("1 passed") {
            true => Ok(()),
            false => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)).into()),
        };
    }
    let cuda = device.as_cuda().unwrap();
    let grid = TokenGrid::builder([5, 9, 7]).before(70).after(9).build()?;
    for (place, dtype, d) in [(Place::Owned, DType::Bf16, 40), (Place::External, DType::F32, 33)] {
        let shape = [2, 3, grid.len(), d];
        // `[batch, tokens, heads, 2, d]` in memory, of which every other part is written.
        let strides = [grid.len() * 6 * d, 2 * d, 6 * d, 1];
        let x = Random(317).tensor(dtype, &shape);
        let mut out = Guarded::strided(cuda, place, dtype, &shape, &strides)?;
        grid.regroup_into(&x.to(device)?, &mut out.tensor)?;
        out.check(cuda, &format!("regroup_into, {place:?}"))?;
        let bits = |tensor: &Tensor| -> Result<Vec<u32>, Failed> {
            Ok(tensor.to_f32_vec()?.into_iter().map(f32::to_bits).collect())
        };
        if bits(&out.tensor)? != bits(&grid.regroup(&x)?)? {
            return Err(format!("{place:?}: other rows than on the CPU").into());
        }
    }
    match KernelCache::open_existing()?.is_some_and(|cache| !cache.records().is_empty()) {
        true => Ok(()),
        false => Err("nothing was tuned".into()),
    }
}
