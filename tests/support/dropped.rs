//! Keys that the mask function drops decide nothing, whatever they hold: the same cases on the CPU and on a GPU.

use super::{Random, tensor};
use tilewright::{
    Attention, BlockSize, DType, Device, Error, HeadDim, MaskMod, Tensor, mask_mod, top_k, top_p,
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
    garbage: f32,
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
    let builder =
        Attention::builder(HeadDim::D64, DType::Bf16).blocks(blocks).select(top_k(0.2) | top_p(0.3));
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
        for blocks in all {
            let find = |garbage| selected(&case, device, blocks, garbage).map_err(|error| error.to_string());
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
                            "{} {blocks}: with {garbage} in hidden keys row {row} keeps {found:?}, expected {expected:?}",
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
