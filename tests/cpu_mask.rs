//! Block masks: lists, transposes, round trips, and everything that is refused.

mod support;

use proptest::prelude::*;
use support::{Mask, Random, blocks};
use tilewright::TensorError;
use tilewright::tune::{Workload, synthetic_mask};
use tilewright::{BlockIndex, BlockMask, BlockSize, DenseMap, Error, MaskError, SeqLens, Tensor};

fn index(counts: &[i32], indices: &[i32], shape: [usize; 4]) -> BlockIndex {
    BlockIndex {
        counts: Tensor::from_slice(counts, &shape[..3]).unwrap(),
        indices: Tensor::from_slice(indices, &shape).unwrap(),
    }
}

/// Each row's blocks, row by row.
fn rows(index: &BlockIndex) -> Vec<Vec<i32>> {
    let (counts, width) = (index.counts.to_vec::<i32>().unwrap(), index.indices.shape()[3]);
    let indices = index.indices.to_vec::<i32>().unwrap();
    counts.iter().enumerate().map(|(row, &count)| indices[row * width..][..count as usize].to_vec()).collect()
}

proptest! {
    #[test]
    fn lists_and_their_transposes_are_the_map(
        batch in 1usize..3, heads in 1usize..4, seq_q in 1usize..500, seq_kv in 1usize..500, size in 0..BlockSize::ALL.len(), seed: u64,
    ) {
        let blocks = BlockSize::ALL[size];
        let shape = [batch, heads, seq_q.div_ceil(blocks.q()), seq_kv.div_ceil(blocks.kv())];
        let [.., q_blocks, kv_blocks] = shape;
        let mut random = Random(seed);
        let classes: Vec<u8> = (0..shape.iter().product()).map(|_| (random.bits() >> 8) as u8 % 3).collect();
        let seqs = SeqLens { q: seq_q, kv: seq_kv };
        let mask = BlockMask::from_classes(&classes, shape, blocks, seqs).unwrap();
        let dense = mask.to_dense().unwrap();
        prop_assert_eq!(&dense.classes, &classes);
        prop_assert_eq!((dense.shape, mask.shape(), mask.blocks()), (shape, shape, blocks));
        prop_assert_eq!(mask.kept_blocks().unwrap(), classes.iter().filter(|&&class| class != DenseMap::EMPTY).count());

        for (class, kv, q) in
            [(DenseMap::PARTIAL, mask.kv(), mask.q()), (DenseMap::FULL, mask.full_kv().unwrap(), mask.full_q().unwrap())]
        {
            prop_assert_eq!(kv.indices.shape(), &shape);
            prop_assert_eq!(q.indices.shape(), &[batch, heads, kv_blocks, q_blocks]);
            let at = |head: usize, i: usize, j: usize| classes[(head * q_blocks + i) * kv_blocks + j] == class;
            let expected = |head, i| (0..kv_blocks).filter(|&j| at(head, i, j)).map(|j| j as i32).collect::<Vec<_>>();
            let transposed = |head, j| (0..q_blocks).filter(|&i| at(head, i, j)).map(|i| i as i32).collect::<Vec<_>>();
            for (row, found) in rows(kv).into_iter().enumerate() {
                prop_assert_eq!(found, expected(row / q_blocks, row % q_blocks));
            }
            for (row, found) in rows(q).into_iter().enumerate() {
                prop_assert_eq!(found, transposed(row / kv_blocks, row % kv_blocks));
            }
        }

        // From the lists back to the same mask.
        let again = BlockMask::from_kv_indices(
            mask.kv().counts.clone(), mask.kv().indices.clone(), mask.full_kv().cloned(), blocks, seqs,
        ).unwrap();
        prop_assert_eq!(again.to_dense().unwrap(), dense);
        prop_assert_eq!(rows(again.q()), rows(mask.q()));
        prop_assert_eq!(rows(again.full_q().unwrap()), rows(mask.full_q().unwrap()));
    }
}

#[test]
fn flex_attention_lists_are_kept_as_given() {
    // Unsorted, narrower than the number of key blocks, and with rubbish beyond the counts.
    let given = index(&[2, 1], &[3, 0, 2, 99], [1, 1, 2, 2]);
    let mask = BlockMask::from_kv_indices(
        given.counts,
        given.indices,
        None,
        blocks(64, 64),
        SeqLens { q: 128, kv: 256 },
    )
    .unwrap();
    assert_eq!(mask.kv().indices.to_vec::<i32>().unwrap(), [3, 0, 2, 99]);
    assert_eq!(rows(mask.q()), [vec![0], vec![], vec![1], vec![0]]);
    assert_eq!(mask.to_dense().unwrap().classes, [1, 0, 0, 1, 0, 0, 1, 0]);
    assert_eq!(mask.sparsity().unwrap(), 1.0 - 3.0 / 8.0);
    assert!(mask.full_q().is_none());
}

#[test]
fn classes_of_mask_functions() {
    let causal = Mask(|_, _, q, kv| kv <= q);
    let mask = BlockMask::from_mask_mod(&causal, 1, 1, blocks(64, 64), SeqLens::same(130)).unwrap();
    assert_eq!(mask.to_dense().unwrap().classes, [1, 0, 0, 2, 1, 0, 2, 2, 1]);
    // Only existing elements count: keys 128 and 129 are all there is of the last block.
    let short = Mask(|_, h, _, kv| h == 1 || kv != 140);
    let mask = BlockMask::from_mask_mod(&short, 2, 2, blocks(64, 64), SeqLens { q: 64, kv: 130 }).unwrap();
    assert_eq!(mask.to_dense().unwrap().classes, [2; 12]);
    let hole = Mask(|b, _, q, kv| !(b == 1 && q == 10 && kv == 70));
    let mask = BlockMask::from_mask_mod(&hole, 2, 1, blocks(64, 64), SeqLens { q: 64, kv: 130 }).unwrap();
    assert_eq!(mask.to_dense().unwrap().classes, [2, 2, 2, 2, 1, 2]);
}

#[test]
fn dense_masks() {
    let mask = BlockMask::full(2, 3, blocks(128, 64), SeqLens { q: 129, kv: 65 }).unwrap();
    assert_eq!(
        (mask.shape(), mask.kept_blocks().unwrap(), mask.sparsity().unwrap()),
        ([2, 3, 2, 2], 24, 0.0)
    );
    assert_eq!(mask.row_counts().unwrap(), [2; 12]);
    assert_eq!((mask.block_q(), mask.block_kv(), mask.seq_q(), mask.seq_kv()), (128, 64, 129, 65));
    let empty = BlockMask::full(1, 1, blocks(64, 64), SeqLens { q: 0, kv: 100 }).unwrap();
    assert_eq!((empty.kept_blocks().unwrap(), empty.sparsity().unwrap()), (0, 0.0));
}

fn refused(result: Result<BlockMask, Error>) -> MaskError {
    match result {
        Err(Error::Mask(error)) => {
            assert!(error.to_string().contains(':'), "{error}: says what to do");
            error
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_maps() {
    let shape = [1, 1, 2, 2];
    let map =
        |map: &[bool], q, kv| refused(BlockMask::from_dense(map, shape, blocks(64, 64), SeqLens { q, kv }));
    assert_eq!(BlockSize::new(32, 64), Err(MaskError::BlockSize { q: 32, kv: 64 }));
    let found = map(&[true; 3], 128, 128);
    assert_eq!(found, MaskError::MapLength { found: 3, needed: 4, shape });
    let found = map(&[true; 4], 129, 128);
    assert_eq!(found, MaskError::Grid { dimension: "q_blocks", found: 2, needed: 3, seq: 129, block: 64 });
    let found = map(&[true; 4], 128, 64);
    assert_eq!(found, MaskError::Grid { dimension: "kv_blocks", found: 2, needed: 1, seq: 64, block: 64 });
    for long in [(1 << 31) - 256, 1 << 31, usize::MAX] {
        assert_eq!(
            refused(BlockMask::full(1, 1, blocks(64, 64), SeqLens { q: 64, kv: long })),
            MaskError::TooLong { found: long }
        );
    }
    let classes = [0, 1, 2, 1, 0, 0, 0, 3];
    let found = refused(BlockMask::from_classes(&classes, [1, 2, 2, 2], blocks(64, 64), SeqLens::same(128)));
    assert_eq!(found, MaskError::Class { at: [0, 1, 1, 1], found: 3 });
}

/// Sizes that no memory holds, and sizes whose product is beyond all numbers: of every constructor, at once.
#[test]
fn more_blocks_than_memory_holds() {
    const LONG: usize = 2_000_000_000;
    let sizes = [
        (1, 1, LONG, LONG),
        (40, 40, LONG, 100_000),
        (usize::MAX, 1, 64, 64),
        (usize::MAX, usize::MAX, 64, 64),
        (1 << 40, 1 << 40, 0, 0),
        (1 << 40, 1, 0, 64),
        (1, 1 << 40, 64, 0),
        (0, usize::MAX, LONG, LONG),
    ];
    let keep = |_, _, _, _| -> bool { panic!("nobody asks before there is memory") };
    for (batch, heads, seq_q, seq_kv) in sizes {
        let shape = [batch, heads, seq_q.div_ceil(128), seq_kv.div_ceil(64)];
        let (blocks, seqs) = (blocks(128, 64), SeqLens { q: seq_q, kv: seq_kv });
        let too_large = MaskError::TooLarge { shape };
        assert_eq!(refused(BlockMask::full(batch, heads, blocks, seqs)), too_large);
        let of_function = BlockMask::from_mask_mod(&Mask(keep), batch, heads, blocks, seqs);
        assert_eq!(refused(of_function), too_large);
        let workload = Workload { batch, heads, seq_q, seq_kv, density: 0.1 };
        let synthetic = synthetic_mask(&workload, BlockSize::default(), 0.5);
        assert_eq!(refused(synthetic), too_large);
        let text = too_large.to_string();
        assert!(
            text.contains(&format!("{batch} × {heads}")) && text.contains("does not fit into memory"),
            "{text}"
        );
    }
    // Lists of ten thousand rows, each over the longest sequence there is.
    let zeros = |shape: &[usize]| Tensor::zeros(tilewright::DType::I32, shape).unwrap();
    let (counts, indices) = (zeros(&[100, 100, 1]), zeros(&[100, 100, 1, 1]));
    let most = i32::MAX as usize - 256;
    let shape = [100, 100, 1, most.div_ceil(64)];
    let lists =
        BlockMask::from_kv_indices(counts, indices, None, blocks(64, 64), SeqLens { q: 64, kv: most });
    assert_eq!(refused(lists), MaskError::TooLarge { shape });
    // Of a map the length is looked at first.
    let map = BlockMask::from_dense(
        &[true; 4],
        [1, 1, LONG / 128, LONG / 64],
        blocks(128, 64),
        SeqLens::same(LONG),
    );
    assert!(matches!(refused(map), MaskError::MapLength { found: 4, .. }));
}

#[test]
fn bad_lists() {
    let shape = [1, 1, 2, 2];
    let make = |kv: BlockIndex, full| {
        BlockMask::from_kv_indices(kv.counts, kv.indices, full, blocks(64, 64), SeqLens::same(128))
    };
    let lists = |counts: &[i32], indices: &[i32]| refused(make(index(counts, indices, shape), None));
    let what = "kv_counts";
    assert_eq!(lists(&[1, 3], &[0; 4]), MaskError::Count { what, at: [0, 0, 1], found: 3, width: 2 });
    assert_eq!(lists(&[-1, 0], &[0; 4]), MaskError::Count { what, at: [0, 0, 0], found: -1, width: 2 });
    let what = "kv_indices";
    assert_eq!(lists(&[1, 1], &[0, 0, 2, 0]), MaskError::Index { what, at: [0, 0, 1], found: 2, blocks: 2 });
    assert_eq!(
        lists(&[1, 1], &[0, 0, -1, 0]),
        MaskError::Index { what, at: [0, 0, 1], found: -1, blocks: 2 }
    );
    assert_eq!(lists(&[0, 2], &[0, 0, 1, 1]), MaskError::Duplicate { at: [0, 0, 1], block: 1 });
    let good = || index(&[1, 1], &[0, 0, 1, 0], shape);
    assert!(make(good(), None).is_ok());
    let both = refused(make(good(), Some(good())));
    assert_eq!(both, MaskError::Duplicate { at: [0, 0, 0], block: 0 }, "partial and full at once");

    let longer = index(&[0; 3], &[0; 6], [1, 1, 3, 2]);
    assert!(matches!(refused(make(longer.clone(), None)), MaskError::Grid { dimension: "q_blocks", .. }));
    let mixed = BlockIndex { counts: good().counts, indices: longer.indices.clone() };
    assert!(matches!(refused(make(mixed, None)), MaskError::ListShape { what: "kv_indices", .. }));
    assert!(matches!(
        refused(make(good(), Some(longer))),
        MaskError::ListShape { what: "full_kv_counts", .. }
    ));
    let flat = Tensor::from_slice(&[1, 1], &[2]).unwrap();
    let flat = BlockIndex { counts: flat, indices: good().indices };
    assert!(matches!(refused(make(flat, None)), MaskError::ListShape { what: "kv_counts", .. }));
    let floats = Tensor::from_slice(&[1.0f32, 1.0], &shape[..3]).unwrap();
    let error = make(BlockIndex { counts: floats, indices: good().indices }, None).unwrap_err();
    assert!(
        matches!(error, Error::Tensor(TensorError::DType { ref what, .. }) if what == "kv_counts"),
        "{error}"
    );
}

#[test]
fn masks_of_other_sizes() {
    let mask = BlockMask::full(2, 1, blocks(64, 64), SeqLens { q: 100, kv: 200 }).unwrap();
    assert!(mask.check_fits(2, 12, 100, 200).is_ok(), "one head's mask serves all");
    let misfit = |batch, heads, seq_q, seq_kv| match mask.check_fits(batch, heads, seq_q, seq_kv) {
        Err(MaskError::Fit { dimension, found, needed, .. }) => (dimension, found, needed),
        other => panic!("{other:?}"),
    };
    assert_eq!(misfit(3, 1, 100, 200), ("batch", 2, 3));
    assert_eq!(misfit(2, 1, 101, 200), ("seq_q", 100, 101));
    assert_eq!(misfit(2, 1, 100, 1), ("seq_kv", 200, 1));
    let heads = BlockMask::full(1, 4, blocks(64, 64), SeqLens { q: 100, kv: 200 }).unwrap();
    assert!(matches!(heads.check_fits(5, 2, 100, 200), Err(MaskError::Fit { dimension: "heads", .. })));
}

#[test]
fn block_sizes() {
    assert_eq!(BlockSize::default().to_string(), "128×64");
    assert!(BlockSize::ALL.iter().all(|size| BlockSize::new(size.q(), size.kv()) == Ok(*size)));
    assert_eq!(BlockSize::new(64, 32), Err(MaskError::BlockSize { q: 64, kv: 32 }));
}
