//! Score and mask functions: the checked form of what `tilewright.functions` translates from Python.

use crate::error::to_python;
use crate::{attentions, registry};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tilewright::codegen::lower::{self, CaptureValue};
use tilewright::{DeviceFn, DynamicMaskMod, DynamicScoreMod, MaskMod, ScoreMod};

/// A checked score or mask function with the values of its captures.
///
/// `DeviceFunction(kind, source, captures)`: `kind` is "score_mod" or "mask_mod", `source` the text of one Rust function,
/// and `captures` a list of (type, value) in the order of its parameters: "f32", "i32" and "bool" with a number or bool,
/// "f32s" and "i32s" with the number of elements and an iterable of their little-endian bytes, in parts, so that a
/// table is in memory once; machines with GPUs are little-endian. Equal functions compare and hash as equal.
#[pyclass(module = "tilewright._native", frozen, eq, hash)]
pub(crate) struct DeviceFunction(Arc<Shared>);

/// A function with its number. Equal ones are one, as long as somebody holds it: they share their attentions.
struct Shared {
    function: Function,
    digest: blake3::Hash,
    number: u64,
}

enum Function {
    Score(DynamicScoreMod),
    Mask(DynamicMaskMod),
}

impl Function {
    fn device_fn(&self) -> &dyn DeviceFn {
        match self {
            Self::Score(function) => function,
            Self::Mask(function) => function,
        }
    }

    fn checked(&self) -> &lower::DeviceFunction {
        match self {
            Self::Score(function) => function.function(),
            Self::Mask(function) => function.function(),
        }
    }
}

impl PartialEq for DeviceFunction {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Hash for DeviceFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(leading(&self.0.digest));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Its own entry cannot be upgraded any more; an equal function may have been made meanwhile.
        lock().retain(|held| held.strong_count() > 0);
        registry::forget(self.number);
        attentions::forget_function(self.number);
    }
}

/// Of the text and the bits of the captures: a NaN equals itself, and 0 is not -0. The same in every process.
fn digest(kind: &str, source: &str, captures: &[CaptureValue]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(kind.as_bytes());
    add(source.as_bytes());
    for capture in captures {
        match capture {
            // Without a copy of the elements.
            CaptureValue::F32s(values) => add(bytemuck::cast_slice(values)),
            CaptureValue::I32s(values) => add(bytemuck::cast_slice(values)),
            other => add(&other.to_bytes()),
        }
    }
    hasher.finalize()
}

/// The first bytes of a digest: the number in an exported program is made of them.
fn leading(digest: &blake3::Hash) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The functions that somebody holds.
static HELD: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<Weak<Shared>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The function of this digest that somebody holds already.
fn held(digest: &blake3::Hash) -> Option<Arc<Shared>> {
    // Whatever is let go of here may be the last one, whose drop takes the lock: not while it is held.
    let held: Vec<Arc<Shared>> = lock().iter().filter_map(Weak::upgrade).collect();
    held.into_iter().find(|shared| shared.digest == *digest)
}

fn capture((kind, value): (String, Bound<'_, PyAny>)) -> PyResult<CaptureValue> {
    Ok(match kind.as_str() {
        "f32" => CaptureValue::F32(value.extract()?),
        "i32" => CaptureValue::I32(value.extract()?),
        "bool" => CaptureValue::Bool(value.extract()?),
        "f32s" => CaptureValue::F32s(elements(&value)?),
        "i32s" => CaptureValue::I32s(elements(&value)?),
        other => {
            let message = format!("`{other}` is no type of captures: use f32, i32, bool, f32s or i32s");
            return Err(PyValueError::new_err(message));
        }
    })
}

/// The elements of a slice, whose parts are copied to their place as they come.
fn elements<T: bytemuck::Pod>(value: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    let (count, parts): (usize, Bound<'_, PyAny>) = value.extract()?;
    let mut values: Vec<T> = Vec::new();
    values.try_reserve_exact(count).map_err(|_| {
        PyMemoryError::new_err(format!("a slice capture of {count} elements does not fit in memory"))
    })?;
    for part in parts.try_iter()? {
        let part = part?;
        let part = part.cast::<PyBytes>()?.as_bytes();
        match bytemuck::try_cast_slice(part) {
            Ok(whole) => values.extend_from_slice(whole),
            Err(_) => values.extend(
                part.chunks(size_of::<T>()).filter_map(|e| bytemuck::try_pod_read_unaligned::<T>(e).ok()),
            ),
        }
    }
    match values.len() {
        found if found == count => Ok(values),
        found => Err(PyValueError::new_err(format!(
            "a slice capture of {count} elements brought bytes of {found}: an element has {}",
            size_of::<T>()
        ))),
    }
}

#[pymethods]
impl DeviceFunction {
    #[new]
    fn new(kind: &str, source: &str, captures: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<Self> {
        let captures = captures.into_iter().map(capture).collect::<PyResult<Vec<_>>>()?;
        let digest = digest(kind, source, &captures);
        if let Some(shared) = held(&digest) {
            return Ok(DeviceFunction(shared));
        }
        let fail = |error: tilewright::FunctionError| to_python(error.into());
        let (function, registered) = match kind {
            "score_mod" => {
                let function = DynamicScoreMod::new(source, captures).map_err(fail)?;
                (Function::Score(function.clone()), registry::Function::Score(Arc::new(function)))
            }
            "mask_mod" => {
                let function = DynamicMaskMod::new(source, captures).map_err(fail)?;
                (Function::Mask(function.clone()), registry::Function::Mask(Arc::new(function)))
            }
            other => {
                let message = format!("`{other}` is no kind of device function: use score_mod or mask_mod");
                return Err(PyValueError::new_err(message));
            }
        };
        let number = registry::register(registered, leading(&digest));
        let shared = Arc::new(Shared { function, digest, number });
        lock().push(Arc::downgrade(&shared));
        Ok(DeviceFunction(shared))
    }

    /// What the operators take in its place. It is good as long as an equal function is held.
    #[getter]
    fn number(&self) -> u64 {
        self.0.number
    }

    /// The function's name.
    #[getter]
    fn name(&self) -> &str {
        self.0.function.device_fn().name()
    }

    /// "score_mod" or "mask_mod".
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.function.checked().kind().attribute()
    }

    /// The text in Rust.
    #[getter]
    fn source(&self) -> &str {
        self.0.function.device_fn().source()
    }

    /// The text in CUDA C++.
    #[getter]
    fn cuda(&self) -> String {
        self.0.function.checked().cuda()
    }

    /// The values of the captures, in order: numbers and bools, tuples for slices.
    fn captures(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        let values = self.0.function.device_fn().captures();
        let object = |value: &CaptureValue| -> PyResult<Py<PyAny>> {
            Ok(match value {
                CaptureValue::F32(value) => value.into_pyobject(py)?.into_any().unbind(),
                CaptureValue::I32(value) => value.into_pyobject(py)?.into_any().unbind(),
                CaptureValue::U32(value) => value.into_pyobject(py)?.into_any().unbind(),
                CaptureValue::Bool(value) => value.into_pyobject(py)?.to_owned().into_any().unbind(),
                CaptureValue::F32s(values) => PyTuple::new(py, values)?.into_any().unbind(),
                CaptureValue::I32s(values) => PyTuple::new(py, values)?.into_any().unbind(),
                CaptureValue::U32s(values) => PyTuple::new(py, values)?.into_any().unbind(),
            })
        };
        values.iter().map(object).collect()
    }

    /// The derivative of a score function's value by the score, on the CPU, for one element; 0 of a mask function.
    fn gradient(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
        match &self.0.function {
            Function::Score(function) => function.gradient(score, b, h, q, kv),
            Function::Mask(_) => 0.0,
        }
    }

    /// Runs the function on the CPU, as the CPU executor does, for one element. A mask function ignores `score`.
    fn run(&self, score: f32, b: i32, h: i32, q: i32, kv: i32, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match &self.0.function {
            Function::Score(function) => {
                function.score(score, b, h, q, kv).into_pyobject(py)?.into_any().unbind()
            }
            Function::Mask(function) => {
                function.keep(b, h, q, kv).into_pyobject(py)?.to_owned().into_any().unbind()
            }
        })
    }
}

/// The function of a number, where somebody holds it: whoever needs it later than its caller does holds it too.
#[pyfunction]
pub(crate) fn device_function(number: u64) -> Option<DeviceFunction> {
    // Those let go of may be the last ones, whose drop takes the lock.
    let held: Vec<Arc<Shared>> = lock().iter().filter_map(Weak::upgrade).collect();
    held.into_iter().find(|shared| shared.number == number).map(DeviceFunction)
}
