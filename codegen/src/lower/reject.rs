//! What device functions leave out of Rust, and what to write instead.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::{Attribute, BinOp, Expr, Stmt};

/// Refuses every form of signature but `fn name(parameters) -> type`.
pub(crate) fn signature(item: &syn::ItemFn) -> syn::Result<()> {
    let sig = &item.sig;
    let refuse = |span: Span, what: &str| {
        Err(syn::Error::new(
            span,
            format!("{what} not supported: a device function is a plain `fn name(…) -> …`"),
        ))
    };
    if let Some(token) = &sig.asyncness {
        return refuse(token.span(), "`async` is");
    }
    if !matches!(sig.safety, syn::Safety::Default) {
        return refuse(sig.safety.span(), "`unsafe` is");
    }
    if let Some(abi) = &sig.abi {
        return refuse(abi.span(), "another ABI is");
    }
    if !sig.generics.params.is_empty() {
        return refuse(sig.generics.span(), "generics are");
    }
    if let Some(clause) = &sig.generics.where_clause {
        return refuse(clause.span(), "`where` clauses are");
    }
    if let Some(variadic) = &sig.variadic {
        return refuse(variadic.span(), "variadic parameters are");
    }
    Ok(())
}

/// Refuses attributes inside the function.
pub(crate) fn attributes(attributes: &[Attribute]) -> syn::Result<()> {
    match attributes.first() {
        None => Ok(()),
        Some(first) => Err(syn::Error::new_spanned(
            first,
            "attributes are not supported inside a device function: put them on the function itself",
        )),
    }
}

/// Why this statement is not one of a device function.
pub(crate) fn statement(statement: &Stmt) -> syn::Error {
    match statement {
        Stmt::Macro(statement) => macro_call(&statement.mac),
        Stmt::Item(item) => syn::Error::new_spanned(
            item,
            "items are not supported inside a device function: use `let`, or a capture for a constant",
        ),
        Stmt::Expr(Expr::Return(expr), _) => early_return(expr),
        Stmt::Expr(Expr::If(expr), _) if expr.else_branch.is_none() => match expr.then_branch.stmts.last() {
            Some(Stmt::Expr(Expr::Return(expr), _)) => early_return(expr),
            _ => if_without_else(expr),
        },
        Stmt::Expr(expr, _) => {
            if let Some(error) = expression(expr) {
                return error;
            }
            syn::Error::new_spanned(
                statement,
                "this statement has no effect: bind its value with `let`, or leave out the `;` if it is the value \
                 of the block",
            )
        }
        Stmt::Local(local) => syn::Error::new_spanned(local, "`let` is not supported here"),
    }
}

/// The message for an `if` whose value is missing when the condition does not hold.
pub(crate) fn if_without_else(expr: &syn::ExprIf) -> syn::Error {
    syn::Error::new(
        expr.if_token.span(),
        "this `if` has no `else`: in a device function `if` is an expression and needs both values",
    )
}

fn early_return(expr: &syn::ExprReturn) -> syn::Error {
    syn::Error::new(
        expr.return_token.span(),
        "`return` is supported at the end of the function only: use `if` and `else` to choose the value",
    )
}

fn macro_call(mac: &syn::Macro) -> syn::Error {
    syn::Error::new_spanned(
        mac,
        "macros are not supported in a device function: write out the expression they stand for",
    )
}

/// Why this kind of expression is not one of a device function; `None` for the kinds that are.
pub(crate) fn expression(expr: &Expr) -> Option<syn::Error> {
    const BRANCHES: &str = "use `if` and `else`";
    const SCALARS: &str = "values are numbers and bools, use one `let` for each";
    const NO_LOOP: &str = "compute the value in closed form from `q`, `kv` and the captures";
    const NEW_LET: &str = "bind the new value with another `let` of the same name";
    let (span, what, instead) = match expr {
        Expr::ForLoop(expr) => (expr.for_token.span(), "loops are", NO_LOOP),
        Expr::While(expr) => (expr.while_token.span(), "loops are", NO_LOOP),
        Expr::Loop(expr) => (expr.loop_token.span(), "loops are", NO_LOOP),
        Expr::Break(expr) => (expr.break_token.span(), "`break` is", NO_LOOP),
        Expr::Continue(expr) => (expr.continue_token.span(), "`continue` is", NO_LOOP),
        Expr::Match(expr) => (expr.match_token.span(), "`match` is", BRANCHES),
        Expr::Let(expr) => (expr.let_token.span(), "`if let` is", "compare with `==`, `<` and so on"),
        Expr::Try(expr) => (expr.question_token.span(), "`?` is", BRANCHES),
        Expr::Assign(expr) => (expr.eq_token.span(), "assignment is", NEW_LET),
        Expr::Binary(expr) if is_assignment(&expr.op) => (expr.op.span(), "assignment is", NEW_LET),
        Expr::Reference(expr) => {
            (expr.and_token.span(), "`&` is", "only captures are slices, index them as in `doc[q as usize]`")
        }
        Expr::Unsafe(expr) => (expr.unsafe_token.span(), "`unsafe` is", "everything here is safe without it"),
        Expr::Async(expr) => (expr.async_token.span(), "`async` is", "write the expression in place"),
        Expr::Await(expr) => (expr.await_token.span(), "`await` is", "write the expression in place"),
        Expr::Const(expr) => (expr.const_token.span(), "`const` blocks are", "write the expression in place"),
        Expr::Block(expr) if expr.label.is_some() => (expr.label.span(), "labels are", BRANCHES),
        Expr::Array(_) | Expr::Repeat(_) => (expr.span(), "arrays are", "pass a `&[…]` capture"),
        Expr::Tuple(_) => (expr.span(), "tuples are", SCALARS),
        Expr::Struct(_) => (expr.span(), "structs are", SCALARS),
        Expr::Field(expr) => (expr.dot_token.span(), "fields are", SCALARS),
        Expr::Range(_) => (expr.span(), "ranges are", "compare with `<` and `<=`"),
        Expr::Closure(_) => {
            return Some(syn::Error::new_spanned(
                expr,
                "closures are not supported in a device function: write the expression in place",
            ));
        }
        Expr::Return(expr) => return Some(early_return(expr)),
        Expr::Macro(expr) => return Some(macro_call(&expr.mac)),
        _ => return None,
    };
    Some(syn::Error::new(span, format!("{what} not supported in a device function: {instead}")))
}

fn is_assignment(op: &BinOp) -> bool {
    matches!(
        op,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::MulAssign(_)
            | BinOp::DivAssign(_)
            | BinOp::RemAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
    )
}

/// What was written, for a message: its beginning, where it is long.
pub(crate) fn quoted(tokens: &impl quote::ToTokens) -> String {
    const SHOWN: usize = 60;
    let text = tokens.to_token_stream().to_string().replace("& ", "&");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
