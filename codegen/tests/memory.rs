//! What is read again and again, as for every attention that is built, leaves nothing behind.

#![cfg(target_os = "linux")]

use tilewright_codegen::dsl::Kernel;
use tilewright_codegen::lower::{DeviceFunction, FunctionKind};

/// What the process has in memory, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn texts_are_not_kept() {
    let comment = format!("/* {} */", "text\n".repeat(12_000));
    let function = format!("{comment} fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ score }}");
    let body = "body sm80 { launch { grid = [n, 1, 1], threads = 32 } }";
    let declaration = format!("{comment} kernel! {{ fn x(input: Tensor<f32, [n]>) {body} }}");
    let read = |times: usize| {
        for _ in 0..times {
            DeviceFunction::from_source(FunctionKind::ScoreMod, &function).unwrap();
            Kernel::parse("x/kernel.rs", &declaration).unwrap();
        }
    };
    read(10);
    let before = resident();
    read(300);
    let grown = resident().saturating_sub(before);
    let texts = 300 * (function.len() + declaration.len()) / 1024;
    println!("{texts} KiB of text, {grown} KiB more");
    assert!(grown < texts / 4, "{texts} KiB of text take {grown} KiB");
}
