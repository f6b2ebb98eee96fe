//! What differentiation leaves behind: names that nothing reads or that are read once, and numbers of locals with gaps.

use std::collections::{HashMap, HashSet};

use crate::lower::ir::{Body, Expr, ExprKind, LocalId};

/// What is read once is written in place up to this depth: a long row of `let`s must not become one deep expression,
/// which neither compilers nor stacks take.
const IN_PLACE_DEPTH: usize = 8;

/// Whether reading `expr` a second time costs nothing.
pub(super) fn is_atom(expr: &Expr) -> bool {
    matches!(
        expr.kind,
        ExprKind::Float(_)
            | ExprKind::Int(_)
            | ExprKind::Bool(_)
            | ExprKind::Local(_)
            | ExprKind::Capture(_)
            | ExprKind::Len(_)
    )
}

/// Operations that may be computed again wherever a slope is read.
const SMALL: usize = 16;

/// Whether `expr` is a few operations on what costs nothing to read again.
pub(super) fn is_small(expr: &Expr) -> bool {
    fn nodes(expr: &Expr, left: &mut usize) -> bool {
        let operation = matches!(expr.kind, ExprKind::Unary(..) | ExprKind::Binary(..) | ExprKind::If(..));
        let mut small = *left > 0 && (operation || is_atom(expr));
        *left = left.saturating_sub(1);
        expr.for_each_child(&mut |child| small = small && nodes(child, left));
        small
    }
    nodes(expr, &mut { SMALL })
}

/// `value` under those of `lets` that it needs.
pub(super) fn needed(lets: &[(LocalId, Expr)], value: Expr) -> Expr {
    let mut read: HashSet<LocalId> = HashSet::new();
    for_each_read(&value, &mut |local| read.extend([local]));
    let mut kept = Vec::new();
    // A `let` reads only what stands above it.
    for (local, expr) in lets.iter().rev() {
        if read.contains(local) {
            for_each_read(expr, &mut |local| read.extend([local]));
            kept.push((*local, expr.clone()));
        }
    }
    if kept.is_empty() {
        return value;
    }
    kept.reverse();
    Expr { ty: value.ty, kind: ExprKind::Block(kept, Box::new(value)) }
}

fn depth(expr: &Expr) -> usize {
    let mut deepest = 0;
    expr.for_each_child(&mut |child| deepest = deepest.max(depth(child)));
    deepest + 1
}

fn for_each_read(expr: &Expr, visit: &mut impl FnMut(LocalId)) {
    if let ExprKind::Local(id) = expr.kind {
        visit(id);
    }
    expr.for_each_child(&mut |child| for_each_read(child, visit));
}

/// The same function, with locals from `first_new` on written in place where they are read once, and those that are not
/// read at all without a number. The first `parameters` keep theirs.
pub(super) fn tidy(body: Body, parameters: usize, first_new: LocalId) -> Body {
    let mut reads = HashMap::new();
    for_each_read(&body.value, &mut |local| *reads.entry(local).or_insert(0usize) += 1);
    let mut tidier = Tidier { reads, first_new, in_place: HashMap::new(), numbers: HashMap::new() };
    let mut locals: Vec<_> = body.locals[..parameters].to_vec();
    tidier.numbers.extend((0..parameters).map(|id| (id, id)));
    let value = tidier.expr(body.value);
    let mut renamed: Vec<(LocalId, LocalId)> =
        tidier.numbers.into_iter().filter(|(old, _)| *old >= parameters).collect();
    renamed.sort_unstable_by_key(|(_, new)| *new);
    locals.extend(renamed.into_iter().map(|(old, _)| body.locals[old].clone()));
    Body { locals, value }
}

struct Tidier {
    reads: HashMap<LocalId, usize>,
    first_new: LocalId,
    /// What is read once, by its local.
    in_place: HashMap<LocalId, Expr>,
    /// New numbers by old ones. Copies of a `let` in two branches share one.
    numbers: HashMap<LocalId, LocalId>,
}

impl Tidier {
    fn expr(&mut self, expr: Expr) -> Expr {
        match expr.kind {
            ExprKind::Local(id) => match self.in_place.remove(&id) {
                Some(value) => value,
                None => Expr { kind: ExprKind::Local(self.numbers[&id]), ..expr },
            },
            ExprKind::Block(lets, value) => {
                let mut kept = Vec::new();
                for (local, value) in lets {
                    let value = self.expr(value);
                    let once = local >= self.first_new && self.reads.get(&local) == Some(&1);
                    if once && value.is_inline() && depth(&value) <= IN_PLACE_DEPTH {
                        self.in_place.insert(local, value);
                    } else {
                        let next = self.numbers.len();
                        kept.push((*self.numbers.entry(local).or_insert(next), value));
                    }
                }
                let value = self.expr(*value);
                if kept.is_empty() {
                    return value;
                }
                Expr { ty: value.ty, kind: ExprKind::Block(kept, Box::new(value)) }
            }
            _ => expr.map_children(&mut |child| self.expr(child)),
        }
    }
}
