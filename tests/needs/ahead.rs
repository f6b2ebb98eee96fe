//! Kernels compiled when a program is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tilewright::build::Emit;
use tilewright::codegen::{Arch, DType, Generator, KernelSource, Value};
use tilewright::kernels;
use tilewright::toolchain::Toolchain;

pub const TESTS: &[crate::needs::Test<Toolchain>] = &[(
    "ahead::chosen_kernels_are_compiled_for_chosen_architectures",
    chosen_kernels_are_compiled_for_chosen_architectures,
)];

const VALUES: [(&str, Value); 2] = [("T", Value::DType(DType::Bf16)), ("D", Value::Int(128))];

/// The crate whose `build.rs` this process plays.
pub fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/custom-kernel")
}

/// The list of embedded cubins, written into the folder that `main` made for it.
fn emitted(emit: Emit) -> (PathBuf, String) {
    emit.run().unwrap_or_else(|error| panic!("{error}"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("main sets it"));
    let list = fs::read_to_string(out.join("tilewright_ahead.rs")).expect("the list");
    (out, list)
}

fn chosen_kernels_are_compiled_for_chosen_architectures(_: &Toolchain) {
    let embedded = |list: &str| list.matches("include_bytes!").count();
    let archs = [Arch::Sm80, Arch::Sm90a];
    // The same twice is embedded once.
    let emit = Emit::new("kernels/").ahead_of_time("rms_norm", &VALUES, &archs);
    let emit = emit.ahead_of_time("rms_norm", &VALUES, &archs).ahead_of_time("select", &[], &archs[..1]);
    let (out, list) = emitted(emit);
    assert_eq!(embedded(&list), 3, "{list}");
    let source = KernelSource::read(&example().join("kernels"), "rms_norm").unwrap();
    let generator = Generator::new(&source).unwrap();
    let spec = Arc::new(generator.spec(&VALUES).unwrap());
    for arch in archs {
        let candidate = &generator.candidates(&spec, arch).unwrap().accepted[0];
        let variant = generator.render(candidate).unwrap();
        assert!(list.contains(&format!("{:?}", variant.fingerprint)), "{list}");
        let cubin = fs::read(out.join(format!("{}-{arch}.cubin", variant.name))).unwrap();
        assert!(cubin.starts_with(b"\x7fELF"));
    }

    let all = Emit::new("kernels/").ahead_of_time("rms_norm", &VALUES, &archs).every_schedule();
    let (_, all) = emitted(all);
    assert_eq!(embedded(&all), 6, "{all}");

    let (_, shipped) = emitted(Emit::only_shipped().shipped(&[Arch::Sm120a]));
    for source in kernels::ALL {
        assert!(shipped.contains(&format!("\"{}_", source.name)), "{}: {shipped}", source.name);
    }
}
