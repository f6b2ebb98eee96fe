//! What a declaration says of its tensors, and the tensors that a launch gives for them.

use super::Dim;
use crate::codegen::dsl::{Access, Tolerance};
use crate::tune::Bucket;
use crate::{DType, Tensor};

/// A tensor argument as its kernel declares it; generated.
#[derive(Debug, Clone, Copy)]
pub struct TensorDecl {
    /// The argument's name.
    pub name: &'static str,
    /// The element type; absent where it is a parameter of the specialisation.
    pub dtype: Option<DType>,
    /// Its dimensions.
    pub dims: &'static [Dim],
    /// What the kernel does with it.
    pub access: Access,
    /// How far two schedules may be apart in it.
    pub tolerance: Tolerance,
}

impl TensorDecl {
    /// Its shape, every dimension having the extent that `extent` says.
    pub fn shape(&self, extent: impl Fn(&'static str) -> usize) -> Vec<usize> {
        self.dims.iter().map(|dim| extent(dim.name())).collect()
    }
}

/// A tensor that a launch gives, with its declaration.
#[derive(Debug, Clone, Copy)]
pub struct TensorArg<'a> {
    pub(super) decl: &'static TensorDecl,
    pub(super) tensor: &'a Tensor,
}

impl<'a> TensorArg<'a> {
    /// The argument, where it is given. Generated bindings call it; nobody else needs to.
    pub fn given((decl, tensor): (&'static TensorDecl, Option<&'a Tensor>)) -> Option<Self> {
        tensor.map(|tensor| TensorArg { decl, tensor })
    }

    /// Its declaration.
    pub fn decl(&self) -> &'static TensorDecl {
        self.decl
    }

    /// The tensor.
    pub fn tensor(&self) -> &'a Tensor {
        self.tensor
    }
}

/// The sizes for which a launch of these tensors is tuned.
pub fn bucket(args: &[TensorArg<'_>]) -> Bucket {
    let sizes: Vec<i64> = extents(args).into_iter().map(|(_, extent)| extent).collect();
    Bucket::of_extents(&sizes)
}

/// The extents of a launch's dimensions, by name: what its tensors say, the first that does not repeat an extent of 1.
pub(super) fn extents(args: &[TensorArg<'_>]) -> Vec<(&'static str, i64)> {
    let mut extents: Vec<(&'static str, i64)> = Vec::new();
    for (dim, &extent) in args.iter().flat_map(|arg| arg.decl.dims.iter().zip(arg.tensor.shape())) {
        let known = extents.iter_mut().find(|(name, _)| *name == dim.name());
        let extent = i64::try_from(extent).unwrap_or(i64::MAX);
        match known {
            Some((_, known)) if *known == 1 => *known = extent,
            Some(_) => {}
            None => extents.push((dim.name(), extent)),
        }
    }
    extents
}
