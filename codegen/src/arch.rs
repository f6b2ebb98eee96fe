//! GPU architectures and what they allow a kernel to use.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A compilation target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Arch {
    Sm80,
    Sm86,
    Sm87,
    Sm89,
    Sm90a,
    Sm100a,
    Sm103a,
    Sm120a,
    Sm121a,
}

/// A family of architectures that share a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Family {
    /// `mma.sync` and `cp.async`: every architecture from Ampere on.
    Sm80,
    /// `wgmma` and TMA: Hopper only (the instructions of an `a` target are not forward compatible).
    Sm90,
}

/// What one block may use on an architecture (CUDA C++ Programming Guide, technical specifications).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Dynamic shared memory a block can opt in to, bytes.
    pub smem_per_block: i64,
    /// Shared memory of a multiprocessor, bytes.
    pub smem_per_sm: i64,
    /// Threads a block.
    pub threads_per_block: i64,
    /// Threads resident on a multiprocessor.
    pub threads_per_sm: i64,
    /// 32-bit registers a thread.
    pub registers_per_thread: i64,
    /// 32-bit registers of a multiprocessor.
    pub registers_per_sm: i64,
}

impl Limits {
    /// 32-bit registers a thread can have: a limit of the instructions, the same everywhere.
    pub const REGISTERS_PER_THREAD: i64 = 255;
}

impl Arch {
    /// Every architecture, oldest first.
    pub const ALL: [Arch; 9] = [
        Arch::Sm80,
        Arch::Sm86,
        Arch::Sm87,
        Arch::Sm89,
        Arch::Sm90a,
        Arch::Sm100a,
        Arch::Sm103a,
        Arch::Sm120a,
        Arch::Sm121a,
    ];

    /// The architectures the shipped kernels are compiled for and checked on.
    pub const SHIPPED: [Arch; 6] =
        [Arch::Sm80, Arch::Sm86, Arch::Sm89, Arch::Sm90a, Arch::Sm100a, Arch::Sm120a];

    /// The name NVRTC takes: `sm_90a`.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm86 => "sm_86",
            Arch::Sm87 => "sm_87",
            Arch::Sm89 => "sm_89",
            Arch::Sm90a => "sm_90a",
            Arch::Sm100a => "sm_100a",
            Arch::Sm103a => "sm_103a",
            Arch::Sm120a => "sm_120a",
            Arch::Sm121a => "sm_121a",
        }
    }

    /// The target of a compute capability, `None` below 8.0 and for those not known yet.
    pub fn from_compute_capability(major: i32, minor: i32) -> Option<Arch> {
        Some(match (major, minor) {
            (8, 0) => Arch::Sm80,
            (8, 6) => Arch::Sm86,
            (8, 7) => Arch::Sm87,
            (8, 9) => Arch::Sm89,
            (9, 0) => Arch::Sm90a,
            (10, 0) => Arch::Sm100a,
            (10, 3) => Arch::Sm103a,
            (12, 0) => Arch::Sm120a,
            (12, 1) => Arch::Sm121a,
            _ => return None,
        })
    }

    /// Whether a body of `family` runs here.
    pub fn runs(self, family: Family) -> bool {
        match family {
            Family::Sm80 => true,
            Family::Sm90 => self == Arch::Sm90a,
        }
    }

    /// What a block may use.
    pub const fn limits(self) -> Limits {
        const KIB: i64 = 1024;
        let (smem_per_block, smem_per_sm, threads_per_sm) = match self {
            Arch::Sm80 | Arch::Sm87 => (163 * KIB, 164 * KIB, 2048),
            Arch::Sm86 | Arch::Sm89 | Arch::Sm120a | Arch::Sm121a => (99 * KIB, 100 * KIB, 1536),
            Arch::Sm90a | Arch::Sm100a | Arch::Sm103a => (227 * KIB, 228 * KIB, 2048),
        };
        Limits {
            smem_per_block,
            smem_per_sm,
            threads_per_block: 1024,
            threads_per_sm,
            registers_per_thread: Limits::REGISTERS_PER_THREAD,
            registers_per_sm: 65536,
        }
    }
}

impl Family {
    /// Every family, oldest first.
    pub const ALL: [Family; 2] = [Family::Sm80, Family::Sm90];

    /// The name in declarations and file names: `sm80`.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Sm80 => "sm80",
            Family::Sm90 => "sm90",
        }
    }

    /// The family of that name.
    pub fn from_name(name: &str) -> Option<Family> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    /// Accepts `sm_90a`, `sm90a` and, where it is unambiguous, the name without its `a`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let plain = |name: &str| name.replace('_', "").to_lowercase();
        let wanted = plain(text);
        Arch::ALL
            .into_iter()
            .find(|arch| plain(arch.name()) == wanted || plain(arch.name()) == format!("{wanted}a"))
            .ok_or_else(|| Error::UnknownArch {
                found: text.to_owned(),
                known: Arch::ALL.map(Arch::name).join(", "),
            })
    }
}

impl TryFrom<String> for Arch {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Arch> for String {
    fn from(arch: Arch) -> String {
        arch.name().to_owned()
    }
}
