//! DLPack's C functions: a tensor is looked at in one call, where asking it for dtype, shape and strides one by one takes ten.
//!
//! PyTorch has them since 2.10, as a capsule on its tensor type (`DLPackExchangeAPI` of DLPack 1.2).

use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::{c_int, c_void};
use tilewright::DType;

/// The only version whose structures these are.
const MAJOR: u32 = 1;

/// Device types.
const CPU: i32 = 1;
const CUDA: i32 = 2;

/// Codes of element types.
const INT: u8 = 0;
const UINT: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;

/// `DLTensor`.
#[repr(C)]
struct Strided {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    /// In elements; null for a contiguous tensor.
    strides: *const i64,
    byte_offset: u64,
}

/// `DLPackExchangeAPI`, as far as it is called here. Later minor versions add to its end.
#[repr(C)]
struct Exchange {
    major: u32,
    minor: u32,
    previous: *const Exchange,
    allocate: *const c_void,
    managed_from_object: *const c_void,
    managed_to_object: *const c_void,
    /// Lends what the object owns; needs Python's lock. May be absent.
    borrow: Option<unsafe extern "C" fn(*mut c_void, *mut Strided) -> c_int>,
}

/// How tensors of one type are looked at.
pub(crate) struct Dlpack {
    borrow: unsafe extern "C" fn(*mut c_void, *mut Strided) -> c_int,
    /// Keeps the functions.
    _capsule: Py<PyAny>,
}

/// What a tensor tells.
pub(crate) struct Borrowed<const N: usize> {
    pub(crate) address: usize,
    /// The GPU; `None` in host memory.
    pub(crate) ordinal: Option<usize>,
    pub(crate) dtype: DType,
    pub(crate) shape: [usize; N],
    /// In elements.
    pub(crate) strides: [isize; N],
}

impl Dlpack {
    /// The functions of a tensor type, where it has them.
    pub(crate) fn of(tensor: &Bound<'_, PyAny>) -> Option<Self> {
        let capsule = tensor.getattr("__dlpack_c_exchange_api__").ok()?;
        // SAFETY: the object lives, and a wrong type or name is answered with null and an error, which is cleared.
        let exchange =
            unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), c"dlpack_exchange_api".as_ptr()) };
        if exchange.is_null() {
            PyErr::take(tensor.py());
            return None;
        }
        let exchange = exchange.cast::<Exchange>();
        // SAFETY: a capsule of that name begins with its version, whatever that is, and lives as long as the process.
        if unsafe { (*exchange).major } != MAJOR {
            return None;
        }
        // SAFETY: of this version it holds these fields.
        let borrow = unsafe { (*exchange).borrow }?;
        Some(Dlpack { borrow, _capsule: capsule.unbind() })
    }

    /// Looks at a tensor; `None` for one that this protocol, or the caller, cannot take as it is. Why, the long way tells.
    pub(crate) fn look<const N: usize>(&self, object: &Bound<'_, PyAny>) -> Option<Borrowed<N>> {
        let mut seen = std::mem::MaybeUninit::<Strided>::uninit();
        // SAFETY: the object lives, Python's lock is held, and whatever is no tensor of the type is answered with an error.
        if unsafe { (self.borrow)(object.as_ptr().cast(), seen.as_mut_ptr()) } != 0 {
            PyErr::take(object.py());
            return None;
        }
        // SAFETY: the function succeeded, and then it has written every field.
        let seen = unsafe { seen.assume_init() };
        let dtype = match (seen.code, seen.bits, seen.lanes) {
            (FLOAT, 16, 1) => DType::F16,
            (BFLOAT, 16, 1) => DType::Bf16,
            (FLOAT, 32, 1) => DType::F32,
            (INT, 32, 1) => DType::I32,
            (UINT, 8, 1) => DType::U8,
            _ => return None,
        };
        let ordinal = match seen.device_type {
            CPU => None,
            CUDA => Some(usize::try_from(seen.device_id).ok()?),
            _ => return None,
        };
        let is_there = !seen.shape.is_null() && !seen.strides.is_null();
        if usize::try_from(seen.ndim) != Ok(N) || !is_there {
            return None;
        }
        // SAFETY: both point to `ndim` numbers, which the object owns.
        let (shape, strides) = unsafe {
            (std::slice::from_raw_parts(seen.shape, N), std::slice::from_raw_parts(seen.strides, N))
        };
        let address = (seen.data as usize).checked_add(usize::try_from(seen.byte_offset).ok()?)?;
        // Functional and fake tensors are shapes alone.
        if seen.data.is_null() && !shape.contains(&0) {
            return None;
        }
        let mut looked = Borrowed { address, ordinal, dtype, shape: [0; N], strides: [0; N] };
        for i in 0..N {
            looked.shape[i] = usize::try_from(shape[i]).ok()?;
            looked.strides[i] = isize::try_from(strides[i]).ok()?;
        }
        Some(looked)
    }
}
