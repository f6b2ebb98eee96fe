//! What a call of the caller's writes to, looked at before anything is launched: the same for empty inputs, which launch nothing,
//! as for others, whose kernels would see some of it.

use super::{Attention, Gradients, MaskLists, Sizes};
use crate::tensor::TensorError;
use crate::{BlockIndex, DType, Error, MaskError, Tensor};

impl Attention {
    /// `out` and `lse` of a forward of q, which was checked.
    pub(super) fn expect_outputs(&self, q: &Tensor, [out, lse]: [&Tensor; 2]) -> Result<(), Error> {
        let &[batch, heads, seq_q, _] = q.shape() else { unreachable!("q was checked") };
        self.expect("out", out, self.rule.dtype, &[batch, heads, seq_q, self.rule.value_dim.get()])?;
        self.expect("lse", lse, DType::F32, &[batch, heads, seq_q])
    }

    /// The gradients of q, k and v.
    pub(super) fn expect_gradients(&self, qkv: [&Tensor; 3], gradients: &Gradients) -> Result<(), Error> {
        let mut pairs = gradients.named().into_iter().zip(qkv);
        pairs.try_for_each(|((what, gradient), like)| self.expect(what, gradient, like.dtype(), like.shape()))
    }

    /// What a backward reads beside q, k and v is on the attention's device.
    pub(super) fn expect_places(
        &self,
        [out, lse]: [&Tensor; 2],
        d_out: &Tensor,
        d_lse: Option<&Tensor>,
    ) -> Result<(), Error> {
        let tensors = [("out", Some(out)), ("lse", Some(lse)), ("d_out", Some(d_out)), ("d_lse", d_lse)];
        for (what, tensor) in tensors {
            tensor.map_or(Ok(()), |tensor| tensor.expect_place(what, &self.device))?;
        }
        Ok(())
    }

    /// Lists that a selection fills.
    pub(super) fn expect_written_lists(&self, sizes: &Sizes, lists: &MaskLists) -> Result<(), Error> {
        let &Sizes { batch, heads, q_blocks, kv_blocks, .. } = sizes;
        for (names, index, rows, width) in [
            (["kv_counts", "kv_indices"], Some(&lists.kv), q_blocks, kv_blocks),
            (["full_kv_counts", "full_kv_indices"], lists.full_kv.as_ref(), q_blocks, kv_blocks),
            (["q_counts", "q_indices"], lists.q.as_ref(), kv_blocks, q_blocks),
            (["full_q_counts", "full_q_indices"], lists.full_q.as_ref(), kv_blocks, q_blocks),
        ] {
            let Some(BlockIndex { counts, indices }) = index else { continue };
            self.expect(names[0], counts, DType::I32, &[batch, heads, rows])?;
            self.expect(names[1], indices, DType::I32, &[batch, heads, rows, width])?;
        }
        Ok(())
    }

    /// Lists by query that a call over nothing would read: where there is something, the kernels' bindings say as much.
    pub(super) fn expect_read_lists(
        &self,
        sizes: &Sizes,
        kv: &BlockIndex,
        full_kv: Option<&BlockIndex>,
    ) -> Result<(), Error> {
        let (batch, heads, rows) = (sizes.batch, sizes.heads, sizes.q_blocks);
        for (names, index) in
            [(["kv_counts", "kv_indices"], Some(kv)), (["full_kv_counts", "full_kv_indices"], full_kv)]
        {
            let Some(BlockIndex { counts, indices }) = index else { continue };
            for (what, list, width) in [(names[0], counts, ""), (names[1], indices, ", width")] {
                expect_dtype(what, list, DType::I32)?;
                list.expect_place(what, &self.device)?;
                let (rank, shape) = (if width.is_empty() { 3 } else { 4 }, list.shape());
                let fits = shape.len() == rank
                    && [1, batch].contains(&shape[0])
                    && [1, heads].contains(&shape[1])
                    && shape[2] == rows;
                if !fits {
                    let needed = format!("[{batch} or 1, {heads} or 1, {rows}{width}]");
                    return Err(MaskError::ListShape { what, found: list.shape().to_vec(), needed }.into());
                }
            }
        }
        Ok(())
    }

    fn expect(
        &self,
        what: &'static str,
        tensor: &Tensor,
        dtype: DType,
        shape: &[usize],
    ) -> Result<(), Error> {
        expect_dtype(what, tensor, dtype)?;
        if tensor.shape() != shape {
            let (found, needed) = (tensor.shape().to_vec(), shape.to_vec());
            return Err(TensorError::Shape { what, found, needed }.into());
        }
        Ok(tensor.expect_place(what, &self.device)?)
    }
}

fn expect_dtype(what: &str, tensor: &Tensor, needed: DType) -> Result<(), TensorError> {
    if tensor.dtype() == needed {
        return Ok(());
    }
    Err(TensorError::DType { what: what.to_owned(), found: tensor.dtype(), needed: needed.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockSize, Device, HeadDim};

    /// Values of another width, two query heads a key head; over something and over nothing.
    const CASES: [[usize; 5]; 5] =
        [[2, 4, 2, 130, 140], [0, 4, 2, 130, 140], [2, 0, 0, 130, 140], [2, 4, 2, 0, 140], [2, 4, 2, 130, 0]];

    fn attention() -> Attention {
        let builder = Attention::builder(HeadDim::D64, DType::Bf16).value_dim(HeadDim::new(24).unwrap());
        builder.blocks(BlockSize::new(64, 64).unwrap()).build(&Device::cpu()).unwrap()
    }

    fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::zeros(dtype, shape).unwrap()
    }

    /// The same tensor with another shape, another dtype, or gaps; what is said of it names what was found and what was needed.
    fn spoilt(tensor: &Tensor) -> [(Tensor, [String; 2]); 3] {
        let (shape, dtype) = (tensor.shape(), tensor.dtype());
        let longer = [&shape[..shape.len() - 1], &[shape[shape.len() - 1] + 8]].concat();
        let other = if dtype == DType::F32 { DType::I32 } else { DType::F32 };
        let shapes = [format!("shape {longer:?}"), format!("needed {shape:?}")];
        let dtypes = [format!("dtype {other}"), format!("needed {dtype}")];
        let ranks = [format!("shape {:?}", [1usize]), format!("needed {shape:?}")];
        [(zeros(dtype, &longer), shapes), (zeros(other, shape), dtypes), (zeros(dtype, &[1]), ranks)]
    }

    /// Refuses each spoilt form of the tensor of this name.
    fn refuses(name: &str, tensor: &Tensor, check: impl Fn(&Tensor) -> Result<(), Error>) {
        check(tensor).unwrap();
        for (spoilt, texts) in spoilt(tensor) {
            let error = check(&spoilt).expect_err(name).to_string();
            let named = error.starts_with(name) && texts.iter().all(|text| error.contains(text.as_str()));
            assert!(named, "{name}: {error}");
        }
    }

    #[test]
    fn outputs_that_do_not_fit_are_refused_over_nothing_too() {
        let attention = attention();
        for [batch, heads, kv_heads, seq_q, seq_kv] in CASES {
            let [q, k, v] = [
                zeros(DType::Bf16, &[batch, heads, seq_q, 64]),
                zeros(DType::Bf16, &[batch, kv_heads, seq_kv, 64]),
                zeros(DType::Bf16, &[batch, kv_heads, seq_kv, 24]),
            ];
            let out = zeros(DType::Bf16, &[batch, heads, seq_q, 24]);
            let lse = zeros(DType::F32, &[batch, heads, seq_q]);
            refuses("out", &out, |out| attention.expect_outputs(&q, [out, &lse]));
            refuses("lse", &lse, |lse| attention.expect_outputs(&q, [&out, lse]));
            let like = |tensor: &Tensor| zeros(tensor.dtype(), tensor.shape());
            for (place, (name, of)) in [("dq", &q), ("dk", &k), ("dv", &v)].into_iter().enumerate() {
                refuses(name, of, |gradient| {
                    let mut all = [like(&q), like(&k), like(&v)];
                    all[place] = like(gradient);
                    let [dq, dk, dv] = all;
                    attention.expect_gradients([&q, &k, &v], &Gradients { dq, dk, dv })
                });
            }
            let sizes = Sizes::of(&attention.rule, &q, &k);
            let [rows, columns] = [sizes.q_blocks, sizes.kv_blocks];
            let index = |rows, width| BlockIndex {
                counts: zeros(DType::I32, &[batch, heads, rows]),
                indices: zeros(DType::I32, &[batch, heads, rows, width]),
            };
            let lists = || MaskLists {
                kv: index(rows, columns),
                full_kv: Some(index(rows, columns)),
                q: Some(index(columns, rows)),
                full_q: Some(index(columns, rows)),
            };
            type Part = fn(&mut MaskLists) -> &mut BlockIndex;
            let parts: [(&str, Part); 4] = [
                ("kv", |lists| &mut lists.kv),
                ("full_kv", |lists| lists.full_kv.as_mut().unwrap()),
                ("q", |lists| lists.q.as_mut().unwrap()),
                ("full_q", |lists| lists.full_q.as_mut().unwrap()),
            ];
            for (name, part) in parts {
                let BlockIndex { counts, indices } = part(&mut lists()).clone();
                refuses(&format!("{name}_counts"), &counts, |counts| {
                    let mut lists = lists();
                    part(&mut lists).counts = counts.clone();
                    attention.expect_written_lists(&sizes, &lists)
                });
                refuses(&format!("{name}_indices"), &indices, |indices| {
                    let mut lists = lists();
                    part(&mut lists).indices = indices.clone();
                    attention.expect_written_lists(&sizes, &lists)
                });
            }
            let read = index(rows, columns);
            for spoilt in spoilt(&read.counts).map(|(spoilt, _)| spoilt) {
                let lists = BlockIndex { counts: spoilt, indices: read.indices.clone() };
                assert!(attention.expect_read_lists(&sizes, &read, Some(&lists)).is_err());
                assert!(attention.expect_read_lists(&sizes, &lists, None).is_err());
            }
            attention.expect_read_lists(&sizes, &read, Some(&index(rows, 0))).unwrap();
        }
    }
}
