//! Values and lists that a kernel must survive: NaN, infinity, indices outside the sequence.

use super::Test;
use super::forward::launch;
use super::support::{Random, blocks, tensor};
use libtest_mimic::Failed;
use tilewright::kernels::forward;
use tilewright::launch::{FunctionArgs, Request, load};
use tilewright::reference::{attention_f64, relative_error};
use tilewright::{Attention, BlockMask, DType, Device, HeadDim, Output, SeqLens, Tensor, top_k, top_p};

pub const TESTS: &[Test] = &[
    ("robust::nan_in_a_query", nan_in_a_query),
    ("robust::nan_and_infinity_in_keys", nan_in_keys),
    ("robust::lists_outside_the_sequence", wild_lists),
    ("robust::unsorted_lists", unsorted_lists),
];

const SHAPE: [usize; 4] = [1, 2, 600, 64];

fn random_vec(random: &mut Random) -> Vec<f32> {
    (0..SHAPE.iter().product()).map(|_| random.normal()).collect()
}

fn attention(device: &Device) -> Result<Attention, Failed> {
    Ok(Attention::builder(HeadDim::D64, DType::F16).select(top_k(0.2) | top_p(0.3)).build(device)?)
}

fn run(device: &Device, q: &[f32], k: &[f32], v: &[f32]) -> Result<(Vec<f32>, BlockMask), Failed> {
    let [q, k, v] = [q, k, v].map(|data| tensor(DType::F16, data, &SHAPE));
    let Output { out, mask, .. } =
        attention(device)?.forward(&q.to(device)?, &k.to(device)?, &v.to(device)?)?;
    Ok((out.to_f32_vec()?, mask))
}

/// A NaN in one query makes its own row NaN; other query blocks are as they were, to the bit.
fn nan_in_a_query(device: &Device) -> Result<(), Failed> {
    let mut random = Random(41);
    let (mut q, k, v) = (random_vec(&mut random), random_vec(&mut random), random_vec(&mut random));
    let (clean, _) = run(device, &q, &k, &v)?;
    let (row, d, block) = (300, SHAPE[3], 128);
    q[row * d + 5] = f32::NAN;
    let (found, mask) = run(device, &q, &k, &v)?;
    mask.to_dense()?;
    for (i, (a, b)) in found.chunks(d).zip(clean.chunks(d)).enumerate() {
        let nan = a.iter().any(|x| x.is_nan());
        if nan != (i == row) {
            return Err(format!("row {i}: NaN is {nan}").into());
        }
        if i / block != row / block && a != b {
            return Err(format!("row {i} of another block changed").into());
        }
    }
    Ok(())
}

/// NaN and infinity in a key: the call returns, lists stay in range, and dense attention agrees on who is NaN.
fn nan_in_keys(device: &Device) -> Result<(), Failed> {
    let mut random = Random(43);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (q, mut k, v) = (random_vec(&mut random), random_vec(&mut random), random_vec(&mut random));
        k[100 * SHAPE[3]] = bad;
        let (out, mask) = run(device, &q, &k, &v)?;
        let dense = mask.to_dense()?;
        let columns = dense.shape[3];
        for (i, row) in out.chunks(SHAPE[3]).take(SHAPE[2]).enumerate() {
            let attends = dense.classes[i / 128 * columns + 100 / 64] != 0;
            let nan = row.iter().any(|x| x.is_nan());
            if nan && !attends {
                return Err(format!("{bad}: row {i} is NaN without attending to the key").into());
            }
            if bad.is_nan() && attends && !nan {
                return Err(format!("row {i} attends to a NaN key and is not NaN").into());
            }
        }
    }
    Ok(())
}

/// Counts and indices no checked constructor would let through: they are skipped, and nothing outside is touched.
fn wild_lists(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let mut random = Random(47);
    let [q, k, v] = [(); 3].map(|()| random.tensor(DType::F16, &SHAPE));
    let (rows, width) = (5, 4);
    // Two real blocks in each list among nonsense; the count is larger than the list.
    let counts = vec![99i32; 2 * rows];
    let indices: Vec<i32> = (0..2 * rows).flat_map(|_| [3, i32::MAX, -7, 1]).collect();
    let kernel = load(
        cuda,
        &[Request::new(&forward::SOURCE)
            .value("T", DType::F16)
            .value("D", 64)
            .value("BLOCK_Q", 128)
            .value("BLOCK_KV", 64)],
    )?
    .remove(0);
    let mut out = Tensor::uninit(device, DType::F16, &SHAPE)?;
    let mut lse = Tensor::uninit(device, DType::F32, &SHAPE[..3])?;
    let (q_gpu, k_gpu, v_gpu) = (q.to(device)?, k.to(device)?, v.to(device)?);
    let args = forward::Args {
        q: &q_gpu,
        k: &k_gpu,
        v: &v_gpu,
        kv_counts: &Tensor::from_slice(&counts, &[1, 2, rows])?.to(device)?,
        kv_indices: &Tensor::from_slice(&indices, &[1, 2, rows, width])?.to(device)?,
        full_kv_counts: None,
        full_kv_indices: None,
        row_order: None,
        tail_out: None,
        tail_lse: None,
        tail_k: None,
        tail_v: None,
        tail_weights: None,
        tail_pieces: None,
        out: &mut out,
        lse: &mut lse,
        scale: 0.125,
    };
    let functions = FunctionArgs::new(cuda, &kernel.variant().candidate.spec, &[None, None])?;
    // SAFETY: lists may hold anything; everything lives until the wait below.
    unsafe { kernel.launch(&args, Some(&functions))? };
    cuda.synchronize()?;
    let map: Vec<bool> = (0..2 * rows).flat_map(|_| (0..10).map(|block| block == 1 || block == 3)).collect();
    let mask = BlockMask::from_dense(&map, [1, 2, rows, 10], blocks(128, 64), SeqLens::same(600))?;
    let expected = attention_f64(&q, &k, &v, &mask, 0.125, None, None)?;
    let error = relative_error(&out.to_f32_vec()?, &expected.out);
    if error <= 6e-4 { Ok(()) } else { Err(format!("error {error:.2e}").into()) }
}

/// FlexAttention's lists need not ascend.
fn unsorted_lists(device: &Device) -> Result<(), Failed> {
    let mut random = Random(53);
    let [q, k, v] = [(); 3].map(|()| random.tensor(DType::F16, &SHAPE));
    let counts = Tensor::from_slice(&[3i32; 10], &[1, 2, 5])?;
    let lists: Vec<i32> = (0..10).flat_map(|_| [9, 0, 4]).collect();
    let indices = Tensor::from_slice(&lists, &[1, 2, 5, 3])?;
    let mask = BlockMask::from_kv_indices(counts, indices, None, blocks(128, 64), SeqLens::same(600))?;
    let kernel = load(
        device.as_cuda().unwrap(),
        &[Request::new(&forward::SOURCE)
            .value("T", DType::F16)
            .value("D", 64)
            .value("BLOCK_Q", 128)
            .value("BLOCK_KV", 64)],
    )?
    .remove(0);
    let (out, _) = launch(device, &kernel, [&q, &k, &v], &mask, 0.125)?;
    let expected = attention_f64(&q, &k, &v, &mask, 0.125, None, None)?;
    let error = relative_error(&out.to_f32_vec()?, &expected.out);
    if error <= 6e-4 { Ok(()) } else { Err(format!("error {error:.2e}").into()) }
}
