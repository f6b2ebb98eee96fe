//! Calls that allocate nothing, streams of the caller's, CUDA graphs.

use super::Test;
use super::support::Random;
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use libtest_mimic::Failed;
use tilewright::attention::{Inputs, Plan, Shapes};
use tilewright::{Attention, DType, Device, Error, HeadDim, Output, Tensor, mask_mod, top_k, top_p};

pub const TESTS: &[Test] = &[
    ("streams::a_workspace_gives_the_same_bits", workspace),
    ("streams::a_stream_of_the_callers", own_stream),
    ("streams::a_cuda_graph", graph),
    ("streams::a_workspace_of_other_sizes_is_refused", other_sizes),
    ("streams::a_workspace_of_another_attention_is_refused", foreign_workspace),
    ("streams::inputs_that_alias_the_output_are_refused", aliased),
    ("streams::nothing_to_attend_to", nothing),
];

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

const SHAPE: [usize; 4] = [1, 4, 1500, 128];

fn attention(device: &Device, masked: bool) -> Result<Attention, Failed> {
    let builder = Attention::builder(HeadDim::D128, DType::Bf16).select(top_k(0.1) | top_p(0.3));
    Ok(if masked { builder.mask_mod(causal {}).build(device)? } else { builder.build(device)? })
}

fn inputs(device: &Device, seed: u64) -> Result<[Tensor; 3], Failed> {
    let mut random = Random(seed);
    let mut tensor = || random.tensor(DType::Bf16, &SHAPE).to(device);
    Ok([tensor()?, tensor()?, tensor()?])
}

fn plan(attention: &Attention, [q, k, _]: &[Tensor; 3]) -> Result<Plan, Failed> {
    Ok(attention.plan(Shapes::of(q, k)?)?)
}

fn of([q, k, v]: &[Tensor; 3]) -> Inputs<'_> {
    Inputs { q, k, v }
}

/// The bits of a result (out, lse) and its blocks.
type Bits = (Vec<u32>, Vec<u32>, Vec<u8>);

fn bits(output: &Output) -> Result<Bits, Failed> {
    let bits = |tensor: &Tensor| -> Result<Vec<u32>, Error> {
        Ok(tensor.to_f32_vec()?.into_iter().map(f32::to_bits).collect())
    };
    Ok((bits(&output.out)?, bits(&output.lse)?, output.mask.to_dense()?.classes))
}

fn workspace(device: &Device) -> Result<(), Failed> {
    for masked in [false, true] {
        let attention = attention(device, masked)?;
        let plan = plan(&attention, &inputs(device, 71)?)?;
        let mut workspace = plan.workspace()?;
        for seed in [71, 72, 73] {
            let inputs = inputs(device, seed)?;
            let [q, k, v] = &inputs;
            let expected = bits(&attention.forward(q, k, v)?)?;
            if bits(plan.forward_into(of(&inputs), &mut workspace)?)? != expected {
                return Err(format!("seed {seed}, masked {masked}: the workspace's result differs").into());
            }
        }
    }
    Ok(())
}

fn own_stream(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let attention = attention(device, true)?;
    let [q, k, v] = inputs(device, 79)?;
    let expected = bits(&attention.forward(&q, &k, &v)?)?;
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: the stream is of this GPU's context and outlives the attention made on it; everything before it is done.
    let elsewhere = unsafe { attention.on_stream(stream.cu_stream().cast())? };
    let output = elsewhere.forward(&q, &k, &v)?;
    stream.synchronize()?;
    if bits(&output)? != expected {
        return Err("another stream, another result".into());
    }
    drop((output, elsewhere));
    stream.synchronize()?;
    Ok(())
}

/// A captured call gives its result again whenever the graph is launched.
fn graph(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let attention = attention(device, false)?;
    let first = inputs(device, 83)?;
    let plan = plan(&attention, &first)?;
    let mut workspace = plan.workspace()?;
    let expected = bits(plan.forward_into(of(&first), &mut workspace)?)?;
    cuda.synchronize()?;
    let stream = CudaContext::new(cuda.info().ordinal)?.new_stream()?;
    // SAFETY: as above.
    let captured = unsafe { plan.on_stream(stream.cu_stream().cast())? };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    captured.forward_into(of(&first), &mut workspace)?;
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("nothing was captured")?;
    for seed in [89, 97] {
        // Something else in the workspace, so that the graph has something to put right.
        if bits(plan.forward_into(of(&inputs(device, seed)?), &mut workspace)?)? == expected {
            return Err("other inputs gave the same result".into());
        }
        graph.launch()?;
        stream.synchronize()?;
        if bits(workspace.output())? != expected {
            return Err("the graph gives another result".into());
        }
    }
    Ok(())
}

fn other_sizes(device: &Device) -> Result<(), Failed> {
    let attention = attention(device, false)?;
    let large = plan(&attention, &inputs(device, 101)?)?;
    let mut workspace = large.workspace()?;
    let small = Random(1).tensor(DType::Bf16, &[1, 4, 100, 128]).to(device)?;
    let small = [small.clone(), small.clone(), small];
    match large.forward_into(of(&small), &mut workspace) {
        Err(Error::Plan { .. }) => {}
        other => return Err(format!("{other:?} instead of Error::Plan").into()),
    }
    match plan(&attention, &small)?.forward_into(of(&small), &mut workspace) {
        Err(Error::Workspace { .. }) => Ok(()),
        other => Err(format!("{other:?} instead of Error::Workspace").into()),
    }
}

fn foreign_workspace(device: &Device) -> Result<(), Failed> {
    let (one, other) = (attention(device, false)?, attention(device, true)?);
    let inputs = inputs(device, 103)?;
    let mut workspace = plan(&one, &inputs)?.workspace()?;
    match plan(&other, &inputs)?.forward_into(of(&inputs), &mut workspace) {
        Err(Error::ForeignWorkspace) => Ok(()),
        other => Err(format!("{other:?} instead of Error::ForeignWorkspace").into()),
    }
}

fn aliased(device: &Device) -> Result<(), Failed> {
    let attention = attention(device, false)?;
    let inputs = inputs(device, 107)?;
    let plan = plan(&attention, &inputs)?;
    let mut workspace = plan.workspace()?;
    let k = &workspace.output().out.clone();
    match plan.forward_into(Inputs { k, ..of(&inputs) }, &mut workspace) {
        Err(Error::Aliased { what: "k", with: "out" }) => Ok(()),
        other => Err(format!("{other:?} instead of Error::Aliased").into()),
    }
}

/// No keys: rows of zeros with a sum of nothing. No queries: nothing at all.
fn nothing(device: &Device) -> Result<(), Failed> {
    let attention = attention(device, true)?;
    let tensor = |seq: usize| Random(1).tensor(DType::Bf16, &[1, 4, seq, 128]).to(device);
    for (seq_q, seq_kv) in [(5, 0), (0, 5), (0, 0)] {
        let inputs = [tensor(seq_q)?, tensor(seq_kv)?, tensor(seq_kv)?];
        let ([q, k, v], plan) = (&inputs, plan(&attention, &inputs)?);
        let mut workspace = plan.workspace()?;
        for output in [&attention.forward(q, k, v)?, plan.forward_into(of(&inputs), &mut workspace)?] {
            let (out, lse) = (output.out.to_f32_vec()?, output.lse.to_vec::<f32>()?);
            if out.len() != 4 * seq_q * 128 || out.iter().any(|&x| x != 0.0) {
                return Err(format!("{seq_q} × {seq_kv}: out is {out:?}").into());
            }
            if lse.len() != 4 * seq_q || lse.iter().any(|&x| x != f32::NEG_INFINITY) {
                return Err(format!("{seq_q} × {seq_kv}: lse is {lse:?}").into());
            }
        }
    }
    Ok(())
}
