//! Device functions by number, for the operators of PyTorch take tensors and numbers alone.
//!
//! 0 stands for no function, [`CAUSAL`] for the one that is built in.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tilewright::{MaskMod, ScoreMod};

/// Queries see the keys up to their own position: `is_causal` of `scaled_dot_product_attention`.
#[tilewright::mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

/// The number of the causal mask function.
pub(crate) const CAUSAL: u64 = 1;

/// A function that kernels call.
#[derive(Clone)]
pub(crate) enum Function {
    /// It changes scores.
    Score(Arc<dyn ScoreMod>),
    /// It decides who sees whom.
    Mask(Arc<dyn MaskMod>),
}

struct Registry {
    functions: HashMap<u64, Function>,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Registry>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn registry(guard: &mut Option<Registry>) -> &mut Registry {
    guard.get_or_insert_with(|| {
        let causal: Arc<dyn MaskMod> = Arc::new(causal {});
        Registry { functions: HashMap::from([(CAUSAL, Function::Mask(causal))]) }
    })
}

/// Gives a function a number, made of `digest`: an exported program has the number in it, and must find the same function in
/// another process, or none, but never another one. Whoever holds the number calls [`forget`] at the end.
pub(crate) fn register(function: Function, digest: u64) -> u64 {
    let mut guard = lock();
    let functions = &mut registry(&mut guard).functions;
    // PyTorch's integers have 63 bits besides the sign. Two functions of one digest are as good as impossible.
    let mut number = (digest >> 1).max(CAUSAL + 1);
    while functions.contains_key(&number) {
        number = (number + 1) & (u64::MAX >> 1);
    }
    functions.insert(number, function);
    number
}

/// Drops a function. [`attentions::forget_function`](crate::attentions::forget_function) drops those that call it.
pub(crate) fn forget(number: u64) {
    let function = registry(&mut lock()).functions.remove(&number);
    drop(function);
}

/// The score function of a number.
pub(crate) fn score_mod(number: u64) -> PyResult<Option<Arc<dyn ScoreMod>>> {
    match find(number)? {
        None => Ok(None),
        Some(Function::Score(function)) => Ok(Some(function)),
        Some(Function::Mask(function)) => {
            let name = function.name();
            Err(PyValueError::new_err(format!(
                "score_mod is `{name}`, a mask function, needed a score function: pass it as mask_mod"
            )))
        }
    }
}

/// The mask function of a number.
pub(crate) fn mask_mod(number: u64) -> PyResult<Option<Arc<dyn MaskMod>>> {
    match find(number)? {
        None => Ok(None),
        Some(Function::Mask(function)) => Ok(Some(function)),
        Some(Function::Score(function)) => {
            let name = function.name();
            Err(PyValueError::new_err(format!(
                "mask_mod is `{name}`, a score function, needed a mask function: pass it as score_mod"
            )))
        }
    }
}

fn find(number: u64) -> PyResult<Option<Function>> {
    if number == 0 {
        return Ok(None);
    }
    match registry(&mut lock()).functions.get(&number) {
        Some(function) => Ok(Some(function.clone())),
        None => Err(PyValueError::new_err(format!(
            "device function number {number} does not exist: keep the object that `tilewright.score_mod` or \
             `tilewright.mask_mod` returned for as long as compiled code or a graph calls it, and make the same function (text and \
             captures) before an exported program runs"
        ))),
    }
}
