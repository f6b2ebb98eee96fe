//! Rust text for the numbers that a declaration says: its constants, and the integers that it is specialised over.

use crate::dsl::{Kernel, names};
use proc_macro2::{Literal, TokenStream};
use quote::{format_ident, quote};

/// The most combinations of integers that bindings list.
const MOST_SPECS: usize = 4096;

/// Where a kernel's module has them from.
#[derive(Clone, Copy)]
pub(crate) enum Constants {
    /// They stand in it.
    Here,
    /// From a module `specs` beside it, which uses nothing itself: so parts of a library that its launches are built on may read
    /// them too.
    InSpecs,
}

impl Constants {
    /// What stands in the kernel's module.
    pub(crate) fn of(self, kernel: &Kernel) -> TokenStream {
        let (here, name) = (constants(kernel), format_ident!("{}", kernel.name));
        match self {
            Constants::InSpecs if !here.is_empty() => quote!(pub use super::specs::#name::*;),
            _ => here,
        }
    }
}

/// The module `specs`: the constants of every kernel that has some, by its name.
pub(crate) fn module<'a>(kernels: impl Iterator<Item = &'a Kernel>) -> String {
    let modules = kernels.map(|kernel| (kernel, constants(kernel))).filter(|(_, items)| !items.is_empty());
    let modules = modules.map(|(kernel, items)| {
        let (name, doc) = (format_ident!("{}", kernel.name), format!(" Of kernel `{}`.", kernel.name));
        quote!(#[doc = #doc] pub mod #name { #items })
    });
    let file: syn::File = syn::parse2(quote!(#(#modules)*)).expect("the constants are Rust");
    prettyplease::unparse(&file)
}

/// `pub const` items: one for each constant, and `SPECS`.
fn constants(kernel: &Kernel) -> TokenStream {
    let constants = kernel.constants.iter().map(|constant| {
        let (name, value) = (format_ident!("{}", constant.name), Literal::i64_unsuffixed(constant.value));
        let doc = format!(" `{}` of the declaration.", constant.name);
        quote! {
            #[doc = #doc]
            #[allow(dead_code)]
            pub const #name: i64 = #value;
        }
    });
    let specs = specs(kernel);
    quote!(#(#constants)* #specs)
}

/// `Spec` and `SPECS`, of a kernel that has integer parameters, no more combinations of them than can be listed.
fn specs(kernel: &Kernel) -> Option<TokenStream> {
    let fields: Vec<_> = kernel.ints().map(|(name, _)| names::variable(name)).collect();
    if fields.is_empty() {
        return None;
    }
    let specs = kernel.int_specs(MOST_SPECS)?;
    let doc = format!(" Integers that `{}` is specialised for.", kernel.name);
    let members = kernel.ints().zip(&fields).map(|((name, _), field)| {
        let doc = format!(" `{name}`.");
        quote!(#[doc = #doc] pub #field: i64)
    });
    let count = Literal::usize_unsuffixed(fields.len());
    let rows = specs.iter().map(|values| {
        let values = values.iter().map(|value| Literal::i64_unsuffixed(*value));
        quote!(Spec::of([#(#values),*]))
    });
    Some(quote! {
        #[doc = #doc]
        #[allow(dead_code)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Spec { #(#members),* }

        impl Spec {
            #[allow(dead_code)]
            const fn of([#(#fields),*]: [i64; #count]) -> Self {
                Spec { #(#fields),* }
            }
        }

        /// Every combination that the declaration admits, in its order: the last parameter changes fastest.
        #[allow(dead_code)]
        pub const SPECS: &[Spec] = &[#(#rows),*];
    })
}
