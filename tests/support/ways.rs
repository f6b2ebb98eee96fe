//! Every way to compute one attention, over one table of cases: on the CPU in `tests/ways.rs`, on a GPU in `tests/gpu/ways.rs`.
//!
//! What `forward` and `backward` give is compared with f64; every other way gives the same bits.

use super::{Case, Random, block_means};
use std::error::Error;
use tilewright::attention::{
    Attend, AttentionBuilder, Backward, Forward, Inputs, MaskLists, Plan, Select, Shapes, Step,
};
use tilewright::reference::{attention_backward_f64, attention_f64, largest_difference, relative_error};
use tilewright::{
    Attention, BlockIndex, BlockMask, BlockSize, DType, Device, Gradients, HeadDim, MaskMod, Output,
    ScoreMod, Scores, Selection, SeqLens, Tensor, mask_mod, score_mod, top_k, top_p,
};

pub type Failure = Box<dyn Error + Send + Sync>;

/// Rows of every seventh query are empty, in blocks that are kept all the same; the last queries see all keys, and the first none from
/// 128 on: blocks of each class. Of a block that is kept in part each key is: means of whole blocks select the same.
#[mask_mod]
fn holes(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= 128 || q % 7 != 3 && (kv < 128 || q >= 64)
}

#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

/// What is built once, and called with tensors of many sizes.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub dtype: DType,
    pub d: usize,
    pub value_d: usize,
    pub blocks: (usize, usize),
    pub selects: bool,
    pub score_mod: bool,
    pub mask_mod: bool,
}

impl Rule {
    fn selection(&self) -> Option<Selection> {
        let scores = if self.d == 24 { Scores::Keys } else { Scores::Means };
        self.selects.then(|| (top_k(0.4) | top_p(0.3)).by(scores))
    }

    pub fn build(&self, device: &Device) -> Result<Attention, Failure> {
        let blocks = tilewright::BlockSize::new(self.blocks.0, self.blocks.1)?;
        let mut builder: AttentionBuilder = Attention::builder(HeadDim::new(self.d)?, self.dtype)
            .value_dim(HeadDim::new(self.value_d)?)
            .blocks(blocks);
        if let Some(selection) = self.selection() {
            builder = builder.select(selection);
        }
        if self.score_mod {
            builder = builder.score_mod(softcap { cap: 3.0 });
        }
        if self.mask_mod {
            builder = builder.mask_mod(holes {});
        }
        Ok(builder.build(device)?)
    }
}

/// Every block size with values as wide, wider and narrower, and each time with another of the four choices that there are beside.
pub fn rules() -> impl Iterator<Item = Rule> {
    let blocks = [(128, 64), (128, 128), (64, 64), (64, 128)];
    let dims = [(16, 16), (24, 72), (72, 16)];
    // Whether it selects, and has a score function and a mask function.
    let choices = [[true, false, false], [true, true, true], [false, false, true], [false, true, false]];
    (0..blocks.len() * dims.len()).map(move |i| {
        let (block, dim) = (i % blocks.len(), i % dims.len());
        let [selects, score_mod, mask_mod] = choices[(block + i / blocks.len()) % choices.len()];
        Rule {
            dtype: [DType::Bf16, DType::F16][(block + dim) % 2],
            d: dims[dim].0,
            value_d: dims[dim].1,
            blocks: blocks[block],
            selects,
            score_mod,
            mask_mod,
        }
    })
}

/// Heads that share key heads and heads that do not; and of each dimension none.
pub fn cases(rule: &Rule) -> Vec<Case> {
    let &Rule { dtype, d, value_d, blocks, .. } = rule;
    let full = Case {
        dtype,
        batch: 1,
        heads: 2,
        kv_heads: 2,
        seq_q: 130,
        seq_kv: 140,
        d,
        value_d: Some(value_d),
        blocks,
    };
    let grouped = Case { batch: 2, kv_heads: 1, ..full };
    vec![
        full,
        grouped,
        Case { batch: 0, ..grouped },
        Case { heads: 0, kv_heads: 0, ..full },
        Case { heads: 0, ..full },
        Case { seq_q: 0, ..grouped },
        Case { seq_kv: 0, ..grouped },
        Case { seq_q: 0, seq_kv: 0, ..full },
    ]
}

/// One call: its tensors on the device, and what `forward` and `backward` gave.
pub struct Call<'a> {
    pub case: Case,
    pub rule: &'a Rule,
    pub device: &'a Device,
    pub attention: &'a Attention,
    /// The attention's for tensors of the case's shapes.
    pub plan: Plan,
    pub qkv: [Tensor; 3],
    pub d_out: Tensor,
    pub d_lse: Tensor,
    pub forward: Output,
}

/// What a way gave: names, shapes and bits.
pub type Found = Vec<(&'static str, Vec<usize>, Vec<u32>)>;

/// A way to call.
pub struct Way {
    pub name: &'static str,
    /// Whether it writes to memory of the caller's, which an attention on the CPU refuses.
    pub on_gpu_alone: bool,
    pub run: fn(&Call<'_>) -> Result<Found, Failure>,
}

const fn way(name: &'static str, run: fn(&Call<'_>) -> Result<Found, Failure>) -> Way {
    Way { name, on_gpu_alone: false, run }
}

const fn in_callers_memory(name: &'static str, run: fn(&Call<'_>) -> Result<Found, Failure>) -> Way {
    Way { name, on_gpu_alone: true, run }
}

pub const WAYS: &[Way] = &[
    way("forward, again", |call| {
        let [q, k, v] = &call.qkv;
        of_output(&call.attention.forward(q, k, v)?)
    }),
    way("mask, then attend_with", |call| {
        let [q, k, v] = &call.qkv;
        let mask = call.attention.mask(q, k)?;
        let (out, lse) = call.attention.attend_with(q, k, v, &mask)?;
        of_output(&Output { out, lse, mask })
    }),
    way("mask_of_means, then attend_with", |call| {
        let [q, k, v] = &call.qkv;
        if call.rule.selection().is_some_and(|selection| selection.scores() == Scores::Keys) {
            // Means have no keys to score by: the call says so, which is tried elsewhere.
            return of_output(&call.forward);
        }
        let means = |x: &Tensor, block| block_means(&x.to(&Device::cpu())?, block).to(call.device);
        let (q_mean, k_mean) = (means(q, call.case.blocks.0)?, means(k, call.case.blocks.1)?);
        let mask = call.attention.mask_of_means(
            &q_mean,
            &k_mean,
            SeqLens { q: call.case.seq_q, kv: call.case.seq_kv },
        )?;
        let (out, lse) = call.attention.attend_with(q, k, v, &mask)?;
        of_output(&Output { out, lse, mask })
    }),
    way("a plan's forward", |call| of_output(&call.plan.forward(call.inputs())?)),
    way("a plan's forward_into, twice", |call| {
        let mut workspace = call.plan.workspace()?;
        call.plan.forward_into(call.inputs(), &mut workspace)?;
        of_output(call.plan.forward_into(call.inputs(), &mut workspace)?)
    }),
    way("plans made anew, into one workspace", |call| {
        let plan = || call.attention.plan(call.plan.shapes());
        let mut workspace = plan()?.workspace()?;
        plan()?.forward_into(call.inputs(), &mut workspace)?;
        of_output(plan()?.forward_into(call.inputs(), &mut workspace)?)
    }),
    way("with_parameters", |call| {
        let [q, k, v] = &call.qkv;
        of_output(&call.attention.with_parameters(call.rule.selection(), None)?.forward(q, k, v)?)
    }),
    way("tensors laid out [batch, seq, heads, d]", |call| {
        let mut views = Vec::new();
        for tensor in &call.qkv {
            let swapped = tensor.to(&Device::cpu())?.permute(&[0, 2, 1, 3])?;
            let copy = super::tensor(swapped.dtype(), &swapped.to_f32_vec()?, swapped.shape());
            views.push(copy.permute(&[0, 2, 1, 3])?.to(call.device)?);
        }
        of_output(&call.attention.forward(&views[0], &views[1], &views[2])?)
    }),
    way("backward, again", |call| {
        let [q, k, v] = &call.qkv;
        of_gradients(&call.attention.backward(q, k, v, &call.forward, &call.d_out, Some(&call.d_lse))?)
    }),
    way("backward of attend_with", |call| {
        let [q, k, v] = &call.qkv;
        let mask = call.forward.mask.clone();
        let (out, lse) = call.attention.attend_with(q, k, v, &mask)?;
        let output = Output { out, lse, mask };
        of_gradients(&call.attention.backward(q, k, v, &output, &call.d_out, Some(&call.d_lse))?)
    }),
    in_callers_memory("run(Forward)", |call| {
        let Inputs { q, k, v } = call.inputs();
        let [mut out, mut lse] = call.outputs()?;
        let mut scratch = call.scratch(Step::Forward)?;
        call.plan.run(Forward { q, k, v, out: &mut out, lse: &mut lse }, &mut scratch)?;
        Ok(vec![of("out", &out)?, of("lse", &lse)?])
    }),
    in_callers_memory("run(Select), then run(Attend)", |call| {
        let Inputs { q, k, v } = call.inputs();
        let mut lists = call.lists(true)?;
        let mut scratch = call.scratch(Step::Select { by_key: true })?;
        call.plan.run(Select { q, k, lists: &mut lists }, &mut scratch)?;
        let [mut out, mut lse] = call.outputs()?;
        let mut scratch = call.scratch(Step::Attend(&lists))?;
        let attend = Attend { q, k, v, lists: &lists, out: &mut out, lse: &mut lse };
        call.plan.run(attend, &mut scratch)?;
        let mut found = of_lists_by_query(call, &lists)?;
        for (name, index) in [("q", lists.q.as_ref()), ("full_q", lists.full_q.as_ref())] {
            found.extend(index.map(|index| of_counts(name, index)).transpose()?);
        }
        found.extend([of("out", &out)?, of("lse", &lse)?]);
        Ok(found)
    }),
    in_callers_memory("run(Select) without lists by key", |call| {
        let Inputs { q, k, .. } = call.inputs();
        let mut lists = call.lists(false)?;
        let mut scratch = call.scratch(Step::Select { by_key: false })?;
        call.plan.run(Select { q, k, lists: &mut lists }, &mut scratch)?;
        of_lists_by_query(call, &lists)
    }),
    in_callers_memory("run(Backward) over lists by query", |call| {
        call.backward_in(&MaskLists { q: None, full_q: None, ..MaskLists::from(&call.forward.mask) })
    }),
    in_callers_memory("run(Backward) over all lists", |call| {
        call.backward_in(&MaskLists::from(&call.forward.mask))
    }),
];

/// Runs every way over every case on the device, and those that only this device has.
pub fn check_all(device: &Device, more: &[Way]) -> Result<(), Failure> {
    for rule in rules() {
        let attention = rule.build(device)?;
        for case in cases(&rule) {
            let at = |error: Failure| -> Failure { format!("{rule:?}, {case:?}: {error}").into() };
            let (call, expected) = Call::new(&rule, case, device, &attention).map_err(at)?;
            for way in WAYS.iter().chain(more) {
                let at = |error: Failure| at(format!("{}: {error}", way.name).into());
                check(way, &call, &expected).map_err(at)?;
            }
        }
    }
    Ok(())
}

fn check(way: &Way, call: &Call<'_>, expected: &Found) -> Result<(), Failure> {
    let found = (way.run)(call);
    if way.on_gpu_alone && matches!(call.device, Device::Cpu) {
        return match found {
            Err(error) if is_not_on_gpu(&error) => Ok(()),
            Err(error) => Err(format!("{error} instead of Error::NotOnGpu").into()),
            Ok(_) => Err("it ran on the CPU".into()),
        };
    }
    for (name, shape, bits) in found? {
        let Some((_, needed, expected)) = expected.iter().find(|(known, ..)| *known == name) else {
            return Err(format!("`{name}` is not of this call").into());
        };
        if shape != *needed {
            return Err(format!("{name} has shape {shape:?}, needed {needed:?}").into());
        }
        if let Some(at) = (0..bits.len()).find(|&i| bits[i] != expected[i]) {
            let [found, needed] = [bits[at], expected[at]].map(f32::from_bits);
            return Err(format!("{name} differs first at {at}: {found} instead of {needed}").into());
        }
    }
    Ok(())
}

fn is_not_on_gpu(error: &Failure) -> bool {
    matches!(error.downcast_ref(), Some(tilewright::Error::NotOnGpu { .. }))
}

impl<'a> Call<'a> {
    /// The call with what it gives, once that has been compared with f64.
    fn new(
        rule: &'a Rule,
        case: Case,
        device: &'a Device,
        attention: &'a Attention,
    ) -> Result<(Self, Found), Failure> {
        let mut random = Random(7);
        let host = case.qkv(&mut random);
        let d_out = random.tensor(case.dtype, &case.out());
        let d_lse = random.tensor(DType::F32, &case.out()[..3]);
        let [q, k, v] = [host[0].to(device)?, host[1].to(device)?, host[2].to(device)?];
        let forward = attention.forward(&q, &k, &v)?;
        let (d_out_there, d_lse_there) = (d_out.to(device)?, d_lse.to(device)?);
        let gradients = attention.backward(&q, &k, &v, &forward, &d_out_there, Some(&d_lse_there))?;

        let mask = forward.mask.to(&Device::cpu())?;
        let functions: (Option<&dyn ScoreMod>, Option<&dyn MaskMod>) =
            (rule.score_mod.then_some(&softcap { cap: 3.0 }), rule.mask_mod.then_some(&holes {}));
        let [q64, k64, v64] = &host;
        let exact = attention_f64(q64, k64, v64, &mask, attention.scale(), functions.0, functions.1)?;
        let upstream = (&d_out, Some(&d_lse));
        let scale = attention.scale();
        let slopes =
            attention_backward_f64([q64, k64, v64], upstream, &mask, scale, functions.0, functions.1)?;
        let half = case.dtype == DType::F16;
        let (out_bound, gradient_bound) = if half { (6e-4, 1e-3) } else { (4e-3, 6e-3) };
        for (name, error, bound) in [
            ("out", relative_error(&forward.out.to_f32_vec()?, &exact.out), out_bound),
            ("lse", largest_difference(&forward.lse.to_f32_vec()?, &exact.lse), 1e-3),
            ("dq", relative_error(&gradients.dq.to_f32_vec()?, &slopes.dq), gradient_bound),
            ("dk", relative_error(&gradients.dk.to_f32_vec()?, &slopes.dk), gradient_bound),
            ("dv", relative_error(&gradients.dv.to_f32_vec()?, &slopes.dv), gradient_bound),
        ] {
            // Written so that a NaN fails.
            let close = error <= bound;
            if !close {
                return Err(format!("{name} is off by {error:.1e} from f64, bound {bound:.0e}").into());
            }
        }
        let mut expected = of_output(&forward)?;
        expected.extend(of_gradients(&gradients)?);
        expected.push(of_counts("q", forward.mask.q())?);
        expected.extend(forward.mask.full_q().map(|index| of_counts("full_q", index)).transpose()?);
        for (name, shape) in [
            ("out", case.out().to_vec()),
            ("lse", case.out()[..3].to_vec()),
            ("blocks", case.grid().to_vec()),
            ("dq", host[0].shape().to_vec()),
            ("dk", host[1].shape().to_vec()),
            ("dv", host[2].shape().to_vec()),
        ] {
            let found = expected.iter().find(|(known, ..)| *known == name).map(|(_, shape, _)| shape);
            if found != Some(&shape) {
                return Err(format!("{name} has shape {found:?}, needed {shape:?}").into());
            }
        }
        let plan = attention.plan(Shapes::of(&q, &k)?)?;
        let (qkv, d_out, d_lse) = ([q, k, v], d_out_there, d_lse_there);
        Ok((Call { case, rule, device, attention, plan, qkv, d_out, d_lse, forward }, expected))
    }

    pub fn inputs(&self) -> Inputs<'_> {
        let [q, k, v] = &self.qkv;
        Inputs { q, k, v }
    }

    /// `out` and `lse` that hold nothing of use.
    pub fn outputs(&self) -> Result<[Tensor; 2], Failure> {
        let out = self.case.out();
        Ok([self.poisoned(self.case.dtype, &out)?, self.poisoned(DType::F32, &out[..3])?])
    }

    pub fn scratch(&self, step: Step<'_>) -> Result<Tensor, Failure> {
        self.poisoned(DType::U8, &[self.plan.scratch_bytes(step)?])
    }

    fn poisoned(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, Failure> {
        let mut tensor = Tensor::uninit(self.device, dtype, shape)?;
        if tensor.elements() > 0 {
            // 0xFF bytes are NaN in every float type.
            tensor.fill_bytes(0xFF)?;
        }
        Ok(tensor)
    }

    fn lists(&self, by_key: bool) -> Result<MaskLists, Failure> {
        let [batch, heads, rows, columns] = self.case.grid();
        let index = |wanted: bool, rows, width| -> Result<Option<BlockIndex>, Failure> {
            let made = || {
                let counts = self.poisoned(DType::I32, &[batch, heads, rows])?;
                let indices = self.poisoned(DType::I32, &[batch, heads, rows, width])?;
                Ok::<_, Failure>(BlockIndex { counts, indices })
            };
            wanted.then(made).transpose()
        };
        let split = self.rule.mask_mod;
        Ok(MaskLists {
            kv: index(true, rows, columns)?.expect("it is wanted"),
            full_kv: index(split, rows, columns)?,
            q: index(by_key, columns, rows)?,
            full_q: index(by_key && split, columns, rows)?,
            dropped: None,
        })
    }

    fn backward_in(&self, lists: &MaskLists) -> Result<Found, Failure> {
        let Inputs { q, k, v } = self.inputs();
        let like = |tensor: &Tensor| self.poisoned(tensor.dtype(), tensor.shape());
        let mut gradients = Gradients { dq: like(q)?, dk: like(k)?, dv: like(v)? };
        let mut scratch = self.scratch(Step::Backward(lists))?;
        let Output { out, lse, .. } = &self.forward;
        let (d_out, d_lse) = (&self.d_out, Some(&self.d_lse));
        let backward = Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients: &mut gradients };
        self.plan.run(backward, &mut scratch)?;
        of_gradients(&gradients)
    }
}

pub fn of_output(output: &Output) -> Result<Found, Failure> {
    Ok(vec![of("out", &output.out)?, of("lse", &output.lse)?, of_mask(&output.mask)?])
}

fn of_gradients(gradients: &Gradients) -> Result<Found, Failure> {
    Ok(vec![of("dq", &gradients.dq)?, of("dk", &gradients.dk)?, of("dv", &gradients.dv)?])
}

pub fn of(name: &'static str, tensor: &Tensor) -> Result<(&'static str, Vec<usize>, Vec<u32>), Failure> {
    let bits = tensor.to_f32_vec()?.into_iter().map(f32::to_bits).collect();
    Ok((name, tensor.shape().to_vec(), bits))
}

fn of_mask(mask: &BlockMask) -> Result<(&'static str, Vec<usize>, Vec<u32>), Failure> {
    let dense = mask.to_dense()?;
    Ok(("blocks", dense.shape.to_vec(), dense.classes.into_iter().map(u32::from).collect()))
}

fn of_counts(
    name: &'static str,
    index: &BlockIndex,
) -> Result<(&'static str, Vec<usize>, Vec<u32>), Failure> {
    let counts = index.counts.to_vec::<i32>()?;
    Ok((name, index.counts.shape().to_vec(), counts.into_iter().map(i32::cast_unsigned).collect()))
}

/// The blocks of lists, once they are known to be consistent.
fn of_lists_by_query(call: &Call<'_>, lists: &MaskLists) -> Result<Found, Failure> {
    let cpu = Device::cpu();
    let host = |index: &BlockIndex| -> Result<BlockIndex, Failure> {
        Ok(BlockIndex { counts: index.counts.to(&cpu)?, indices: index.indices.to(&cpu)? })
    };
    let BlockIndex { counts, indices } = host(&lists.kv)?;
    let full = lists.full_kv.as_ref().map(host).transpose()?;
    let Case { blocks, seq_q, seq_kv, .. } = call.case;
    let (blocks, seqs) = (BlockSize::new(blocks.0, blocks.1)?, SeqLens { q: seq_q, kv: seq_kv });
    Ok(vec![of_mask(&BlockMask::from_kv_indices(counts, indices, full, blocks, seqs)?)?])
}
