//! Token grids: the order as a permutation, how compact its blocks are, and tensors moved by it.

#[path = "support/mod.rs"]
mod support;

use proptest::prelude::*;
use support::Random;
use tilewright::GridError;
use tilewright::TensorError;
use tilewright::reference::relative_error;
use tilewright::{
    Attention, BlockSize, DType, Device, Error, HeadDim, Output, Tensor, TokenGrid, top_k, top_p,
};

/// t, h, w of a token of the grid.
fn place(grid: &TokenGrid, token: i32) -> Option<[usize; 3]> {
    let [t, h, w] = grid.grid();
    let cell = usize::try_from(token).unwrap().checked_sub(grid.before())?;
    (cell < t * h * w).then_some([cell / (h * w), cell / w % h, cell % w])
}

/// The sides of the box around the tokens of a list, those outside the grid left out.
fn sides(grid: &TokenGrid, tokens: &[i32]) -> Option<[usize; 3]> {
    let places: Vec<_> = tokens.iter().filter_map(|&token| place(grid, token)).collect();
    (!places.is_empty()).then(|| {
        [0, 1, 2].map(|axis| {
            let along = places.iter().map(|place| place[axis]);
            along.clone().max().unwrap() - along.min().unwrap() + 1
        })
    })
}

/// Per run of `run` positions, the sides of its box together; the mean.
fn mean_extent(grid: &TokenGrid, order: &[i32], run: usize) -> f64 {
    let extents: Vec<usize> =
        order.chunks(run).filter_map(|run| sides(grid, run)).map(|sides| sides.iter().sum()).collect();
    extents.iter().sum::<usize>() as f64 / extents.len() as f64
}

fn raster(grid: &TokenGrid) -> Vec<i32> {
    (0..grid.len() as i32).collect()
}

fn check_permutation(grid: &TokenGrid) {
    let (order, inverse) = (grid.order(), grid.inverse());
    assert_eq!((order.len(), inverse.len()), (grid.len(), grid.len()));
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, raster(grid), "every token once");
    for (position, &token) in order.iter().enumerate() {
        assert_eq!(inverse[token as usize] as usize, position);
        assert_eq!(grid.block_of(token as usize), Some(position / grid.blocks().kv()));
    }
    assert_eq!(grid.block_of(grid.len()), None);
    let (before, after) = (grid.before(), grid.after());
    let [t, h, w] = grid.grid();
    assert_eq!(grid.len(), before + t * h * w + after);
    assert_eq!(order[..before], raster(grid)[..before], "tokens before the grid stay");
    assert_eq!(order[grid.len() - after..], raster(grid)[grid.len() - after..], "tokens after the grid stay");
}

proptest! {
    #[test]
    fn the_order_is_a_permutation(
        grid in [1usize..14, 1usize..20, 1usize..20],
        before in 0usize..300,
        after in 0usize..300,
        tile in proptest::sample::select(vec![[4, 4, 4], [1, 8, 8], [2, 4, 8], [64, 1, 1], [1, 1, 64], [16, 2, 2]]),
    ) {
        check_permutation(&TokenGrid::builder(grid).before(before).after(after).tile(tile).build().unwrap());
    }

    /// Whatever the sizes, runs are about as compact as the tile. A raster run of a grid larger than 8 along w is not.
    #[test]
    fn runs_are_compact(grid in [4usize..24, 4usize..40, 4usize..60], before in 0usize..300) {
        let grid = TokenGrid::builder(grid).before(before).build().unwrap();
        let extent = mean_extent(&grid, grid.order(), 64);
        prop_assert!(extent <= 17.0, "{grid}: {extent}");
        let pairs = mean_extent(&grid, grid.order(), 128);
        prop_assert!(pairs <= 23.0, "{grid}: {pairs}");
    }

    /// Where the grid is made of tiles, so is the order: every block is one, and every two consecutive are neighbours.
    #[test]
    fn whole_tiles_are_blocks(
        tiles in [1usize..5, 1usize..5, 1usize..5],
        tile in proptest::sample::select(vec![[4, 4, 4], [1, 8, 8], [2, 4, 8], [4, 8, 2]]),
        pairs_before in 0usize..3,
    ) {
        let grid = [0, 1, 2].map(|axis| tiles[axis] * tile[axis]);
        let grid = TokenGrid::builder(grid).tile(tile).before(128 * pairs_before).build().unwrap();
        let video = &grid.order()[128 * pairs_before..];
        for run in video.chunks(64) {
            prop_assert_eq!(sides(&grid, run), Some(tile));
        }
        for pair in video.chunks_exact(128) {
            let sides = sides(&grid, pair).unwrap();
            let doubled = [0, 1, 2].iter().filter(|&&axis| sides[axis] == 2 * tile[axis]).count();
            let kept = [0, 1, 2].iter().filter(|&&axis| sides[axis] == tile[axis]).count();
            prop_assert_eq!((doubled, kept), (1, 2));
        }
    }
}

/// The grids of Wan 2.1 (480p, 720p), CogVideoX and HunyuanVideo, none of which is made of whole cubes. A cube has sides of
/// 12 together, two of them 16.
#[test]
fn ragged_grids_of_real_models_stay_compact() {
    for (grid, before, after, bounds) in [
        ([21, 30, 52], 0, 0, (12.65, 17.0)),
        ([21, 45, 80], 0, 0, (12.55, 16.65)),
        ([13, 30, 45], 226, 0, (13.5, 17.8)),
        ([13, 30, 45], 0, 226, (13.4, 17.7)),
        ([33, 45, 80], 0, 256, (12.4, 16.5)),
    ] {
        let grid = TokenGrid::builder(grid).before(before).after(after).build().unwrap();
        check_permutation(&grid);
        let extents = |order: &[i32]| [64, 128].map(|run| mean_extent(&grid, order, run));
        let (cubes, lines) = (extents(grid.order()), extents(&raster(&grid)));
        let near = |run: &&[i32]| sides(&grid, run).is_some_and(|sides| sides.iter().all(|&side| side <= 5));
        let whole = grid.order().chunks(64).filter(near).count();
        let blocks = grid.len().div_ceil(64);
        println!("{grid}: {cubes:.2?}, raster {lines:.2?}, {whole} of {blocks} blocks are cubes or nearly");
        assert!(cubes[0] <= bounds.0 && cubes[1] <= bounds.1, "{grid}: {cubes:?}");
        assert!(lines[0] > 2.5 * cubes[0] && lines[1] > 2.0 * cubes[1], "{grid}: {lines:?}");
        assert!(whole as f64 > 0.5 * blocks as f64, "{grid}: {whole} cubes");
    }
}

#[test]
fn tokens_before_the_grid_do_not_shift_its_blocks() {
    // 226 = 3 · 64 + 34: without care every block would lie across two cubes.
    let grid = TokenGrid::builder([8, 16, 28]).before(226).build().unwrap();
    let whole = grid.order()[256..].chunks_exact(64);
    assert!(whole.clone().take(55).all(|run| sides(&grid, run) == Some([4, 4, 4])));
    assert_eq!(whole.count(), 55);
}

/// Tables that leave out the text go the way of the tokens they are for.
#[test]
fn the_videos_own_order_is_that_of_the_whole() {
    let grid = TokenGrid::builder([5, 9, 7]).before(70).after(30).build().unwrap();
    let video = grid.video_only();
    check_permutation(&video);
    assert_eq!((video.len(), video.before(), video.after()), (5 * 9 * 7, 0, 0));
    let shifted: Vec<i32> = video.order().iter().map(|token| token + 70).collect();
    assert_eq!(shifted, grid.order()[70..grid.len() - 30]);
    assert_ne!(
        video.order(),
        TokenGrid::new([5, 9, 7]).unwrap().order(),
        "the text moves where blocks begin"
    );
}

#[test]
fn blocks_of_128_keys_have_tiles_of_their_own() {
    let blocks = BlockSize::new(128, 128).unwrap();
    let grid = TokenGrid::builder([8, 8, 8]).blocks(blocks).build().unwrap();
    assert_eq!(grid.tile(), [8, 4, 4]);
    assert!(grid.order().chunks(128).all(|run| sides(&grid, run) == Some([8, 4, 4])));
    assert_eq!(grid.block_of(0), Some(0));
}

#[test]
fn what_is_no_grid_is_refused() {
    let fails = |grid: Result<TokenGrid, Error>, said: &[&str]| {
        let message = grid.unwrap_err().to_string();
        assert!(said.iter().all(|part| message.contains(part)), "{message}");
    };
    fails(TokenGrid::new([0, 16, 28]), &["grid is 0×16×28", "at least 1"]);
    let tile = |tile| TokenGrid::builder([8, 16, 28]).tile(tile).build();
    fails(tile([0, 4, 4]), &["tile is 0×4×4"]);
    fails(tile([4, 4, 2]), &["4×4×2", "32 tokens", "needed 64"]);
    fails(tile([usize::MAX, usize::MAX, usize::MAX]), &["needed 64"]);
    let blocks = BlockSize::new(128, 128).unwrap();
    fails(TokenGrid::builder([8, 8, 8]).tile([4, 4, 4]).blocks(blocks).build(), &["64 tokens", "needed 128"]);
    fails(TokenGrid::new([1 << 12, 1 << 12, 1 << 12]), &["68719476736 tokens", "32-bit"]);
    fails(TokenGrid::builder([1, 1, 1]).before(usize::MAX).after(usize::MAX).build(), &["32-bit"]);
    fails(TokenGrid::new([1 << 31, 1, 1]), &["2147483648 tokens", "32-bit"]);
}

/// In a process with little memory, whatever the machine has.
#[cfg(target_os = "linux")]
#[test]
fn more_tokens_than_memory_holds() {
    const CHILD: &str = "TILEWRIGHT_TEST_LITTLE_MEMORY";
    if std::env::var_os(CHILD).is_some() {
        let error = TokenGrid::new([1, 1 << 29, 1]).unwrap_err();
        assert!(matches!(error, Error::Grid(GridError::TooLarge { tokens: 0x2000_0000 })), "{error}");
        return;
    }
    // 4 GB of addresses; the order of so many tokens and its inverse take 6.
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 4000000 && exec \"$0\" --exact more_tokens_than_memory_holds --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{failed}");
}

#[test]
fn tensors_that_are_not_of_the_grid_are_refused() {
    let grid = TokenGrid::builder([3, 4, 5]).before(7).after(2).build().unwrap();
    let message = |tensor: &Tensor| grid.regroup(tensor).unwrap_err().to_string();
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(dtype, shape).unwrap();
    let said = message(&zeros(DType::F32, &[1, 60, 8]));
    assert!(said.contains("60 tokens") && said.contains("needed 69: 7 + 3×4×5 + 2 tokens"), "{said}");
    assert!(message(&zeros(DType::I32, &[1, 69, 8])).contains("f16, bf16 or f32"));
    assert!(message(&zeros(DType::F32, &[69])).contains("1 dimensions"));
    assert!(message(&zeros(DType::F32, &[1, 1, 1, 69, 8])).contains("5 dimensions"));
    let transposed = zeros(DType::F32, &[8, 69]).permute(&[1, 0]).unwrap();
    assert!(message(&transposed).contains("unit stride"));
    assert!(matches!(
        grid.restore(&zeros(DType::F32, &[69, 1, 8])),
        Err(Error::Grid(GridError::Length { found: 1, needed: 69, .. }))
    ));
    let (x, mut other) = (zeros(DType::F32, &[69, 8]), zeros(DType::F32, &[69, 4]));
    assert!(matches!(grid.regroup_into(&x, &mut other), Err(Error::Grid(GridError::Output { .. }))));
    let mut out = zeros(DType::F32, &[69, 8]);
    assert!(matches!(grid.regroup_into(&x, &mut out), Err(Error::NotOnGpu { .. })));
    assert!(matches!(grid.restore_into(&x, &mut x.clone()), Err(Error::SharedRows)));
    let strings: TensorError = match grid.regroup(&zeros(DType::U8, &[69, 8])) {
        Err(Error::Tensor(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(strings.to_string().contains("u8"));
}

/// Rows go where the order says, for every dtype and layout, and come back as they were.
#[test]
fn tensors_go_and_come_back() {
    let grid = TokenGrid::builder([5, 6, 7]).before(9).after(3).build().unwrap();
    let mut random = Random(5);
    let (tokens, d) = (grid.len(), 24);
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for shape in [vec![2, 3, tokens, d], vec![2, tokens, d], vec![tokens, d]] {
            let x = random.tensor(dtype, &shape);
            let moved = grid.regroup(&x).unwrap();
            assert_eq!((moved.shape(), moved.dtype()), (x.shape(), dtype));
            assert!(moved.is_contiguous());
            let (from, to) = (x.to_f32_vec().unwrap(), moved.to_f32_vec().unwrap());
            for (place, row) in to.chunks(d).enumerate() {
                let (head, position) = (place / tokens, place % tokens);
                let source = head * tokens + grid.order()[position] as usize;
                assert_eq!(row, &from[source * d..][..d]);
            }
            assert_eq!(grid.restore(&moved).unwrap().to_f32_vec().unwrap(), from);
        }
        // [batch, tokens, heads, d], seen as [batch, heads, tokens, d].
        let bshd = random.tensor(dtype, &[2, tokens, 3, d]);
        let view = bshd.permute(&[0, 2, 1, 3]).unwrap();
        let moved = grid.regroup(&view).unwrap();
        let as_hidden = bshd.with_strides(&[2, tokens, 3 * d], &[tokens * 3 * d, 3 * d, 1]).unwrap();
        let hidden = grid.regroup(&as_hidden).unwrap().to_f32_vec().unwrap();
        let hidden = support::tensor(dtype, &hidden, &[2, tokens, 3, d]).permute(&[0, 2, 1, 3]).unwrap();
        assert_eq!(moved.to_f32_vec().unwrap(), hidden.to_f32_vec().unwrap());
    }
    let empty = Tensor::zeros(DType::F32, &[0, 2, tokens, d]).unwrap();
    assert_eq!(grid.regroup(&empty).unwrap().shape(), empty.shape());
}

/// Dense attention does not see the order: of regrouped tokens it is the regrouped attention.
#[test]
fn attention_is_equivariant() {
    let grid = TokenGrid::builder([5, 6, 7]).before(9).build().unwrap();
    let mut random = Random(6);
    let [q, k, v] = [(); 3].map(|()| random.tensor(DType::Bf16, &[1, 2, grid.len(), 64]));
    let attention = Attention::builder(HeadDim::D64, DType::Bf16).build(&Device::cpu()).unwrap();
    let Output { out, lse, .. } = attention.forward(&q, &k, &v).unwrap();
    let [q, k, v] = [q, k, v].map(|x| grid.regroup(&x).unwrap());
    let moved = attention.forward(&q, &k, &v).unwrap();
    let back = grid.restore(&moved.out).unwrap();
    let exact: Vec<f64> = out.to_f32_vec().unwrap().into_iter().map(f64::from).collect();
    // Sums in another order, then rounded to bf16.
    assert!(relative_error(&back.to_f32_vec().unwrap(), &exact) < 2e-3);
    assert!(relative_error(&moved.out.to_f32_vec().unwrap(), &exact) > 0.5, "the order did change");
    let lse = lse.with_strides(&[2, grid.len(), 1], &[grid.len(), 1, 1]).unwrap();
    let moved = moved.lse.with_strides(&[2, grid.len(), 1], &[grid.len(), 1, 1]).unwrap();
    let (found, exact) = (grid.restore(&moved).unwrap().to_f32_vec().unwrap(), lse.to_f32_vec().unwrap());
    assert!(found.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-4));
}

/// A rotary embedding by a table that is regrouped with the tokens is the regrouped embedding, bit for bit.
#[test]
fn rotary_tables_are_regrouped_with_the_tokens() {
    let grid = TokenGrid::new([5, 6, 7]).unwrap();
    let (tokens, d) = (grid.len(), 16);
    let mut random = Random(7);
    let x = random.tensor(DType::F32, &[tokens, d]);
    let angles: Vec<f32> = (0..tokens * d / 2).map(|i| i as f32 * 0.37).collect();
    let table = |f: fn(f32) -> f32| {
        Tensor::from_slice(&angles.iter().map(|&angle| f(angle)).collect::<Vec<_>>(), &[tokens, d / 2])
            .unwrap()
    };
    let rotate = |x: &Tensor, cos: &Tensor, sin: &Tensor| {
        let [x, cos, sin] = [x, cos, sin].map(|tensor| tensor.to_f32_vec().unwrap());
        let mut out = x.clone();
        for (pair, (cos, sin)) in cos.iter().zip(&sin).enumerate() {
            let (a, b) = (x[2 * pair], x[2 * pair + 1]);
            (out[2 * pair], out[2 * pair + 1]) = (a * cos - b * sin, a * sin + b * cos);
        }
        Tensor::from_slice(&out, &[tokens, d]).unwrap()
    };
    let (cos, sin) = (table(f32::cos), table(f32::sin));
    let expected = grid.regroup(&rotate(&x, &cos, &sin)).unwrap();
    let [x, cos, sin] = [x, cos, sin].map(|tensor| grid.regroup(&tensor).unwrap());
    assert_eq!(rotate(&x, &cos, &sin).to_f32_vec().unwrap(), expected.to_f32_vec().unwrap());
}

/// A local head of a real model, its grid cut so that no side is a multiple of the tile's: what the dropped blocks held
/// falls as it does on whole tiles.
#[test]
fn ragged_blocks_hold_what_a_local_head_looks_at() {
    let bytes = include_bytes!("data/layer6-head1.safetensors");
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let cut = [7, 15, 26];
    let rows: Vec<usize> = (0..cut[0] * cut[1] * cut[2])
        .map(|i| (i / (cut[1] * cut[2]) * 16 + i / cut[2] % cut[1]) * 28 + i % cut[2])
        .collect();
    let [q, k, v] = ["q", "k", "v"].map(|name| {
        let data = file.tensor(name).unwrap().data();
        let bytes: Vec<u8> = rows.iter().flat_map(|row| &data[row * 256..][..256]).copied().collect();
        Tensor::from_bytes(DType::Bf16, &bytes, &[1, 1, rows.len(), 128]).unwrap()
    });
    let build = || Attention::builder(HeadDim::D128, DType::Bf16);
    let dense = build().build(&Device::cpu()).unwrap();
    let sparse = build().select(top_k(0.03) | top_p(0.2)).build(&Device::cpu()).unwrap();
    let exact = dense.forward(&q, &k, &v).unwrap().out.to_f32_vec().unwrap();
    let relative_l1 = |found: &[f32]| {
        let apart: f32 = found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).sum();
        apart / exact.iter().map(|x| x.abs()).sum::<f32>()
    };
    let raster = sparse.forward(&q, &k, &v).unwrap();
    let grid = TokenGrid::new(cut).unwrap();
    let [q, k, v] = [q, k, v].map(|x| grid.regroup(&x).unwrap());
    let cubes = sparse.forward(&q, &k, &v).unwrap();
    let errors =
        [&raster.out, &grid.restore(&cubes.out).unwrap()].map(|out| relative_l1(&out.to_f32_vec().unwrap()));
    let kept = [raster.mask, cubes.mask].map(|mask| 1.0 - mask.sparsity().unwrap());
    println!("raster and cubes: kept {kept:.4?}, error {errors:.3?}");
    assert!(errors[1] < 0.7 * errors[0] && kept[1] <= kept[0], "{kept:?} {errors:?}");
}
