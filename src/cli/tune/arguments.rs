//! The arguments of a launch, made as a declaration has them.

use super::noise::Noise;
use crate::cli::error::CliError;
use crate::cli::tensor_file::{RawTensor, TensorFile};
use tilewright::codegen::KernelSpec;
use tilewright::launch::{Access, BindError, Dim, DynamicArgs, DynamicKernel, DynamicTensor};
use tilewright::output::printable;
use tilewright::tensor::{element_count, host_count};
use tilewright::{DType, Device, Error, Tensor};

/// What a launch is given.
pub struct Arguments<'a> {
    kernel: DynamicKernel,
    tensors: Vec<Planned<'a>>,
    scalars: Vec<(String, f64)>,
    extents: Vec<(&'static str, i64)>,
}

/// A tensor to make.
struct Planned<'a> {
    tensor: &'static DynamicTensor,
    dtype: DType,
    shape: Vec<usize>,
    /// The values that a file has for it.
    values: Option<RawTensor<'a>>,
}

/// The option that says extents, in the place of an argument that does.
const DIMS: &str = "--dims";

/// What an error calls the dimensions whose extents have to be said.
const SAID: &str = "its dimensions";

impl Planned<'_> {
    /// Whether the kernel reads what it is filled with.
    fn is_noise(&self) -> bool {
        self.values.is_none() && matches!(self.tensor.decl.access, Access::Read | Access::InOut)
    }
}

impl<'a> Arguments<'a> {
    /// Looks whether what is given is what the declaration asks for. Nothing is made yet.
    pub fn plan(
        kernel: DynamicKernel,
        spec: &KernelSpec,
        dims: &[(String, i64)],
        scalars: Vec<(String, f64)>,
        file: Option<&'a TensorFile>,
    ) -> Result<Self, CliError> {
        let bound = |error: BindError| CliError::from(Error::from(error));
        DynamicArgs::check_scalars(kernel, &scalars).map_err(bound)?;
        let given = file.map_or(Ok(Vec::new()), TensorFile::all)?;
        let mut tensors = taken(kernel, spec, given).map_err(bound)?;
        let extents = Extents::of(kernel, &tensors, dims).and_then(|free| kernel.extents(spec, &free.known));
        let extents = extents.map_err(bound)?;
        for planned in tensors.iter_mut().filter(|planned| planned.values.is_none()) {
            planned.shape = shape(kernel, planned.tensor, &extents).map_err(bound)?;
            let count = if planned.is_noise() { host_count } else { element_count };
            count(&planned.shape, planned.dtype)?;
        }
        let extents = extents.into_iter().filter(|(dim, _)| has(&tensors, dim)).collect();
        Ok(Arguments { kernel, tensors, scalars, extents })
    }

    /// Extents by dimension.
    pub fn extents(&self) -> &[(&'static str, i64)] {
        &self.extents
    }

    /// The arguments on a device.
    pub fn make(&self, device: &Device) -> Result<DynamicArgs, CliError> {
        let mut noise = Noise::default();
        let mut make = |planned: &Planned<'_>| -> Result<_, Error> {
            let Planned { tensor, dtype, shape, values } = planned;
            let made = match values {
                Some(values) => Tensor::from_bytes(*dtype, values.bytes, shape)?.to(device)?,
                None if planned.is_noise() => noise.tensor(*dtype, shape)?.to(device)?,
                None => Tensor::zeros_on(device, *dtype, shape)?,
            };
            Ok((tensor.decl.name.to_owned(), made))
        };
        let tensors = self.tensors.iter().map(&mut make).collect::<Result<Vec<_>, _>>()?;
        Ok(DynamicArgs::new(self.kernel, tensors, &self.scalars).map_err(Error::from)?)
    }
}

/// The tensors of the launch: those that must be given, and optional ones that the file has.
fn taken<'a>(
    kernel: DynamicKernel,
    spec: &KernelSpec,
    mut given: Vec<(String, RawTensor<'a>)>,
) -> Result<Vec<Planned<'a>>, BindError> {
    let mut all = Vec::new();
    for tensor in kernel.tensors() {
        let at = given.iter().position(|(name, _)| name == tensor.decl.name);
        let values = at.map(|at| given.remove(at).1);
        if tensor.optional && values.is_none() {
            continue;
        }
        let arg = tensor.decl.name;
        let Some(dtype) = tensor.dtype(spec) else { unreachable!("a spec has a value for every parameter") };
        let mut shape = Vec::new();
        if let Some(values) = &values {
            let kernel = kernel.kernel().name.as_str();
            if values.dtype != dtype {
                return Err(BindError::DType { kernel, arg, found: values.dtype, needed: dtype });
            }
            shape.clone_from(&values.shape);
            if shape.len() != tensor.decl.dims.len() {
                let dims = dims_of(tensor).map(Dim::name).collect::<Vec<_>>().join(", ");
                return Err(BindError::Rank { kernel, arg, shape, dims });
            }
            let wrong = |(_, extent): &(_, &usize)| !i32::try_from(**extent).is_ok_and(|extent| extent > 0);
            if let Some((dim, &found)) = dims_of(tensor).zip(&shape).find(wrong) {
                return Err(BindError::Extent { kernel, dim: dim.name(), arg, found });
            }
        }
        all.push(Planned { tensor, dtype, shape, values });
    }
    match given.first() {
        Some((name, _)) => {
            let tensors = kernel.tensors().iter().map(|tensor| tensor.decl.name);
            let name = printable(name);
            let found = format!("`--inputs` has a tensor `{name}` that is none of its arguments");
            Err(kernel.names(found, "its tensors", tensors))
        }
        None => Ok(all),
    }
}

fn dims_of(tensor: &DynamicTensor) -> impl Iterator<Item = &'static Dim> + use<> {
    tensor.decl.dims.iter()
}

/// Whether a tensor of the launch has a dimension.
fn has(tensors: &[Planned<'_>], dim: &str) -> bool {
    tensors.iter().any(|planned| dims_of(planned.tensor).any(|has| has.name() == dim))
}

/// Extents of dimensions that the declaration does not compute, each with what says it.
struct Extents {
    known: Vec<(&'static str, i64)>,
    from: Vec<&'static str>,
}

impl Extents {
    /// Those of the file's tensors, and what `--dims` says of the others.
    fn of(
        kernel: DynamicKernel,
        tensors: &[Planned<'_>],
        given: &[(String, i64)],
    ) -> Result<Self, BindError> {
        let mut extents = Extents { known: Vec::new(), from: Vec::new() };
        let free = kernel.free_dims();
        let (mut needed, mut repeated) = (Vec::new(), Vec::new());
        for Planned { tensor, shape, values, .. } in tensors {
            for (axis, dim) in dims_of(tensor).enumerate().filter(|(_, dim)| free.contains(&dim.name())) {
                let (dim, arg) = (dim, tensor.decl.name);
                match values {
                    Some(_) if dim.is_broadcast() && shape[axis] == 1 => repeated.push(dim.name()),
                    Some(_) => {
                        let extent = i64::try_from(shape[axis]).unwrap_or(i64::MAX);
                        extents.add(kernel, dim.name(), extent, arg)?;
                    }
                    None => needed.push(dim.name()),
                }
            }
        }
        let of_launch = || free.iter().copied().filter(|dim| has(tensors, dim));
        for (at, (name, extent)) in given.iter().enumerate() {
            let Some(dim) = of_launch().find(|dim| dim == name) else {
                let found = match kernel.kernel().dims().contains(&name.as_str()) {
                    true if free.contains(&name.as_str()) => "is of no tensor that is given",
                    true => "is computed from others",
                    false => "is no dimension",
                };
                let found = format!("`{name}` in `{DIMS}` {found}");
                return Err(kernel.names(found, SAID, of_launch()));
            };
            if given[..at].iter().any(|(known, _)| known == name) {
                let found = format!("`{name}` is twice in `{DIMS}`");
                return Err(kernel.names(found, SAID, of_launch()));
            }
            extents.add(kernel, dim, *extent, DIMS)?;
        }
        let is_known = |dim: &str| extents.known.iter().any(|(known, _)| *known == dim);
        let mut missing: Vec<&str> = Vec::new();
        for dim in needed {
            if !is_known(dim) && !missing.contains(&dim) {
                missing.push(dim);
            }
        }
        if !missing.is_empty() {
            let missing: Vec<String> = missing.iter().map(|dim| format!("`{dim}`")).collect();
            let found = format!("`{DIMS}` has no extent of {}", missing.join(", "));
            return Err(kernel.names(found, SAID, of_launch()));
        }
        // A dimension that every tensor repeats has an extent of 1.
        repeated.retain(|dim| !is_known(dim));
        repeated.dedup();
        for dim in repeated {
            extents.add(kernel, dim, 1, DIMS)?;
        }
        Ok(extents)
    }

    fn add(
        &mut self,
        kernel: DynamicKernel,
        dim: &'static str,
        extent: i64,
        arg: &'static str,
    ) -> Result<(), BindError> {
        let Some(at) = self.known.iter().position(|(known, _)| *known == dim) else {
            self.known.push((dim, extent));
            self.from.push(arg);
            return Ok(());
        };
        let first = self.known[at].1;
        if first == extent {
            return Ok(());
        }
        let (kernel, first_arg) = (kernel.kernel().name.as_str(), self.from[at]);
        Err(BindError::Disagree { kernel, dim, first, first_arg, second: extent, second_arg: arg })
    }
}

/// The shape of a tensor that is made.
fn shape(
    kernel: DynamicKernel,
    tensor: &'static DynamicTensor,
    extents: &[(&'static str, i64)],
) -> Result<Vec<usize>, BindError> {
    let extent = |dim: &Dim| {
        let extent = extents.iter().find(|(known, _)| *known == dim.name()).map_or(0, |(_, extent)| *extent);
        let fits = i32::try_from(extent).ok().filter(|&extent| extent > 0);
        fits.map(|extent| extent as usize).ok_or_else(|| BindError::Extent {
            kernel: kernel.kernel().name.as_str(),
            dim: dim.name(),
            arg: tensor.decl.name,
            found: usize::try_from(extent).unwrap_or(0),
        })
    };
    dims_of(tensor).map(extent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tensor_file::serialize;
    use std::collections::BTreeMap;
    use tilewright::codegen::{Generator, KernelSource};

    const DECLARATION: &str = "kernel! {
        fn mix(
            x: Tensor<T, [rows, width]>,
            order: Tensor<i32, [rows]>,
            sums: inout Tensor<f32, [rows | 1, width]>,
            seen: Option<Tensor<u8, [rows]>>,
            y: out Tensor<T, [tiles, width]>,
            done: counters Tensor<i32, [tiles]>,
            gain: f32,
        )
        specialize { T: [bf16, f32], TILE: [32, 64] }
        let tiles = ceil_div(rows, TILE);
        body sm80 { launch { grid = [tiles, 1, 1], threads = TILE } }
    }";

    /// What is made of a call, by name: shapes, dtypes and values.
    fn made(dims: &[(&str, i64)], file: Option<&TensorFile>) -> BTreeMap<String, Tensor> {
        let files = vec![("mix/sm80.cu".into(), "".into())];
        let source = KernelSource {
            name: "mix".into(),
            declaration: DECLARATION.into(),
            files: files.into(),
            has_check: false,
        };
        let kernel = DynamicKernel::new(source.clone()).unwrap();
        let generator = Generator::new(&source).unwrap();
        let spec = generator.spec(&[("T", DType::Bf16.into()), ("TILE", 64.into())]).unwrap();
        let dims: Vec<_> = dims.iter().map(|&(name, extent)| (name.to_owned(), extent)).collect();
        let scalars = vec![("gain".to_owned(), 0.5)];
        let arguments = Arguments::plan(kernel, &spec, &dims, scalars, file).unwrap();
        let args = arguments.make(&Device::Cpu).unwrap();
        args.tensors().iter().map(|arg| (arg.decl().name.to_owned(), arg.tensor().clone())).collect()
    }

    #[test]
    fn tensors_are_made_as_the_declaration_has_them() {
        let made = made(&[("width", 8), ("rows", 100)], None);
        let shapes: Vec<_> =
            made.iter().map(|(name, made)| (name.as_str(), made.dtype(), made.shape())).collect();
        let (bf16, f32, i32) = (DType::Bf16, DType::F32, DType::I32);
        let expected: [(_, _, &[usize]); 5] = [
            ("done", i32, &[2]),
            ("order", i32, &[100]),
            ("sums", f32, &[100, 8]),
            ("x", bf16, &[100, 8]),
            ("y", bf16, &[2, 8]),
        ];
        assert_eq!(shapes, expected);
        // Real numbers that are read are noise, and no two tensors the same; what is counted or only written is 0.
        for name in ["x", "sums"] {
            let values = made[name].to_f32_vec().unwrap();
            let variance = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
            assert!((0.8..1.2).contains(&variance), "{name}: {variance}");
        }
        assert_ne!(made["x"].to_f32_vec().unwrap()[..8], made["sums"].to_f32_vec().unwrap()[..8]);
        assert!(made["y"].to_f32_vec().unwrap().iter().all(|&y| y == 0.0));
        for name in ["done", "order"] {
            assert!(made[name].to_vec::<i32>().unwrap().iter().all(|&number| number == 0), "{name}");
        }
    }

    #[test]
    fn a_file_s_tensors_are_taken_as_they_are() {
        let ints: Vec<u8> = (0..3).rev().flat_map(i32::to_le_bytes).collect();
        let tensors = [
            ("order", safetensors::Dtype::I32, vec![3], ints),
            ("seen", safetensors::Dtype::U8, vec![3], vec![7, 8, 9]),
            ("sums", safetensors::Dtype::F32, vec![1, 2], vec![0; 8]),
        ];
        let bytes = serialize(&tensors, &BTreeMap::new()).unwrap();
        let file = TensorFile::embedded("inputs", bytes.leak()).unwrap();
        let made = made(&[], Some(&file));
        assert_eq!(made["order"].to_vec::<i32>().unwrap(), [2, 1, 0]);
        assert_eq!(made["seen"].to_vec::<u8>().unwrap(), [7, 8, 9]);
        assert_eq!((made["sums"].shape(), made["sums"].to_f32_vec().unwrap()), (&[1, 2][..], vec![0.0; 2]));
        assert_eq!((made["x"].shape(), made["y"].shape()), (&[3, 2][..], &[1, 2][..]));
    }
}
