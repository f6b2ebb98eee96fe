//! What a plan says of itself is about its own shapes, whatever other plans of the attention have done.

use super::Test;
use super::support::Random;
use libtest_mimic::Failed;
use tilewright::attention::{Backward, Forward, Inputs, MaskLists, Plan, Select, Shapes, Step};
use tilewright::services::Policy;
use tilewright::{
    Attention, BlockMask, BlockSize, DType, Device, Error, Gradients, HeadDim, SeqLens, Tensor, mask_mod,
    top_k, top_p,
};

pub const TESTS: &[Test] = &[
    ("plans::kernels_and_warmth_are_their_own", own_kernels),
    ("plans::reasons_are_their_own", own_reasons),
    ("plans::each_step_is_warm_by_itself", own_steps),
    ("plans::two_on_two_threads", two_threads),
    ("plans::tensors_of_other_shapes_are_refused", other_shapes),
];

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

fn build(device: &Device, policy: Policy, masked: bool) -> Result<Attention, Error> {
    let builder =
        Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.1) | top_p(0.2)).policy(policy);
    if masked { builder.mask_mod(causal {}).build(device) } else { builder.build(device) }
}

fn inputs(device: &Device, [heads, seq]: [usize; 2], seed: u64) -> Result<[Tensor; 3], Error> {
    let mut random = Random(seed);
    let mut tensor = || random.tensor(DType::Bf16, &[1, heads, seq, 64]).to(device);
    Ok([tensor()?, tensor()?, tensor()?])
}

fn plan(attention: &Attention, [q, k, _]: &[Tensor; 3]) -> Result<Plan, Error> {
    attention.plan(Shapes::of(q, k)?)
}

fn of([q, k, v]: &[Tensor; 3]) -> Inputs<'_> {
    Inputs { q, k, v }
}

fn names(plan: &Plan) -> Vec<String> {
    plan.kernels().iter().map(|kernel| kernel.variant().name.clone()).collect()
}

/// Sizes of two buckets. The longer rows have another kernel that selects.
const SHORT: [usize; 2] = [4, 700];
const LONG: [usize; 2] = [2, 64 * 500];

fn own_kernels(device: &Device) -> Result<(), Failed> {
    let attention = build(device, Policy::FirstValid, false)?;
    let (short, long) = (inputs(device, SHORT, 11)?, inputs(device, LONG, 12)?);
    let (of_short, of_long) = (plan(&attention, &short)?, plan(&attention, &long)?);
    let is_cold = |plan: &Plan| plan.kernels().is_empty() && !plan.is_warm(Step::Forward);
    if !is_cold(&of_short) || !is_cold(&of_long) {
        return Err("a kernel is chosen before any call".into());
    }
    of_short.forward(of(&short))?;
    if is_cold(&of_short) || !of_short.is_warm(Step::Forward) || !is_cold(&of_long) {
        return Err("a call of one plan is one of the other".into());
    }
    let expected = names(&of_short);
    of_long.forward(of(&long))?;
    let (found, others) = (names(&of_short), names(&of_long));
    if found != expected || others == expected || !of_long.is_warm(Step::Forward) {
        return Err(format!("{found:?} instead of {expected:?}, and {others:?} of longer rows").into());
    }
    // A plan made later for the same shapes, on a stream too, is as warm.
    let again = plan(&attention, &short)?;
    if names(&again) != expected || !again.is_warm(Step::Forward) {
        return Err(format!("{:?} of a plan made again", names(&again)).into());
    }
    for name in ["pool", "rank", "transpose", "forward"] {
        if expected.iter().filter(|known| known.starts_with(name)).count() != 1 {
            return Err(format!("no single `{name}` in {expected:?}").into());
        }
    }
    Ok(())
}

/// The records are those of the plan's sizes, and of the mask's density.
fn own_reasons(device: &Device) -> Result<(), Failed> {
    let attention = build(device, Policy::Tune, false)?;
    let (first, second) = (inputs(device, [3, 900], 13)?, inputs(device, [3, 2900], 14)?);
    let plans = [plan(&attention, &first)?, plan(&attention, &second)?];
    for (plan, inputs) in plans.iter().zip([&first, &second]) {
        plan.forward(of(inputs))?;
    }
    let full = BlockMask::full(1, 1, BlockSize::default(), SeqLens::same(900))?.to(device)?;
    let [q, k, v] = &first;
    let dense = plans[0].for_mask(&full);
    if dense.is_warm(Step::Forward) {
        return Err("warm for a density that nobody has met".into());
    }
    attention.attend_with(q, k, v, &full)?;
    let buckets = |plan: &Plan, kernel: &str| {
        let choices = plan.choices().into_iter();
        let of_kernel = choices.filter(|choice| choice.variant.candidate.spec.kernel() == kernel);
        of_kernel.filter_map(|choice| Some(choice.record?.key().bucket)).collect::<Vec<_>>()
    };
    let [one, other] = [&plans[0], &plans[1]].map(|plan| buckets(plan, "forward"));
    let of_dense = buckets(&dense, "forward");
    match (&one[..], &other[..], &of_dense[..]) {
        ([one], [other], [dense])
            if one.seq_q < other.seq_q && one.density < dense.density && one.seq_q == dense.seq_q =>
        {
            Ok(())
        }
        _ => Err(format!("records of {one:?}, {other:?} and {of_dense:?}").into()),
    }
}

fn own_steps(device: &Device) -> Result<(), Failed> {
    let attention = build(device, Policy::FirstValid, true)?;
    let inputs = inputs(device, [2, 600], 15)?;
    let (plan, Inputs { q, k, v }) = (plan(&attention, &inputs)?, of(&inputs));
    let like = |tensor: &Tensor| Tensor::uninit(device, tensor.dtype(), tensor.shape());
    let scratch = |step| Tensor::uninit(device, DType::U8, &[plan.scratch_bytes(step)?]);
    let (mut out, mut lse) = (like(q)?, Tensor::uninit(device, DType::F32, &q.shape()[..3])?);
    let forward = Forward { q, k, v, out: &mut out, lse: &mut lse };
    plan.run(forward, &mut scratch(Step::Forward)?)?;
    // Lists by query alone were made, and nothing by key.
    let expect = |warm: [bool; 5], lists: [&MaskLists; 2], when: &str| -> Result<(), Failed> {
        let steps = [
            Step::Forward,
            Step::Select { by_key: false },
            Step::Select { by_key: true },
            Step::Backward(lists[0]),
            Step::Backward(lists[1]),
        ];
        let found = steps.map(|step| plan.is_warm(step));
        if found == warm { Ok(()) } else { Err(format!("{when}: warm {found:?}").into()) }
    };
    let other = build(device, Policy::FirstValid, true)?;
    let all = MaskLists::from(&other.mask(q, k)?);
    let by_query = MaskLists { full_kv: all.full_kv.clone(), ..MaskLists::new(all.kv.clone()) };
    let lists = [&all, &by_query];
    expect([true, true, false, false, false], lists, "after a forward")?;
    let mut made = MaskLists::from(&other.mask(q, k)?);
    plan.run(Select { q, k, lists: &mut made }, &mut scratch(Step::Select { by_key: true })?)?;
    expect([true, true, true, false, false], lists, "after a selection with lists by key")?;
    for (lists, warm, when) in [
        (&all, [true, true, true, true, false], "after a backward over all lists"),
        (&by_query, [true; 5], "after a backward over lists by query"),
    ] {
        let gradients = &mut Gradients { dq: like(q)?, dk: like(k)?, dv: like(v)? };
        let (out, lse, d_out, d_lse) = (&out, &lse, q, None);
        let work = &mut scratch(Step::Backward(lists))?;
        plan.run(Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients }, work)?;
        expect(warm, [&all, &by_query], when)?;
    }
    Ok(())
}

/// Threads with a plan each choose kernels and run at the same time, and a third shares the plan of the first.
fn two_threads(device: &Device) -> Result<(), Failed> {
    let expected = |sizes, seed| -> Result<Vec<f32>, Error> {
        let [q, k, v] = inputs(device, sizes, seed)?;
        build(device, Policy::FirstValid, false)?.forward(&q, &k, &v)?.out.to_f32_vec()
    };
    let (attention, short, long) =
        (build(device, Policy::FirstValid, false)?, inputs(device, SHORT, 16)?, inputs(device, LONG, 17)?);
    let expected = [expected(SHORT, 16)?, expected(LONG, 17)?];
    let plans = [plan(&attention, &short)?, plan(&attention, &long)?];
    let run = |plan: &Plan, inputs: &[Tensor; 3], expected: &[f32]| -> Result<(), String> {
        let found = || -> Result<bool, Error> {
            let mut workspace = plan.workspace()?;
            for _ in 0..10 {
                if plan.forward_into(of(inputs), &mut workspace)?.out.to_f32_vec()? != expected {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match found() {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("another result beside another thread, of {}", plan.shapes())),
            Err(error) => Err(error.to_string()),
        }
    };
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| run(&plans[0], &short, &expected[0])),
            scope.spawn(|| run(&plans[1], &long, &expected[1])),
            scope.spawn(|| run(&plans[0], &short, &expected[0])),
        ];
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    Ok(())
}

fn other_shapes(device: &Device) -> Result<(), Failed> {
    let attention = build(device, Policy::FirstValid, false)?;
    let (expected, other) = (inputs(device, [4, 300], 18)?, inputs(device, [4, 301], 19)?);
    let plan = plan(&attention, &expected)?;
    let mut scratch = Tensor::uninit(device, DType::U8, &[plan.scratch_bytes(Step::Forward)?])?;
    let Inputs { q, k, v } = of(&other);
    let (mut out, mut lse) =
        (Tensor::uninit(device, q.dtype(), q.shape())?, Tensor::uninit(device, DType::F32, &q.shape()[..3])?);
    let forward = Forward { q, k, v, out: &mut out, lse: &mut lse };
    for found in [
        plan.run(forward, &mut scratch),
        plan.forward(of(&other)).map(drop),
        plan.forward_into(of(&other), &mut plan.workspace()?).map(drop),
    ] {
        match found {
            Err(Error::Plan { .. }) => {}
            other => return Err(format!("{other:?} instead of Error::Plan").into()),
        }
    }
    Ok(())
}
