//! One compilation with NVRTC.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;
use std::time::Instant;

use super::{BrokenSource, CompileError, Cubin, diagnostic, report};
use crate::toolchain::{Nvrtc, Program, Toolchain};

/// The options of every compilation, beside the architecture and the folder of the headers. Together with the
/// source, the architecture and NVRTC's version they decide the cubin.
pub const OPTIONS: &[&str] = &[
    "--std=c++17",
    // Helper functions and lambdas of a source need no `__device__`.
    "--device-as-default-execution-space",
    // Headers come from the toolchain alone: a file in the working folder must not change a kernel.
    "--no-source-include",
    // Profilers show source lines; the code is the same.
    "--generate-line-info",
    // Registers, spills and shared memory go into the log.
    "--ptxas-options=-v",
];

const NO_CACHE: &str = "--no-cache";

/// `NVRTC_ERROR_COMPILATION`.
const COMPILATION_FAILED: c_int = 6;

impl Toolchain {
    /// Compiles `source` for `arch` (such as `sm_90a`). The source has an `extern "C"` entry function called `name`.
    ///
    /// # Errors
    /// An architecture that this NVRTC does not know, a source with errors (shown with the lines at fault), an entry
    /// function of another name, or a failure of NVRTC's own.
    pub fn compile(&self, name: &str, source: &str, arch: &str) -> Result<Cubin, CompileError> {
        self.compile_with(name, source, arch, &[])
    }

    /// As [`compile`](Self::compile), with NVRTC options of one's own after [`OPTIONS`].
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn compile_with(
        &self,
        name: &str,
        source: &str,
        arch: &str,
        more: &[&str],
    ) -> Result<Cubin, CompileError> {
        self.check_arch(arch)?;
        let file = format!("{name}.cu");
        let nul = |what| move |_| CompileError::Nul { what, name: name.replace('\0', "\\0") };
        let text = CString::new(source).map_err(nul("source"))?;
        let c_file = CString::new(file.as_str()).map_err(nul("name"))?;
        let include = format!("--include-path={}", self.include_dir().display());
        let options = [format!("--gpu-architecture={arch}"), include]
            .into_iter()
            .chain(OPTIONS.iter().chain(more).map(|option| option.to_string()))
            .map(|option| CString::new(option).map_err(nul("options")))
            .collect::<Result<Vec<_>, _>>()?;

        let start = Instant::now();
        let compilation = Compilation::new(self.nvrtc(), name, arch, &text, &c_file)?;
        let code = compilation.compile(&options);
        let compile_time = start.elapsed();
        let log = compilation.log()?;
        let diagnostics = diagnostic::read(&log);
        if code == COMPILATION_FAILED {
            return Err(CompileError::Source(Box::new(BrokenSource {
                name: name.to_string(),
                arch: arch.to_string(),
                excerpt: match diagnostic::excerpt(&diagnostics, &file, source) {
                    // Whatever form the error has, the user gets to see it.
                    excerpt if excerpt.is_empty() => log.clone(),
                    excerpt => excerpt,
                },
                diagnostics,
                log,
            })));
        }
        compilation.check("nvrtcCompileProgram", code, &log)?;

        let reports = report::read(&log);
        // Recent NVRTCs cache what they compile, and what comes from that cache comes without a report. An NVRTC too
        // old for the option has no cache: there the source really has no entry function.
        if reports.is_empty()
            && !more.contains(&NO_CACHE)
            && let Ok(cubin) = self.compile_with(name, source, arch, &[more, &[NO_CACHE]].concat())
        {
            return Ok(cubin);
        }
        let Some((_, report)) = reports.iter().find(|(entry, _)| entry == name) else {
            let found = reports.into_iter().map(|(entry, _)| entry).collect();
            return Err(CompileError::NoEntry { name: name.to_string(), found });
        };
        tracing::debug!(name, arch, ?compile_time, registers = report.registers, "compiled");
        // Other options may make other code of it.
        let plain = more.iter().all(|option| *option == NO_CACHE);
        Ok(Cubin {
            name: name.to_string(),
            arch: arch.to_string(),
            nvrtc: self.version(),
            bytes: compilation.cubin()?,
            source: plain.then(|| blake3::hash(source.as_bytes())),
            report: *report,
            compile_time,
            warnings: diagnostics.into_iter().map(|d| d.message).collect(),
            log,
        })
    }

    /// The architectures this NVRTC compiles for, as numbers: 90 for `sm_90` and `sm_90a`.
    pub fn supported_archs(&self) -> Vec<i32> {
        let nvrtc = self.nvrtc();
        let mut count = 0;
        // SAFETY: the pointer is valid for a write.
        let code = unsafe { (nvrtc.supported_arch_count)(&mut count) };
        let mut archs = vec![0; usize::try_from(count).unwrap_or_default()];
        if code != 0 || archs.is_empty() {
            return Vec::new();
        }
        // SAFETY: the array has room for as many numbers as NVRTC announced.
        match unsafe { (nvrtc.supported_archs)(archs.as_mut_ptr()) } {
            0 => archs,
            _ => Vec::new(),
        }
    }

    /// NVRTC's own message about an unknown architecture names neither the architecture nor the known ones.
    fn check_arch(&self, arch: &str) -> Result<(), CompileError> {
        let supported = self.supported_archs();
        let number: Option<i32> = arch
            .strip_prefix("sm_")
            .and_then(|digits| digits.strip_suffix(['a', 'f']).or(Some(digits)))
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        // Architecture-specific features, `a`, began with Hopper, and family-specific ones, `f`, with Blackwell.
        let suffix_fits = number.is_some_and(|number| match arch.as_bytes().last() {
            Some(b'a') => number >= 90,
            Some(b'f') => number >= 100,
            _ => true,
        });
        if suffix_fits && number.is_some_and(|number| supported.contains(&number)) {
            return Ok(());
        }
        let is_newer = number.zip(supported.last()).is_some_and(|(number, newest)| number > *newest);
        Err(CompileError::UnsupportedArch {
            arch: arch.to_string(),
            supported: supported.iter().map(|number| format!("sm_{number}")).collect(),
            version: self.version(),
            is_newer,
        })
    }
}

/// An NVRTC program, destroyed when dropped.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    name: &'a str,
    arch: &'a str,
    program: Program,
}

impl<'a> Compilation<'a> {
    fn new(
        nvrtc: &'a Nvrtc,
        name: &'a str,
        arch: &'a str,
        source: &CStr,
        file: &CStr,
    ) -> Result<Self, CompileError> {
        let mut compilation = Self { nvrtc, name, arch, program: ptr::null_mut() };
        // SAFETY: both texts end in NUL, there are no headers, and NVRTC copies what it keeps.
        let code = unsafe {
            let program = &mut compilation.program;
            (nvrtc.create_program)(program, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
        };
        compilation.check("nvrtcCreateProgram", code, "")?;
        Ok(compilation)
    }

    fn compile(&self, options: &[CString]) -> c_int {
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and there are as many options as are said to be.
        unsafe { (self.nvrtc.compile_program)(self.program, options.len() as c_int, options.as_ptr()) }
    }

    fn log(&self) -> Result<String, CompileError> {
        let bytes = self.read("nvrtcGetProgramLog", self.nvrtc.log_size, self.nvrtc.log)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_string())
    }

    fn cubin(&self) -> Result<Vec<u8>, CompileError> {
        self.read("nvrtcGetCUBIN", self.nvrtc.cubin_size, self.nvrtc.cubin)
    }

    /// Reads one of the program's products.
    fn read(
        &self,
        call: &'static str,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        read: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, CompileError> {
        let mut length = 0;
        // SAFETY: the program is alive, and the pointer is valid for a write.
        self.check(call, unsafe { size(self.program, &mut length) }, "")?;
        let mut bytes = vec![0u8; length];
        if length > 0 {
            // SAFETY: the buffer has the size that NVRTC announced.
            self.check(call, unsafe { read(self.program, bytes.as_mut_ptr().cast()) }, "")?;
        }
        Ok(bytes)
    }

    fn check(&self, call: &'static str, code: c_int, log: &str) -> Result<(), CompileError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function takes any code.
        let text = unsafe { (self.nvrtc.error_string)(code) };
        let meaning = match text.is_null() {
            true => "unknown result".to_string(),
            // SAFETY: NVRTC returns a string that lives as long as the library.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(CompileError::Nvrtc {
            name: self.name.to_string(),
            arch: self.arch.to_string(),
            call,
            code,
            meaning,
            log: if log.is_empty() { String::new() } else { format!("\n{log}") },
        })
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program is alive, and nothing uses it after this.
            unsafe { (self.nvrtc.destroy_program)(&mut self.program) };
        }
    }
}
