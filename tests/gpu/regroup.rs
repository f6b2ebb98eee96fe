//! Rows in another order on the GPU: the CPU's bytes, for every schedule, dtype and layout.

use super::Test;
use super::support::Random;
use cudarc::driver::CudaContext;
use libtest_mimic::Failed;
use tilewright::kernels::regroup;
use tilewright::launch::Request;
use tilewright::{DType, Device, Error, Tensor, TokenGrid};

pub const TESTS: &[Test] = &[
    ("regroup::moves_what_the_cpu_moves", as_the_cpu),
    ("regroup::every_schedule_moves_the_same", every_schedule),
    ("regroup::rows_that_are_not_aligned", unaligned),
    ("regroup::into_memory_of_the_callers_on_its_stream", own_stream),
    ("regroup::an_entry_that_is_no_row_gives_zeros", no_row),
    ("regroup::a_real_models_tokens_come_back", real_sizes),
];

const DTYPES: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

fn grid() -> Result<TokenGrid, Error> {
    TokenGrid::builder([5, 9, 7]).before(70).after(9).build()
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>, Error> {
    Ok(tensor.to_f32_vec()?.into_iter().map(f32::to_bits).collect())
}

fn same(what: &str, found: &Tensor, expected: &Tensor) -> Result<(), Failed> {
    if found.shape() != expected.shape() || bits(found)? != bits(expected)? {
        return Err(format!("{what}: other rows than on the CPU").into());
    }
    Ok(())
}

fn as_the_cpu(device: &Device) -> Result<(), Failed> {
    let (grid, mut random) = (grid()?, Random(31));
    let tokens = grid.len();
    for dtype in DTYPES {
        // Whole words, odd widths, rows wider than a thread block and narrower than a warp.
        for d in [1, 4, 33, 64, 128, 130, 3072, 5001] {
            for shape in [vec![2, 3, tokens, d], vec![2, tokens, d], vec![tokens, d]] {
                if d > 200 && shape.len() == 4 {
                    continue;
                }
                let x = random.tensor(dtype, &shape);
                let on_gpu = grid.regroup(&x.to(device)?)?;
                same(&format!("{dtype} {shape:?}"), &on_gpu, &grid.regroup(&x)?)?;
                same(&format!("{dtype} {shape:?} and back"), &grid.restore(&on_gpu)?, &x)?;
            }
        }
        let x = random.tensor(dtype, &[2, tokens, 3, 64]).permute(&[0, 2, 1, 3])?;
        same("BSHD", &grid.regroup(&x.to(device)?)?, &grid.regroup(&x)?)?;
    }
    let empty = Tensor::zeros(DType::F32, &[0, 2, tokens, 8])?.to(device)?;
    if grid.regroup(&empty)?.shape() != empty.shape() {
        return Err("nothing to move".into());
    }
    Ok(())
}

fn every_schedule(device: &Device) -> Result<(), Failed> {
    let (grid, mut random) = (grid()?, Random(37));
    let order = Tensor::from_slice(grid.order(), &[grid.len()])?.to(device)?;
    for dtype in DTYPES {
        let kernels = Request::new(&regroup::SOURCE).value("T", dtype).load_all(device.as_cuda().unwrap())?;
        if kernels.len() != 6 {
            return Err(format!("{} schedules", kernels.len()).into());
        }
        for d in [40, 41, 1536] {
            let x = random.tensor(dtype, &[2, 3, grid.len(), d]);
            let (expected, x) = (grid.regroup(&x)?, x.to(device)?);
            for kernel in &kernels {
                let mut out = Tensor::uninit(device, dtype, x.shape())?;
                out.fill_bytes(0xFF)?;
                // SAFETY: an entry that is no row gives zeros.
                unsafe { kernel.launch(&regroup::Args { x: &x, order: &order, out: &mut out }, None)? };
                same(&kernel.variant().name, &out, &expected)?;
            }
        }
    }
    Ok(())
}

/// The same GPU memory from an element on.
fn shifted(
    tensor: &Tensor,
    address: u64,
    by: usize,
    shape: &[usize],
    strides: &[usize],
) -> Result<Tensor, Error> {
    let address = address + (by * tensor.dtype().size()) as u64;
    // SAFETY: the views below lie within the memory at the address, which outlives them.
    unsafe { Tensor::from_device_pointer(0, address, tensor.dtype(), shape, strides) }
}

fn unaligned(device: &Device) -> Result<(), Failed> {
    let (grid, mut random) = (grid()?, Random(41));
    let cuda = device.as_cuda().unwrap();
    let tokens = grid.len();
    for dtype in DTYPES {
        // Rows of 64 in rows of 80: begun one element late, or with a stride that is no multiple of 16 bytes.
        for (by, stride) in [(0, 80), (1, 80), (0, 79)] {
            let host = random.tensor(dtype, &[tokens, 80]);
            let raw: Vec<u8> = match dtype {
                DType::F32 => bytemuck::cast_slice(&host.to_vec::<f32>()?).to_vec(),
                DType::F16 => bytemuck::cast_slice(&host.to_vec::<half::f16>()?).to_vec(),
                _ => bytemuck::cast_slice(&host.to_vec::<half::bf16>()?).to_vec(),
            };
            let memory = cuda.upload(&raw)?;
            let view = shifted(&host, memory.address(), by, &[tokens, 64], &[stride, 1])?;
            let expected = grid.regroup(&view.to(&Device::cpu())?)?;
            same(&format!("{dtype} from {by}, stride {stride}"), &grid.regroup(&view)?, &expected)?;

            // And written to such rows: what lies between them stays.
            let target = cuda.zeroed(raw.len())?;
            let mut out = shifted(&host, target.address(), by, &[tokens, 64], &[stride, 1])?;
            grid.regroup_into(&view, &mut out)?;
            same(&format!("{dtype} to {by}, stride {stride}"), &out, &expected)?;
            let all = cuda.download(&target)?;
            let inside = |element: usize| element >= by && (element - by) % stride < 64;
            let size = dtype.size();
            if all
                .chunks(size)
                .enumerate()
                .any(|(i, bytes)| !inside(i) && bytes.iter().any(|&byte| byte != 0))
            {
                return Err(format!("{dtype} to {by}, stride {stride}: written outside the rows").into());
            }
        }
    }
    Ok(())
}

fn own_stream(device: &Device) -> Result<(), Failed> {
    let (grid, mut random) = (grid()?, Random(43));
    let cuda = device.as_cuda().unwrap();
    let host = random.tensor(DType::Bf16, &[2, grid.len(), 3, 64]).permute(&[0, 2, 1, 3])?;
    let x = host.to(device)?;
    // In the layout of x, which is not the contiguous one.
    let layout = Tensor::zeros_on(device, DType::Bf16, &[2, grid.len(), 3, 64])?;
    let mut out = layout.permute(&[0, 2, 1, 3])?;
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: the stream is of this GPU's context and outlives the grid; everything before it is done.
    let elsewhere = unsafe { grid.on_stream(cuda, stream.cu_stream().cast()) };
    elsewhere.regroup_into(&x, &mut out)?;
    stream.synchronize()?;
    same("into", &out, &grid.regroup(&host)?)?;
    let moved = elsewhere.restore(&out)?;
    stream.synchronize()?;
    same("and back", &moved, &host)?;
    if !matches!(grid.regroup_into(&x, &mut x.clone()), Err(Error::SharedRows)) {
        return Err("in place is not refused".into());
    }
    let mut elsewhere_out = Tensor::zeros(DType::Bf16, x.shape())?;
    if grid.regroup_into(&x, &mut elsewhere_out).is_ok() {
        return Err("a result on the CPU is not refused".into());
    }
    Ok(())
}

fn no_row(device: &Device) -> Result<(), Failed> {
    let x = Random(47).tensor(DType::F32, &[1, 1, 4, 8]);
    let order = Tensor::from_slice(&[3, -1, 4, i32::MAX], &[4])?.to(device)?;
    let kernels =
        Request::new(&regroup::SOURCE).value("T", DType::F32).load_all(device.as_cuda().unwrap())?;
    let mut out = Tensor::uninit(device, DType::F32, x.shape())?;
    out.fill_bytes(0xFF)?;
    // SAFETY: an entry that is no row gives zeros.
    unsafe { kernels[0].launch(&regroup::Args { x: &x.to(device)?, order: &order, out: &mut out }, None)? };
    let (found, x) = (out.to_vec::<f32>()?, x.to_vec::<f32>()?);
    if found[..8] != x[24..] || found[8..].iter().any(|&element| element != 0.0) {
        return Err(format!("{found:?}").into());
    }
    Ok(())
}

/// Wan 2.1 at 480p and CogVideoX, hidden states, heads and tables.
fn real_sizes(device: &Device) -> Result<(), Failed> {
    let mut random = Random(53);
    let wan = TokenGrid::new([21, 30, 52])?;
    let cog = TokenGrid::builder([13, 30, 45]).before(226).build()?;
    for (grid, dtype, shape) in [
        (&wan, DType::Bf16, vec![1, wan.len(), 1536]),
        (&wan, DType::F32, vec![wan.len(), 64]),
        (&cog, DType::Bf16, vec![2, 4, cog.len(), 64]),
    ] {
        let data = Tensor::from_slice(
            &(0..shape.iter().product::<usize>()).map(|_| random.bits() as f32).collect::<Vec<_>>(),
            &shape,
        )?;
        let x = if dtype == DType::F32 {
            data
        } else {
            super::support::tensor(dtype, &data.to_f32_vec()?, &shape)
        };
        let moved = grid.regroup(&x.to(device)?)?;
        same(&format!("{grid} {shape:?}"), &moved, &grid.regroup(&x)?)?;
        same(&format!("{grid} {shape:?} and back"), &grid.restore(&moved)?, &x)?;
    }
    Ok(())
}
