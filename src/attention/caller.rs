//! Calls in the caller's own memory: for frameworks with an allocator of their own, PyTorch's say.
//!
//! Nothing is allocated once the kernels are chosen, whatever the sizes: outputs, lists and scratch are tensors of the
//! caller's ([`Tensor::from_device_pointer`]), and everything runs on the attention's stream ([`Attention::on_stream`]). The
//! calling thread's current GPU is the same afterwards.

use super::gpu::{Pipeline, Ranked};
use super::memory::Memory;
use super::{Attention, Sizes, is_empty};
use crate::device::CudaDevice;
use crate::tensor::{Arena, Named, expect_apart};
use crate::{BlockIndex, BlockMask, BlockSize, DType, Error, Tensor};

/// The lists of a block mask in memory of the caller's: see [`BlockMask`](crate::BlockMask), whose names these are.
#[derive(Debug)]
pub struct MaskLists {
    /// Key blocks of each query block, the mask function applying within them: counts i32 `[batch, heads, q_blocks]`, indices
    /// i32 `[batch, heads, q_blocks, kv_blocks]`.
    pub kv: BlockIndex,
    /// Those the mask function keeps as a whole; where there is a mask function.
    pub full_kv: Option<BlockIndex>,
    /// The transpose of `kv`, counts `[batch, heads, kv_blocks]` and indices `[batch, heads, kv_blocks, q_blocks]`, when it is
    /// wanted.
    pub q: Option<BlockIndex>,
    /// The transpose of `full_kv`.
    pub full_q: Option<BlockIndex>,
}

impl MaskLists {
    /// The mask of lists with their transpose.
    pub(super) fn into_mask(self, blocks: BlockSize, seqs: (usize, usize)) -> BlockMask {
        let MaskLists { kv, full_kv, q, full_q } = self;
        let Some(q) = q else { unreachable!("the library's own lists have their transpose") };
        BlockMask::from_parts(blocks, seqs, (kv, full_kv), (q, full_q))
    }

    /// The same lists: what the kernels write to these, the others show.
    pub(super) fn share(&self) -> Self {
        let MaskLists { kv, full_kv, q, full_q } = self;
        MaskLists { kv: kv.clone(), full_kv: full_kv.clone(), q: q.clone(), full_q: full_q.clone() }
    }

    /// The lists that there are, by the names that the kernels have for them.
    pub(super) fn named(&self) -> impl Iterator<Item = Named<'_>> {
        let by_key = named(["q_counts", "q_indices"], self.q.as_ref());
        let full_by_key = named(["full_q_counts", "full_q_indices"], self.full_q.as_ref());
        named_lists(&self.kv, self.full_kv.as_ref()).chain(by_key).chain(full_by_key)
    }

    fn each(&mut self) -> impl Iterator<Item = &mut BlockIndex> {
        let MaskLists { kv, full_kv, q, full_q } = self;
        [Some(kv), full_kv.as_mut(), q.as_mut(), full_q.as_mut()].into_iter().flatten()
    }
}

impl Attention {
    /// Bytes of scratch for [`forward_in`](Self::forward_in) and [`mask_in`](Self::mask_in) on tensors of these shapes; 0 on the
    /// CPU.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    pub fn scratch_bytes(&self, q: &Tensor, k: &Tensor) -> Result<usize, Error> {
        self.check(q, k, None)?;
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| !is_empty(q, k)) else { return Ok(0) };
        let mut arena = Arena::to_measure();
        let mut memory = Memory::Arena(&mut arena);
        let sizes = Sizes::of(&self.rule, q, k);
        pipeline.scratch(&sizes, true, &mut memory)?;
        pipeline.lists(&sizes, false, &mut memory)?;
        Ok(arena.needed())
    }

    /// As [`forward`](Self::forward), into `out` (`[batch, heads, seq_q, value_dim]` of the dtype of q) and `lse` (f32 `[batch, heads, seq_q]`), which
    /// are dense in any order of their dimensions. `scratch` is a contiguous tensor of at least
    /// [`scratch_bytes`](Self::scratch_bytes).
    ///
    /// The kernels of a call work in its scratch one after another. Calls on one stream may share it where one returns before the next
    /// begins; threads that call at the same time need one each, clones being one.
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for an attention on the CPU, [`Error::Scratch`], [`Error::ScratchInUse`], [`Error::Gaps`], [`Error::Aliased`];
    /// [`Error::Tensor`] for outputs of another shape, dtype or device, over nothing too; otherwise as
    /// [`forward`](Self::forward).
    pub fn forward_in(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        [out, lse]: [&mut Tensor; 2],
        scratch: &mut Tensor,
    ) -> Result<(), Error> {
        self.check(q, k, Some(v))?;
        let (cuda, pipeline) = self.gpu()?;
        self.expect_outputs(q, [out, lse])?;
        let _current = cuda.enter()?;
        check_outputs([q, k, v], [out, lse], scratch)?;
        if is_empty(q, k) {
            return nothing(cuda, out, lse);
        }
        let mut arena = arena(scratch)?;
        let mut memory = Memory::Arena(&mut arena);
        let sizes = Sizes::of(&self.rule, q, k);
        let mut work = pipeline.scratch(&sizes, true, &mut memory)?;
        let mut lists = pipeline.lists(&sizes, false, &mut memory)?;
        pipeline.select(&self.rule, &sizes, Ranked::Tensors(q, k), &mut work, &mut lists)?;
        let lists = (&lists.kv, lists.full_kv.as_ref(), work.row_order());
        pipeline.attend(&self.rule, [q, k, v], lists, None, [out, lse])
    }

    /// As [`mask`](Self::mask), into `lists`.
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for an attention on the CPU, [`Error::Lists`] for lists of the wrong kind, [`Error::Scratch`],
    /// [`Error::Aliased`]; [`Error::Tensor`] for lists of another shape, dtype or device, over nothing too; otherwise as
    /// [`mask`](Self::mask).
    pub fn mask_in(
        &self,
        q: &Tensor,
        k: &Tensor,
        lists: &mut MaskLists,
        scratch: &mut Tensor,
    ) -> Result<(), Error> {
        self.check(q, k, None)?;
        let (cuda, pipeline) = self.gpu()?;
        let _current = cuda.enter()?;
        let split = pipeline.is_split();
        if lists.full_kv.is_some() != split || lists.full_q.is_some() != (split && lists.q.is_some()) {
            let found = match split {
                true => "the attention has a mask function, and lists of full blocks are missing",
                false => "the attention has no mask function, and there are lists of full blocks",
            };
            return Err(Error::Lists { found });
        }
        let sizes = Sizes::of(&self.rule, q, k);
        self.expect_written_lists(&sizes, lists)?;
        for BlockIndex { counts, indices } in lists.each() {
            check_dense("the counts", counts)?;
            check_dense("the indices", indices)?;
        }
        expect_apart(lists.named().chain([("scratch", &*scratch)]), [("q", q), ("k", k)])?;
        if is_empty(q, k) {
            return lists.each().try_for_each(|index| index.counts.fill_words(cuda, 0));
        }
        let mut arena = arena(scratch)?;
        let mut work = pipeline.scratch(&sizes, true, &mut Memory::Arena(&mut arena))?;
        pipeline.select(&self.rule, &sizes, Ranked::Tensors(q, k), &mut work, lists)
    }

    /// Bytes of scratch for [`attend_in`](Self::attend_in) on tensors of these shapes and over these lists; 0 where it needs none.
    ///
    /// # Errors
    /// As [`attend_with`](Self::attend_with).
    pub fn attend_scratch_bytes(&self, q: &Tensor, k: &Tensor, kv: &BlockIndex) -> Result<usize, Error> {
        self.check(q, k, None)?;
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| !is_empty(q, k)) else { return Ok(0) };
        let mut arena = Arena::to_measure();
        let sizes = Sizes::of(&self.rule, q, k);
        let order = pipeline.row_order(&sizes, kv, &mut Memory::Arena(&mut arena))?;
        Ok(order.map_or(0, |_| arena.needed()))
    }

    /// As [`attend_with`](Self::attend_with), over the lists of `kv` and `full_kv`, into `out` and `lse` as
    /// [`forward_in`](Self::forward_in). `scratch` is a contiguous tensor of at least
    /// [`attend_scratch_bytes`](Self::attend_scratch_bytes); the order in which rows are begun is made there.
    ///
    /// The lists may hold anything and need not ascend: a count past its list is cut, and a number that is no block is
    /// skipped. A batch or head dimension of 1 is shared by all. Nothing is read on the host, so that nothing waits.
    ///
    /// # Errors
    /// As [`forward_in`](Self::forward_in); [`Error::Bind`] for lists of the wrong shape or dtype, [`Error::Mask`] or [`Error::Tensor`]
    /// where there is nothing to launch over them.
    pub fn attend_in(
        &self,
        qkv: [&Tensor; 3],
        (kv, full_kv): (&BlockIndex, Option<&BlockIndex>),
        [out, lse]: [&mut Tensor; 2],
        scratch: &mut Tensor,
    ) -> Result<(), Error> {
        let [q, k, v] = qkv;
        self.check(q, k, Some(v))?;
        let (cuda, pipeline) = self.gpu()?;
        self.expect_outputs(q, [out, lse])?;
        let _current = cuda.enter()?;
        check_outputs(qkv, [out, lse], scratch)?;
        let lists = named_lists(kv, full_kv);
        expect_apart([("out", &*out), ("lse", &*lse), ("scratch", &*scratch)], lists)?;
        if is_empty(q, k) {
            self.expect_read_lists(&Sizes::of(&self.rule, q, k), kv, full_kv)?;
            return nothing(cuda, out, lse);
        }
        let (rule, sizes) = (&self.rule, Sizes::of(&self.rule, q, k));
        let mut arena = arena(scratch)?;
        let order = pipeline.ordered(rule, &sizes, (kv, full_kv), &mut Memory::Arena(&mut arena))?;
        pipeline.attend(rule, qkv, (kv, full_kv, order.as_ref()), None, [out, lse])
    }

    /// Whether the kernels for tensors of these shapes are chosen: a call only launches then, and neither compiles nor
    /// tunes. Always on the CPU; never for tensors that a call refuses.
    pub fn is_warm(&self, q: &Tensor, k: &Tensor) -> bool {
        self.is_warm_by(q, k, |pipeline, sizes| pipeline.is_warm(&self.rule, sizes))
    }

    /// As [`is_warm`](Self::is_warm), for [`attend_in`](Self::attend_in), which selects nothing.
    pub fn is_warm_for_lists(&self, q: &Tensor, k: &Tensor) -> bool {
        self.is_warm_by(q, k, |pipeline, sizes| pipeline.is_warm_for_lists(&self.rule, sizes))
    }

    pub(super) fn is_warm_by(
        &self,
        q: &Tensor,
        k: &Tensor,
        knows: impl Fn(&Pipeline, &Sizes) -> bool,
    ) -> bool {
        let Some(pipeline) = &self.pipeline else { return true };
        self.check(q, k, None).is_ok() && (is_empty(q, k) || knows(pipeline, &Sizes::of(&self.rule, q, k)))
    }

    pub(super) fn gpu(&self) -> Result<(&CudaDevice, &Pipeline), Error> {
        let gpu = self.device.as_cuda().zip(self.pipeline.as_ref());
        gpu.ok_or(Error::NotOnGpu { what: "memory to write into" })
    }
}

fn named_lists<'a>(kv: &'a BlockIndex, full_kv: Option<&'a BlockIndex>) -> impl Iterator<Item = Named<'a>> {
    let full = named(["full_kv_counts", "full_kv_indices"], full_kv);
    named(["kv_counts", "kv_indices"], Some(kv)).chain(full)
}

fn named<'a>(
    [counts, indices]: [&'static str; 2],
    index: Option<&'a BlockIndex>,
) -> impl Iterator<Item = Named<'a>> {
    index.into_iter().flat_map(move |index| [(counts, &index.counts), (indices, &index.indices)])
}

pub(super) fn arena(scratch: &Tensor) -> Result<Arena, Error> {
    let found = scratch.elements() * scratch.dtype().size();
    Arena::of(scratch)?.filter(|_| scratch.is_contiguous()).ok_or(Error::Scratch { found })
}

/// What the bindings of the kernels do not check: gaps, and what one kernel reads where another has written.
fn check_outputs([q, k, v]: [&Tensor; 3], [out, lse]: [&Tensor; 2], scratch: &Tensor) -> Result<(), Error> {
    check_dense("out", out)?;
    check_dense("lse", lse)?;
    expect_apart([("out", out), ("lse", lse), ("scratch", scratch)], [("q", q), ("k", k), ("v", v)])
}

pub(super) fn check_dense(what: &'static str, tensor: &Tensor) -> Result<(), Error> {
    if tensor.is_dense() {
        return Ok(());
    }
    let (strides, shape) = (tensor.strides().to_vec(), tensor.shape().to_vec());
    Err(Error::Gaps { what, strides, shape })
}

/// The outputs of queries without keys: 0, and the logarithm of nothing.
fn nothing(cuda: &CudaDevice, out: &mut Tensor, lse: &mut Tensor) -> Result<(), Error> {
    debug_assert_eq!(lse.dtype(), DType::F32);
    out.fill_words(cuda, 0)?;
    lse.fill_words(cuda, f32::NEG_INFINITY.to_bits())
}
