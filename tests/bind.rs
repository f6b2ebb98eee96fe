//! The checks between tensors and a kernel's parameters, by the bindings and by declarations that are read at run time. No GPU is touched:
//! the tensors have addresses that nobody reads.

#[path = "support/dynamic.rs"]
mod dynamic;

use std::sync::Arc;
use tilewright::TensorError;
use tilewright::codegen::{Arch, Candidate, Family, Generator, KernelSource, Value};
use tilewright::kernels::{forward, order, pool, select, transpose};
use tilewright::launch::{BindError, Binder, Bound, Dim, DynamicArgs, KernelArgs, Request};
use tilewright::tune::spec_fingerprint;
use tilewright::{DType, Device, Error, Tensor};

/// The preferred candidate of a spec.
fn candidate(source: &KernelSource, values: &[(&str, Value)]) -> Candidate {
    candidate_on(source, values, Arch::Sm80)
}

fn candidate_on(source: &KernelSource, values: &[(&str, Value)], arch: Arch) -> Candidate {
    let generator = Generator::new(source).unwrap();
    let spec = Arc::new(generator.spec(values).unwrap());
    generator.candidates(&spec, arch).unwrap().accepted.swap_remove(0)
}

fn forward_on(arch: Arch) -> Candidate {
    let values =
        [("T", DType::Bf16.into()), ("D", 128.into()), ("BLOCK_Q", 128.into()), ("BLOCK_KV", 64.into())];
    candidate_on(&forward::SOURCE, &values, arch)
}

fn bf16_128() -> Candidate {
    forward_on(Arch::Sm80)
}

fn pool_64() -> Candidate {
    let blocks = [("BLOCK_Q", 64.into()), ("BLOCK_KV", 64.into())];
    candidate(&pool::SOURCE, &[("T", DType::Bf16.into()), ("D", 64.into()), blocks[0], blocks[1]])
}

/// A view at an address of GPU `ordinal`.
fn view(ordinal: usize, address: u64, dtype: DType, shape: &[usize], strides: &[usize]) -> Tensor {
    // SAFETY: the memory is never used: nothing is launched, and nothing is copied.
    unsafe { Tensor::from_device_pointer(ordinal, address, dtype, shape, strides) }.unwrap()
}

fn dense(address: u64, dtype: DType, shape: &[usize]) -> Tensor {
    view(0, address, dtype, shape, &Tensor::contiguous_strides(shape))
}

/// The arguments of a forward of 2 batches, 4 heads of 2 key heads, 300 queries and 200 keys of 128.
struct Forward {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_counts: Tensor,
    kv_indices: Tensor,
    full_kv_counts: Option<Tensor>,
    full_kv_indices: Option<Tensor>,
    row_order: Option<Tensor>,
    out: Tensor,
    lse: Tensor,
}

const Q: [usize; 4] = [2, 4, 300, 128];
const KV: [usize; 4] = [2, 2, 200, 128];

impl Forward {
    fn good() -> Self {
        Forward {
            q: dense(0x1000_0000, DType::Bf16, &Q),
            k: dense(0x2000_0000, DType::Bf16, &KV),
            v: dense(0x3000_0000, DType::Bf16, &KV),
            kv_counts: dense(0x4000_0000, DType::I32, &[2, 4, 3]),
            kv_indices: dense(0x5000_0000, DType::I32, &[2, 4, 3, 4]),
            full_kv_counts: None,
            full_kv_indices: None,
            row_order: None,
            out: dense(0x6000_0000, DType::Bf16, &Q),
            lse: dense(0x7000_0000, DType::F32, &Q[..3]),
        }
    }

    fn bind(&mut self, candidate: &Candidate) -> Result<Bound<forward::Params>, BindError> {
        let args = forward::Args {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            kv_counts: &self.kv_counts,
            kv_indices: &self.kv_indices,
            full_kv_counts: self.full_kv_counts.as_ref(),
            full_kv_indices: self.full_kv_indices.as_ref(),
            row_order: self.row_order.as_ref(),
            tail_out: None,
            tail_lse: None,
            tail_k: None,
            tail_v: None,
            tail_weights: None,
            tail_pieces: None,
            out: &mut self.out,
            lse: &mut self.lse,
            scale: 0.125,
        };
        dynamic::bind(&args, &[("scale", 0.125)], candidate)
    }
}

#[test]
fn what_is_refused_says_why() {
    let candidate = bf16_128();
    let bf16 = |shape: &[usize]| dense(0x9000_0000, DType::Bf16, shape);
    let ints = |shape: &[usize]| dense(0x9000_0000, DType::I32, shape);
    type Spoil<'a> = Box<dyn Fn(&mut Forward) + 'a>;
    let mistakes: Vec<(Spoil, &str)> = vec![
        (
            Box::new(|a| a.k = dense(0x2000_0000, DType::F16, &KV)),
            "`k` has dtype f16, needed bf16: convert it, or build for f16",
        ),
        (
            Box::new(|a| a.kv_counts = dense(0x4000_0000, DType::F32, &[2, 4, 3])),
            "`kv_counts` has dtype f32, needed i32: convert it, or build for f32",
        ),
        (
            Box::new(|a| a.q = bf16(&[4, 300, 128])),
            "`q` has shape [4, 300, 128], needed [batch, heads, seq_q, head_dim]: add or remove dimensions",
        ),
        (
            Box::new(|a| a.lse = dense(0x7000_0000, DType::F32, &[2, 4, 300, 1])),
            "`lse` has shape [2, 4, 300, 1], needed [batch, heads, seq_q]: add or remove dimensions",
        ),
        (
            Box::new(|a| a.v = bf16(&[2, 2, 128, 200]).permute(&[0, 1, 3, 2]).unwrap()),
            "`v` has stride 200 on its last dimension, needed 1: make that dimension contiguous",
        ),
        (
            Box::new(|a| a.q = dense(0x1000_0008, DType::Bf16, &Q)),
            "the address of `q` is 268435464 bytes, needed a multiple of 16: align it, or copy the tensor",
        ),
        (
            Box::new(|a| a.lse = dense(0x7000_0002, DType::F32, &Q[..3])),
            "the address of `lse` is 1879048194 bytes, needed a multiple of 4: align it, or copy the tensor",
        ),
        (
            Box::new(|a| a.q = view(0, 0x1000_0000, DType::Bf16, &Q, &[4 * 300 * 132, 300 * 132, 132, 1])),
            "a stride of `q` is 264 bytes, needed a multiple of 16: align it, or copy the tensor",
        ),
        (
            Box::new(|a| a.v = bf16(&[2, 2, 201, 128])),
            "`seq_kv` is 200 in `k` and 201 in `v`: they must be equal",
        ),
        (Box::new(|a| a.k = bf16(&[3, 2, 200, 128])), "`batch` is 2 in `q` and 3 in `k`: they must be equal"),
        (
            Box::new(|a| a.out = bf16(&[2, 4, 300, 120])),
            "`value_dim` is 128 in `v` and 120 in `out`: they must be equal",
        ),
        (
            Box::new(|a| a.kv_counts = ints(&[2, 3, 3])),
            "`heads` is 4 in `q` and 3 in `kv_counts`: they must be equal",
        ),
        (
            Box::new(|a| (a.kv_counts, a.kv_indices) = (ints(&[2, 4, 2]), ints(&[2, 4, 2, 4]))),
            "`q_blocks` is 2 in `kv_counts`, needed 3 (ceil_div(seq_q, BLOCK_Q)): allocate it so",
        ),
        (Box::new(|a| a.q = bf16(&[2, 4, 0, 128])), "`seq_q` is 0 in `q`, needed 1 to 2147483647"),
        (
            Box::new(|a| a.q = view(0, 0x1000_0000, DType::Bf16, &[2, 4, 1 << 31, 128], &[0, 0, 128, 1])),
            "`seq_q` is 2147483648 in `q`, needed 1 to 2147483647",
        ),
        (
            Box::new(|a| a.kv_indices = ints(&[2, 4, 3, 0])),
            "`max_blocks` is 0 in `kv_indices`, needed 1 to 2147483647",
        ),
        (
            Box::new(|a| a.q = Tensor::zeros(DType::Bf16, &Q).unwrap()),
            "`q` is on the CPU, needed on a CUDA device: call `.to(&device)` first",
        ),
        (
            Box::new(|a| a.v = view(1, 0x3000_0000, DType::Bf16, &KV, &Tensor::contiguous_strides(&KV))),
            "`v` is on cuda:1, needed on cuda:0: call `.to(&device)` first",
        ),
    ];
    for (spoil, expected) in mistakes {
        let mut args = Forward::good();
        spoil(&mut args);
        let error = args.bind(&candidate).expect_err(expected);
        assert_eq!(error.to_string(), format!("kernel `forward`: {expected}"));
    }
}

#[test]
fn what_the_declaration_requires_is_checked() {
    let candidate = bf16_128();
    for ((heads, kv_heads, d), expected) in [
        (
            (4, 2, 136),
            "kernel `forward` needs head_dim <= D, found head_dim = 136, D = 128: build for a larger head dimension",
        ),
        (
            (4, 3, 128),
            "kernel `forward` needs heads % kv_heads == 0, found heads = 4, kv_heads = 3: \
             each key head serves the same number of query heads",
        ),
        (
            (2, 4, 128),
            "kernel `forward` needs heads % kv_heads == 0, found heads = 2, kv_heads = 4: \
             each key head serves the same number of query heads",
        ),
    ] {
        let (q, kv) = ([2, heads, 300, d], [2, kv_heads, 200, d]);
        let mut args = Forward {
            q: dense(0x1000_0000, DType::Bf16, &q),
            k: dense(0x2000_0000, DType::Bf16, &kv),
            v: dense(0x3000_0000, DType::Bf16, &kv),
            kv_counts: dense(0x4000_0000, DType::I32, &[1, 1, 3]),
            kv_indices: dense(0x5000_0000, DType::I32, &[1, 1, 3, 4]),
            out: dense(0x6000_0000, DType::Bf16, &q),
            lse: dense(0x7000_0000, DType::F32, &q[..3]),
            ..Forward::good()
        };
        assert_eq!(args.bind(&candidate).expect_err(expected).to_string(), expected);
    }
    // A row of 20 elements is 40 bytes: the rows' alignment is found out first.
    let x = view(0, 0x1000_0000, DType::Bf16, &[1, 1, 64, 20], &[2048, 2048, 32, 1]);
    let [mut q_mean, mut k_mean] =
        [0x2000_0000, 0x3000_0000].map(|address| dense(address, DType::F32, &[1, 1, 1, 20]));
    let (q_mean, k_mean) = (&mut q_mean, &mut k_mean);
    let args = pool::Args { q: &x, k: &x, q_mean, k_mean, finished: None, k_fine: None };
    let error = dynamic::bind(&args, &[], &pool_64()).expect_err("20");
    assert!(matches!(error, BindError::Require { condition: "head_dim % 8 == 0", .. }), "{error}");
}

#[test]
fn a_grid_over_cuda_s_limits_is_refused() {
    let candidate = candidate(&transpose::SOURCE, &[]);
    let bind = |batch: usize, heads: usize| {
        let keep = dense(0x10_0000_0000, DType::I32, &[batch, heads, 1, 1]);
        let mut q_counts = dense(0x20_0000_0000, DType::I32, &[batch, heads, 1]);
        let mut q_indices = dense(0x30_0000_0000, DType::I32, &[batch, heads, 1, 1]);
        let args = transpose::Args {
            keep: &keep,
            full_keep: None,
            q_counts: &mut q_counts,
            q_indices: &mut q_indices,
            full_q_counts: None,
            full_q_indices: None,
            key_order: None,
            finished: None,
        };
        dynamic::bind(&args, &[], &candidate).map(|bound| (bound.grid, bound.folded))
    };
    assert_eq!(bind(1, 65535), Ok(([1, 65535, 1], false)));
    assert_eq!(bind(65535, 1), Ok(([1, 1, 65535], false)));
    // More lie along x, and what was along x along y.
    assert_eq!(bind(1, 65536), Ok(([65536, 1, 1], true)));
    assert_eq!(bind(65536, 3), Ok(([3 * 65536, 1, 1], true)));
    assert_eq!(
        bind(65536, 65536).expect_err("too large").to_string(),
        "kernel `transpose` would need a grid of [1, 65536, 65536] blocks, the limit is 2147483647 in all and 65535 along \
         all but one side: split the call"
    );
}

#[test]
fn a_candidate_of_another_kernel_is_refused() {
    let error = Forward::good().bind(&pool_64()).expect_err("pool is no forward");
    assert_eq!(
        error.to_string(),
        "the arguments are of kernel `forward`, the candidate is of `pool`: load the kernel the arguments belong to"
    );
}

/// Two crates' kernels of one name: what a launch must hold to stands in the declaration.
#[test]
fn a_candidate_of_another_declaration_is_refused() {
    let mut other = order::SOURCE.clone();
    other.declaration = other
        .declaration
        .replace("counts: Tensor<i32, [batch, heads, rows]>", "counts: Tensor<i32, [heads]>")
        .into();
    assert_ne!(other.declaration, order::SOURCE.declaration);
    let bind = |source: &KernelSource| {
        let [counts, mut row_order] = [0x1000_0000, 0x2000_0000].map(|at| dense(at, DType::I32, &[1, 2, 3]));
        let args = order::Args { counts: &counts, full_counts: None, row_order: &mut row_order, longest: -1 };
        dynamic::bind(&args, &[("longest", -1.0)], &candidate(source, &[])).map(drop)
    };
    assert_eq!(bind(&order::SOURCE), Ok(()));
    assert_eq!(
        bind(&other).expect_err("another `order`").to_string(),
        "the arguments are of kernel `order`, the candidate is of another kernel of that name, with a declaration of its own: \
         load the kernel the arguments belong to"
    );
}

/// Whoever owns the memory: what a kernel writes is no argument's beside.
#[test]
fn outputs_in_the_memory_of_other_arguments_are_refused() {
    type Spoil = fn(&mut Forward);
    let cases: [(Spoil, Option<(&str, &str)>); 9] = [
        (|_| {}, None),
        // Inputs may be one.
        (|a| a.v = a.k.clone(), None),
        (|a| a.out = a.q.clone(), Some(("q", "out"))),
        (|a| a.lse = dense(0x4000_0000 - 4, DType::F32, &Q[..3]), Some(("kv_counts", "lse"))),
        (|a| a.lse = dense(0x6000_0000 + 64, DType::F32, &Q[..3]), Some(("out", "lse"))),
        (|a| a.row_order = Some(dense(0x6000_0000, DType::I32, &[2, 4, 3])), Some(("row_order", "out"))),
        (
            |a| a.full_kv_counts = Some(dense(0x7000_0000 + 9596, DType::I32, &[2, 4, 3])),
            Some(("full_kv_counts", "lse")),
        ),
        (|a| a.full_kv_counts = Some(dense(0x7000_0000 + 9600, DType::I32, &[2, 4, 3])), None),
        // Side by side in rows of one tensor, as a projection writes q, k and v.
        (
            |a| {
                let strides = [4 * 300 * 256, 300 * 256, 256, 1];
                a.q = view(0, 0x1000_0000, DType::Bf16, &Q, &strides);
                a.out = view(0, 0x1000_0100, DType::Bf16, &Q, &strides);
            },
            None,
        ),
    ];
    for (place, (spoil, expected)) in cases.into_iter().enumerate() {
        let mut args = Forward::good();
        spoil(&mut args);
        let found = args.bind(&bf16_128()).map(drop);
        let expected = expected
            .map_or(Ok(()), |(arg, written)| Err(BindError::Aliased { kernel: "forward", arg, written }));
        assert_eq!(found, expected, "case {place}");
    }
}

/// An input may repeat its elements; of an output each has a place of its own.
#[test]
fn what_is_written_repeats_nothing() {
    let strides = [0, 300 * 128, 128, 1];
    let mut args = Forward::good();
    args.q = view(0, 0x1000_0000, DType::Bf16, &Q, &strides);
    assert!(args.bind(&bf16_128()).is_ok());
    args.out = view(0, 0x6000_0000, DType::Bf16, &Q, &strides);
    let error = args.bind(&bf16_128()).map(drop).unwrap_err();
    assert_eq!(error, BindError::Repeated { kernel: "forward", arg: "out", dim: "batch", extent: 2 });
    assert_eq!(
        error.to_string(),
        "kernel `forward`: `out` is written and repeats its elements 2 times along `batch`, where its stride is 0: \
         copy it first"
    );
}

#[test]
fn parameters_of_dense_tensors() {
    let Bound { params, grid, folded, on, persistent, queue, tensor_maps } =
        Forward::good().bind(&bf16_128()).unwrap();
    assert_eq!((grid, folded, on), ([3, 4, 2], false, Some(("q", 0))));
    assert_eq!((persistent, queue, tensor_maps.len()), (false, false, 0));
    assert_eq!(
        (params.q, params.k, params.v, params.out),
        (0x1000_0000, 0x2000_0000, 0x3000_0000, 0x6000_0000)
    );
    assert_eq!(params.q_stride, [4 * 300 * 128, 300 * 128, 128]);
    assert_eq!(params.k_stride, [2 * 200 * 128, 200 * 128, 128]);
    assert_eq!(params.kv_counts_stride, [12, 3]);
    assert_eq!(params.kv_indices_stride, [48, 12, 4]);
    assert_eq!(params.lse_stride, [1200, 300]);
    assert_eq!((params.batch, params.heads, params.kv_heads), (2, 4, 2));
    assert_eq!((params.seq_q, params.seq_kv, params.head_dim), (300, 200, 128));
    assert_eq!((params.q_blocks, params.kv_blocks, params.max_blocks), (3, 4, 4));
    assert_eq!(params.scale, 0.125);
    // Absent optional arguments are null pointers, and nobody gave their dimension.
    assert_eq!((params.full_kv_counts, params.full_kv_counts_stride), (0, [0, 0]));
    assert_eq!((params.full_kv_indices, params.full_kv_indices_stride), (0, [0, 0, 0]));
    assert_eq!(params.max_full_blocks, 0);
    assert_eq!((params.row_order, params.row_order_stride), (0, [0, 0]));
}

/// One order for all heads, or one each; an order of other rows is refused.
#[test]
fn the_order_of_rows_binds_like_the_lists() {
    let bind = |shape: &[usize]| {
        let mut args = Forward { row_order: Some(dense(0x8000_0000, DType::I32, shape)), ..Forward::good() };
        args.bind(&forward_on(Arch::Sm90a)).map(|bound| bound.params)
    };
    let each = bind(&[2, 4, 3]).unwrap();
    assert_eq!((each.row_order, each.row_order_stride), (0x8000_0000, [12, 3]));
    assert_eq!(bind(&[1, 1, 3]).unwrap().row_order_stride, [0, 0]);
    assert!(matches!(bind(&[2, 4, 4]), Err(BindError::Disagree { dim: "q_blocks", .. })));
}

/// The body for Hopper reads q, k and v in boxes and writes out so, and as many blocks as fit the GPU take its tiles from a counter.
#[test]
fn a_copy_engine_is_told_what_it_reads() {
    let candidate = forward_on(Arch::Sm90a);
    assert_eq!(candidate.schedule.family, Family::Sm90);
    let Bound { grid, persistent, queue, tensor_maps, .. } = Forward::good().bind(&candidate).unwrap();
    assert_eq!((grid, persistent, queue), ([3, 4, 2], true, true));
    let text: Vec<String> = tensor_maps.iter().map(|map| format!("{map:?}")).collect();
    assert_eq!(
        text[..2],
        [
            "BoxedTensor { arg: \"q\", pointer: 268435456, dtype: Bf16, extents: [128, 300, 4, 2], \
             strides: [256, 76800, 307200], sides: [64, 64, 1, 1] }",
            "BoxedTensor { arg: \"k\", pointer: 536870912, dtype: Bf16, extents: [128, 200, 2, 2], \
             strides: [256, 51200, 102400], sides: [64, 64, 1, 1] }",
        ]
    );
    assert_eq!(text.len(), 6, "q, k, v, the means of a row tail, out");
    // One head and one batch: their strides may be anything, and the engine is told something it takes.
    let mut args = Forward::good();
    args.q = view(0, 0x1000_0000, DType::Bf16, &[1, 1, 300, 128], &[7, 9, 128, 1]);
    args.k = view(0, 0x2000_0000, DType::Bf16, &[1, 1, 200, 128], &[1, 1, 136, 1]);
    args.v = dense(0x3000_0000, DType::Bf16, &[1, 1, 200, 128]);
    args.out = dense(0x6000_0000, DType::Bf16, &[1, 1, 300, 128]);
    args.lse = dense(0x7000_0000, DType::F32, &[1, 1, 300]);
    args.kv_counts = dense(0x4000_0000, DType::I32, &[1, 1, 3]);
    args.kv_indices = dense(0x5000_0000, DType::I32, &[1, 1, 3, 4]);
    let maps = args.bind(&candidate).unwrap().tensor_maps;
    assert!(format!("{:?}", maps[0]).contains("strides: [256, 256, 256]"), "{:?}", maps[0]);
    assert!(format!("{:?}", maps[1]).contains("strides: [272, 256, 256]"), "{:?}", maps[1]);
}

/// What the copy engine cannot read, the other body can.
#[test]
fn a_stride_over_the_copy_engine_s_limit_is_refused_with_a_way_out() {
    let far = || view(0, 0x2000_0000, DType::Bf16, &KV, &[1 << 40, 200 * 128, 128, 1]);
    let mut args = Forward { k: far(), ..Forward::good() };
    let error = args.bind(&forward_on(Arch::Sm90a)).expect_err("2^41 bytes");
    assert!(matches!(error, BindError::TensorMap { arg: "k", .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "kernel `forward`: the copy engine cannot read `k`: a stride is 2199023255552 bytes, needed a multiple of 16 \
         below 2^40; use a schedule of another family, or copy the tensor"
    );
    args.bind(&bf16_128()).unwrap();
}

/// What a declaration computes has a value, or the launch is refused with what it was computed from.
#[test]
fn expressions_without_a_value_are_refused() {
    let binder = Binder::new("forward", forward::Args::DECLARATION, &bf16_128()).unwrap();
    assert_eq!(binder.value("a / b", &[("a", 6), ("b", 3)], || i64::checked_div(6, 3)), Ok(2));
    let error = binder.value("a / b", &[("a", 6), ("b", 0)], || i64::checked_div(6, 0)).expect_err("6 / 0");
    assert!(
        matches!(error, BindError::Arithmetic { kernel: "forward", expression: "a / b", .. }),
        "{error:?}"
    );
    let refused = "divides by zero or overflows 64 bits";
    let advice = "pass tensors of other sizes, or change the declaration";
    let expected = format!("kernel `forward`: `a / b` {refused} with a = 6, b = 0: {advice}");
    assert_eq!(error.to_string(), expected);
    let error = binder.value("1 / 0", &[], || i64::checked_div(1, 0)).expect_err("1 / 0");
    assert_eq!(error.to_string(), format!("kernel `forward`: `1 / 0` {refused}: {advice}"));
    // A requirement that has no value is neither met nor missed.
    let values = [("a", i64::MAX)];
    let require =
        |holds| binder.require("a * 2 > 0", &values, "", || holds).map_err(|error| error.to_string());
    assert_eq!(require(Some(true)), Ok(()));
    let found = "a = 9223372036854775807";
    assert_eq!(require(Some(false)), Err(format!("kernel `forward` needs a * 2 > 0, found {found}")));
    let expected = format!("kernel `forward`: `a * 2 > 0` {refused} with {found}: {advice}");
    assert_eq!(require(None), Err(expected));
    // As `ceil_div` of declarations.
    for (a, b, expected) in
        [(7, 2, Some(4)), (-7, 2, Some(-3)), (7, 0, None), (i64::MAX, 2, None), (0, i64::MIN, None)]
    {
        assert_eq!(Binder::ceil_div(a, b), expected, "{a} / {b}");
    }
}

/// Tiles of a persistent grid are counted together, in 32 bits; the sides have no limits of their own.
#[test]
fn a_persistent_grid_counts_tiles() {
    let binder = |persistent: bool| {
        let mut binder = Binder::new("forward", forward::Args::DECLARATION, &bf16_128()).unwrap();
        if persistent {
            binder.persistent();
        }
        binder
    };
    assert!(binder(true).finish((), [3, 70_000, 2]).is_ok());
    let folded = binder(false).finish((), [3, 70_000, 2]).unwrap();
    assert_eq!((folded.grid, folded.folded), ([140_000, 3, 1], true));
    assert!(binder(false).finish((), [70_000, 70_000, 2]).is_err());
    let most = i64::from(i32::MAX);
    // A block adds the grid's size to its tile: that must fit as well.
    assert!(binder(true).finish((), [most - 65_535, 1, 1]).is_ok());
    for grid in [[most, 1, 1], [most, 2, 1], [most, most, most], [-1, -1, 1], [1, 1, most + 1]] {
        assert!(matches!(binder(true).finish((), grid), Err(BindError::Grid { .. })), "{grid:?}");
    }
}

#[test]
fn parameters_of_bshd_tensors() {
    let mut args = Forward::good();
    let bshd = |address, [batch, heads, seq, d]: [usize; 4]| {
        dense(address, DType::Bf16, &[batch, seq, heads, d]).permute(&[0, 2, 1, 3]).unwrap()
    };
    (args.q, args.k, args.v, args.out) =
        (bshd(0x1000_0000, Q), bshd(0x2000_0000, KV), bshd(0x3000_0000, KV), bshd(0x6000_0000, Q));
    let params = args.bind(&bf16_128()).unwrap().params;
    assert_eq!(params.q_stride, [300 * 4 * 128, 128, 4 * 128]);
    assert_eq!(params.v_stride, [200 * 2 * 128, 128, 2 * 128]);
    assert_eq!(params.out_stride, params.q_stride);
    assert_eq!((params.seq_q, params.heads), (300, 4));
}

#[test]
fn a_shared_mask_is_repeated() {
    let mut args = Forward::good();
    args.kv_counts = dense(0x4000_0000, DType::I32, &[1, 4, 3]);
    args.kv_indices = dense(0x5000_0000, DType::I32, &[1, 1, 3, 4]);
    args.full_kv_counts = Some(dense(0x8000_0000, DType::I32, &[2, 1, 3]));
    args.full_kv_indices = Some(dense(0x9000_0000, DType::I32, &[2, 1, 3, 7]));
    let params = args.bind(&bf16_128()).unwrap().params;
    assert_eq!(params.kv_counts_stride, [0, 3]);
    assert_eq!(params.kv_indices_stride, [0, 0, 4]);
    assert_eq!((params.full_kv_counts, params.full_kv_counts_stride), (0x8000_0000, [3, 0]));
    assert_eq!((params.full_kv_indices, params.full_kv_indices_stride), (0x9000_0000, [21, 0, 7]));
    assert_eq!((params.max_blocks, params.max_full_blocks), (4, 7));
}

/// What a stride along an extent of 1 says does not matter: no element is reached with it.
#[test]
fn strides_of_single_elements_are_free() {
    let mut args = Forward::good();
    let one = [1, 4, 300, 128];
    args.q = view(0, 0x1000_0000, DType::Bf16, &one, &[7, 300 * 128, 128, 1]);
    args.k = dense(0x2000_0000, DType::Bf16, &[1, 2, 200, 128]);
    args.v = args.k.clone();
    args.kv_counts = dense(0x4000_0000, DType::I32, &[1, 4, 3]);
    args.kv_indices = view(0, 0x5000_0000, DType::I32, &[1, 4, 3, 1], &[12, 3, 1, 9]);
    args.out = dense(0x6000_0000, DType::Bf16, &one);
    args.lse = dense(0x7000_0000, DType::F32, &one[..3]);
    let params = args.bind(&bf16_128()).unwrap().params;
    assert_eq!((params.q_stride, params.batch, params.max_blocks), ([0, 300 * 128, 128], 1, 1));
}

/// One of a pair of optional outputs, and a scalar that means "not given".
#[test]
fn optional_outputs_may_be_absent() {
    let mut tensors = [0x1000_0000, 0x2000_0000, 0x3000_0000].map(|address| {
        let dtype = if address == 0x1000_0000 { DType::F32 } else { DType::I32 };
        dense(address, dtype, if address == 0x2000_0000 { &[1, 2, 3] } else { &[1, 2, 3, 4] })
    });
    let mut keep = dense(0x4000_0000, DType::I32, &[1, 2, 3, 1]);
    let [logits, kv_counts, kv_indices] = &mut tensors;
    let args = select::Args {
        logits,
        classes: None,
        kv_counts,
        kv_indices,
        full_kv_counts: None,
        full_kv_indices: None,
        keep: &mut keep,
        full_keep: None,
        row_order: None,
        finished: None,
        top_k: 0.5,
        top_p: 0.0,
    };
    let scalars = [("top_k", 0.5), ("top_p", 0.0)];
    let bound = dynamic::bind(&args, &scalars, &candidate(&select::SOURCE, &[])).unwrap();
    assert_eq!(bound.grid, [1, 2, 1]);
    assert_eq!((bound.params.classes, bound.params.full_kv_counts), (0, 0));
    assert_eq!((bound.params.top_k, bound.params.top_p), (0.5, 0.0));
}

/// What a record is kept under is made of the kernel, its spec and the sizes: of a folder's kernel the same as of the bindings.
#[test]
fn a_record_is_found_by_bindings_and_by_name() {
    for &source in tilewright::kernels::ALL {
        let (by_bindings, read) = (Generator::new(source).unwrap(), dynamic::source(&source.name));
        let by_name = Generator::new(&read).unwrap();
        let specs = by_bindings.every_spec();
        assert!(!specs.is_empty());
        for spec in specs {
            let values: Vec<_> = spec.values().iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let same = by_name.spec(&values).unwrap();
            assert_eq!(spec_fingerprint(&read, &same), spec_fingerprint(source, &spec));
            let request = dynamic::kernel(&source.name).request(&same);
            let expected = spec.values().iter().fold(Request::new(source), |request, (name, value)| {
                request.value(name.clone().leak(), *value)
            });
            assert_eq!(format!("{request:?}"), format!("{expected:?}"));
        }
        // What a record holds are fingerprints of sources.
        let fingerprints = |generator: &Generator| -> Vec<String> {
            generator.shipped().unwrap().into_iter().map(|variant| variant.fingerprint).collect()
        };
        assert_eq!(fingerprints(&by_name), fingerprints(&by_bindings));
    }
}

/// Arguments by name are all of the declaration's, each once.
#[test]
fn names_that_are_none_are_refused_with_those_that_there_are() {
    let kernel = dynamic::kernel("order");
    let tensor = |name: &str| (name.to_owned(), dense(0x1000_0000, DType::I32, &[1, 2, 3]));
    let new = |tensors: &[&str], scalars: &[(&str, f64)]| {
        let scalars: Vec<_> = scalars.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        DynamicArgs::new(kernel, tensors.iter().map(|name| tensor(name)).collect(), &scalars).map(drop)
    };
    let (both, longest) = (["row_order", "counts"], ("longest", 7.0));
    assert_eq!(new(&both, &[longest]), Ok(()));
    let whole = "needed a whole number of 32 bits";
    type Given<'a> = (&'a [&'a str], &'a [(&'a str, f64)], String);
    let mistakes: [Given; 8] = [
        (&["row_order"], &[longest], "the tensor `counts` is not given".into()),
        (&["counts", "rows", "row_order"], &[longest], "there is no tensor `rows`".into()),
        (&["counts", "row_order", "counts"], &[longest], "the tensor `counts` is given twice".into()),
        (&both, &[], "the scalar `longest` is not given".into()),
        (&both, &[longest, ("scale", 1.0)], "there is no scalar `scale`".into()),
        (&both, &[longest, longest], "the scalar `longest` is given twice".into()),
        (&both, &[("longest", 0.5)], format!("the scalar `longest` is 0.5, {whole}")),
        (&both, &[("longest", 2147483648.0)], format!("the scalar `longest` is 2147483648, {whole}")),
    ];
    for (tensors, scalars, found) in mistakes {
        let known = match found.contains("tensor") {
            true => "its tensors: counts, full_counts, row_order",
            false => "its scalars: longest",
        };
        let error = new(tensors, scalars).expect_err(&found).to_string();
        assert_eq!(error, format!("kernel `order`: {found}; {known}"));
    }
}

#[test]
fn a_dimension_that_everybody_repeats_is_1() {
    let mut binder = Binder::new("forward", forward::Args::DECLARATION, &bf16_128()).unwrap();
    let row = dense(0x1000_0000, DType::F32, &[1, 8]);
    let dims = [Dim::broadcast("rows"), Dim::exact("columns")];
    let bound = binder.input::<2, 1>("row", Some(&row), DType::F32, 1, dims).unwrap();
    assert_eq!((binder.dim("rows"), binder.dim("columns"), binder.dim("absent")), (1, 8, 0));
    assert_eq!((bound.pointer, bound.strides), (0x1000_0000, [0]));
}

/// Views of memory that somebody else owns: what they refuse, without a GPU in the machine.
#[test]
fn external_memory_is_checked_like_any_other() {
    // SAFETY: the memory is never used.
    let make = |address, shape: &[usize], strides: &[usize]| unsafe {
        Tensor::from_device_pointer(3, address, DType::F32, shape, strides)
    };
    let error = make(64, &[2, 3], &[3]).expect_err("one stride for two dimensions");
    assert!(matches!(error, Error::Tensor(TensorError::Strides { .. })), "{error}");
    for (address, shape, strides) in [
        (64, [usize::MAX, 3], [3, 1]),
        (64, [2, 3], [usize::MAX, 1]),
        (64, [3, 3], [usize::MAX / 4, 1]),
        (u64::MAX - 8, [2, 3], [3, 1]),
    ] {
        let error = make(address, &shape, &strides).expect_err("no address space holds it");
        assert!(matches!(error, Error::Tensor(TensorError::TooLarge { .. })), "{error}");
    }
    let mut tensor = make(64, &[2, 3], &[8, 1]).unwrap();
    assert_eq!((tensor.shape(), tensor.strides(), tensor.elements()), (&[2, 3][..], &[8, 1][..], 6));
    // The storage ends with the last element of the view.
    assert!(tensor.with_strides(&[11], &[1]).is_ok() && tensor.with_strides(&[12], &[1]).is_err());
    let error = tensor.host_elements::<f32>().expect_err("it is on a GPU");
    assert_eq!(error.to_string(), "the tensor is on cuda:3, needed on the CPU: call `.to(&device)` first");
    assert!(tensor.fill_bytes(0).is_err(), "it is not ours to fill");
    if Device::cuda(3).is_err() {
        assert!(matches!(tensor.to(&Device::cpu()), Err(Error::Device(_))));
        assert!(matches!(tensor.to_vec::<f32>(), Err(Error::Device(_))));
    }
}
