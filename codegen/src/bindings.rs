//! Rust text for a declaration: the `Params` struct, the arguments and their checked binding.

mod tensors;

use crate::constants::Constants;
use crate::dsl::names;
use crate::dsl::{Access, Arg, ArgKind, ElementType, Expr, FieldKind, Kernel, ParamsLayout, ScalarType};
use crate::limits;
use proc_macro2::{Literal, TokenStream};
use quote::{format_ident, quote};
use tensors::{dim_of, element_text, has_tensors, shape_text, tensors_module};

/// The bindings of one kernel as formatted Rust, to stand in a module of the kernel's name.
pub(crate) fn bindings(kernel: &Kernel, paths: &Paths, constants: Constants) -> String {
    // Expressions get parentheses, which are read again here.
    limits::with_room(|| formatted(kernel, paths, constants))
}

/// Where a kernel's files are, relative to the file the bindings will stand in, or absolute.
pub(crate) struct Paths {
    /// `kernel.rs`.
    pub(crate) declaration: String,
    /// Each body, header and shared declaration, as `(path in the templates folder, path to include)`.
    pub(crate) files: Vec<(String, String)>,
    /// `check.rs`, where the folder has one.
    pub(crate) check: Option<String>,
}

fn formatted(kernel: &Kernel, paths: &Paths, constants: Constants) -> String {
    let layout = ParamsLayout::of(kernel);
    let has_fixed = |arg: &Arg| matches!(arg.kind, ArgKind::Tensor { element: ElementType::Fixed(_), .. });
    let dtype = kernel.args.iter().any(has_fixed).then(|| quote!(DType,));
    let tensors = has_tensors(kernel).then(|| (quote!(Tensor), quote!(Dim,), quote!(TensorArg,)));
    let (tensor, dim, arg) = tensors.map_or((None, None, None), |(a, b, c)| (Some(a), Some(b), Some(c)));
    let probe = paths.check.is_some().then(|| (quote!(Probe,), quote!(Verdict)));
    let (probe, verdict) = probe.unzip();
    let imports = quote! {
        use ::std::borrow::Cow;
        use ::std::mem::{offset_of, size_of};
        use ::tilewright::codegen::{Candidate, Family, KernelSource};
        use ::tilewright::launch::{BindError, Binder, Bound, #dim KernelArgs, #probe #arg #verdict};
        use ::tilewright::{#dtype #tensor};
    };
    let constants = constants.of(kernel);
    let check = paths.check.as_ref().map(|path| quote!(#[path = #path] mod check;));
    let (source, params, args, tensors, bind) = (
        source_static(kernel, paths),
        params_struct(kernel, &layout),
        args_struct(kernel),
        tensors_module(kernel),
        kernel_args_impl(kernel, &layout, paths.check.is_some()),
    );
    let file: syn::File =
        syn::parse2(quote!(#imports #check #source #constants #params #args #tensors #bind))
            .expect("the bindings are Rust");
    prettyplease::unparse(&file)
}

fn source_static(kernel: &Kernel, Paths { declaration, files, check }: &Paths) -> TokenStream {
    let has_check = check.is_some();
    let name = &kernel.name;
    let doc = format!(" The files of kernel `{name}`.");
    let files = files
        .iter()
        .map(|(path, include)| quote!((Cow::Borrowed(#path), Cow::Borrowed(include_str!(#include)))));
    quote! {
        #[doc = #doc]
        pub static SOURCE: KernelSource = KernelSource {
            name: Cow::Borrowed(#name),
            declaration: Cow::Borrowed(include_str!(#declaration)),
            files: Cow::Borrowed(&[#(#files),*]),
            has_check: #has_check,
        };
    }
}

fn params_struct(kernel: &Kernel, layout: &ParamsLayout) -> TokenStream {
    let doc = format!(" What `{}` takes by value, member for member as its CUDA struct.", kernel.name);
    let members = layout.fields.iter().map(|field| {
        let name = format_ident!("{}", field.name);
        let (ty, doc) = match &field.kind {
            FieldKind::Pointer { .. } => (quote!(u64), format!(" Device pointer of `{}`.", field.name)),
            FieldKind::Strides(count) => {
                let count = Literal::usize_unsuffixed(*count);
                (quote!([i64; #count]), " Strides in elements of all dimensions but the last.".to_owned())
            }
            FieldKind::Dim => (quote!(i32), format!(" Dimension `{}`.", field.name)),
            FieldKind::Scalar(ScalarType::F32) => (quote!(f32), format!(" Scalar `{}`.", field.name)),
            FieldKind::Padding => (quote!(i32), " 0.".to_owned()),
            FieldKind::Scalar(ScalarType::I32) => (quote!(i32), format!(" Scalar `{}`.", field.name)),
        };
        quote!(#[doc = #doc] pub #name: #ty)
    });
    let size = Literal::usize_unsuffixed(layout.size);
    let offsets = layout.fields.iter().map(|field| {
        let (name, offset) = (format_ident!("{}", field.name), Literal::usize_unsuffixed(field.offset));
        quote!(assert!(offset_of!(Params, #name) == #offset);)
    });
    quote! {
        #[doc = #doc]
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct Params { #(#members),* }
        const _: () = {
            assert!(size_of::<Params>() == #size);
            #(#offsets)*
        };
    }
}

fn args_struct(kernel: &Kernel) -> TokenStream {
    let doc = format!(" The arguments of `{}`.", kernel.name);
    let more = kernel.doc.lines().map(|line| format!(" {line}"));
    let members = kernel.args.iter().map(|arg| {
        let name = format_ident!("{}", arg.name);
        let (ty, doc) = match &arg.kind {
            ArgKind::Tensor { element, dims, access, optional, .. } => {
                let tensor = if access.writes() { quote!(&'a mut Tensor) } else { quote!(&'a Tensor) };
                let ty = if *optional { quote!(Option<#tensor>) } else { tensor };
                let use_of_it = match access {
                    Access::Read => "",
                    Access::Out => ": written whole",
                    Access::InOut => ": changed in place",
                    Access::Scratch => ": worked in, and of no use afterwards",
                    Access::Counters => ": 0, and 0 again afterwards",
                };
                (ty, format!(" `{}` of {}{use_of_it}.", shape_text(dims), element_text(element)))
            }
            ArgKind::Scalar(ScalarType::F32) => (quote!(f32), " By value.".to_owned()),
            ArgKind::Scalar(ScalarType::I32) => (quote!(i32), " By value.".to_owned()),
        };
        quote!(#[doc = #doc] pub #name: #ty)
    });
    let lifetime = has_tensors(kernel).then(|| quote!(<'a>));
    quote! {
        #[doc = #doc]
        #[doc = ""]
        #(#[doc = #more])*
        #[derive(Debug)]
        pub struct Args #lifetime { #(#members),* }
    }
}

/// What the arguments hold of each declared tensor: `Option<&Tensor>`.
fn given(arg: &Arg) -> Option<TokenStream> {
    let ArgKind::Tensor { access, optional, .. } = &arg.kind else { return None };
    let ident = format_ident!("{}", arg.name);
    Some(match (*optional, access.writes()) {
        (true, true) => quote!(self.#ident.as_deref()),
        (true, false) => quote!(self.#ident),
        (false, true) => quote!(Some(&*self.#ident)),
        (false, false) => quote!(Some(self.#ident)),
    })
}

fn kernel_args_impl(kernel: &Kernel, layout: &ParamsLayout, has_check: bool) -> TokenStream {
    let listed = kernel.args.iter().filter_map(|arg| {
        let (constant, tensor) = (format_ident!("{}", arg.name.to_uppercase()), given(arg)?);
        Some(quote!((&tensors::#constant, #tensor)))
    });
    let listed = has_tensors(kernel).then(|| {
        quote! {
            fn tensors(&self) -> Vec<TensorArg<'_>> {
                [#(#listed),*].into_iter().filter_map(TensorArg::given).collect()
            }
        }
    });
    let check = has_check.then(|| {
        quote! {
            fn check(&self, probe: &Probe<'_>) -> Verdict {
                check::check(self, probe)
            }
        }
    });
    let (name, declaration) = (&kernel.name, &kernel.declaration);
    let lifetime = has_tensors(kernel).then(|| quote!(<'_>));
    let tensors = kernel.args.iter().filter_map(bind_tensor);
    let constants = used_constants(kernel).into_iter().map(|name| {
        let ident = names::variable(name);
        quote!(let #ident = binder.constant(candidate, #name)?;)
    });
    let derived_names: Vec<&str> = kernel.derived.iter().map(|derived| derived.name.as_str()).collect();
    let dims = kernel.dims().into_iter().filter(|dim| !derived_names.contains(dim)).map(|dim| {
        let ident = format_ident!("{dim}");
        quote!(let #ident = binder.dim(#dim);)
    });
    let derived = kernel.derived.iter().map(|derived| {
        let (ident, name) = (format_ident!("{}", derived.name), &derived.name);
        let (value, text) = (value_of(&derived.value), derived.value.to_string());
        quote!(let #ident = binder.derive(#name, #value, #text)?;)
    });
    let requires = kernel.launch_requires().map(|require| {
        let (condition, text, message) =
            (require.condition.to_rust_bool(), require.condition.to_string(), &require.message);
        let values = values_in(&require.condition);
        quote!(binder.require(#text, #values, #message, || Some(#condition))?;)
    });
    let members = layout.fields.iter().map(|field| {
        let ident = format_ident!("{}", field.name);
        match &field.kind {
            FieldKind::Pointer { .. } => quote!(#ident: #ident.pointer),
            FieldKind::Strides(_) => {
                let tensor = format_ident!("{}", field.name.strip_suffix("_stride").unwrap_or(&field.name));
                quote!(#ident: #tensor.strides)
            }
            FieldKind::Dim => quote!(#ident: binder.int(#ident)?),
            FieldKind::Scalar(_) => quote!(#ident: self.#ident),
            FieldKind::Padding => quote!(#ident: 0),
        }
    });
    let grids = kernel.bodies.iter().map(|body| {
        // The variant's name, as its `Debug` has it.
        let family = format_ident!("{}", format!("{:?}", body.family));
        let sides = body.tensor_maps.iter().flat_map(|map| &map.rows_columns);
        let used: Vec<&str> = body.launch.grid.iter().chain(sides).flat_map(Expr::names).collect();
        let tune = body.tune.iter().filter(|param| used.contains(&param.name.as_str()));
        let tune = tune.map(|param| {
            let (ident, name) = (names::variable(&param.name), &param.name);
            quote!(let #ident = binder.constant(candidate, #name)?;)
        });
        let axes = body.launch.grid.iter().map(value_of);
        let maps = body.tensor_maps.iter().map(|map| {
            let (ident, name) = (format_ident!("{}", map.arg), &map.arg);
            let [rows, columns] = map.rows_columns.each_ref().map(value_of);
            let arg = kernel.args.iter().find(|arg| arg.name == map.arg).map(|arg| &arg.kind);
            let (mutable, optional) = match arg {
                Some(ArgKind::Tensor { access, optional, .. }) => (access.writes(), *optional),
                _ => (false, false),
            };
            let tensor = match (mutable, optional) {
                (false, false) => quote!(Some(self.#ident)),
                (false, true) => quote!(self.#ident),
                (true, false) => quote!(Some(&*self.#ident)),
                (true, true) => quote!(self.#ident.as_deref()),
            };
            quote!(binder.tensor_map(#name, #tensor, [#rows, #columns])?;)
        });
        let persistent = body.launch.persistent.then(|| quote!(binder.persistent();));
        let queue = body.launch.queue.then(|| quote!(binder.queue();));
        quote! {
            Family::#family => {
                #(#tune)*
                #(#maps)*
                #persistent
                #queue
                [#(#axes),*]
            }
        }
    });
    // A kernel that has every family needs no fallback arm; the enum is non-exhaustive, so there is always one.
    quote! {
        #[allow(
            clippy::undocumented_unsafe_blocks,
            reason = "written from the declaration that the CUDA struct is written from, with the layout asserted"
        )]
        unsafe impl KernelArgs for Args #lifetime {
            const KERNEL: &'static str = #name;
            const DECLARATION: &'static str = #declaration;
            type Params = Params;

            fn bind(
                &self,
                candidate: &Candidate,
            ) -> Result<Bound<Params>, BindError> {
                let mut binder = Binder::new(Self::KERNEL, Self::DECLARATION, candidate)?;
                #(#tensors)*
                #(#constants)*
                #(#dims)*
                #(#derived)*
                #(#requires)*
                let grid = match candidate.schedule.family {
                    #(#grids)*
                    other => return Err(binder.no_body(other)),
                };
                let params = Params { #(#members),* };
                binder.finish(params, grid)
            }

            #listed

            #check
        }
    }
}

/// An expression's value, or the error of the binder's where it has none.
fn value_of(expr: &Expr) -> TokenStream {
    if !expr.is_partial() {
        return expr.to_rust();
    }
    let (text, values, value) = (expr.to_string(), values_in(expr), expr.to_rust_option());
    quote!(binder.value(#text, #values, || #value)?)
}

/// What a message about an expression says of the names in it.
fn values_in(expr: &Expr) -> TokenStream {
    let values = expr.names().into_iter().map(|name| {
        let ident = names::variable(name);
        quote!((#name, #ident))
    });
    quote!(&[#(#values),*])
}

fn bind_tensor(arg: &Arg) -> Option<TokenStream> {
    let ArgKind::Tensor { element, dims, access, align, .. } = &arg.kind else {
        return None;
    };
    let (ident, name) = (format_ident!("{}", arg.name), &arg.name);
    let dtype = match element {
        ElementType::Fixed(dtype) => {
            let variant = format_ident!("{}", format!("{dtype:?}"));
            quote!(DType::#variant)
        }
        ElementType::Param(param) => quote!(binder.dtype(candidate, #param)?),
    };
    // Without strides in `Params` nothing else says how many there are.
    let sizes = (dims.len() == 1).then(|| quote!(::<1, 0>));
    let dims = dims.iter().map(dim_of);
    let align = Literal::usize_unsuffixed(*align);
    let tensor = given(arg)?;
    let check = if access.writes() { quote!(output) } else { quote!(input) };
    Some(quote! {
        let dtype = #dtype;
        let #ident = binder.#check #sizes (#name, #tensor, dtype, #align, [#(#dims),*])?;
    })
}

/// Integer specialisation parameters that dimensions, requirements or a grid mention.
fn used_constants(kernel: &Kernel) -> Vec<&str> {
    let exprs = (kernel.derived.iter().map(|derived| &derived.value))
        .chain(kernel.launch_requires().map(|require| &require.condition))
        .chain(kernel.bodies.iter().flat_map(|body| &body.launch.grid))
        .chain(kernel.bodies.iter().flat_map(|body| &body.tensor_maps).flat_map(|map| &map.rows_columns));
    let used: Vec<&str> = exprs.flat_map(Expr::names).collect();
    kernel.specialize.iter().map(|param| param.name.as_str()).filter(|name| used.contains(name)).collect()
}
