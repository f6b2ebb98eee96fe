//! A rule for one set of shapes.

use super::executor::{Call, Executor, Nothing, empty_lists, unattended};
use super::work::{Inputs, Ranked, Step, Work};
use super::{Attention, Output, Shapes, Sizes, Workspace};
use crate::launch::{Choice, Kernel};
use crate::operands::{Gradients, Upstream};
use crate::{BlockMask, DType, Error, Tensor};

/// What an [`Attention`] does for tensors of one set of shapes: its kernels, the scratch it wants, and calls into new
/// memory, into a [`Workspace`], or into memory of the caller's.
///
/// Making one costs next to nothing: it holds its attention and a few numbers, so that a framework can make one a call.
/// Threads can share one.
///
/// ```
/// use tilewright::attention::{Inputs, Shapes};
/// use tilewright::{Attention, DType, Device, HeadDim, Tensor, top_k};
/// # let values: Vec<half::bf16> = (0..2 * 300 * 64).map(|i| half::bf16::from_f32((i as f32 * 0.37).sin())).collect();
/// # let q = Tensor::from_slice(&values, &[1, 2, 300, 64])?;
/// # let (k, v) = (q.clone(), q.clone());
/// let attention = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.2)).build(&Device::cpu())?;
/// let plan = attention.plan(Shapes { batch: 1, heads: 2, kv_heads: 2, seq_q: 300, seq_kv: 300 })?;
/// let mut workspace = plan.workspace()?;
/// for _ in 0..3 {
///     let output = plan.forward_into(Inputs { q: &q, k: &k, v: &v }, &mut workspace)?;
///     assert_eq!(output.out.shape(), q.shape());
/// }
/// # Ok::<(), tilewright::Error>(())
/// ```
///
/// [`run`](Self::run) is for frameworks with an allocator of their own, PyTorch's say. Nothing is allocated on the GPU
/// once the kernels are chosen: outputs, lists and scratch are tensors of the caller's
/// ([`Tensor::from_device_pointer`]), and everything runs on the plan's stream. The calling thread's current GPU is the
/// same afterwards:
///
/// ```no_run
/// use tilewright::attention::{Forward, Shapes, Step};
/// use tilewright::{Attention, DType, Device, HeadDim, Tensor, top_k};
/// # fn call(q: &Tensor, k: &Tensor, v: &Tensor, out: &mut Tensor, lse: &mut Tensor) -> Result<(), tilewright::Error> {
/// let device = Device::cuda(0)?;
/// let attention = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.2)).build(&device)?;
/// let plan = attention.plan(Shapes::of(q, k)?)?;
/// let mut scratch = Tensor::uninit(&device, DType::U8, &[plan.scratch_bytes(Step::Forward)?])?;
/// plan.run(Forward { q, k, v, out, lse }, &mut scratch)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Plan {
    pub(super) attention: Attention,
    pub(super) sizes: Sizes,
    /// The share of blocks kept, where it is known.
    density: Option<f64>,
}

impl Attention {
    /// The plan for tensors of these shapes.
    ///
    /// # Errors
    /// [`Error::Tensor`] for sizes that no tensors have, [`Error::Mask`] for longer sequences than can be counted.
    pub fn plan(&self, shapes: Shapes) -> Result<Plan, Error> {
        self.rule.check_shapes(&shapes)?;
        Ok(self.planned(shapes))
    }

    /// The same of sizes that were checked.
    pub(super) fn planned(&self, shapes: impl Into<Shapes>) -> Plan {
        Plan { sizes: Sizes::new(&self.rule, shapes.into()), attention: self.clone(), density: None }
    }
}

impl Plan {
    /// The shapes that it is for.
    pub fn shapes(&self) -> Shapes {
        self.sizes.shapes()
    }

    /// The same plan for calls over such masks: where the share of blocks that a mask keeps is known without asking the
    /// GPU, because it was made on the host, schedules are chosen by it. Else they are by the share that the rule asks
    /// for.
    #[must_use]
    pub fn for_mask(&self, mask: &BlockMask) -> Self {
        Plan { density: mask.known_density().or(self.density), ..self.clone() }
    }

    /// The same plan with its work on a stream of the caller's: see
    /// [`CudaDevice::on_stream`](crate::device::CudaDevice::on_stream).
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for a plan of an attention on the CPU.
    ///
    /// # Safety
    /// As for [`CudaDevice::on_stream`](crate::device::CudaDevice::on_stream).
    pub unsafe fn on_stream(&self, stream: *mut std::ffi::c_void) -> Result<Self, Error> {
        // SAFETY: the caller answers for the stream.
        let attention = unsafe { self.attention.on_stream(stream)? };
        Ok(Plan { attention, ..*self })
    }

    /// Bytes of scratch that [`run`](Self::run) wants for a step; 0 where it needs none.
    ///
    /// # Errors
    /// [`Error::Mask`] for lists without four dimensions, [`Error::Tensor`] for more than can be counted.
    pub fn scratch_bytes(&self, step: Step<'_>) -> Result<usize, Error> {
        self.executor().scratch_bytes(&self.call(), step)
    }

    /// Whether the kernels of a step are chosen: a call only launches then, and neither compiles nor tunes. Always on
    /// the CPU, and where there is nothing to attend to. [`forward`](Self::forward) and
    /// [`forward_into`](Self::forward_into) are [`Step::Forward`] and a [`Step::Select`] by key too.
    pub fn is_warm(&self, step: Step<'_>) -> bool {
        self.executor().is_warm(&self.call(), step)
    }

    /// The kernels that are chosen for these shapes, in the order they run. Those of calls that nobody has made are
    /// missing; there are none on the CPU.
    pub fn kernels(&self) -> Vec<Kernel> {
        let stages = self.executor().stages(&self.call()).into_iter();
        stages.filter_map(|(stage, sizes)| stage.chosen(sizes)).collect()
    }

    /// What was chosen for each of [`kernels`](Self::kernels), and why.
    pub fn choices(&self) -> Vec<Choice> {
        let stages = self.executor().stages(&self.call()).into_iter();
        stages.filter_map(|(stage, sizes)| stage.choice_for(sizes)).collect()
    }

    /// As [`Attention::forward`], into new memory.
    ///
    /// # Errors
    /// [`Error::Plan`] for tensors of other shapes; otherwise as [`Attention::forward`].
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output, Error> {
        self.check(inputs.q, inputs.k, Some(inputs.v))?;
        self.output(inputs)
    }

    /// Memory for [`forward_into`](Self::forward_into).
    ///
    /// # Errors
    /// A device error when the GPU's memory does not suffice, [`Error::Tensor`] when the host's does not.
    pub fn workspace(&self) -> Result<Workspace, Error> {
        let (call, Attention { device, rule, executor }) = (self.call(), &self.attention);
        let lists = empty_lists(&call)?;
        let (out, lse) = unattended(&call)?;
        // The lists are the workspace's own, so that a selection needs no others.
        let step = if rule.has_tail() { Step::Forward } else { Step::Select { by_key: true } };
        let bytes = self.scratch_bytes(step)?;
        Ok(Workspace {
            output: Output { out, lse, mask: lists.share().into_mask(rule, &self.sizes) },
            lists,
            scratch: Tensor::uninit(device, DType::U8, &[bytes])?,
            shapes: self.shapes(),
            rule: rule.clone(),
            _executor: executor.clone(),
        })
    }

    /// As [`Attention::forward`], into a workspace. On a GPU it only launches: it allocates nothing, waits for nothing,
    /// and can be captured into a CUDA graph on a stream of the caller's ([`on_stream`](Self::on_stream)). Tensors and
    /// workspace must then outlive the graph.
    ///
    /// # Errors
    /// [`Error::Plan`] for tensors of other shapes, [`Error::Workspace`] for a workspace of other shapes,
    /// [`Error::ForeignWorkspace`] for one of another attention, [`Error::Aliased`] when q, k or v lies in the
    /// workspace; otherwise as [`Attention::forward`].
    pub fn forward_into<'a>(
        &self,
        inputs: Inputs<'_>,
        workspace: &'a mut Workspace,
    ) -> Result<&'a Output, Error> {
        self.check(inputs.q, inputs.k, Some(inputs.v))?;
        self.check_workspace(inputs, workspace)?;
        let Workspace { output, lists, scratch, .. } = workspace;
        self.executor().forward_into(&self.call(), inputs, output, lists, scratch)?;
        Ok(output)
    }

    /// Does [`Forward`](super::Forward), [`Select`](super::Select), [`Attend`](super::Attend) or
    /// [`Backward`](super::Backward) in memory of the caller's. `scratch` is a contiguous tensor of at least
    /// [`scratch_bytes`](Self::scratch_bytes).
    ///
    /// The kernels of a call work in its scratch one after another. Calls on one stream may share it where one returns
    /// before the next begins; threads that call at the same time need one each, clones being one.
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for an attention on the CPU; [`Error::Plan`] for tensors of other shapes;
    /// [`Error::Scratch`], [`Error::ScratchInUse`], [`Error::Gaps`], [`Error::Aliased`]; [`Error::Tensor`] for what is
    /// written of another shape, dtype or device, or scratch on another, over nothing too; [`Error::Lists`] for lists to write of the wrong
    /// kind, [`Error::Tail`] for lists without bits of dropped blocks where there is a tail. Of lists that are read [`Error::Bind`] for a wrong shape or dtype, and [`Error::Mask`] or
    /// [`Error::Tensor`] where there is nothing to launch over them. Otherwise as [`Attention::forward`] and
    /// [`Attention::backward`].
    pub fn run<'a>(&self, work: impl Into<Work<'a>>, scratch: &mut Tensor) -> Result<(), Error> {
        let Work(work) = work.into();
        let cuda = self.check_work(&work, scratch)?;
        let _current = cuda.enter()?;
        self.executor().run(&self.call(), work, scratch)
    }

    /// Selects and attends, over tensors that were checked, as those below.
    pub(super) fn output(&self, inputs: Inputs<'_>) -> Result<Output, Error> {
        let mask = self.mask(Ranked::Tensors { q: inputs.q, k: inputs.k })?;
        let (out, lse) = self.attend(inputs, &mask)?;
        Ok(Output { out, lse, mask })
    }

    pub(super) fn mask(&self, ranked: Ranked<'_>) -> Result<BlockMask, Error> {
        self.executor().mask(&self.call(), ranked)
    }

    /// Over a mask that fits.
    pub(super) fn attend(&self, inputs: Inputs<'_>, mask: &BlockMask) -> Result<(Tensor, Tensor), Error> {
        self.executor().attend(&self.over(mask), inputs, mask)
    }

    /// Over a mask that fits.
    pub(super) fn backward(&self, upstream: Upstream<'_>, mask: &BlockMask) -> Result<Gradients, Error> {
        self.executor().backward(&self.over(mask), upstream, mask)
    }

    /// Who runs it.
    fn executor(&self) -> &dyn Executor {
        if self.sizes.is_empty() { &Nothing } else { &*self.attention.executor }
    }

    pub(super) fn call(&self) -> Call<'_> {
        let Attention { device, rule, .. } = &self.attention;
        Call { device, rule, sizes: &self.sizes, density: self.density }
    }

    /// A call over a mask, whose density may be known.
    fn over(&self, mask: &BlockMask) -> Call<'_> {
        Call { density: mask.known_density().or(self.density), ..self.call() }
    }
}
