//! The CPU executor on 12 heads × 4 096 × 128 in bf16: what skipping blocks is worth. `cargo bench --bench cpu`

use half::bf16;
use std::time::{Duration, Instant};
use tilewright::cpu::{Upstream, attend, backward, mask};
use tilewright::{BlockMask, BlockSize, MaskMod, SeqLens, Tensor, top_k, top_p};

const SHAPE: [usize; 4] = [1, 12, 4096, 128];

struct Causal;

impl tilewright::DeviceFn for Causal {
    fn captures(&self) -> Vec<tilewright::CaptureValue> {
        Vec::new()
    }
    fn name(&self) -> &str {
        "causal"
    }
    fn source(&self) -> &str {
        ""
    }
}

impl MaskMod for Causal {
    fn keep(&self, _b: i32, _h: i32, q: i32, kv: i32) -> bool {
        kv <= q
    }
}

fn random(seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    let data: Vec<bf16> = (0..SHAPE.iter().product()).map(|_| next()).collect();
    Tensor::from_slice(&data, &SHAPE).expect("the shape has as many elements")
}

/// The fastest of five runs: other work on the machine only ever adds.
fn best<R>(mut work: impl FnMut() -> R) -> Duration {
    let time = |_| {
        let start = Instant::now();
        std::hint::black_box(work());
        start.elapsed()
    };
    (0..5).map(time).min().unwrap_or_default()
}

fn main() -> Result<(), tilewright::Error> {
    let [q, k, v, d_out] = [1, 2, 3, 4].map(random);
    let scale = 1.0 / (SHAPE[3] as f32).sqrt();
    let blocks = BlockSize::default();
    let sparse = mask(&q, &k, Some(&top_k(0.05)), scale, blocks, None)?;
    let dense = BlockMask::full(1, 1, blocks, SeqLens::same(SHAPE[2]))?;
    let causal = BlockMask::from_mask_mod(&Causal, 1, 1, blocks, SeqLens::same(SHAPE[2]))?;
    println!("{} threads", rayon::current_num_threads());
    let rule = top_k(0.03) | top_p(0.2);
    println!("mask, {rule:?}: {:.1?}", best(|| mask(&q, &k, Some(&rule), scale, blocks, None)));
    for (name, mask, function) in [
        ("sparse", &sparse, None),
        ("causal", &causal, Some(&Causal as &dyn MaskMod)),
        ("dense", &dense, None),
    ] {
        let time = best(|| attend(&q, &k, &v, mask, scale, None, function));
        let kept = 1.0 - mask.sparsity()?;
        let flops = 4.0 * SHAPE.iter().product::<usize>() as f64 * SHAPE[2] as f64 * kept;
        let rate = flops / time.as_secs_f64() / 1e9;
        println!("{name}: {:.1} % kept, {time:.1?}, {rate:.0} GFLOP/s", 100.0 * kept);
    }
    let (out, lse) = attend(&q, &k, &v, &sparse, scale, None, None)?;
    let upstream = Upstream { q: &q, k: &k, v: &v, out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let time = best(|| backward(upstream, &sparse, scale, None, None));
    // Two and a half times the forward's operations, however many an executor makes of them.
    let kept = 1.0 - sparse.sparsity()?;
    let flops = 10.0 * SHAPE.iter().product::<usize>() as f64 * SHAPE[2] as f64 * kept;
    println!("sparse, backward: {time:.1?}, {:.0} GFLOP/s", flops / time.as_secs_f64() / 1e9);
    Ok(())
}
