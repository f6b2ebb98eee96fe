//! Tensors of Python: where their elements are, without a copy.

use crate::dlpack::Borrowed;
use crate::torch::Torch;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyAnyMethods, PyTuple};
use std::sync::Arc;
use tilewright::TensorError;
use tilewright::{DType, Tensor};

/// A `[batch, heads, seq, head_dim]` tensor (or another of four dimensions at most) as Python owns it.
#[derive(Clone)]
pub(crate) struct View<const N: usize> {
    /// The GPU; `None` in host memory.
    pub(crate) ordinal: Option<usize>,
    address: usize,
    pub(crate) dtype: DType,
    pub(crate) shape: [usize; N],
    /// In elements.
    strides: [isize; N],
    /// The tensor looked at, where it is not the caller's, for that one's memory holds other values than it stands for.
    resolved: Option<Arc<Py<PyAny>>>,
}

/// What kind of object a tensor is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `torch.Tensor`.
    Torch,
    /// `numpy.ndarray`.
    Numpy,
}

impl Kind {
    /// The kind of a call's first tensor, which the others share.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Kind> {
        let py = object.py();
        if let Some(torch) = Torch::get(py)
            && object.is_instance(torch.tensor.bind(py))?
        {
            return Ok(Kind::Torch);
        }
        match object.hasattr(intern!(py, "__array_interface__"))? {
            true => Ok(Kind::Numpy),
            false => Err(PyTypeError::new_err(format!(
                "q is of type {}, needed a torch.Tensor or a numpy array: convert it first",
                type_name(object)
            ))),
        }
    }
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().fully_qualified_name().map_or_else(|_| "unknown".to_owned(), |name| name.to_string())
}

impl<const N: usize> View<N> {
    /// Looks at a half-precision tensor of `kind`. `what` names it in messages.
    pub(crate) fn half(what: &str, kind: Kind, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let needed = "float16 or bfloat16: cast q, k and v with `.half()` or `.bfloat16()` (numpy: `.astype(numpy.float16)`), or call \
                      within torch.autocast";
        Self::of(what, kind, object, |dtype| matches!(dtype, DType::F16 | DType::Bf16), needed)
    }

    /// Looks at a tensor of any dtype.
    pub(crate) fn any(what: &str, kind: Kind, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::of(what, kind, object, |_| true, "another")
    }

    /// Looks at a tensor that is written to. `what` names it in messages.
    pub(crate) fn output(what: &str, kind: Kind, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let view = Self::any(what, kind, object)?;
        match view.resolved {
            None => Ok(view),
            Some(_) => Err(PyValueError::new_err(format!(
                "{what} is lazily negated, or lazily zero, needed one that can be written to: make it with torch.empty"
            ))),
        }
    }

    /// Looks at a tensor of int32.
    pub(crate) fn int(what: &str, kind: Kind, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::of(what, kind, object, |dtype| dtype == DType::I32, "int32: block lists count in 32 bits")
    }

    fn of(
        what: &str,
        kind: Kind,
        object: &Bound<'_, PyAny>,
        accepts: fn(DType) -> bool,
        needed: &str,
    ) -> PyResult<Self> {
        let py = object.py();
        if let (Kind::Torch, Some(torch)) = (kind, Torch::get(py)) {
            if let Some(resolved) = torch.resolved(object)? {
                return Self::of_resolved(what, kind, resolved, accepts, needed);
            }
            if let Some(seen) = torch.dlpack.as_ref().and_then(|dlpack| dlpack.look::<N>(object))
                && accepts(seen.dtype)
            {
                let Borrowed { address, ordinal, dtype, shape, strides } = seen;
                return Ok(View { ordinal, address, dtype, shape, strides, resolved: None });
            }
        }
        // The long way: older than DLPack's C functions, not of PyTorch, or something is amiss, and it says what.
        let found = object.getattr(intern!(py, "dtype")).map_err(|_| wrong_type(what, kind, object))?;
        let dtype = match kind {
            Kind::Torch => Torch::get(py).and_then(|torch| torch.dtype(&found)),
            Kind::Numpy if !object.hasattr(intern!(py, "__array_interface__"))? => {
                return Err(wrong_type(what, kind, object));
            }
            Kind::Numpy => {
                refuse_masked(what, object)?;
                numpy_dtype(what, &found)?
            }
        };
        let Some(dtype) = dtype.filter(|&dtype| accepts(dtype)) else {
            // An array of numpy has a dtype too, of the same name maybe.
            if let (Kind::Torch, Some(torch)) = (kind, Torch::get(py))
                && !object.is_instance(torch.tensor.bind(py))?
            {
                return Err(wrong_type(what, kind, object));
            }
            return Err(PyTypeError::new_err(format!("{what} has dtype {found}, needed {needed}")));
        };
        let shape = object.getattr(intern!(py, "shape"))?;
        let shape = shape.cast::<PyTuple>()?;
        let rank = shape.len();
        let extents: [usize; N] = numbers(shape).ok_or_else(|| {
            let layout = if N == 4 {
                "batch, heads, sequence and head dimension"
            } else {
                "as many as a block list has"
            };
            PyValueError::new_err(format!(
                "{what} has {rank} dimensions (shape {}), needed {N}: {layout}",
                shape.repr().map_or_else(|_| String::new(), |shape| shape.to_string())
            ))
        })?;
        let (address, ordinal, strides) = match kind {
            Kind::Torch => {
                let is = |name| object.getattr(name)?.is_truthy();
                let on_gpu = is(intern!(py, "is_cuda"))?;
                if !on_gpu && !is(intern!(py, "is_cpu"))? {
                    let device = object.getattr(intern!(py, "device"))?;
                    return Err(PyValueError::new_err(format!(
                        "{what} is on {device}, needed on a CUDA GPU or on cpu: move q, k and v there with `.to(…)`"
                    )));
                }
                let ordinal = match on_gpu {
                    true => Some(object.call_method0(intern!(py, "get_device"))?.extract()?),
                    false => None,
                };
                let address = object.call_method0(intern!(py, "data_ptr"));
                let address: usize =
                    address.map_err(|error| without_memory(what, object, error))?.extract()?;
                if address == 0 && !extents.contains(&0) {
                    // Forward-mode differentiation has zeros without memory.
                    if object.call_method0(intern!(py, "_is_zerotensor"))?.is_truthy()? {
                        let zeros = object.call_method0(intern!(py, "clone"))?;
                        return Self::of_resolved(what, kind, zeros, accepts, needed);
                    }
                    // PyTorch's functional and fake tensors are shapes alone.
                    return Err(PyValueError::new_err(format!(
                        "{what} has no memory: pass a tensor with elements, not a traced or a fake one"
                    )));
                }
                let strides = object.call_method0(intern!(py, "stride"));
                let strides = strides.map_err(|error| without_memory(what, object, error))?;
                (address, ordinal, numbers(strides.cast::<PyTuple>()?))
            }
            Kind::Numpy => {
                let interface = object.getattr(intern!(py, "__array_interface__"))?;
                let (address, _read_only): (usize, bool) = interface.get_item("data")?.extract()?;
                let bytes: Option<[isize; N]> =
                    numbers(object.getattr(intern!(py, "strides"))?.cast::<PyTuple>()?);
                let size = dtype.size() as isize;
                let whole = bytes.filter(|strides| strides.iter().all(|stride| stride % size == 0));
                (address, None, whole.map(|strides| strides.map(|stride| stride / size)))
            }
        };
        let Some(strides) = strides else {
            return Err(PyValueError::new_err(format!(
                "{what} has elements at odd places: pass a contiguous copy of it"
            )));
        };
        Ok(View { ordinal, address, dtype, shape: extents, strides, resolved: None })
    }

    /// Looks at the tensor that the caller's stands for, and keeps it.
    fn of_resolved(
        what: &str,
        kind: Kind,
        resolved: Bound<'_, PyAny>,
        accepts: fn(DType) -> bool,
        needed: &str,
    ) -> PyResult<Self> {
        let view = Self::of(what, kind, &resolved, accepts, needed)?;
        Ok(View { resolved: Some(Arc::new(resolved.unbind())), ..view })
    }

    /// `[batch, seq, heads, …]` seen as `[batch, heads, seq, d]`.
    pub(crate) fn heads_first(mut self) -> Self {
        self.shape.swap(1, 2);
        self.strides.swap(1, 2);
        self
    }

    /// Where it is, as PyTorch says it.
    pub(crate) fn place(&self) -> String {
        self.ordinal.map_or_else(|| "cpu".to_owned(), |ordinal| format!("cuda:{ordinal}"))
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The tensor on its GPU, without a copy.
    ///
    /// # Safety
    /// The object it was made of lives on while the tensor is used, and its memory is used in the order of the stream of the call.
    pub(crate) unsafe fn on_gpu(&self, what: &str) -> PyResult<Tensor> {
        let Some(ordinal) = self.ordinal else {
            return Err(PyValueError::new_err(format!("{what} is on cpu, needed on a GPU")));
        };
        // Strides along 1 or 0 elements are never taken; PyTorch may give any there.
        let strides = std::array::from_fn::<usize, N, _>(|i| {
            if self.shape[i] > 1 { self.strides[i].unsigned_abs() } else { 1 }
        });
        // SAFETY: PyTorch's tensor tells where its elements are, and has no negative strides.
        let tensor = unsafe {
            Tensor::from_device_pointer(ordinal, self.address as u64, self.dtype, &self.shape, &strides)
        };
        tensor.map_err(crate::error::to_python)
    }

    /// A contiguous copy of a tensor in host memory.
    ///
    /// # Safety
    /// The object it was made of lives on, and nothing writes to its memory meanwhile.
    pub(crate) unsafe fn copied(&self) -> Result<Tensor, tilewright::Error> {
        let size = self.dtype.size();
        // A view of one element may be expanded to a shape that no memory holds.
        let needed = self.shape.iter().try_fold(size, |bytes, &extent| bytes.checked_mul(extent));
        let mut bytes = Vec::new();
        if needed.is_none_or(|needed| bytes.try_reserve_exact(needed).is_err()) {
            return Err(TensorError::TooLarge { shape: self.shape.to_vec(), dtype: self.dtype }.into());
        }
        // The last dimension is copied as a run where it is one.
        let (run, outer) = match self.strides.last() {
            Some(1) => (self.shape[N - 1], N - 1),
            _ => (1, N),
        };
        let runs = if run == 0 { 0 } else { self.shape[..outer].iter().product() };
        let mut index = [0usize; N];
        for _ in 0..runs {
            let begin = (self.address as isize + self.offset(&index) * size as isize) as *const u8;
            // SAFETY: the framework's strides stay inside its memory; `run` elements follow one another.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(begin, run * size) });
            self.step(&mut index, outer);
        }
        Tensor::from_bytes(self.dtype, &bytes, &self.shape)
    }

    /// Writes a tensor of the same shape into host memory.
    ///
    /// # Safety
    /// As [`copied`](Self::copied), and nothing reads the memory meanwhile; it was made for this call.
    pub(crate) unsafe fn write(&self, from: &Tensor) -> Result<(), tilewright::Error> {
        match self.dtype {
            // SAFETY: the caller's.
            DType::F16 => unsafe { self.write_elements(&from.to_vec::<half::f16>()?) },
            // SAFETY: the caller's.
            DType::Bf16 => unsafe { self.write_elements(&from.to_vec::<half::bf16>()?) },
            // SAFETY: the caller's.
            DType::I32 => unsafe { self.write_elements(&from.to_vec::<i32>()?) },
            // SAFETY: the caller's.
            _ => unsafe { self.write_elements(&from.to_vec::<f32>()?) },
        }
        Ok(())
    }

    /// # Safety
    /// As [`write`](Self::write); `E` has the size of the elements.
    unsafe fn write_elements<E: Copy>(&self, from: &[E]) {
        let mut index = [0usize; N];
        for &element in from.iter().take(self.elements()) {
            // SAFETY: the framework's strides stay inside its memory.
            unsafe { (self.address as *mut E).offset(self.offset(&index)).write_unaligned(element) };
            self.step(&mut index, N);
        }
    }

    /// In elements, from the first.
    fn offset(&self, index: &[usize; N]) -> isize {
        index.iter().zip(&self.strides).map(|(&i, stride)| i as isize * stride).sum()
    }

    /// The next index over the first `axes` dimensions, row-major.
    fn step(&self, index: &mut [usize; N], axes: usize) {
        for axis in (0..axes).rev() {
            index[axis] += 1;
            if index[axis] < self.shape[axis] {
                return;
            }
            index[axis] = 0;
        }
    }
}

fn wrong_type(what: &str, kind: Kind, object: &Bound<'_, PyAny>) -> PyErr {
    let needed = match kind {
        Kind::Torch => "torch.Tensor",
        Kind::Numpy => "numpy.ndarray",
    };
    let found = type_name(object);
    PyTypeError::new_err(format!("{what} is of type {found}, needed a {needed} as q is: convert it first"))
}

/// A masked array's mask says which elements count, and no kernel looks at it.
fn refuse_masked(what: &str, object: &Bound<'_, PyAny>) -> PyResult<()> {
    let numpy = object.py().import(intern!(object.py(), "numpy"))?;
    // Most arrays are of the very type, and none of those has a mask.
    if object.get_type().is(numpy.getattr(intern!(object.py(), "ndarray"))?)
        || !object.is_instance(&numpy.getattr("ma")?.getattr("MaskedArray")?)?
    {
        return Ok(());
    }
    Err(PyTypeError::new_err(format!(
        "{what} is a numpy.ma.MaskedArray, whose mask would be ignored: pass `array.filled(0)`, and say which keys count with a mask_mod \
         or a block mask"
    )))
}

/// Why a tensor of PyTorch does not tell where its elements are: its layout, or what PyTorch said.
fn without_memory(what: &str, object: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    let layout = object.getattr("layout").map_or_else(|_| String::new(), |layout| layout.to_string());
    if layout.is_empty() || layout == "torch.strided" {
        return error;
    }
    PyValueError::new_err(format!(
        "{what} has the layout {layout}, needed torch.strided: make it dense with `.to_dense()`"
    ))
}

/// The numbers of a tuple of `N`.
fn numbers<T: Copy + Default + for<'a, 'py> FromPyObject<'a, 'py>, const N: usize>(
    tuple: &Bound<'_, PyTuple>,
) -> Option<[T; N]> {
    let mut numbers = [T::default(); N];
    if tuple.len() != N {
        return None;
    }
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = tuple.get_item(i).ok()?.extract().ok()?;
    }
    Some(numbers)
}

/// numpy knows no bfloat16 of its own; `ml_dtypes` names its one so.
fn numpy_dtype(what: &str, dtype: &Bound<'_, PyAny>) -> PyResult<Option<DType>> {
    // The name is the same for either order of the bytes.
    if !dtype.getattr("isnative")?.is_truthy()? {
        let text: String = dtype.getattr("str")?.extract()?;
        return Err(PyTypeError::new_err(format!(
            "{what} has dtype {text}, whose bytes are in the other order, needed this machine's order: convert it with \
             `.astype(array.dtype.newbyteorder('='))`"
        )));
    }
    let name: String = dtype.getattr("name")?.extract()?;
    Ok(match name.as_str() {
        "float16" => Some(DType::F16),
        "bfloat16" => Some(DType::Bf16),
        "float32" => Some(DType::F32),
        "int32" => Some(DType::I32),
        _ => None,
    })
}
