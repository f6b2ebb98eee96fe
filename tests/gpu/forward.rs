//! The forward kernel against exact f64 attention over the same blocks.

use super::Test;
use super::support::{Random, blocks, tensor};
use libtest_mimic::Failed;
use tilewright::kernels::forward;
use tilewright::launch::{FunctionArgs, Kernel, Request, load};
use tilewright::reference::{attention_f64, largest_difference, relative_error};
use tilewright::{BlockMask, BlockSize, DType, Device, HeadDim, SeqLens, Tensor};

pub const TESTS: &[Test] = &[
    ("forward::ragged_lengths", ragged_lengths),
    ("forward::head_dims_and_blocks", head_dims_and_blocks),
    ("forward::values_of_another_width", values_of_another_width),
    ("forward::heads_and_groups", heads_and_groups),
    ("forward::cross_lengths", cross_lengths),
    ("forward::bshd_strides", bshd_strides),
    ("forward::shared_mask", shared_mask),
    ("forward::scales", scales),
    ("forward::one_long_row_of_blocks", long_sequence),
    ("forward::every_schedule", every_schedule),
    ("forward::same_bits_every_time", same_bits),
];

/// One comparison. Everything not set is the default below.
#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    seq_q: usize,
    seq_kv: usize,
    d: usize,
    /// The last dimension of v and the output, where it is not `d`.
    value_d: Option<usize>,
    blocks: (usize, usize),
    /// Share of blocks kept; every eighth row keeps none.
    kept: f64,
    scale: Option<f32>,
    /// Tensors laid out [batch, seq, heads, d].
    bshd: bool,
    /// The mask is one for all heads and batches.
    shared: bool,
}

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
    kept: 0.5,
    scale: None,
    bshd: false,
    shared: false,
};

impl Case {
    fn value_d(&self) -> usize {
        self.value_d.unwrap_or(self.d)
    }

    fn mask(&self, random: &mut Random) -> BlockMask {
        let (rows, columns) = (self.seq_q.div_ceil(self.blocks.0), self.seq_kv.div_ceil(self.blocks.1));
        let (batch, heads) = if self.shared { (1, 1) } else { (self.batch, self.heads) };
        let map: Vec<bool> = (0..batch * heads * rows)
            .flat_map(|row| {
                let empty = row % 8 == 5;
                (0..columns).map(|_| !empty && random.chance(self.kept)).collect::<Vec<_>>()
            })
            .collect();
        BlockMask::from_dense(
            &map,
            [batch, heads, rows, columns],
            blocks(self.blocks.0, self.blocks.1),
            SeqLens { q: self.seq_q, kv: self.seq_kv },
        )
        .unwrap()
    }

    fn tensor(&self, random: &mut Random, heads: usize, seq: usize, d: usize) -> Tensor {
        if self.bshd {
            random.tensor(self.dtype, &[self.batch, seq, heads, d]).permute(&[0, 2, 1, 3]).unwrap()
        } else {
            random.tensor(self.dtype, &[self.batch, heads, seq, d])
        }
    }

    fn request(&self) -> Request {
        let [dim, values] = [self.d, self.value_d()].map(|d| HeadDim::new(d).unwrap());
        let [d, d_v] = dim.tiles(values).map(|tile| tile as i64);
        Request::new(&forward::SOURCE)
            .value("T", self.dtype)
            .value("D", d)
            .value("D_V", d_v)
            .value("BLOCK_Q", self.blocks.0 as i64)
            .value("BLOCK_KV", self.blocks.1 as i64)
    }

    fn check(&self, device: &Device) -> Result<(), Failed> {
        let kernel = load(device.as_cuda().unwrap(), &[self.request()])?.remove(0);
        self.check_kernel(device, &kernel)
    }

    fn check_kernel(&self, device: &Device, kernel: &Kernel) -> Result<(), Failed> {
        let mut random = Random(self.seq_q as u64 * 31 + self.heads as u64 * 7 + self.d as u64);
        let (q, k, v) = (
            self.tensor(&mut random, self.heads, self.seq_q, self.d),
            self.tensor(&mut random, self.kv_heads, self.seq_kv, self.d),
            self.tensor(&mut random, self.kv_heads, self.seq_kv, self.value_d()),
        );
        let mask = self.mask(&mut random);
        let scale = self.scale.unwrap_or(1.0 / (self.d as f32).sqrt());
        let expected = attention_f64(&q, &k, &v, &mask, scale, None, None)?;
        let (out, lse) = launch(device, kernel, [&q, &k, &v], &mask, scale)?;
        let (bound, name) = match self.dtype {
            DType::F16 => (6e-4, "f16"),
            _ => (4e-3, "bf16"),
        };
        let error = relative_error(&out.to_f32_vec()?, &expected.out);
        let lse_error = largest_difference(&lse.to_vec::<f32>()?, &expected.lse);
        println!("{name} {self:?}: out {error:.2e}, lse {lse_error:.2e}");
        // Written so that a NaN fails.
        if !(error <= bound && lse_error <= 1e-3) {
            return Err(
                format!("{self:?}: out {error:.2e} (≤ {bound:.0e}), lse {lse_error:.2e} (≤ 1e-3)").into()
            );
        }
        Ok(())
    }
}

/// Launches into poisoned outputs of q's layout.
pub fn launch(
    device: &Device,
    kernel: &Kernel,
    [q, k, v]: [&Tensor; 3],
    mask: &BlockMask,
    scale: f32,
) -> Result<(Tensor, Tensor), Failed> {
    let cuda = device.as_cuda().unwrap();
    let (q, k, v) = (q.to(device)?, k.to(device)?, v.to(device)?);
    let mut out = Tensor::uninit(device, q.dtype(), &[&q.shape()[..3], &v.shape()[3..]].concat())?;
    let mut lse = Tensor::uninit(device, DType::F32, &q.shape()[..3])?;
    // 0xFF bytes are NaN in every float type.
    out.fill_bytes(0xFF)?;
    lse.fill_bytes(0xFF)?;
    let mask = mask.to(device)?;
    let args = forward::Args {
        q: &q,
        k: &k,
        v: &v,
        kv_counts: &mask.kv().counts,
        kv_indices: &mask.kv().indices,
        full_kv_counts: mask.full_kv().map(|full| &full.counts),
        full_kv_indices: mask.full_kv().map(|full| &full.indices),
        row_order: None,
        tail_out: None,
        tail_lse: None,
        tail_k: None,
        tail_v: None,
        tail_weights: None,
        tail_pieces: None,
        out: &mut out,
        lse: &mut lse,
        scale,
    };
    let functions = FunctionArgs::new(cuda, &kernel.variant().candidate.spec, &[None, None])?;
    // SAFETY: the lists are those of a mask; everything lives until the wait below.
    unsafe { kernel.launch(&args, Some(&functions))? };
    cuda.synchronize()?;
    Ok((out, lse))
}

fn ragged_lengths(device: &Device) -> Result<(), Failed> {
    for seq in [1, 63, 64, 65, 127, 128, 129, 1000] {
        for dtype in [DType::Bf16, DType::F16] {
            Case { dtype, seq_q: seq, seq_kv: seq, kept: if seq < 200 { 1.0 } else { 0.5 }, ..CASE }
                .check(device)?;
        }
    }
    Ok(())
}

fn head_dims_and_blocks(device: &Device) -> Result<(), Failed> {
    for blocks in BlockSize::ALL {
        for d in [64, 96, 128, 192, 256, 8, 40, 80, 104, 136] {
            for dtype in [DType::Bf16, DType::F16] {
                Case { dtype, d, blocks: (blocks.q(), blocks.kv()), seq_q: 300, seq_kv: 300, ..CASE }
                    .check(device)?;
            }
        }
    }
    Ok(())
}

fn values_of_another_width(device: &Device) -> Result<(), Failed> {
    for (d, value_d) in [(192, 128), (136, 8), (192, 136), (256, 128), (64, 128), (128, 64), (8, 96)] {
        for blocks in BlockSize::ALL {
            for dtype in [DType::Bf16, DType::F16] {
                let (value_d, blocks) = (Some(value_d), (blocks.q(), blocks.kv()));
                Case { dtype, d, value_d, blocks, heads: 4, seq_q: 300, seq_kv: 300, ..CASE }
                    .check(device)?;
            }
        }
    }
    let strided = Case { value_d: Some(128), d: 192, bshd: true, batch: 2, heads: 4, ..CASE };
    strided.check(device)?;
    Case { seq_q: 130, seq_kv: 1000, scale: Some(-0.1), ..strided }.check(device)
}

fn heads_and_groups(device: &Device) -> Result<(), Failed> {
    for (heads, kv_heads) in [(1, 1), (3, 3), (40, 40), (4, 1), (8, 2), (8, 1), (40, 5)] {
        Case { heads, kv_heads, batch: 2, seq_q: 200, seq_kv: 260, ..CASE }.check(device)?;
    }
    Ok(())
}

fn cross_lengths(device: &Device) -> Result<(), Failed> {
    for (seq_q, seq_kv) in [(1, 1000), (1000, 1), (130, 64), (77, 513)] {
        Case { seq_q, seq_kv, kept: 0.7, ..CASE }.check(device)?;
    }
    Ok(())
}

fn bshd_strides(device: &Device) -> Result<(), Failed> {
    Case { bshd: true, batch: 2, heads: 6, kv_heads: 3, ..CASE }.check(device)?;
    Case { bshd: true, batch: 2, heads: 4, kv_heads: 4, d: 64, dtype: DType::F16, ..CASE }.check(device)
}

fn shared_mask(device: &Device) -> Result<(), Failed> {
    Case { shared: true, batch: 2, heads: 5, kv_heads: 5, ..CASE }.check(device)
}

fn scales(device: &Device) -> Result<(), Failed> {
    for scale in [-0.1, 0.0, 1.0] {
        Case { scale: Some(scale), ..CASE }.check(device)?;
    }
    Ok(())
}

fn long_sequence(device: &Device) -> Result<(), Failed> {
    let long = Case { heads: 1, kv_heads: 1, seq_q: 32760, seq_kv: 32760, kept: 0.05, ..CASE };
    long.check(device)?;
    Case { dtype: DType::F16, d: 64, ..long }.check(device)
}

/// Every candidate of the tuning space, not the preferred one alone.
fn every_schedule(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    for (d, value_d) in [(64, None), (96, None), (128, None), (192, None), (256, None), (192, Some(128))] {
        for blocks in BlockSize::ALL {
            let case =
                Case { d, value_d, blocks: (blocks.q(), blocks.kv()), seq_q: 333, seq_kv: 333, ..CASE };
            for kernel in case.request().load_all(cuda)? {
                case.check_kernel(device, &kernel).map_err(|error| {
                    format!("{}: {}", kernel.variant().name, error.message().unwrap_or_default())
                })?;
            }
        }
    }
    Ok(())
}

fn same_bits(device: &Device) -> Result<(), Failed> {
    let case = Case { heads: 8, kv_heads: 8, seq_q: 2000, seq_kv: 2000, ..CASE };
    let kernel = load(device.as_cuda().unwrap(), &[case.request()])?.remove(0);
    let mut random = Random(5);
    let [q, k, v] = [(); 3].map(|()| case.tensor(&mut random, 8, 2000, case.d));
    let mask = case.mask(&mut random);
    let first = launch(device, &kernel, [&q, &k, &v], &mask, 0.09)?;
    let bits = |tensor: &Tensor| -> Result<Vec<u32>, Failed> {
        Ok(tensor.to_f32_vec()?.into_iter().map(f32::to_bits).collect())
    };
    for _ in 0..5 {
        let again = launch(device, &kernel, [&q, &k, &v], &mask, 0.09)?;
        if bits(&again.0)? != bits(&first.0)? || bits(&again.1)? != bits(&first.1)? {
            return Err("two runs differ".into());
        }
    }
    Ok(())
}

/// A tensor whose elements are all `value`.
pub fn constant(dtype: DType, value: f32, shape: &[usize]) -> Tensor {
    tensor(dtype, &vec![value; shape.iter().product()], shape)
}
