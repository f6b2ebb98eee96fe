//! Reads every kernel of `kernels/` and writes its bindings, or stops the build at the first mistake.

fn main() {
    if let Err(error) = tilewright_codegen::emit("kernels/") {
        println!("cargo::error={}", error.to_string().replace('\n', "\ncargo::error="));
    }
}
