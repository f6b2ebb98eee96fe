//! The two orders of dimensions, and the heads taken out of them.

use crate::cli::tensor_file::RawTensor;
use clap::ValueEnum;
use std::ops::Range;
use tilewright::DType;
use tilewright::tensor::TensorError;

/// The order of a file's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// Batch, heads, sequence, head dimension.
    Bhsd,
    /// Batch, sequence, heads, head dimension.
    Bshd,
}

/// The sizes of q, k and v, known to agree.
pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub seq_q: usize,
    pub seq_kv: usize,
    pub d: usize,
    /// Of v and the output.
    pub value_d: usize,
}

/// The number of elements of a result, which may be 0 with dimensions that no memory holds.
pub fn elements(shape: &[usize], dtype: DType) -> Result<usize, TensorError> {
    let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    count
        .filter(|count| count.checked_mul(dtype.size()).is_some_and(|bytes| bytes <= isize::MAX as usize))
        .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec(), dtype })
}

/// The query heads of one key head in one batch entry: what is computed in one go.
pub struct Unit {
    pub batch: usize,
    pub kv_head: usize,
}

impl Sizes {
    /// Checks ranks, dtypes and the dimensions that must agree.
    pub fn of(
        q: &RawTensor<'_>,
        k: &RawTensor<'_>,
        v: &RawTensor<'_>,
        layout: Layout,
    ) -> Result<Self, TensorError> {
        let [batch, heads, seq_q, d] = layout.dimensions("q", q)?;
        let [k_batch, kv_heads, seq_kv, k_d] = layout.dimensions("k", k)?;
        let [v_batch, v_heads, v_seq, value_d] = layout.dimensions("v", v)?;
        for (what, tensor) in [("k", k), ("v", v)] {
            if tensor.dtype != q.dtype {
                let needed = format!("{} as q has", q.dtype);
                return Err(TensorError::DType { what: what.into(), found: tensor.dtype, needed });
            }
        }
        for (dimension, sizes, first, second) in [
            ("batch", (batch, k_batch), "q", "k"),
            ("d", (d, k_d), "q", "k"),
            ("batch", (k_batch, v_batch), "k", "v"),
            ("kv_heads", (kv_heads, v_heads), "k", "v"),
            ("seq_kv", (seq_kv, v_seq), "k", "v"),
        ] {
            if sizes.0 != sizes.1 {
                return Err(TensorError::Dimension { dimension, sizes, first, second });
            }
        }
        if heads.checked_rem(kv_heads).unwrap_or(heads) != 0 {
            return Err(TensorError::HeadGroups { heads, kv_heads });
        }
        Ok(Sizes { batch, heads, kv_heads, seq_q, seq_kv, d, value_d })
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// Everything there is to compute, in the order of the results. Without a query that is nothing, however many heads
    /// there are said to be.
    pub fn units(&self) -> Vec<Unit> {
        if self.seq_q == 0 || self.heads == 0 {
            return Vec::new();
        }
        let of_batch = |batch| (0..self.kv_heads).map(move |kv_head| Unit { batch, kv_head });
        (0..self.batch).flat_map(of_batch).collect()
    }
}

impl Layout {
    /// Batch, heads, sequence, head dimension.
    fn dimensions(self, what: &str, tensor: &RawTensor<'_>) -> Result<[usize; 4], TensorError> {
        let (order, layout) = match self {
            Layout::Bhsd => ([0, 1, 2, 3], "batch, heads, sequence, head dimension"),
            Layout::Bshd => ([0, 2, 1, 3], "batch, sequence, heads, head dimension"),
        };
        let shape = &tensor.shape;
        if shape.len() != 4 {
            return Err(TensorError::Rank {
                what: what.into(),
                found: shape.len(),
                needed: 4,
                shape: shape.clone(),
                layout: format!("they are {layout}"),
            });
        }
        Ok(order.map(|axis| shape[axis]))
    }

    /// The bytes of some heads of one batch entry, head by head.
    pub fn gather(self, tensor: &RawTensor<'_>, batch: usize, heads: Range<usize>) -> Vec<u8> {
        self.runs(&tensor.shape, tensor.dtype.size(), batch, heads)
            .flat_map(|run| &tensor.bytes[run])
            .copied()
            .collect()
    }

    /// Puts `from`, head by head, in the place of these heads.
    pub fn scatter(self, from: &[u8], to: &mut [u8], shape: &[usize], batch: usize, heads: Range<usize>) {
        let elements: usize = shape.iter().product();
        let mut rest = from;
        for run in self.runs(shape, to.len() / elements.max(1), batch, heads) {
            let (now, later) = rest.split_at(run.len());
            to[run].copy_from_slice(now);
            rest = later;
        }
    }

    /// The bytes that lie together, in the order head, position.
    fn runs(
        self,
        shape: &[usize],
        element: usize,
        batch: usize,
        heads: Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> {
        let &[_, first, second, d] = shape else { unreachable!("the rank was checked") };
        let row = d * element;
        let (run, per_head) = match self {
            Layout::Bhsd => (second * row, 1),
            Layout::Bshd => (row, first),
        };
        heads.flat_map(move |head| {
            (0..per_head).map(move |position| {
                let start = match self {
                    Layout::Bhsd => (batch * first + head) * run,
                    Layout::Bshd => ((batch * first + position) * second + head) * row,
                };
                start..start + run
            })
        })
    }
}
