//! The checks between tensors and a kernel's `Params`. Generated bindings call them; nobody else needs to.

use super::bound::{Blocks, Bound, BoundTensor, Dim};
use super::{BindError, BoxedTensor};
use crate::codegen::{Candidate, Family};
use crate::tensor::{Region, place_name};
use crate::{DType, Tensor};
use smallvec::SmallVec;

/// An extent with the argument that set it.
#[derive(Debug)]
struct Extent {
    dim: &'static str,
    value: i64,
    arg: &'static str,
}

/// What one tensor argument reaches.
#[derive(Debug)]
struct Reach {
    arg: &'static str,
    region: Region,
    written: bool,
}

/// Collects dimensions from the arguments and checks that they agree.
#[derive(Debug)]
pub struct Binder {
    kernel: &'static str,
    // On the stack up to a size no kernel here reaches: a launch allocates nothing.
    extents: SmallVec<[Extent; 16]>,
    /// Dimensions whose extent of 1 an argument repeats.
    repeated: SmallVec<[&'static str; 4]>,
    /// The first tensor argument and the GPU it is on.
    on: Option<(&'static str, usize)>,
    tensor_maps: SmallVec<[BoxedTensor; 4]>,
    reached: SmallVec<[Reach; 16]>,
    persistent: bool,
    queue: bool,
}

impl Binder {
    /// Starts the checks of one launch.
    ///
    /// # Errors
    /// [`BindError::Candidate`] when the candidate is of another kernel, or of another declaration of that name.
    pub fn new(
        kernel: &'static str,
        declaration: &'static str,
        candidate: &Candidate,
    ) -> Result<Self, BindError> {
        let spec = &*candidate.spec;
        if spec.kernel() != kernel {
            return Err(BindError::Candidate { kernel, found: format!("of `{}`", spec.kernel()) });
        }
        if spec.declaration() != declaration {
            let found = "of another kernel of that name, with a declaration of its own".to_owned();
            return Err(BindError::Candidate { kernel, found });
        }
        Ok(Binder {
            kernel,
            extents: SmallVec::new(),
            repeated: SmallVec::new(),
            on: None,
            tensor_maps: SmallVec::new(),
            reached: SmallVec::new(),
            persistent: false,
            queue: false,
        })
    }

    /// An integer the candidate is specialised with.
    ///
    /// # Errors
    /// [`BindError::Candidate`] when it has none of that name.
    pub fn constant(&self, candidate: &Candidate, name: &str) -> Result<i64, BindError> {
        candidate.constant(name).ok_or_else(|| self.lacks(name))
    }

    /// An element type the candidate is specialised with.
    ///
    /// # Errors
    /// [`BindError::Candidate`] when it has none of that name.
    pub fn dtype(&self, candidate: &Candidate, name: &str) -> Result<DType, BindError> {
        candidate.dtype(name).ok_or_else(|| self.lacks(name))
    }

    fn lacks(&self, name: &str) -> BindError {
        BindError::Candidate { kernel: self.kernel, found: format!("without a value for `{name}`") }
    }

    /// Checks a tensor that is read: place, element type, rank, unit stride, alignment, extents.
    ///
    /// # Errors
    /// The [`BindError`] of the first check that fails.
    pub fn input<const N: usize, const S: usize>(
        &mut self,
        arg: &'static str,
        tensor: Option<&Tensor>,
        dtype: DType,
        align: usize,
        dims: [Dim; N],
    ) -> Result<BoundTensor<S>, BindError> {
        self.tensor(arg, tensor, (dtype, align), dims, false)
    }

    /// Checks a tensor that is written, in the same way. [`finish`](Self::finish) looks at what else lies in its memory.
    ///
    /// # Errors
    /// The [`BindError`] of the first check that fails.
    pub fn output<const N: usize, const S: usize>(
        &mut self,
        arg: &'static str,
        tensor: Option<&Tensor>,
        dtype: DType,
        align: usize,
        dims: [Dim; N],
    ) -> Result<BoundTensor<S>, BindError> {
        self.tensor(arg, tensor, (dtype, align), dims, true)
    }

    fn tensor<const N: usize, const S: usize>(
        &mut self,
        arg: &'static str,
        tensor: Option<&Tensor>,
        elements: (DType, usize),
        dims: [Dim; N],
        written: bool,
    ) -> Result<BoundTensor<S>, BindError> {
        const { assert!(S + 1 == N, "a stride for every dimension but the last") };
        let mut strides = [0; S];
        let pointer = self.tensor_of(arg, tensor, elements, &dims, written, &mut strides)?;
        Ok(BoundTensor { pointer, strides })
    }

    /// Checks a tensor of any number of dimensions, whose dtype and alignment are given. Its address, 0 where it is
    /// absent; `strides` has a place for each of its dimensions but the last.
    pub(super) fn tensor_of(
        &mut self,
        arg: &'static str,
        tensor: Option<&Tensor>,
        (dtype, align): (DType, usize),
        dims: &[Dim],
        written: bool,
        strides: &mut [i64],
    ) -> Result<u64, BindError> {
        let (kernel, last) = (self.kernel, strides.len());
        let Some(tensor) = tensor else {
            return Ok(0);
        };
        if tensor.dtype() != dtype {
            return Err(BindError::DType { kernel, arg, found: tensor.dtype(), needed: dtype });
        }
        if tensor.shape().len() != dims.len() {
            let dims = dims.iter().map(Dim::name).collect::<Vec<_>>().join(", ");
            return Err(BindError::Rank { kernel, arg, shape: tensor.shape().to_vec(), dims });
        }
        let pointer = self.place(arg, tensor)?;
        let align = align.max(dtype.size());
        if tensor.strides()[last] != 1 && tensor.shape()[last] != 1 {
            return Err(BindError::UnitStride { kernel, arg, found: tensor.strides()[last] });
        }
        let misaligned = |what, found: u64| {
            (!found.is_multiple_of(align as u64)).then_some(BindError::Alignment {
                kernel,
                arg,
                what,
                found,
                needed: align,
            })
        };
        if let Some(error) = misaligned("the address", pointer) {
            return Err(error);
        }
        for (axis, dim) in dims.iter().enumerate() {
            let (extent, stride) = (tensor.shape()[axis], tensor.strides()[axis]);
            let Some(value) = i32::try_from(extent).ok().filter(|&extent| extent > 0) else {
                return Err(BindError::Extent { kernel, dim: dim.name(), arg, found: extent });
            };
            let repeated = dim.is_broadcast() && value == 1;
            if repeated {
                self.repeated.push(dim.name());
            } else {
                self.bind(dim.name(), value.into(), arg)?;
            }
            if written && extent > 1 && stride == 0 {
                return Err(BindError::Repeated { kernel, arg, dim: dim.name(), extent });
            }
            // A stride along an extent of 1 is never taken, whatever it says.
            if axis < last && extent > 1 {
                if let Some(error) = misaligned("a stride", (stride * dtype.size()) as u64) {
                    return Err(error);
                }
                strides[axis] = stride as i64;
            }
        }
        self.reached.extend(Region::of(tensor).map(|region| Reach { arg, region, written }));
        Ok(pointer)
    }

    /// Tensors share their memory when they are cloned, so that `&mut` alone does not say that nobody else reads it.
    fn expect_apart(&self) -> Result<(), BindError> {
        for (place, one) in self.reached.iter().enumerate() {
            let shares =
                |other: &&Reach| (one.written || other.written) && one.region.overlaps(&other.region);
            if let Some(other) = self.reached[..place].iter().find(shares) {
                let (written, arg) = if one.written { (one.arg, other.arg) } else { (other.arg, one.arg) };
                return Err(BindError::Aliased { kernel: self.kernel, arg, written });
            }
        }
        Ok(())
    }

    fn place(&mut self, arg: &'static str, tensor: &Tensor) -> Result<u64, BindError> {
        let wrong =
            |needed| Err(BindError::Place { kernel: self.kernel, arg, found: tensor.place(), needed });
        let (Some(pointer), Some(ordinal)) = (tensor.device_pointer(), tensor.ordinal()) else {
            return wrong("a CUDA device".to_owned());
        };
        match self.on {
            Some((_, first)) if first != ordinal => return wrong(place_name(Some(first))),
            Some(_) => {}
            None => self.on = Some((arg, ordinal)),
        }
        Ok(pointer)
    }

    fn bind(&mut self, dim: &'static str, value: i64, arg: &'static str) -> Result<(), BindError> {
        match self.extent(dim) {
            Some(first) if first.value != value => Err(BindError::Disagree {
                kernel: self.kernel,
                dim,
                first: first.value,
                first_arg: first.arg,
                second: value,
                second_arg: arg,
            }),
            Some(_) => Ok(()),
            None => {
                self.extents.push(Extent { dim, value, arg });
                Ok(())
            }
        }
    }

    /// Names are literals, mostly the very same ones: comparing where they are costs a launch less than comparing letters.
    fn extent(&self, dim: &str) -> Option<&Extent> {
        let same = |extent: &&Extent| std::ptr::eq(extent.dim, dim);
        self.extents.iter().find(same).or_else(|| self.extents.iter().find(|extent| extent.dim == dim))
    }

    /// A dimension's extent; 0 when only absent arguments have it, 1 when every argument repeats it.
    pub fn dim(&self, dim: &str) -> i64 {
        let given = self.extent(dim).map(|extent| extent.value);
        given.unwrap_or_else(|| self.repeated.contains(&dim).into())
    }

    /// A derived dimension, checked against the arguments that have it.
    ///
    /// # Errors
    /// [`BindError::Derived`] when one has another extent.
    pub fn derive(&self, dim: &'static str, needed: i64, rule: &'static str) -> Result<i64, BindError> {
        match self.extents.iter().find(|extent| extent.dim == dim && extent.value != needed) {
            Some(&Extent { value, arg, .. }) => {
                Err(BindError::Derived { kernel: self.kernel, dim, arg, found: value, needed, rule })
            }
            None => Ok(needed),
        }
    }

    /// What an expression of the declaration comes to.
    ///
    /// # Errors
    /// [`BindError::Arithmetic`] with the values of its names when it divides by zero or overflows.
    pub fn value(
        &self,
        expression: &'static str,
        values: &[(&str, i64)],
        value: impl FnOnce() -> Option<i64>,
    ) -> Result<i64, BindError> {
        value().ok_or_else(|| BindError::no_value(self.kernel, expression, values))
    }

    /// `a / b` rounded up, as declarations mean it.
    pub fn ceil_div(a: i64, b: i64) -> Option<i64> {
        crate::codegen::dsl::ceil_div(a, b)
    }

    /// A requirement of the declaration.
    ///
    /// # Errors
    /// [`BindError::Require`] with the values when it does not hold, [`BindError::Arithmetic`] when it divides by zero or
    /// overflows.
    pub fn require(
        &self,
        condition: &'static str,
        values: &[(&str, i64)],
        advice: &str,
        holds: impl FnOnce() -> Option<bool>,
    ) -> Result<(), BindError> {
        match holds() {
            Some(true) => Ok(()),
            Some(false) => Err(BindError::unmet(self.kernel, condition, values, advice)),
            None => Err(BindError::no_value(self.kernel, condition, values)),
        }
    }

    /// The error for a candidate of a family the kernel has no body for.
    pub fn no_body(&self, family: Family) -> BindError {
        BindError::Candidate { kernel: self.kernel, found: format!("of family {family}, which has no body") }
    }

    /// Lets the copy engine read boxes of `[rows, columns]` of a tensor that was checked before, where there is one.
    ///
    /// # Errors
    /// [`BindError::TensorMap`] when it cannot: another body of the kernel may.
    pub fn tensor_map(
        &mut self,
        arg: &'static str,
        tensor: Option<&Tensor>,
        [rows, columns]: [i64; 2],
    ) -> Result<(), BindError> {
        let boxed = match tensor {
            Some(tensor) => BoxedTensor::new(arg, tensor, [rows, columns])
                .map_err(|reason| BindError::TensorMap { kernel: self.kernel, arg, reason })?,
            None => BoxedTensor::absent(arg),
        };
        self.tensor_maps.push(boxed);
        Ok(())
    }

    /// Makes the grid count tiles of work instead of blocks.
    pub fn persistent(&mut self) {
        self.persistent = true;
    }

    /// Makes the blocks of a persistent grid take its tiles from a counter.
    pub fn queue(&mut self) {
        self.queue = true;
    }

    /// An extent as `Params` holds it.
    ///
    /// # Errors
    /// [`BindError::Extent`] when a derived extent does not fit 32 bits.
    pub fn int(&self, value: i64) -> Result<i32, BindError> {
        value.try_into().map_err(|_| BindError::Extent {
            kernel: self.kernel,
            dim: "a derived dimension",
            arg: "the arguments",
            found: value.unsigned_abs() as usize,
        })
    }

    /// Checks the grid, and the tensors against each other, and hands everything over.
    ///
    /// # Errors
    /// [`BindError::Aliased`] when a tensor that is written overlaps another, [`BindError::Grid`] when the grid is over CUDA's
    /// limits, also with y and z folded into x.
    pub fn finish<P>(self, params: P, grid: [i64; 3]) -> Result<Bound<P>, BindError> {
        self.expect_apart()?;
        let Some(Blocks { grid, folded }) = Blocks::of(grid, self.persistent) else {
            return Err(BindError::Grid { kernel: self.kernel, grid });
        };
        Ok(Bound {
            params,
            tensor_maps: self.tensor_maps,
            grid,
            folded,
            persistent: self.persistent,
            queue: self.queue,
            on: self.on,
        })
    }
}
