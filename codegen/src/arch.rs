//! GPU architectures, what they allow a kernel to use, and the families of them that share a body: tables, a row each.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An enum with a row of data for each variant, in the order of the table.
macro_rules! table {
    ($(#[$attribute:meta])* $name:ident, $row:ty { $($(#[$doc:meta])* $variant:ident: $value:expr,)+ }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        $(#[$attribute])*
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All of them, oldest first.
            pub const ALL: [$name; [$(stringify!($variant)),+].len()] = [$($name::$variant),+];

            const ROWS: [$row; Self::ALL.len()] = [$($value),+];

            const fn row(self) -> $row {
                Self::ROWS[self as usize]
            }
        }
    };
}

/// What is known of an architecture.
#[derive(Clone, Copy)]
struct ArchRow {
    /// As NVRTC takes it.
    name: &'static str,
    compute_capability: (i32, i32),
    /// Shared memory of a multiprocessor. The system keeps 1 KiB of it for each block.
    smem_kib: i64,
    /// Threads resident on a multiprocessor.
    threads: i64,
    /// Whether the shipped kernels are compiled for it and checked on it.
    shipped: bool,
}

table! {
    /// A compilation target.
    #[allow(missing_docs)]
    #[serde(try_from = "String", into = "String")]
    Arch, ArchRow {
        Sm80: ArchRow { name: "sm_80", compute_capability: (8, 0), smem_kib: 164, threads: 2048, shipped: true },
        Sm86: ArchRow { name: "sm_86", compute_capability: (8, 6), smem_kib: 100, threads: 1536, shipped: true },
        Sm87: ArchRow { name: "sm_87", compute_capability: (8, 7), smem_kib: 164, threads: 2048, shipped: false },
        Sm89: ArchRow { name: "sm_89", compute_capability: (8, 9), smem_kib: 100, threads: 1536, shipped: true },
        Sm90a: ArchRow { name: "sm_90a", compute_capability: (9, 0), smem_kib: 228, threads: 2048, shipped: true },
        Sm100a: ArchRow { name: "sm_100a", compute_capability: (10, 0), smem_kib: 228, threads: 2048, shipped: true },
        Sm103a: ArchRow { name: "sm_103a", compute_capability: (10, 3), smem_kib: 228, threads: 2048, shipped: false },
        Sm120a: ArchRow { name: "sm_120a", compute_capability: (12, 0), smem_kib: 100, threads: 1536, shipped: true },
        Sm121a: ArchRow { name: "sm_121a", compute_capability: (12, 1), smem_kib: 100, threads: 1536, shipped: false },
    }
}

/// What is known of a family.
#[derive(Clone, Copy)]
struct FamilyRow {
    /// In declarations and file names.
    name: &'static str,
    runs_on: &'static [Arch],
    /// Whether a body may have tensor maps.
    copy_engine: bool,
}

table! {
    /// A family of architectures that share a body.
    #[serde(rename_all = "lowercase")]
    Family, FamilyRow {
        /// `mma.sync` and `cp.async`: every architecture from Ampere on.
        Sm80: FamilyRow { name: "sm80", runs_on: &Arch::ALL, copy_engine: false },
        /// `wgmma` and TMA: Hopper only (the instructions of an `a` target are not forward compatible).
        Sm90: FamilyRow { name: "sm90", runs_on: &[Arch::Sm90a], copy_engine: true },
    }
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
    /// The architectures the shipped kernels are compiled for and checked on.
    pub const SHIPPED: [Arch; SHIPPED] = {
        let mut shipped = [Arch::Sm80; SHIPPED];
        let (mut at, mut count) = (0, 0);
        while at < Arch::ALL.len() {
            if Arch::ROWS[at].shipped {
                shipped[count] = Arch::ALL[at];
                count += 1;
            }
            at += 1;
        }
        shipped
    };

    /// The name NVRTC takes: `sm_90a`.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The architecture of that very name.
    pub fn from_name(name: &str) -> Option<Arch> {
        Self::ALL.into_iter().find(|arch| arch.name() == name)
    }

    /// The target of a compute capability, `None` below 8.0 and for those not known yet.
    pub fn from_compute_capability(major: i32, minor: i32) -> Option<Arch> {
        Self::ALL.into_iter().find(|arch| arch.row().compute_capability == (major, minor))
    }

    /// Whether a body of `family` runs here.
    pub fn runs(self, family: Family) -> bool {
        family.row().runs_on.contains(&self)
    }

    /// What a block may use.
    pub const fn limits(self) -> Limits {
        const KIB: i64 = 1024;
        let ArchRow { smem_kib, threads, .. } = self.row();
        Limits {
            smem_per_block: (smem_kib - 1) * KIB,
            smem_per_sm: smem_kib * KIB,
            threads_per_block: 1024,
            threads_per_sm: threads,
            registers_per_thread: Limits::REGISTERS_PER_THREAD,
            registers_per_sm: 65536,
        }
    }
}

/// How many architectures are shipped for.
const SHIPPED: usize = {
    let (mut at, mut count) = (0, 0);
    while at < Arch::ALL.len() {
        count += Arch::ROWS[at].shipped as usize;
        at += 1;
    }
    count
};

impl Family {
    /// The name in declarations and file names: `sm80`.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The family of that name.
    pub fn from_name(name: &str) -> Option<Family> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Whether its architectures have a copy engine (TMA), for tensor maps.
    pub const fn has_copy_engine(self) -> bool {
        self.row().copy_engine
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
