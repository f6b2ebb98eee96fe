//! Cubins that were compiled when the program was built, and are part of it.

use std::fmt;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use super::{Cubin, PtxasReport};

/// A cubin in the program itself. [`build::Emit`](crate::build::Emit) writes a list of them at build time.
///
/// ```compile_fail,E0451
/// use tilewright::compile::{EmbeddedCubin, PtxasReport};
/// let report = PtxasReport::default();
/// let cubin = EmbeddedCubin { name: "mine", fingerprint: "", arch: "sm_80", nvrtc: (13, 0), report, bytes: &[] };
/// ```
#[derive(Clone, Copy)]
pub struct EmbeddedCubin {
    name: &'static str,
    fingerprint: &'static str,
    arch: &'static str,
    nvrtc: (i32, i32),
    report: PtxasReport,
    bytes: &'static [u8],
}

impl EmbeddedCubin {
    /// The ELF file `bytes`, made by that version of NVRTC of the [variant](crate::codegen::Variant) of that name and fingerprint for
    /// that architecture.
    ///
    /// # Safety
    /// It is what is said. The driver reads an ELF file without checking it, and whoever asks for the variant runs what is in it.
    pub const unsafe fn new(
        [name, fingerprint, arch]: [&'static str; 3],
        nvrtc: (i32, i32),
        report: PtxasReport,
        bytes: &'static [u8],
    ) -> Self {
        EmbeddedCubin { name, fingerprint, arch, nvrtc, report, bytes }
    }

    /// The variant's name, also its entry function's.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The variant's fingerprint: another source has another one.
    pub fn fingerprint(&self) -> &'static str {
        self.fingerprint
    }

    /// The architecture, such as `sm_90a`.
    pub fn arch(&self) -> &'static str {
        self.arch
    }
}

impl fmt::Debug for EmbeddedCubin {
    /// Everything but the bytes, of which there are many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedCubin")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .field("arch", &self.arch)
            .field("nvrtc", &self.nvrtc)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// What [`register`] was told.
static LISTS: RwLock<Vec<&'static [EmbeddedCubin]>> = RwLock::new(Vec::new());

/// Makes known what the program embeds, for the whole process. A list that is known already is not added again.
pub fn register(cubins: &'static [EmbeddedCubin]) {
    let mut lists = LISTS.write().unwrap_or_else(PoisonError::into_inner);
    if !lists.iter().any(|known| std::ptr::eq(*known, cubins)) {
        lists.push(cubins);
    }
}

/// The embedded cubin of a variant, by its fingerprint and architecture. Of several, the one that was registered first.
pub fn embedded(fingerprint: &str, arch: &str) -> Option<Cubin> {
    let lists = LISTS.read().unwrap_or_else(PoisonError::into_inner);
    let mut all = lists.iter().copied().flatten();
    let found = all.find(|cubin| cubin.fingerprint == fingerprint && cubin.arch == arch)?;
    let cubin = Cubin {
        name: found.name.to_owned(),
        arch: found.arch.to_owned(),
        nvrtc: found.nvrtc,
        bytes: found.bytes.to_vec(),
        source: None,
        report: found.report,
        compile_time: Duration::ZERO,
        warnings: Vec::new(),
        log: String::new(),
    };
    tracing::debug!(name = found.name, arch, "embedded kernel");
    cubin.is_whole().then_some(cubin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn elf() -> [u8; 64] {
        let mut elf = [0; 64];
        let magic = *b"\x7fELF\x02\x01";
        let mut i = 0;
        while i < magic.len() {
            elf[i] = magic[i];
            i += 1;
        }
        elf
    }

    const ELF: [u8; 64] = elf();
    const ONE: EmbeddedCubin = EmbeddedCubin {
        name: "one",
        fingerprint: "embedded-one",
        arch: "sm_80",
        nvrtc: (13, 0),
        report: PtxasReport {
            registers: 24,
            spill_store_bytes: 0,
            spill_load_bytes: 0,
            stack_bytes: 0,
            static_smem_bytes: 0,
            barriers: 0,
        },
        bytes: &ELF,
    };
    static FIRST: [EmbeddedCubin; 2] =
        [ONE, EmbeddedCubin { fingerprint: "embedded-cut", bytes: b"\x7fELF", ..ONE }];
    static SECOND: [EmbeddedCubin; 2] =
        [EmbeddedCubin { name: "later", ..ONE }, EmbeddedCubin { arch: "sm_90a", ..ONE }];

    #[test]
    fn what_is_registered_is_found() {
        assert_eq!(embedded("embedded-one", "sm_80"), None);
        for list in [&FIRST[..], &FIRST, &SECOND, &FIRST] {
            register(list);
        }
        let found = embedded("embedded-one", "sm_80").unwrap();
        assert_eq!((found.name.as_str(), found.nvrtc, found.report.registers), ("one", (13, 0), 24));
        assert_eq!(found.bytes, ELF);
        assert_eq!(embedded("embedded-one", "sm_90a").unwrap().arch, "sm_90a");
        assert_eq!(embedded("embedded-one", "sm_120a"), None);
        assert_eq!(embedded("embedded-two", "sm_80"), None);
        // Never a file cut short.
        assert_eq!(embedded("embedded-cut", "sm_80"), None);
    }
}
