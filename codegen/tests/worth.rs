//! What an optional argument is worth: as the declarations of the shipped kernels say it.

mod support;

use std::sync::Arc;
use support::root;
use tilewright_codegen::{Arch, Generator, KernelSource, KernelSpec, Machine, Value};

fn generator(kernel: &str) -> Generator {
    Generator::new(&KernelSource::read(&root().join("templates"), kernel).unwrap()).unwrap()
}

fn specs(generator: &Generator) -> Vec<KernelSpec> {
    let specs = generator.every_spec();
    specs.into_iter().filter(|spec| spec.dtype("T") == Some(tilewright_codegen::DType::Bf16)).collect()
}

/// Multiprocessors of GPUs that there are, and of some that there are not.
const SM_COUNTS: [i64; 7] = [1, 16, 78, 108, 114, 132, 148];

/// An order pays on Hopper, whose body hands out its tiles one by one, where each multiprocessor gets four of them.
#[test]
fn rows_are_ordered_where_multiprocessors_get_several() {
    let generator = generator("forward");
    let (mut yes, mut no) = (0, 0);
    for spec in specs(&generator) {
        let block_q = spec.int("BLOCK_Q").unwrap();
        for (arch, sm_count) in Arch::ALL.into_iter().flat_map(|arch| SM_COUNTS.map(|count| (arch, count))) {
            let machine = Machine { limits: arch.limits(), sm_count };
            for (batch, heads) in [(1, 1), (1, 12), (1, 40), (2, 24), (3, 7), (0, 8)] {
                for seq_q in [1, 64, 127, 128, 129, 1000, 4096, 16_896, 32_760, 75_600, 1 << 20] {
                    let q_blocks = (seq_q + block_q - 1) / block_q;
                    let expected = arch == Arch::Sm90a && batch * heads * q_blocks >= 4 * sm_count;
                    let dims = [("batch", batch), ("heads", heads), ("seq_q", seq_q), ("seq_kv", 999)];
                    let with_blocks = [&dims[..], &[("q_blocks", q_blocks)]].concat();
                    for dims in [&dims[..], &with_blocks] {
                        let found = generator.is_worth("row_order", &spec, arch, &machine, dims);
                        assert_eq!(found, expected, "{arch}, {sm_count} multiprocessors, {dims:?}");
                    }
                    *(if expected { &mut yes } else { &mut no }) += 1;
                }
            }
        }
    }
    assert!(yes > 1000 && no > 1000, "{yes} and {no}");
}

/// The same by key, where a head has three tiles of 64 keys for each multiprocessor.
#[test]
fn keys_are_ordered_where_a_head_has_many_tiles() {
    let generator = generator("backward_kv");
    let (mut yes, mut no) = (0, 0);
    for spec in specs(&generator) {
        for (arch, sm_count) in Arch::ALL.into_iter().flat_map(|arch| SM_COUNTS.map(|count| (arch, count))) {
            let machine = Machine { limits: arch.limits(), sm_count };
            let turns = [-65, -64, -63, -1, 0, 1].map(|more| (3 * sm_count * 64 + more).max(1));
            for seq_kv in [1, 64, 65, 17_776, 25_344, 32_760, 75_600, 1 << 20].into_iter().chain(turns) {
                let expected = arch == Arch::Sm90a && (seq_kv + 63) / 64 >= 3 * sm_count;
                let dims = [("batch", 1), ("heads", 12), ("kv_heads", 12), ("seq_q", 77), ("seq_kv", seq_kv)];
                let found = generator.is_worth("key_order", &spec, arch, &machine, &dims);
                assert_eq!(found, expected, "{arch}, {sm_count} multiprocessors, {seq_kv} keys");
                *(if expected { &mut yes } else { &mut no }) += 1;
            }
        }
    }
    assert!(yes > 100 && no > 1000, "{yes} and {no}");
}

/// Without what the condition names, and of what no body says anything, there is nothing to make.
#[test]
fn what_is_not_known_is_not_worth_it() {
    let generator = generator("forward");
    let values: Vec<(&str, Value)> = vec![
        ("T", tilewright_codegen::DType::Bf16.into()),
        ("D", 128.into()),
        ("BLOCK_Q", 128.into()),
        ("BLOCK_KV", 64.into()),
    ];
    let spec = Arc::new(generator.spec(&values).unwrap());
    let machine = Machine { limits: Arch::Sm90a.limits(), sm_count: 132 };
    let many = [("batch", 1), ("heads", 40), ("seq_q", 75_600), ("seq_kv", 75_600)];
    let is_worth = |arg, dims: &[_]| generator.is_worth(arg, &spec, Arch::Sm90a, &machine, dims);
    assert!(is_worth("row_order", &many));
    assert!(!is_worth("row_order", &many[1..]) && !is_worth("row_order", &many[..2]));
    assert!(!is_worth("full_kv_counts", &many) && !is_worth("q", &many));
    let huge = [("batch", i64::MAX / 2), ("heads", 40), ("seq_q", 75_600), ("seq_kv", 75_600)];
    assert!(!is_worth("row_order", &huge), "a product that overflows has no value");
}
