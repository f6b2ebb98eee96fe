//! What a candidate needs of the machine, and why others were rejected.

use crate::arch::{Arch, Limits};
use crate::dsl::{Body, EvalError, Expr, Kernel};
use crate::dtype::DType;
use crate::error::Error;
use crate::schedule::Schedule;
use crate::spec::KernelSpec;
use crate::value::Value;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// What a candidate needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Threads a block.
    pub threads: i64,
    /// Dynamic shared memory a block, bytes.
    pub smem_bytes: i64,
    /// Estimated registers a thread; 0 when the declaration gives no estimate. ptxas has the last word.
    pub registers: i64,
}

impl Budget {
    /// Blocks that fit a multiprocessor at once, by shared memory, registers (as estimated) and threads.
    pub fn ctas_per_sm(&self, limits: &Limits) -> i64 {
        // The system keeps 1 KiB of shared memory for each block, and registers are handed out in eights.
        let by_smem = limits.smem_per_sm / (self.smem_bytes + 1024);
        let registers = (self.registers.max(16) as u64).next_multiple_of(8) as i64;
        let by_registers = limits.registers_per_sm / (registers * self.threads);
        by_smem.min(by_registers).min(limits.threads_per_sm / self.threads)
    }
}

/// A spec with a schedule that fits an architecture.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What is computed.
    pub spec: Arc<KernelSpec>,
    /// How.
    pub schedule: Schedule,
    /// What it needs.
    pub budget: Budget,
}

/// A schedule that was pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// The schedule.
    pub schedule: Schedule,
    /// Why it was pruned.
    pub reason: Reason,
}

/// Why a schedule was pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// A condition of `where` does not hold.
    Constraint {
        /// The condition.
        condition: String,
        /// Its names' values: `BLOCK_Q = 64, WARPS = 8`.
        values: String,
    },
    /// It needs more shared memory than a block may have.
    SharedMemory {
        /// Bytes needed.
        needed: i64,
        /// Bytes a block can have.
        limit: i64,
    },
    /// Its estimate is over what a thread may have, or a block's threads over what a multiprocessor has.
    Registers {
        /// Registers a thread, estimated.
        needed: i64,
        /// Registers a thread can have.
        limit: i64,
    },
    /// It has too many threads, or none.
    Threads {
        /// Threads needed.
        needed: i64,
        /// Threads a block can have.
        limit: i64,
    },
    /// An expression has no value: a division by zero, say.
    Undefined {
        /// What went wrong.
        message: String,
    },
    /// It fits, but the model expects enough others to be faster that it is not compiled.
    Ranked {
        /// Its place in the model's order, from 1.
        place: usize,
        /// How many are compiled.
        compiled: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Constraint { condition, values } => write!(f, "{condition} does not hold ({values})"),
            Reason::SharedMemory { needed, limit } => {
                write!(f, "shared memory: {needed} bytes, limit {limit}")
            }
            Reason::Registers { needed, limit } => {
                write!(f, "registers: about {needed} a thread, limit {limit}")
            }
            Reason::Threads { needed, limit } => write!(f, "threads: {needed} a block, limit {limit}"),
            Reason::Undefined { message } => f.write_str(message),
            Reason::Ranked { place, compiled } => {
                write!(f, "the model's number {place}: the first {compiled} are compiled")
            }
        }
    }
}

/// The tuning space of a spec on an architecture, pruned.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// What fits, the preferred first.
    pub accepted: Vec<Candidate>,
    /// What does not, and why.
    pub rejected: Vec<Rejection>,
}

impl Candidate {
    /// An integer the source is specialised with: of the spec or of the schedule.
    pub fn constant(&self, name: &str) -> Option<i64> {
        self.spec.int(name).or_else(|| self.schedule.get(name))
    }

    /// The element type of a dtype parameter.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.spec.dtype(name)
    }

    /// A readable name that is a C identifier: kernel, family, specialisation, schedule, device functions.
    pub fn name(&self) -> String {
        let short = |name: &str| name.to_lowercase().replace("block_", "").replace('_', "");
        let mut name = format!("{}_{}", self.spec.kernel(), self.schedule.family);
        for (param, value) in self.spec.values() {
            if self.spec.is_default(param) {
                continue;
            }
            match value {
                Value::DType(dtype) => name += &format!("_{dtype}"),
                Value::Int(int) => name += &format!("_{}{int}", short(param)),
            }
        }
        for (param, value) in &self.schedule.values {
            name += &format!("_{}{value}", short(param));
        }
        for function in self.spec.functions().iter().filter_map(|(_, function)| function.as_ref()) {
            // A Rust name need not be one of C: `r#if`, `é`.
            let plain = function.name().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            name += &format!("_{plain}");
        }
        name
    }
}

/// How many rejected schedules an error lists.
const REASONS: usize = 64;

/// Enumerates the schedules of every body that runs on `arch`, the newest family first, and prunes them by `limits`.
pub(crate) fn candidates(
    kernel: &Kernel,
    spec: &Arc<KernelSpec>,
    arch: Arch,
    limits: &Limits,
) -> Result<Candidates, Error> {
    let mut bodies: Vec<&Body> = kernel.bodies.iter().filter(|body| arch.runs(body.family)).collect();
    bodies.sort_by_key(|body| std::cmp::Reverse(body.family));
    if bodies.is_empty() {
        let families: Vec<&str> = kernel.bodies.iter().map(|body| body.family.name()).collect();
        return Err(Error::NoBody {
            kernel: kernel.name.clone(),
            arch: arch.to_string(),
            families: families.join(", "),
        });
    }
    let mut found = Candidates { accepted: Vec::new(), rejected: Vec::new() };
    for body in bodies {
        let mut fitting = Vec::new();
        for schedule in Schedule::enumerate(body, arch) {
            match budget(body, spec, &schedule, limits) {
                Ok((budget, preference)) => {
                    fitting.push((preference, Candidate { spec: spec.clone(), schedule, budget }));
                }
                Err(reason) => found.rejected.push(Rejection { schedule, reason }),
            }
        }
        // The sort is stable: equals keep the declaration's order.
        fitting.sort_by_key(|(preference, _)| std::cmp::Reverse(*preference));
        found.accepted.extend(fitting.into_iter().map(|(_, candidate)| candidate));
    }
    if found.accepted.is_empty() {
        let mut reasons: Vec<String> = (found.rejected.iter().take(REASONS))
            .map(|rejected| format!("{}: {}", rejected.schedule, rejected.reason))
            .collect();
        if let more @ 1.. = found.rejected.len().saturating_sub(REASONS) {
            reasons.push(format!("and {more} more"));
        }
        return Err(Error::NoCandidate {
            kernel: kernel.name.clone(),
            arch: arch.to_string(),
            reasons: reasons.join("; "),
        });
    }
    Ok(found)
}

/// What a schedule needs and how much it is preferred, or why it is pruned.
fn budget(
    body: &Body,
    spec: &KernelSpec,
    schedule: &Schedule,
    limits: &Limits,
) -> Result<(Budget, i64), Reason> {
    let value_of = |name: &str| spec.int(name).or_else(|| schedule.get(name));
    let eval = |expr: &Expr| {
        expr.eval(&value_of).map_err(|error: EvalError| Reason::Undefined { message: error.to_string() })
    };
    for constraint in &body.constraints {
        if eval(&constraint.condition)? == 0 {
            let values: Vec<String> = constraint
                .condition
                .names()
                .into_iter()
                .filter_map(|name| value_of(name).map(|value| format!("{name} = {value}")))
                .collect();
            return Err(Reason::Constraint {
                condition: constraint.condition.to_string(),
                values: values.join(", "),
            });
        }
    }
    let threads = eval(&body.launch.threads)?;
    if threads < 1 || threads > limits.threads_per_block {
        return Err(Reason::Threads { needed: threads, limit: limits.threads_per_block });
    }
    let amount = |what: &str, expr: &Expr| match eval(expr)? {
        negative if negative < 0 => {
            Err(Reason::Undefined { message: format!("{what} is {negative}: `{expr}`") })
        }
        amount => Ok(amount),
    };
    let smem_bytes = amount("smem_bytes", &body.smem_bytes)?;
    if smem_bytes > limits.smem_per_block {
        return Err(Reason::SharedMemory { needed: smem_bytes, limit: limits.smem_per_block });
    }
    let registers = amount("registers", &body.registers)?;
    let limit = limits.registers_per_thread.min(limits.registers_per_sm / threads);
    if registers > limit {
        return Err(Reason::Registers { needed: registers, limit });
    }
    let budget = Budget { threads, smem_bytes, registers };
    let preference = preference(body, &value_of, budget.ctas_per_sm(limits), None)
        .map_err(|error| Reason::Undefined { message: error.to_string() })?;
    Ok((budget, preference))
}

/// The value of the body's `prefer`, 0 where it has none.
pub(crate) fn preference(
    body: &Body,
    value_of: &dyn Fn(&str) -> Option<i64>,
    ctas_per_sm: i64,
    grid_per_sm: Option<i64>,
) -> Result<i64, EvalError> {
    let with_occupancy = |name: &str| match name {
        "CTAS_PER_SM" => Some(ctas_per_sm),
        // A grid that is not known is a large one.
        "GRID_PER_SM" => Some(grid_per_sm.unwrap_or(i64::from(i32::MAX))),
        _ => value_of(name),
    };
    body.prefer.as_ref().map_or(Ok(0), |prefer| prefer.eval(&with_occupancy))
}
