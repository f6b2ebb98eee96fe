//! The chain of kernels on a GPU: pool → score → (classify) → select → transpose → forward. Nothing goes to the host.

use super::advice::advise;
use super::memory::Memory;
use super::{MaskLists, Rule, oracle};
use crate::codegen::lower::{DeviceFunction, FunctionKind};
use crate::device::{CudaDevice, Device};
use crate::kernels::{classify, forward, pool, score, select, transpose};
use crate::launch::{FunctionArgs, Outputs, Request, Tolerance, Tuned};
use crate::tune::{Bucket, Policy, Workload};
use crate::{BlockIndex, DType, DeviceFn, Error, Tensor};
use std::sync::Arc;

/// The kernels of the chain, each with its tuning space, and the functions' captures.
#[derive(Clone)]
pub(super) struct Pipeline {
    device: Device,
    /// Absent when nothing is selected.
    rank: Option<Rank>,
    /// Absent without a mask function.
    classify: Option<(Tuned, Arc<FunctionArgs>)>,
    select: Tuned,
    transpose: Tuned,
    forward: Tuned,
    functions: Arc<FunctionArgs>,
}

/// Block means and their products.
#[derive(Clone)]
struct Rank {
    pool_q: Tuned,
    pool_kv: Tuned,
    score: Tuned,
}

/// Two schedules sum in f32 in different orders.
const SUMS: Tolerance = Tolerance::Close(1e-5);

/// How far apart the outputs of two schedules of the forward may be: each rounds P to the dtype in its own places.
const FORWARD_TOLERANCE: f64 = 1e-2;

impl Pipeline {
    /// Prepares the tuning space of every kernel the rule needs. What is compiled is decided at the first call.
    pub(super) fn new(cuda: &CudaDevice, rule: &Rule, policy: Policy) -> Result<Self, Error> {
        let score_fn = rule.score_mod.as_deref().map(|f| f as &dyn DeviceFn);
        let mask_fn = rule.mask_mod.as_deref().map(|f| f as &dyn DeviceFn);
        let score_mod = parse(FunctionKind::ScoreMod, score_fn)?;
        let mask_mod = parse(FunctionKind::MaskMod, mask_fn)?;
        let (block_q, block_kv) = (rule.blocks.q() as i64, rule.blocks.kv() as i64);
        let tile = rule.head_dim.tile() as i64;
        let tuned = |request: Request| Tuned::new(cuda, &request, policy);
        let pool = |block: i64| {
            tuned(Request::new(&pool::SOURCE).value("T", rule.dtype).value("D", tile).value("BLOCK", block))
        };
        let forward = tuned(
            Request::new(&forward::SOURCE)
                .value("T", rule.dtype)
                .value("D", tile)
                .value("BLOCK_Q", block_q)
                .value("BLOCK_KV", block_kv)
                .function("score_mod", score_mod.as_ref())
                .function("mask_mod", mask_mod.as_ref()),
        )?;
        let classify = match mask_fn {
            Some(_) => {
                let request =
                    Request::new(&classify::SOURCE).value("BLOCK_Q", block_q).value("BLOCK_KV", block_kv);
                let kernel = tuned(request.function("mask_mod", mask_mod.as_ref()))?;
                let args = FunctionArgs::new(cuda, kernel.spec(), &[mask_fn])?;
                Some((kernel, Arc::new(args)))
            }
            None => None,
        };
        let rank = match rule.selection {
            Some(_) => Some(Rank {
                pool_q: pool(block_q)?,
                pool_kv: pool(block_kv)?,
                score: tuned(Request::new(&score::SOURCE))?,
            }),
            None => None,
        };
        let functions = Arc::new(FunctionArgs::new(cuda, forward.spec(), &[score_fn, mask_fn])?);
        Ok(Pipeline {
            device: Device::Cuda(cuda.clone()),
            rank,
            classify,
            select: tuned(Request::new(&select::SOURCE))?,
            transpose: tuned(Request::new(&transpose::SOURCE))?,
            forward,
            functions,
        })
    }

    /// The stages in the order they run.
    pub(super) fn stages(&self) -> impl Iterator<Item = &Tuned> {
        let rank = self.rank.iter().flat_map(|rank| [&rank.pool_q, &rank.pool_kv, &rank.score]);
        let classify = self.classify.iter().map(|(kernel, _)| kernel);
        rank.chain(classify).chain([&self.select, &self.transpose, &self.forward])
    }

    /// The captures that launches read.
    pub(super) fn functions(&self) -> Vec<Arc<FunctionArgs>> {
        let classify = self.classify.iter().map(|(_, functions)| functions.clone());
        classify.chain([self.functions.clone()]).collect()
    }

    /// The same chain on another stream of the same GPU.
    pub(super) fn on(&self, cuda: &CudaDevice) -> Self {
        let on = |kernel: &Tuned| kernel.on(cuda);
        Pipeline {
            device: Device::Cuda(cuda.clone()),
            rank: self.rank.as_ref().map(|rank| Rank {
                pool_q: on(&rank.pool_q),
                pool_kv: on(&rank.pool_kv),
                score: on(&rank.score),
            }),
            classify: self.classify.as_ref().map(|(kernel, functions)| (on(kernel), functions.clone())),
            select: on(&self.select),
            transpose: on(&self.transpose),
            forward: on(&self.forward),
            functions: self.functions.clone(),
        }
    }

    /// Room for what the selection works in, for `q` and `k`.
    pub(super) fn scratch(
        &self,
        rule: &Rule,
        q: &Tensor,
        k: &Tensor,
        memory: &mut Memory<'_>,
    ) -> Result<Scratch, Error> {
        let map = grid(rule, q, k);
        let [batch, _, q_blocks, kv_blocks] = map;
        let head_dim = q.shape()[3];
        let kv_heads = k.shape()[1];
        Ok(Scratch {
            means: match self.rank {
                Some(_) => Some((
                    memory.tensor(DType::F32, &[batch, map[1], q_blocks, head_dim])?,
                    memory.tensor(DType::F32, &[batch, kv_heads, kv_blocks, head_dim])?,
                )),
                None => None,
            },
            logits: memory.tensor(DType::F32, &map)?,
            classes: match self.classify {
                Some(_) => Some(memory.tensor(DType::U8, &map)?),
                None => None,
            },
            keep: memory.tensor(DType::U8, &map)?,
        })
    }

    /// Room for the lists of a mask for `q` and `k`; those by key block only where they are asked for.
    pub(super) fn lists(
        &self,
        rule: &Rule,
        q: &Tensor,
        k: &Tensor,
        by_key: bool,
        memory: &mut Memory<'_>,
    ) -> Result<MaskLists, Error> {
        let [batch, heads, q_blocks, kv_blocks] = grid(rule, q, k);
        let mut index = |wanted: bool, rows, width| -> Result<Option<BlockIndex>, Error> {
            if !wanted {
                return Ok(None);
            }
            let counts = memory.counts(&[batch, heads, rows])?;
            Ok(Some(BlockIndex { counts, indices: memory.tensor(DType::I32, &[batch, heads, rows, width])? }))
        };
        let split = self.is_split();
        let Some(kv) = index(true, q_blocks, kv_blocks)? else { unreachable!("it is wanted") };
        Ok(MaskLists {
            kv,
            full_kv: index(split, q_blocks, kv_blocks)?,
            q: index(by_key, kv_blocks, q_blocks)?,
            full_q: index(by_key && split, kv_blocks, q_blocks)?,
        })
    }

    /// Whether every kernel is chosen for the sizes of `q` and `k`. The index by key block does not count.
    pub(super) fn is_warm(&self, rule: &Rule, q: &Tensor, k: &Tensor) -> bool {
        let bucket = bucket(rule, q, k, None);
        self.forward.knows(bucket) && self.select.knows(bucket)
    }

    /// Whether the forward is chosen for the sizes of `q` and `k`.
    pub(super) fn is_warm_for_lists(&self, rule: &Rule, q: &Tensor, k: &Tensor) -> bool {
        self.forward.knows(bucket(rule, q, k, None))
    }

    /// Whether blocks that the mask function keeps as a whole are listed apart.
    pub(super) fn is_split(&self) -> bool {
        self.classify.is_some()
    }

    /// Fills `lists` for `q` and `k`. Launches only, once the kernels are chosen: nothing is allocated and nothing waits.
    pub(super) fn select(
        &self,
        rule: &Rule,
        q: &Tensor,
        k: &Tensor,
        scratch: &mut Scratch,
        lists: &mut MaskLists,
    ) -> Result<(), Error> {
        self.run_selection(rule, q, k, scratch, lists).map_err(|error| advise(error, rule, q, k))
    }

    fn run_selection(
        &self,
        rule: &Rule,
        q: &Tensor,
        k: &Tensor,
        scratch: &mut Scratch,
        lists: &mut MaskLists,
    ) -> Result<(), Error> {
        let (bucket, sizes) = (bucket(rule, q, k, None), || sizes(rule, q, k));
        let device = &self.device;
        let split = self.classify.is_some();
        let Scratch { means, logits, classes, keep } = scratch;
        let MaskLists { kv, full_kv, q: by_kv, full_q: full_by_kv } = lists;
        if let (None, Some(cuda)) = (&self.rank, self.device.as_cuda()) {
            // Nothing is ranked: all scores are alike. The kernel overwrites them, so that they are set anew.
            logits.fill_words(cuda, 0)?;
        }
        if let (Some(rank), Some((q_mean, k_mean))) = (&self.rank, &mut *means) {
            self.pool(rule, bucket, (&rank.pool_q, rule.blocks.q()), q, q_mean)?;
            self.pool(rule, bucket, (&rank.pool_kv, rule.blocks.kv()), k, k_mean)?;
            let outputs = rank.score.outputs(bucket, || {
                Outputs::new(vec![logits.clone()], SUMS)
                    .sized(&sizes())
                    .with_oracle(|kernel| oracle::check_score(rule, device, kernel))
            });
            rank.score.run(bucket, outputs, &mut |kernel| {
                kernel.launch(&score::Args { q_mean, k_mean, logits, scale: rule.scale }, None)
            })?;
        }
        if let (Some((kernel, functions)), Some(classes)) = (&self.classify, &mut *classes) {
            let (seq_q, seq_kv) = (q.shape()[2] as i32, k.shape()[2] as i32);
            let outputs = kernel.outputs(bucket, || {
                Outputs::new(vec![classes.clone()], Tolerance::Exact)
                    .sized(&sizes())
                    .with_oracle(|kernel| oracle::check_classify(rule, device, functions, kernel))
            });
            kernel.run(bucket, outputs, &mut |kernel| {
                kernel.launch(&classify::Args { classes, seq_q, seq_kv }, Some(functions))
            })?;
        }
        let outputs = self.select.outputs(bucket, || {
            let full = full_kv.as_ref().map(|full| full.counts.clone());
            let tensors = [Some(kv.counts.clone()), full, Some(keep.clone())];
            Outputs::new(tensors.into_iter().flatten().collect(), Tolerance::Mostly(0.01))
                .sized(&sizes())
                .with_oracle(|kernel| oracle::check_select(rule, device, split, kernel))
        });
        // Long rows are worked on in place: what one candidate leaves is no input for the next.
        let again = match &self.rank {
            Some(rank) if outputs.is_some() && logits.shape()[3] > LONG_ROW => rank.score.chosen(bucket),
            _ => None,
        };
        let (top_k, top_p) = rule.thresholds();
        self.select.run(bucket, outputs, &mut |kernel| {
            if let (Some(score), Some((q_mean, k_mean))) = (&again, &means) {
                score.launch(&score::Args { q_mean, k_mean, logits, scale: rule.scale }, None)?;
            }
            let (full_kv_counts, full_kv_indices) = parts(full_kv);
            let args = select::Args {
                logits,
                classes: classes.as_ref(),
                kv_counts: &mut kv.counts,
                kv_indices: &mut kv.indices,
                full_kv_counts,
                full_kv_indices,
                keep,
                top_k,
                top_p,
            };
            kernel.launch(&args, None)
        })?;
        let Some(by_kv) = by_kv else { return Ok(()) };
        let outputs = self.transpose.outputs(bucket, || {
            let full = full_by_kv.as_ref().map(|full| full.counts.clone());
            let tensors = [Some(by_kv.counts.clone()), Some(by_kv.indices.clone()), full];
            Outputs::new(tensors.into_iter().flatten().collect(), Tolerance::Exact)
                .sized(&sizes())
                .with_oracle(|kernel| oracle::check_transpose(rule, device, split, kernel))
        });
        self.transpose.run(bucket, outputs, &mut |kernel| {
            let (full_q_counts, full_q_indices) = parts(full_by_kv);
            let args = transpose::Args {
                keep,
                q_counts: &mut by_kv.counts,
                q_indices: &mut by_kv.indices,
                full_q_counts,
                full_q_indices,
            };
            kernel.launch(&args, None)
        })
    }

    /// The means of runs of `block` rows of `x`, into `mean`.
    fn pool(
        &self,
        rule: &Rule,
        bucket: Bucket,
        (kernel, block): (&Tuned, usize),
        x: &Tensor,
        mean: &mut Tensor,
    ) -> Result<(), Error> {
        let outputs = kernel.outputs(bucket, || {
            let dims = [("batch", x.shape()[0]), ("heads", x.shape()[1]), ("seq", x.shape()[2])];
            Outputs::new(vec![mean.clone()], SUMS)
                .sized(&dims)
                .with_oracle(move |kernel| oracle::check_pool(rule, &self.device, block, kernel))
        });
        kernel.run(bucket, outputs, &mut |kernel| kernel.launch(&pool::Args { x, mean }, None))
    }

    /// Attention over the kept blocks, into `out` and `lse`. `density` is the share of blocks kept, where it is known.
    pub(super) fn attend(
        &self,
        rule: &Rule,
        [q, k, v]: [&Tensor; 3],
        (kv, full_kv): (&BlockIndex, Option<&BlockIndex>),
        density: Option<f64>,
        [out, lse]: [&mut Tensor; 2],
    ) -> Result<(), Error> {
        let bucket = bucket(rule, q, k, density);
        let outputs = self.forward.outputs(bucket, || {
            Outputs::new(vec![out.clone(), lse.clone()], Tolerance::Close(FORWARD_TOLERANCE))
                .sized(&sizes(rule, q, k))
                .with_oracle(|kernel| oracle::check_forward(rule, &self.device, &self.functions, kernel))
        });
        let launched = self.forward.run(bucket, outputs, &mut |kernel| {
            let args = forward::Args {
                q,
                k,
                v,
                kv_counts: &kv.counts,
                kv_indices: &kv.indices,
                full_kv_counts: full_kv.map(|full| &full.counts),
                full_kv_indices: full_kv.map(|full| &full.indices),
                row_order: None,
                out,
                lse,
                scale: rule.scale,
            };
            kernel.launch(&args, Some(&self.functions))
        });
        launched.map_err(|error| advise(error, rule, q, k))
    }
}

/// Key blocks from which `select` may overwrite its logits: 12 a thread of its smallest schedule.
const LONG_ROW: usize = 12 * 64;

/// The sizes the tuner goes by. The density is the mask's own where the host knows it, else what the rule asks for: a
/// selected mask is on the GPU, and reading it would make every call wait.
fn bucket(rule: &Rule, q: &Tensor, k: &Tensor, density: Option<f64>) -> Bucket {
    let asked = rule.selection.map_or(1.0, |selection| match (selection.k(), selection.p()) {
        (Some(k), _) => k,
        (None, p) => p.unwrap_or(1.0),
    });
    let density = density.unwrap_or(asked);
    let [batch, heads, seq_q] = [0, 1, 2].map(|axis| q.shape()[axis]);
    Bucket::of(&Workload { batch, heads, seq_q, seq_kv: k.shape()[2], density })
}

/// The dimensions that the chain's declarations name, for the tuner's model.
fn sizes(rule: &Rule, q: &Tensor, k: &Tensor) -> [(&'static str, usize); 6] {
    let [batch, heads, q_blocks, kv_blocks] = grid(rule, q, k);
    [
        ("batch", batch),
        ("heads", heads),
        ("seq_q", q.shape()[2]),
        ("seq_kv", k.shape()[2]),
        ("q_blocks", q_blocks),
        ("kv_blocks", kv_blocks),
    ]
}

/// `[batch, heads, q_blocks, kv_blocks]` of `q` and `k`.
fn grid(rule: &Rule, q: &Tensor, k: &Tensor) -> [usize; 4] {
    let [batch, heads, seq_q] = [0, 1, 2].map(|axis| q.shape()[axis]);
    [batch, heads, seq_q.div_ceil(rule.blocks.q()), k.shape()[2].div_ceil(rule.blocks.kv())]
}

/// What the kernels of the selection work in.
pub(super) struct Scratch {
    means: Option<(Tensor, Tensor)>,
    logits: Tensor,
    classes: Option<Tensor>,
    keep: Tensor,
}

fn parse(kind: FunctionKind, function: Option<&dyn DeviceFn>) -> Result<Option<Arc<DeviceFunction>>, Error> {
    let Some(function) = function else { return Ok(None) };
    DeviceFunction::from_source(kind, function.source())
        .map(|parsed| Some(Arc::new(parsed)))
        .map_err(|error| Error::Function { name: function.name().to_owned(), message: error.to_string() })
}

fn parts(index: &mut Option<BlockIndex>) -> (Option<&mut Tensor>, Option<&mut Tensor>) {
    match index {
        Some(BlockIndex { counts, indices }) => (Some(counts), Some(indices)),
        None => (None, None),
    }
}
