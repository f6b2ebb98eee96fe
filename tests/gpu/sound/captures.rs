//! Slices that functions capture live as long as anything reads them, and making them breaks nobody's graph.

use super::{SHAPE, documents, inputs};
use crate::Test;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream};
use libtest_mimic::Failed;
use std::sync::{Arc, mpsc};
use tilewright::attention::{Forward, Shapes, Step};
use tilewright::device::CudaDevice;
use tilewright::{Attention, DType, Device, HeadDim, Tensor, top_k};

pub const TESTS: &[Test] = &[
    ("sound::captures_live_as_long_as_their_graph", of_a_graph),
    ("sound::building_breaks_no_capture_of_another_thread", beside_a_capture),
];

fn attention(device: &Device, tokens: usize) -> Result<Attention, Failed> {
    let builder = Attention::builder(HeadDim::D64, DType::F16).select(top_k(0.5));
    Ok(builder.mask_mod(documents(tokens)).build(device)?)
}

fn stream(cuda: &CudaDevice) -> Result<Arc<CudaStream>, Failed> {
    Ok(CudaContext::new(cuda.info().ordinal)?.new_stream()?)
}

/// Outputs and scratch of a call.
struct Memory {
    out: Tensor,
    lse: Tensor,
    scratch: Tensor,
}

impl Memory {
    fn new(device: &Device, attention: &Attention, q: &Tensor, k: &Tensor) -> Result<Self, Failed> {
        let bytes = attention.plan(Shapes::of(q, k)?)?.scratch_bytes(Step::Forward)?;
        Ok(Memory {
            out: Tensor::zeros_on(device, DType::F16, &SHAPE)?,
            lse: Tensor::zeros_on(device, DType::F32, &SHAPE[..3])?,
            scratch: Tensor::zeros_on(device, DType::U8, &[bytes])?,
        })
    }

    fn fill(&mut self, attention: &Attention, [q, k, v]: [&Tensor; 3]) -> Result<(), Failed> {
        let forward = Forward { q, k, v, out: &mut self.out, lse: &mut self.lse };
        Ok(attention.plan(Shapes::of(q, k)?)?.run(forward, &mut self.scratch)?)
    }
}

/// The attention is gone, and others were made since in whatever memory is free: the graph still reads what it was captured with.
fn of_a_graph(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let [q, k, v] = inputs(device)?;
    let stream = stream(cuda)?;
    let first = attention(device, 70)?;
    let mut memory = Memory::new(device, &first, &q, &k)?;
    memory.fill(&first, [&q, &k, &v])?;
    cuda.synchronize()?;
    let expected = memory.out.to_f32_vec()?;
    // SAFETY: the stream is of this GPU's context and outlives the attention made on it; everything before it is done.
    let captured = unsafe { first.on_stream(stream.cu_stream().cast())? };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    memory.fill(&captured, [&q, &k, &v])?;
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("nothing was captured")?;
    drop((captured, first));
    for tokens in [1, 7, 300] {
        let other = attention(device, tokens)?;
        memory.fill(&other, [&q, &k, &v])?;
        cuda.synchronize()?;
        if memory.out.to_f32_vec()? == expected {
            return Err("other captures gave the same result".into());
        }
        graph.launch()?;
        stream.synchronize()?;
        if memory.out.to_f32_vec()? != expected {
            return Err("the graph reads other captures than it was captured with".into());
        }
    }
    Ok(())
}

/// In the mode that PyTorch captures in, which forbids other threads what may wait.
fn beside_a_capture(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let [q, k, v] = inputs(device)?;
    let warm = attention(device, 70)?;
    let mut memory = Memory::new(device, &warm, &q, &k)?;
    memory.fill(&warm, [&q, &k, &v])?;
    // Captures that were read on another stream, and are parked.
    let elsewhere = stream(cuda)?;
    for tokens in [1, 2, 3] {
        let parked = attention(device, tokens)?;
        cuda.synchronize()?;
        // SAFETY: as above.
        let parked = unsafe { parked.on_stream(elsewhere.cu_stream().cast())? };
        memory.fill(&parked, [&q, &k, &v])?;
        elsewhere.synchronize()?;
    }
    cuda.synchronize()?;

    let stream = stream(cuda)?;
    // SAFETY: as above.
    let captured = unsafe { warm.on_stream(stream.cu_stream().cast())? };
    let ((begun, wait_begun), (built, wait_built)) = (mpsc::channel(), mpsc::channel());
    let (inputs, outputs, stream) = ([&q, &k, &v], &mut memory, &stream);
    std::thread::scope(|scope| {
        let capture = scope.spawn(move || -> Result<bool, String> {
            let fail = |error: Failed| format!("{error:?}");
            stream
                .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)
                .map_err(|error| error.to_string())?;
            let first = outputs.fill(&captured, inputs).map_err(fail);
            let _ = begun.send(());
            let _ = wait_built.recv();
            let second = outputs.fill(&captured, inputs).map_err(fail);
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = stream.end_capture(flags).map_err(|error| format!("the capture broke: {error}"));
            first.and(second)?;
            Ok(graph?.is_some())
        });
        let _ = wait_begun.recv();
        // Nothing returns before the other thread may go on.
        let build = |tokens| attention(device, tokens);
        let made: Result<Vec<Attention>, Failed> = [5, 6].into_iter().map(build).collect();
        let made = made.map(drop).and_then(|()| build(9).map(drop));
        let _ = built.send(());
        let captured = capture.join().expect("no panic")?;
        made?;
        if captured { Ok(()) } else { Err("nothing was captured".into()) }
    })
}
