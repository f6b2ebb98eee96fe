//! The gradients of a call, over tensors of PyTorch or numpy.

use crate::attentions::Selects;
use crate::call::{Inputs, Options};
use crate::make;
use crate::ops::{self, Lists};
use crate::view::View;
use crate::work::{apart, interruptible, unpanicked};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tilewright::attention::{Backward, Step};
use tilewright::{Attention, DType, Output};

type Gradients<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The gradients `(dq, dk, dv)` of what [`attention`](crate::ops::attention) made of the same arguments, `out` and `lse`; each
/// is like the tensor it belongs to.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what an operator of PyTorch takes")]
#[pyo3(signature = (d_out, d_lse, q, k, v, out, lse, kv_counts, kv_indices, full_counts, full_indices, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, dropped = None, tail = 0))]
pub(crate) fn attention_backward<'py>(
    py: Python<'py>,
    d_out: &Bound<'py, PyAny>,
    d_lse: Option<&Bound<'py, PyAny>>,
    q: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    v: &Bound<'py, PyAny>,
    out: &Bound<'py, PyAny>,
    lse: &Bound<'py, PyAny>,
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
    dropped: Option<&Bound<'py, PyAny>>,
    tail: i64,
) -> PyResult<Gradients<'py>> {
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
    let inputs = Inputs::of(q, k, Some(v), false, &options)?;
    let lists = Lists::of(&inputs, (kv_counts, kv_indices), (full_counts, full_indices), dropped)?;
    let rows = Rows {
        d_out: View::half("d_out", inputs.kind, d_out)?,
        d_lse: d_lse.map(|d_lse| View::any("d_lse", inputs.kind, d_lse)).transpose()?,
        out: View::half("out", inputs.kind, out)?,
        lse: View::any("lse", inputs.kind, lse)?,
    };
    rows.are_with(&inputs.q)?;
    let attention = inputs.attention(py, &options)?;
    if inputs.q.ordinal.is_some() {
        return on_gpu(py, [q, k, v], &inputs, &lists, &rows, &attention);
    }
    let like = |tensor| -> PyResult<_> {
        let made = make::like(inputs.kind, tensor)?;
        let view = make::view::<4>(inputs.kind, &made)?;
        Ok((made, view))
    };
    let ((dq, dq_view), (dk, dk_view), (dv, dv_view)) = (like(q)?, like(k)?, like(v)?);
    let seqs = (inputs.q.shape[2], inputs.k.shape[2]);
    interruptible(py, || {
        // SAFETY: the caller holds the tensors, and whoever writes to them meanwhile races as with any operator; the gradients
        // were made above and nobody else has them.
        unsafe {
            let (q, k, v) = inputs.copied()?;
            let v = v.as_ref().unwrap_or(&k);
            let mask = lists.mask((block_q, block_kv), seqs)?;
            let output = Output { out: rows.out.copied()?, lse: rows.lse.copied()?, mask };
            let d_lse = rows.d_lse.as_ref().map(|d_lse| d_lse.copied()).transpose()?;
            let found = attention.backward(&q, &k, v, &output, &rows.d_out.copied()?, d_lse.as_ref())?;
            dq_view.write(&found.dq)?;
            dk_view.write(&found.dk)?;
            dv_view.write(&found.dv)
        }
    })?;
    Ok((dq, dk, dv))
}

/// The same on a GPU, in memory of PyTorch's and on its stream.
fn on_gpu<'py>(
    py: Python<'py>,
    [q, k, v]: [&Bound<'py, PyAny>; 3],
    inputs: &Inputs,
    lists: &Lists,
    rows: &Rows,
    attention: &Attention,
) -> PyResult<Gradients<'py>> {
    // SAFETY: the caller holds the tensors until the launches are on the stream, and PyTorch frees in the stream's order.
    let ((q_view, k_view, v_view), lists, [out, lse, d_out], d_lse) = unsafe {
        let of_rows = [rows.out.on_gpu("out")?, rows.lse.on_gpu("lse")?, rows.d_out.on_gpu("d_out")?];
        let d_lse = rows.d_lse.as_ref().map(|d_lse| d_lse.on_gpu("d_lse")).transpose()?;
        (inputs.on_gpu()?, lists.on_gpu()?, of_rows, d_lse)
    };
    let v_view = v_view.unwrap_or_else(|| k_view.clone());
    let (plan, bytes) = ops::planned(attention, &q_view, &k_view, Step::Backward(&lists))?;
    let memory = inputs.scratch(q, bytes)?;
    let ordinal = inputs.q.ordinal.unwrap_or_default();
    let mut scratch = ops::on_gpu(ordinal, memory.address, DType::U8, &[bytes])?;
    let [dq, dk, dv] = [q, k, v].map(|tensor| make::like(inputs.kind, tensor));
    let (dq, dk, dv) = (dq?, dk?, dv?);
    let view = |made| ops::gpu_view::<4>(inputs.kind, made, false);
    let mut gradients = tilewright::Gradients { dq: view(&dq)?, dk: view(&dk)?, dv: view(&dv)? };
    let warm = plan.is_warm(Step::Backward(&lists));
    let backward = Backward {
        q: &q_view,
        k: &k_view,
        v: &v_view,
        out: &out,
        lse: &lse,
        d_out: &d_out,
        d_lse: d_lse.as_ref(),
        lists: &lists,
        gradients: &mut gradients,
    };
    let launch = || plan.run(backward, &mut scratch);
    if warm {
        unpanicked(launch)?
    } else {
        apart(py, launch)?
    }
    Ok((dq, dk, dv))
}

/// What has a row for every query.
struct Rows {
    d_out: View<4>,
    d_lse: Option<View<3>>,
    out: View<4>,
    lse: View<3>,
}

impl Rows {
    fn are_with(&self, q: &View<4>) -> PyResult<()> {
        let d_lse = self.d_lse.as_ref().map(|view| (view.ordinal, view.place()));
        for (what, at) in [
            ("d_out", Some((self.d_out.ordinal, self.d_out.place()))),
            ("d_lse", d_lse),
            ("out", Some((self.out.ordinal, self.out.place()))),
            ("lse", Some((self.lse.ordinal, self.lse.place()))),
        ] {
            if let Some((ordinal, place)) = at
                && ordinal != q.ordinal
            {
                return Err(PyValueError::new_err(format!(
                    "q is on {}, {what} is on {place}: move it with `.to(q.device)`",
                    q.place()
                )));
            }
        }
        Ok(())
    }
}
