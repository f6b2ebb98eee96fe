//! From the tokens of a declaration to [`Kernel`].

use super::include::Included;
use super::parse_body::parse_body;
use super::parse_values::{parse_braced_list, parse_constant, parse_shipped, parse_spec_param, unknown_word};
use super::spans::{Role, Spans};
use super::{
    Access, Arg, ArgKind, Derived, DimRef, ElementType, FunctionSlot, Kernel, Require, ScalarType, Tolerance,
};
use crate::dtype::DType;
use crate::lower::FunctionKind;
use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{Ident, LitInt, LitStr, Result, Token, bracketed, parenthesized};

mod kw {
    syn::custom_keyword!(include);
    syn::custom_keyword!(specialize);
    syn::custom_keyword!(ship);
    syn::custom_keyword!(functions);
    syn::custom_keyword!(require);
    syn::custom_keyword!(body);
}

/// The inside of `kernel! { … }`, with the names' positions, which the checks report.
pub(super) fn parse_kernel(input: ParseStream, included: &mut Included<'_>) -> Result<(Kernel, Spans)> {
    let mut spans = Spans::default();
    let doc = parse_doc(input)?;
    input.parse::<Token![fn]>()?;
    let name = spans.variable(&input.parse()?)?;
    let list;
    parenthesized!(list in input);
    let mut args = Vec::new();
    while !list.is_empty() {
        args.push(parse_arg(&list, &mut spans)?);
        if !list.is_empty() {
            list.parse::<Token![,]>()?;
        }
    }
    let mut kernel = Kernel {
        name,
        declaration: String::new(),
        includes: Vec::new(),
        doc,
        args,
        constants: Vec::new(),
        specialize: Vec::new(),
        ship: Vec::new(),
        functions: Vec::new(),
        derived: Vec::new(),
        requires: Vec::new(),
        bodies: Vec::new(),
    };
    while !input.is_empty() {
        parse_section(input, &mut kernel, &mut spans, Some(included))?;
    }
    Ok((kernel, spans))
}

fn parse_doc(input: ParseStream) -> Result<String> {
    let mut lines = Vec::new();
    for attr in input.call(syn::Attribute::parse_outer)? {
        match &attr.meta {
            syn::Meta::NameValue(syn::MetaNameValue { path, value, .. }) if path.is_ident("doc") => {
                if let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = value {
                    lines.push(text.value().trim().to_owned());
                }
            }
            _ => return Err(syn::Error::new_spanned(attr, "only doc comments stand before a kernel")),
        }
    }
    Ok(lines.join("\n"))
}

/// One section. Without `included` the declaration is itself a shared one: it includes nothing and has no body.
pub(super) fn parse_section(
    input: ParseStream,
    kernel: &mut Kernel,
    spans: &mut Spans,
    included: Option<&mut Included<'_>>,
) -> Result<()> {
    let next = input.lookahead1();
    if next.peek(kw::include) {
        let keyword = input.parse::<kw::include>()?;
        let Some(included) = included else {
            let message = "a shared declaration includes no other: let the kernel include both";
            return Err(syn::Error::new(keyword.span, message));
        };
        included.sections(input)?.parse_body_with(|input: ParseStream| {
            while !input.is_empty() {
                parse_section(input, kernel, spans, None)?;
            }
            Ok(())
        })?;
    } else if next.peek(Token![const]) {
        input.parse::<Token![const]>()?;
        parse_constant(input, kernel, spans)?;
    } else if next.peek(kw::specialize) {
        input.parse::<kw::specialize>()?;
        kernel.specialize.extend(parse_braced_list(input, spans, parse_spec_param)?);
    } else if next.peek(kw::ship) {
        input.parse::<kw::ship>()?;
        kernel.ship.extend(parse_braced_list(input, spans, parse_shipped)?);
    } else if next.peek(kw::functions) {
        input.parse::<kw::functions>()?;
        kernel.functions.extend(parse_braced_list(input, spans, parse_function_slot)?);
    } else if next.peek(Token![let]) {
        input.parse::<Token![let]>()?;
        let name = spans.variable(&input.parse()?)?;
        input.parse::<Token![=]>()?;
        kernel.derived.push(Derived { name, value: spans.expr(input, Role::Derived)? });
        input.parse::<Token![;]>()?;
    } else if next.peek(kw::require) {
        input.parse::<kw::require>()?;
        let condition = spans.expr(input, Role::Requirement)?;
        let message = if input.parse::<Option<Token![,]>>()?.is_some() {
            let text =
                "after the condition comes what to do about it, in quotes: `require rows > 1, \"add rows\";`";
            input.parse::<LitStr>().map_err(|error| syn::Error::new(error.span(), text))?.value()
        } else {
            String::new()
        };
        input.parse::<Token![;]>()?;
        kernel.requires.push(Require { condition, message });
    } else if next.peek(kw::body) {
        let keyword = input.parse::<kw::body>()?;
        if included.is_none() {
            let message = "a body is one kernel's: it stands in the kernel.rs beside it";
            return Err(syn::Error::new(keyword.span, message));
        }
        kernel.bodies.push(parse_body(input, spans)?);
    } else {
        return Err(unknown_word(input, "section of a declaration", &next.error()));
    }
    Ok(())
}

fn parse_arg(input: ParseStream, spans: &mut Spans) -> Result<Arg> {
    let at = input.span();
    let attrs = Attrs::parse(input)?;
    let name = spans.variable(&input.parse()?)?;
    input.parse::<Token![:]>()?;
    let access = Access::parse(input)?;
    let head: Ident = input.parse()?;
    let kind = match head.to_string().as_str() {
        "Option" => {
            input.parse::<Token![<]>()?;
            let tensor: Ident = input.parse()?;
            if tensor != "Tensor" {
                let message = match Access::from_keyword(&tensor.to_string()) {
                    Some(_) => {
                        format!("write `{tensor}` before `Option`: `{name}: {tensor} Option<Tensor<…>>`")
                    }
                    None => "only a `Tensor<…>` can be optional".to_owned(),
                };
                return Err(syn::Error::new(tensor.span(), message));
            }
            let kind = parse_tensor(input, spans, (access, true), &attrs)?;
            input.parse::<Token![>]>()?;
            kind
        }
        "Tensor" => parse_tensor(input, spans, (access, false), &attrs)?,
        _ if access.writes() => {
            return Err(syn::Error::new(
                head.span(),
                "only a tensor can be written: scalars are passed by value",
            ));
        }
        "f32" | "i32" if attrs.align.is_some() => {
            return Err(syn::Error::new(at, "only a tensor has an alignment: scalars are passed by value"));
        }
        "f32" => ArgKind::Scalar(ScalarType::F32),
        "i32" => ArgKind::Scalar(ScalarType::I32),
        other => {
            let message = format!(
                "`{other}` is no argument type: use Tensor<T, [dims]>, Option<Tensor<…>>, f32 or i32, and `out`, `inout`, \
                 `scratch` or `counters` before a tensor that is written"
            );
            return Err(syn::Error::new(head.span(), message));
        }
    };
    match (&attrs.tolerance, &kind) {
        (Some((_, span)), ArgKind::Tensor { access, .. }) if !access.is_result() => {
            Err(syn::Error::new(*span, "only what is `out` or `inout` is compared, and has a tolerance"))
        }
        (Some((_, span)), ArgKind::Scalar(_)) => {
            Err(syn::Error::new(*span, "only a tensor has a tolerance: scalars are passed by value"))
        }
        _ => Ok(Arg { name, kind }),
    }
}

/// What stands before an argument.
#[derive(Default)]
struct Attrs {
    /// `#[align(16)]`
    align: Option<usize>,
    /// `#[tolerance(1e-2)]`, and where.
    tolerance: Option<(Tolerance, Span)>,
}

impl Attrs {
    fn parse(input: ParseStream) -> Result<Self> {
        let mut attrs = Attrs::default();
        for attr in input.call(syn::Attribute::parse_outer)? {
            let again = if attr.path().is_ident("align") {
                attrs.align.replace(parse_align(&attr)?).is_some()
            } else if attr.path().is_ident("tolerance") {
                attrs.tolerance.replace((Tolerance::parse(&attr)?, attr.span())).is_some()
            } else {
                let message = "an argument can only have `#[align(bytes)]` and `#[tolerance(…)]`";
                return Err(syn::Error::new_spanned(attr, message));
            };
            if again {
                let what = if attr.path().is_ident("align") { "alignment" } else { "tolerance" };
                let message = format!("a second {what} of one argument: keep one");
                return Err(syn::Error::new_spanned(attr, message));
            }
        }
        Ok(attrs)
    }
}

/// The bytes of `#[align(16)]`.
fn parse_align(attr: &syn::Attribute) -> Result<usize> {
    let bytes: syn::Expr = attr.parse_args()?;
    let found = match &bytes {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(int), .. }) => int.base10_parse::<usize>().ok(),
        _ => None,
    };
    found.filter(|bytes| bytes.is_power_of_two() && *bytes <= 256).ok_or_else(|| {
        let message = "an alignment is a power of two up to 256, in bytes: write `#[align(16)]`";
        syn::Error::new_spanned(bytes, message)
    })
}

/// The most dimensions of a tensor.
const MOST_DIMS: usize = 16;

fn parse_tensor(
    input: ParseStream,
    spans: &mut Spans,
    (access, optional): (Access, bool),
    attrs: &Attrs,
) -> Result<ArgKind> {
    input.parse::<Token![<]>()?;
    let element: Ident = input.parse()?;
    let element = match DType::from_name(&element.to_string()) {
        Some(dtype) => ElementType::Fixed(dtype),
        None => ElementType::Param(spans.name(&element)?),
    };
    input.parse::<Token![,]>()?;
    let list;
    let bracket = bracketed!(list in input);
    let dims = Punctuated::<DimToken, Token![,]>::parse_terminated(&list)?;
    if dims.is_empty() || dims.len() > MOST_DIMS {
        let message = format!("a tensor has 1 to {MOST_DIMS} dimensions, found {}", dims.len());
        return Err(syn::Error::new(bracket.span.join(), message));
    }
    // Its stride is 1 and no member of `Params`, so a body could not see that its only element is repeated.
    if let Some(last) = dims.last().filter(|last| last.broadcast) {
        let message = format!(
            "the last dimension has no stride that could be 0, so it cannot be repeated: write `{0}`, or `{0} | 1, one` for \
             tensors with a dimension of 1 after it",
            last.name
        );
        return Err(syn::Error::new(last.name.span(), message));
    }
    let dims = dims
        .into_iter()
        .map(|dim| Ok(DimRef { name: spans.variable(&dim.name)?, broadcast: dim.broadcast }))
        .collect::<Result<_>>()?;
    input.parse::<Token![>]>()?;
    let tolerance = attrs.tolerance.map_or(Tolerance::Exact, |(tolerance, _)| tolerance);
    Ok(ArgKind::Tensor { element, dims, access, tolerance, optional, align: attrs.align.unwrap_or(1) })
}

/// `name` or `name | 1`
struct DimToken {
    name: Ident,
    broadcast: bool,
}

impl Parse for DimToken {
    fn parse(input: ParseStream) -> Result<Self> {
        let name = input.parse()?;
        let broadcast = input.parse::<Option<Token![|]>>()?.is_some();
        if broadcast {
            let one: LitInt = input.parse()?;
            if one.base10_digits() != "1" {
                return Err(syn::Error::new(one.span(), "only an extent of 1 is repeated: write `name | 1`"));
            }
        }
        Ok(DimToken { name, broadcast })
    }
}

/// `name: ScoreMod`, `name: ScoreMod + Gradient` or `name: MaskMod`
fn parse_function_slot(input: ParseStream, spans: &mut Spans) -> Result<FunctionSlot> {
    let name = spans.variable(&input.parse()?)?;
    input.parse::<Token![:]>()?;
    let kind: Ident = input.parse()?;
    let kind = match kind.to_string().as_str() {
        "ScoreMod" => FunctionKind::ScoreMod,
        "MaskMod" => FunctionKind::MaskMod,
        other => {
            let message = format!("`{other}` is no device function: use ScoreMod or MaskMod");
            return Err(syn::Error::new(kind.span(), message));
        }
    };
    let gradient = input.parse::<Option<Token![+]>>()?.is_some();
    if gradient {
        let what: Ident = input.parse()?;
        if what != "Gradient" {
            let message = format!("`{what}` cannot be had of a device function: only `+ Gradient` can");
            return Err(syn::Error::new(what.span(), message));
        }
        if kind != FunctionKind::ScoreMod {
            let message = "a mask function keeps or drops and has no gradient: only ScoreMod has";
            return Err(syn::Error::new(what.span(), message));
        }
    }
    Ok(FunctionSlot { name, kind, gradient })
}
