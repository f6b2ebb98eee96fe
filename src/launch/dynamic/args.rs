//! Arguments by name, checked against a declaration and launched.

use super::rule::Values;
use super::{DynamicKernel, Field, FieldValue};
use crate::codegen::Candidate;
use crate::codegen::dsl::ScalarType;
use crate::launch::declared::bucket;
use crate::launch::{BindError, Binder, Bound, FunctionArgs, Kernel, TensorArg, TensorDecl, Tuned, Verdict};
use crate::{Error, Tensor};
use smallvec::SmallVec;

/// The arguments of a launch, by name. Tensors are shared, not copied: what the kernel writes is seen by every clone
/// of them.
#[derive(Debug)]
pub struct DynamicArgs {
    kernel: DynamicKernel,
    /// One for each tensor of the declaration.
    tensors: Vec<Option<Tensor>>,
    /// The bytes of each scalar.
    scalars: Vec<[u8; 4]>,
}

impl DynamicArgs {
    /// The arguments of these names. A scalar of type `f32` is rounded to it.
    ///
    /// # Errors
    /// [`BindError::Names`] for a name that the declaration does not have or that is given twice, for what is
    /// missing, and for a number that is none of the scalar's.
    pub fn new(
        kernel: DynamicKernel,
        tensors: Vec<(String, Tensor)>,
        scalars: &[(String, f64)],
    ) -> Result<Self, BindError> {
        let declared = kernel.declared;
        let all = || declared.tensors.iter().map(|tensor| tensor.decl.name);
        let wrong = |found| kernel.names(found, "its tensors", all());
        let mut placed: Vec<Option<Tensor>> = declared.tensors.iter().map(|_| None).collect();
        for (name, tensor) in tensors {
            let at = all().position(|known| *known == name);
            let at = at.ok_or_else(|| wrong(format!("there is no tensor `{name}`")))?;
            if placed[at].replace(tensor).is_some() {
                return Err(wrong(format!("the tensor `{name}` is given twice")));
            }
        }
        let missing =
            declared.tensors.iter().zip(&placed).find(|(decl, given)| !decl.optional && given.is_none());
        if let Some((tensor, _)) = missing {
            return Err(wrong(format!("the tensor `{}` is not given", tensor.decl.name)));
        }
        Ok(DynamicArgs { kernel, tensors: placed, scalars: scalar_bytes(kernel, scalars)? })
    }

    /// Looks whether these scalars are those of a kernel.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn check_scalars(kernel: DynamicKernel, scalars: &[(String, f64)]) -> Result<(), BindError> {
        scalar_bytes(kernel, scalars).map(drop)
    }

    /// The tensors given, in the declaration's order.
    pub fn tensors(&self) -> Vec<TensorArg<'_>> {
        let decls = self.kernel.declared.tensors.iter().map(|tensor| &tensor.decl);
        decls
            .zip(&self.tensors)
            .map(|(decl, tensor)| (decl, tensor.as_ref()))
            .filter_map(TensorArg::given)
            .collect()
    }

    /// Checks every argument against the declaration and the candidate's specialisation, as bindings do.
    ///
    /// # Errors
    /// Those of [`KernelArgs::bind`](crate::launch::KernelArgs::bind).
    pub fn bind(&self, candidate: &Candidate) -> Result<Bound<Vec<u8>>, BindError> {
        let declared = self.kernel.declared;
        let kernel = declared.kernel;
        let mut binder = Binder::new(&kernel.name, &kernel.declaration, candidate)?;
        let mut tensors: SmallVec<[(u64, SmallVec<[i64; 4]>); 16]> = SmallVec::new();
        for (tensor, given) in declared.tensors.iter().zip(&self.tensors) {
            let TensorDecl { name, dtype, dims, access, .. } = tensor.decl;
            let dtype = match (dtype, tensor.param) {
                (None, Some(param)) => binder.dtype(candidate, param)?,
                (Some(dtype), _) => dtype,
                (None, None) => unreachable!("a tensor has an element type"),
            };
            let mut strides = SmallVec::from_elem(0, dims.len() - 1);
            let elements = (dtype, tensor.align);
            let pointer =
                binder.tensor_of(name, given.as_ref(), elements, dims, access.writes(), &mut strides)?;
            tensors.push((pointer, strides));
        }
        let dims = declared.free.iter().map(|&dim| (dim, binder.dim(dim))).collect();
        let mut values = Values { kernel: &kernel.name, constant: &|name| candidate.constant(name), dims };
        for (dim, rule) in &declared.derived {
            let value = rule.value(&values)?;
            values.dims.push((*dim, binder.derive(dim, value, rule.text)?));
        }
        declared.expect_met(&values)?;
        let family = candidate.schedule.family;
        let body = declared.bodies.iter().find(|body| body.family == family);
        let body = body.ok_or_else(|| binder.no_body(family))?;
        for (at, sides) in &body.maps {
            let (name, given) = (declared.tensors[*at].decl.name, self.tensors[*at].as_ref());
            let [rows, columns] = sides;
            let sides = [rows.value(&values)?, columns.value(&values)?];
            binder.tensor_map(name, given, sides)?;
        }
        if body.persistent {
            binder.persistent();
        }
        if body.queue {
            binder.queue();
        }
        let [x, y, z] = &body.grid;
        let grid = [x.value(&values)?, y.value(&values)?, z.value(&values)?];
        let mut params = vec![0; declared.params_size];
        for Field { offset, value } in &declared.fields {
            let mut at = *offset;
            let mut put = |bytes: &[u8]| {
                params[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            };
            match value {
                FieldValue::Pointer(tensor) => put(&tensors[*tensor].0.to_ne_bytes()),
                FieldValue::Strides(tensor) => {
                    tensors[*tensor].1.iter().for_each(|stride| put(&stride.to_ne_bytes()));
                }
                FieldValue::Dim(dim) => {
                    let extent = values.get(dim).unwrap_or_default();
                    put(&binder.int(extent)?.to_ne_bytes());
                }
                FieldValue::Scalar(scalar) => put(&self.scalars[*scalar]),
                FieldValue::Padding => {}
            }
        }
        binder.finish(params, grid)
    }

    /// Checks the arguments and puts the launch on the kernel's stream.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    ///
    /// # Safety
    /// As for [`Kernel::launch`].
    pub unsafe fn launch(&self, kernel: &Kernel, functions: Option<&FunctionArgs>) -> Result<(), Error> {
        let bind = |candidate: &Candidate| self.bind(candidate);
        // SAFETY: `bind` says what the generated one says, by the layout that the CUDA struct is written from: all
        // bytes of the struct, with addresses of tensors that `self` holds. The caller answers for the body.
        unsafe { kernel.launch_bound(&self.kernel.kernel().name, bind, |params| params, functions) }
    }

    /// As [`Tuned::launch`], without device functions: their slots are empty. Schedules are checked against the first
    /// alone, for a `check.rs` is Rust of the crate that the kernel belongs to: it is asked about the winner when the
    /// crate first launches by the record.
    ///
    /// # Errors
    /// As [`Tuned::launch`].
    ///
    /// # Safety
    /// As for [`Tuned::launch`].
    pub unsafe fn launch_tuned(&self, tuned: &Tuned) -> Result<(), Error> {
        let slots = vec![None; self.kernel.kernel().functions.len()];
        let functions = (!slots.is_empty()).then(|| FunctionArgs::new(&tuned.device, tuned.spec(), &slots));
        let functions = functions.transpose()?;
        // SAFETY: the caller's.
        let launch = |kernel: &Kernel| unsafe { self.launch(kernel, functions.as_ref()) };
        let nothing_to_ask: &dyn Fn(&Kernel) -> Verdict = &|_| Ok(Ok(()));
        let check = (!tuned.shared.has_check).then_some(nothing_to_ask);
        tuned.run(bucket(&self.tensors()), &|| self.tensors(), &launch, check)
    }
}

/// The bytes of every scalar of the declaration.
fn scalar_bytes(kernel: DynamicKernel, given: &[(String, f64)]) -> Result<Vec<[u8; 4]>, BindError> {
    let wrong = |found| kernel.names(found, "its scalars", kernel.scalars());
    if let Some((name, _)) = given.iter().find(|(name, _)| !kernel.scalars().any(|known| known == name)) {
        return Err(wrong(format!("there is no scalar `{name}`")));
    }
    let bytes = |&(name, scalar): &(&'static str, ScalarType)| {
        let mut values = given.iter().filter(|(known, _)| known == name).map(|(_, value)| *value);
        let value = values.next().ok_or_else(|| wrong(format!("the scalar `{name}` is not given")))?;
        if values.next().is_some() {
            return Err(wrong(format!("the scalar `{name}` is given twice")));
        }
        match scalar {
            ScalarType::F32 if value.is_finite() && (value as f32).is_infinite() => {
                let most = f32::MAX;
                Err(wrong(format!(
                    "the scalar `{name}` is {value:e}, needed a number from {:e} to {most:e}",
                    -most
                )))
            }
            ScalarType::F32 => Ok((value as f32).to_ne_bytes()),
            ScalarType::I32 if f64::from(value as i32) == value => Ok((value as i32).to_ne_bytes()),
            ScalarType::I32 => {
                Err(wrong(format!("the scalar `{name}` is {value}, needed a whole number of 32 bits")))
            }
        }
    };
    kernel.declared.scalars.iter().map(bytes).collect()
}
