//! The public API on the CPU: what it refuses and what it makes of nothing.

mod support;

use support::{Random, blocks};
use tilewright::TensorError;
use tilewright::attention::{Forward, Inputs, MaskLists, Plan, Shapes, Step, Workspace};
use tilewright::{
    Attention, BlockMask, BlockSize, DType, Device, Error, HeadDim, Output, SeqLens, Tensor, top_k, top_p,
};

fn attention() -> Attention {
    Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.5)).build(&Device::cpu()).unwrap()
}

fn plan_of(attention: &Attention, q: &Tensor, k: &Tensor) -> Plan {
    attention.plan(Shapes::of(q, k).unwrap()).unwrap()
}

fn tensor(shape: [usize; 4]) -> Tensor {
    Random(shape[2] as u64 + 1).tensor(DType::Bf16, &shape)
}

#[test]
fn nothing_to_attend_to_gives_zeros_and_no_sum() {
    for (seq_q, seq_kv) in [(5, 0), (0, 5), (0, 0)] {
        let (q, kv) = (tensor([1, 2, seq_q, 64]), tensor([1, 2, seq_kv, 64]));
        let output = attention().forward(&q, &kv, &kv).unwrap();
        assert_eq!(output.out.to_f32_vec().unwrap(), vec![0.0; 2 * seq_q * 64]);
        assert_eq!(output.lse.to_vec::<f32>().unwrap(), vec![f32::NEG_INFINITY; 2 * seq_q]);
    }
}

#[test]
fn a_builder_refuses_what_it_cannot_build() {
    let builder = || Attention::builder(HeadDim::D64, DType::Bf16);
    let message = |result: Result<Attention, Error>| result.expect_err("an error").to_string();
    let cpu = Device::cpu();
    for (found, expected) in [
        (message(builder().select(top_k(0.0)).build(&cpu)), "top-k is 0, needed a share in (0, 1]"),
        (message(builder().select(top_p(1.5)).build(&cpu)), "top-p is 1.5, needed a share in (0, 1]"),
        (message(builder().select(top_k(f64::NAN) | top_p(0.5)).build(&cpu)), "top-k is NaN"),
        (message(builder().scale(f32::NAN).build(&cpu)), "the scale is NaN, needed a finite number"),
        (
            message(Attention::builder(HeadDim::D64, DType::F32).build(&cpu)),
            "needed f16 or bf16 for q, k and v: convert it first",
        ),
    ] {
        assert!(found.contains(expected), "{found}");
    }
    for dim in [0, 12, 264] {
        assert!(HeadDim::new(dim).is_err(), "{dim}");
    }
}

#[test]
fn a_call_refuses_tensors_and_masks_of_other_sizes() {
    let attention = attention();
    let q = tensor([1, 2, 200, 64]);
    let message = |result: Result<(), Error>| result.expect_err("an error").to_string();
    let forward = |k: &Tensor, v: &Tensor| message(attention.forward(&q, k, v).map(drop));
    let (short, wide) = (tensor([1, 2, 100, 64]), tensor([1, 2, 200, 128]));
    assert!(forward(&q, &short).contains("seq_kv"), "{}", forward(&q, &short));
    assert!(forward(&wide, &wide).contains("128"), "{}", forward(&wide, &wide));
    assert!(
        forward(&q, &wide).contains("v has head dimension 128, this attention was built for values of 64")
    );
    let three = tensor([1, 3, 200, 64]);
    assert!(forward(&three, &three).contains("heads"), "{}", forward(&three, &three));
    let half = Random(1).tensor(DType::F16, &[1, 2, 200, 64]);
    assert!(forward(&half, &half).contains("f16"), "{}", forward(&half, &half));

    let mask = |blocks: BlockSize, seq| BlockMask::full(1, 2, blocks, SeqLens::same(seq)).unwrap();
    let attend = |mask: &BlockMask| message(attention.attend_with(&q, &q, &q, mask).map(drop));
    assert!(attend(&mask(BlockSize::new(128, 128).unwrap(), 200)).contains("128×128"));
    assert!(attend(&mask(BlockSize::default(), 300)).contains("300"));
}

#[test]
fn an_order_of_dimensions_names_each_once() {
    let x = tensor([1, 2, 3, 8]);
    assert_eq!(x.permute(&[0, 2, 1, 3]).unwrap().shape(), [1, 3, 2, 8]);
    for order in [&[0, 0, 1, 2][..], &[0, 1, 2], &[0, 1, 2, 4], &[]] {
        let error = x.permute(order).unwrap_err();
        assert!(matches!(error, Error::Tensor(TensorError::Order { .. })), "{error}");
    }
}

#[test]
fn a_workspace_serves_its_own_attention_alone() {
    let (one, other) = (attention(), attention());
    let q = tensor([1, 2, 200, 64]);
    let plan = plan_of(&one, &q, &q);
    let mut workspace = plan.workspace().unwrap();
    let inputs = Inputs { q: &q, k: &q, v: &q };
    let expected = one.forward(&q, &q, &q).unwrap().out.to_f32_vec().unwrap();
    let found = plan.forward_into(inputs, &mut workspace).unwrap().out.to_f32_vec().unwrap();
    assert_eq!(found, expected);
    let foreign = plan_of(&other, &q, &q).forward_into(inputs, &mut workspace).map(drop);
    assert!(matches!(foreign, Err(Error::ForeignWorkspace)), "{foreign:?}");
    let short = tensor([1, 2, 100, 64]);
    let of_other_shapes = plan_of(&one, &short, &q);
    let refused = of_other_shapes.forward_into(Inputs { q: &short, ..inputs }, &mut workspace).map(drop);
    let text = refused.as_ref().expect_err("another shape").to_string();
    assert!(matches!(refused, Err(Error::Workspace { .. })) && text.contains("100 queries"), "{text}");
}

#[test]
fn a_plan_refuses_tensors_of_other_shapes() {
    let attention = attention();
    let shape = [2, 4, 130, 64];
    let (q, k) = (tensor(shape), tensor([2, 2, 140, 64]));
    let plan = plan_of(&attention, &q, &k);
    assert_eq!(plan.shapes(), Shapes { batch: 2, heads: 4, kv_heads: 2, seq_q: 130, seq_kv: 140 });
    assert!(plan.forward(Inputs { q: &q, k: &k, v: &k }).is_ok());
    let mut workspace = plan.workspace().unwrap();
    let mut scratch = Tensor::zeros(DType::U8, &[0]).unwrap();
    for (shape_q, shape_k) in [
        ([1, 4, 130, 64], [1, 2, 140, 64]),
        ([2, 2, 130, 64], [2, 2, 140, 64]),
        ([2, 4, 130, 64], [2, 4, 140, 64]),
        ([2, 4, 131, 64], [2, 2, 140, 64]),
        ([2, 4, 130, 64], [2, 2, 139, 64]),
        ([2, 4, 0, 64], [2, 2, 140, 64]),
    ] {
        let (q, k) = (tensor(shape_q), tensor(shape_k));
        let (mut out, mut lse) = (q.clone(), Tensor::zeros(DType::F32, &shape_q[..3]).unwrap());
        let inputs = Inputs { q: &q, k: &k, v: &k };
        let given = Forward { q: &q, k: &k, v: &k, out: &mut out, lse: &mut lse };
        for refused in [
            plan.forward(inputs).map(drop),
            plan.forward_into(inputs, &mut workspace).map(drop),
            plan.run(given, &mut scratch),
        ] {
            let text = refused.as_ref().expect_err("another shape").to_string();
            let (found, expected) = (Shapes::of(&q, &k).unwrap().to_string(), plan.shapes().to_string());
            assert!(matches!(refused, Err(Error::Plan { .. })), "{text}");
            assert!(text.contains(&found) && text.contains(&expected), "{text}");
        }
    }
    // What the attention itself refuses is said as it says it.
    let wide = tensor([2, 4, 130, 128]);
    let error = plan.forward(Inputs { q: &wide, k: &tensor([2, 2, 140, 128]), v: &k }).unwrap_err();
    assert!(matches!(error, Error::HeadDim(_)), "{error}");
}

#[test]
fn a_plan_is_for_sizes_that_tensors_can_have() {
    let attention = attention();
    let shapes = Shapes { batch: 1, heads: 4, kv_heads: 2, seq_q: 100, seq_kv: 100 };
    assert!(attention.plan(shapes).is_ok());
    for (shapes, expected) in [
        (Shapes { heads: 3, ..shapes }, "3 heads"),
        (Shapes { kv_heads: 0, ..shapes }, "k has none"),
        (Shapes { batch: usize::MAX, ..shapes }, "does not fit"),
        (Shapes { heads: 1 << 40, kv_heads: 1 << 40, batch: 1 << 40, ..shapes }, "does not fit"),
        (Shapes { seq_kv: i32::MAX as usize, ..shapes }, "positions"),
    ] {
        let error = attention.plan(shapes).expect_err("no tensor has these sizes").to_string();
        assert!(error.contains(expected), "{shapes:?}: {error}");
    }
    let rows = Tensor::zeros(DType::Bf16, &[1, 2, 3]).unwrap();
    assert!(matches!(Shapes::of(&rows, &rows), Err(Error::Tensor(TensorError::Rank { .. }))));
    // Over nothing there is nothing to choose and nothing to work in.
    let empty = attention.plan(Shapes { seq_q: 0, ..shapes }).unwrap();
    assert!(empty.is_warm(Step::Forward) && empty.kernels().is_empty());
    assert_eq!(empty.scratch_bytes(Step::Forward).unwrap(), 0);
}

/// One of other sizes each; what either gives is what its sizes give alone.
#[test]
fn two_plans_of_one_attention_run_on_two_threads() {
    let attention = attention();
    let run = |seq: usize| {
        let [q, k, v] = [1, 2, 3].map(|seed| Random(seed).tensor(DType::Bf16, &[1, 2, seq, 64]));
        let (plan, inputs) = (plan_of(&attention, &q, &k), Inputs { q: &q, k: &k, v: &v });
        let mut workspace = plan.workspace().unwrap();
        let expected = attention.forward(&q, &k, &v).unwrap().out.to_f32_vec().unwrap();
        for _ in 0..20 {
            let output = plan.forward_into(inputs, &mut workspace).unwrap();
            assert_eq!(output.out.to_f32_vec().unwrap(), expected, "{}", plan.shapes());
        }
    };
    std::thread::scope(|scope| {
        let threads = [130, 260].map(|seq| scope.spawn(move || run(seq)));
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
}

#[test]
fn threads_can_share_attentions_and_plans() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Attention>();
    is_shared::<Plan>();
    is_shared::<Workspace>();
}

#[test]
fn other_parameters_give_what_building_with_them_gives() {
    let qkv = [1, 2, 3].map(|seed| Random(seed).tensor(DType::Bf16, &[1, 2, 300, 64]));
    let [q, k, v] = &qkv;
    let other = attention().with_parameters(Some(top_k(0.9) | top_p(0.5)), Some(0.3)).unwrap();
    let builder = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.9) | top_p(0.5)).scale(0.3);
    let built = builder.build(&Device::cpu()).unwrap();
    let (found, expected) = (other.forward(q, k, v).unwrap(), built.forward(q, k, v).unwrap());
    assert_eq!(found.out.to_f32_vec().unwrap(), expected.out.to_f32_vec().unwrap());
    assert_eq!(other.scale(), 0.3);
    assert!(matches!(attention().with_parameters(None, None), Err(Error::Selects)));
    assert!(matches!(attention().with_parameters(Some(top_k(2.0)), None), Err(Error::Select(_))));
    assert!(matches!(
        attention().with_parameters(Some(top_k(0.5)), Some(f32::NAN)),
        Err(Error::Scale { .. })
    ));
}

#[test]
fn memory_of_the_callers_is_for_a_gpu() {
    let q = tensor([1, 2, 5, 64]);
    let (mut out, mut lse) = (q.clone(), Tensor::zeros(DType::F32, &[1, 2, 5]).unwrap());
    let attention = attention();
    let plan = plan_of(&attention, &q, &q);
    let lists = &MaskLists::from(&attention.mask(&q, &q).unwrap());
    for step in [Step::Forward, Step::Select { by_key: true }, Step::Attend(lists), Step::Backward(lists)] {
        assert_eq!(plan.scratch_bytes(step).unwrap(), 0, "{step:?}");
        assert!(plan.is_warm(step), "{step:?}");
    }
    assert!(plan.kernels().is_empty() && plan.choices().is_empty());
    let mut scratch = Tensor::zeros(DType::U8, &[0]).unwrap();
    let forward = Forward { q: &q, k: &q, v: &q, out: &mut out, lse: &mut lse };
    let result = plan.run(forward, &mut scratch);
    assert!(matches!(result, Err(Error::NotOnGpu { .. })), "{result:?}");
    // SAFETY: there is no GPU to use it on.
    let result = unsafe { plan.on_stream(std::ptr::null_mut()) };
    assert!(matches!(result, Err(Error::NotOnGpu { .. })), "{result:?}");
}

#[test]
fn block_means_give_the_mask_of_their_tensors() {
    let attention = attention();
    let (q, k) = (tensor([2, 4, 300, 64]), tensor([2, 2, 1000, 64]));
    let (q_mean, k_mean) = (support::block_means(&q, 128), support::block_means(&k, 64));
    let expected = attention.mask(&q, &k).unwrap().to_dense().unwrap();
    let of = |q_mean, k_mean, q, kv| attention.mask_of_means(q_mean, k_mean, SeqLens { q, kv });
    assert_eq!(of(&q_mean, &k_mean, 300, 1000).unwrap().to_dense().unwrap(), expected);

    let error = of(&q_mean, &k_mean, 400, 1000).unwrap_err().to_string();
    assert!(error.starts_with("3 q_blocks, needed 4 to cover 400 positions"), "{error}");
    assert!(matches!(of(&q, &k_mean, 300, 1000), Err(Error::Tensor(TensorError::DType { .. }))));
    let three_heads = support::block_means(&tensor([2, 3, 300, 64]), 128);
    let error = of(&three_heads, &k_mean, 300, 1000).unwrap_err();
    assert!(matches!(error, Error::Tensor(TensorError::HeadGroups { heads: 3, kv_heads: 2 })), "{error}");
}

/// Views that repeat a row: what they are made into would not fit into memory. Errors at once, of every step.
#[test]
fn inputs_larger_than_memory_are_refused() {
    let row = tensor([1, 1, 1, 64]);
    let view = |shape: [usize; 4]| row.with_strides(&shape, &[0, 0, 0, 1]).unwrap();
    let builder = || Attention::builder(HeadDim::D64, DType::Bf16);
    let selects = builder().select(top_k(0.5)).build(&Device::cpu()).unwrap();
    let dense = builder().build(&Device::cpu()).unwrap();
    let long = 2_000_000_000;
    for [batch, heads, seq_q, seq_kv] in
        [[1, 1, long, long], [1 << 40, 1, 200, 200], [1, 1 << 40, 200, 200], [1 << 20, 1 << 20, 200, 64]]
    {
        let (q, kv) = (view([batch, heads, seq_q, 64]), view([batch, heads, seq_kv, 64]));
        for attention in [&selects, &dense] {
            for result in [attention.mask(&q, &kv).map(drop), attention.forward(&q, &kv, &kv).map(drop)] {
                let error = result.expect_err("no memory holds it").to_string();
                assert!(error.contains("does not fit into memory"), "{error}");
            }
        }
    }
    // A mask shared by all fits, the output does not.
    let q = view([1 << 40, 1, 200, 64]);
    let mask = BlockMask::full(1, 1, blocks(128, 64), SeqLens::same(200)).unwrap();
    let error = dense.attend_with(&q, &q, &q, &mask).unwrap_err();
    assert!(matches!(error, Error::Tensor(TensorError::TooLarge { .. })), "{error}");
    let rows = Tensor::zeros(DType::F32, &[1]).unwrap().with_strides(&[1 << 40, 1, 200], &[0; 3]).unwrap();
    let (out, d_out) = (q.clone(), q.clone());
    let output = Output { out, lse: rows, mask };
    let error = dense.backward(&q, &q, &q, &output, &d_out, None).unwrap_err();
    assert!(matches!(error, Error::Tensor(TensorError::TooLarge { .. })), "{error}");

    let absurd = [&[1 << 50][..], &[usize::MAX, 2], &[usize::MAX, usize::MAX, 0], &[0, 1 << 40, 1 << 40]];
    for shape in absurd {
        let error = Tensor::zeros(DType::F32, shape).unwrap_err();
        assert!(matches!(error, Error::Tensor(TensorError::TooLarge { .. })), "{shape:?}: {error}");
        let strides = vec![0; shape.len()];
        let copied = row.with_strides(shape, &strides).and_then(|view| view.to_f32_vec());
        assert!(matches!(copied, Err(Error::Tensor(TensorError::TooLarge { .. }))), "{shape:?}: {copied:?}");
    }
}

/// Nothing overflows over nothing: in whatever order the dimensions stand, and whoever multiplies some of them.
#[test]
fn tensors_without_elements_have_dimensions_that_can_be_multiplied() {
    let empty = Tensor::zeros(DType::Bf16, &[0, 1 << 30, 1 << 30]).unwrap();
    for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let view = empty.permute(&order).unwrap();
        assert_eq!((view.elements(), view.to_f32_vec().unwrap().len()), (0, 0));
        assert!(format!("{view:?}").ends_with("elements: [] }"));
        view.with_strides(view.shape(), &[usize::MAX; 3]).unwrap();
    }
    let attention = Attention::builder(HeadDim::D64, DType::Bf16).build(&Device::cpu()).unwrap();
    for shape in [[0, 1 << 30, 200, 64], [1 << 20, 1 << 15, 0, 64], [1 << 12, 0, 1 << 30, 64]] {
        let q = Tensor::zeros(DType::Bf16, &shape).unwrap();
        // Without memory for the lists of a mask that is an error, else there is nothing to do.
        match attention.forward(&q, &q, &q) {
            Ok(output) => assert_eq!((output.out.shape(), output.out.elements()), (&shape[..], 0)),
            Err(error) => {
                assert!(error.to_string().contains("does not fit into memory"), "{shape:?}: {error}")
            }
        }
    }
}
