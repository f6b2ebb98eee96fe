//! Every way to call an attention gives what `forward` gives, and what a call writes to is looked at before anything runs.

use super::Test;
use super::support::ways::{Call, Failure, Found, Way, cases, check_all, of_output, rules};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use libtest_mimic::Failed;
use tilewright::TensorError;
use tilewright::attention::MaskLists;
use tilewright::{BlockIndex, DType, Device, Error, Gradients, Tensor};

pub const TESTS: &[Test] =
    &[("ways::every_way_gives_the_same", every_way), ("ways::outputs_that_do_not_fit_are_refused", refused)];

/// Ways that only a GPU has.
const MORE: &[Way] = &[
    Way { name: "a stream of the caller's", on_gpu_alone: true, run: on_a_stream },
    Way { name: "a CUDA graph", on_gpu_alone: true, run: in_a_graph },
];

fn every_way(device: &Device) -> Result<(), Failed> {
    check_all(device, MORE).map_err(|error| error.to_string().into())
}

fn on_a_stream(call: &Call<'_>) -> Result<Found, Failure> {
    let cuda = call.device.as_cuda().expect("it is a GPU's way");
    let [q, k, v] = &call.qkv;
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: the stream is of this GPU's context and outlives the attention made on it; everything before it is done.
    let elsewhere = unsafe { call.attention.on_stream(stream.cu_stream().cast())? };
    let output = elsewhere.forward(q, k, v)?;
    stream.synchronize()?;
    let found = of_output(&output);
    drop((output, elsewhere));
    stream.synchronize()?;
    found
}

fn in_a_graph(call: &Call<'_>) -> Result<Found, Failure> {
    let cuda = call.device.as_cuda().expect("it is a GPU's way");
    let [q, k, v] = &call.qkv;
    let mut workspace = call.attention.workspace(q, k, v)?;
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: as above.
    let captured = unsafe { call.attention.on_stream(stream.cu_stream().cast())? };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let launched = captured.forward_into(q, k, v, &mut workspace).map(drop);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?;
    launched?;
    // Of a call over nothing there is nothing to launch.
    if let Some(graph) = graph {
        graph.launch()?;
        stream.synchronize()?;
    }
    of_output(workspace.output())
}

/// What is wrong with an output.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Shape,
    DType,
    Place,
}

impl Fault {
    /// The tensor, spoilt.
    fn of(self, device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let other = if dtype == DType::F32 { DType::I32 } else { DType::F32 };
        let longer = [&shape[..shape.len() - 1], &[shape[shape.len() - 1] + 8]].concat();
        match self {
            Fault::Shape => Tensor::uninit(device, dtype, &longer),
            Fault::DType => Tensor::uninit(device, other, shape),
            Fault::Place => Tensor::zeros(dtype, shape),
        }
    }

    fn is_named(self, error: &Error, output: &str) -> bool {
        match (self, error) {
            (Fault::Shape, Error::Tensor(TensorError::Shape { what, .. })) => *what == output,
            (Fault::DType, Error::Tensor(TensorError::DType { what, .. })) => what == output,
            (Fault::Place, Error::Tensor(TensorError::Place { what, .. })) => what == output,
            _ => false,
        }
    }
}

/// Each output of each call in memory of the caller's, wrong in its shape, its dtype or its place; over something and over nothing.
fn refused(device: &Device) -> Result<(), Failed> {
    let rule = rules().find(|rule| rule.mask_mod && rule.selects).expect("there is one");
    let attention = rule.build(device).map_err(|error| error.to_string())?;
    for case in cases(&rule) {
        let host = case.qkv(&mut super::support::Random(3));
        let [q, k, v] = [host[0].to(device)?, host[1].to(device)?, host[2].to(device)?];
        let output = attention.forward(&q, &k, &v)?;
        let mask = &output.mask;
        let like = |tensor: &Tensor| Tensor::uninit(device, tensor.dtype(), tensor.shape());
        let scratch = |bytes| Tensor::uninit(device, DType::U8, &[bytes]);
        for fault in [Fault::Shape, Fault::DType, Fault::Place] {
            // The tensor of this name is spoilt, others are as they must be.
            let made = |name: &str, spoilt: &str, tensor: &Tensor| match name == spoilt {
                true => fault.of(device, tensor.dtype(), tensor.shape()),
                false => like(tensor),
            };
            let expect = |name: &str, result: Result<(), Error>| match result {
                Err(error) if fault.is_named(&error, name) => Ok(()),
                other => Err(format!("{case:?}: {name} with another {fault:?}: {other:?}")),
            };
            for name in ["out", "lse"] {
                let fresh = || -> Result<[Tensor; 2], Error> {
                    Ok([made("out", name, &output.out)?, made("lse", name, &output.lse)?])
                };
                let [mut out, mut lse] = fresh()?;
                let mut work = scratch(attention.scratch_bytes(&q, &k)?)?;
                expect(name, attention.forward_in(&q, &k, &v, [&mut out, &mut lse], &mut work))?;
                let [mut out, mut lse] = fresh()?;
                let mut work = scratch(attention.attend_scratch_bytes(&q, &k, mask.kv())?)?;
                let lists = (mask.kv(), mask.full_kv());
                expect(name, attention.attend_in([&q, &k, &v], lists, [&mut out, &mut lse], &mut work))?;
            }
            let by_query =
                MaskLists { kv: mask.kv().clone(), full_kv: mask.full_kv().cloned(), q: None, full_q: None };
            for name in ["dq", "dk", "dv"] {
                let mut gradients = Gradients {
                    dq: made("dq", name, &q)?,
                    dk: made("dk", name, &k)?,
                    dv: made("dv", name, &v)?,
                };
                let mut work = scratch(attention.backward_scratch_bytes(&q, &k, &by_query)?)?;
                let (out, lse) = (&output.out, &output.lse);
                let upstream = (out, None);
                let called = attention.backward_in(
                    [&q, &k, &v],
                    [out, lse],
                    upstream,
                    &by_query,
                    &mut gradients,
                    &mut work,
                );
                expect(name, called)?;
            }
            let (full_kv, full_q) = (mask.full_kv().expect("of a mask function"), mask.full_q());
            let full_q = full_q.expect("of a mask function");
            for name in [
                "kv_counts",
                "kv_indices",
                "full_kv_counts",
                "full_kv_indices",
                "q_counts",
                "q_indices",
                "full_q_counts",
                "full_q_indices",
            ] {
                let index = |[counts, indices]: [&str; 2], of: &BlockIndex| -> Result<BlockIndex, Error> {
                    Ok(BlockIndex {
                        counts: made(counts, name, &of.counts)?,
                        indices: made(indices, name, &of.indices)?,
                    })
                };
                let mut lists = MaskLists {
                    kv: index(["kv_counts", "kv_indices"], mask.kv())?,
                    full_kv: Some(index(["full_kv_counts", "full_kv_indices"], full_kv)?),
                    q: Some(index(["q_counts", "q_indices"], mask.q())?),
                    full_q: Some(index(["full_q_counts", "full_q_indices"], full_q)?),
                };
                let mut work = scratch(attention.scratch_bytes(&q, &k)?)?;
                expect(name, attention.mask_in(&q, &k, &mut lists, &mut work))?;
            }
        }
    }
    Ok(())
}
