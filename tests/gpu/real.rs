//! The q, k, v of a trained video transformer (tests/data): the whole chain against f64 over the same blocks, and the
//! selection against the CPU executor's.

use super::Test;
use libtest_mimic::Failed;
use tilewright::reference::{attention_f64, largest_difference, relative_error};
use tilewright::{Attention, BlockSize, DType, Device, HeadDim, Output, Tensor, top_k, top_p};

pub const TESTS: &[Test] = &[("real::heads_of_a_video_transformer", heads)];

fn read(file: &str, name: &str) -> Result<Tensor, Failed> {
    let bytes = std::fs::read(format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR")))?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
    let tensor = tensors.tensor(name)?;
    Ok(Tensor::from_bytes(DType::Bf16, tensor.data(), tensor.shape())?)
}

fn heads(device: &Device) -> Result<(), Failed> {
    for file in ["layer2-head5.safetensors", "layer6-head1.safetensors"] {
        let (q, k, v) = (read(file, "q")?, read(file, "k")?, read(file, "v")?);
        for blocks in BlockSize::ALL {
            let build = |device: &Device| {
                let rule = top_k(0.03) | top_p(0.2);
                Attention::builder(HeadDim::D128, DType::Bf16).blocks(blocks).select(rule).build(device)
            };
            let attention = build(device)?;
            let Output { out, lse, mask } =
                attention.forward(&q.to(device)?, &k.to(device)?, &v.to(device)?)?;
            let expected = attention_f64(&q, &k, &v, &mask, attention.scale(), None, None)?;
            let error = relative_error(&out.to_f32_vec()?, &expected.out);
            let lse_error = largest_difference(&lse.to_vec::<f32>()?, &expected.lse);
            let cpu = build(&Device::cpu())?.mask(&q, &k)?.to_dense()?;
            let different = mask.to_dense()?.classes.iter().zip(&cpu.classes).filter(|(a, b)| a != b).count();
            println!(
                "{file} {blocks}: {:.1} % kept, out {error:.2e}, lse {lse_error:.2e}, {different} blocks unlike the CPU's",
                100.0 * (1.0 - mask.sparsity()?)
            );
            if !(error <= 4e-3 && lse_error <= 1e-3 && different <= 2) {
                return Err(format!(
                    "{file} {blocks}: out {error:.2e}, lse {lse_error:.2e}, {different} blocks"
                )
                .into());
            }
        }
    }
    Ok(())
}
