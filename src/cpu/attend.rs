//! Step 4: online softmax over the kept blocks.

use super::call::{Functions, Lists, MASK_MOD, SCORE_MOD};
use super::gemm::{Matrix, product};
use super::softmax::RowState;
use super::tail::{At, Tails};
use crate::mask::{BlockMask, BlockSize};
use crate::operands::{Rows, Shape, half_dtype_error};
use crate::tail::Tail;
use crate::tensor::{Half, host_count};
use crate::user_code::UserCode;
use crate::{DType, Error, MaskMod, ScoreMod, Tensor, parallel};
use half::{bf16, f16};
use rayon::prelude::*;
use std::f32::consts::LOG2_E;

/// Memory for keys and values widened to f32: heads are taken in groups that fit, one at least.
const WIDENED_BYTES: usize = 32 << 20;

/// Attention over the kept blocks of `mask`: `out` (dtype of q, contiguous `[batch, heads, seq_q, d]` with the d of v) and `lse`
/// (f32 `[batch, heads, seq_q]`, natural logarithm).
///
/// `score_mod` changes each scaled score; `mask_mod` is asked in the blocks of [`BlockMask::kv`] and taken for granted in
/// those of [`BlockMask::full_kv`]. `score_mod` is not called where `mask_mod` drops the element. A query that attends to
/// nothing gets 0 and `lse` -inf.
///
/// NaN and infinity follow IEEE arithmetic: in a query they stay in its row; in a key or value they reach every query
/// that attends to it, and through `0 · NaN` those to which `mask_mod` hides it within a partial block.
///
/// # Errors
/// [`MaskError::Fit`](crate::mask::MaskError::Fit) for a mask of other sizes, a
/// [`TensorError`](crate::tensor::TensorError) for tensors that do not belong together, [`Error::DeviceFunction`] when a
/// function panics.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &BlockMask,
    scale: f32,
    score_mod: Option<&dyn ScoreMod>,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<(Tensor, Tensor), Error> {
    attend_all([q, k, v], mask, scale, Functions { score_mod, mask_mod }, Tail::None)
}

/// [`attend`] with a [tail](crate::tail) for the blocks that `mask` drops. Where none is dropped, the result is the same to the bit.
///
/// # Errors
/// As [`attend`]; [`Error::Tail`] for a mask that does not say what it drops, or a run of keys that is no number of blocks.
pub fn attend_with_tail(
    [q, k, v]: [&Tensor; 3],
    mask: &BlockMask,
    scale: f32,
    mask_mod: Option<&dyn MaskMod>,
    tail: Tail,
) -> Result<(Tensor, Tensor), Error> {
    attend_all([q, k, v], mask, scale, Functions { score_mod: None, mask_mod }, tail)
}

fn attend_all(
    [q, k, v]: [&Tensor; 3],
    mask: &BlockMask,
    scale: f32,
    functions: Functions,
    tail: Tail,
) -> Result<(Tensor, Tensor), Error> {
    let shape = Shape::of(q, k, Some(v))?;
    mask.check_fits(shape.batch, shape.heads, shape.seq_q, shape.seq_kv)?;
    let run = match q.dtype() {
        DType::F16 => run::<f16>,
        DType::Bf16 => run::<bf16>,
        _ => return Err(half_dtype_error("q", q)),
    };
    let masked = functions.mask_mod.is_some();
    let tails = Tails::new([q, k, v], &shape, mask, (scale, masked), tail)?;
    run([q, k, v], &shape, mask, scale, functions, tails)
}

fn run<T: Half>(
    [q, k, v]: [&Tensor; 3],
    shape: &Shape,
    mask: &BlockMask,
    scale: f32,
    functions: Functions,
    tails: Option<Tails>,
) -> Result<(Tensor, Tensor), Error> {
    let &Shape { batch, heads, kv_heads, seq_q, seq_kv, d, value_d } = shape;
    // Inputs may repeat what little they hold: results do not.
    let dims = [batch, heads, seq_q, value_d];
    let mut out = vec![T::narrow(0.0); host_count(&dims, T::DTYPE)?];
    let mut lse = vec![f32::NEG_INFINITY; host_count(&dims[..3], DType::F32)?];
    let call = Call {
        shape: *shape,
        blocks: mask.blocks(),
        lists: Lists::of(mask.kv(), mask.full_kv())?,
        q: Rows::<T>::of(q)?,
        scale,
        functions,
        tails,
        code: functions.code(),
    };
    if !out.is_empty() && seq_kv > 0 {
        let (k, v) = (Rows::<T>::of(k)?, Rows::<T>::of(v)?);
        let head_len = host_count(&[seq_kv, d + value_d], DType::F32)?;
        let units = batch * kv_heads;
        let at_once = (WIDENED_BYTES / (4 * head_len)).clamp(1, units);
        let mut widened = vec![0.0; at_once * head_len];
        let group = at_once * shape.group();
        let jobs = out.chunks_mut(group * seq_q * value_d).zip(lse.chunks_mut(group * seq_q)).enumerate();
        for (i, (out, lse)) in jobs {
            let first_unit = i * at_once;
            let widened = &mut widened[..at_once.min(units - first_unit) * head_len];
            let widen = |(i, to): (usize, &mut [f32])| {
                let (keys, values) = to.split_at_mut(seq_kv * d);
                let unit = first_unit + i;
                rayon::join(|| k.widen(unit, 0, keys), || v.widen(unit, 0, values));
            };
            parallel::run(|| widened.par_chunks_mut(head_len).enumerate().for_each(widen));
            call.heads(first_unit, widened, out, lse)?;
        }
    }
    Ok((Tensor::from_slice(&out, &dims)?, Tensor::from_slice(&lse, &dims[..3])?))
}

/// What all tasks of one call share.
struct Call<'a, T> {
    shape: Shape,
    blocks: BlockSize,
    lists: Lists,
    q: Rows<'a, T>,
    scale: f32,
    functions: Functions<'a>,
    tails: Option<Tails>,
    code: UserCode<'a>,
}

/// One query block's place in the tensors, and its part of the output.
struct Task<'a, T> {
    b: usize,
    h: usize,
    block: usize,
    /// The head's keys and then its values.
    widened: &'a [f32],
    out: &'a mut [T],
    lse: &'a mut [f32],
}

/// A thread's tiles.
struct Scratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    acc: Vec<f32>,
    rows: Vec<RowState>,
}

impl<T: Half> Call<'_, T> {
    /// Computes all query blocks of the heads that share the key heads from `first_unit` on.
    fn heads(&self, first_unit: usize, widened: &[f32], out: &mut [T], lse: &mut [f32]) -> Result<(), Error> {
        let Shape { heads, seq_q, seq_kv, d, value_d, .. } = self.shape;
        let (block_q, group) = (self.blocks.q(), self.shape.group());
        let head_len = seq_kv * (d + value_d);
        let per_head = out.chunks_mut(seq_q * value_d).zip(lse.chunks_mut(seq_q)).enumerate();
        let tasks: Vec<Task<T>> = per_head
            .flat_map(|(i, (out, lse))| {
                let head = first_unit * group + i;
                let widened = &widened[i / group * head_len..][..head_len];
                let blocks = out.chunks_mut(block_q * value_d).zip(lse.chunks_mut(block_q)).enumerate();
                blocks.map(move |(block, (out, lse))| Task {
                    b: head / heads,
                    h: head % heads,
                    block,
                    widened,
                    out,
                    lse,
                })
            })
            .collect();
        let scratch = || Scratch {
            q: vec![0.0; block_q * d],
            scores: vec![0.0; block_q * self.blocks.kv()],
            acc: vec![0.0; block_q * value_d],
            rows: vec![RowState::NEW; block_q],
        };
        // Rows differ in length under top-p: tasks of one keep the threads busy to the end.
        self.code.run(|| {
            tasks
                .into_par_iter()
                .with_max_len(1)
                .for_each_init(scratch, |scratch, task| self.query_block(scratch, task))
        })
    }

    fn query_block(&self, scratch: &mut Scratch, task: Task<T>) {
        if self.code.is_interrupted() {
            return;
        }
        let Shape { seq_kv, d, value_d, .. } = self.shape;
        let rows = task.lse.len();
        let q = &mut scratch.q[..rows * d];
        let acc = &mut scratch.acc[..rows * value_d];
        let states = &mut scratch.rows[..rows];
        let head = task.b * self.shape.heads + task.h;
        self.q.widen(head, task.block * self.blocks.q(), q);
        acc.fill(0.0);
        states.fill(RowState::NEW);
        // The softmax is in base 2; the factor rides on the product unless a function wants the plain score.
        let plain = self.functions.score_mod.is_some();
        let alpha = if plain { self.scale } else { self.scale * LOG2_E };

        let (keys, values) = task.widened.split_at(seq_kv * d);
        for (block, masked) in self.lists.row(task.b, task.h, task.block) {
            let first = block * self.blocks.kv();
            let columns = self.blocks.kv().min(seq_kv - first);
            let k = Matrix::rows(&keys[first * d..][..columns * d], d);
            let v = Matrix::rows(&values[first * value_d..][..columns * value_d], value_d);
            let scores = &mut scratch.scores[..rows * columns];
            product(alpha, Matrix::rows(q, d), k.transposed(), 0.0, scores);
            self.apply_functions(&task, first, masked, columns, scores);
            for ((row, state), acc) in
                scores.chunks_exact_mut(columns).zip(&mut *states).zip(acc.chunks_exact_mut(value_d))
            {
                let rescale = state.absorb(row);
                if rescale != 1.0 {
                    acc.iter_mut().for_each(|x| *x *= rescale);
                }
            }
            product(1.0, Matrix::rows(scores, columns), v, 1.0, acc);
        }
        if let Some(tails) = &self.tails {
            tails.absorb(At { b: task.b, h: task.h, q_block: task.block }, q, states, acc);
        }
        for ((acc, state), lse) in acc.chunks_exact_mut(value_d).zip(states).zip(task.lse) {
            let (factor, row_lse) = state.finish();
            *lse = row_lse;
            // 0 · NaN must not make a row that attends to nothing anything but 0.
            acc.iter_mut().for_each(|x| *x = if factor == 0.0 { 0.0 } else { *x * factor });
        }
        T::narrow_slice(acc, task.out);
    }

    fn apply_functions(
        &self,
        task: &Task<T>,
        first: usize,
        masked: bool,
        columns: usize,
        scores: &mut [f32],
    ) {
        let (b, h) = (task.b as i32, task.h as i32);
        let Functions { score_mod, mask_mod } = self.functions;
        let mask_mod = mask_mod.filter(|_| masked);
        if score_mod.is_none() && mask_mod.is_none() {
            return;
        }
        let inside = self.code.inside();
        for (row, scores) in scores.chunks_exact_mut(columns).enumerate() {
            let q = (task.block * self.blocks.q() + row) as i32;
            for (column, score) in scores.iter_mut().enumerate() {
                let kv = (first + column) as i32;
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
    }
}
