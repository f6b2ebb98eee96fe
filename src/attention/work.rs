//! What a plan does in memory of the caller's: arguments by their names.

use super::{Gradients, MaskLists, Rule, Sizes};
use crate::operands::Upstream;
use crate::tensor::Named;
use crate::{BlockIndex, DType, Tensor};
use smallvec::SmallVec;

/// q, k and v of a call.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[batch, heads, seq_q, head_dim]`.
    pub q: &'a Tensor,
    /// `[batch, kv_heads, seq_kv, head_dim]`.
    pub k: &'a Tensor,
    /// `[batch, kv_heads, seq_kv, value_dim]`.
    pub v: &'a Tensor,
}

/// What blocks are ranked by.
#[derive(Clone, Copy)]
pub(super) enum Ranked<'a> {
    /// The blocks of q and k.
    Tensors { q: &'a Tensor, k: &'a Tensor },
    /// Block means that the caller has made.
    Means { q_mean: &'a Tensor, k_mean: &'a Tensor },
}

/// Selects blocks, and attends to them.
#[derive(Debug)]
pub struct Forward<'a> {
    /// As in [`Inputs`].
    pub q: &'a Tensor,
    /// As in [`Inputs`].
    pub k: &'a Tensor,
    /// As in [`Inputs`].
    pub v: &'a Tensor,
    /// Written: `[batch, heads, seq_q, value_dim]` of the dtype of q, dense in any order of its dimensions.
    pub out: &'a mut Tensor,
    /// Written: f32 `[batch, heads, seq_q]`, dense in any order of its dimensions.
    pub lse: &'a mut Tensor,
}

/// Selects blocks.
#[derive(Debug)]
pub struct Select<'a> {
    /// As in [`Inputs`].
    pub q: &'a Tensor,
    /// As in [`Inputs`].
    pub k: &'a Tensor,
    /// Written: those of full blocks are there where the attention has a mask function, and those by key where they are
    /// wanted.
    pub lists: &'a mut MaskLists,
}

/// Attends to the blocks of lists.
///
/// The lists by query are read. They may hold anything and need not ascend: a count past its list is cut, and a number
/// that is no block is skipped. A batch or head dimension of 1 is shared by all. Nothing is read on the host, so that
/// nothing waits.
#[derive(Debug)]
pub struct Attend<'a> {
    /// As in [`Inputs`].
    pub q: &'a Tensor,
    /// As in [`Inputs`].
    pub k: &'a Tensor,
    /// As in [`Inputs`].
    pub v: &'a Tensor,
    /// Read: `kv` and `full_kv`, and with a [tail](super::AttentionBuilder::tail) `dropped`.
    pub lists: &'a MaskLists,
    /// Written, as in [`Forward`].
    pub out: &'a mut Tensor,
    /// Written, as in [`Forward`].
    pub lse: &'a mut Tensor,
}

/// Makes the gradients of what [`Forward`] or [`Attend`] made of the same q, k, v and lists: see
/// [`Attention::backward`](super::Attention::backward).
///
/// Lists by key that are not given are made in the scratch. They may hold anything, as for [`Attend`]; of a block named
/// twice in a row the gradients are not specified.
#[derive(Debug)]
pub struct Backward<'a> {
    /// As in [`Inputs`].
    pub q: &'a Tensor,
    /// As in [`Inputs`].
    pub k: &'a Tensor,
    /// As in [`Inputs`].
    pub v: &'a Tensor,
    /// What the forward wrote.
    pub out: &'a Tensor,
    /// What the forward wrote.
    pub lse: &'a Tensor,
    /// The gradient by `out`, of its shape and dtype.
    pub d_out: &'a Tensor,
    /// The gradient by `lse`, of its shape and dtype; 0 when not given.
    pub d_lse: Option<&'a Tensor>,
    /// Read: those that the forward went by.
    pub lists: &'a MaskLists,
    /// Written: of the shapes of q, k and v, dense in any order of their dimensions.
    pub gradients: &'a mut Gradients,
}

/// Something for [`Plan::run`](super::Plan::run) to do: [`Forward`], [`Select`], [`Attend`] or [`Backward`].
#[derive(Debug)]
pub struct Work<'a>(pub(super) Kind<'a>);

/// The same for an executor.
#[derive(Debug)]
pub(super) enum Kind<'a> {
    /// `lists`: where those of the selection go, if not to the scratch.
    Forward {
        forward: Forward<'a>,
        lists: Option<&'a mut MaskLists>,
    },
    Select(Select<'a>),
    Attend(Attend<'a>),
    Backward(Backward<'a>),
}

/// What a plan is asked about: a kind of [`Work`], with what its scratch and its kernels depend on beside the plan's
/// shapes.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Step<'a> {
    /// [`Forward`].
    Forward,
    /// [`Select`].
    Select {
        /// Whether the lists by key are wanted too.
        by_key: bool,
    },
    /// [`Attend`] over lists of these shapes.
    Attend(&'a MaskLists),
    /// [`Backward`] over lists of these shapes.
    Backward(&'a MaskLists),
}

impl<'a> From<Forward<'a>> for Work<'a> {
    fn from(forward: Forward<'a>) -> Self {
        Work(Kind::Forward { forward, lists: None })
    }
}

impl<'a> From<Select<'a>> for Work<'a> {
    fn from(select: Select<'a>) -> Self {
        Work(Kind::Select(select))
    }
}

impl<'a> From<Attend<'a>> for Work<'a> {
    fn from(attend: Attend<'a>) -> Self {
        Work(Kind::Attend(attend))
    }
}

impl<'a> From<Backward<'a>> for Work<'a> {
    fn from(backward: Backward<'a>) -> Self {
        Work(Kind::Backward(backward))
    }
}

impl Backward<'_> {
    /// What it starts from.
    pub(super) fn upstream(&self) -> Upstream<'_> {
        let &Backward { q, k, v, out, lse, d_out, d_lse, .. } = self;
        Upstream { q, k, v, out, lse, d_out, d_lse }
    }
}

/// A tensor that is written, and what it must be.
pub(super) struct Written<'a> {
    pub(super) what: &'static str,
    pub(super) tensor: &'a Tensor,
    pub(super) dtype: DType,
    pub(super) shape: SmallVec<[usize; 4]>,
}

/// On the stack for any call of an attention.
type All<T> = SmallVec<[T; 8]>;

impl Kind<'_> {
    /// q, k, and v where it is read.
    pub(super) fn qkv(&self) -> (&Tensor, &Tensor, Option<&Tensor>) {
        match self {
            Kind::Forward { forward: Forward { q, k, v, .. }, .. }
            | Kind::Attend(Attend { q, k, v, .. })
            | Kind::Backward(Backward { q, k, v, .. }) => (q, k, Some(v)),
            Kind::Select(Select { q, k, .. }) => (q, k, None),
        }
    }

    /// Everything that is read.
    pub(super) fn read(&self) -> SmallVec<[Named<'_>; 16]> {
        let (q, k, v) = self.qkv();
        let mut all = SmallVec::from_iter([("q", q), ("k", k)]);
        all.extend(v.map(|v| ("v", v)));
        match self {
            Kind::Forward { .. } | Kind::Select(_) => {}
            Kind::Attend(Attend { lists, .. }) => all.extend(lists.by_query()),
            Kind::Backward(Backward { out, lse, d_out, d_lse, lists, .. }) => {
                all.extend([("out", *out), ("lse", *lse), ("d_out", *d_out)]);
                all.extend(d_lse.map(|d_lse| ("d_lse", d_lse)));
                all.extend(lists.named());
            }
        }
        all
    }

    /// Everything of the caller's that is written beside the scratch.
    pub(super) fn written(&self, rule: &Rule, sizes: &Sizes) -> All<Written<'_>> {
        let &Sizes { batch, heads, seq_q, q_blocks, kv_blocks, .. } = sizes;
        let mut all = All::new();
        let mut add = |what, tensor, dtype, shape: &[usize]| {
            all.push(Written { what, tensor, dtype, shape: shape.into() });
        };
        match self {
            Kind::Forward { forward: Forward { out, lse, .. }, .. }
            | Kind::Attend(Attend { out, lse, .. }) => {
                add("out", out, rule.dtype, &[batch, heads, seq_q, rule.value_dim.get()]);
                add("lse", lse, DType::F32, &[batch, heads, seq_q]);
            }
            Kind::Select(Select { lists, .. }) => {
                let MaskLists { kv, full_kv, q, full_q, dropped } = &**lists;
                if let Some(dropped) = dropped {
                    let words = kv_blocks.div_ceil(32);
                    add("dropped", dropped, DType::I32, &[batch, heads, q_blocks, words]);
                }
                for (counts, indices, index, rows, width) in [
                    ("kv_counts", "kv_indices", Some(kv), q_blocks, kv_blocks),
                    ("full_kv_counts", "full_kv_indices", full_kv.as_ref(), q_blocks, kv_blocks),
                    ("q_counts", "q_indices", q.as_ref(), kv_blocks, q_blocks),
                    ("full_q_counts", "full_q_indices", full_q.as_ref(), kv_blocks, q_blocks),
                ] {
                    let Some(index) = index else { continue };
                    let BlockIndex { counts: of_counts, indices: of_indices } = index;
                    add(counts, of_counts, DType::I32, &[batch, heads, rows]);
                    add(indices, of_indices, DType::I32, &[batch, heads, rows, width]);
                }
            }
            Kind::Backward(Backward { q, k, v, gradients, .. }) => {
                let Gradients { dq, dk, dv } = &**gradients;
                for (what, gradient, like) in [("dq", dq, q), ("dk", dk, k), ("dv", dv, v)] {
                    add(what, gradient, like.dtype(), like.shape());
                }
            }
        }
        all
    }
}
