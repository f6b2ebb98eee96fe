//! Score and mask functions: the checked form of what `tilewright.functions` translates from Python.

use crate::error::to_python;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use tilewright::codegen::lower::{self, CaptureValue};
use tilewright::{DeviceFn, DynamicMaskMod, DynamicScoreMod, MaskMod, ScoreMod};

/// A checked score or mask function with the values of its captures.
///
/// `DeviceFunction(kind, source, captures)`: `kind` is "score_mod" or "mask_mod", `source` the text of one Rust function,
/// and `captures` a list of (type, value) in the order of its parameters: "f32", "i32" and "bool" with a number or bool,
/// "f32s" and "i32s" with the little-endian bytes of the elements. Equal functions compare and hash as equal.
#[pyclass(module = "tilewright._native", frozen, eq, hash)]
#[derive(Clone)]
pub(crate) struct DeviceFunction {
    function: Function,
    hash: u64,
}

#[derive(Clone)]
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
        let (a, b) = (self.function.device_fn(), other.function.device_fn());
        let bytes = |function: &dyn DeviceFn| -> Vec<Vec<u8>> {
            function.captures().iter().map(CaptureValue::to_bytes).collect()
        };
        // The text names the kind and the types of the captures.
        self.hash == other.hash && a.source() == b.source() && bytes(a) == bytes(b)
    }
}

impl Hash for DeviceFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl DeviceFunction {
    /// The score function; an error for a mask function.
    #[allow(dead_code, reason = "taken by the attention's arguments")]
    pub(crate) fn score_mod(&self) -> PyResult<DynamicScoreMod> {
        match &self.function {
            Function::Score(function) => Ok(function.clone()),
            Function::Mask(_) => Err(self.wrong_kind("score_mod")),
        }
    }

    /// The mask function; an error for a score function.
    #[allow(dead_code, reason = "taken by the attention's arguments")]
    pub(crate) fn mask_mod(&self) -> PyResult<DynamicMaskMod> {
        match &self.function {
            Function::Mask(function) => Ok(function.clone()),
            Function::Score(_) => Err(self.wrong_kind("mask_mod")),
        }
    }

    fn wrong_kind(&self, needed: &str) -> PyErr {
        let (name, found) = (self.name(), self.kind());
        PyValueError::new_err(format!(
            "`{name}` is a {found}, needed a {needed}: make one with `tilewright.{needed}`"
        ))
    }
}

fn capture((kind, value): (String, Bound<'_, PyAny>)) -> PyResult<CaptureValue> {
    fn elements<T>(value: &Bound<'_, PyAny>, read: fn([u8; 4]) -> T) -> PyResult<Vec<T>> {
        let bytes = value.cast::<PyBytes>()?.as_bytes();
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            let found = bytes.len();
            return Err(PyValueError::new_err(format!(
                "a slice capture has {found} bytes: an element has 4"
            )));
        }
        Ok(words.iter().map(|&word| read(word)).collect())
    }
    Ok(match kind.as_str() {
        "f32" => CaptureValue::F32(value.extract()?),
        "i32" => CaptureValue::I32(value.extract()?),
        "bool" => CaptureValue::Bool(value.extract()?),
        "f32s" => CaptureValue::F32s(elements(&value, f32::from_le_bytes)?),
        "i32s" => CaptureValue::I32s(elements(&value, i32::from_le_bytes)?),
        other => {
            let message = format!("`{other}` is no type of captures: use f32, i32, bool, f32s or i32s");
            return Err(PyValueError::new_err(message));
        }
    })
}

#[pymethods]
impl DeviceFunction {
    #[new]
    fn new(kind: &str, source: &str, captures: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<Self> {
        let captures = captures.into_iter().map(capture).collect::<PyResult<Vec<_>>>()?;
        let mut hasher = DefaultHasher::new();
        source.hash(&mut hasher);
        captures.iter().for_each(|capture| capture.to_bytes().hash(&mut hasher));
        let fail = |error: tilewright::FunctionError| to_python(error.into());
        let function = match kind {
            "score_mod" => Function::Score(DynamicScoreMod::new(source, captures).map_err(fail)?),
            "mask_mod" => Function::Mask(DynamicMaskMod::new(source, captures).map_err(fail)?),
            other => {
                let message = format!("`{other}` is no kind of device function: use score_mod or mask_mod");
                return Err(PyValueError::new_err(message));
            }
        };
        Ok(DeviceFunction { function, hash: hasher.finish() })
    }

    /// The function's name.
    #[getter]
    fn name(&self) -> &str {
        self.function.device_fn().name()
    }

    /// "score_mod" or "mask_mod".
    #[getter]
    fn kind(&self) -> &'static str {
        self.function.checked().kind().attribute()
    }

    /// The text in Rust.
    #[getter]
    fn source(&self) -> &str {
        self.function.device_fn().source()
    }

    /// The text in CUDA C++.
    #[getter]
    fn cuda(&self) -> String {
        self.function.checked().cuda()
    }

    /// Runs the function on the CPU, as the CPU executor does, for one element. A mask function ignores `score`.
    fn run(&self, score: f32, b: i32, h: i32, q: i32, kv: i32, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match &self.function {
            Function::Score(function) => {
                function.score(score, b, h, q, kv).into_pyobject(py)?.into_any().unbind()
            }
            Function::Mask(function) => {
                function.keep(b, h, q, kv).into_pyobject(py)?.to_owned().into_any().unbind()
            }
        })
    }
}
