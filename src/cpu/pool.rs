//! Step 1: block means.

use crate::operands::Rows;
use crate::tensor::{Half, host_count};
use crate::{DType, Error, Tensor, parallel};
use rayon::prelude::*;

/// The f32 mean of every run of `block` rows of a `[batch, heads, seq, d]` tensor; the last run is often short.
/// Contiguous `[batch, heads, blocks, d]`.
pub(super) fn block_means<T: Half>(tensor: &Tensor, d: usize, block: usize) -> Result<Vec<f32>, Error> {
    let shape = tensor.shape();
    let seq = shape[2];
    let blocks = seq.div_ceil(block);
    let mut means = vec![0.0; host_count(&[shape[0], shape[1], blocks, d], DType::F32)?];
    if means.is_empty() {
        return Ok(means);
    }
    let rows = Rows::<T>::of(tensor)?;
    let mean_of = |tile: &mut Vec<f32>, (index, mean): (usize, &mut [f32])| {
        let (head, first) = (index / blocks, index % blocks * block);
        let count = block.min(seq - first);
        let tile = &mut tile[..count * d];
        rows.widen(head, first, tile);
        for row in tile.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
        }
        mean.iter_mut().for_each(|mean| *mean /= count as f32);
    };
    parallel::run(|| means.par_chunks_mut(d).enumerate().for_each_init(|| vec![0.0; block * d], mean_of));
    Ok(means)
}
