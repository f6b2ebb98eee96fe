//! The gradients of a call, over tensors of PyTorch or numpy.

use crate::call::{Inputs, Options, apart};
use crate::error::to_python;
use crate::make;
use crate::ops::Lists;
use crate::view::View;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tilewright::{Error, Output};

type Gradients<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The gradients `(dq, dk, dv)` of what [`attention`](crate::ops::attention) made of the same arguments, `out` and `lse`; each
/// is like the tensor it belongs to.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what an operator of PyTorch takes")]
#[pyo3(signature = (d_out, d_lse, q, k, v, out, lse, kv_counts, kv_indices, full_counts, full_indices, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa))]
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
) -> PyResult<Gradients<'py>> {
    let options =
        Options { top_k: None, top_p: None, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa };
    let inputs = Inputs::of(q, k, Some(v), false, &options)?;
    if inputs.q.ordinal.is_some() {
        return Err(to_python(Error::CpuOnly { what: "the backward" }));
    }
    let lists = Lists::of(&inputs, (kv_counts, kv_indices), (full_counts, full_indices))?;
    let rows = Rows {
        d_out: View::half("d_out", inputs.kind, d_out)?,
        d_lse: d_lse.map(|d_lse| View::any("d_lse", inputs.kind, d_lse)).transpose()?,
        out: View::half("out", inputs.kind, out)?,
        lse: View::any("lse", inputs.kind, lse)?,
    };
    rows.are_on_the_cpu()?;
    let attention = inputs.attention(py, &options)?;
    let like = |tensor| -> PyResult<_> {
        let made = make::like(inputs.kind, tensor)?;
        let view = make::view::<4>(inputs.kind, &made)?;
        Ok((made, view))
    };
    let ((dq, dq_view), (dk, dk_view), (dv, dv_view)) = (like(q)?, like(k)?, like(v)?);
    let seqs = (inputs.q.shape[2], inputs.k.shape[2]);
    apart(py, || {
        // SAFETY: the caller holds the tensors, and whoever writes to them meanwhile races as with any operator; the gradients
        // were made above and nobody else has them.
        unsafe {
            let (q, k, v) = inputs.copied()?;
            let v = v.as_ref().unwrap_or(&k);
            let mask = lists.mask((block_q, block_kv), seqs)?;
            let output = Output { out: rows.out.copied()?, lse: rows.lse.copied()?, mask };
            let d_lse = rows.d_lse.map(|d_lse| d_lse.copied()).transpose()?;
            let found = attention.backward(&q, &k, v, &output, &rows.d_out.copied()?, d_lse.as_ref())?;
            dq_view.write(&found.dq)?;
            dk_view.write(&found.dk)?;
            dv_view.write(&found.dv)
        }
    })?;
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
    fn are_on_the_cpu(&self) -> PyResult<()> {
        let d_lse = self.d_lse.as_ref().map(|view| (view.ordinal, view.place()));
        for (what, at) in [
            ("d_out", Some((self.d_out.ordinal, self.d_out.place()))),
            ("d_lse", d_lse),
            ("out", Some((self.out.ordinal, self.out.place()))),
            ("lse", Some((self.lse.ordinal, self.lse.place()))),
        ] {
            if let Some((Some(_), place)) = at {
                return Err(PyValueError::new_err(format!(
                    "q is on cpu, {what} is on {place}: move it with `.to(q.device)`"
                )));
            }
        }
        Ok(())
    }
}
