use super::*;
use crate::attention::{Attend, Backward, Forward, Gradients, Work};
use crate::{BlockSize, Device, HeadDim, mask_mod};
use std::collections::BTreeMap;

/// Values of another width, two query heads a key head; over something and over nothing.
const CASES: [[usize; 5]; 5] =
    [[2, 4, 2, 130, 140], [0, 4, 2, 130, 140], [2, 0, 0, 130, 140], [2, 4, 2, 0, 140], [2, 4, 2, 130, 0]];

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

/// Its masks have lists of full blocks.
fn attention() -> Attention {
    let builder = Attention::builder(HeadDim::D64, DType::Bf16).value_dim(HeadDim::new(24).unwrap());
    builder.blocks(BlockSize::ALL[2]).mask_mod(causal {}).build(&Device::cpu()).unwrap()
}

fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(dtype, shape).unwrap()
}

/// The same tensor with another shape, another dtype, or gaps; what is said of it names what was found and what was
/// needed.
fn spoilt(tensor: &Tensor) -> [(Tensor, [String; 2]); 3] {
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    let longer = [&shape[..shape.len() - 1], &[shape[shape.len() - 1] + 8]].concat();
    let other = if dtype == DType::F32 { DType::I32 } else { DType::F32 };
    let shapes = [format!("shape {longer:?}"), format!("needed {shape:?}")];
    let dtypes = [format!("dtype {other}"), format!("needed {dtype}")];
    let ranks = [format!("shape {:?}", [1usize]), format!("needed {shape:?}")];
    [(zeros(dtype, &longer), shapes), (zeros(other, shape), dtypes), (zeros(dtype, &[1]), ranks)]
}

/// Refuses each spoilt form of the tensor of this name.
fn refuses(name: &str, tensor: &Tensor, check: impl Fn(&Tensor) -> Result<(), Error>) {
    check(tensor).unwrap();
    for (spoilt, texts) in spoilt(tensor) {
        let error = check(&spoilt).expect_err(name).to_string();
        let named = error.starts_with(name) && texts.iter().all(|text| error.contains(text.as_str()));
        assert!(named, "{name}: {error}");
    }
}

/// All that is looked at but the device.
fn check<'a>(plan: &Plan, work: impl Into<Work<'a>>) -> Result<(), Error> {
    check_with(plan, work, &zeros(DType::U8, &[8]))
}

fn check_with<'a>(plan: &Plan, work: impl Into<Work<'a>>, scratch: &Tensor) -> Result<(), Error> {
    let Work(work) = work.into();
    let (q, k, v) = work.qkv();
    let shape = plan.check(q, k, v)?;
    plan.check_others(&work, &shape, scratch)
}

#[test]
fn outputs_that_do_not_fit_are_refused_over_nothing_too() {
    let attention = attention();
    for [batch, heads, kv_heads, seq_q, seq_kv] in CASES {
        let [q, k, v] = [
            zeros(DType::Bf16, &[batch, heads, seq_q, 64]),
            zeros(DType::Bf16, &[batch, kv_heads, seq_kv, 64]),
            zeros(DType::Bf16, &[batch, kv_heads, seq_kv, 24]),
        ];
        let out = zeros(DType::Bf16, &[batch, heads, seq_q, 24]);
        let lse = zeros(DType::F32, &[batch, heads, seq_q]);
        let shapes = Shapes::of(&q, &k).unwrap();
        assert_eq!(shapes, Shapes { batch, heads, kv_heads, seq_q, seq_kv });
        let plan = attention.plan(shapes).unwrap();
        let [q, k, v] = [&q, &k, &v];
        let [rows, columns] = [plan.sizes.q_blocks, plan.sizes.kv_blocks];
        let index = |rows, width| BlockIndex {
            counts: zeros(DType::I32, &[batch, heads, rows]),
            indices: zeros(DType::I32, &[batch, heads, rows, width]),
        };
        let lists = || MaskLists {
            kv: index(rows, columns),
            full_kv: Some(index(rows, columns)),
            q: Some(index(columns, rows)),
            full_q: Some(index(columns, rows)),
            dropped: None,
        };
        let outputs = |out: &Tensor, lse: &Tensor| {
            let (mut out, mut lse) = (out.clone(), lse.clone());
            check(&plan, Forward { q, k, v, out: &mut out, lse: &mut lse })?;
            check(&plan, Attend { q, k, v, lists: &lists(), out: &mut out, lse: &mut lse })
        };
        refuses("out", &out, |out| outputs(out, &lse));
        refuses("lse", &lse, |lse| outputs(&out, lse));
        let like = |tensor: &Tensor| zeros(tensor.dtype(), tensor.shape());
        for (place, (name, of)) in [("dq", q), ("dk", k), ("dv", v)].into_iter().enumerate() {
            refuses(name, of, |gradient| {
                let mut all = [like(q), like(k), like(v)];
                all[place] = like(gradient);
                let [dq, dk, dv] = all;
                let (out, lse, lists, gradients) = (&out, &lse, &lists(), &mut Gradients { dq, dk, dv });
                let (d_out, d_lse) = (out, None);
                check(&plan, Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients })
            });
        }
        type Part = fn(&mut MaskLists) -> &mut BlockIndex;
        let parts: [(&str, Part); 4] = [
            ("kv", |lists| &mut lists.kv),
            ("full_kv", |lists| lists.full_kv.as_mut().unwrap()),
            ("q", |lists| lists.q.as_mut().unwrap()),
            ("full_q", |lists| lists.full_q.as_mut().unwrap()),
        ];
        for (name, part) in parts {
            let BlockIndex { counts, indices } = part(&mut lists()).clone();
            refuses(&format!("{name}_counts"), &counts, |counts| {
                let mut lists = lists();
                part(&mut lists).counts = counts.clone();
                check(&plan, Select { q, k, lists: &mut lists })
            });
            refuses(&format!("{name}_indices"), &indices, |indices| {
                let mut lists = lists();
                part(&mut lists).indices = indices.clone();
                check(&plan, Select { q, k, lists: &mut lists })
            });
        }
        let read = index(rows, columns);
        let unread = |kv: &BlockIndex, full_kv: Option<&BlockIndex>| {
            let (kv, full_kv) = (kv.clone(), full_kv.cloned());
            MaskLists { kv, full_kv, q: None, full_q: None, dropped: None }
                .check_unread(&Device::Cpu, &plan.sizes)
        };
        for spoilt in spoilt(&read.counts).map(|(spoilt, _)| spoilt) {
            let wrong = BlockIndex { counts: spoilt, indices: read.indices.clone() };
            assert!(unread(&read, Some(&wrong)).is_err());
            assert!(unread(&wrong, None).is_err());
        }
        unread(&read, Some(&index(rows, 0))).unwrap();
    }
}

/// The tensors of a call by their names.
type Tensors = BTreeMap<&'static str, Tensor>;

/// A kind of work: what it reads, what it writes, and the check of it over such tensors.
type Kinds = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    fn(&Plan, &Tensors) -> Result<(), Error>,
);

const KINDS: [Kinds; 4] = [
    ("forward", &["q", "k", "v"], &["out", "lse", "scratch"], |plan, all| {
        let (mut out, mut lse) = (all["out"].clone(), all["lse"].clone());
        let [q, k, v] = qkv(all);
        check_with(plan, Forward { q, k, v, out: &mut out, lse: &mut lse }, &all["scratch"])
    }),
    (
        "select",
        &["q", "k"],
        &[
            "kv_counts",
            "kv_indices",
            "full_kv_counts",
            "full_kv_indices",
            "q_counts",
            "q_indices",
            "full_q_counts",
            "full_q_indices",
            "scratch",
        ],
        |plan, all| {
            let [q, k, _] = qkv(all);
            check_with(plan, Select { q, k, lists: &mut lists(all) }, &all["scratch"])
        },
    ),
    (
        "attend",
        &["q", "k", "v", "kv_counts", "kv_indices", "full_kv_counts", "full_kv_indices"],
        &["out", "lse", "scratch"],
        |plan, all| {
            let (mut out, mut lse) = (all["out"].clone(), all["lse"].clone());
            let [q, k, v] = qkv(all);
            let attend = Attend { q, k, v, lists: &lists(all), out: &mut out, lse: &mut lse };
            check_with(plan, attend, &all["scratch"])
        },
    ),
    (
        "backward",
        &[
            "q",
            "k",
            "v",
            "out",
            "lse",
            "d_out",
            "d_lse",
            "kv_counts",
            "kv_indices",
            "full_kv_counts",
            "full_kv_indices",
            "q_counts",
            "q_indices",
            "full_q_counts",
            "full_q_indices",
        ],
        &["dq", "dk", "dv", "scratch"],
        |plan, all| {
            let [q, k, v] = qkv(all);
            let gradients =
                &mut Gradients { dq: all["dq"].clone(), dk: all["dk"].clone(), dv: all["dv"].clone() };
            let (out, lse, d_out, d_lse) = (&all["out"], &all["lse"], &all["d_out"], Some(&all["d_lse"]));
            let backward = Backward { q, k, v, out, lse, d_out, d_lse, lists: &lists(all), gradients };
            check_with(plan, backward, &all["scratch"])
        },
    ),
];

fn qkv(all: &Tensors) -> [&Tensor; 3] {
    ["q", "k", "v"].map(|name| &all[name])
}

fn lists(all: &Tensors) -> MaskLists {
    let index = |counts, indices| BlockIndex { counts: all[counts].clone(), indices: all[indices].clone() };
    MaskLists {
        kv: index("kv_counts", "kv_indices"),
        full_kv: Some(index("full_kv_counts", "full_kv_indices")),
        q: Some(index("q_counts", "q_indices")),
        full_q: Some(index("full_q_counts", "full_q_indices")),
        dropped: None,
    }
}

/// A plan, and tensors that every kind of work over it takes.
fn call() -> (Plan, Tensors) {
    let (batch, heads, kv_heads, seq_q, seq_kv) = (2, 4, 2, 130, 140);
    let plan = attention().plan(Shapes { batch, heads, kv_heads, seq_q, seq_kv }).unwrap();
    let (rows, columns) = (plan.sizes.q_blocks, plan.sizes.kv_blocks);
    let mut all = Tensors::new();
    let mut add = |names: &[&'static str], dtype, shape: &[usize]| {
        all.extend(names.iter().map(|&name| (name, zeros(dtype, shape))));
    };
    add(&["q", "dq"], DType::Bf16, &[batch, heads, seq_q, 64]);
    add(&["k", "dk"], DType::Bf16, &[batch, kv_heads, seq_kv, 64]);
    add(&["v", "dv"], DType::Bf16, &[batch, kv_heads, seq_kv, 24]);
    add(&["out", "d_out"], DType::Bf16, &[batch, heads, seq_q, 24]);
    add(&["lse", "d_lse"], DType::F32, &[batch, heads, seq_q]);
    add(&["kv_counts", "full_kv_counts"], DType::I32, &[batch, heads, rows]);
    add(&["kv_indices", "full_kv_indices"], DType::I32, &[batch, heads, rows, columns]);
    add(&["q_counts", "full_q_counts"], DType::I32, &[batch, heads, columns]);
    add(&["q_indices", "full_q_indices"], DType::I32, &[batch, heads, columns, rows]);
    add(&["scratch"], DType::U8, &[64]);
    (plan, all)
}

/// Of any two tensors that share their memory none is written.
#[test]
fn what_is_written_shares_its_memory_with_nothing() {
    let (plan, all) = call();
    for (kind, reads, writes, check) in KINDS {
        check(&plan, &all).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let names: Vec<&str> = reads.iter().chain(writes).copied().collect();
        let mut refused = 0;
        for (place, one) in names.iter().enumerate() {
            for other in &names[place + 1..] {
                // Scratch is bytes of any dtype.
                let dtype = if *one == "scratch" { all[other].dtype() } else { all[one].dtype() };
                if *other != "scratch" && all[other].dtype() != dtype {
                    continue;
                }
                let room = zeros(dtype, &[2 * 4 * 140 * 64]);
                let mut shared = all.clone();
                for name in [one, other] {
                    let shape = if *name == "scratch" { &[64][..] } else { all[name].shape() };
                    let strides = Tensor::contiguous_strides(shape);
                    shared.insert(name, room.with_strides(shape, &strides).unwrap());
                }
                let is_written = [one, other].into_iter().any(|name| writes.contains(name));
                match check(&plan, &shared) {
                    Err(Error::Aliased { what, with }) if is_written => {
                        assert!(
                            [what, with].iter().all(|name| [one, other].contains(&name)),
                            "{what}, {with}"
                        );
                        refused += 1;
                    }
                    Ok(()) if !is_written => {}
                    found => panic!("{kind}, {one} and {other}: {found:?}"),
                }
            }
        }
        assert!(refused >= writes.len(), "{kind}: {refused}");
    }
}

#[test]
fn what_is_written_has_no_gaps() {
    let (plan, all) = call();
    for (kind, _, writes, check) in KINDS {
        for &name in writes.iter().filter(|name| **name != "scratch") {
            let (shape, dtype) = (all[name].shape(), all[name].dtype());
            let mut strides = Tensor::contiguous_strides(&[shape, &[2]].concat());
            strides.truncate(shape.len());
            let wide = zeros(dtype, &[2 * shape.iter().product::<usize>()]);
            let gaps = wide.with_strides(shape, &strides).unwrap();
            let found = check(&plan, &Tensors::from_iter(all.clone().into_iter().chain([(name, gaps)])));
            assert!(
                matches!(found, Err(Error::Gaps { what, .. }) if what == name),
                "{kind}, {name}: {found:?}"
            );
        }
    }
}

#[test]
fn scratch_is_where_the_attention_runs() {
    let (plan, all) = call();
    // SAFETY: nothing looks at the elements.
    let elsewhere = unsafe { Tensor::from_device_pointer(1, 4096, DType::U8, &[64], &[1]) }.unwrap();
    for (kind, _, _, check) in KINDS {
        let moved = Tensors::from_iter(all.clone().into_iter().chain([("scratch", elsewhere.clone())]));
        let error = check(&plan, &moved).expect_err(kind).to_string();
        assert!(error.starts_with("scratch") && error.contains("cuda:1"), "{kind}: {error}");
    }
}

#[test]
fn lists_are_of_the_attentions_kind() {
    let (plan, all) = call();
    let unmasked =
        Attention::builder(HeadDim::D64, DType::Bf16).blocks(BlockSize::ALL[2]).build(&Device::cpu());
    let unmasked = unmasked.unwrap().plan(plan.shapes()).unwrap();
    let [q, k, _] = qkv(&all);
    let kinds = |full_kv: bool, by_key: bool, full_q: bool| {
        let MaskLists { kv, full_kv: kept, q: transposed, full_q: full_transposed, dropped } = lists(&all);
        let (q, full) = (transposed.filter(|_| by_key), full_transposed.filter(|_| full_q));
        MaskLists { kv, full_kv: kept.filter(|_| full_kv), q, full_q: full, dropped }
    };
    for (full_kv, by_key, full_q) in [
        (true, true, true),
        (true, true, false),
        (true, false, false),
        (true, false, true),
        (false, true, true),
        (false, true, false),
        (false, false, false),
        (false, false, true),
    ] {
        for (plan, split) in [(&plan, true), (&unmasked, false)] {
            let mut lists = kinds(full_kv, by_key, full_q);
            let found = check(plan, Select { q, k, lists: &mut lists });
            let fits = full_kv == split && full_q == (split && by_key);
            match found {
                Ok(()) => assert!(fits, "{full_kv} {by_key} {full_q} {split}"),
                Err(error) => assert!(matches!(error, Error::Lists { .. }) && !fits, "{error}"),
            }
        }
    }
}

#[test]
fn a_backward_reads_tensors_of_its_forward() {
    let (plan, all) = call();
    let (_, _, _, check) = KINDS[3];
    for name in ["out", "lse", "d_out", "d_lse"] {
        for (wrong, _) in spoilt(&all[name]) {
            let spoilt = Tensors::from_iter(all.clone().into_iter().chain([(name, wrong)]));
            let error = check(&plan, &spoilt).expect_err(name).to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }
    for name in ["kv_indices", "full_kv_indices"] {
        let flat = Tensors::from_iter(all.clone().into_iter().chain([(name, zeros(DType::I32, &[1, 2, 3]))]));
        let error = check(&plan, &flat).expect_err(name).to_string();
        assert!(error.starts_with(name) && error.contains("four dimensions"), "{error}");
    }
}
