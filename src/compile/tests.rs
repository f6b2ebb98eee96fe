use super::*;

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

/// A rendered source says which lines are whose.
#[test]
fn excerpts_show_the_lines_of_the_template() {
    let source = "// k\n#define K k\n#line 1 \"k/sm80.cu\"\nint a;\n#line 1 \"lib/warp.cuh\"\nint w;\nint missing = b;\nint x;\n\
                  #line 3 \"k/sm80.cu\"\nint c = d;\n";
    let log = "lib/warp.cuh(2): error: identifier \"b\" is undefined\nk/sm80.cu(3): error: identifier \"d\" is undefined\n\
               cuda_fp16.h(7): error: no\nk.cu(2): error: last\n";
    let shown = diagnostic::excerpt(&diagnostic::read(log), "k.cu", source);
    let expected = "error: identifier \"b\" is undefined\n  --> lib/warp.cuh:2\n      1 | int w;\n>     2 | int missing = b;\n      3 | int x;\n\
                    error: identifier \"d\" is undefined\n  --> k/sm80.cu:3\n>     3 | int c = d;\n\
                    error: no\n  --> cuda_fp16.h:7\nand 1 more";
    assert_eq!(shown, expected);
    let own = diagnostic::excerpt(&diagnostic::read("k.cu(2): error: last\n"), "k.cu", source);
    assert_eq!(own, "error: last\n  --> k.cu:2\n      1 | // k\n>     2 | #define K k");
}

/// Where the system grants no thread at all, the work is done all the same. In a process of its own, whose memory is cut to what it
/// has: the stack of a thread has no room.
#[cfg(target_os = "linux")]
#[test]
fn work_is_done_without_threads_too() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    const NAME: &str = "compile::tests::work_is_done_without_threads_too";
    const CUT: &str = "TILEWRIGHT_TEST_WITHOUT_THREADS";
    let items = [1, 2, 3];
    let doubled = || in_parallel(&items, |item| (item * 2, std::thread::current().id()));
    let threads =
        |done: &[(i32, std::thread::ThreadId)]| done.iter().any(|(_, id)| *id != std::thread::current().id());
    if std::env::var_os(CUT).is_none() {
        assert!(threads(&doubled()), "on threads of their own, with room for NVRTC");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", NAME, "--nocapture"]).env(CUT, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of_all = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")).unwrap();
    let has = of_all.trim().parse::<u64>().unwrap() << 10;
    let most = Some(has + STACK_BYTES as u64 / 2);
    setrlimit(Resource::As, Rlimit { current: most, maximum: most }).unwrap();
    let done = doubled();
    assert!(!threads(&done), "there is no room for their stacks");
    assert_eq!(done.iter().map(|(item, _)| *item).collect::<Vec<_>>(), [2, 4, 6]);
}
