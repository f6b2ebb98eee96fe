//! Reads every kernel of `kernels/` and writes its bindings, or stops the build at the first mistake. With the feature
//! `ahead-of-time` it compiles them too.

fn main() {
    if let Err(error) = emit() {
        println!("cargo::error={}", error.to_string().replace('\n', "\ncargo::error="));
    }
}

#[cfg(not(feature = "ahead-of-time"))]
fn emit() -> Result<(), tilewright_codegen::Error> {
    tilewright_codegen::emit("kernels/")
}

#[cfg(feature = "ahead-of-time")]
fn emit() -> Result<(), tilewright::Error> {
    use tilewright::codegen::{Arch, DType};
    let archs = [Arch::Sm80, Arch::Sm90a];
    let values = |d: i64| [("T", DType::Bf16.into()), ("D", d.into())];
    tilewright::build::Emit::new("kernels/")
        .ahead_of_time("rms_norm", &values(64), &archs)
        .ahead_of_time("rms_norm", &values(128), &archs)
        .run()
}
