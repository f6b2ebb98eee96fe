//! What a query's gradients have in common.

use crate::operands::{Rows, Shape, Upstream};
use crate::tensor::{Half, host_count};
use crate::{DType, Error, parallel};
use rayon::prelude::*;

/// `rowsum(d_out · out) - d_lse` of every query.
pub(super) fn delta<T: Half>(tensors: &Upstream<'_>, shape: &Shape) -> Result<Vec<f32>, Error> {
    let mut delta = match tensors.d_lse {
        Some(d_lse) => d_lse.to_vec()?,
        None => vec![0.0; host_count(&[shape.batch, shape.heads, shape.seq_q], DType::F32)?],
    };
    let (out, d_out) = (Rows::<T>::of(tensors.out)?, Rows::<T>::of(tensors.d_out)?);
    let tiles = || (vec![0.0; shape.value_d], vec![0.0; shape.value_d]);
    parallel::run(|| {
        delta.par_chunks_mut(shape.seq_q).enumerate().for_each_init(tiles, |(a, b), (head, delta)| {
            for (row, delta) in delta.iter_mut().enumerate() {
                out.widen(head, row, a);
                d_out.widen(head, row, b);
                *delta = a.iter().zip(&*b).map(|(x, y)| x * y).sum::<f32>() - *delta;
            }
        });
    });
    Ok(delta)
}
