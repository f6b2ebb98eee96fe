//! Keys that the mask function drops, on the CPU. `tests/gpu/mask.rs` asks a GPU the same.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Mask, Random};
use tilewright::{BlockSize, DType, DenseMap, Device, Error, Interrupt, cpu, top_k};

#[test]
fn what_dropped_keys_hold_decides_nothing() {
    support::dropped::garbage_decides_nothing(&Device::cpu()).unwrap();
}

#[test]
fn partial_blocks_score_by_their_kept_keys() {
    support::dropped::partial_blocks_score_by_their_kept_keys(&Device::cpu()).unwrap();
}

#[test]
fn blocks_are_selected_by_definition() {
    support::dropped::selects_by_definition(&Device::cpu()).unwrap();
}

/// Of a single head too, whose partial blocks are all there is to do.
#[test]
fn scoring_of_partial_blocks_ends_when_it_is_interrupted() {
    let (interrupt, calls) = (Interrupt::default(), std::sync::Arc::new(AtomicUsize::new(0)));
    let mut random = Random(3);
    let x = random.tensor(DType::Bf16, &[1, 1, 64 * 40, 64]);
    // Known to be partial at the second element; every other is asked for to know which keys are kept.
    let corners = {
        let (interrupt, calls) = (interrupt.clone(), calls.clone());
        Mask(move |_, _, q: i32, kv: i32| {
            if calls.fetch_add(1, Ordering::Relaxed) == 100_000 {
                interrupt.set();
            }
            q % 64 == 0 && kv % 64 == 0
        })
    };
    let blocks = BlockSize::new(64, 64).unwrap();
    let call = || cpu::mask(&x, &x, Some(&top_k(0.5)), 0.125, blocks, Some(&corners));
    assert!(matches!(interrupt.over(call), Err(Error::Interrupted)));
    // Without an end there are 40 · 40 · 64 · 64.
    let asked = calls.load(Ordering::Relaxed);
    assert!(asked < 100_000 + 64 * 64 * 256, "{asked}");
}

#[test]
fn heads_without_dimensions_have_masks() {
    let x = tilewright::Tensor::zeros(DType::Bf16, &[1, 2, 130, 0]).unwrap();
    let causal = Mask(|_, _, q, kv| kv <= q);
    let mask = cpu::mask(&x, &x, Some(&top_k(1.0)), 1.0, BlockSize::default(), Some(&causal)).unwrap();
    assert!(mask.to_dense().unwrap().classes.contains(&DenseMap::PARTIAL));
}
