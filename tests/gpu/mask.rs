//! Selection on the GPU against the CPU executor, and the form of what it returns.

use super::Test;
use super::support::Random;
use libtest_mimic::Failed;
use tilewright::attention::{Shapes, Step};
use tilewright::{
    Attention, BlockIndex, BlockMask, BlockSize, DType, DenseMap, Device, Error, HeadDim, Scores,
    SelectError, Selection, SeqLens, Tensor, mask_mod, top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("mask::selects_what_the_cpu_selects", selects_as_the_cpu),
    ("mask::smooth_tensors_with_sinks", smooth_tensors),
    ("mask::ties_and_flat_rows", ties),
    ("mask::with_a_mask_function", with_mask_function),
    ("mask::of_a_mask_function_alone", mask_function_alone),
    ("mask::many_key_blocks", many_key_blocks),
    ("mask::by_keys", by_keys),
    ("mask::of_block_means", block_means),
    ("mask::what_dropped_keys_hold_decides_nothing", dropped_keys),
    ("mask::partial_blocks_score_by_their_kept_keys", kept_keys),
    ("mask::blocks_are_selected_by_definition", by_definition),
];

#[mask_mod]
fn window(b: i32, h: i32, q: i32, kv: i32, width: i32) -> bool {
    q >= kv && q - kv < width
}

fn attentions(
    device: &Device,
    d: usize,
    dtype: DType,
    blocks: BlockSize,
    rule: Option<Selection>,
    windowed: bool,
) -> Result<[Attention; 2], Failed> {
    let build = |device: &Device| {
        let mut builder = Attention::builder(HeadDim::new(d)?, dtype).blocks(blocks);
        if let Some(rule) = rule {
            builder = builder.select(rule);
        }
        if windowed {
            builder = builder.mask_mod(window { width: 150 });
        }
        builder.build(device)
    };
    Ok([build(device)?, build(&Device::cpu())?])
}

/// The share of rows that may differ: where a row's mass lands on p within rounding, one block more or less is kept.
const ROWS_AT_THE_EDGE: f64 = 0.004;

fn compare(device: &Device, [gpu, cpu]: &[Attention; 2], q: &Tensor, k: &Tensor) -> Result<(), Failed> {
    let found = gpu.mask(&q.to(device)?, &k.to(device)?)?;
    let expected = cpu.mask(q, k)?;
    check_form(&found)?;
    let (found, expected) = (found.to_dense()?, expected.to_dense()?);
    if found.shape != expected.shape {
        return Err(format!("shape {:?}, expected {:?}", found.shape, expected.shape).into());
    }
    // Means of a few keys are rounded, of queries too: they may go to either side.
    let by_keys = gpu.selection().is_some_and(|rule| rule.scores() == Scores::Keys);
    let at_the_edge = if by_keys { 5.0 } else { 1.0 } * ROWS_AT_THE_EDGE;
    let columns = found.shape[3];
    let mut different_rows = 0;
    for (row, (a, b)) in found.classes.chunks(columns).zip(expected.classes.chunks(columns)).enumerate() {
        let differences = a.iter().zip(b).filter(|(a, b)| a != b).count();
        different_rows += usize::from(differences > 0);
        // One block at the threshold, or two that changed places there.
        if differences > 2 {
            return Err(format!("row {row} of {:?}: {differences} blocks differ", found.shape).into());
        }
    }
    let rows = found.classes.len() / columns;
    println!("{:?}: {different_rows} of {rows} rows differ by a block at the threshold", found.shape);
    if different_rows as f64 > (rows as f64 * at_the_edge).max(1.0) {
        return Err(format!("{different_rows} of {rows} rows differ").into());
    }
    Ok(())
}

/// Lists ascend, stay in range, and the transpose says the same.
fn check_form(mask: &BlockMask) -> Result<(), Failed> {
    let dense = mask.to_dense()?;
    let [batch, heads, rows, columns] = dense.shape;
    let mut from_lists = vec![DenseMap::EMPTY; dense.classes.len()];
    let mut from_transpose = vec![DenseMap::EMPTY; dense.classes.len()];
    let lists = [(Some(mask.kv()), Some(mask.q()), 1), (mask.full_kv(), mask.full_q(), 2)];
    for (by_row, by_column, class) in lists {
        for (unit, row, block) in entries(by_row, rows, columns)? {
            from_lists[(unit * rows + row) * columns + block] = class;
        }
        for (unit, column, block) in entries(by_column, columns, rows)? {
            from_transpose[(unit * rows + block) * columns + column] = class;
        }
    }
    if from_lists != dense.classes || from_transpose != dense.classes {
        return Err(format!("the transpose disagrees ({batch}×{heads}×{rows}×{columns})").into());
    }
    Ok(())
}

/// (batch · heads, row, block) of every entry, each row checked to ascend within range.
fn entries(
    index: Option<&BlockIndex>,
    rows: usize,
    limit: usize,
) -> Result<Vec<(usize, usize, usize)>, Failed> {
    let Some(index) = index else { return Ok(Vec::new()) };
    let (counts, indices) = (index.counts.to_vec::<i32>()?, index.indices.to_vec::<i32>()?);
    let width = index.indices.shape()[3];
    let mut found = Vec::new();
    for (row, &count) in counts.iter().enumerate() {
        let list = &indices[row * width..][..count as usize];
        if !list.windows(2).all(|pair| pair[0] < pair[1])
            || list.iter().any(|&b| b < 0 || b as usize >= limit)
        {
            return Err(format!("row {row} does not ascend within 0..{limit}: {list:?}").into());
        }
        if indices[row * width..][count as usize..width].iter().any(|&block| block != 0) {
            return Err(format!("row {row} has entries past its {count}").into());
        }
        found.extend(list.iter().map(|&block| (row / rows, row % rows, block as usize)));
    }
    Ok(found)
}

fn selects_as_the_cpu(device: &Device) -> Result<(), Failed> {
    let mut random = Random(11);
    for (dtype, d) in
        [(DType::Bf16, 128), (DType::F16, 64), (DType::Bf16, 80), (DType::Bf16, 192), (DType::F16, 256)]
    {
        for blocks in BlockSize::ALL {
            let q = random.tensor(dtype, &[2, 6, 700, d]);
            let k = random.tensor(dtype, &[2, 3, 1001, d]);
            for rule in [top_k(0.1), top_p(0.3), top_k(0.1) | top_p(0.5), top_k(1.0), top_p(1.0)] {
                compare(device, &attentions(device, d, dtype, blocks, Some(rule), false)?, &q, &k)?;
            }
        }
    }
    Ok(())
}

/// Means that differ between blocks, and a first block that every query looks at: what real attention looks like.
fn smooth_tensors(device: &Device) -> Result<(), Failed> {
    let mut random = Random(3);
    let (heads, seq, d) = (4, 4000, 128);
    let mut smooth = |sink: f32| {
        let noise: Vec<f32> = (0..heads * seq * d).map(|_| random.normal()).collect();
        let data: Vec<f32> = noise
            .iter()
            .enumerate()
            .map(|(i, noise)| {
                let (token, channel) = (i / d % seq, i % d);
                let wave = (token as f32 * 0.002 * (1 + channel % 7) as f32 + channel as f32).sin();
                wave + 0.5 * noise + if token < 64 && channel < 8 { sink } else { 0.0 }
            })
            .collect();
        super::support::tensor(DType::Bf16, &data, &[1, heads, seq, d])
    };
    let (q, k) = (smooth(1.0), smooth(3.0));
    for rule in [top_k(0.03) | top_p(0.2), top_p(0.9), top_k(0.03)] {
        compare(
            device,
            &attentions(device, d, DType::Bf16, BlockSize::default(), Some(rule), false)?,
            &q,
            &k,
        )?;
    }
    Ok(())
}

/// Equal scores everywhere: the lower index wins, exactly.
fn ties(device: &Device) -> Result<(), Failed> {
    let q = super::forward::constant(DType::Bf16, 0.5, &[1, 2, 300, 64]);
    let k = super::forward::constant(DType::Bf16, 0.25, &[1, 2, 1000, 64]);
    let [gpu, cpu] =
        attentions(device, 64, DType::Bf16, BlockSize::default(), Some(top_k(0.2) | top_p(0.5)), false)?;
    let (found, expected) = (gpu.mask(&q.to(device)?, &k.to(device)?)?, cpu.mask(&q, &k)?);
    check_form(&found)?;
    if found.to_dense()? != expected.to_dense()? {
        return Err("flat rows differ".into());
    }
    Ok(())
}

fn with_mask_function(device: &Device) -> Result<(), Failed> {
    let mut random = Random(17);
    for blocks in BlockSize::ALL {
        let (q, k) =
            (random.tensor(DType::Bf16, &[1, 2, 900, 64]), random.tensor(DType::Bf16, &[1, 2, 900, 64]));
        let rule = top_k(0.3) | top_p(0.4);
        compare(device, &attentions(device, 64, DType::Bf16, blocks, Some(rule), true)?, &q, &k)?;
    }
    Ok(())
}

/// No selection: exactly the blocks the function admits.
fn mask_function_alone(device: &Device) -> Result<(), Failed> {
    let mut random = Random(19);
    for (blocks, seq_q, seq_kv) in BlockSize::ALL.into_iter().zip([900, 130, 64, 1]).map(|(b, s)| (b, s, 700))
    {
        let q = random.tensor(DType::Bf16, &[2, 2, seq_q, 64]);
        let k = random.tensor(DType::Bf16, &[2, 2, seq_kv, 64]);
        let [gpu, cpu] = attentions(device, 64, DType::Bf16, blocks, None, true)?;
        let (found, expected) = (gpu.mask(&q.to(device)?, &k.to(device)?)?, cpu.mask(&q, &k)?);
        check_form(&found)?;
        if found.to_dense()? != expected.to_dense()? {
            return Err(format!("{blocks} {seq_q}×{seq_kv}: classes differ").into());
        }
    }
    Ok(())
}

/// Rows up to and over what each way of selecting takes.
fn many_key_blocks(device: &Device) -> Result<(), Failed> {
    let mut random = Random(23);
    let q = random.tensor(DType::Bf16, &[1, 2, 1100, 64]);
    let rules = [top_k(0.01) | top_p(0.2), top_p(0.6)];
    let [short, long] =
        rules.map(|rule| attentions(device, 64, DType::Bf16, BlockSize::default(), Some(rule), false));
    let (short, long) = (short?, long?);
    for blocks in
        [31, 33, 278, 383, 384, 385, 512, 640, 641, 1182, 1280, 1281, 3000, 3328, 3329, 4096, 4097, 5000]
    {
        let k = random.tensor(DType::Bf16, &[1, 1, 64 * blocks - 7, 64]);
        compare(device, &short, &q, &k)?;
        compare(device, &long, &q, &k)?;
    }
    Ok(())
}

fn dropped_keys(device: &Device) -> Result<(), Failed> {
    Ok(super::support::dropped::garbage_decides_nothing(device)?)
}

fn kept_keys(device: &Device) -> Result<(), Failed> {
    Ok(super::support::dropped::partial_blocks_score_by_their_kept_keys(device)?)
}

fn by_definition(device: &Device) -> Result<(), Failed> {
    Ok(super::support::dropped::selects_by_definition(device)?)
}

/// Blocks by the best of their keys: every type, width and block, ragged ends, groups of heads, rows of every length, mask functions, and
/// keys that are no numbers. Means of a caller's have no keys.
fn by_keys(device: &Device) -> Result<(), Failed> {
    let mut random = Random(37);
    let rule = (top_k(0.1) | top_p(0.2)).by(Scores::Keys);
    let of = |d, dtype, blocks, rule, windowed| attentions(device, d, dtype, blocks, Some(rule), windowed);
    for (dtype, d) in
        [(DType::Bf16, 128), (DType::F16, 64), (DType::Bf16, 80), (DType::Bf16, 192), (DType::F16, 256)]
    {
        for blocks in BlockSize::ALL {
            let q = random.tensor(dtype, &[2, 6, 700, d]);
            let k = random.tensor(dtype, &[2, 3, 1001, d]);
            for rule in [rule, top_k(0.2).by(Scores::Keys)] {
                compare(device, &of(d, dtype, blocks, rule, false)?, &q, &k)?;
            }
        }
    }
    for (seq_q, seq_kv) in [(1, 1), (1, 3), (129, 65), (20_000, 259), (130, 64 * 1300 + 2)] {
        let q = random.tensor(DType::Bf16, &[1, 2, seq_q, 64]);
        let k = random.tensor(DType::Bf16, &[1, 1, seq_kv, 64]);
        compare(device, &of(64, DType::Bf16, BlockSize::default(), rule, false)?, &q, &k)?;
    }
    for blocks in BlockSize::ALL {
        let [q, k] = [0, 0].map(|_| random.tensor(DType::Bf16, &[1, 2, 900, 64]));
        compare(device, &of(64, DType::Bf16, blocks, rule, true)?, &q, &k)?;
    }
    let attentions = of(64, DType::Bf16, BlockSize::default(), rule, false)?;
    let q = random.tensor(DType::Bf16, &[1, 2, 300, 64]);
    let mut keys = random.tensor(DType::Bf16, &[1, 2, 1000, 64]).to_f32_vec()?;
    keys[64 * 70..64 * 71].fill(f32::NAN);
    keys[64 * 130..64 * 192].fill(f32::NAN);
    let k = super::support::tensor(DType::Bf16, &keys, &[1, 2, 1000, 64]);
    compare(device, &attentions, &q, &k)?;
    let (q_mean, k_mean) = (super::support::block_means(&q, 128), super::support::block_means(&k, 64));
    for attention in &attentions {
        match attention.mask_of_means(&q_mean, &k_mean, SeqLens { q: 300, kv: 1000 }) {
            Err(Error::Select(SelectError::Keys)) => {}
            other => return Err(format!("means for a rule by keys: {other:?}").into()),
        }
    }
    Ok(())
}

/// The caller's own block means give the same mask as the tensors; with a mask function, as they do on the CPU (of tensors, what
/// it keeps in part scores by the keys that it keeps).
fn block_means(device: &Device) -> Result<(), Failed> {
    let mut random = Random(29);
    for (rule, windowed) in [(top_k(0.1) | top_p(0.3), false), (top_k(0.2), true)] {
        let q = random.tensor(DType::Bf16, &[2, 4, 900, 64]);
        let k = random.tensor(DType::Bf16, &[2, 2, 900, 64]);
        let [gpu, cpu] = attentions(device, 64, DType::Bf16, BlockSize::default(), Some(rule), windowed)?;
        let (q_mean, k_mean) = (super::support::block_means(&q, 128), super::support::block_means(&k, 64));
        let expected = match windowed {
            true => cpu.mask_of_means(&q_mean, &k_mean, SeqLens::same(900))?,
            false => gpu.mask(&q.to(device)?, &k.to(device)?)?,
        };
        let found = gpu.mask_of_means(&q_mean.to(device)?, &k_mean.to(device)?, SeqLens::same(900))?;
        check_form(&found)?;
        if windowed {
            let (q, k) = (q.to(device)?, k.to(device)?);
            gpu.attend_with(&q, &k, &k, &found)?;
            if gpu.plan(Shapes::of(&q, &k)?)?.is_warm(Step::Forward) {
                return Err("warm, and the kernels that go over q and k are not chosen".into());
            }
        }
        let (found, expected) = (found.to_dense()?, expected.to_dense()?);
        let apart = found.classes.iter().zip(&expected.classes).filter(|(a, b)| a != b).count();
        if apart > 2 {
            return Err(format!("{apart} blocks differ").into());
        }
    }
    Ok(())
}
