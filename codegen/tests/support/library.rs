//! Compiling generated bindings, without the library that they are for.

use std::path::Path;
use std::process::Command;

/// What the bindings use of the library: its types, and a binder that takes dimensions and parameters from `VALUES`.
pub const LIBRARY: &str = r#"
pub mod codegen {
    use std::borrow::Cow;
    pub struct KernelSource {
        pub name: Cow<'static, str>,
        pub declaration: Cow<'static, str>,
        pub files: Cow<'static, [(Cow<'static, str>, Cow<'static, str>)]>,
        pub has_check: bool,
    }
    #[non_exhaustive] #[derive(Clone, Copy)] pub enum Family { Sm80, Sm90 }
    pub struct Schedule { pub family: Family }
    pub struct Candidate { pub schedule: Schedule }
}
#[derive(Debug)] pub struct Tensor;
pub enum DType { F16, Bf16, F32, I32, U8 }
pub mod launch {
    use crate::{DType, Tensor, codegen::*};
    use std::sync::Mutex;
    pub static VALUES: Mutex<Vec<(&'static str, i64)>> = Mutex::new(Vec::new());
    fn value_of(name: &str) -> i64 {
        VALUES.lock().unwrap().iter().find(|(known, _)| *known == name).map_or(1, |(_, value)| *value)
    }
    #[derive(Debug)] pub struct BindError(pub String);
    pub struct Bound<P> { pub params: P, pub grid: [i64; 3], pub maps: Vec<[i64; 2]> }
    pub struct Dim;
    impl Dim {
        pub const fn exact(_: &'static str) -> Self { Dim }
        pub const fn broadcast(_: &'static str) -> Self { Dim }
    }
    pub enum Access { Read, Out, InOut, Scratch, Counters }
    pub enum Tolerance { Exact, Close(f64), Share(f64), Any }
    pub struct TensorDecl {
        pub name: &'static str,
        pub dtype: Option<DType>,
        pub dims: &'static [Dim],
        pub access: Access,
        pub tolerance: Tolerance,
    }
    pub struct TensorArg<'a>(&'static TensorDecl, &'a Tensor);
    impl<'a> TensorArg<'a> {
        pub fn given((decl, tensor): (&'static TensorDecl, Option<&'a Tensor>)) -> Option<Self> {
            tensor.map(|tensor| TensorArg(decl, tensor))
        }
    }
    pub struct BoundTensor<const S: usize> { pub pointer: u64, pub strides: [i64; S] }
    pub struct Binder { maps: Vec<[i64; 2]> }
    impl Binder {
        pub fn new(_: &'static str, _: &'static str, _: &Candidate) -> Result<Self, BindError> { Ok(Binder { maps: vec![] }) }
        pub fn dtype(&self, _: &Candidate, _: &str) -> Result<DType, BindError> { Ok(DType::F16) }
        pub fn constant(&self, _: &Candidate, name: &str) -> Result<i64, BindError> { Ok(value_of(name)) }
        pub fn input<const D: usize, const S: usize>(
            &mut self, _: &'static str, _: Option<&Tensor>, _: DType, _: usize, _: [Dim; D],
        ) -> Result<BoundTensor<S>, BindError> { Ok(BoundTensor { pointer: 0, strides: [0; S] }) }
        pub fn output<const D: usize, const S: usize>(
            &mut self, _: &'static str, _: Option<&Tensor>, _: DType, _: usize, _: [Dim; D],
        ) -> Result<BoundTensor<S>, BindError> { Ok(BoundTensor { pointer: 0, strides: [0; S] }) }
        pub fn tensor_map(&mut self, _: &'static str, _: Option<&Tensor>, sides: [i64; 2]) -> Result<(), BindError> {
            self.maps.push(sides);
            Ok(())
        }
        pub fn dim(&self, name: &str) -> i64 { value_of(name) }
        pub fn derive(&self, _: &'static str, value: i64, _: &'static str) -> Result<i64, BindError> { Ok(value) }
        pub fn require(
            &self, condition: &'static str, _: &[(&str, i64)], _: &str, holds: impl FnOnce() -> Option<bool>,
        ) -> Result<(), BindError> {
            match holds() {
                Some(true) => Ok(()),
                Some(false) => Err(BindError("refused".to_owned())),
                None => Err(BindError(format!("no value: {condition}"))),
            }
        }
        pub fn value(
            &self, expression: &'static str, _: &[(&str, i64)], value: impl FnOnce() -> Option<i64>,
        ) -> Result<i64, BindError> { value().ok_or_else(|| BindError(format!("no value: {expression}"))) }
        pub fn ceil_div(a: i64, b: i64) -> Option<i64> { a.checked_add(b.checked_sub(1)?)?.checked_div(b) }
        pub fn int(&self, value: i64) -> Result<i32, BindError> { Ok(value as i32) }
        pub fn persistent(&mut self) {}
        pub fn queue(&mut self) {}
        pub fn no_body(&self, _: Family) -> BindError { BindError("no body".to_owned()) }
        pub fn finish<P>(self, params: P, grid: [i64; 3]) -> Result<Bound<P>, BindError> {
            Ok(Bound { params, grid, maps: self.maps })
        }
    }
    pub unsafe trait KernelArgs {
        const KERNEL: &'static str;
        const DECLARATION: &'static str;
        type Params: Copy;
        fn bind(&self, candidate: &Candidate) -> Result<Bound<Self::Params>, BindError>;
        fn tensors(&self) -> Vec<TensorArg<'_>> { Vec::new() }
    }
}
"#;

/// Runs rustc in `folder`; what it says where it fails.
pub fn rustc(folder: &Path, arguments: &[&str]) -> Result<(), String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(rustc).arg("--edition=2024").args(arguments).current_dir(folder).output().unwrap();
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}
