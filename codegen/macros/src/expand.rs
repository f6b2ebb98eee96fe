//! What the attributes expand to.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Attribute, FnArg, Ident, ItemFn, Pat};
use tilewright_codegen::limits;
use tilewright_codegen::lower::{CaptureType, DeviceFunction, FunctionKind, MAX_BYTES, source_text};

/// The function, the struct of its captures and its traits; or the first error alone, so that one mistake makes
/// one message.
pub(crate) fn device_function(kind: FunctionKind, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let checked = limits::check(&item).and_then(|()| limits::with_room(|| expand(kind, arguments, item)));
    checked.unwrap_or_else(|error| error.to_compile_error())
}

fn expand(kind: FunctionKind, arguments: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    if !arguments.is_empty() {
        let message = format!("`#[{}]` takes no arguments: captures are parameters", kind.attribute());
        return Err(syn::Error::new_spanned(arguments, message));
    }
    let item: ItemFn = syn::parse2(item)?;
    let function = DeviceFunction::parse(kind, &item)?;
    let source = source_text(&item);
    limits::check_size(&source, MAX_BYTES, item.sig.ident.span())?;
    let leading = kind.leading().len();
    let names: Vec<&Ident> = item.sig.inputs.iter().skip(leading).filter_map(parameter_name).collect();
    let captures: Vec<(&Ident, CaptureType)> =
        names.into_iter().zip(function.captures().iter().map(|capture| capture.ty)).collect();

    let structure = captures_struct(&item, &captures);
    let device_fn = device_fn_impl(&item, &source, &function, &captures);
    let kind_impl = kind_impl(kind, &item, &function, &captures);
    Ok(quote! {
        // Every device function has the leading parameters; few use all of them, and captures make them many.
        // The `manual_` lints ask for methods that device functions do not have.
        #[allow(
            unused_variables,
            clippy::too_many_arguments,
            clippy::manual_abs_diff,
            clippy::manual_clamp,
            clippy::manual_div_ceil,
            clippy::manual_is_multiple_of,
            clippy::manual_range_contains
        )]
        #item
        #structure
        #device_fn
        #kind_impl
    })
}

fn parameter_name(input: &FnArg) -> Option<&Ident> {
    match input {
        FnArg::Typed(parameter) => match &*parameter.pat {
            Pat::Ident(pat) => Some(&pat.ident),
            _ => None,
        },
        FnArg::Receiver(_) => None,
    }
}

fn attributes<'a>(item: &'a ItemFn, name: &str) -> Vec<&'a Attribute> {
    item.attrs.iter().filter(|attribute| attribute.path().is_ident(name)).collect()
}

fn captures_struct(item: &ItemFn, captures: &[(&Ident, CaptureType)]) -> TokenStream {
    let (vis, name) = (&item.vis, &item.sig.ident);
    let cfg = attributes(item, "cfg");
    let mut docs = attributes(item, "doc").into_iter().map(|doc| quote!(#doc)).collect::<Vec<_>>();
    if docs.is_empty() {
        let text = format!("The captures of the device function [`{name}()`].");
        docs.push(quote!(#[doc = #text]));
    }
    let fields = captures.iter().map(|(field, ty)| {
        let text = format!("The argument `{field}` of [`{name}()`].");
        let ty = field_type(*ty);
        quote! {
            #[doc = #text]
            #vis #field: #ty
        }
    });
    quote! {
        #(#cfg)*
        #(#docs)*
        #[allow(non_camel_case_types)]
        #[derive(Clone, Debug)]
        #vis struct #name { #(#fields),* }
    }
}

fn field_type(ty: CaptureType) -> TokenStream {
    let element = format_ident!("{}", ty.element().name());
    if ty.is_slice() {
        quote!(::std::vec::Vec<::core::primitive::#element>)
    } else {
        quote!(::core::primitive::#element)
    }
}

fn device_fn_impl(
    item: &ItemFn,
    source: &str,
    function: &DeviceFunction,
    captures: &[(&Ident, CaptureType)],
) -> TokenStream {
    let name = &item.sig.ident;
    let cfg = attributes(item, "cfg");
    let name_text = function.name();
    let values = captures.iter().map(|(field, ty)| {
        let variant = match ty {
            CaptureType::F32 => "F32",
            CaptureType::I32 => "I32",
            CaptureType::U32 => "U32",
            CaptureType::Bool => "Bool",
            CaptureType::F32s => "F32s",
            CaptureType::I32s => "I32s",
            CaptureType::U32s => "U32s",
        };
        let variant = format_ident!("{variant}");
        let clone = ty.is_slice().then(|| quote!(.clone()));
        quote!(::tilewright::CaptureValue::#variant(self.#field #clone))
    });
    quote! {
        #(#cfg)*
        impl ::tilewright::DeviceFn for #name {
            fn name(&self) -> &::core::primitive::str {
                #name_text
            }

            fn source(&self) -> &::core::primitive::str {
                #source
            }

            fn captures(&self) -> ::std::vec::Vec<::tilewright::CaptureValue> {
                ::std::vec![#(#values),*]
            }
        }
    }
}

fn kind_impl(
    kind: FunctionKind,
    item: &ItemFn,
    function: &DeviceFunction,
    captures: &[(&Ident, CaptureType)],
) -> TokenStream {
    let name = &item.sig.ident;
    let cfg = attributes(item, "cfg");
    let (trait_name, method) = match kind {
        FunctionKind::ScoreMod => (format_ident!("ScoreMod"), format_ident!("score")),
        FunctionKind::MaskMod => (format_ident!("MaskMod"), format_ident!("keep")),
    };
    // The user's function may be called `score`: no parameter of the method may hide it.
    let leading: Vec<_> = kind.leading().iter().map(|(name, _)| format_ident!("__{name}")).collect();
    let types = kind.leading().iter().map(|(_, ty)| format_ident!("{}", ty.name()));
    let parameters = quote!(#(#leading: ::core::primitive::#types),*);
    let returns = format_ident!("{}", kind.returns().name());
    let arguments = captures.iter().map(|(field, ty)| {
        let borrow = ty.is_slice().then(|| quote!(&));
        quote!(#borrow self.#field)
    });
    let fields: Vec<TokenStream> = captures.iter().map(|(field, _)| quote!(self.#field)).collect();
    let gradient = function.gradient_expression(&leading, &fields).map(|gradient| {
        quote! {
            // Written by the generator, for no reader.
            #[allow(unused_parens, unused_variables, clippy::all)]
            fn gradient(&self, #parameters) -> ::core::primitive::#returns {
                #gradient
            }
        }
    });
    quote! {
        #(#cfg)*
        impl ::tilewright::#trait_name for #name {
            fn #method(&self, #parameters) -> ::core::primitive::#returns {
                #name(#(#leading,)* #(#arguments),*)
            }

            #gradient
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_too_large_to_be_read_again_is_refused_where_it_stands() {
        let expanded = |lets: usize| {
            let lets = "let a_name_of_some_length = score * score;".repeat(lets);
            let text = format!("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ {lets} score }}");
            device_function(FunctionKind::ScoreMod, TokenStream::new(), text.parse().unwrap()).to_string()
        };
        assert!(expanded(1000).contains("impl :: tilewright :: ScoreMod for f"));
        let refused = expanded(2000);
        assert!(refused.contains("bytes: at most 65536 are read"), "{:.200}", refused);
    }
}
