//! Keys that the mask function drops, on the CPU. `tests/gpu/mask.rs` asks a GPU the same.

mod support;

use tilewright::Device;

#[test]
fn what_dropped_keys_hold_decides_nothing() {
    support::dropped::garbage_decides_nothing(&Device::cpu()).unwrap();
}

#[test]
fn partial_blocks_score_by_their_kept_keys() {
    support::dropped::partial_blocks_score_by_their_kept_keys(&Device::cpu()).unwrap();
}
