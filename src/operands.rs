//! Shapes of q, k and v, checked together, and their rows.

use crate::tensor::{Half, TensorError};
use crate::{DType, Error, Tensor};

/// The sizes of one attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) seq_q: usize,
    pub(crate) seq_kv: usize,
    /// Of q and k.
    pub(crate) d: usize,
    /// Of v and the output; `d` without a v.
    pub(crate) value_d: usize,
}

impl Shape {
    /// Checks that the tensors belong together: half types of one kind, four dimensions that agree, but v's last,
    /// which may be another than q's and k's where neither is 0; unit stride on the last.
    pub(crate) fn of(q: &Tensor, k: &Tensor, v: Option<&Tensor>) -> Result<Self, Error> {
        if !matches!(q.dtype(), DType::F16 | DType::Bf16) {
            return Err(half_dtype_error("q", q));
        }
        Self::alike(q, k, v)
    }

    /// The same for tensors of any one type.
    pub(crate) fn alike(q: &Tensor, k: &Tensor, v: Option<&Tensor>) -> Result<Self, Error> {
        let [batch, heads, seq_q, d] = dimensions("q", q, q.dtype())?;
        let [_, kv_heads, seq_kv, _] = dimensions("k", k, q.dtype())?;
        let value_d = match v {
            Some(v) => dimensions("v", v, q.dtype())?[3],
            None => d,
        };
        // Arrays, for a call allocates nothing.
        let of_k = [("batch", 0), ("d", 3)].map(|(name, i)| (name, i, q, k, ("q", "k")));
        let of_v = v.map(|v| {
            [("batch", 0), ("kv_heads", 1), ("seq_kv", 2)].map(|(name, i)| (name, i, k, v, ("k", "v")))
        });
        for (dimension, i, a, b, (first, second)) in of_k.into_iter().chain(of_v.into_iter().flatten()) {
            let sizes = (a.shape()[i], b.shape()[i]);
            if sizes.0 != sizes.1 {
                return Err(TensorError::Dimension { dimension, sizes, first, second }.into());
            }
        }
        if (d == 0) != (value_d == 0) {
            let (dimension, sizes, first, second) = ("d", (d, value_d), "k", "v");
            return Err(TensorError::Dimension { dimension, sizes, first, second }.into());
        }
        if kv_heads == 0 && heads > 0 || kv_heads > 0 && !heads.is_multiple_of(kv_heads) {
            return Err(TensorError::HeadGroups { heads, kv_heads }.into());
        }
        Ok(Shape { batch, heads, kv_heads, seq_q, seq_kv, d, value_d })
    }

    /// Query heads that share one key head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// `batch · kv_heads + kv_head` of `head = batch · heads + h`: batches follow one another in both.
    pub(crate) fn kv_unit(&self, head: usize) -> usize {
        head / self.group()
    }
}

/// What a backward starts from.
#[derive(Debug, Clone, Copy)]
pub struct Upstream<'a> {
    /// `[batch, heads, seq_q, head_dim]`.
    pub q: &'a Tensor,
    /// `[batch, kv_heads, seq_kv, head_dim]`.
    pub k: &'a Tensor,
    /// `[batch, kv_heads, seq_kv, value_dim]`.
    pub v: &'a Tensor,
    /// What the forward made of them, of the dtype of q: `[batch, heads, seq_q, value_dim]`.
    pub out: &'a Tensor,
    /// The forward's log-sum-exp, f32 `[batch, heads, seq_q]`.
    pub lse: &'a Tensor,
    /// The gradient by `out`, of its shape and dtype.
    pub d_out: &'a Tensor,
    /// The gradient by `lse`, of its shape and dtype; 0 when not given.
    pub d_lse: Option<&'a Tensor>,
}

impl Upstream<'_> {
    /// Checks what there is beside q, k and v, which are of `shape`.
    pub(crate) fn check(&self, shape: &Shape) -> Result<(), Error> {
        let &Upstream { q, out, lse, d_out, d_lse, .. } = self;
        let names = ["batch", "heads", "seq_q"];
        for (what, tensor) in [("out", out), ("d_out", d_out)] {
            let sizes = (shape.value_d, dimensions(what, tensor, q.dtype())?[3]);
            agree(&names, q, what, tensor)?;
            if sizes.0 != sizes.1 {
                let (dimension, first, second) = ("d", "v", what);
                return Err(TensorError::Dimension { dimension, sizes, first, second }.into());
            }
        }
        for (what, tensor) in [("lse", Some(lse)), ("d_lse", d_lse)] {
            let Some(tensor) = tensor else { continue };
            tensor.expect_dtype(what, DType::F32)?;
            if tensor.shape().len() != 3 {
                let layout = "they are batch, heads and sequence";
                return Err(rank_error(what, tensor, 3, layout).into());
            }
            agree(&names, q, what, tensor)?;
        }
        Ok(())
    }
}

/// What [`Attention::backward`](crate::Attention::backward) returns: gradients in the dtype of q, summed in f32, contiguous.
#[derive(Debug)]
pub struct Gradients {
    /// `[batch, heads, seq_q, head_dim]`. Rows with nothing to attend to have 0.
    pub dq: Tensor,
    /// `[batch, kv_heads, seq_kv, head_dim]`, summed over the heads that share a key head. Keys nobody attends to have 0.
    pub dk: Tensor,
    /// `[batch, kv_heads, seq_kv, value_dim]`, otherwise as `dk`.
    pub dv: Tensor,
}

pub(crate) fn half_dtype_error(what: &str, tensor: &Tensor) -> Error {
    TensorError::DType { what: what.into(), found: tensor.dtype(), needed: "f16 or bf16".into() }.into()
}

fn rank_error(what: &str, tensor: &Tensor, needed: usize, layout: &str) -> TensorError {
    let shape = tensor.shape().to_vec();
    TensorError::Rank { what: what.into(), found: shape.len(), needed, shape, layout: layout.into() }
}

/// Checks that `tensor` has the first dimensions of q.
fn agree(names: &[&'static str], q: &Tensor, what: &'static str, tensor: &Tensor) -> Result<(), TensorError> {
    for (dimension, sizes) in names.iter().zip(q.shape().iter().copied().zip(tensor.shape().iter().copied()))
    {
        if sizes.0 != sizes.1 {
            return Err(TensorError::Dimension { dimension, sizes, first: "q", second: what });
        }
    }
    Ok(())
}

fn dimensions(what: &str, tensor: &Tensor, dtype: DType) -> Result<[usize; 4], TensorError> {
    if tensor.dtype() != dtype {
        let (found, needed) = (tensor.dtype(), format!("{dtype} as q has"));
        return Err(TensorError::DType { what: what.into(), found, needed });
    }
    let shape = tensor.shape();
    let Ok(dimensions) = <[usize; 4]>::try_from(shape) else {
        return Err(rank_error(what, tensor, 4, "they are batch, heads, sequence and head dimension"));
    };
    if dimensions[3] > 1 && tensor.strides()[3] != 1 {
        return Err(TensorError::Strides {
            strides: tensor.strides().to_vec(),
            shape: shape.to_vec(),
            elements: tensor.elements(),
            why: "the head dimension must have unit stride",
        });
    }
    Ok(dimensions)
}

/// Rows of a `[batch, heads, seq, d]` tensor with any strides but that of d.
pub(crate) struct Rows<'a, T> {
    elements: &'a [T],
    strides: [usize; 3],
    heads: usize,
    d: usize,
}

impl<'a, T: Half> Rows<'a, T> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self, Error> {
        let (shape, strides) = (tensor.shape(), tensor.strides());
        Ok(Rows {
            elements: tensor.host_elements()?,
            strides: [strides[0], strides[1], strides[2]],
            heads: shape[1],
            d: shape[3],
        })
    }

    /// Widens rows `first..` of `head = batch · heads + h` until `to` is full.
    pub(crate) fn widen(&self, head: usize, first: usize, to: &mut [f32]) {
        let base = head / self.heads * self.strides[0] + head % self.heads * self.strides[1];
        if self.strides[2] == self.d {
            let start = base + first * self.d;
            return T::widen_slice(&self.elements[start..start + to.len()], to);
        }
        for (i, to) in to.chunks_mut(self.d).enumerate() {
            let start = base + (first + i) * self.strides[2];
            T::widen_slice(&self.elements[start..start + self.d], to);
        }
    }
}
