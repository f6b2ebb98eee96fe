//! From a source to a cubin, or to what is wrong with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tilewright::cache::KernelCache;
use tilewright::codegen::{Arch, Generator, KernelSource};
use tilewright::compile::{CompileError, CompileJob, Cubin, compile_all};
use tilewright::services::Services;
use tilewright::toolchain::{Environment, Toolchain};

pub const TESTS: &[crate::needs::Test<Toolchain>] = &[
    ("compile::a_source_becomes_a_cubin_for_every_family", a_source_becomes_a_cubin_for_every_family),
    ("compile::a_broken_source_shows_its_lines", a_broken_source_shows_its_lines),
    ("compile::bad_requests_are_typed_errors", bad_requests_are_typed_errors),
    ("compile::errors_name_the_line_of_the_template", errors_name_the_line_of_the_template),
    ("compile::many_jobs_keep_their_order", many_jobs_keep_their_order),
    ("compile::services_remember_what_they_found", services_remember_what_they_found),
];

const GOOD: &str = r#"
#include <cuda_fp16.h>
#include <cuda_bf16.h>
struct Params { const __nv_bfloat16* x; float* out; int n; };
extern "C" __global__ void __launch_bounds__(128) good(const __grid_constant__ Params p) {
    __shared__ float tile[128];
    int i = blockIdx.x * 128 + threadIdx.x;
    tile[threadIdx.x] = i < p.n ? __bfloat162float(p.x[i]) : 0.0f;
    __syncthreads();
    if (i < p.n) p.out[i] = tile[127 - threadIdx.x];
}
"#;

fn a_source_becomes_a_cubin_for_every_family(toolchain: &Toolchain) {
    for arch in ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"] {
        let cubin = toolchain.compile("good", GOOD, arch).expect(arch);
        assert!(cubin.is_whole(), "{arch}");
        assert_eq!((cubin.name.as_str(), cubin.arch.as_str()), ("good", arch));
        assert_eq!(cubin.report.static_smem_bytes, 512, "{arch}: {}", cubin.log);
        assert!(cubin.report.registers > 0 && cubin.report.barriers == 1 && !cubin.report.spills());
        assert!(cubin.warnings.is_empty(), "{:?}", cubin.warnings);
        let bytes = cubin.bytes()[..cubin.bytes().len() - 1].to_vec();
        // SAFETY: no driver gets to see it.
        let cut = unsafe { Cubin::from_code(["good", arch], cubin.nvrtc, GOOD, bytes, cubin.report) };
        assert!(!cut.is_whole(), "{arch}: a cubin without its last byte passes for whole");
    }
}

fn a_broken_source_shows_its_lines(toolchain: &Toolchain) {
    let source =
        "extern \"C\" __global__ void broken(float* out) {\n    int x = 3;\n    out[0] = missing + x;\n}\n";
    let error = toolchain.compile("broken", source, "sm_80").expect_err("it is broken");
    let CompileError::Source(broken) = &error else { panic!("{error:?}") };
    assert_eq!(broken.diagnostics.len(), 1);
    assert_eq!(broken.diagnostics[0].line, Some(3));
    let text = error.to_string();
    assert!(
        text.contains("--> broken.cu:3") && text.contains(">     3 |     out[0] = missing + x;"),
        "{text}"
    );
    assert!(text.contains("identifier \"missing\" is undefined"), "{text}");

    let assembler = "extern \"C\" __global__ void broken() { asm volatile(\"wgmma.fence.sync.aligned;\"); }";
    let error = toolchain.compile("broken", assembler, "sm_80").expect_err("sm_80 has no wgmma");
    assert!(error.to_string().contains("ptxas: Instruction 'wgmma.fence' not supported"), "{error}");

    let header = "#include <no_such_header.h>\nextern \"C\" __global__ void broken() {}\n";
    let error = toolchain.compile("broken", header, "sm_80").expect_err("there is no such header");
    assert!(error.to_string().contains("no_such_header.h"), "{error}");
}

fn bad_requests_are_typed_errors(toolchain: &Toolchain) {
    for arch in
        ["sm_70a", "sm_999", "sm_80a", "sm_90f", "compute_90a", "banana", "", "sm_", "sm_-80", "sm_90aa"]
    {
        let error = toolchain.compile("good", GOOD, arch).expect_err(arch);
        let CompileError::UnsupportedArch { supported, .. } = &error else { panic!("{arch}: {error:?}") };
        assert!(supported.contains(&"sm_90".to_string()), "{error}");
        assert!(error.to_string().contains(&format!("`{arch}`")), "{error}");
    }
    let error = toolchain.compile("other", GOOD, "sm_80").expect_err("the function is called `good`");
    assert!(matches!(&error, CompileError::NoEntry { found, .. } if found == &["good"]), "{error:?}");
    let error = toolchain.compile("good", "int x;\0", "sm_80").expect_err("NUL");
    assert!(matches!(error, CompileError::Nul { what: "source", .. }), "{error:?}");
}

fn many_jobs_keep_their_order(toolchain: &Toolchain) {
    let job = |index: usize| CompileJob {
        name: format!("kernel_{index}"),
        source: match index {
            3 => "nonsense".to_string(),
            _ => format!("extern \"C\" __global__ void kernel_{index}(float* out) {{ out[{index}] = 1; }}"),
        },
        arch: "sm_80".to_string(),
    };
    let done = AtomicUsize::new(0);
    let results = compile_all(toolchain, (0..8).map(job).collect(), |finished| {
        assert_eq!(finished.result.is_err(), finished.job.name == "kernel_3");
        done.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(done.into_inner(), 8);
    for (index, result) in results.iter().enumerate() {
        match result {
            Ok(cubin) => assert_eq!(cubin.name, format!("kernel_{index}")),
            Err(error) => assert!(index == 3 && matches!(error, CompileError::Source(_)), "{error}"),
        }
    }
    assert!(compile_all(toolchain, Vec::new(), |_| ()).is_empty());
}

/// The version of NVRTC is known without loading it once a process has found it, and NVRTC that was given is the one in use.
fn services_remember_what_they_found(toolchain: &Toolchain) {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = KernelCache::at(&folder.path().join("kernels")).expect("a cache");
    let environment = Environment::current();
    assert_eq!(cache.nvrtc_version(&environment), None);
    let found = Services::builder().cache(cache.clone()).build();
    assert_eq!(found.toolchain().expect("it was found before").library(), toolchain.library());
    assert_eq!(cache.nvrtc_version(&environment), Some(toolchain.version()));
    assert_eq!(Services::builder().cache(cache).build().nvrtc_version(), Some(toolchain.version()));
    let nowhere = Environment::empty(folder.path());
    let given = Services::builder().no_cache().environment(nowhere).toolchain(toolchain.clone()).build();
    assert_eq!(given.toolchain().expect("it was given").library(), toolchain.library());
}

/// A mistake in a body or in a header it includes is shown where its author wrote it, whatever is pasted around it.
fn errors_name_the_line_of_the_template(toolchain: &Toolchain) {
    let declaration =
        "kernel! { fn copy(x: Tensor<f32, [n]>, y: out Tensor<f32, [n]>) specialize { BLOCK: [128, 256] }
        body sm80 { launch { grid = [ceil_div(n, BLOCK), 1, 1], threads = BLOCK } } }";
    let header = "// Loads.\n__device__ float load(const float* x, int i) {\n    return x[i];\n}\n";
    let body = "// Copies.\n<% include \"copy/load.cuh\" %>\n<% include \"lib/thread.cuh\" %>\n<% if constant.BLOCK > 128 %>\nconstexpr int WIDE = 1;\n\
                <% else %>\nconstexpr int WIDE = 0;\n<% endif %>\nextern \"C\" __global__ void TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {\n    \
                const int i = blockIdx.x * BLOCK + threadIdx.x + WIDE - WIDE;\n    if (i < p.n) p.y[i] = load(p.x, i);\n}\n";
    let compile = |header: &str, body: &str, block: i64| {
        let source = KernelSource {
            name: "copy".into(),
            declaration: declaration.into(),
            files: vec![
                ("copy/load.cuh".into(), header.to_owned().into()),
                ("copy/sm80.cu".into(), body.to_owned().into()),
            ]
            .into(),
            has_check: false,
        };
        let generator = Generator::new(&source).unwrap();
        let spec = Arc::new(generator.spec(&[("BLOCK", block.into())]).unwrap());
        let candidate = &generator.candidates(&spec, Arch::Sm80).unwrap().accepted[0];
        let variant = generator.render(candidate).unwrap();
        toolchain.compile(&variant.name, &variant.source, "sm_80").map_err(|error| error.to_string())
    };
    for block in [128, 256] {
        compile(header, body, block).unwrap();
        let error = compile(&header.replace("x[i]", "z[i]"), body, block).unwrap_err();
        assert!(
            error.contains("--> copy/load.cuh:3\n") && error.contains(">     3 |     return z[i];"),
            "{error}"
        );
        let error = compile(header, &body.replace("load(p.x, i)", "store(p.x, i)"), block).unwrap_err();
        assert!(
            error.contains("--> copy/sm80.cu:11\n") && error.contains(">    11 |     if (i < p.n)"),
            "{error}"
        );
    }
}
