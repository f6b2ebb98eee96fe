//! Which of the blocks that a mask leaves out are dropped, and which are forbidden: a [tail](crate::tail) stands for the first alone.

use super::{BlockMask, DenseMap, EMPTY, FULL, PARTIAL};
use crate::{DType, Device, Error, Tensor, TensorError};

impl BlockMask {
    /// The dropped blocks: i32 `[batch|1, heads|1, q_blocks, ceil(kv_blocks / 32)]`, bit b of word w for key block 32 · w + b. These are the
    /// blocks that the mask does not list although a query may attend to all of their keys. A mask says so after
    /// [`with_admissible`](Self::with_admissible) or [`with_unlisted_dropped`](Self::with_unlisted_dropped).
    pub fn dropped(&self) -> Option<&Tensor> {
        self.dropped.as_ref()
    }

    /// The same lists, what they leave out of `admissible` being dropped and the rest forbidden. Of an admissible mask with full blocks these
    /// alone can be dropped, for in the others the mask function forbids some of the keys; of one without, all that it lists.
    ///
    /// # Errors
    /// [`MaskError::Fit`](super::MaskError::Fit) for an admissible mask of other lengths, batches or heads, [`MaskError::Blocks`](super::MaskError::Blocks) for one of other blocks; a device
    /// error when lists cannot be copied from the GPU.
    pub fn with_admissible(&self, admissible: &BlockMask) -> Result<Self, Error> {
        admissible.check_blocks(self.blocks)?;
        let [batch, heads, q_blocks, kv_blocks] = self.shape();
        admissible.check_fits(batch, heads, self.seq_q, self.seq_kv)?;
        let whole = if admissible.full_kv.is_some() { FULL } else { PARTIAL };
        let (listed, allowed) = (self.to_dense()?, admissible.to_dense()?);
        let of_head = q_blocks * kv_blocks;
        let is_dropped = |block: usize| {
            let (head, within) = (block / of_head, block % of_head);
            let shared = |shape: [usize; 4]| head / heads % shape[0] * shape[1] + head % heads % shape[1];
            let class = allowed.classes[shared(allowed.shape) * of_head + within];
            class == whole && listed.classes[block] == EMPTY
        };
        self.dropping(&listed, is_dropped)
    }

    /// The same lists, all that they leave out being dropped: no key is forbidden.
    ///
    /// # Errors
    /// A device error when the lists cannot be copied from the GPU.
    pub fn with_unlisted_dropped(&self) -> Result<Self, Error> {
        let listed = self.to_dense()?;
        self.dropping(&listed, |block| listed.classes[block] == EMPTY)
    }

    /// The same lists with these bits as [`dropped`](Self::dropped), of memory that may lie on a GPU: what they say is not looked at. A block
    /// that is listed and dropped too counts twice.
    ///
    /// # Errors
    /// [`TensorError::Shape`] and [`TensorError::DType`] for what is no such tensor.
    pub fn with_dropped(&self, dropped: Tensor) -> Result<Self, Error> {
        let [batch, heads, q_blocks, kv_blocks] = self.shape();
        let needed = [batch, heads, q_blocks, kv_blocks.div_ceil(32)];
        if dropped.shape() != needed {
            let (found, needed) = (dropped.shape().to_vec(), needed.to_vec());
            return Err(TensorError::Shape { what: "dropped", found, needed }.into());
        }
        dropped.expect_dtype("dropped", DType::I32)?;
        Ok(self.clone().with_dropped_bits(Some(dropped)))
    }

    /// The same lists with these bits as [`dropped`](Self::dropped).
    pub(crate) fn with_dropped_bits(self, dropped: Option<Tensor>) -> Self {
        BlockMask { dropped, ..self }
    }

    /// The bits of the blocks that are dropped.
    fn dropping(&self, listed: &DenseMap, is_dropped: impl Fn(usize) -> bool) -> Result<Self, Error> {
        let dropped: Vec<bool> = (0..listed.classes.len()).map(is_dropped).collect();
        let bits = bits_of(&dropped, listed.shape)?;
        let device = self.kv.counts.cuda_device()?.map_or(Device::Cpu, Device::Cuda);
        Ok(BlockMask { dropped: Some(bits.to(&device)?), ..self.clone() })
    }

    /// Of each block of [`shape`](Self::shape), whether it is dropped; nothing where the mask does not say.
    ///
    /// # Errors
    /// A device error when the bits cannot be copied from the GPU.
    pub(crate) fn dropped_map(&self) -> Result<Option<Vec<bool>>, Error> {
        let Some(bits) = &self.dropped else { return Ok(None) };
        let [_, _, _, kv_blocks] = self.shape();
        let words: Vec<i32> = bits.to_vec()?;
        let row = |words: &[i32]| -> Vec<bool> {
            (0..kv_blocks).map(|block| words[block / 32] >> (block % 32) & 1 == 1).collect()
        };
        Ok(Some(words.chunks(kv_blocks.div_ceil(32).max(1)).flat_map(row).collect()))
    }
}

/// A bit for each block of a map of this shape.
fn bits_of(map: &[bool], [batch, heads, q_blocks, kv_blocks]: [usize; 4]) -> Result<Tensor, Error> {
    let words = |row: &[bool]| -> Vec<i32> {
        let word = |bits: &[bool]| {
            bits.iter().enumerate().fold(0u32, |word, (at, &bit)| word | u32::from(bit) << at) as i32
        };
        row.chunks(32).map(word).collect()
    };
    let words: Vec<i32> = map.chunks(kv_blocks.max(1)).flat_map(words).collect();
    Tensor::from_slice(&words, &[batch, heads, q_blocks, kv_blocks.div_ceil(32)])
}
