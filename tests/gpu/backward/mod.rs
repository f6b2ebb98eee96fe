//! The backward kernels against exact f64 gradients over the same blocks.

pub mod calls;

use super::Test;
use super::support::{Case, Random};
use libtest_mimic::Failed;
use tilewright::kernels::{backward_kv, backward_q};
use tilewright::launch::{FunctionArgs, Kernel, Request, load};
use tilewright::reference::{attention_backward_f64, relative_error};
use tilewright::{BlockMask, BlockSize, DType, Device, Gradients, HeadDim, MaskMod, ScoreMod, Tensor, cpu};

pub const TESTS: &[Test] = &[
    ("backward::ragged_lengths", ragged_lengths),
    ("backward::head_dims_and_blocks", head_dims_and_blocks),
    ("backward::values_of_another_width", values_of_another_width),
    ("backward::heads_and_groups", heads_and_groups),
    ("backward::cross_lengths", cross_lengths),
    ("backward::scales", scales),
    ("backward::every_schedule", every_schedule),
    ("backward::one_long_row_of_blocks", long_sequence),
    ("backward::same_bits_every_time", same_bits),
];

const CASE: Case = Case {
    dtype: DType::Bf16,
    batch: 1,
    heads: 2,
    kv_heads: 2,
    seq_q: 500,
    seq_kv: 500,
    d: 128,
    value_d: None,
    blocks: (128, 64),
};

/// About this share of the blocks; no row 5 of each 8 and no column 3 of each 7.
fn holey_mask(case: &Case, random: &mut Random, kept: f64) -> BlockMask {
    let [batch, heads, rows, columns] = case.grid();
    let at = |i: usize| (i / columns % rows % 8 != 5) && (i % columns % 7 != 3);
    let map: Vec<bool> = (0..batch * heads * rows * columns).map(|i| random.chance(kept) && at(i)).collect();
    BlockMask::from_dense(&map, case.grid(), case.block_size(), case.seqs()).unwrap()
}

/// The two kernels.
struct Kernels {
    by_query: Kernel,
    by_key: Kernel,
}

fn requests(case: &Case) -> [Request; 2] {
    let [dim, values] = [case.d, case.value_d()].map(|d| HeadDim::new(d).unwrap());
    let [d, d_v] = dim.backward_tiles(values).map(|tile| tile as i64);
    let blocks = |request: Request| {
        request
            .value("T", case.dtype)
            .value("D", d)
            .value("D_V", d_v)
            .value("BLOCK_Q", case.blocks.0 as i64)
            .value("BLOCK_KV", case.blocks.1 as i64)
    };
    [blocks(Request::new(&backward_q::SOURCE)), blocks(Request::new(&backward_kv::SOURCE))]
}

impl Kernels {
    fn of(device: &Device, case: &Case) -> Result<Self, Failed> {
        let mut loaded = load(device.as_cuda().unwrap(), &requests(case))?.into_iter();
        let mut next = || loaded.next().expect("one was asked for");
        Ok(Kernels { by_query: next(), by_key: next() })
    }

    /// Launches into poisoned outputs. With a gradient of lse the keys come in an order of their own, where they can have one.
    fn launch(&self, device: &Device, inputs: &Inputs, d_lse: Option<&Tensor>) -> Result<Gradients, Failed> {
        let cuda = device.as_cuda().unwrap();
        let to = |tensor: &Tensor| tensor.to(device);
        let (q, k, v) = (to(&inputs.qkv[0])?, to(&inputs.qkv[1])?, to(&inputs.qkv[2])?);
        let (out, lse, d_out) = (to(&inputs.out)?, to(&inputs.lse)?, to(&inputs.d_out)?);
        let d_lse = d_lse.map(to).transpose()?;
        let mask = inputs.mask.to(device)?;
        let poisoned = |like: &Tensor, dtype| -> Result<Tensor, Failed> {
            let mut tensor = Tensor::uninit(device, dtype, like.shape())?;
            // 0xFF bytes are NaN in every float type.
            tensor.fill_bytes(0xFF)?;
            Ok(tensor)
        };
        let mut delta = poisoned(&lse, DType::F32)?;
        let dtype = q.dtype();
        let (mut dq, mut dk, mut dv) = (poisoned(&q, dtype)?, poisoned(&k, dtype)?, poisoned(&v, dtype)?);
        let functions = FunctionArgs::new(cuda, &self.by_key.variant().candidate.spec, &[None, None])?;
        let args = backward_q::Args {
            q: &q,
            k: &k,
            v: &v,
            out: &out,
            d_out: &d_out,
            lse: &lse,
            d_lse: d_lse.as_ref(),
            kv_counts: &mask.kv().counts,
            kv_indices: &mask.kv().indices,
            full_kv_counts: mask.full_kv().map(|full| &full.counts),
            full_kv_indices: mask.full_kv().map(|full| &full.indices),
            dq_mean: None,
            tail_k: None,
            tail_v: None,
            tail_weights: None,
            tail_pieces: None,
            dq: &mut dq,
            delta: &mut delta,
            scale: inputs.scale,
        };
        // SAFETY: the lists are those of a mask; everything lives until the wait below.
        unsafe { self.by_query.launch(&args, Some(&functions))? };
        let order = match mask.q().counts.shape() {
            &[batch, heads, blocks] if d_lse.is_some() && [1, k.shape()[1]].contains(&heads) => {
                let mut shuffled: Vec<i32> = (0..blocks as i32).collect();
                shuffled.sort_by_key(|&block| (block as u32).wrapping_mul(0x9E37_79B1));
                let orders = shuffled.repeat(batch * heads);
                Some(Tensor::from_slice(&orders, &[batch, heads, blocks])?.to(device)?)
            }
            _ => None,
        };
        let args = backward_kv::Args {
            q: &q,
            k: &k,
            v: &v,
            d_out: &d_out,
            lse: &lse,
            delta: &delta,
            q_counts: &mask.q().counts,
            q_indices: &mask.q().indices,
            full_q_counts: mask.full_q().map(|full| &full.counts),
            full_q_indices: mask.full_q().map(|full| &full.indices),
            key_order: order.as_ref(),
            dk_mean: None,
            dv_mean: None,
            tail_weights: None,
            tail_pieces: None,
            dk: &mut dk,
            dv: &mut dv,
            scale: inputs.scale,
        };
        // SAFETY: the lists are those of a mask; everything lives until the wait below.
        unsafe { self.by_key.launch(&args, Some(&functions))? };
        cuda.synchronize()?;
        Ok(Gradients { dq, dk, dv })
    }
}

/// What a backward starts from, on the host.
struct Inputs {
    qkv: [Tensor; 3],
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    mask: BlockMask,
    scale: f32,
}

impl Inputs {
    fn new(case: &Case, kept: f64, scale: f32) -> Result<Self, Failed> {
        let mut random = Random(case.seq_q as u64 * 31 + case.heads as u64 * 7 + case.d as u64);
        let qkv = case.qkv(&mut random);
        let mask = holey_mask(case, &mut random, kept);
        let (out, lse) = cpu::attend(&qkv[0], &qkv[1], &qkv[2], &mask, scale, None, None)?;
        let d_out = random.tensor(case.dtype, &case.out());
        let d_lse = random.tensor(DType::F32, &qkv[0].shape()[..3]);
        Ok(Inputs { qkv, out, lse, d_out, d_lse, mask, scale })
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

fn exact_norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Compares with f64; every element must be a number.
fn compare(
    what: &str,
    dtype: DType,
    found: &Gradients,
    ([q, k, v], mask, scale): (&[Tensor; 3], &BlockMask, f32),
    (d_out, d_lse): (&Tensor, Option<&Tensor>),
    (score_mod, mask_mod): (Option<&dyn ScoreMod>, Option<&dyn MaskMod>),
) -> Result<(), Failed> {
    let exact = attention_backward_f64([q, k, v], (d_out, d_lse), mask, scale, score_mod, mask_mod)?;
    let bound = if dtype == DType::F16 { 1e-3 } else { 6e-3 };
    let exact_dv = exact.dv.clone();
    let mut line = String::new();
    let mut fits = true;
    for (name, found, exact) in
        [("dq", &found.dq, &exact.dq), ("dk", &found.dk, &exact.dk), ("dv", &found.dv, &exact.dv)]
    {
        let found = found.to_f32_vec()?;
        // A query with a single key has no gradient by its score: what is left is rounding, small beside d_out, which dv sums.
        let error = if exact_norm(exact) == 0.0 {
            1e3 * norm(&found) / exact_norm(&exact_dv)
        } else {
            relative_error(&found, exact)
        };
        line += &format!(" {name} {error:.2e}");
        // Written so that a NaN fails.
        fits &= error <= bound;
    }
    println!("{what}:{line}");
    if fits { Ok(()) } else { Err(format!("{what}:{line}, bound {bound:.0e}").into()) }
}

fn check_kernels(
    device: &Device,
    kernels: &Kernels,
    case: &Case,
    kept: f64,
    scale: f32,
) -> Result<(), Failed> {
    let inputs = Inputs::new(case, kept, scale)?;
    for d_lse in [None, Some(&inputs.d_lse)] {
        let found = kernels.launch(device, &inputs, d_lse)?;
        let what = format!("{case:?}{}", if d_lse.is_some() { " with d_lse" } else { "" });
        let problem = (&inputs.qkv, &inputs.mask, scale);
        compare(&what, case.dtype, &found, problem, (&inputs.d_out, d_lse), (None, None))?;
    }
    Ok(())
}

fn check(device: &Device, case: Case, kept: f64) -> Result<(), Failed> {
    check_kernels(device, &Kernels::of(device, &case)?, &case, kept, case.scale())
}

fn ragged_lengths(device: &Device) -> Result<(), Failed> {
    for seq in [1, 63, 64, 65, 127, 128, 129, 1000] {
        for dtype in [DType::Bf16, DType::F16] {
            let kept = if seq < 200 { 1.0 } else { 0.5 };
            check(device, Case { dtype, seq_q: seq, seq_kv: seq, ..CASE }, kept)?;
        }
    }
    Ok(())
}

fn head_dims_and_blocks(device: &Device) -> Result<(), Failed> {
    for blocks in BlockSize::ALL {
        for d in [64, 96, 128, 192, 256, 8, 40, 80, 104, 136] {
            for dtype in [DType::Bf16, DType::F16] {
                let blocks = (blocks.q(), blocks.kv());
                check(device, Case { dtype, d, blocks, seq_q: 300, seq_kv: 300, ..CASE }, 0.6)?;
            }
        }
    }
    Ok(())
}

fn values_of_another_width(device: &Device) -> Result<(), Failed> {
    for (d, value_d) in [(192, 128), (160, 40), (256, 128), (192, 136), (64, 128), (128, 64), (8, 96)] {
        for (i, blocks) in BlockSize::ALL.into_iter().enumerate() {
            let dtype = [DType::Bf16, DType::F16][(i + d / 64) % 2];
            let blocks = (blocks.q(), blocks.kv());
            let case =
                Case { dtype, d, value_d: Some(value_d), blocks, heads: 4, seq_q: 300, seq_kv: 300, ..CASE };
            check(device, case, 0.6)?;
        }
    }
    Ok(())
}

fn heads_and_groups(device: &Device) -> Result<(), Failed> {
    for (heads, kv_heads) in [(1, 1), (3, 3), (40, 40), (4, 1), (8, 2), (8, 1), (40, 5)] {
        check(device, Case { heads, kv_heads, batch: 2, seq_q: 200, seq_kv: 260, ..CASE }, 0.6)?;
    }
    Ok(())
}

fn cross_lengths(device: &Device) -> Result<(), Failed> {
    for (seq_q, seq_kv) in [(1, 1000), (1000, 1), (130, 64), (77, 513), (3000, 100)] {
        check(device, Case { seq_q, seq_kv, ..CASE }, 0.7)?;
        check(device, Case { seq_q, seq_kv, d: 64, dtype: DType::F16, ..CASE }, 0.7)?;
    }
    Ok(())
}

fn scales(device: &Device) -> Result<(), Failed> {
    let kernels = Kernels::of(device, &CASE)?;
    for scale in [-0.1, 0.3] {
        check_kernels(device, &kernels, &CASE, 0.5, scale)?;
    }
    // With a scale of 0 all weights of a row are alike, and q and k have no gradient.
    let inputs = Inputs::new(&CASE, 0.5, 0.0)?;
    let found = kernels.launch(device, &inputs, None)?;
    let [q, k, v] = &inputs.qkv;
    let exact = attention_backward_f64([q, k, v], (&inputs.d_out, None), &inputs.mask, 0.0, None, None)?;
    let error = relative_error(&found.dv.to_f32_vec()?, &exact.dv);
    let zero =
        |tensor: &Tensor| -> Result<bool, Failed> { Ok(tensor.to_f32_vec()?.iter().all(|x| *x == 0.0)) };
    if !(error <= 6e-3 && zero(&found.dq)? && zero(&found.dk)?) {
        return Err(format!("scale 0: dv is off by {error:.1e}, or dq and dk are not 0").into());
    }
    Ok(())
}

/// Every candidate of the tuning spaces, not the preferred ones alone.
fn every_schedule(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    for (d, value_d) in [(64, None), (96, None), (128, None), (256, None), (192, Some(128))] {
        for blocks in BlockSize::ALL {
            let case =
                Case { d, value_d, blocks: (blocks.q(), blocks.kv()), seq_q: 333, seq_kv: 333, ..CASE };
            let [by_query, by_key] = requests(&case).map(|request| request.load_all(cuda));
            let (by_query, by_key) = (by_query?, by_key?);
            for i in 0..by_query.len().max(by_key.len()) {
                let nth = |kernels: &[Kernel]| kernels[i % kernels.len()].clone();
                let kernels = Kernels { by_query: nth(&by_query), by_key: nth(&by_key) };
                check_kernels(device, &kernels, &case, 0.6, case.scale()).map_err(|error| {
                    let names =
                        [&kernels.by_query, &kernels.by_key].map(|kernel| kernel.variant().name.as_str());
                    format!("{}: {}", names.join(", "), error.message().unwrap_or_default())
                })?;
            }
        }
    }
    Ok(())
}

fn long_sequence(device: &Device) -> Result<(), Failed> {
    let long = Case { heads: 1, kv_heads: 1, seq_q: 16_500, seq_kv: 16_500, ..CASE };
    check(device, long, 0.05)?;
    check(device, Case { dtype: DType::F16, d: 64, ..long }, 0.05)
}

fn same_bits(device: &Device) -> Result<(), Failed> {
    let case = Case { heads: 8, kv_heads: 2, seq_q: 2000, seq_kv: 2000, ..CASE };
    let kernels = Kernels::of(device, &case)?;
    let inputs = Inputs::new(&case, 0.5, case.scale())?;
    let bits = |gradients: &Gradients| -> Result<Vec<u32>, Failed> {
        let mut all = Vec::new();
        for tensor in [&gradients.dq, &gradients.dk, &gradients.dv] {
            all.extend(tensor.to_f32_vec()?.into_iter().map(f32::to_bits));
        }
        Ok(all)
    };
    let first = bits(&kernels.launch(device, &inputs, Some(&inputs.d_lse))?)?;
    for _ in 0..20 {
        if bits(&kernels.launch(device, &inputs, Some(&inputs.d_lse))?)? != first {
            return Err("two runs differ".into());
        }
    }
    Ok(())
}
