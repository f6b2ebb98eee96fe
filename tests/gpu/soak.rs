//! The forward over many random shapes and masks, and over tensors that are expanded, against f64.

use super::Test;
use super::forward::launch;
use super::support::{Case, Random};
use libtest_mimic::Failed;
use std::collections::HashMap;
use tilewright::kernels::forward;
use tilewright::launch::{Request, load};
use tilewright::reference::{attention_f64, largest_difference, relative_error};
use tilewright::{Attention, BlockIndex, BlockMask, BlockSize, DType, Device, HeadDim, Tensor, top_k, top_p};

pub const TESTS: &[Test] = &[("soak::two_hundred_cases", cases), ("soak::expanded_tensors", expanded)];

const CASES: usize = 200;
const SEED: u64 = 20_261_126;

/// Products of a case's heads, queries and keys: what the oracle has time for.
const ELEMENTS: usize = 400_000;

fn cases(device: &Device) -> Result<(), Failed> {
    let mut random = Random(SEED);
    let cases: Vec<(Case, BlockMask, Random)> = (0..CASES)
        .map(|_| {
            let case = draw_case(&mut random);
            let mask = draw_mask(&case, &mut random);
            (case, mask, Random(u64::from(random.bits())))
        })
        .collect();
    // All kernels at once: they compile beside each other.
    let key = |case: &Case| {
        let [dim, values] = [case.d, case.value_d()].map(|d| HeadDim::new(d).unwrap());
        (case.dtype, dim.tiles(values), case.blocks)
    };
    let mut wanted: Vec<_> = cases.iter().map(|(case, ..)| key(case)).collect();
    wanted.sort_by_key(|&(dtype, d, blocks)| (dtype.to_string(), d, blocks));
    wanted.dedup();
    let requests: Vec<Request> = wanted
        .iter()
        .map(|&(dtype, [d, d_v], (block_q, block_kv))| {
            let request = Request::new(&forward::SOURCE).value("T", dtype);
            let request = request.value("D", d as i64).value("D_V", d_v as i64);
            request.value("BLOCK_Q", block_q as i64).value("BLOCK_KV", block_kv as i64)
        })
        .collect();
    let kernels = load(device.as_cuda().unwrap(), &requests)?;
    let kernels: HashMap<_, _> = wanted.into_iter().zip(kernels).collect();

    let mut worst = [0.0f64; 3];
    for (number, (case, mask, mut random)) in cases.into_iter().enumerate() {
        let name = || format!("case {number} of seed {SEED}, {case:?}, {} blocks kept", kept(&mask));
        let [q, k, v] = case.qkv(&mut random);
        let scale = case.scale();
        let expected = attention_f64(&q, &k, &v, &mask, scale, None, None)?;
        let kernel = &kernels[&key(&case)];
        let found = launch(device, kernel, [&q, &k, &v], &mask, scale)?;
        let again = launch(device, kernel, [&q, &k, &v], &mask, scale)?;
        let (out, lse) = (found.0.to_f32_vec()?, found.1.to_vec::<f32>()?);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let same = bits(&out) == bits(&again.0.to_f32_vec()?) && bits(&lse) == bits(&again.1.to_vec()?);
        if !same {
            return Err(format!("{}: two runs differ", name()).into());
        }
        let error = relative_error(&out, &expected.out);
        let lse_error = largest_difference(&lse, &expected.lse);
        let (bound, at) = if case.dtype == DType::F16 { (6e-4, 0) } else { (4e-3, 1) };
        // Written so that a NaN fails.
        if !(error <= bound && lse_error <= 1e-3) {
            return Err(format!("{}: out {error:.2e} (≤ {bound:.0e}), lse {lse_error:.2e}", name()).into());
        }
        worst[at] = worst[at].max(error);
        worst[2] = worst[2].max(lse_error);
    }
    println!("{CASES} cases: f16 {:.1e}, bf16 {:.1e}, lse {:.1e} at most", worst[0], worst[1], worst[2]);
    Ok(())
}

fn kept(mask: &BlockMask) -> usize {
    mask.row_counts().map_or(0, |counts| counts.iter().sum())
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.bits() as usize % from.len()]
}

fn draw_case(random: &mut Random) -> Case {
    let group = pick(random, &[1, 1, 2, 4]);
    let kv_heads = pick(random, &[1, 2, 3, 5]);
    let batch = pick(random, &[1, 1, 2, 3]);
    let heads = kv_heads * group;
    let seq = |random: &mut Random| 1 + random.bits() as usize % pick(random, &[64, 200, 700, 1500]);
    let seq_q = seq(random);
    let most = (ELEMENTS * 8 / (batch * heads * seq_q)).max(1);
    let blocks = pick(random, &BlockSize::ALL);
    let (d, value_d) = pick(
        random,
        &[
            (64, None),
            (64, None),
            (128, None),
            (128, None),
            (96, None),
            (192, None),
            (256, None),
            (8, None),
            (72, None),
            (112, None),
            (192, Some(128)),
            (192, Some(128)),
            (168, Some(64)),
            (64, Some(128)),
            (96, Some(40)),
        ],
    );
    Case {
        dtype: pick(random, &[DType::Bf16, DType::F16]),
        batch,
        heads,
        kv_heads,
        seq_q,
        seq_kv: seq(random).min(most),
        d,
        value_d,
        blocks: (blocks.q(), blocks.kv()),
    }
}

/// Empty, sparse, full or uneven rows; lists that a mask writes itself, or a caller's in any order, with more behind their end.
fn draw_mask(case: &Case, random: &mut Random) -> BlockMask {
    let [batch, heads, rows, columns] = case.grid();
    let kind = random.bits() % 6;
    let density = pick(random, &[0.05, 0.3, 0.7]);
    let map: Vec<bool> = (0..batch * heads * rows)
        .flat_map(|_| {
            let only = random.bits() as usize % columns;
            let long = random.chance(0.1);
            (0..columns)
                .map(|column| match kind {
                    0 => false,
                    1 => column == only,
                    2 => true,
                    3 => random.chance(if long { 0.9 } else { 0.04 }),
                    _ => random.chance(density),
                })
                .collect::<Vec<_>>()
        })
        .collect();
    if random.chance(0.5) {
        return BlockMask::from_dense(&map, case.grid(), case.block_size(), case.seqs()).unwrap();
    }
    // Half of the blocks, now and then, are listed as full ones: without a mask function that is the same.
    let full = random.chance(0.5);
    let mut lists = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    for row in map.chunks(columns) {
        let mut parts = [Vec::new(), Vec::new()];
        for column in (0..columns).filter(|&column| row[column]) {
            parts[usize::from(full && random.chance(0.5))].push(column as i32);
        }
        for (part, (counts, indices)) in parts.iter_mut().zip(&mut lists) {
            for i in (1..part.len()).rev() {
                part.swap(i, random.bits() as usize % (i + 1));
            }
            counts.push(part.len() as i32);
            part.resize(columns, i32::MIN);
            indices.append(part);
        }
    }
    let shape = [batch, heads, rows, columns];
    let [kv, full_kv] = lists.map(|(counts, indices)| BlockIndex {
        counts: Tensor::from_slice(&counts, &shape[..3]).unwrap(),
        indices: Tensor::from_slice(&indices, &shape).unwrap(),
    });
    BlockMask::from_kv_indices(kv.counts, kv.indices, full.then_some(full_kv), case.block_size(), case.seqs())
        .unwrap()
}

/// One head for all, one sequence for all of a batch: PyTorch's `expand`. Nothing is copied, and the result is that of copies.
fn expanded(device: &Device) -> Result<(), Failed> {
    let mut random = Random(77);
    let (heads, seq) = (3, 400);
    for (dtype, d) in [(DType::Bf16, 128), (DType::F16, 64), (DType::Bf16, 96)] {
        let attention =
            Attention::builder(HeadDim::new(d)?, dtype).select(top_k(0.4) | top_p(0.3)).build(device)?;
        let shape = [2, heads, seq, d];
        // Which dimensions of q, k and v are one for all.
        for (q_ones, kv_ones) in
            [([false, false], [false, true]), ([true, false], [true, false]), ([true, true], [true, true])]
        {
            let draw = |random: &mut Random, ones: [bool; 2]| -> Result<[Tensor; 2], Failed> {
                let held = [if ones[0] { 1 } else { 2 }, if ones[1] { 1 } else { heads }, seq, d];
                let tensor = random.tensor(dtype, &held).to(device)?;
                let mut strides = tensor.strides().to_vec();
                for axis in 0..2 {
                    if ones[axis] {
                        strides[axis] = 0;
                    }
                }
                let view = tensor.with_strides(&shape, &strides)?;
                // Through the host, where a copy is written out.
                let copy = written_out(&view)?.to(device)?;
                Ok([view, copy])
            };
            let [q, q_copy] = draw(&mut random, q_ones)?;
            let [k, k_copy] = draw(&mut random, kv_ones)?;
            let [v, v_copy] = draw(&mut random, kv_ones)?;
            let name =
                format!("{dtype} d {d}, batch and heads of q expanded {q_ones:?}, of k and v {kv_ones:?}");
            let found = attention.forward(&q, &k, &v).map_err(|error| format!("{name}: {error}"))?;
            let expected = attention.forward(&q_copy, &k_copy, &v_copy)?;
            let same = |what: &str, a: &Tensor, b: &Tensor| -> Result<(), Failed> {
                let bits = |x: &Tensor| -> Result<Vec<u32>, Failed> {
                    Ok(x.to_f32_vec()?.into_iter().map(f32::to_bits).collect())
                };
                if bits(a)? == bits(b)? { Ok(()) } else { Err(format!("{name}: another {what}").into()) }
            };
            if found.mask.to_dense()? != expected.mask.to_dense()? {
                return Err(format!("{name}: other blocks").into());
            }
            same("out", &found.out, &expected.out)?;
            same("lse", &found.lse, &expected.lse)?;
            let d_out = random.tensor(dtype, &shape).to(device)?;
            let gradients = attention
                .backward(&q, &k, &v, &found, &d_out, None)
                .map_err(|error| format!("{name}, backward: {error}"))?;
            let of_copies = attention.backward(&q_copy, &k_copy, &v_copy, &expected, &d_out, None)?;
            same("dq", &gradients.dq, &of_copies.dq)?;
            same("dk", &gradients.dk, &of_copies.dk)?;
            same("dv", &gradients.dv, &of_copies.dv)?;
        }
    }
    Ok(())
}

/// A contiguous tensor of the same elements, in host memory.
fn written_out(view: &Tensor) -> Result<Tensor, Failed> {
    Ok(super::support::tensor(view.dtype(), &view.to_f32_vec()?, view.shape()))
}
