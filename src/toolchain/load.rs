//! Loading NVRTC: the handful of its functions that Tilewright calls, as plain function pointers.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

use super::layout::Located;
use super::refusal::{OLDEST_NVRTC, Refusal};

/// `nvrtcProgram`.
pub(crate) type Program = *mut c_void;
/// `nvrtcResult`: kept as an integer, so that a code this version does not know is not undefined behaviour.
pub(crate) type Code = c_int;

/// Declares the table of functions and how it is filled from a library.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions of a loaded NVRTC. They are thread-safe for distinct programs.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct Nvrtc {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Nvrtc {
            /// # Safety
            /// `library` is NVRTC and stays loaded for ever.
            unsafe fn resolve(library: &Library, path: &Path) -> Result<Self, Refusal> {
                $(
                    // SAFETY: the type is the one nvrtc.h declares for this name.
                    let $field = unsafe {
                        library.get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol)
                    };
                )*
                Ok(Self {
                    $($field: *$field.map_err(|_| Refusal::MissingSymbol {
                        library: path.to_path_buf(),
                        symbol: $symbol,
                    })?,)*
                })
            }
        }
    };
}

functions! {
    version = "nvrtcVersion": fn(*mut c_int, *mut c_int) -> Code;
    error_string = "nvrtcGetErrorString": fn(Code) -> *const c_char;
    supported_arch_count = "nvrtcGetNumSupportedArchs": fn(*mut c_int) -> Code;
    supported_archs = "nvrtcGetSupportedArchs": fn(*mut c_int) -> Code;
    create_program = "nvrtcCreateProgram":
        fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Code;
    destroy_program = "nvrtcDestroyProgram": fn(*mut Program) -> Code;
    compile_program = "nvrtcCompileProgram": fn(Program, c_int, *const *const c_char) -> Code;
    cubin_size = "nvrtcGetCUBINSize": fn(Program, *mut usize) -> Code;
    cubin = "nvrtcGetCUBIN": fn(Program, *mut c_char) -> Code;
    log_size = "nvrtcGetProgramLogSize": fn(Program, *mut usize) -> Code;
    log = "nvrtcGetProgramLog": fn(Program, *mut c_char) -> Code;
}

/// Loads NVRTC, whose files nobody else can change, and asks for its version. The libraries stay loaded until the process ends: NVRTC keeps
/// threads and thread-local data that would outlive an unloaded library.
pub(super) fn load(located: &Located) -> Result<(Nvrtc, (i32, i32)), Refusal> {
    // NVRTC opens its builtins by bare name at the first compile. Loaded before it, they are found whatever
    // the search path says.
    let builtins = open(&located.builtins, true)?;
    let library = open(&located.opened, false)?;
    // SAFETY: the library was found under NVRTC's name and is forgotten, not closed, below.
    let nvrtc = unsafe { Nvrtc::resolve(&library, &located.library) }?;
    std::mem::forget(builtins);
    std::mem::forget(library);
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are valid for a write.
    let code = unsafe { (nvrtc.version)(&mut major, &mut minor) };
    if code != 0 {
        let message = format!("nvrtcVersion failed with code {code}");
        return Err(Refusal::CannotLoad { library: located.library.clone(), message });
    }
    match (major, minor) < OLDEST_NVRTC {
        true => Err(Refusal::TooOld { major, minor }),
        false => Ok((nvrtc, (major, minor))),
    }
}

/// Opens a library by its absolute path. `global` shows its names to libraries loaded after it; NVRTC itself
/// stays private, so that it cannot displace the NVRTC of a host process such as PyTorch.
#[cfg(unix)]
fn open(path: &Path, global: bool) -> Result<Library, Refusal> {
    use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
    let flags = RTLD_NOW | if global { RTLD_GLOBAL } else { RTLD_LOCAL };
    // SAFETY: NVRTC's initialisers have no preconditions.
    let library = unsafe { UnixLibrary::open(Some(path), flags) };
    library.map(Library::from).map_err(|error| refuse(path, &error))
}

#[cfg(not(unix))]
fn open(path: &Path, _global: bool) -> Result<Library, Refusal> {
    // SAFETY: NVRTC's initialisers have no preconditions.
    unsafe { Library::new(path) }.map_err(|error| refuse(path, &error))
}

fn refuse(path: &Path, error: &libloading::Error) -> Refusal {
    Refusal::CannotLoad { library: path.to_path_buf(), message: error.to_string() }
}
