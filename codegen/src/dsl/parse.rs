//! From tokens to [`Kernel`].

use super::parse_body::parse_body;
use super::spans::{Role, Spans};
use super::{
    Access, Arg, ArgKind, Derived, DimRef, ElementType, FunctionSlot, Kernel, Require, ScalarType, SpecParam,
    SpecValues, Tolerance, check,
};
use crate::lower::FunctionKind;
use crate::{DType, Error, limits};
use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{Ident, LitInt, LitStr, Result, Token, braced, bracketed, parenthesized};

mod kw {
    syn::custom_keyword!(specialize);
    syn::custom_keyword!(ship);
    syn::custom_keyword!(functions);
    syn::custom_keyword!(require);
    syn::custom_keyword!(body);
}

impl Kernel {
    /// Parses and checks the text of a `kernel.rs`, which holds one `kernel! { … }`.
    ///
    /// # Errors
    /// [`Error::Declaration`] with the position of the offending token; `file` is the name it is reported under.
    pub fn parse(file: &str, text: &str) -> std::result::Result<Kernel, Error> {
        let parse = || parse_file(text).map_err(|error| Error::declaration(file, &error));
        limits::apart(parse).unwrap_or_else(|| limits::with_room(parse))
    }
}

/// Most of a declaration is its documentation.
const MAX_BYTES: usize = 256 << 10;

fn parse_file(text: &str) -> Result<Kernel> {
    let file: syn::File = syn::parse2(limits::tokens(text, MAX_BYTES)?)?;
    let mut kernels = file.items.iter().map(|item| match item {
        syn::Item::Macro(item) if item.mac.path.is_ident("kernel") => Ok(&item.mac),
        other => {
            Err(syn::Error::new_spanned(other, "a kernel.rs holds one `kernel! { … }` and nothing else"))
        }
    });
    let Some(kernel) = kernels.next().transpose()? else {
        return Err(syn::Error::new(Span::call_site(), "no `kernel! { … }` in the file: declare one"));
    };
    if let Some(second) = kernels.next() {
        return Err(syn::Error::new_spanned(&second?.path, "a second kernel: give it a folder of its own"));
    }
    let Spanned { value: mut kernel, spans } = kernel.parse_body::<Spanned<Kernel>>()?;
    check::check(&kernel, &spans)?;
    // A checkout may have other ends of lines than the machine that generated the bindings.
    kernel.declaration = blake3::hash(text.replace('\r', "").as_bytes()).to_hex().to_string();
    Ok(kernel)
}

/// A value with the names' positions, which the checks report.
struct Spanned<T> {
    value: T,
    spans: Spans,
}

impl Parse for Spanned<Kernel> {
    fn parse(input: ParseStream) -> Result<Self> {
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
            doc,
            args,
            specialize: Vec::new(),
            ship: Vec::new(),
            functions: Vec::new(),
            derived: Vec::new(),
            requires: Vec::new(),
            bodies: Vec::new(),
        };
        while !input.is_empty() {
            parse_section(input, &mut kernel, &mut spans)?;
        }
        Ok(Spanned { value: kernel, spans })
    }
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

fn parse_section(input: ParseStream, kernel: &mut Kernel, spans: &mut Spans) -> Result<()> {
    let next = input.lookahead1();
    if next.peek(kw::specialize) {
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
            input.parse::<LitStr>()?.value()
        } else {
            String::new()
        };
        input.parse::<Token![;]>()?;
        kernel.requires.push(Require { condition, message });
    } else if next.peek(kw::body) {
        input.parse::<kw::body>()?;
        kernel.bodies.push(parse_body(input, spans)?);
    } else {
        return Err(next.error());
    }
    Ok(())
}

pub(super) fn parse_braced_list<T>(
    input: ParseStream,
    spans: &mut Spans,
    item: fn(ParseStream, &mut Spans) -> Result<T>,
) -> Result<Vec<T>> {
    let content;
    braced!(content in input);
    let mut items = Vec::new();
    while !content.is_empty() {
        items.push(item(&content, spans)?);
        if !content.is_empty() {
            content.parse::<Token![,]>()?;
        }
    }
    Ok(items)
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

/// A number as it is written.
pub(super) fn unsigned_attr(expr: &syn::Expr) -> Option<f64> {
    match expr {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Float(float), .. }) if float.suffix().is_empty() => {
            float.base10_parse().ok()
        }
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(int), .. }) if int.suffix().is_empty() => {
            int.base10_parse().ok()
        }
        _ => None,
    }
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

fn parse_spec_param(input: ParseStream, spans: &mut Spans) -> Result<SpecParam> {
    let name = spans.parameter(&input.parse()?)?;
    input.parse::<Token![:]>()?;
    if input.peek(syn::token::Bracket) {
        let ahead = input.fork();
        let list;
        bracketed!(list in ahead);
        if list.peek(Ident) {
            let list;
            bracketed!(list in input);
            let mut dtypes = Vec::new();
            for ident in Punctuated::<Ident, Token![,]>::parse_terminated(&list)? {
                let fail = |message: String| Err(syn::Error::new(ident.span(), message));
                let Some(dtype) = DType::from_name(&ident.to_string()) else {
                    let known = DType::ALL.map(DType::name).join(", ");
                    return fail(format!("`{ident}` is no dtype: use one of {known}"));
                };
                if dtypes.contains(&dtype) {
                    return fail(format!("{dtype} is listed twice"));
                }
                dtypes.push(dtype);
            }
            if input.peek(Token![=]) {
                return Err(
                    input.error("a dtype has no default, for a request always gives it: only integers have")
                );
            }
            return Ok(SpecParam { name, values: SpecValues::DTypes(dtypes), default: None });
        }
    }
    let values = SpecValues::Ints(parse_ints(input)?);
    let default = match input.parse::<Option<Token![=]>>()? {
        Some(_) => Some(spans.expr(input, Role::Default)?),
        None => None,
    };
    Ok(SpecParam { name, values, default })
}

/// As in `specialize`, with positions of its own: the names are the same.
fn parse_shipped(input: ParseStream, spans: &mut Spans) -> Result<SpecParam> {
    let mut shipped = Spans::default();
    let param = parse_spec_param(input, &mut shipped)?;
    if param.default.is_some() {
        return Err(syn::Error::new(
            shipped.of(&param.name),
            "a default stands in `specialize`: `ship` lists values alone",
        ));
    }
    spans.shipped(shipped);
    Ok(param)
}

/// The most values of a range: each may become a source to compile.
const MOST_VALUES: i64 = 256;

/// `[1, 2]` or `1..=3`, of what the constants of a source hold: CUDA's `int`.
pub(super) fn parse_ints(input: ParseStream) -> Result<Vec<i64>> {
    let value = |literal: &LitInt| {
        let parsed = literal.base10_parse::<i32>().ok().filter(|value| *value >= 0);
        parsed.map(i64::from).ok_or_else(|| {
            let message =
                format!("{literal} is no value of a parameter: it has 32 bits, from 0 to {}", i32::MAX);
            syn::Error::new(literal.span(), message)
        })
    };
    if input.peek(syn::token::Bracket) {
        let list;
        let bracket = bracketed!(list in input);
        let values = Punctuated::<LitInt, Token![,]>::parse_terminated(&list)?;
        if values.is_empty() {
            return Err(syn::Error::new(bracket.span.join(), "at least one value is needed"));
        }
        if values.len() as i64 > MOST_VALUES {
            let message = format!("{} values, at most {MOST_VALUES}: list those worth trying", values.len());
            return Err(syn::Error::new(bracket.span.join(), message));
        }
        let mut ints = Vec::with_capacity(values.len());
        for literal in &values {
            let int = value(literal)?;
            if ints.contains(&int) {
                return Err(syn::Error::new(literal.span(), format!("{int} is listed twice")));
            }
            ints.push(int);
        }
        return Ok(ints);
    }
    let first: LitInt = input.parse()?;
    let start = value(&first)?;
    if !input.peek(Token![..=]) {
        let message =
            format!("values are a list or a range with its last value: write `[{start}]` or `{start}..=8`");
        return Err(syn::Error::new(first.span(), message));
    }
    let range = input.parse::<Token![..=]>()?;
    let end = value(&input.parse()?)?;
    if end < start {
        return Err(syn::Error::new_spanned(range, format!("{start}..={end} is empty")));
    }
    if end - start >= MOST_VALUES {
        let message = format!("{start}..={end} has more than {MOST_VALUES} values: list those worth trying");
        return Err(syn::Error::new_spanned(range, message));
    }
    Ok((start..=end).collect())
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
