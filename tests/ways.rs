//! Every way to call an attention gives what `forward` gives, on the CPU.

mod support;

use tilewright::Device;

#[test]
fn every_way_gives_the_same() {
    if let Err(error) = support::ways::check_all(&Device::cpu(), &[]) {
        panic!("{error}");
    }
}
