//! The three calls, over tensors of PyTorch or numpy.

use crate::attentions::Selects;
use crate::call::{Inputs, Options};
use crate::make;
use crate::view::{Kind, View};
use crate::work::{apart, interruptible, unpanicked};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use tilewright::attention::{Attend, Forward, MaskLists, Plan, Select, Shapes, Step};
use tilewright::{Attention, BlockIndex, BlockMask, BlockSize, DType, SeqLens, Tensor};

type Pair<'py> = (Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);

/// Selects blocks and attends to them: `(out, lse or None)`. `out` has the shape and layout of q with the last dimension of
/// v, lse is `[batch, heads, seq_q]`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what an operator of PyTorch takes")]
#[pyo3(signature = (q, k, v, top_k, top_p, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, heads_last, want_lse, tail = 0, by_keys = false))]
pub(crate) fn sparse_attention<'py>(
    py: Python<'py>,
    q: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    v: &Bound<'py, PyAny>,
    top_k: Option<f64>,
    top_p: Option<f64>,
    block_q: usize,
    block_kv: usize,
    scale: Option<f64>,
    score_mod: u64,
    mask_mod: u64,
    enable_gqa: bool,
    heads_last: bool,
    want_lse: bool,
    tail: i64,
    by_keys: bool,
) -> PyResult<Pair<'py>> {
    let options = Options {
        select: Selects { top_k, top_p, by_keys },
        block_q,
        block_kv,
        scale,
        score_mod,
        mask_mod,
        enable_gqa,
        tail,
    };
    let inputs = Inputs::of(q, k, Some(v), heads_last, &options)?;
    let attention = inputs.attention(py, &options)?;
    if inputs.q.ordinal.is_none() {
        let computed = interruptible(py, || {
            // SAFETY: the caller holds the tensors, and whoever writes to them meanwhile races as with any operator.
            let (q, k, v) = unsafe { inputs.copied()? };
            let v = v.as_ref().unwrap_or(&k);
            let output = attention.forward(&q, &k, v)?;
            Ok((output.out, output.lse))
        })?;
        return give(py, &inputs, q, heads_last, want_lse, computed);
    }
    // SAFETY: the caller holds the tensors until the launches are on the stream, and PyTorch frees in the stream's order.
    let (q_view, k_view, v_view) = unsafe { inputs.on_gpu()? };
    let v_view = v_view.unwrap_or_else(|| k_view.clone());
    let (plan, bytes) = planned(&attention, &q_view, &k_view, Step::Forward)?;
    let out = inputs.make_out(q, heads_last)?;
    let rows = &inputs.q.shape[..3];
    // Without a wish for it, lse lies in front of the scratch.
    let lse_bytes = if want_lse { 0 } else { (rows.iter().product::<usize>() * 4).next_multiple_of(256) };
    let memory = inputs.scratch(q, lse_bytes + bytes)?;
    let address = memory.address;
    let lse = want_lse.then(|| make::beside(inputs.kind, q, DType::F32, rows)).transpose()?;
    let mut out_view = gpu_view::<4>(inputs.kind, &out, heads_last)?;
    let ordinal = inputs.q.ordinal.unwrap_or_default();
    let mut lse_view = match &lse {
        Some(lse) => gpu_view::<3>(inputs.kind, lse, false)?,
        None => on_gpu(ordinal, address, DType::F32, rows)?,
    };
    let mut scratch = on_gpu(ordinal, address + lse_bytes as u64, DType::U8, &[bytes])?;
    let warm = plan.is_warm(Step::Forward);
    let forward = Forward { q: &q_view, k: &k_view, v: &v_view, out: &mut out_view, lse: &mut lse_view };
    let launch = || plan.run(forward, &mut scratch);
    if warm {
        unpanicked(launch)?
    } else {
        apart(py, launch)?
    }
    Ok((out, lse))
}

/// The lists of the block mask: kv counts and indices, their transposes, and with a mask function the same four of full blocks. `dropped`: and
/// the bits of the blocks that are dropped, `[batch, heads, q_blocks, ceil(kv_blocks / 32)]`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what an operator of PyTorch takes")]
#[pyo3(signature = (q, k, top_k, top_p, block_q, block_kv, scale, mask_mod, enable_gqa, dropped = false, by_keys = false))]
pub(crate) fn block_mask<'py>(
    py: Python<'py>,
    q: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    top_k: Option<f64>,
    top_p: Option<f64>,
    block_q: usize,
    block_kv: usize,
    scale: Option<f64>,
    mask_mod: u64,
    enable_gqa: bool,
    dropped: bool,
    by_keys: bool,
) -> PyResult<Bound<'py, PyList>> {
    // Every tail drops the same blocks.
    let tail = if dropped { -1 } else { 0 };
    let options = Options {
        select: Selects { top_k, top_p, by_keys },
        block_q,
        block_kv,
        scale,
        score_mod: 0,
        mask_mod,
        enable_gqa,
        tail,
    };
    let inputs = Inputs::of(q, k, None, false, &options)?;
    let attention = inputs.attention(py, &options)?;
    let [batch, heads, seq_q, _] = inputs.q.shape;
    let (q_blocks, kv_blocks) = (seq_q.div_ceil(block_q), inputs.k.shape[2].div_ceil(block_kv));
    let made = PyList::empty(py);
    for _ in 0..if mask_mod == 0 { 1 } else { 2 } {
        for (rows, width) in [(q_blocks, kv_blocks), (kv_blocks, q_blocks)] {
            made.append(make::beside(inputs.kind, q, DType::I32, &[batch, heads, rows])?)?;
            made.append(make::beside(inputs.kind, q, DType::I32, &[batch, heads, rows, width])?)?;
        }
    }
    let bits = match dropped {
        true => {
            let shape = [batch, heads, q_blocks, kv_blocks.div_ceil(32)];
            let bits = make::beside(inputs.kind, q, DType::I32, &shape)?;
            made.append(&bits)?;
            Some(bits)
        }
        false => None,
    };
    if inputs.q.ordinal.is_none() {
        let mask = interruptible(py, || {
            // SAFETY: as in `sparse_attention`.
            let (q, k, _) = unsafe { inputs.copied()? };
            attention.mask(&q, &k)
        })?;
        let lists = [Some(mask.kv()), Some(mask.q()), mask.full_kv(), mask.full_q()];
        for (i, index) in lists.into_iter().flatten().enumerate() {
            let counts = make::view::<3>(inputs.kind, &made.get_item(2 * i)?)?;
            let indices = make::view::<4>(inputs.kind, &made.get_item(2 * i + 1)?)?;
            // SAFETY: both were made above and nobody else has them.
            unpanicked(|| unsafe {
                counts.write(&index.counts)?;
                indices.write(&index.indices)
            })?;
        }
        if let (Some(bits), Some(found)) = (&bits, mask.dropped()) {
            let bits = make::view::<4>(inputs.kind, bits)?;
            // SAFETY: as the lists.
            unpanicked(|| unsafe { bits.write(found) })?;
        }
        return Ok(made);
    }
    // SAFETY: as in `sparse_attention`.
    let (q_view, k_view, _) = unsafe { inputs.on_gpu()? };
    let index = |i: usize| -> PyResult<BlockIndex> {
        Ok(BlockIndex {
            counts: gpu_view::<3>(inputs.kind, &made.get_item(2 * i)?, false)?,
            indices: gpu_view::<4>(inputs.kind, &made.get_item(2 * i + 1)?, false)?,
        })
    };
    let split = mask_mod != 0;
    let mut lists = MaskLists {
        kv: index(0)?,
        q: Some(index(1)?),
        full_kv: split.then(|| index(2)).transpose()?,
        full_q: split.then(|| index(3)).transpose()?,
        dropped: bits.map(|bits| gpu_view::<4>(inputs.kind, &bits, false)).transpose()?,
    };
    let (plan, bytes) = planned(&attention, &q_view, &k_view, Step::Select { by_key: true })?;
    let memory = inputs.scratch(q, bytes)?;
    let mut scratch = on_gpu(inputs.q.ordinal.unwrap_or_default(), memory.address, DType::U8, &[bytes])?;
    apart(py, || plan.run(Select { q: &q_view, k: &k_view, lists: &mut lists }, &mut scratch))?;
    Ok(made)
}

/// Attends to the blocks that the lists name: `(out, lse)` as [`sparse_attention`].
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what an operator of PyTorch takes")]
#[pyo3(signature = (q, k, v, kv_counts, kv_indices, full_counts, full_indices, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, heads_last, dropped = None, tail = 0))]
pub(crate) fn attention<'py>(
    py: Python<'py>,
    q: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    v: &Bound<'py, PyAny>,
    kv_counts: &Bound<'py, PyAny>,
    kv_indices: &Bound<'py, PyAny>,
    full_counts: Option<&Bound<'py, PyAny>>,
    full_indices: Option<&Bound<'py, PyAny>>,
    block_q: usize,
    block_kv: usize,
    scale: Option<f64>,
    score_mod: u64,
    mask_mod: u64,
    enable_gqa: bool,
    heads_last: bool,
    dropped: Option<&Bound<'py, PyAny>>,
    tail: i64,
) -> PyResult<Pair<'py>> {
    let options = Options {
        select: Selects::default(),
        block_q,
        block_kv,
        scale,
        score_mod,
        mask_mod,
        enable_gqa,
        tail,
    };
    let inputs = Inputs::of(q, k, Some(v), heads_last, &options)?;
    let lists = Lists::of(&inputs, (kv_counts, kv_indices), (full_counts, full_indices), dropped)?;
    let attention = inputs.attention(py, &options)?;
    if inputs.q.ordinal.is_none() {
        let seqs = (inputs.q.shape[2], inputs.k.shape[2]);
        let computed = interruptible(py, || {
            // SAFETY: as in `sparse_attention`.
            let ((q, k, v), mask) = unsafe { (inputs.copied()?, lists.mask((block_q, block_kv), seqs)?) };
            let v = v.as_ref().unwrap_or(&k);
            attention.attend_with(&q, &k, v, &mask)
        })?;
        return give(py, &inputs, q, heads_last, true, computed);
    }
    // SAFETY: as in `sparse_attention`.
    let ((q_view, k_view, v_view), lists) = unsafe { (inputs.on_gpu()?, lists.on_gpu()?) };
    let v_view = v_view.unwrap_or_else(|| k_view.clone());
    let out = inputs.make_out(q, heads_last)?;
    let lse = make::beside(inputs.kind, q, DType::F32, &inputs.q.shape[..3])?;
    let mut out_view = gpu_view::<4>(inputs.kind, &out, heads_last)?;
    let mut lse_view = gpu_view::<3>(inputs.kind, &lse, false)?;
    let (plan, bytes) = planned(&attention, &q_view, &k_view, Step::Attend(&lists))?;
    let memory = inputs.scratch(q, bytes)?;
    let mut scratch = on_gpu(inputs.q.ordinal.unwrap_or_default(), memory.address, DType::U8, &[bytes])?;
    let warm = plan.is_warm(Step::Attend(&lists));
    let attend =
        Attend { q: &q_view, k: &k_view, v: &v_view, lists: &lists, out: &mut out_view, lse: &mut lse_view };
    let launch = || plan.run(attend, &mut scratch);
    if warm {
        unpanicked(launch)?
    } else {
        apart(py, launch)?
    }
    Ok((out, Some(lse)))
}

/// The plan of a call over tensors on a GPU, and the bytes of scratch that a step of it wants.
pub(crate) fn planned(
    attention: &Attention,
    q: &Tensor,
    k: &Tensor,
    step: Step<'_>,
) -> PyResult<(Plan, usize)> {
    unpanicked(|| {
        let plan = attention.plan(Shapes::of(q, k)?)?;
        let bytes = plan.scratch_bytes(step)?;
        Ok((plan, bytes))
    })
}

/// One pair of block lists.
struct List {
    counts: View<3>,
    indices: View<4>,
}

/// The lists of a call.
pub(crate) struct Lists {
    kv: List,
    full: Option<List>,
    /// The bits of dropped blocks.
    dropped: Option<View<4>>,
}

/// An object of Python's, where there is one.
type Maybe<'a, 'py> = Option<&'a Bound<'py, PyAny>>;

impl Lists {
    /// Looks at counts and indices, at those of full blocks, and at the bits of dropped ones.
    pub(crate) fn of<'py>(
        inputs: &Inputs,
        (counts, indices): (&Bound<'py, PyAny>, &Bound<'py, PyAny>),
        full: (Maybe<'_, 'py>, Maybe<'_, 'py>),
        dropped: Maybe<'_, 'py>,
    ) -> PyResult<Self> {
        let dropped = dropped.map(|bits| View::int("dropped", inputs.kind, bits)).transpose()?;
        if let Some(bits) = &dropped {
            in_place(inputs, "dropped", bits)?;
        }
        Ok(Lists {
            kv: List::of("kv_num_blocks", "kv_indices", inputs, counts, indices)?,
            full: match full {
                (Some(counts), Some(indices)) => {
                    Some(List::of("full_kv_num_blocks", "full_kv_indices", inputs, counts, indices)?)
                }
                (None, None) => None,
                _ => {
                    return Err(PyValueError::new_err(
                        "full_kv_num_blocks and full_kv_indices come together: pass both, or neither",
                    ));
                }
            },
            dropped,
        })
    }

    /// The lists on their GPU, without those by key.
    ///
    /// # Safety
    /// As for [`View::on_gpu`].
    pub(crate) unsafe fn on_gpu(&self) -> PyResult<MaskLists> {
        // SAFETY: the caller's.
        unsafe {
            let full_kv = self.full.as_ref().map(|full| full.on_gpu()).transpose()?;
            let dropped = self.dropped.as_ref().map(|bits| bits.on_gpu("dropped")).transpose()?;
            Ok(MaskLists { full_kv, dropped, ..MaskLists::new(self.kv.on_gpu()?) })
        }
    }

    /// The mask of lists in host memory.
    ///
    /// # Safety
    /// As for [`View::copied`].
    pub(crate) unsafe fn mask(
        &self,
        blocks: (usize, usize),
        seqs: (usize, usize),
    ) -> Result<BlockMask, tilewright::Error> {
        // SAFETY: the caller's.
        let (BlockIndex { counts, indices }, full, dropped) = unsafe {
            let full = self.full.as_ref().map(|full| full.copied()).transpose()?;
            (self.kv.copied()?, full, self.dropped.as_ref().map(|bits| bits.copied()).transpose()?)
        };
        let (blocks, seqs) = (BlockSize::new(blocks.0, blocks.1)?, SeqLens { q: seqs.0, kv: seqs.1 });
        let mask = BlockMask::from_kv_indices(counts, indices, full, blocks, seqs)?;
        match dropped {
            Some(dropped) => mask.with_dropped(dropped),
            None => Ok(mask),
        }
    }
}

impl List {
    fn of(
        counts_name: &str,
        indices_name: &str,
        inputs: &Inputs,
        counts: &Bound<'_, PyAny>,
        indices: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let list = List {
            counts: View::int(counts_name, inputs.kind, counts)?,
            indices: View::int(indices_name, inputs.kind, indices)?,
        };
        in_place(inputs, counts_name, &list.counts)?;
        in_place(inputs, indices_name, &list.indices)?;
        Ok(list)
    }

    /// # Safety
    /// As for [`View::on_gpu`].
    unsafe fn on_gpu(&self) -> PyResult<BlockIndex> {
        // SAFETY: the caller's.
        unsafe {
            Ok(BlockIndex {
                counts: self.counts.on_gpu("kv_num_blocks")?,
                indices: self.indices.on_gpu("kv_indices")?,
            })
        }
    }

    /// # Safety
    /// As for [`View::copied`].
    unsafe fn copied(&self) -> Result<BlockIndex, tilewright::Error> {
        // SAFETY: the caller's.
        unsafe { Ok(BlockIndex { counts: self.counts.copied()?, indices: self.indices.copied()? }) }
    }
}

/// Refuses a tensor of a mask that is not where q is.
fn in_place<const N: usize>(inputs: &Inputs, name: &str, found: &View<N>) -> PyResult<()> {
    if found.ordinal == inputs.q.ordinal {
        return Ok(());
    }
    let (needed, place) = (inputs.q.place(), found.place());
    Err(PyValueError::new_err(format!(
        "q is on {needed}, {name} of the mask is on {place}: move the mask with `mask.to(q.device)`"
    )))
}

/// A tensor that was just made, on its GPU.
pub(crate) fn gpu_view<const N: usize>(
    kind: Kind,
    made: &Bound<'_, PyAny>,
    heads_last: bool,
) -> PyResult<Tensor> {
    let view = make::view::<N>(kind, made)?;
    let view = if heads_last { view.heads_first() } else { view };
    // SAFETY: it was made for this call, on its stream.
    unsafe { view.on_gpu("the result") }
}

/// A contiguous tensor in scratch memory.
pub(crate) fn on_gpu(ordinal: usize, address: u64, dtype: DType, shape: &[usize]) -> PyResult<Tensor> {
    let strides = tilewright::Tensor::contiguous_strides(shape);
    // SAFETY: the memory was made for this call, large enough for it.
    let tensor = unsafe { Tensor::from_device_pointer(ordinal, address, dtype, shape, &strides) };
    tensor.map_err(crate::error::to_python)
}

/// Puts results of the CPU executor into tensors of the caller's framework.
fn give<'py>(
    py: Python<'py>,
    inputs: &Inputs,
    q: &Bound<'py, PyAny>,
    heads_last: bool,
    want_lse: bool,
    (out, lse): (Tensor, Tensor),
) -> PyResult<Pair<'py>> {
    let given = inputs.make_out(q, heads_last)?;
    let view = make::view::<4>(inputs.kind, &given)?;
    let view = if heads_last { view.heads_first() } else { view };
    let rows = &inputs.q.shape[..3];
    let given_lse = want_lse.then(|| make::beside(inputs.kind, q, DType::F32, rows)).transpose()?;
    let lse_view = given_lse.as_ref().map(|lse| make::view::<3>(inputs.kind, lse)).transpose()?;
    apart(py, || {
        // SAFETY: both were made above and nobody else has them.
        unsafe {
            view.write(&out)?;
            lse_view.map_or(Ok(()), |view| view.write(&lse))
        }
    })?;
    Ok((given, given_lse))
}
