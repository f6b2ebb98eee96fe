//! One kernel, from its files to candidates and sources.

use crate::arch::{Arch, Limits};
use crate::budget::{self, Candidate, Candidates};
use crate::dsl::{Arg, ArgKind, Kernel, SpecParam, Tolerance};
use crate::error::Error;
use crate::model::{self, Machine};
use crate::render::Renderer;
use crate::source::KernelSource;
use crate::spec::KernelSpec;
use crate::value::Value;
use crate::variant::Variant;
use std::fmt;
use std::sync::Arc;

/// A parsed kernel with its templates.
pub struct Generator {
    kernel: Kernel,
    renderer: Renderer,
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator").field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

impl Generator {
    /// Parses a kernel's declaration and templates.
    ///
    /// # Errors
    /// [`Error::Declaration`] or [`Error::Template`] with the place of the mistake; [`Error::Spec`] when the folder and
    /// the kernel have different names, a body has no template, or a template no body.
    pub fn new(source: &KernelSource) -> Result<Self, Error> {
        let kernel = Kernel::of(source)?;
        let fail = |message: String| Err(Error::Spec { kernel: kernel.name.clone(), message });
        if kernel.name != source.name {
            return fail(format!("its folder is named `{}`: give both one name", source.name));
        }
        for body in &kernel.bodies {
            let path = format!("{}/{}.cu", kernel.name, body.family);
            if !source.files.iter().any(|(known, _)| *known == path) {
                return fail(format!("`body {}` is declared but {path} is missing: write it", body.family));
            }
        }
        let folder = format!("{}/", kernel.name);
        for (path, _) in source.files.iter() {
            let Some(stem) = path.strip_prefix(&folder).and_then(|file| file.strip_suffix(".cu")) else {
                continue;
            };
            if !kernel.bodies.iter().any(|body| body.family.name() == stem) {
                return fail(format!(
                    "{path} is no body that is declared: declare `body {stem}`, or name a header `.cuh`"
                ));
            }
        }
        let is_any = |arg: &&Arg| matches!(arg.kind, ArgKind::Tensor { tolerance: Tolerance::Any, .. });
        if let (false, Some(arg)) = (source.has_check, kernel.args.iter().find(is_any))
            && has_schedules(&kernel)
        {
            return fail(format!(
                "schedules may differ in `{}` as they like (`#[tolerance(any)]`), and the folder has no check.rs that would tell right \
                 results from wrong ones: write it, or give the tensor a bound",
                arg.name
            ));
        }
        let renderer = Renderer::new(source)?;
        Ok(Generator { kernel, renderer })
    }

    /// The declaration.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// A spec of this kernel. See [`KernelSpec::new`].
    ///
    /// # Errors
    /// [`Error::Spec`] for a value the declaration does not allow.
    pub fn spec(&self, values: &[(&str, Value)]) -> Result<KernelSpec, Error> {
        KernelSpec::new(&self.kernel, values)
    }

    /// The tuning space of `spec` on `arch`: what fits, the preferred first, and what does not, with the reason.
    ///
    /// # Errors
    /// [`Error::NoBody`] or [`Error::NoCandidate`] when nothing can run there.
    pub fn candidates(&self, spec: &Arc<KernelSpec>, arch: Arch) -> Result<Candidates, Error> {
        self.candidates_within(spec, arch, &arch.limits())
    }

    /// As [`candidates`](Self::candidates), with the limits of a GPU at hand instead of its architecture's.
    ///
    /// # Errors
    /// As [`candidates`](Self::candidates).
    pub fn candidates_within(
        &self,
        spec: &Arc<KernelSpec>,
        arch: Arch,
        limits: &Limits,
    ) -> Result<Candidates, Error> {
        budget::candidates(&self.kernel, spec, arch, limits)
    }

    /// The places of candidates in the order in which the analytic model expects them to be fast on a GPU, the best
    /// first. `dims` are the launch's dimensions by their names in the declaration; without those that the grid needs,
    /// occupancy alone decides.
    pub fn rank(&self, candidates: &[&Candidate], machine: &Machine, dims: &[(&str, i64)]) -> Vec<usize> {
        model::rank(&self.kernel, candidates, machine, dims)
    }

    /// Whether a launch on a GPU is worth making an optional argument for: whether a body that runs there says so in its `worth`.
    /// `dims` are the launch's dimensions by their names in the declaration.
    pub fn is_worth(
        &self,
        arg: &str,
        spec: &KernelSpec,
        arch: Arch,
        machine: &Machine,
        dims: &[(&str, i64)],
    ) -> bool {
        model::is_worth(&self.kernel, arg, spec, (arch, machine), dims)
    }

    /// Renders a candidate.
    ///
    /// # Errors
    /// [`Error::Template`] when the body does not render.
    pub fn render(&self, candidate: &Candidate) -> Result<Variant, Error> {
        self.renderer.render(&self.kernel, candidate)
    }

    /// The specs whose sources are committed: every combination of the declaration's `ship` values.
    ///
    /// # Errors
    /// As [`spec`](Self::spec).
    pub fn shipped_specs(&self) -> Result<Vec<Arc<KernelSpec>>, Error> {
        let shipped = |param: &SpecParam| {
            let shipped = self.kernel.ship.iter().find(|shipped| shipped.name == param.name);
            match shipped {
                Some(shipped) => shipped.values.all(),
                None if param.default.is_some() => Vec::new(),
                None => param.values.all()[..1].to_vec(),
            }
        };
        self.points(shipped).iter().map(|point| self.spec(point).map(Arc::new)).collect()
    }

    /// Every spec that the declaration allows, without functions.
    pub fn every_spec(&self) -> Vec<KernelSpec> {
        let all = self.points(|param| param.values.all());
        // What is refused here are values that do not go together.
        all.iter().filter_map(|point| self.spec(point).ok()).collect()
    }

    /// Every combination of the values of each parameter; one without values is left out.
    fn points(&self, values_of: impl Fn(&SpecParam) -> Vec<Value>) -> Vec<Vec<(&str, Value)>> {
        let mut points: Vec<Vec<(&str, Value)>> = vec![Vec::new()];
        for param in &self.kernel.specialize {
            let values = values_of(param);
            if values.is_empty() {
                continue;
            }
            let name = param.name.as_str();
            let with = |(point, &value): (&Vec<_>, _)| [&point[..], &[(name, value)]].concat();
            points = points
                .iter()
                .flat_map(|point| values.iter().map(move |value| (point, value)))
                .map(with)
                .collect();
        }
        points
    }

    /// The variants whose sources are committed: for each shipped spec, what is preferred on each shipped architecture
    /// that can run it. Not every kernel has a body for every architecture, nor fits the shared memory of each.
    ///
    /// # Errors
    /// As [`candidates`](Self::candidates), when no shipped architecture can run a spec, and [`render`](Self::render).
    pub fn shipped(&self) -> Result<Vec<Variant>, Error> {
        let mut variants: Vec<Variant> = Vec::new();
        for spec in self.shipped_specs()? {
            let (mut runs, mut refused) = (false, None);
            for arch in Arch::SHIPPED {
                let candidates = match self.candidates(&spec, arch) {
                    Ok(candidates) => candidates,
                    Err(error) => {
                        refused = Some(error);
                        continue;
                    }
                };
                runs = true;
                let preferred = &candidates.accepted[0];
                if !variants.iter().any(|variant| variant.name == preferred.name()) {
                    variants.push(self.render(preferred)?);
                }
            }
            if let Some(error) = refused.filter(|_| !runs) {
                return Err(error);
            }
        }
        Ok(variants)
    }
}

/// Whether there is anything to choose among: several bodies, or several values of a `tune` parameter.
fn has_schedules(kernel: &Kernel) -> bool {
    let mut params =
        kernel.bodies.iter().flat_map(|body| body.tune_on.iter().flat_map(|on| &on.tune).chain(&body.tune));
    kernel.bodies.len() > 1 || params.any(|param| param.values.len() > 1)
}
