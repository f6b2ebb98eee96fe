//! Host memory aligned for every element type and for 16-byte vector loads.

/// Bytes with the alignment of a 16-byte word.
#[derive(Debug, Clone)]
pub(crate) struct HostBuffer {
    words: Vec<u128>,
    len: usize,
}

impl HostBuffer {
    pub(crate) fn zeroed(len: usize) -> Self {
        HostBuffer { words: vec![0; len.div_ceil(16)], len }
    }

    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        bytemuck::cast_slice_mut::<u128, u8>(&mut buffer.words)[..bytes.len()].copy_from_slice(bytes);
        buffer
    }

    pub(crate) fn fill(&mut self, byte: u8) {
        self.words.fill(u128::from_ne_bytes([byte; 16]));
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}
