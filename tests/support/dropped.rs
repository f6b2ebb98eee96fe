//! Keys that the mask function drops decide nothing, whatever they hold: the same cases on the CPU and on a GPU.

use super::{Random, tensor};
use tilewright::{
    Attention, BlockSize, DType, Device, Error, HeadDim, MaskMod, Scores, Tensor, mask_mod, top_k, top_p,
};

#[mask_mod]
fn padded(b: i32, h: i32, q: i32, kv: i32, lengths: &[i32]) -> bool {
    kv < lengths[b as usize]
}

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

#[mask_mod]
fn documents(b: i32, h: i32, q: i32, kv: i32, ids: &[i32]) -> bool {
    ids[q as usize] == ids[kv as usize]
}

#[mask_mod]
fn every_third(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv % 3 != h % 2
}

/// Of each 50 queries other keys, a few in each `period`; fewer of later batches.
#[mask_mod]
fn sieve(b: i32, h: i32, q: i32, kv: i32, period: i32, length: i32) -> bool {
    kv < length - 70 * b && (kv * 31 + q / 50 * 17 + h * 7) % period < 2
}

/// A mask function, the keys that hold garbage, and the queries that see none of them.
struct Case {
    name: &'static str,
    mask_mod: Box<dyn Fn() -> Box<dyn MaskModBuilder>>,
    seqs: (usize, usize),
    garbage: Box<dyn Fn(usize, usize) -> bool>,
    clean: Box<dyn Fn(usize) -> bool>,
}

/// Puts a mask function of any type into a builder.
trait MaskModBuilder {
    fn into_builder(self: Box<Self>, builder: tilewright::AttentionBuilder) -> tilewright::AttentionBuilder;
}

impl<F: MaskMod + 'static> MaskModBuilder for F {
    fn into_builder(self: Box<Self>, builder: tilewright::AttentionBuilder) -> tilewright::AttentionBuilder {
        builder.mask_mod(*self)
    }
}

fn case<F: MaskMod + 'static>(
    name: &'static str,
    seqs: (usize, usize),
    mask_mod: impl Fn() -> F + 'static,
    garbage: impl Fn(usize, usize) -> bool + 'static,
    clean: impl Fn(usize) -> bool + 'static,
) -> Case {
    let mask_mod = Box::new(move || Box::new(mask_mod()) as Box<dyn MaskModBuilder>);
    Case { name, mask_mod, seqs, garbage: Box::new(garbage), clean: Box::new(clean) }
}

fn cases() -> Vec<Case> {
    let ids = |pad: i32| (0..450).map(move |i| if i < pad { i / 150 } else { -1 }).collect::<Vec<i32>>();
    vec![
        case(
            "padding",
            (500, 500),
            || padded { lengths: vec![340, 140] },
            |b, kv| kv >= [340, 140][b],
            |_| true,
        ),
        // More key blocks than one kernel scores and selects at once.
        case(
            "padding of long rows",
            (130, 64 * 4100),
            || padded { lengths: vec![64 * 4099 + 7, 64 * 100 + 1] },
            |b, kv| kv >= [64 * 4099 + 7, 64 * 100 + 1][b],
            |_| true,
        ),
        case("keys of the future", (150, 350), || causal {}, |_, kv| kv >= 150, |_| true),
        // The padding's own queries see it: those of other blocks do not.
        case(
            "documents",
            (450, 450),
            move || documents { ids: ids(420) },
            |_, kv| kv >= 420,
            |q| q / 128 * 128 + 127 < 420,
        ),
    ]
}

/// `[batch, heads, q_blocks, kv_blocks]` of 2 batches, 4 heads over 2, by a rule of both kinds.
fn selected(
    case: &Case,
    device: &Device,
    blocks: BlockSize,
    (garbage, scores): (f32, Scores),
) -> Result<(Vec<u8>, [usize; 4]), Error> {
    let (seq_q, seq_kv) = case.seqs;
    let mut random = Random(5);
    let (q, mut k) = (random.tensor(DType::Bf16, &[2, 4, seq_q, 64]), Vec::new());
    for (b, _) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for kv in 0..seq_kv {
            let hidden = (case.garbage)(b, kv);
            k.extend((0..64).map(|_| random.normal()).map(|x| if hidden { garbage } else { x }));
        }
    }
    let k = tensor(DType::Bf16, &k, &[2, 2, seq_kv, 64]);
    let rule = (top_k(0.2) | top_p(0.3)).by(scores);
    let builder = Attention::builder(HeadDim::D64, DType::Bf16).blocks(blocks).select(rule);
    let attention = (case.mask_mod)().into_builder(builder).build(device)?;
    let dense = attention.mask(&q.to(device)?, &k.to(device)?)?.to_dense()?;
    Ok((dense.classes, dense.shape))
}

/// What hidden keys hold changes no row of blocks that does not see them. Says what is wrong.
pub fn garbage_decides_nothing(device: &Device) -> Result<(), String> {
    for case in cases() {
        if device.as_cuda().is_none() && case.seqs.1 > 10_000 {
            continue; // rows of any length are scored alike there
        }
        let all = if case.seqs.1 > 10_000 { vec![BlockSize::default()] } else { BlockSize::ALL.to_vec() };
        let all = all.into_iter().flat_map(|blocks| [(blocks, Scores::Means), (blocks, Scores::Keys)]);
        for (blocks, scores) in all {
            // Of thousands of blocks of random keys those of a few keys, whose best is none of the best, are not kept.
            if scores == Scores::Keys && case.seqs.1 > 10_000 {
                continue;
            }
            let find = |garbage| {
                selected(&case, device, blocks, (garbage, scores)).map_err(|error| error.to_string())
            };
            let (expected, [_, _, q_blocks, kv_blocks]) = find(0.0)?;
            if !expected.contains(&1) {
                return Err(format!(
                    "{} {blocks}: no partial block is kept: the case shows nothing",
                    case.name
                ));
            }
            for garbage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e4, -3e38] {
                let (found, _) = find(garbage)?;
                for (row, (found, expected)) in
                    found.chunks(kv_blocks).zip(expected.chunks(kv_blocks)).enumerate()
                {
                    let clean = (case.clean)(row % q_blocks * blocks.q());
                    if clean && found != expected {
                        return Err(format!(
                            "{} {blocks} {scores:?}: with {garbage} in hidden keys row {row} keeps {found:?}, expected {expected:?}",
                            case.name
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

/// A block that is kept in part scores by the mean of what is kept of it: as a whole block of that mean does.
pub fn partial_blocks_score_by_their_kept_keys(device: &Device) -> Result<(), String> {
    let run = || -> Result<Result<(), String>, Error> {
        let (seq, d) = (640, 64);
        let mut random = Random(9);
        let q = random.tensor(DType::F16, &[1, 2, seq, d]);
        // Two of three keys are kept, the same of every block's halves: each kept key is the block's vector, the others are large.
        let mut data = [Vec::new(), Vec::new()];
        for h in 0..2 {
            for block in 0..seq / 64 {
                let row: Vec<f32> = (0..d).map(|_| random.normal()).collect();
                for kv in block * 64..(block + 1) * 64 {
                    let hidden = kv % 3 == h % 2;
                    data[0].extend(row.iter().map(|x| if hidden { -40.0 * x } else { *x }));
                    data[1].extend(&row);
                }
            }
        }
        let build = || Attention::builder(HeadDim::D64, DType::F16).select(top_k(0.3) | top_p(0.5));
        let masked = build().mask_mod(every_third {}).build(device)?;
        let plain = build().build(device)?;
        let [hidden, alike] = data.map(|data| tensor(DType::F16, &data, &[1, 2, seq, d]));
        let q = q.to(device)?;
        let mask = |attention: &Attention, k: &Tensor| attention.mask(&q, &k.to(device)?)?.to_dense();
        let (found, expected) = (mask(&masked, &hidden)?, mask(&plain, &alike)?);
        let kept = |classes: &[u8]| classes.iter().map(|class| *class > 0).collect::<Vec<_>>();
        if kept(&found.classes) != kept(&expected.classes) {
            return Ok(Err(format!("found {:?}, expected {:?}", found.classes, expected.classes)));
        }
        Ok(Ok(()))
    };
    run().map_err(|error| error.to_string())?
}

/// The blocks that the definition selects, in f64: ragged ends, heads that share key heads, views, and blocks that are kept in part,
/// as a whole or not at all.
pub fn selects_by_definition(device: &Device) -> Result<(), String> {
    // `[batch, heads, kv_heads, seq_q, seq_kv]`, the function's period and length.
    let cases: [([usize; 5], i32, i32); 7] = [
        ([1, 2, 2, 300, 300], 40, 300),
        ([2, 4, 2, 129, 700], 40, 690),
        ([2, 3, 1, 70, 1000], 300, 1000),
        ([1, 1, 1, 1, 65], 3, 65),
        ([3, 2, 1, 200, 450], 2, 321),
        ([1, 6, 3, 513, 130], 7, 130),
        ([1, 1, 1, 130, 64], 40, 0),
    ];
    for (blocks, dtype) in BlockSize::ALL.into_iter().zip([DType::Bf16, DType::F16, DType::F16, DType::Bf16])
    {
        for ([batch, heads, kv_heads, seq_q, seq_kv], period, length) in cases {
            let mut random = Random(seq_kv as u64);
            let mut view = |heads, seq| random.tensor(dtype, &[batch, seq, heads, 72]).permute(&[0, 2, 1, 3]);
            let function = sieve { period, length };
            let mut run = || -> Result<(Vec<u8>, Vec<Option<u8>>), Error> {
                let (q, k) = (view(heads, seq_q)?, view(kv_heads, seq_kv)?);
                let builder = Attention::builder(HeadDim::new(72)?, dtype).blocks(blocks).select(top_k(0.3));
                let attention = builder.mask_mod(sieve { period, length }).build(device)?;
                let found = attention.mask(&q.to(device)?, &k.to(device)?)?.to_dense()?.classes;
                Ok((found, defined([&q, &k], blocks, attention.scale(), &function)?))
            };
            let (found, expected) = run().map_err(|error| error.to_string())?;
            let at = found
                .iter()
                .zip(&expected)
                .position(|(found, expected)| expected.is_some_and(|x| x != *found));
            if let Some(at) = at {
                let case = [batch, heads, kv_heads, seq_q, seq_kv];
                return Err(format!(
                    "{case:?} {blocks}: block {at} is {}, expected {:?}",
                    found[at], expected[at]
                ));
            }
        }
    }
    Ok(())
}

/// The class of each block after a top-k of 0.3; none in rows where rounding decides.
fn defined(
    [q, k]: [&Tensor; 2],
    blocks: BlockSize,
    scale: f32,
    function: &dyn MaskMod,
) -> Result<Vec<Option<u8>>, Error> {
    let (&[batch, heads, seq_q, d], &[_, kv_heads, seq_kv, _]) = (q.shape(), k.shape()) else {
        unreachable!("four dimensions")
    };
    let (q, k) = (q.to_f32_vec()?, k.to_f32_vec()?);
    let mean = |x: &[f32], first: usize, rows: &[usize]| -> Vec<f64> {
        let sum = |c| rows.iter().map(|row| f64::from(x[(first + row) * d + c])).sum::<f64>();
        (0..d).map(|c| sum(c) / rows.len() as f64).collect()
    };
    let span =
        |block, size, seq: usize| -> Vec<usize> { (block * size..seq.min((block + 1) * size)).collect() };
    let mut all = Vec::new();
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let of_q = (b * heads + h) * seq_q;
        let of_k = (b * kv_heads + h * kv_heads / heads) * seq_kv;
        let keep = |q: usize, kv: usize| function.keep(b as i32, h as i32, q as i32, kv as i32);
        for i in 0..seq_q.div_ceil(blocks.q()) {
            let queries = span(i, blocks.q(), seq_q);
            let q_mean = mean(&q, of_q, &queries);
            let (mut row, mut scored) = (Vec::new(), Vec::new());
            for j in 0..seq_kv.div_ceil(blocks.kv()) {
                let keys = span(j, blocks.kv(), seq_kv);
                let pairs = queries.iter().flat_map(|&q| keys.iter().map(move |&kv| (q, kv)));
                let count = pairs.filter(|&(q, kv)| keep(q, kv)).count();
                let seen: Vec<usize> =
                    keys.iter().copied().filter(|&kv| queries.iter().any(|&q| keep(q, kv))).collect();
                row.push(if count == 0 { 0 } else { 1 + u8::from(count == queries.len() * keys.len()) });
                if count > 0 {
                    let k_mean = mean(&k, of_k, &seen);
                    let product: f64 = q_mean.iter().zip(k_mean).map(|(q, k)| q * k).sum();
                    scored.push((f64::from(scale) * product, j));
                }
            }
            scored.sort_by(|a, b| b.0.total_cmp(&a.0));
            let kept = ((0.3 * scored.len() as f64 - 1e-6).ceil() as usize).max(1);
            let close = scored.get(kept).is_some_and(|next| scored[kept - 1].0 - next.0 < 1e-5);
            scored.iter().skip(kept).for_each(|&(_, j)| row[j] = 0);
            all.extend(row.into_iter().map(|class| Some(class).filter(|_| !close)));
        }
    }
    Ok(all)
}
