//! Shared by the tests: random tensors, hand-made functions, the comparison with f64.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod dropped;
pub mod ways;

use half::{bf16, f16};
use tilewright::cpu::attend;
use tilewright::reference::{attention_f64, largest_difference, relative_error};
use tilewright::{BlockMask, BlockSize, DType, DeviceFn, MaskMod, ScoreMod, SeqLens, Tensor};

/// A small generator: the tests need the same numbers everywhere, not good ones.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// About normal: mean 0, variance 1.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.bits() as f32 / u32::MAX as f32).sum::<f32>() - 6.0
    }

    pub fn chance(&mut self, p: f64) -> bool {
        f64::from(self.bits()) < p * f64::from(u32::MAX)
    }

    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| self.normal()).collect();
        tensor(dtype, &data, shape)
    }
}

/// The f32 means of runs of `block` rows of a `[batch, heads, seq, d]` tensor.
pub fn block_means(x: &Tensor, block: usize) -> Tensor {
    let (shape, data) = (x.shape(), x.to_f32_vec().unwrap());
    let (seq, d) = (shape[2].max(1), shape[3]);
    let mean = |rows: &[f32]| -> Vec<f32> {
        let sum = |i| rows.iter().skip(i).step_by(d).sum::<f32>();
        (0..d).map(|i| sum(i) / (rows.len() / d) as f32).collect()
    };
    let means: Vec<f32> =
        data.chunks(seq * d).flat_map(|head| head.chunks(block * d).flat_map(mean)).collect();
    Tensor::from_slice(&means, &[shape[0], shape[1], shape[2].div_ceil(block), d]).unwrap()
}

pub fn tensor(dtype: DType, data: &[f32], shape: &[usize]) -> Tensor {
    match dtype {
        DType::F16 => Tensor::from_slice(&data.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(), shape),
        DType::Bf16 => {
            Tensor::from_slice(&data.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), shape)
        }
        _ => Tensor::from_slice(data, shape),
    }
    .unwrap()
}

pub struct Score<F>(pub F);
pub struct Mask<F>(pub F);

impl<F: Send + Sync + 'static> DeviceFn for Score<F> {
    fn captures(&self) -> Vec<tilewright::CaptureValue> {
        Vec::new()
    }
    fn name(&self) -> &str {
        "score"
    }
    fn source(&self) -> &str {
        ""
    }
}

impl<F: Fn(f32, i32, i32, i32, i32) -> f32 + Send + Sync + 'static> ScoreMod for Score<F> {
    fn score(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
        (self.0)(score, b, h, q, kv)
    }
    fn gradient(&self, _score: f32, _b: i32, _h: i32, _q: i32, _kv: i32) -> f32 {
        panic!("a closure has no derivative: tests of the backward use #[score_mod]")
    }
}

impl<F: Send + Sync + 'static> DeviceFn for Mask<F> {
    fn captures(&self) -> Vec<tilewright::CaptureValue> {
        Vec::new()
    }
    fn name(&self) -> &str {
        "keep"
    }
    fn source(&self) -> &str {
        ""
    }
}

impl<F: Fn(i32, i32, i32, i32) -> bool + Send + Sync + 'static> MaskMod for Mask<F> {
    fn keep(&self, b: i32, h: i32, q: i32, kv: i32) -> bool {
        (self.0)(b, h, q, kv)
    }
}

/// A block size that there is.
pub fn blocks(q: usize, kv: usize) -> BlockSize {
    BlockSize::new(q, kv).unwrap()
}

/// The sizes of one comparison.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub dtype: DType,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub seq_q: usize,
    pub seq_kv: usize,
    pub d: usize,
    /// The last dimension of v and the output, where it is not `d`.
    pub value_d: Option<usize>,
    pub blocks: (usize, usize),
}

impl Case {
    pub const SMALL: Case = Case {
        dtype: DType::Bf16,
        batch: 1,
        heads: 2,
        kv_heads: 2,
        seq_q: 129,
        seq_kv: 200,
        d: 32,
        value_d: None,
        blocks: (64, 64),
    };

    pub fn qkv(&self, random: &mut Random) -> [Tensor; 3] {
        let kv = |d| [self.batch, self.kv_heads, self.seq_kv, d];
        [
            random.tensor(self.dtype, &[self.batch, self.heads, self.seq_q, self.d]),
            random.tensor(self.dtype, &kv(self.d)),
            random.tensor(self.dtype, &kv(self.value_d())),
        ]
    }

    pub fn value_d(&self) -> usize {
        self.value_d.unwrap_or(self.d)
    }

    /// The shape of the output.
    pub fn out(&self) -> [usize; 4] {
        [self.batch, self.heads, self.seq_q, self.value_d()]
    }

    pub fn block_size(&self) -> BlockSize {
        blocks(self.blocks.0, self.blocks.1)
    }

    pub fn seqs(&self) -> SeqLens {
        SeqLens { q: self.seq_q, kv: self.seq_kv }
    }

    pub fn grid(&self) -> [usize; 4] {
        let (q_blocks, kv_blocks) = (self.seq_q.div_ceil(self.blocks.0), self.seq_kv.div_ceil(self.blocks.1));
        [self.batch, self.heads, q_blocks, kv_blocks]
    }

    pub fn random_mask(&self, random: &mut Random, density: f64) -> BlockMask {
        let map: Vec<bool> = (0..self.grid().iter().product()).map(|_| random.chance(density)).collect();
        BlockMask::from_dense(&map, self.grid(), self.block_size(), self.seqs()).unwrap()
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }
}

/// Compares the executor with f64 within the bounds of the dtype.
pub fn compare(
    case: &Case,
    [q, k, v]: &[Tensor; 3],
    mask: &BlockMask,
    score_mod: Option<&dyn ScoreMod>,
    mask_mod: Option<&dyn MaskMod>,
) {
    let scale = case.scale();
    let (out, lse) = attend(q, k, v, mask, scale, score_mod, mask_mod).unwrap();
    let reference = attention_f64(q, k, v, mask, scale, score_mod, mask_mod).unwrap();
    assert_eq!(out.dtype(), case.dtype);
    assert!(out.is_contiguous());
    assert_eq!(out.shape(), case.out());
    assert_eq!(lse.shape(), [case.batch, case.heads, case.seq_q]);
    let bound = if case.dtype == DType::F16 { 6e-4 } else { 4e-3 };
    let error = relative_error(&out.to_f32_vec().unwrap(), &reference.out);
    let lse_error = largest_difference(&lse.to_f32_vec().unwrap(), &reference.lse);
    println!("{case:?}: out {error:.1e}, lse {lse_error:.1e}");
    assert!(error <= bound, "{case:?}: relative error {error:e}, bound {bound:e}");
    assert!(lse_error <= 1e-3, "{case:?}: lse differs by {lse_error:e}");
}
