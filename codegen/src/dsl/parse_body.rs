//! From the tokens of a `body` to [`Body`].

use super::parse_values::{parse_braced_list, parse_ints, unknown_word};
use super::spans::{Role, Spans};
use super::{Body, Constraint, Expr, Launch, TensorMap, TuneOn, TuneParam, Worth};
use crate::arch::{Arch, Family};
use proc_macro2::Span;
use syn::parse::ParseStream;
use syn::{Ident, Result, Token, braced, bracketed};

mod kw {
    syn::custom_keyword!(tune);
    syn::custom_keyword!(on);
    syn::custom_keyword!(launch);
    syn::custom_keyword!(grid);
    syn::custom_keyword!(threads);
    syn::custom_keyword!(persistent);
    syn::custom_keyword!(queue);
    syn::custom_keyword!(tensor_maps);
    syn::custom_keyword!(worth);
}

pub(super) fn parse_body(input: ParseStream, spans: &mut Spans) -> Result<Body> {
    let family: Ident = input.parse()?;
    spans.body(&family);
    let family = Family::from_name(&family.to_string()).ok_or_else(|| {
        let known = Family::ALL.map(Family::name).join(", ");
        syn::Error::new(family.span(), format!("`{family}` is no architecture family: use one of {known}"))
    })?;
    let content;
    let brace = braced!(content in input);
    let (mut tune, mut tune_on, mut constraints) = (Vec::new(), Vec::new(), Vec::new());
    let (mut worth, mut tensor_maps) = (Vec::new(), Vec::new());
    let (mut smem_bytes, mut registers, mut prefer, mut launch) = (None, None, None, None);
    while !content.is_empty() {
        let next = content.lookahead1();
        if next.peek(kw::tune) {
            content.parse::<kw::tune>()?;
            if content.peek(kw::on) {
                tune_on.push(parse_tune_on(&content, spans, (family, &tune, &tune_on))?);
            } else {
                tune.extend(parse_braced_list(&content, spans, |input, spans| {
                    let name = spans.parameter(&input.parse()?)?;
                    input.parse::<Token![:]>()?;
                    Ok(TuneParam { name, values: parse_ints(input, spans)? })
                })?);
            }
        } else if next.peek(Token![where]) {
            content.parse::<Token![where]>()?;
            for clause in parse_braced_list(&content, spans, parse_clause)? {
                match clause {
                    Clause::Smem(name, value) => once(&mut smem_bytes, value, name.span(), "`smem_bytes`")?,
                    Clause::Registers(name, value) => {
                        once(&mut registers, value, name.span(), "`registers`")?
                    }
                    Clause::Prefer(name, value) => once(&mut prefer, value, name.span(), "`prefer`")?,
                    Clause::Condition(condition) => constraints.push(Constraint { condition }),
                }
            }
        } else if next.peek(kw::worth) {
            content.parse::<kw::worth>()?;
            worth.extend(parse_braced_list(&content, spans, parse_worth)?);
        } else if next.peek(kw::tensor_maps) {
            content.parse::<kw::tensor_maps>()?;
            tensor_maps.extend(parse_braced_list(&content, spans, parse_tensor_map)?);
        } else if next.peek(kw::launch) {
            let keyword = content.parse::<kw::launch>()?;
            once(&mut launch, parse_launch(&content, spans)?, keyword.span, "`launch`")?;
        } else {
            return Err(unknown_word(&content, "section of a body", &next.error()));
        }
    }
    let Some(launch) = launch else {
        let message = "a body needs `launch { grid = [x, y, z], threads = n }`";
        return Err(syn::Error::new(brace.span.join(), message));
    };
    let (smem_bytes, registers) = (smem_bytes.unwrap_or(Expr::Int(0)), registers.unwrap_or(Expr::Int(0)));
    Ok(Body { family, tune, tune_on, constraints, smem_bytes, registers, prefer, worth, tensor_maps, launch })
}

/// `on sm_86, sm_89 { STAGES: [1] }`, of a family's body whose `tune` and `tune on` so far are these.
fn parse_tune_on(
    input: ParseStream,
    spans: &Spans,
    (family, tune, before): (Family, &[TuneParam], &[TuneOn]),
) -> Result<TuneOn> {
    input.parse::<kw::on>()?;
    let fail = |at: &Ident, message: String| Err(syn::Error::new(at.span(), message));
    let mut archs = Vec::new();
    while archs.is_empty() || input.parse::<Option<Token![,]>>()?.is_some() {
        let name: Ident = input.parse()?;
        let runs = || Arch::ALL.into_iter().filter(|arch| arch.runs(family));
        let Some(arch) = runs().find(|arch| name == arch.name()) else {
            let known = runs().map(Arch::name).collect::<Vec<_>>().join(", ");
            return fail(
                &name,
                format!("`{name}` is no architecture that a body of {family} runs on: use {known}"),
            );
        };
        if archs.contains(&arch) {
            return fail(&name, format!("{arch} is listed twice"));
        }
        archs.push(arch);
    }
    let content;
    let brace = braced!(content in input);
    let mut there: Vec<TuneParam> = Vec::new();
    while !content.is_empty() {
        let name: Ident = content.parse()?;
        if !tune.iter().any(|param| name == param.name) {
            let known = tune.iter().map(|param| param.name.as_str()).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return fail(&name, format!("`{name}` is no parameter of the `tune` above, which has {known}"));
        }
        let on = before.iter().find(|on| {
            on.archs.iter().any(|arch| archs.contains(arch)) && on.tune.iter().any(|param| name == param.name)
        });
        if on.is_some() || there.iter().any(|param| name == param.name) {
            return fail(&name, format!("`{name}` has values on such an architecture already: keep one"));
        }
        content.parse::<Token![:]>()?;
        there.push(TuneParam { name: name.to_string(), values: parse_ints(&content, spans)? });
        if !content.is_empty() {
            content.parse::<Token![,]>()?;
        }
    }
    if there.is_empty() {
        let message = "a `tune on` without parameters changes nothing: give some of `tune` other values";
        return Err(syn::Error::new(brace.span.join(), message));
    }
    Ok(TuneOn { archs, tune: there })
}

/// Fills a place that one body has once.
fn once<T>(place: &mut Option<T>, value: T, span: Span, what: &str) -> Result<()> {
    if place.replace(value).is_some() {
        return Err(syn::Error::new(span, format!("{what} is given twice in one body: keep one")));
    }
    Ok(())
}

enum Clause {
    Smem(Ident, Expr),
    Registers(Ident, Expr),
    Prefer(Ident, Expr),
    Condition(Expr),
}

fn parse_clause(input: ParseStream, spans: &mut Spans) -> Result<Clause> {
    if input.peek(Ident) && input.peek2(Token![=]) && !input.peek2(Token![==]) {
        let name: Ident = input.parse()?;
        input.parse::<Token![=]>()?;
        return match name.to_string().as_str() {
            "smem_bytes" => Ok(Clause::Smem(name, spans.expr(input, Role::Budget)?)),
            "registers" => Ok(Clause::Registers(name, spans.expr(input, Role::Budget)?)),
            "prefer" => Ok(Clause::Prefer(name, spans.expr(input, Role::Prefer)?)),
            other => {
                let message = format!(
                    "`{other}` is not known here: use smem_bytes, registers or prefer, or a condition"
                );
                Err(syn::Error::new(name.span(), message))
            }
        };
    }
    Ok(Clause::Condition(spans.expr(input, Role::Constraint)?))
}

/// `tensor: condition`
fn parse_worth(input: ParseStream, spans: &mut Spans) -> Result<Worth> {
    let arg: Ident = input.parse()?;
    spans.worth(&arg);
    input.parse::<Token![:]>()?;
    Ok(Worth { arg: arg.to_string(), condition: spans.expr(input, Role::Worth)? })
}

/// `tensor: [rows, columns]`
fn parse_tensor_map(input: ParseStream, spans: &mut Spans) -> Result<TensorMap> {
    let arg: Ident = input.parse()?;
    spans.tensor_map(&arg);
    input.parse::<Token![:]>()?;
    let sides = parse_exprs(input, spans, Role::Box, "a box has 2 sides [rows, columns]")?;
    Ok(TensorMap { arg: arg.to_string(), rows_columns: sides })
}

/// `[a, b, …]`, as many as `N`.
fn parse_exprs<const N: usize>(
    input: ParseStream,
    spans: &mut Spans,
    role: Role,
    rule: &str,
) -> Result<[Expr; N]> {
    let list;
    let bracket = bracketed!(list in input);
    let mut exprs = Vec::new();
    while !list.is_empty() {
        exprs.push(spans.expr(&list, role)?);
        if !list.is_empty() {
            list.parse::<Token![,]>()?;
        }
    }
    exprs.try_into().map_err(|exprs: Vec<Expr>| {
        syn::Error::new(bracket.span.join(), format!("{rule}, found {}", exprs.len()))
    })
}

fn parse_launch(input: ParseStream, spans: &mut Spans) -> Result<Launch> {
    let content;
    braced!(content in input);
    content.parse::<kw::grid>()?;
    content.parse::<Token![=]>()?;
    let grid = parse_exprs(&content, spans, Role::Grid, "a grid has 3 dimensions [x, y, z]")?;
    content.parse::<Token![,]>()?;
    content.parse::<kw::threads>()?;
    content.parse::<Token![=]>()?;
    let threads = spans.expr(&content, Role::Threads)?;
    let more = content.parse::<Option<Token![,]>>()?.is_some();
    let persistent = more && content.peek(kw::persistent);
    let mut queue = false;
    if persistent {
        content.parse::<kw::persistent>()?;
        let more = content.parse::<Option<Token![,]>>()?.is_some();
        queue = more && content.parse::<Option<kw::queue>>()?.is_some();
        if queue {
            content.parse::<Option<Token![,]>>()?;
        }
    } else if content.peek(kw::queue) {
        let message = "a queue hands out the tiles of a persistent grid: write `persistent, queue`";
        return Err(content.error(message));
    }
    if !content.is_empty() {
        return Err(
            content.error("after `threads` stands `persistent` or `persistent, queue`, and nothing else")
        );
    }
    Ok(Launch { grid, threads, persistent, queue })
}
