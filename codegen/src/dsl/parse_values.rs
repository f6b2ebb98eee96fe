//! From the tokens of constants, `specialize` and `ship` to their values, and lists in braces.

use super::spans::{Role, Spans};
use super::{Constant, Kernel, SpecParam, SpecValues};
use crate::dtype::DType;
use proc_macro2::TokenTree;
use syn::parse::ParseStream;
use syn::punctuated::Punctuated;
use syn::{Ident, LitInt, Result, Token, braced, bracketed};

/// The most constants, those that are included among them.
const MOST_CONSTANTS: usize = 256;

/// `NAME = expression;` of numbers and the constants above it, or `NAME = [1, 2];`
pub(super) fn parse_constant(input: ParseStream, kernel: &mut Kernel, spans: &mut Spans) -> Result<()> {
    let ident: Ident = input.parse()?;
    let name = spans.constant(&ident)?;
    if spans.constant_names().count() == MOST_CONSTANTS {
        let message = format!("a declaration has at most {MOST_CONSTANTS} constants");
        return Err(syn::Error::new(ident.span(), message));
    }
    input.parse::<Token![=]>()?;
    if input.peek(syn::token::Bracket) || input.peek2(Token![..=]) {
        let values = parse_ints(input, spans)?;
        spans.lists.push((name, values));
    } else {
        let at = input.span();
        let value = spans.expr(input, Role::Constant)?;
        if let Some(unknown) = value.names().first() {
            let message = spans.unknown(unknown, Role::Constant, &spans.constants());
            return Err(syn::Error::new(spans.of_name(unknown, &value, Role::Constant, 0), message));
        }
        let fail = |message: String| syn::Error::new(at, message);
        let found = value.eval(&|_| None).map_err(|error| fail(error.to_string()))?;
        if i32::try_from(found).is_err() || found < 0 {
            return Err(fail(format!(
                "{name} = {found} is no constant: it has 32 bits, from 0 to {}",
                i32::MAX
            )));
        }
        kernel.constants.push(Constant { name: name.clone(), value: found });
        spans.values.push((name, found));
    }
    input.parse::<Token![;]>()?;
    Ok(())
}

pub(super) fn parse_spec_param(input: ParseStream, spans: &mut Spans) -> Result<SpecParam> {
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
    let values = SpecValues::Ints(parse_ints(input, spans)?);
    let default = match input.parse::<Option<Token![=]>>()? {
        Some(_) => Some(spans.expr(input, Role::Default)?),
        None => None,
    };
    Ok(SpecParam { name, values, default })
}

/// As in `specialize`, with positions of its own: the names are the same.
pub(super) fn parse_shipped(input: ParseStream, spans: &mut Spans) -> Result<SpecParam> {
    let mut shipped = spans.of_lists();
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

/// `[1, 2]`, `1..=3` or the constant that is such a list, of what the constants of a source hold: CUDA's `int`.
pub(super) fn parse_ints(input: ParseStream, spans: &Spans) -> Result<Vec<i64>> {
    if input.peek(Ident) {
        let name: Ident = input.parse()?;
        return spans.list(&name);
    }
    let value = |literal: &LitInt| {
        let parsed =
            literal.base10_parse::<i32>().ok().filter(|value| *value >= 0 && literal.suffix().is_empty());
        parsed.map(i64::from).ok_or_else(|| {
            let message = format!(
                "{literal} is no value of a parameter: it has 32 bits, from 0 to {}, and no suffix",
                i32::MAX
            );
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

/// `{ item, item }`
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

/// The error for a word where one of several is needed: what stands there, and `expected`, which lists them.
pub(super) fn unknown_word(input: ParseStream, what: &str, expected: &syn::Error) -> syn::Error {
    match input.cursor().token_tree() {
        Some((found, _)) => {
            let found = match &found {
                TokenTree::Group(_) => "what is in brackets here".to_owned(),
                word => format!("`{word}`"),
            };
            syn::Error::new(expected.span(), format!("{found} is no {what}: {expected}"))
        }
        None => expected.clone(),
    }
}
