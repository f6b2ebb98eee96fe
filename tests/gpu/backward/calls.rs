//! The gradients through the public calls: functions, selections, layouts, memory of the caller's.

use super::{CASE, compare, holey_mask};
use crate::Test;
use crate::support::{Case, Random, blocks};
use libtest_mimic::Failed;
use tilewright::attention::{Backward, MaskLists, Shapes, Step};
use tilewright::reference::{attention_f64, relative_error};
use tilewright::services::Policy;
use tilewright::{
    Attention, BlockMask, BlockSize, DType, Device, Gradients, HeadDim, MaskMod, Output, ScoreMod, SeqLens,
    Tensor, mask_mod, score_mod, top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("backward::rows_without_keys_hold_anything", rows_without_keys),
    ("backward::softcap", |device| functions(device, 0, Some(softcap { cap: 3.0 }), None::<causal>)),
    ("backward::alibi", |device| functions(device, 1, Some(alibi { heads: 4 }), None::<causal>)),
    ("backward::causal", |device| functions(device, 2, None::<softcap>, Some(causal {}))),
    ("backward::softcap_and_causal", |device| {
        functions(device, 3, Some(softcap { cap: 3.0 }), Some(causal {}))
    }),
    ("backward::of_a_selection", of_a_selection),
    ("backward::bshd_strides_and_a_shared_mask", bshd_and_shared),
    ("backward::nothing_to_attend_to", nothing),
    ("backward::in_the_callers_memory", in_the_callers_memory),
    ("backward::values_of_another_width_through_the_calls", values_of_another_width),
];

#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

#[score_mod]
fn alibi(score: f32, b: i32, h: i32, q: i32, kv: i32, heads: i32) -> f32 {
    let slope = (-8.0 * (h + 1) as f32 / heads as f32).exp2();
    score * 1.5 - slope * (q - kv).abs() as f32
}

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

/// A query that attends to nothing may hold NaN in q and `d_out`: neither its own gradient nor its keys' see it.
fn rows_without_keys(device: &Device) -> Result<(), Failed> {
    #[mask_mod]
    fn odd_queries(b: i32, h: i32, q: i32, kv: i32) -> bool {
        q % 2 == 1
    }
    let (seq, d) = (300, 64);
    let mut random = Random(3);
    let clean: [Tensor; 4] = [(); 4].map(|()| random.tensor(DType::Bf16, &[1, 2, seq, d]));
    let spoilt = |tensor: &Tensor| -> Result<Tensor, Failed> {
        let mut values = tensor.to_vec::<half::bf16>()?;
        values.chunks_mut(d).step_by(2).for_each(|row| row.fill(half::bf16::NAN));
        Ok(Tensor::from_slice(&values, tensor.shape())?.to(device)?)
    };
    let attention = Attention::builder(HeadDim::D64, DType::Bf16).mask_mod(odd_queries {}).build(device)?;
    let (q, d_out) = (spoilt(&clean[0])?, spoilt(&clean[3])?);
    let (k, v) = (clean[1].to(device)?, clean[2].to(device)?);
    let mask = BlockMask::full(1, 1, blocks(128, 64), SeqLens::same(seq))?.to(device)?;
    let (out, lse) = attention.attend_with(&q, &k, &v, &mask)?;
    let output = Output { out, lse, mask };
    let found = attention.backward(&q, &k, &v, &output, &d_out, None)?;
    if found.dq.to_f32_vec()?.chunks(d).step_by(2).flatten().any(|x| *x != 0.0) {
        return Err("a query that attends to nothing has a gradient".into());
    }
    let [q, k, v, d_out] = clean;
    let mask = output.mask.to(&Device::cpu())?;
    let problem = (&[q, k, v], &mask, attention.scale());
    compare("spoilt rows", DType::Bf16, &found, problem, (&d_out, None), (None, Some(&odd_queries {})))
}

/// One case for each block size, another one in each turn: functions take the compiler a second a kernel.
fn functions<S: ScoreMod + Clone, M: MaskMod + Clone>(
    device: &Device,
    turn: usize,
    score: Option<S>,
    mask: Option<M>,
) -> Result<(), Failed> {
    let mut random = Random(29);
    let cases = [
        (DType::Bf16, 128, false),
        (DType::F16, 64, true),
        (DType::Bf16, 256, false),
        (DType::F16, 96, true),
    ];
    for (i, blocks) in BlockSize::ALL.into_iter().enumerate() {
        let (dtype, d, select) = cases[(i + turn) % cases.len()];
        let qkv = [(); 3].map(|()| random.tensor(dtype, &[2, 4, 333, d]));
        let d_out = random.tensor(dtype, qkv[0].shape());
        let mut builder = Attention::builder(HeadDim::new(d)?, dtype).blocks(blocks);
        if let Some(score) = &score {
            builder = builder.score_mod(score.clone());
        }
        if let Some(mask) = &mask {
            builder = builder.mask_mod(mask.clone());
        }
        if select {
            builder = builder.select(top_k(0.5));
        }
        let attention = builder.build(device)?;
        let [q, k, v] = [0, 1, 2].map(|i: usize| qkv[i].to(device));
        let (q, k, v) = (q?, k?, v?);
        let output = attention.forward(&q, &k, &v)?;
        let found = attention.backward(&q, &k, &v, &output, &d_out.to(device)?, None)?;
        let mask_fn = mask.as_ref().map(|f| f as &dyn MaskMod);
        let functions = (score.as_ref().map(|f| f as &dyn ScoreMod), mask_fn);
        let kept = output.mask.to(&Device::cpu())?;
        let problem = (&qkv, &kept, attention.scale());
        let what = format!("{blocks} {dtype} d {d}");
        compare(&what, dtype, &found, problem, (&d_out, None), functions)?;
    }
    Ok(())
}

/// From q and k to gradients, nothing on the host.
fn of_a_selection(device: &Device) -> Result<(), Failed> {
    let mut random = Random(11);
    for (dtype, d, kv_heads) in [(DType::Bf16, 128, 6), (DType::F16, 64, 2)] {
        let case = Case { dtype, d, heads: 6, kv_heads, seq_q: 1100, seq_kv: 1300, ..CASE };
        let qkv = case.qkv(&mut random);
        let d_out = random.tensor(dtype, qkv[0].shape());
        let rule = top_k(0.1) | top_p(0.3);
        let attention = Attention::builder(HeadDim::new(d)?, dtype).select(rule).build(device)?;
        let [q, k, v] = [0, 1, 2].map(|i: usize| qkv[i].to(device));
        let (q, k, v) = (q?, k?, v?);
        let output = attention.forward(&q, &k, &v)?;
        let found = attention.backward(&q, &k, &v, &output, &d_out.to(device)?, None)?;
        let kept = output.mask.to(&Device::cpu())?;
        let problem = (&qkv, &kept, attention.scale());
        compare(&format!("{case:?}"), dtype, &found, problem, (&d_out, None), (None, None))?;
    }
    Ok(())
}

/// Tensors laid out `[batch, seq, heads, d]`, and one mask for all heads and batches.
fn bshd_and_shared(device: &Device) -> Result<(), Failed> {
    let mut random = Random(17);
    let (seq, d, heads, kv_heads) = (500, 128, 6, 3);
    let mut tensor = |heads: usize| {
        random
            .tensor(DType::Bf16, &[2, seq, heads, d])
            .permute(&[0, 2, 1, 3])
            .expect("it has four dimensions")
    };
    let (qkv, d_out) = ([tensor(heads), tensor(kv_heads), tensor(kv_heads)], tensor(heads));
    let shared = Case { batch: 1, heads: 1, kv_heads: 1, ..CASE };
    let mask = holey_mask(&shared, &mut Random(5), 0.6);
    let attention = Attention::builder(HeadDim::D128, DType::Bf16).build(device)?;
    let [q, k, v] = [0, 1, 2].map(|i: usize| qkv[i].to(device));
    let (q, k, v) = (q?, k?, v?);
    let on_gpu = mask.to(device)?;
    let (out, lse) = attention.attend_with(&q, &k, &v, &on_gpu)?;
    let output = Output { out, lse, mask: on_gpu };
    let found = attention.backward(&q, &k, &v, &output, &d_out.to(device)?, None)?;
    let problem = (&qkv, &mask, attention.scale());
    compare("bshd", DType::Bf16, &found, problem, (&d_out, None), (None, None))
}

/// Without keys, without queries, and with a mask that keeps nothing: zeros, and no launch over nothing.
fn nothing(device: &Device) -> Result<(), Failed> {
    let attention = Attention::builder(HeadDim::D64, DType::Bf16).build(device)?;
    for (seq_q, seq_kv) in [(100, 0), (0, 100), (100, 100)] {
        let case = Case { seq_q, seq_kv, d: 64, ..CASE };
        let mut random = Random(2);
        let [q, k, v] = case.qkv(&mut random).map(|tensor| tensor.to(device));
        let (q, k, v) = (q?, k?, v?);
        let map = vec![false; case.grid().iter().product()];
        let mask =
            BlockMask::from_dense(&map, case.grid(), case.block_size(), SeqLens { q: seq_q, kv: seq_kv })?
                .to(device)?;
        let (out, lse) = attention.attend_with(&q, &k, &v, &mask)?;
        let d_out = random.tensor(DType::Bf16, q.shape()).to(device)?;
        let found = attention.backward(&q, &k, &v, &Output { out, lse, mask }, &d_out, None)?;
        for (gradient, of) in [(&found.dq, &q), (&found.dk, &k), (&found.dv, &v)] {
            if gradient.shape() != of.shape() || gradient.to_f32_vec()?.iter().any(|x| *x != 0.0) {
                return Err(
                    format!("{case:?}: a gradient is not 0, or of shape {:?}", gradient.shape()).into()
                );
            }
        }
    }
    Ok(())
}

/// Lists by query alone, as PyTorch has them: those by key are made on the way. Tuned, so that every kernel meets its oracle.
fn in_the_callers_memory(device: &Device) -> Result<(), Failed> {
    let case = Case { heads: 4, kv_heads: 2, seq_q: 700, seq_kv: 900, ..CASE };
    let mut random = Random(23);
    let qkv = case.qkv(&mut random);
    let d_out = random.tensor(case.dtype, qkv[0].shape());
    let attention = Attention::builder(HeadDim::D128, case.dtype)
        .mask_mod(causal {})
        .policy(Policy::Tune)
        .build(device)?;
    let mask = holey_mask(&case, &mut random, 0.6);
    let on_gpu = mask.to(device)?;
    let [q, k, v] = [0, 1, 2].map(|i: usize| qkv[i].to(device));
    let (q, k, v, d_out_there) = (q?, k?, v?, d_out.to(device)?);
    let (out, lse) = attention.attend_with(&q, &k, &v, &on_gpu)?;
    let lists = &MaskLists::new(on_gpu.kv().clone());
    let plan = attention.plan(Shapes::of(&q, &k)?)?;
    let bytes = plan.scratch_bytes(Step::Backward(lists))?;
    let mut scratch = Tensor::uninit(device, DType::U8, &[bytes])?;
    let poisoned = |like: &Tensor| -> Result<Tensor, Failed> {
        let mut tensor = Tensor::uninit(device, like.dtype(), like.shape())?;
        tensor.fill_bytes(0xFF)?;
        Ok(tensor)
    };
    let mut found = Gradients { dq: poisoned(&q)?, dk: poisoned(&k)?, dv: poisoned(&v)? };
    for _ in 0..2 {
        let (q, k, v, out, lse) = (&q, &k, &v, &out, &lse);
        let (d_out, d_lse, gradients) = (&d_out_there, None, &mut found);
        plan.run(Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients }, &mut scratch)?;
    }
    if !plan.is_warm(Step::Backward(lists)) {
        return Err("the kernels are not chosen after a call".into());
    }
    let problem = (&qkv, &mask, attention.scale());
    compare("lists alone", case.dtype, &found, problem, (&d_out, None), (None, Some(&causal {})))?;
    // The same bits as over lists that are there.
    let output = Output { out, lse, mask: on_gpu };
    let direct = attention.backward(&q, &k, &v, &output, &d_out_there, None)?;
    for (a, b) in [(&found.dq, &direct.dq), (&found.dk, &direct.dk), (&found.dv, &direct.dv)] {
        if a.to_f32_vec()? != b.to_f32_vec()? {
            return Err("lists made on the way give other bits than those of the mask".into());
        }
    }
    Ok(())
}

/// Selected and attended to, with functions and without, tuned and first.
fn values_of_another_width(device: &Device) -> Result<(), Failed> {
    let mut random = Random(41);
    for (dtype, d, value_d, policy) in [
        (DType::Bf16, HeadDim::D192, HeadDim::D128, Policy::Tune),
        (DType::F16, HeadDim::D64, HeadDim::new(72)?, Policy::FirstValid),
    ] {
        let case = Case {
            dtype,
            d: d.get(),
            value_d: Some(value_d.get()),
            heads: 4,
            seq_q: 500,
            seq_kv: 700,
            ..CASE
        };
        let qkv = case.qkv(&mut random);
        let [q, k, v] = [qkv[0].to(device)?, qkv[1].to(device)?, qkv[2].to(device)?];
        let attention = Attention::builder(d, dtype)
            .value_dim(value_d)
            .select(top_k(0.3) | top_p(0.3))
            .score_mod(softcap { cap: 3.0 })
            .mask_mod(causal {})
            .policy(policy)
            .build(device)?;
        let output = attention.forward(&q, &k, &v)?;
        if output.out.shape() != case.out() {
            return Err(format!("out has shape {:?}", output.out.shape()).into());
        }
        let d_out = random.tensor(dtype, &case.out());
        let found = attention.backward(&q, &k, &v, &output, &d_out.to(device)?, None)?;
        let mask = output.mask.to(&Device::cpu())?;
        let functions: (Option<&dyn ScoreMod>, Option<&dyn MaskMod>) =
            (Some(&softcap { cap: 3.0 }), Some(&causal {}));
        let exact =
            attention_f64(&qkv[0], &qkv[1], &qkv[2], &mask, attention.scale(), functions.0, functions.1)?;
        let error = relative_error(&output.out.to_f32_vec()?, &exact.out);
        let bound = if dtype == DType::F16 { 6e-4 } else { 4e-3 };
        if error.is_nan() || error > bound {
            return Err(format!("{case:?}: out is off by {error:.1e}").into());
        }
        let problem = (&qkv, &mask, attention.scale());
        compare(&format!("{case:?}"), dtype, &found, problem, (&d_out, None), functions)?;
    }
    Ok(())
}
