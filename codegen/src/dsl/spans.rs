//! Where a declaration's names and expressions were written.

use super::{Expr, names};
use proc_macro2::Span;
use std::fmt;
use syn::parse::ParseStream;
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{Ident, Result};

/// What an expression of a declaration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Constant,
    Default,
    Derived,
    Requirement,
    Constraint,
    Budget,
    Prefer,
    Threads,
    Grid,
    Box,
    Worth,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Constant => "a constant",
            Role::Default => "a default",
            Role::Derived => "a derived dimension",
            Role::Requirement => "a requirement",
            Role::Constraint => "a constraint",
            Role::Budget => "a budget",
            Role::Prefer => "`prefer`",
            Role::Threads => "`threads`",
            Role::Grid => "`grid`",
            Role::Box => "a box",
            Role::Worth => "`worth`",
        })
    }
}

/// Where each name was written, in order; each expression; each body. And what the constants are, which later parts name.
#[derive(Default)]
pub(super) struct Spans {
    /// Constants that are numbers.
    pub(super) values: Vec<(String, i64)>,
    /// Constants that are lists.
    pub(super) lists: Vec<(String, Vec<i64>)>,
    names: Vec<(String, Span)>,
    /// Those of `ship`.
    shipped: Vec<(String, Span)>,
    exprs: Vec<Written>,
    bodies: Vec<Span>,
    /// Those of `tensor_maps`.
    tensor_maps: Vec<(String, Span)>,
    /// Those of `worth`.
    worth: Vec<(String, Span)>,
}

/// An expression as it was written. The same text may stand in several places, of which one is wrong.
struct Written {
    expr: Expr,
    role: Role,
    /// How many bodies had begun.
    body: usize,
    span: Span,
    names: Vec<(String, Span)>,
}

impl Spans {
    /// Notes the name of the kernel, an argument, a dimension or a function.
    pub(super) fn variable(&mut self, ident: &Ident) -> Result<String> {
        let name = self.name(ident)?;
        if name.contains(|letter: char| letter.is_ascii_uppercase()) {
            let message = "must be in small letters: capitals are for parameters of `specialize` and `tune`";
            return Err(names::refused(ident, message));
        }
        Ok(name)
    }

    /// Notes the name of a parameter of `specialize` or `tune`.
    pub(super) fn parameter(&mut self, ident: &Ident) -> Result<String> {
        let name = self.name(ident)?;
        if name.contains(|letter: char| letter.is_ascii_lowercase()) {
            let message = "must be in capitals, as the constant that it is: small letters are for dimensions";
            return Err(names::refused(ident, message));
        }
        if names::variable(&name).is_none() {
            return Err(names::refused(
                ident,
                "is in small letters a word of Rust that no variable can have",
            ));
        }
        Ok(name)
    }

    /// Notes the name of a constant.
    pub(super) fn constant(&mut self, ident: &Ident) -> Result<String> {
        let name = self.parameter(ident)?;
        if names::OF_BINDINGS.contains(&name.as_str()) {
            return Err(names::refused(ident, "is a name of the generated code"));
        }
        if self.constant_names().any(|known| known == name) {
            return Err(names::refused(ident, "is a constant already"));
        }
        Ok(name)
    }

    /// The names of all constants.
    pub(super) fn constant_names(&self) -> impl Iterator<Item = &str> {
        let lists = self.lists.iter().map(|(name, _)| name.as_str());
        self.values.iter().map(|(name, _)| name.as_str()).chain(lists)
    }

    /// The values of the constant of that name, which is a list.
    pub(super) fn list(&self, name: &Ident) -> Result<Vec<i64>> {
        match self.lists.iter().find(|(known, _)| name == known) {
            Some((_, values)) => Ok(values.clone()),
            None => {
                let lists: Vec<&str> = self.lists.iter().map(|(known, _)| known.as_str()).collect();
                let lists = if lists.is_empty() { "none".to_owned() } else { lists.join(", ") };
                let message = format!(
                    "`{name}` is no list of integers: write `[1, 2]`, `1..=8` or a constant above that is one, of which there \
                     are {lists}"
                );
                Err(syn::Error::new(name.span(), message))
            }
        }
    }

    /// The numbers that an expression may name, for a message.
    pub(super) fn constants(&self) -> String {
        match self.values.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "numbers alone".to_owned(),
            names => names,
        }
    }

    /// What is wrong with a name that an expression cannot use.
    pub(super) fn unknown(&self, name: &str, role: Role, allowed: &str) -> String {
        match self.lists.iter().any(|(known, _)| known == name) {
            true => format!(
                "`{name}` is a list, which `specialize`, `ship` and `tune` take as values: {role} can use {allowed}"
            ),
            false => format!("`{name}` is not known in {role}: it can use {allowed}"),
        }
    }

    /// Notes a name, which becomes one in Rust and in CUDA.
    pub(super) fn name(&mut self, ident: &Ident) -> Result<String> {
        names::check(ident)?;
        let name = ident.to_string();
        self.names.push((name.clone(), ident.span()));
        Ok(name)
    }

    /// Positions of their own for a part whose names stand elsewhere too, with the same lists to name.
    pub(super) fn of_lists(&self) -> Spans {
        Spans { lists: self.lists.clone(), ..Spans::default() }
    }

    /// Notes names of `ship`.
    pub(super) fn shipped(&mut self, names: Spans) {
        self.shipped.extend(names.names);
    }

    /// Notes that a body begins.
    pub(super) fn body(&mut self, family: &Ident) {
        self.bodies.push(family.span());
    }

    /// Notes a tensor of `tensor_maps`.
    pub(super) fn tensor_map(&mut self, arg: &Ident) {
        self.tensor_maps.push((arg.to_string(), arg.span()));
    }

    /// Notes a tensor of `worth`.
    pub(super) fn worth(&mut self, arg: &Ident) {
        self.worth.push((arg.to_string(), arg.span()));
    }

    /// Where `worth` names a tensor last.
    pub(super) fn of_worth(&self, arg: &str) -> Span {
        let found = self.worth.iter().rev().find(|(known, _)| known == arg);
        found.map_or_else(Span::call_site, |(_, span)| *span)
    }

    /// Where `tensor_maps` names a tensor last.
    pub(super) fn of_tensor_map(&self, arg: &str) -> Span {
        let found = self.tensor_maps.iter().rev().find(|(known, _)| known == arg);
        found.map_or_else(Span::call_site, |(_, span)| *span)
    }

    /// Parses and notes an expression.
    pub(super) fn expr(&mut self, input: ParseStream, role: Role) -> Result<Expr> {
        let parsed: syn::Expr = input.parse()?;
        let mut expr = Expr::try_from(&parsed)?;
        expr.replace(&|name| self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value));
        let mut names = Names(Vec::new());
        names.visit_expr(&parsed);
        let (span, body) = (parsed.span(), self.bodies.len());
        self.exprs.push(Written { expr: expr.clone(), role, body, span, names: names.0 });
        Ok(expr)
    }

    /// The last place a name was written: the repetition, where there is one.
    pub(super) fn of(&self, name: &str) -> Span {
        let found = self.names.iter().rev().find(|(known, _)| known == name);
        found.map_or_else(Span::call_site, |(_, span)| *span)
    }

    /// The first place a name was written.
    pub(super) fn of_first(&self, name: &str) -> Span {
        let found = self.names.iter().find(|(known, _)| known == name);
        found.map_or_else(Span::call_site, |(_, span)| *span)
    }

    /// Where `ship` names a parameter.
    pub(super) fn of_shipped(&self, name: &str) -> Span {
        let found = self.shipped.iter().find(|(known, _)| known == name);
        found.map_or_else(Span::call_site, |(_, span)| *span)
    }

    /// Where a body's family was written, counted from 1.
    pub(super) fn of_body(&self, body: usize) -> Span {
        self.bodies.get(body - 1).copied().unwrap_or_else(Span::call_site)
    }

    /// Where an expression was written: outside bodies (0) or in one, counted from 1.
    pub(super) fn of_expr(&self, expr: &Expr, role: Role, body: usize) -> Span {
        self.written(expr, role, body).map_or_else(Span::call_site, |written| written.span)
    }

    /// Where a name was written in an expression.
    pub(super) fn of_name(&self, name: &str, expr: &Expr, role: Role, body: usize) -> Span {
        let written = self.written(expr, role, body);
        let found = written.and_then(|written| written.names.iter().find(|(known, _)| known == name));
        found.map_or_else(Span::call_site, |(_, span)| *span)
    }

    fn written(&self, expr: &Expr, role: Role, body: usize) -> Option<&Written> {
        // Constants, defaults, derived dimensions and requirements may stand after a body.
        let anywhere = matches!(role, Role::Constant | Role::Default | Role::Derived | Role::Requirement);
        self.exprs.iter().find(|written| {
            written.role == role && (anywhere || written.body == body) && written.expr == *expr
        })
    }
}

/// Collects the identifiers of an expression.
struct Names(Vec<(String, Span)>);

impl<'a> Visit<'a> for Names {
    fn visit_ident(&mut self, ident: &'a Ident) {
        self.0.push((ident.to_string(), ident.span()));
    }
}
