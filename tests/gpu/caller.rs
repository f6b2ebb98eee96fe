//! Calls in memory of the caller's, as a framework with an allocator of its own makes them.

use super::Test;
use super::support::{Random, blocks};
use libtest_mimic::Failed;
use tilewright::TensorError;
use tilewright::attention::{Attend, Forward, MaskLists, Plan, Select, Shapes, Step};
use tilewright::device::{CudaDevice, DeviceBuffer};
use tilewright::services::Policy;
use tilewright::{
    Attention, BlockIndex, BlockMask, BlockSize, DType, Device, Error, HeadDim, SeqLens, Tensor, mask_mod,
    top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("caller::the_same_bits_as_a_call_of_its_own", same_bits),
    ("caller::the_same_lists_and_what_they_attend_to", same_lists),
    ("caller::tuned_in_the_callers_memory", tuned),
    ("caller::lists_that_hold_anything", wild_lists),
    ("caller::memory_that_does_not_fit_is_refused", refused),
    ("caller::nothing_to_attend_to", nothing),
    ("caller::other_parameters_share_the_kernels", parameters),
];

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

const SHAPE: [usize; 4] = [2, 4, 1500, 128];

fn attention(device: &Device, masked: bool, policy: Policy) -> Result<Attention, Failed> {
    let builder =
        Attention::builder(HeadDim::D128, DType::Bf16).select(top_k(0.1) | top_p(0.3)).policy(policy);
    Ok(if masked { builder.mask_mod(causal {}).build(device)? } else { builder.build(device)? })
}

fn inputs(device: &Device, shape: [usize; 4]) -> Result<[Tensor; 3], Failed> {
    let mut random = Random(211);
    let mut tensor = || random.tensor(DType::Bf16, &shape).to(device);
    Ok([tensor()?, tensor()?, tensor()?])
}

/// A tensor over a buffer that holds nonsense.
fn external(
    cuda: &CudaDevice,
    dtype: DType,
    shape: &[usize],
    strides: &[usize],
) -> Result<(DeviceBuffer, Tensor), Failed> {
    let reach: usize = shape.iter().zip(strides).map(|(dim, stride)| dim.saturating_sub(1) * stride).sum();
    let mut buffer = cuda.uninit((reach + 1) * dtype.size())?;
    cuda.fill(&mut buffer, 0xAB)?;
    let ordinal = cuda.info().ordinal;
    // SAFETY: the buffer reaches as far as the view, and is returned with it.
    let tensor = unsafe { Tensor::from_device_pointer(ordinal, buffer.address(), dtype, shape, strides) }?;
    Ok((buffer, tensor))
}

fn dense(cuda: &CudaDevice, dtype: DType, shape: &[usize]) -> Result<(DeviceBuffer, Tensor), Failed> {
    external(cuda, dtype, shape, &Tensor::contiguous_strides(shape))
}

/// `[batch, seq, heads, d]` in memory.
fn heads_last([batch, heads, seq, d]: [usize; 4]) -> ([usize; 4], [usize; 4]) {
    ([batch, heads, seq, d], [seq * heads * d, d, heads * d, 1])
}

fn plan(attention: &Attention, q: &Tensor, k: &Tensor) -> Result<Plan, Failed> {
    Ok(attention.plan(Shapes::of(q, k)?)?)
}

fn scratch(cuda: &CudaDevice, plan: &Plan, step: Step<'_>) -> Result<(DeviceBuffer, Tensor), Failed> {
    dense(cuda, DType::U8, &[plan.scratch_bytes(step)?])
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>, Error> {
    Ok(tensor.to_f32_vec()?.into_iter().map(f32::to_bits).collect())
}

fn same_bits(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    for masked in [false, true] {
        let attention = attention(device, masked, Policy::FirstValid)?;
        let [q, k, v] = inputs(device, SHAPE)?;
        let expected = attention.forward(&q, &k, &v)?;
        let (shape, strides) = heads_last(SHAPE);
        let (_out, mut out) = external(cuda, DType::Bf16, &shape, &strides)?;
        let (_lse, mut lse) = dense(cuda, DType::F32, &SHAPE[..3])?;
        let plan = plan(&attention, &q, &k)?;
        let (_scratch, mut scratch) = scratch(cuda, &plan, Step::Forward)?;
        // Twice: what the first call leaves must not matter.
        for _ in 0..2 {
            let forward = Forward { q: &q, k: &k, v: &v, out: &mut out, lse: &mut lse };
            plan.run(forward, &mut scratch)?;
        }
        if bits(&out)? != bits(&expected.out)? || bits(&lse)? != bits(&expected.lse)? {
            return Err(format!("masked {masked}: another result in the caller's memory").into());
        }
    }
    Ok(())
}

type Lists = (Vec<DeviceBuffer>, MaskLists);

fn lists(cuda: &CudaDevice, split: bool) -> Result<Lists, Failed> {
    let [batch, heads, seq, _] = SHAPE;
    let (q_blocks, kv_blocks) = (seq.div_ceil(128), seq.div_ceil(64));
    let mut buffers = Vec::new();
    let mut index = |rows, width| -> Result<BlockIndex, Failed> {
        let (buffer, counts) = dense(cuda, DType::I32, &[batch, heads, rows])?;
        buffers.push(buffer);
        let (buffer, indices) = dense(cuda, DType::I32, &[batch, heads, rows, width])?;
        buffers.push(buffer);
        Ok(BlockIndex { counts, indices })
    };
    let lists = MaskLists {
        kv: index(q_blocks, kv_blocks)?,
        full_kv: split.then(|| index(q_blocks, kv_blocks)).transpose()?,
        q: Some(index(kv_blocks, q_blocks)?),
        full_q: split.then(|| index(kv_blocks, q_blocks)).transpose()?,
        dropped: None,
    };
    Ok((buffers, lists))
}

fn same_lists(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    for masked in [false, true] {
        let attention = attention(device, masked, Policy::FirstValid)?;
        let [q, k, v] = inputs(device, SHAPE)?;
        let expected = attention.mask(&q, &k)?;
        let (_buffers, mut lists) = lists(cuda, masked)?;
        let plan = plan(&attention, &q, &k)?;
        let (_work, mut work) = scratch(cuda, &plan, Step::Select { by_key: true })?;
        plan.run(Select { q: &q, k: &k, lists: &mut lists }, &mut work)?;
        let full = lists.full_kv.clone();
        let (counts, indices) = (lists.kv.counts.clone(), lists.kv.indices.clone());
        let mask =
            BlockMask::from_kv_indices(counts, indices, full, BlockSize::default(), SeqLens::same(SHAPE[2]))?;
        if mask.to_dense()? != expected.to_dense()? {
            return Err(format!("masked {masked}: other blocks").into());
        }
        let by_key = lists.q.as_ref().map(|q| q.counts.to_vec::<i32>()).transpose()?;
        if by_key != Some(expected.q().counts.to_vec::<i32>()?) {
            return Err(format!("masked {masked}: another transpose").into());
        }
        let (_out, mut out) = dense(cuda, DType::Bf16, &SHAPE)?;
        let (_lse, mut lse) = dense(cuda, DType::F32, &SHAPE[..3])?;
        let (_work, mut work) = scratch(cuda, &plan, Step::Attend(&lists))?;
        let attend = Attend { q: &q, k: &k, v: &v, lists: &lists, out: &mut out, lse: &mut lse };
        plan.run(attend, &mut work)?;
        if bits(&out)? != bits(&attention.forward(&q, &k, &v)?.out)? {
            return Err(format!("masked {masked}: another result over the lists").into());
        }
    }
    Ok(())
}

/// The tuner poisons, checks and times in the caller's memory, and the call's result is right all the same.
fn tuned(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let attention = attention(device, true, Policy::Tune)?;
    let [q, k, v] = inputs(device, SHAPE)?;
    let (shape, strides) = heads_last(SHAPE);
    let (_out, mut out) = external(cuda, DType::Bf16, &shape, &strides)?;
    let (_lse, mut lse) = dense(cuda, DType::F32, &SHAPE[..3])?;
    let plan = plan(&attention, &q, &k)?;
    let (_scratch, mut scratch) = scratch(cuda, &plan, Step::Forward)?;
    if plan.is_warm(Step::Forward) {
        return Err("warm before the first call".into());
    }
    plan.run(Forward { q: &q, k: &k, v: &v, out: &mut out, lse: &mut lse }, &mut scratch)?;
    let (_buffers, lists) = lists(cuda, true)?;
    if !plan.is_warm(Step::Forward) || !plan.is_warm(Step::Attend(&lists)) {
        return Err("not warm after the first call".into());
    }
    if plan.is_warm(Step::Select { by_key: true }) || plan.is_warm(Step::Backward(&lists)) {
        return Err("warm, and no call has made lists by key or gradients".into());
    }
    let rows = Tensor::zeros_on(device, DType::Bf16, &SHAPE[..3])?;
    if Shapes::of(&rows, &rows).is_ok() {
        return Err("shapes of tensors that a call refuses".into());
    }
    let expected = attention.forward(&q, &k, &v)?;
    if bits(&out)? != bits(&expected.out)? || bits(&lse)? != bits(&expected.lse)? {
        return Err("the tuned call's own result differs from the next".into());
    }
    Ok(())
}

/// Counts past the list and numbers that are no block: cut and skipped, and nothing outside is read.
fn wild_lists(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let attention = attention(device, false, Policy::FirstValid)?;
    // Of many rows the longest come first: an order is made of these counts.
    let long = [1, 8, 8500, 128];
    for (shape, wild) in [(SHAPE, [i32::MAX; 4]), (long, [i32::MAX; 4]), (long, [i32::MAX, i32::MIN, 1, 5])] {
        let [q, k, v] = inputs(device, shape)?;
        let (rows, width) = (shape[2].div_ceil(128), shape[2].div_ceil(64));
        let counts: Vec<i32> = (0..rows).map(|row| wild[row % 4]).collect();
        let indices: Vec<i32> = (0..rows * width)
            .map(|i| if i % width == 3 { 3 } else { [i32::MIN, i32::MAX, -1, width as i32][i % 4] })
            .collect();
        let kv = BlockIndex {
            counts: Tensor::from_slice(&counts, &[1, 1, rows])?.to(device)?,
            indices: Tensor::from_slice(&indices, &[1, 1, rows, width])?.to(device)?,
        };
        let lists = &MaskLists::new(kv);
        let (_out, mut out) = dense(cuda, DType::Bf16, &shape)?;
        let (_lse, mut lse) = dense(cuda, DType::F32, &shape[..3])?;
        let plan = plan(&attention, &q, &k)?;
        let bytes = plan.scratch_bytes(Step::Attend(lists))?;
        if cuda.info().compute_capability.0 == 9 && (bytes > 0) != (shape != SHAPE) {
            return Err(format!("{bytes} bytes of scratch for {shape:?}").into());
        }
        let (_scratch, mut scratch) = dense(cuda, DType::U8, &[bytes])?;
        plan.run(Attend { q: &q, k: &k, v: &v, lists, out: &mut out, lse: &mut lse }, &mut scratch)?;
        let map: Vec<bool> = (0..rows * width).map(|i| i % width == 3 && wild[i / width % 4] > 3).collect();
        let mask =
            BlockMask::from_dense(&map, [1, 1, rows, width], blocks(128, 64), SeqLens::same(shape[2]))?;
        let (expected, _) = attention.attend_with(&q, &k, &v, &mask.to(device)?)?;
        let (found, expected) = (out.to_f32_vec()?, expected.to_f32_vec()?);
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if found.iter().any(|x| x.is_nan()) || apart > 1e-2 {
            return Err(format!("{shape:?}, {wild:?}: off by {apart} from the one block that exists").into());
        }
    }
    Ok(())
}

fn refused(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let attention = attention(device, false, Policy::FirstValid)?;
    let [q, k, v] = inputs(device, SHAPE)?;
    let plan = plan(&attention, &q, &k)?;
    let bytes = plan.scratch_bytes(Step::Forward)?;
    let (_scratch, mut scratch) = dense(cuda, DType::U8, &[bytes])?;
    let (_small, mut small) = dense(cuda, DType::U8, &[bytes / 2])?;
    let (_out, mut out) = dense(cuda, DType::Bf16, &SHAPE)?;
    let (_lse, mut lse) = dense(cuda, DType::F32, &SHAPE[..3])?;
    let [batch, heads, seq, d] = SHAPE;
    let gaps = [heads * seq * 2 * d, seq * 2 * d, 2 * d, 1];
    let (_wide, mut wide) = external(cuda, DType::Bf16, &SHAPE, &gaps)?;
    let (_short, mut short) = dense(cuda, DType::Bf16, &[batch, heads, seq - 1, d])?;
    let other = out.clone();
    let mut call = |q: &Tensor, k: &Tensor, out: &mut Tensor, scratch: &mut Tensor| {
        plan.run(Forward { q, k, v: &v, out, lse: &mut lse }, scratch)
    };
    let found = [
        matches!(call(&q, &k, &mut out, &mut small), Err(Error::Scratch { .. })),
        matches!(call(&q, &k, &mut wide, &mut scratch), Err(Error::Gaps { what: "out", .. })),
        matches!(call(&q, &other, &mut out, &mut scratch), Err(Error::Aliased { what: "k", with: "out" })),
        matches!(
            call(&q, &k, &mut short, &mut scratch),
            Err(Error::Tensor(TensorError::Shape { what: "out", .. }))
        ),
    ];
    if found != [true; 4] {
        return Err(format!("refused: {found:?}").into());
    }
    let (_buffers, mut lists) = lists(cuda, true)?;
    match plan.run(Select { q: &q, k: &k, lists: &mut lists }, &mut scratch) {
        Err(Error::Lists { .. }) => Ok(()),
        other => Err(format!("{other:?} instead of Error::Lists").into()),
    }
}

fn nothing(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let attention = attention(device, true, Policy::FirstValid)?;
    let tensor = |seq: usize| Random(1).tensor(DType::Bf16, &[1, 4, seq, 128]).to(device);
    for (seq_q, seq_kv) in [(5, 0), (0, 5), (0, 0)] {
        let (q, k, v) = (tensor(seq_q)?, tensor(seq_kv)?, tensor(seq_kv)?);
        let (_out, mut out) = dense(cuda, DType::Bf16, &[1, 4, seq_q, 128])?;
        let (_lse, mut lse) = dense(cuda, DType::F32, &[1, 4, seq_q])?;
        let plan = plan(&attention, &q, &k)?;
        let (_scratch, mut scratch) = scratch(cuda, &plan, Step::Forward)?;
        plan.run(Forward { q: &q, k: &k, v: &v, out: &mut out, lse: &mut lse }, &mut scratch)?;
        let (out, lse) = (out.to_f32_vec()?, lse.to_vec::<f32>()?);
        if out.len() != 4 * seq_q * 128 || out.iter().any(|&x| x != 0.0) {
            return Err(format!("{seq_q} × {seq_kv}: out is {out:?}").into());
        }
        if lse.len() != 4 * seq_q || lse.iter().any(|&x| x != f32::NEG_INFINITY) {
            return Err(format!("{seq_q} × {seq_kv}: lse is {lse:?}").into());
        }
    }
    Ok(())
}

fn parameters(device: &Device) -> Result<(), Failed> {
    let one = attention(device, false, Policy::FirstValid)?;
    let [q, k, v] = inputs(device, SHAPE)?;
    one.forward(&q, &k, &v)?;
    let other = one.with_parameters(Some(top_k(0.5)), Some(0.01))?;
    let built = Attention::builder(HeadDim::D128, DType::Bf16)
        .select(top_k(0.5))
        .scale(0.01)
        .policy(Policy::FirstValid)
        .build(device)?;
    if bits(&other.forward(&q, &k, &v)?.out)? != bits(&built.forward(&q, &k, &v)?.out)? {
        return Err("other parameters, another result than built with them".into());
    }
    Ok(())
}
