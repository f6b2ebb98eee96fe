//! The attentions built so far: kernels are chosen once for a kind of tensors, whatever the selection and scale.

use crate::error::to_python;
use crate::registry;
use crate::services::services;
use crate::work::apart;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use tilewright::{Attention, BlockSize, DType, Device, HeadDim, Scores, Selection, Tail, top_k, top_p};

/// What kernels depend on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// The GPU; the CPU without one.
    pub(crate) ordinal: Option<usize>,
    /// The head dimension of q and k.
    pub(crate) head_dim: usize,
    /// Of v and the output.
    pub(crate) value_dim: usize,
    /// Of q, k and v.
    pub(crate) dtype: DType,
    /// The sparse block.
    pub(crate) blocks: (usize, usize),
    /// Numbers of the score and the mask function.
    pub(crate) functions: (u64, u64),
    /// What stands for dropped blocks.
    pub(crate) tail: Tail,
}

/// Which blocks are selected; without a rule none are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Selects {
    pub(crate) top_k: Option<f64>,
    pub(crate) top_p: Option<f64>,
    /// Whether blocks are scored by keys, and not by their means.
    pub(crate) by_keys: bool,
}

/// What else a call depends on.
#[derive(Clone, Copy)]
pub(crate) struct Parameters {
    pub(crate) select: Selects,
    /// `1 / sqrt(head_dim)` when not given.
    pub(crate) scale: Option<f64>,
    /// PyTorch's current stream.
    pub(crate) stream: usize,
}

/// A call's kind and the bits of its parameters.
type Call = (Kind, ([Option<u64>; 3], bool), usize);

#[derive(Default)]
struct Attentions {
    /// By kind, and whether blocks are selected.
    built: HashMap<(Kind, bool), Arc<Attention>>,
    /// Those of the last calls.
    recent: HashMap<Call, Arc<Attention>>,
}

/// Calls remembered. A loop over layers and steps has a few; a scale that changes with every call must not fill the memory.
const RECENT: usize = 256;

static ATTENTIONS: LazyLock<Mutex<Attentions>> = LazyLock::new(Mutex::default);

fn lock() -> MutexGuard<'static, Attentions> {
    ATTENTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The attention for a call, built the first time.
pub(crate) fn find(py: Python<'_>, kind: Kind, parameters: Parameters) -> PyResult<Arc<Attention>> {
    let Selects { top_k: k, top_p: p, by_keys } = parameters.select;
    let bits = [k, p, parameters.scale].map(|number| number.map(f64::to_bits));
    let call = (kind, (bits, by_keys), parameters.stream);
    if let Some(attention) = lock().recent.get(&call) {
        return Ok(attention.clone());
    }
    let selection = match (k, p) {
        (Some(k), Some(p)) => Some(top_k(k) | top_p(p)),
        (k, p) => k.map(top_k).or(p.map(top_p)),
    };
    let scores = if by_keys { Scores::Keys } else { Scores::Means };
    let selection = selection.map(|selection| selection.by(scores));
    let scale = parameters.scale.map(|scale| scale as f32);
    let base = built(py, kind, selection)?;
    let mut attention = base.with_parameters(selection, scale).map_err(to_python)?;
    if kind.ordinal.is_some() {
        // SAFETY: the stream is PyTorch's current one of this GPU, whose streams live as long as the process.
        attention = unsafe { attention.on_stream(parameters.stream as *mut _) }.map_err(to_python)?;
    }
    let attention = Arc::new(attention);
    let mut attentions = lock();
    let old = (attentions.recent.len() >= RECENT).then(|| std::mem::take(&mut attentions.recent));
    attentions.recent.insert(call, attention.clone());
    drop(attentions);
    drop(old);
    Ok(attention)
}

fn built(py: Python<'_>, kind: Kind, selection: Option<Selection>) -> PyResult<Arc<Attention>> {
    let key = (kind, selection.is_some());
    if let Some(attention) = lock().built.get(&key) {
        return Ok(attention.clone());
    }
    let score_mod = registry::score_mod(kind.functions.0)?;
    let mask_mod = registry::mask_mod(kind.functions.1)?;
    let build = || -> Result<Attention, tilewright::Error> {
        let device = match kind.ordinal {
            Some(ordinal) => Device::cuda(ordinal)?.with_services(&services()),
            None => Device::cpu(),
        };
        let mut builder = Attention::builder(HeadDim::new(kind.head_dim)?, kind.dtype)
            .value_dim(HeadDim::new(kind.value_dim)?)
            .blocks(BlockSize::new(kind.blocks.0, kind.blocks.1)?)
            .tail(kind.tail);
        if let Some(selection) = selection {
            builder = builder.select(selection);
        }
        if let Some(function) = score_mod {
            builder = builder.score_mod(function);
        }
        if let Some(function) = mask_mod {
            builder = builder.mask_mod(function);
        }
        builder.build(&device)
    };
    // Other threads go on: the spaces of schedules are laid out, and the GPU may be opened.
    let attention = Arc::new(apart(py, build)?);
    Ok(lock().built.entry(key).or_insert(attention).clone())
}

/// Drops the attentions that call a function.
pub(crate) fn forget_function(number: u64) {
    let calls = |kind: &Kind| kind.functions.0 == number || kind.functions.1 == number;
    let mut gone: Vec<Arc<Attention>> = Vec::new();
    let mut keep = |kind: &Kind, attention: &Arc<Attention>| {
        let drop = calls(kind);
        if drop {
            gone.push(attention.clone());
        }
        !drop
    };
    let mut attentions = lock();
    attentions.built.retain(|(kind, _), attention| keep(kind, attention));
    attentions.recent.retain(|(kind, ..), attention| keep(kind, attention));
    // Captures are freed outside the lock, for that waits for the GPU.
    drop(attentions);
}
