//! Launches by declarations that are read at run time, beside the bindings that were made of them.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex};
use tilewright::codegen::{Candidate, KernelSource};
use tilewright::launch::{BindError, Bound, DynamicArgs, DynamicKernel, KernelArgs, bucket};

/// The files of a shipped kernel as its folder has them.
pub fn source(name: &str) -> KernelSource {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    KernelSource::read(&folder, name).unwrap()
}

/// A shipped kernel, read from its folder once.
pub fn kernel(name: &str) -> DynamicKernel {
    static READ: LazyLock<Mutex<HashMap<String, DynamicKernel>>> = LazyLock::new(Mutex::default);
    let mut read = READ.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let new = || DynamicKernel::new(source(name)).unwrap();
    *read.entry(name.to_owned()).or_insert_with(new)
}

/// The same arguments, by their names.
pub fn by_name<A: KernelArgs>(kernel: DynamicKernel, args: &A, scalars: &[(&str, f64)]) -> DynamicArgs {
    let tensors = args.tensors();
    let tensors = tensors.iter().map(|arg| (arg.decl().name.to_owned(), arg.tensor().clone())).collect();
    let scalars: Vec<_> = scalars.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    DynamicArgs::new(kernel, tensors, &scalars).unwrap()
}

/// Binds arguments of a shipped kernel by its bindings, and by its declaration as it is read now: both say the same, and
/// a record that one of them leaves is for sizes that the other looks it up for.
pub fn bind<A: KernelArgs>(
    args: &A,
    scalars: &[(&str, f64)],
    candidate: &Candidate,
) -> Result<Bound<A::Params>, BindError> {
    let bound = args.bind(candidate);
    let by_name = by_name(kernel(A::KERNEL), args, scalars);
    assert_eq!(bucket(&by_name.tensors()), bucket(&args.tensors()));
    let read = by_name.bind(candidate);
    match (&bound, read) {
        (Ok(bound), Ok(read)) => {
            // SAFETY: `KernelArgs` says that `Params` has no padding.
            let bytes = unsafe {
                std::slice::from_raw_parts((&raw const bound.params).cast::<u8>(), size_of::<A::Params>())
            };
            assert_eq!(read.params, bytes, "{}", A::KERNEL);
            assert_eq!((read.grid, read.folded), (bound.grid, bound.folded));
            assert_eq!((read.persistent, read.queue, read.on), (bound.persistent, bound.queue, bound.on));
            assert_eq!(read.tensor_maps, bound.tensor_maps);
        }
        (bound, read) => assert_eq!(bound.as_ref().err(), read.as_ref().err(), "{}", A::KERNEL),
    }
    bound
}
