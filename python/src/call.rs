//! What every call has in common: its tensors looked at together, its attention, where it runs.

use crate::attentions::{self, Parameters, Selects};
use crate::make;
use crate::torch::{Scratch, Torch};
use crate::view::{Kind, View};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::sync::Arc;
use tilewright::{Attention, Tail, Tensor};

/// The options of a call, as the package passes them.
pub(crate) struct Options {
    pub(crate) select: Selects,
    pub(crate) block_q: usize,
    pub(crate) block_kv: usize,
    pub(crate) scale: Option<f64>,
    pub(crate) score_mod: u64,
    pub(crate) mask_mod: u64,
    pub(crate) enable_gqa: bool,
    /// What stands for dropped blocks: see [`tail`].
    pub(crate) tail: i64,
}

/// The tail of a number: 0 for none, -1 for that of a block, and the keys of a run for that of a row.
fn tail(number: i64) -> PyResult<Tail> {
    match usize::try_from(number) {
        Ok(0) => Ok(Tail::None),
        Ok(keys) => Ok(Tail::Row { keys }),
        Err(_) if number == -1 => Ok(Tail::Block),
        Err(_) => Err(PyValueError::new_err(format!(
            "tail is number {number}, needed 0 for none, -1 for the block tail, or the keys of a run for the row tail"
        ))),
    }
}

/// q, k and maybe v, which belong together.
pub(crate) struct Inputs {
    pub(crate) kind: Kind,
    pub(crate) q: View<4>,
    pub(crate) k: View<4>,
    pub(crate) v: Option<View<4>>,
    /// PyTorch's current stream of their GPU; 0 in host memory.
    stream: usize,
}

impl Inputs {
    /// Looks at the tensors. With `heads_last` they are `[batch, seq, heads, d]`.
    pub(crate) fn of(
        q: &Bound<'_, PyAny>,
        k: &Bound<'_, PyAny>,
        v: Option<&Bound<'_, PyAny>>,
        heads_last: bool,
        options: &Options,
    ) -> PyResult<Self> {
        let (py, kind) = (q.py(), Kind::of(q)?);
        let torch = Torch::get(py);
        let order = |view: View<4>| if heads_last { view.heads_first() } else { view };
        let look = |what: &str, object| View::half(what, kind, object).map(order);
        let (q, k, v) = (look("q", q)?, look("k", k)?, v.map(|v| look("v", v)).transpose()?);
        let stream = match (q.ordinal, torch) {
            (Some(ordinal), Some(torch)) => torch.stream(py, ordinal)?,
            _ => 0,
        };
        let inputs = Inputs { kind, q, k, v, stream };
        for (what, other) in [("k", Some(&inputs.k)), ("v", inputs.v.as_ref())] {
            if let Some(other) = other {
                inputs.agree(what, other)?;
            }
        }
        let (heads, kv_heads) = (inputs.q.shape[1], inputs.k.shape[1]);
        if heads != kv_heads && !options.enable_gqa {
            return Err(PyValueError::new_err(format!(
                "q has {heads} heads and k has {kv_heads}: pass enable_gqa=True to share each key head among query heads, \
                 or check the layout (\"BHSD\" is batch, heads, sequence, head dimension; \"BSHD\" is batch, sequence, heads, head dimension)"
            )));
        }
        Ok(inputs)
    }

    fn agree(&self, what: &str, other: &View<4>) -> PyResult<()> {
        let q = &self.q;
        if other.dtype != q.dtype {
            return Err(PyTypeError::new_err(format!(
                "q has dtype {}, {what} has {}: cast them to one of the two",
                q.dtype, other.dtype
            )));
        }
        if other.ordinal != q.ordinal {
            return Err(PyValueError::new_err(format!(
                "q is on {}, {what} is on {}: move them to one device with `.to(q.device)`",
                q.place(),
                other.place()
            )));
        }
        Ok(())
    }

    /// The last dimension of the output: v's.
    pub(crate) fn value_dim(&self) -> usize {
        self.v.as_ref().unwrap_or(&self.q).shape[3]
    }

    /// A tensor for the output: as `q`, dense, or contiguous where v's last dimension is another. `q` is the tensor that
    /// [`Inputs::of`] looked at.
    pub(crate) fn make_out<'py>(
        &self,
        q: &Bound<'py, PyAny>,
        heads_last: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let [batch, heads, seq, d] = self.q.shape;
        let value_dim = self.value_dim();
        if value_dim == d {
            return make::like(self.kind, q);
        }
        let shape = if heads_last { [batch, seq, heads, value_dim] } else { [batch, heads, seq, value_dim] };
        make::beside(self.kind, q, self.q.dtype, &shape)
    }

    /// The attention of the call, on PyTorch's current stream.
    pub(crate) fn attention(&self, py: Python<'_>, options: &Options) -> PyResult<Arc<Attention>> {
        let kind = attentions::Kind {
            ordinal: self.q.ordinal,
            head_dim: self.q.shape[3],
            value_dim: self.value_dim(),
            dtype: self.q.dtype,
            blocks: (options.block_q, options.block_kv),
            functions: (options.score_mod, options.mask_mod),
            tail: tail(options.tail)?,
        };
        attentions::find(
            py,
            kind,
            Parameters { select: options.select, scale: options.scale, stream: self.stream },
        )
    }

    /// GPU memory for the call to work in. `q` is the tensor that [`Inputs::of`] looked at.
    pub(crate) fn scratch<'py>(&self, q: &Bound<'py, PyAny>, bytes: usize) -> PyResult<Scratch<'py>> {
        make::torch(q.py())?.scratch(q, self.q.ordinal.unwrap_or_default(), self.stream, bytes)
    }

    /// q, k and v on their GPU.
    ///
    /// # Safety
    /// As for [`View::on_gpu`].
    pub(crate) unsafe fn on_gpu(&self) -> PyResult<(Tensor, Tensor, Option<Tensor>)> {
        // SAFETY: the caller's.
        unsafe {
            let v = self.v.as_ref().map(|v| v.on_gpu("v")).transpose()?;
            Ok((self.q.on_gpu("q")?, self.k.on_gpu("k")?, v))
        }
    }

    /// Copies of q, k and v in host memory.
    ///
    /// # Safety
    /// As for [`View::copied`].
    pub(crate) unsafe fn copied(&self) -> Result<(Tensor, Tensor, Option<Tensor>), tilewright::Error> {
        // SAFETY: the caller's.
        unsafe {
            let v = self.v.as_ref().map(|v| v.copied()).transpose()?;
            Ok((self.q.copied()?, self.k.copied()?, v))
        }
    }
}
