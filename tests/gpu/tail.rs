//! Tails against the f64 oracle: what stands for the blocks that a mask drops.

use super::Test;
use super::support::{Random, blocks};
use libtest_mimic::Failed;
use tilewright::attention::{Attend, Inputs, MaskLists, Shapes, Step};
use tilewright::reference::{
    attention_with_tail_backward_f64, attention_with_tail_f64, largest_difference, relative_error,
};
use tilewright::{
    Attention, BlockMask, DType, DenseMap, Device, Error, HeadDim, Output, SeqLens, Tail, TailError, Tensor,
    mask_mod, top_k,
};

pub const TESTS: &[Test] = &[
    ("tail::head_dims_and_blocks", head_dims_and_blocks),
    ("tail::ragged_and_cross_lengths", ragged_and_cross_lengths),
    ("tail::groups_batches_and_views", groups_batches_and_views),
    ("tail::many_blocks", many_blocks),
    ("tail::lists_of_a_caller", lists_of_a_caller),
    ("tail::beside_a_mask_function", beside_a_mask_function),
    ("tail::forbidden_numbers_do_not_show", forbidden_numbers_do_not_show),
    ("tail::nothing_dropped_changes_nothing", nothing_dropped_changes_nothing),
    ("tail::every_way_gives_the_same", every_way_gives_the_same),
    ("tail::gradients", gradients),
    ("tail::gradients_beside_a_mask_function", gradients_beside_a_mask_function),
];

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

/// One comparison. Everything not set is the default below.
#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    seqs: SeqLens,
    d: usize,
    value_d: usize,
    blocks: (usize, usize),
    scale: Option<f32>,
    /// Tensors laid out [batch, seq, heads, d].
    bshd: bool,
}

const CASE: Case = Case {
    dtype: DType::Bf16,
    batch: 1,
    heads: 2,
    kv_heads: 2,
    seqs: SeqLens { q: 500, kv: 500 },
    d: 128,
    value_d: 128,
    blocks: (128, 64),
    scale: None,
    bshd: false,
};

impl Case {
    fn tails(&self) -> [Tail; 4] {
        let [one, two, five] = [1, 2, 5].map(|n| Tail::Row { keys: n * self.blocks.1 });
        [Tail::Block, one, two, five]
    }

    fn qkv(&self, random: &mut Random) -> [Tensor; 3] {
        let mut tensor = |heads, seq, d| match self.bshd {
            true => random.tensor(self.dtype, &[self.batch, seq, heads, d]).permute(&[0, 2, 1, 3]).unwrap(),
            false => random.tensor(self.dtype, &[self.batch, heads, seq, d]),
        };
        let q = tensor(self.heads, self.seqs.q, self.d);
        let k = tensor(self.kv_heads, self.seqs.kv, self.d);
        [q, k, tensor(self.kv_heads, self.seqs.kv, self.value_d)]
    }

    fn builder(&self, tail: Tail) -> tilewright::AttentionBuilder {
        let [d, value_d] = [self.d, self.value_d].map(|d| HeadDim::new(d).unwrap());
        let builder =
            Attention::builder(d, self.dtype).value_dim(value_d).blocks(self.block_size()).tail(tail);
        match self.scale {
            Some(scale) => builder.scale(scale),
            None => builder,
        }
    }

    fn block_size(&self) -> tilewright::BlockSize {
        blocks(self.blocks.0, self.blocks.1)
    }

    /// Selects, and attends with every tail.
    fn check(&self, device: &Device) -> Result<(), Failed> {
        let mut random = Random(self.seqs.q as u64 * 31 + self.heads as u64 * 7 + self.d as u64);
        let host = self.qkv(&mut random);
        let [q, k, v] = on(device, &host)?;
        for tail in self.tails() {
            let attention = self.builder(tail).select(top_k(0.3)).build(device)?;
            let output = attention.forward(&q, &k, &v)?;
            let mask = output.mask.to(&Device::cpu())?;
            let unlisted = mask.with_unlisted_dropped()?;
            let bits = |mask: &BlockMask| mask.dropped().unwrap().to_vec::<i32>();
            if bits(&mask)? != bits(&unlisted)? {
                return Err(
                    format!("{self:?}, {tail:?}: the bits are not those of what is not listed").into()
                );
            }
            let expected = attention_with_tail_f64(
                [&host[0], &host[1], &host[2]],
                &mask,
                attention.scale(),
                None,
                tail,
            )?;
            self.compare(tail, [&output.out, &output.lse], &expected)?;
            // The mask says all that the attention wants to know.
            let again = attention.attend_with(&q, &k, &v, &output.mask)?;
            same(
                &format!("{self:?}, {tail:?}: attend_with"),
                [&output.out, &output.lse],
                [&again.0, &again.1],
            )?;
        }
        Ok(())
    }

    fn compare(
        &self,
        tail: Tail,
        [out, lse]: [&Tensor; 2],
        expected: &tilewright::reference::Reference,
    ) -> Result<(), Failed> {
        let bound = if self.dtype == DType::F16 { 6e-4 } else { 4e-3 };
        let error = relative_error(&out.to_f32_vec()?, &expected.out);
        let lse_error = largest_difference(&lse.to_vec::<f32>()?, &expected.lse);
        println!("{self:?}, {tail:?}: out {error:.2e}, lse {lse_error:.2e}");
        // The means of a row tail are rounded to the dtype of q. Written so that a NaN fails.
        let lse_bound = if matches!(tail, Tail::Row { .. }) { 1e-2 } else { 2e-3 };
        if !(error <= bound && lse_error <= lse_bound) {
            return Err(
                format!("{self:?}, {tail:?}: out {error:.2e} (≤ {bound:.0e}), lse {lse_error:.2e}").into()
            );
        }
        Ok(())
    }
}

fn on(device: &Device, [q, k, v]: &[Tensor; 3]) -> Result<[Tensor; 3], Error> {
    Ok([q.to(device)?, k.to(device)?, v.to(device)?])
}

fn same(what: &str, found: [&Tensor; 2], expected: [&Tensor; 2]) -> Result<(), Failed> {
    for (found, expected) in found.into_iter().zip(expected) {
        if bits(found)? != bits(expected)? {
            return Err(format!("{what}: other bits").into());
        }
    }
    Ok(())
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>, Error> {
    Ok(tensor.to_f32_vec()?.into_iter().map(f32::to_bits).collect())
}

fn head_dims_and_blocks(device: &Device) -> Result<(), Failed> {
    for (d, value_d) in
        [(64, 64), (128, 128), (72, 72), (96, 96), (192, 192), (256, 256), (192, 128), (128, 64)]
    {
        for blocks in [(128, 64), (64, 64), (128, 128), (64, 128)] {
            Case { d, value_d, blocks, ..CASE }.check(device)?;
        }
        Case { d, value_d, dtype: DType::F16, ..CASE }.check(device)?;
    }
    Ok(())
}

fn ragged_and_cross_lengths(device: &Device) -> Result<(), Failed> {
    for (q, kv) in
        [(1, 1), (63, 64), (65, 129), (128, 1000), (1000, 65), (129, 700), (1000, 1000), (300, 4133)]
    {
        Case { seqs: SeqLens { q, kv }, d: 64, value_d: 64, ..CASE }.check(device)?;
    }
    Ok(())
}

fn groups_batches_and_views(device: &Device) -> Result<(), Failed> {
    for (batch, heads, kv_heads) in [(1, 6, 2), (2, 4, 1), (3, 2, 2)] {
        for bshd in [false, true] {
            Case { batch, heads, kv_heads, bshd, ..CASE }.check(device)?;
        }
    }
    for scale in [0.0, -0.2, 1.0] {
        Case { scale: Some(scale), ..CASE }.check(device)?;
    }
    Ok(())
}

/// More blocks than a word of pieces has bits, and than a warp has lanes.
fn many_blocks(device: &Device) -> Result<(), Failed> {
    Case { heads: 1, kv_heads: 1, seqs: SeqLens { q: 130, kv: 64 * 2100 + 17 }, d: 64, value_d: 64, ..CASE }
        .check(device)
}

/// Masks of a caller's, one for all heads or one for each, with an admissible mask or without.
fn lists_of_a_caller(device: &Device) -> Result<(), Failed> {
    let case = Case { batch: 2, heads: 4, kv_heads: 2, seqs: SeqLens { q: 400, kv: 900 }, ..CASE };
    let mut random = Random(71);
    let host = case.qkv(&mut random);
    let [q, k, v] = on(device, &host)?;
    for (batch, heads) in [(1, 1), (2, 4), (1, 4)] {
        let shape = [batch, heads, 4, 15];
        let mut map =
            |share: f64| -> Vec<bool> { (0..shape.iter().product()).map(|_| random.chance(share)).collect() };
        let (admissible, kept) = (map(0.7), map(0.3));
        let kept: Vec<bool> = kept.iter().zip(&admissible).map(|(kept, may)| *kept && *may).collect();
        let [kept, admissible] = [kept, admissible]
            .map(|map| BlockMask::from_dense(&map, shape, case.block_size(), case.seqs).unwrap());
        for mask in [kept.with_admissible(&admissible)?, kept.with_unlisted_dropped()?] {
            for tail in case.tails() {
                let attention = case.builder(tail).build(device)?;
                let (out, lse) = attention.attend_with(&q, &k, &v, &mask.to(device)?)?;
                let expected = attention_with_tail_f64(
                    [&host[0], &host[1], &host[2]],
                    &mask,
                    attention.scale(),
                    None,
                    tail,
                )?;
                case.compare(tail, [&out, &lse], &expected)?;
            }
        }
        if (batch, heads) == (1, 1) {
            bits_for_all(device, case, [&q, &k, &v], &kept.with_admissible(&admissible)?)?;
        }
        let unknown = case.builder(Tail::Block).build(device)?.attend_with(&q, &k, &v, &kept.to(device)?);
        assert!(matches!(unknown, Err(Error::Tail(TailError::Unknown))), "{unknown:?}");
    }
    Ok(())
}

/// Lists of each head with one row of bits for all of them: as with one list for all.
fn bits_for_all(device: &Device, case: Case, [q, k, v]: [&Tensor; 3], one: &BlockMask) -> Result<(), Failed> {
    let heads = [case.batch, case.heads, 4, 15];
    let dense = one.to_dense()?;
    let map = dense.classes.iter().map(|&class| class != DenseMap::EMPTY).collect::<Vec<_>>();
    let each =
        BlockMask::from_dense(&map.repeat(case.batch * case.heads), heads, case.block_size(), case.seqs)?;
    let (one, each) = (one.to(device)?, each.to(device)?);
    let lists = &MaskLists { dropped: one.dropped().cloned(), ..MaskLists::new(each.kv().clone()) };
    for tail in case.tails() {
        let attention = case.builder(tail).build(device)?;
        let (expected, expected_lse) = attention.attend_with(q, k, v, &one)?;
        let plan = attention.plan(Shapes::of(q, k)?)?;
        let mut out = Tensor::uninit(device, expected.dtype(), expected.shape())?;
        let mut lse = Tensor::uninit(device, DType::F32, expected_lse.shape())?;
        let mut scratch = Tensor::uninit(device, DType::U8, &[plan.scratch_bytes(Step::Attend(lists))?])?;
        plan.run(Attend { q, k, v, lists, out: &mut out, lse: &mut lse }, &mut scratch)?;
        for (found, expected) in [(&out, &expected), (&lse, &expected_lse)] {
            if found.to_f32_vec()? != expected.to_f32_vec()? {
                return Err(
                    format!("{tail:?}: bits for all heads beside lists of each give something else").into()
                );
            }
        }
    }
    Ok(())
}

/// Whole blocks take part, those that the function cuts or forbids do not.
fn beside_a_mask_function(device: &Device) -> Result<(), Failed> {
    for blocks in [(128, 64), (64, 64), (128, 128)] {
        let case = Case { seqs: SeqLens::same(900), blocks, ..CASE };
        let host = case.qkv(&mut Random(72));
        let [q, k, v] = on(device, &host)?;
        for tail in case.tails() {
            let attention = case.builder(tail).select(top_k(0.3)).mask_mod(causal {}).build(device)?;
            let Output { out, lse, mask } = attention.forward(&q, &k, &v)?;
            let host_mask = mask.to(&Device::cpu())?;
            let admissible = BlockMask::from_mask_mod(&causal {}, 1, 1, case.block_size(), case.seqs)?;
            let expected = host_mask.with_admissible(&admissible)?;
            assert_eq!(
                host_mask.dropped().unwrap().to_vec::<i32>()?,
                expected.dropped().unwrap().to_vec::<i32>()?
            );
            let expected = attention_with_tail_f64(
                [&host[0], &host[1], &host[2]],
                &host_mask,
                attention.scale(),
                Some(&causal {}),
                tail,
            )?;
            case.compare(tail, [&out, &lse], &expected)?;
            let again = attention.attend_with(&q, &k, &v, &mask)?;
            same(&format!("{tail:?} over its own mask"), [&out, &lse], [&again.0, &again.1])?;
        }
    }
    Ok(())
}

/// What no query may attend to holds NaN and infinity, in whole blocks.
fn forbidden_numbers_do_not_show(device: &Device) -> Result<(), Failed> {
    let case = Case { seqs: SeqLens { q: 300, kv: 640 }, ..CASE };
    let [q, k, v] = case.qkv(&mut Random(73));
    let shape = [1, 1, 3, 10];
    // The last three blocks are forbidden, of which one shares a run of two with an admissible block.
    let admissible: Vec<bool> = (0..30).map(|block| block % 10 < 7).collect();
    let kept: Vec<bool> = (0..30).map(|block| block % 10 < 7 && block % 3 == 0).collect();
    let [kept, admissible] = [kept, admissible]
        .map(|map| BlockMask::from_dense(&map, shape, case.block_size(), case.seqs).unwrap());
    let mask = kept.with_admissible(&admissible)?.to(device)?;
    let spoilt = |x: &Tensor, with: f32| {
        let (heads, d) = (x.shape()[1], x.shape()[3]);
        let mut data = x.to_f32_vec().unwrap();
        for head in 0..heads {
            data[(head * 640 + 448) * d..(head + 1) * 640 * d].fill(with);
        }
        let data: Vec<half::bf16> = data.into_iter().map(half::bf16::from_f32).collect();
        Tensor::from_slice(&data, x.shape()).unwrap()
    };
    for tail in case.tails() {
        let attention = case.builder(tail).build(device)?;
        let attend = |k: &Tensor, v: &Tensor| {
            attention.attend_with(&q.to(device)?, &k.to(device)?, &v.to(device)?, &mask)
        };
        let clean = attend(&spoilt(&k, 0.0), &spoilt(&v, 0.0))?;
        for with in [f32::NAN, f32::INFINITY] {
            let found = attend(&spoilt(&k, with), &spoilt(&v, with))?;
            same(&format!("{tail:?}, {with}"), [&found.0, &found.1], [&clean.0, &clean.1])?;
        }
    }
    Ok(())
}

fn nothing_dropped_changes_nothing(device: &Device) -> Result<(), Failed> {
    for d in [64, 128] {
        let case = Case { d, value_d: d, ..CASE };
        let host = case.qkv(&mut Random(74));
        let [q, k, v] = on(device, &host)?;
        let full =
            BlockMask::full(1, 1, case.block_size(), case.seqs)?.with_unlisted_dropped()?.to(device)?;
        // Of two rows of blocks one drops something.
        let map: Vec<bool> = (0..32).map(|block| block >= 8 || block % 3 == 0).collect();
        let some = BlockMask::from_dense(&map, [1, 1, 4, 8], case.block_size(), case.seqs)?
            .with_unlisted_dropped()?;
        let some = some.to(device)?;
        let plain = case.builder(Tail::None).build(device)?;
        for tail in case.tails() {
            let attention = case.builder(tail).build(device)?;
            let (out, lse) = attention.attend_with(&q, &k, &v, &full)?;
            let expected = plain.attend_with(&q, &k, &v, &full)?;
            let what = format!("d {d}, {tail:?}");
            // Another schedule may have another order of sums.
            let error = relative_error(
                &out.to_f32_vec()?,
                &expected.0.to_f32_vec()?.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
            );
            assert!(error < 4e-3, "{what}: {error}");
            let lse_error = largest_difference(
                &lse.to_vec::<f32>()?,
                &expected.1.to_vec::<f32>()?.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
            );
            assert!(lse_error < 1e-5, "{what}: {lse_error}");
            // A row that drops nothing is what it is where no other row does either.
            let found = attention.attend_with(&q, &k, &v, &some)?;
            let rows = |tensor: &Tensor, width: usize| -> Result<Vec<u32>, Error> {
                let all = bits(tensor)?;
                Ok(all.chunks(case.seqs.q * width).flat_map(|head| head[128 * width..].to_vec()).collect())
            };
            assert_eq!(rows(&found.0, d)?, rows(&out, d)?, "{what}");
            assert_eq!(rows(&found.1, 1)?, rows(&lse, 1)?, "{what}");
        }
    }
    Ok(())
}

/// A call, a workspace, lists in memory of one's own: equal bits, twice over.
fn every_way_gives_the_same(device: &Device) -> Result<(), Failed> {
    let case = Case { heads: 4, seqs: SeqLens::same(700), ..CASE };
    let [q, k, v] = on(device, &case.qkv(&mut Random(75)))?;
    let shapes = Shapes { batch: 1, heads: 4, kv_heads: 2, seq_q: 700, seq_kv: 700 };
    for tail in case.tails() {
        let attention = case.builder(tail).select(top_k(0.2)).build(device)?;
        let expected = attention.forward(&q, &k, &v)?;
        let plan = attention.plan(shapes)?;
        let mut workspace = plan.workspace()?;
        for turn in 0..2 {
            let found = plan.forward_into(Inputs { q: &q, k: &k, v: &v }, &mut workspace)?;
            same(
                &format!("{tail:?}, turn {turn}"),
                [&found.out, &found.lse],
                [&expected.out, &expected.lse],
            )?;
            let dropped = |mask: &BlockMask| mask.dropped().unwrap().to_vec::<i32>();
            assert_eq!(dropped(&found.mask)?, dropped(&expected.mask)?);
        }
        let mask = attention.mask(&q, &k)?;
        let found = attention.attend_with(&q, &k, &v, &mask)?;
        same(
            &format!("{tail:?}, mask and attend_with"),
            [&found.0, &found.1],
            [&expected.out, &expected.lse],
        )?;
    }
    Ok(())
}

/// The gradients against the f64 oracle's, twice to the same bits.
fn compare_gradients(
    case: &Case,
    attention: &Attention,
    device: &Device,
    masked: bool,
) -> Result<(), Failed> {
    let mut random = Random(76);
    let host = case.qkv(&mut random);
    let [q, k, v] = on(device, &host)?;
    let output = attention.forward(&q, &k, &v)?;
    let d_out = random.tensor(case.dtype, output.out.shape());
    let d_lse = random.tensor(DType::F32, output.lse.shape());
    let mask = output.mask.to(&Device::cpu())?;
    let function = causal {};
    let mask_mod = masked.then_some(&function as &dyn tilewright::MaskMod);
    let tail = attention.tail();
    for with_d_lse in [false, true] {
        let d_lse = with_d_lse.then_some(&d_lse);
        let on_gpu = d_lse.map(|d_lse| d_lse.to(device)).transpose()?;
        let expected = attention_with_tail_backward_f64(
            [&host[0], &host[1], &host[2]],
            (&d_out, d_lse),
            &mask,
            attention.scale(),
            mask_mod,
            tail,
        )?;
        let backward = || attention.backward(&q, &k, &v, &output, &d_out.to(device)?, on_gpu.as_ref());
        let (found, again) = (backward()?, backward()?);
        same("dq, dk", [&found.dq, &found.dk], [&again.dq, &again.dk])?;
        same("dv, dv", [&found.dv, &found.dv], [&again.dv, &again.dv])?;
        for (name, found, expected) in [
            ("dq", &found.dq, &expected.dq),
            ("dk", &found.dk, &expected.dk),
            ("dv", &found.dv, &expected.dv),
        ] {
            let error = relative_error(&found.to_f32_vec()?, expected);
            let bound = if case.dtype == DType::F16 { 1.5e-3 } else { 6e-3 };
            println!("{case:?}, {tail:?}, d_lse {with_d_lse}: {name} {error:.2e}");
            if error.is_nan() || error > bound {
                return Err(format!("{case:?}, {tail:?}, d_lse {with_d_lse}: {name} {error:.2e}").into());
            }
        }
    }
    Ok(())
}

fn gradients(device: &Device) -> Result<(), Failed> {
    let cases = [
        CASE,
        Case { d: 64, value_d: 64, seqs: SeqLens { q: 300, kv: 1000 }, ..CASE },
        Case { dtype: DType::F16, seqs: SeqLens { q: 129, kv: 65 }, ..CASE },
        Case { batch: 2, heads: 4, kv_heads: 2, bshd: true, ..CASE },
        Case { blocks: (64, 128), d: 72, value_d: 72, ..CASE },
        Case { blocks: (128, 128), seqs: SeqLens { q: 700, kv: 1500 }, ..CASE },
        Case { d: 256, value_d: 128, ..CASE },
        Case { d: 192, value_d: 128, ..CASE },
        Case { blocks: (64, 64), d: 96, value_d: 96, scale: Some(-0.1), ..CASE },
        Case { seqs: SeqLens::same(1), ..CASE },
    ];
    for case in cases {
        for tail in case.tails() {
            let attention = case.builder(tail).select(top_k(0.3)).build(device)?;
            compare_gradients(&case, &attention, device, false)?;
        }
    }
    Ok(())
}

fn gradients_beside_a_mask_function(device: &Device) -> Result<(), Failed> {
    for case in [
        Case { seqs: SeqLens::same(900), ..CASE },
        Case { seqs: SeqLens::same(700), d: 64, value_d: 64, ..CASE },
    ] {
        for tail in case.tails() {
            let attention = case.builder(tail).select(top_k(0.3)).mask_mod(causal {}).build(device)?;
            compare_gradients(&case, &attention, device, true)?;
        }
    }
    Ok(())
}
