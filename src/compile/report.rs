//! What ptxas reports about a kernel's use of resources, read from the compiler's log.

use serde::{Deserialize, Serialize};

/// The resources one kernel takes on one architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtxasReport {
    /// Registers a thread. A kernel that calls `setmaxnreg` shows the raised count.
    pub registers: u32,
    /// Bytes a thread stores because its registers do not suffice.
    pub spill_store_bytes: u32,
    /// Bytes a thread loads for the same reason.
    pub spill_load_bytes: u32,
    /// Bytes of stack a thread has: spills and arrays that are indexed at run time.
    pub stack_bytes: u32,
    /// Static shared memory of a block, in bytes. Dynamic shared memory is asked for at launch and not known here.
    pub static_smem_bytes: u32,
    /// Hardware barriers of a block.
    pub barriers: u32,
}

impl PtxasReport {
    /// Whether anything was spilled.
    pub fn spills(&self) -> bool {
        self.spill_store_bytes > 0 || self.spill_load_bytes > 0
    }
}

/// Reads the report of every entry function in a log, in the log's order.
///
/// A function that is called and not inlined has a stack frame and spills of its own, told after the entry function
/// that calls it: they count as that entry function's, for it pays for them.
pub(super) fn read(log: &str) -> Vec<(String, PtxasReport)> {
    let mut entries: Vec<(String, PtxasReport)> = Vec::new();
    for line in log.lines().filter(|line| line.starts_with("ptxas")) {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or(rest);
            entries.push((name.to_string(), PtxasReport::default()));
            continue;
        }
        let Some((_, report)) = entries.last_mut() else { continue };
        if let Some((_, used)) = line.split_once(": Used ") {
            report.registers = before(used, " registers").unwrap_or_default();
            report.barriers = before(used, " barriers").unwrap_or_default();
            report.static_smem_bytes = before(used, " bytes smem").unwrap_or_default();
            let stack = before(used, " bytes cumulative stack size").unwrap_or_default();
            report.stack_bytes = report.stack_bytes.max(stack);
        } else if line.contains(" bytes stack frame") {
            let part = |unit| before(line, unit).unwrap_or_default();
            report.stack_bytes = report.stack_bytes.max(part(" bytes stack frame"));
            report.spill_store_bytes += part(" bytes spill stores");
            report.spill_load_bytes += part(" bytes spill loads");
        }
    }
    entries
}

/// The number that stands before `unit`.
fn before(text: &str, unit: &str) -> Option<u32> {
    let (head, _) = text.split_once(unit)?;
    let digits = head.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |end| end + 1);
    head[digits..].parse().ok()
}
