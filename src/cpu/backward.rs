//! The gradients of attention over the kept blocks.
//!
//! Two passes over the blocks, one by query block for dq and one by key block for dk and dv. Each makes the weights anew
//! from the log-sum-exp: seven products where one pass would need five, but every sum is one thread's, in one order. The
//! result is the same to the bit for any number of threads.

use super::call::{Functions, Lists, MASK_MOD, SCORE_MOD};
use super::delta::delta;
use super::gemm::{Matrix, product};
use super::softmax::weights;
use super::tail::{At, OfBlock, Queries, Tails};
use crate::mask::{BlockMask, BlockSize};
use crate::operands::{Gradients, Rows, Shape, Upstream, half_dtype_error};
use crate::tail::Tail;
use crate::tensor::{Half, host_count};
use crate::user_code::UserCode;
use crate::{DType, Error, MaskMod, ScoreMod, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::f32::consts::LOG2_E;

/// The gradients of `sum(out · d_out) + sum(lse · d_lse)` by q, k and v, with `out` and `lse` those that
/// [`attend`](super::attend()) made of the same arguments.
///
/// With P the weights, `dP = d_out vᵀ` and `δ = rowsum(d_out · out) - d_lse` (Dao et al., FlashAttention, arXiv 2205.14135):
/// `dv = Pᵀ d_out`, `ds = P (dP - δ) · score_mod'`, `dq = scale · ds k` and `dk = scale · dsᵀ q`, summed over the heads that
/// share a key head, in f32.
///
/// A query that attends to nothing has a gradient of 0 and adds nothing, whatever its rows of q and `d_out` hold; a key
/// nobody attends to has gradients of 0. Apart from that NaN and infinity follow IEEE arithmetic.
///
/// # Errors
/// As [`attend`](super::attend()).
pub fn backward(
    upstream: Upstream<'_>,
    mask: &BlockMask,
    scale: f32,
    score_mod: Option<&dyn ScoreMod>,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<Gradients, Error> {
    backward_all(upstream, mask, scale, Functions { score_mod, mask_mod }, Tail::None)
}

/// [`backward`] of what [`attend_with_tail`](super::attend_with_tail()) made of the same arguments.
///
/// Weights, `out` and `lse` are those of the whole softmax, so that the gradients by kept keys are as without a tail. A mean gives each of
/// the rows that it is made of their part of its own gradient; which blocks are dropped is taken as given.
///
/// # Errors
/// As [`attend_with_tail`](super::attend_with_tail()).
pub fn backward_with_tail(
    upstream: Upstream<'_>,
    mask: &BlockMask,
    scale: f32,
    mask_mod: Option<&dyn MaskMod>,
    tail: Tail,
) -> Result<Gradients, Error> {
    backward_all(upstream, mask, scale, Functions { score_mod: None, mask_mod }, tail)
}

fn backward_all(
    upstream: Upstream<'_>,
    mask: &BlockMask,
    scale: f32,
    functions: Functions,
    tail: Tail,
) -> Result<Gradients, Error> {
    let Upstream { q, k, v, .. } = upstream;
    let shape = Shape::of(q, k, Some(v))?;
    upstream.check(&shape)?;
    mask.check_fits(shape.batch, shape.heads, shape.seq_q, shape.seq_kv)?;
    let run = match q.dtype() {
        DType::F16 => run::<f16>,
        DType::Bf16 => run::<bf16>,
        _ => return Err(half_dtype_error("q", q)),
    };
    let masked = functions.mask_mod.is_some();
    let tails = Tails::new([q, k, v], &shape, mask, (scale, masked), tail)?;
    run(&upstream, shape, mask, scale, functions, tails)
}

fn run<T: Half>(
    tensors: &Upstream<'_>,
    shape: Shape,
    mask: &BlockMask,
    scale: f32,
    functions: Functions,
    tails: Option<Tails>,
) -> Result<Gradients, Error> {
    let Shape { batch, heads, kv_heads, seq_q, seq_kv, d, value_d } = shape;
    let zeros = |dims: [usize; 4]| Ok::<_, Error>(vec![T::narrow(0.0); host_count(&dims, T::DTYPE)?]);
    let keys = |d| [batch, kv_heads, seq_kv, d];
    let mut dq = zeros([batch, heads, seq_q, d])?;
    let (mut dk, mut dv) = (zeros(keys(d))?, zeros(keys(value_d))?);
    if !dq.is_empty() && !dk.is_empty() {
        let call = Call {
            shape,
            blocks: mask.blocks(),
            q: Rows::<T>::of(tensors.q)?,
            k: Rows::<T>::of(tensors.k)?,
            v: Rows::<T>::of(tensors.v)?,
            d_out: Rows::<T>::of(tensors.d_out)?,
            lse: tensors.lse.to_vec()?,
            delta: delta::<T>(tensors, &shape)?,
            scale,
            functions,
            tails,
            code: functions.code(),
        };
        let of_blocks = call.by_query(&Lists::of(mask.kv(), mask.full_kv())?, &mut dq)?;
        call.by_key(&Lists::of(mask.q(), mask.full_q())?, &of_blocks, &mut dk, &mut dv)?;
    }
    Ok(Gradients {
        dq: Tensor::from_slice(&dq, &[batch, heads, seq_q, d])?,
        dk: Tensor::from_slice(&dk, &keys(d))?,
        dv: Tensor::from_slice(&dv, &keys(value_d))?,
    })
}

/// What all tasks of one call share.
struct Call<'a, T> {
    shape: Shape,
    blocks: BlockSize,
    q: Rows<'a, T>,
    k: Rows<'a, T>,
    v: Rows<'a, T>,
    d_out: Rows<'a, T>,
    /// Of each query, as is `delta`.
    lse: Vec<f32>,
    delta: Vec<f32>,
    scale: f32,
    functions: Functions<'a>,
    tails: Option<Tails>,
    code: UserCode<'a>,
}

/// One block of queries against one of keys.
#[derive(Clone, Copy)]
struct Place {
    b: usize,
    h: usize,
    q_block: usize,
    kv_block: usize,
    /// Whether the mask function applies.
    masked: bool,
}

/// A thread's tiles.
struct Scratch {
    q: Vec<f32>,
    d_out: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Queries × keys: the weights, the gradients of the scores, and the products before the score function.
    p: Vec<f32>,
    ds: Vec<f32>,
    products: Vec<f32>,
    /// What is summed: of queries, or of keys and of values.
    sums: [Vec<f32>; 2],
}

impl<T: Half> Call<'_, T> {
    fn scratch(&self) -> Scratch {
        let (rows, columns) = (self.blocks.q(), self.blocks.kv());
        let Shape { d, value_d, .. } = self.shape;
        let tile = |rows: usize, columns: usize| vec![0.0; rows * columns];
        Scratch {
            q: tile(rows, d),
            d_out: tile(rows, value_d),
            k: tile(columns, d),
            v: tile(columns, value_d),
            p: tile(rows, columns),
            ds: tile(rows, columns),
            products: if self.functions.score_mod.is_some() { tile(rows, columns) } else { Vec::new() },
            sums: [tile(rows.max(columns), d), tile(columns, value_d)],
        }
    }

    /// dq; and of each block of queries, head by head, what the tail's gradients by key want of it.
    fn by_query(&self, lists: &Lists, dq: &mut [T]) -> Result<Vec<Option<OfBlock>>, Error> {
        let Shape { heads, seq_q, d, .. } = self.shape;
        let places = dq.chunks_mut(seq_q * d).enumerate().flat_map(|(head, dq)| {
            let blocks = dq.chunks_mut(self.blocks.q() * d).enumerate();
            blocks.map(move |(block, dq)| (head, block, dq))
        });
        let places: Vec<(usize, usize, &mut [T])> = places.collect();
        let mut of_blocks: Vec<Option<OfBlock>> = places.iter().map(|_| None).collect();
        let tasks = places.into_iter().zip(&mut of_blocks).collect();
        self.for_each(tasks, |scratch, ((head, q_block, dq), of_block): (_, &mut Option<OfBlock>)| {
            let (b, h) = (head / heads, head % heads);
            scratch.sums[0][..dq.len()].fill(0.0);
            self.load_queries(scratch, b, h, q_block);
            for (kv_block, masked) in lists.row(b, h, q_block) {
                self.load_keys(scratch, self.shape.kv_unit(head), kv_block);
                let [rows, columns] = self.tile(scratch, Place { b, h, q_block, kv_block, masked });
                let ds = Matrix::rows(&scratch.ds[..rows * columns], columns);
                let k = Matrix::rows(&scratch.k[..columns * d], d);
                product(self.scale, ds, k, 1.0, &mut scratch.sums[0][..rows * d]);
            }
            if let Some(tails) = &self.tails {
                let (queries, sums) = self.queries(scratch, head, q_block);
                let [to, _] = sums;
                *of_block = tails.by_query(At { b, h, q_block }, queries, &mut to[..dq.len()]);
            }
            T::narrow_slice(&scratch.sums[0][..dq.len()], dq);
        })?;
        Ok(of_blocks)
    }

    fn by_key(
        &self,
        lists: &Lists,
        of_blocks: &[Option<OfBlock>],
        dk: &mut [T],
        dv: &mut [T],
    ) -> Result<(), Error> {
        let Shape { kv_heads, seq_kv, d, value_d, .. } = self.shape;
        let tasks: Vec<(usize, usize, &mut [T], &mut [T])> = dk
            .chunks_mut(seq_kv * d)
            .zip(dv.chunks_mut(seq_kv * value_d))
            .enumerate()
            .flat_map(|(unit, (dk, dv))| {
                let block = self.blocks.kv();
                let blocks = dk.chunks_mut(block * d).zip(dv.chunks_mut(block * value_d)).enumerate();
                blocks.map(move |(block, (dk, dv))| (unit, block, dk, dv))
            })
            .collect();
        self.for_each(tasks, |scratch, (unit, kv_block, dk, dv)| {
            let (b, group) = (unit / kv_heads, self.shape.group());
            scratch.sums[0][..dk.len()].fill(0.0);
            scratch.sums[1][..dv.len()].fill(0.0);
            self.load_keys(scratch, unit, kv_block);
            for h in unit % kv_heads * group..(unit % kv_heads + 1) * group {
                for (q_block, masked) in lists.row(b, h, kv_block) {
                    self.load_queries(scratch, b, h, q_block);
                    let [rows, columns] = self.tile(scratch, Place { b, h, q_block, kv_block, masked });
                    let [dk, dv] = &mut scratch.sums;
                    for (alpha, left, right, to, d) in [
                        (self.scale, &scratch.ds, &scratch.q, dk, d),
                        (1.0, &scratch.p, &scratch.d_out, dv, value_d),
                    ] {
                        let left = Matrix::rows(&left[..rows * columns], columns).transposed();
                        let right = Matrix::rows(&right[..rows * d], d);
                        product(alpha, left, right, 1.0, &mut to[..columns * d]);
                    }
                }
            }
            if let Some(tails) = &self.tails {
                let q_blocks = self.shape.seq_q.div_ceil(self.blocks.q());
                for h in unit % kv_heads * group..(unit % kv_heads + 1) * group {
                    for q_block in 0..q_blocks {
                        let head = b * self.shape.heads + h;
                        let of_block = of_blocks[head * q_blocks + q_block].as_ref();
                        // What a mean query says of a block stands for its queries.
                        if of_block.is_none() {
                            self.load_queries(scratch, b, h, q_block);
                        }
                        let (queries, [to_k, to_v]) = self.queries(scratch, head, q_block);
                        let to = [&mut to_k[..dk.len()], &mut to_v[..dv.len()]];
                        tails.by_key(At { b, h, q_block }, kv_block, queries, of_block, to);
                    }
                }
            }
            T::narrow_slice(&scratch.sums[0][..dk.len()], dk);
            T::narrow_slice(&scratch.sums[1][..dv.len()], dv);
        })
    }

    /// The loaded queries, and what is summed.
    fn queries<'a>(
        &'a self,
        scratch: &'a mut Scratch,
        head: usize,
        q_block: usize,
    ) -> (Queries<'a>, &'a mut [Vec<f32>; 2]) {
        let Shape { seq_q, d, value_d, .. } = self.shape;
        let first = q_block * self.blocks.q();
        let rows = self.blocks.q().min(seq_q - first);
        let of_rows = head * seq_q + first..head * seq_q + first + rows;
        let Scratch { q, d_out, sums, .. } = scratch;
        let (lse, delta) = (&self.lse[of_rows.clone()], &self.delta[of_rows]);
        (Queries { q: &q[..rows * d], d_out: &d_out[..rows * value_d], lse, delta }, sums)
    }

    /// Tasks differ in length under top-p: one at a time keeps the threads busy to the end.
    fn for_each<W: Send>(&self, tasks: Vec<W>, work: impl Fn(&mut Scratch, W) + Sync) -> Result<(), Error> {
        self.code.run(|| {
            tasks.into_par_iter().with_max_len(1).for_each_init(
                || self.scratch(),
                |scratch, task| match self.code.is_interrupted() {
                    true => {}
                    false => work(scratch, task),
                },
            )
        })
    }

    fn load_keys(&self, scratch: &mut Scratch, unit: usize, block: usize) {
        let first = block * self.blocks.kv();
        let Shape { seq_kv, d, value_d, .. } = self.shape;
        let rows = self.blocks.kv().min(seq_kv - first);
        self.k.widen(unit, first, &mut scratch.k[..rows * d]);
        self.v.widen(unit, first, &mut scratch.v[..rows * value_d]);
    }

    /// Rows that attend to nothing are read as 0: `0 · NaN` must not make them anything but that for their keys.
    fn load_queries(&self, scratch: &mut Scratch, b: usize, h: usize, block: usize) {
        let Shape { heads, seq_q, d, value_d, .. } = self.shape;
        let (head, first) = (b * heads + h, block * self.blocks.q());
        let rows = self.blocks.q().min(seq_q - first);
        self.q.widen(head, first, &mut scratch.q[..rows * d]);
        self.d_out.widen(head, first, &mut scratch.d_out[..rows * value_d]);
        let lse = &self.lse[head * seq_q + first..][..rows];
        for (row, _) in lse.iter().enumerate().filter(|(_, lse)| **lse == f32::NEG_INFINITY) {
            scratch.q[row * d..][..d].fill(0.0);
            scratch.d_out[row * value_d..][..value_d].fill(0.0);
        }
    }

    /// The weights `p` and the gradients `ds` of the products of the loaded block; says how many queries and keys it has.
    fn tile(&self, scratch: &mut Scratch, place: Place) -> [usize; 2] {
        let Shape { heads, seq_q, seq_kv, d, value_d, .. } = self.shape;
        let (first, first_kv) = (place.q_block * self.blocks.q(), place.kv_block * self.blocks.kv());
        let rows = self.blocks.q().min(seq_q - first);
        let columns = self.blocks.kv().min(seq_kv - first_kv);
        let Scratch { q, d_out, k, v, p, ds, products, .. } = scratch;
        let (p, ds) = (&mut p[..rows * columns], &mut ds[..rows * columns]);
        let [q, d_out] = [(q, d), (d_out, value_d)].map(|(tile, d)| Matrix::rows(&tile[..rows * d], d));
        let [k, v] =
            [(k, d), (v, value_d)].map(|(tile, d)| Matrix::rows(&tile[..columns * d], d).transposed());
        // The weights are powers of 2; the factor rides on the product unless a function wants the plain score.
        let plain = self.functions.score_mod.is_some();
        let alpha = if plain { self.scale } else { self.scale * LOG2_E };
        product(alpha, q, k, 0.0, p);
        if plain {
            products[..p.len()].copy_from_slice(p);
        }
        self.apply_functions(place, columns, p);
        product(1.0, d_out, v, 0.0, ds);
        let start = (place.b * heads + place.h) * seq_q + first;
        for (row, (p, ds)) in p.chunks_exact_mut(columns).zip(ds.chunks_exact_mut(columns)).enumerate() {
            weights(p, self.lse[start + row]);
            let delta = self.delta[start + row];
            // What has no weight has no gradient, be its d_out · v what it may.
            ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = if *p == 0.0 { 0.0 } else { *p * (*ds - delta) });
        }
        self.apply_gradient(place, columns, products, p, ds);
        [rows, columns]
    }

    /// Turns scaled products into scores times log2 e, where there are functions.
    fn apply_functions(&self, place: Place, columns: usize, scores: &mut [f32]) {
        let Functions { score_mod, mask_mod } = self.functions;
        let mask_mod = mask_mod.filter(|_| place.masked);
        if score_mod.is_none() && mask_mod.is_none() {
            return;
        }
        let inside = self.code.inside();
        for (at, score) in scores.iter_mut().enumerate() {
            let [b, h, q, kv] = self.position(place, columns, at);
            if let Some(function) = mask_mod {
                inside.calls(MASK_MOD);
                if !function.keep(b, h, q, kv) {
                    *score = f32::NEG_INFINITY;
                    continue;
                }
            }
            if let Some(function) = score_mod {
                inside.calls(SCORE_MOD);
                *score = function.score(*score, b, h, q, kv) * LOG2_E;
            }
        }
    }

    /// Carries the gradients of the scores through the score function, where there is one.
    fn apply_gradient(&self, place: Place, columns: usize, products: &[f32], p: &[f32], ds: &mut [f32]) {
        let Some(function) = self.functions.score_mod else { return };
        let inside = self.code.inside();
        inside.calls(SCORE_MOD);
        for (at, ((ds, product), _)) in
            ds.iter_mut().zip(products).zip(p).enumerate().filter(|(_, (_, p))| **p != 0.0)
        {
            let [b, h, q, kv] = self.position(place, columns, at);
            *ds *= function.gradient(*product, b, h, q, kv);
        }
    }

    /// Batch, head, query and key of an element of a tile.
    fn position(&self, place: Place, columns: usize, at: usize) -> [i32; 4] {
        let query = place.q_block * self.blocks.q() + at / columns;
        let key = place.kv_block * self.blocks.kv() + at % columns;
        [place.b, place.h, query, key].map(|x| x as i32)
    }
}
