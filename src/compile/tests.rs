use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::toolchain::Toolchain;

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

/// Two entry functions of one source, one of which spills, and a compiler's warning in front of them.
const SPILLING_LOG: &str = "\
heavy.cu(9): warning #177-D: variable \"unused\" was declared but never referenced
    float s = 0; int unused;
                     ^

Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"

ptxas warning : Registers are spilled to local memory in function 'heavy', 1016 bytes spill stores, 1128 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 0 barriers, 364 bytes cmem[0]
ptxas info    : Compile time = 4.945 ms
ptxas info    : Compiling entry function 'heavy' for 'sm_80'
ptxas info    : Function properties for heavy
ptxas         .     528 bytes stack frame, 992 bytes spill stores, 1104 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 528 bytes cumulative stack size, 512 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 22.183 ms
";

/// A function that is not inlined: its stack is in the cumulative size only, its spills are told afterwards.
const CALLING_LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'outer' for 'sm_90a'
ptxas info    : Function properties for outer
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 256 bytes cumulative stack size
ptxas info    : Compile time = 7.241 ms
ptxas info    : Function properties for _Z6helperPfi
ptxas         .     256 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
";

#[test]
fn reports_are_read_for_every_entry_function() {
    let reports = report::read(SPILLING_LOG);
    let two = PtxasReport { registers: 31, ..PtxasReport::default() };
    let heavy = PtxasReport {
        registers: 32,
        spill_store_bytes: 992,
        spill_load_bytes: 1104,
        stack_bytes: 528,
        static_smem_bytes: 512,
        barriers: 1,
    };
    assert_eq!(reports, [("two".to_string(), two), ("heavy".to_string(), heavy)]);
    assert!(heavy.spills() && !two.spills());

    let outer = PtxasReport {
        registers: 32,
        spill_store_bytes: 8,
        spill_load_bytes: 12,
        stack_bytes: 256,
        ..PtxasReport::default()
    };
    assert_eq!(report::read(CALLING_LOG), [("outer".to_string(), outer)]);
    assert_eq!(report::read("nothing to see"), []);
}

#[test]
fn warnings_are_read_from_both_compilers() {
    let diagnostics = diagnostic::read(SPILLING_LOG);
    assert_eq!(diagnostics.len(), 2);
    assert_eq!((diagnostics[0].line, diagnostics[0].severity), (Some(9), Severity::Warning));
    assert!(diagnostics[1].message.starts_with("ptxas: Registers are spilled"));
    let wgmma =
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
    assert_eq!(diagnostic::read(wgmma).len(), 1);
}

#[test]
fn ptxas_errors_are_errors_without_a_place() {
    let log = "ptxas application ptx input, line 25; error   : Instruction 'wgmma.fence' not supported on .target 'sm_80'\n\
               ptxas fatal   : Ptx assembly aborted due to errors\n";
    let diagnostics = diagnostic::read(log);
    assert_eq!(diagnostics.len(), 2);
    assert!(diagnostics.iter().all(|d| d.severity == Severity::Error && d.line.is_none()));
    assert!(diagnostic::excerpt(&diagnostics, "k.cu", "").contains("wgmma.fence"));
}

/// The machine's NVRTC, or a word that there is none.
fn toolchain() -> Option<Toolchain> {
    Toolchain::find().map_err(|error| eprintln!("skipped: no NVRTC ({error})")).ok()
}

#[test]
fn a_source_becomes_a_cubin_for_every_family() {
    let Some(toolchain) = toolchain() else { return };
    for arch in ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"] {
        let cubin = toolchain.compile("good", GOOD, arch).expect(arch);
        assert!(cubin.is_whole(), "{arch}");
        assert_eq!((cubin.name.as_str(), cubin.arch.as_str()), ("good", arch));
        assert_eq!(cubin.report.static_smem_bytes, 512, "{arch}: {}", cubin.log);
        assert!(cubin.report.registers > 0 && cubin.report.barriers == 1 && !cubin.report.spills());
        assert!(cubin.warnings.is_empty(), "{:?}", cubin.warnings);
        let cut = Cubin { bytes: cubin.bytes[..cubin.bytes.len() - 1].to_vec(), ..cubin };
        assert!(!cut.is_whole(), "{arch}: a cubin without its last byte passes for whole");
    }
}

#[test]
fn a_broken_source_shows_its_lines() {
    let Some(toolchain) = toolchain() else { return };
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

#[test]
fn bad_requests_are_typed_errors() {
    let Some(toolchain) = toolchain() else { return };
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

#[test]
fn many_jobs_keep_their_order() {
    let Some(toolchain) = toolchain() else { return };
    let job = |index: usize| CompileJob {
        name: format!("kernel_{index}"),
        source: match index {
            3 => "nonsense".to_string(),
            _ => format!("extern \"C\" __global__ void kernel_{index}(float* out) {{ out[{index}] = 1; }}"),
        },
        arch: "sm_80".to_string(),
    };
    let done = AtomicUsize::new(0);
    let results = compile_all(&toolchain, (0..8).map(job).collect(), |finished| {
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
    assert!(compile_all(&toolchain, Vec::new(), |_| ()).is_empty());
}
