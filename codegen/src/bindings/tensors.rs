//! The tensors of a declaration, as constants and in words.

use crate::dsl::{Arg, ArgKind, DimRef, ElementType, Kernel, Tolerance};
use proc_macro2::TokenStream;
use quote::{format_ident, quote};

/// The declared tensors as constants: their shapes by name, and what becomes of them.
pub(super) fn tensors_module(kernel: &Kernel) -> Option<TokenStream> {
    let constants: Vec<TokenStream> = kernel.args.iter().filter_map(tensor_constant).collect();
    if constants.is_empty() {
        return None;
    }
    let doc = format!(" The tensors of `{}`, as its declaration has them.", kernel.name);
    let fixed = kernel
        .args
        .iter()
        .any(|arg| matches!(arg.kind, ArgKind::Tensor { element: ElementType::Fixed(_), .. }));
    let dtype = fixed.then(|| {
        quote!(
            use ::tilewright::DType;
        )
    });
    Some(quote! {
        #[doc = #doc]
        pub mod tensors {
            #dtype
            use ::tilewright::launch::{Access, Dim, TensorDecl, Tolerance};
            #(#constants)*
        }
    })
}

fn tensor_constant(arg: &Arg) -> Option<TokenStream> {
    let ArgKind::Tensor { element, dims, access, tolerance, .. } = &arg.kind else {
        return None;
    };
    let (name, constant) = (&arg.name, format_ident!("{}", arg.name.to_uppercase()));
    let doc = format!(" `{name}`: `{}` of {}.", shape_text(dims), element_text(element));
    let dtype = match element {
        ElementType::Fixed(dtype) => {
            let variant = format_ident!("{}", format!("{dtype:?}"));
            quote!(Some(DType::#variant))
        }
        ElementType::Param(_) => quote!(None),
    };
    let access = format_ident!("{}", format!("{access:?}"));
    let tolerance = match *tolerance {
        Tolerance::Exact => quote!(Exact),
        Tolerance::Close(bound) => quote!(Close(#bound)),
        Tolerance::Share(bound) => quote!(Share(#bound)),
        Tolerance::Any => quote!(Any),
    };
    let dims = dims.iter().map(dim_of);
    Some(quote! {
        #[doc = #doc]
        pub const #constant: TensorDecl = TensorDecl {
            name: #name,
            dtype: #dtype,
            dims: &[#(#dims),*],
            access: Access::#access,
            tolerance: Tolerance::#tolerance,
        };
    })
}

pub(super) fn dim_of(dim: &DimRef) -> TokenStream {
    let name = &dim.name;
    if dim.broadcast { quote!(Dim::broadcast(#name)) } else { quote!(Dim::exact(#name)) }
}

pub(super) fn has_tensors(kernel: &Kernel) -> bool {
    kernel.args.iter().any(|arg| matches!(arg.kind, ArgKind::Tensor { .. }))
}

pub(super) fn shape_text(dims: &[DimRef]) -> String {
    let dims: Vec<String> = dims
        .iter()
        .map(|dim| if dim.broadcast { format!("{} or 1", dim.name) } else { dim.name.clone() })
        .collect();
    format!("[{}]", dims.join(", "))
}

pub(super) fn element_text(element: &ElementType) -> String {
    match element {
        ElementType::Fixed(dtype) => dtype.to_string(),
        ElementType::Param(param) => format!("the spec's `{param}`"),
    }
}
