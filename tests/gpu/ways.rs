//! Every way to call an attention gives what `forward` gives, and what a call writes to is looked at before anything runs.

use super::Test;
use super::support::ways::{Call, Failure, Found, Way, cases, check_all, of, of_output, rules};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use libtest_mimic::Failed;
use tilewright::TensorError;
use tilewright::attention::{Attend, Backward, Forward, Inputs, MaskLists, Select, Shapes, Step};
use tilewright::{BlockIndex, DType, Device, Error, Gradients, Tensor};

pub const TESTS: &[Test] =
    &[("ways::every_way_gives_the_same", every_way), ("ways::outputs_that_do_not_fit_are_refused", refused)];

/// Ways that only a GPU has.
const MORE: &[Way] = &[
    Way { name: "a stream of the caller's", on_gpu_alone: true, run: on_a_stream },
    Way { name: "a CUDA graph", on_gpu_alone: true, run: in_a_graph },
    Way {
        name: "a CUDA graph in memory of the caller's",
        on_gpu_alone: true,
        run: in_a_graph_of_the_callers,
    },
];

fn every_way(device: &Device) -> Result<(), Failed> {
    check_all(device, MORE).map_err(|error| error.to_string().into())
}

fn on_a_stream(call: &Call<'_>) -> Result<Found, Failure> {
    let cuda = call.device.as_cuda().expect("it is a GPU's way");
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: the stream is of this GPU's context and outlives the plan made on it; everything before it is done.
    let elsewhere = unsafe { call.plan.on_stream(stream.cu_stream().cast())? };
    let output = elsewhere.forward(call.inputs())?;
    stream.synchronize()?;
    let found = of_output(&output);
    drop((output, elsewhere));
    stream.synchronize()?;
    found
}

fn in_a_graph(call: &Call<'_>) -> Result<Found, Failure> {
    let cuda = call.device.as_cuda().expect("it is a GPU's way");
    let mut workspace = call.plan.workspace()?;
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: as above.
    let captured = unsafe { call.plan.on_stream(stream.cu_stream().cast())? };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let launched = captured.forward_into(call.inputs(), &mut workspace).map(drop);
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

fn in_a_graph_of_the_callers(call: &Call<'_>) -> Result<Found, Failure> {
    let cuda = call.device.as_cuda().expect("it is a GPU's way");
    let Inputs { q, k, v } = call.inputs();
    let [mut out, mut lse] = call.outputs()?;
    let mut scratch = call.scratch(Step::Forward)?;
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: as above.
    let captured = unsafe { call.plan.on_stream(stream.cu_stream().cast())? };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let launched = captured.run(Forward { q, k, v, out: &mut out, lse: &mut lse }, &mut scratch);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?;
    launched?;
    // Of a call that writes nothing there is nothing to launch.
    if let Some(graph) = graph {
        graph.launch()?;
        stream.synchronize()?;
    }
    Ok(vec![of("out", &out)?, of("lse", &lse)?])
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
        let (mask, plan) = (&output.mask, attention.plan(Shapes::of(&q, &k)?)?);
        let [q, k, v] = [&q, &k, &v];
        let like = |tensor: &Tensor| Tensor::uninit(device, tensor.dtype(), tensor.shape());
        let scratch = |step| Tensor::uninit(device, DType::U8, &[plan.scratch_bytes(step)?]);
        let lists = &MaskLists { q: None, full_q: None, ..MaskLists::from(mask) };
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
                let forward = Forward { q, k, v, out: &mut out, lse: &mut lse };
                expect(name, plan.run(forward, &mut scratch(Step::Forward)?))?;
                let [mut out, mut lse] = fresh()?;
                let attend = Attend { q, k, v, lists, out: &mut out, lse: &mut lse };
                expect(name, plan.run(attend, &mut scratch(Step::Attend(lists))?))?;
            }
            for name in ["dq", "dk", "dv"] {
                let mut gradients = Gradients {
                    dq: made("dq", name, q)?,
                    dk: made("dk", name, k)?,
                    dv: made("dv", name, v)?,
                };
                let (out, lse, d_out, d_lse) = (&output.out, &output.lse, &output.out, None);
                let gradients = &mut gradients;
                let backward = Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients };
                expect(name, plan.run(backward, &mut scratch(Step::Backward(lists))?))?;
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
                    dropped: None,
                };
                let mut work = scratch(Step::Select { by_key: true })?;
                expect(name, plan.run(Select { q, k, lists: &mut lists }, &mut work))?;
            }
        }
    }
    Ok(())
}
