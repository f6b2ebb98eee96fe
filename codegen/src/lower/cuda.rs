//! The typed form as CUDA C++.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::ir::{BinaryOp, Body, Expr, ExprKind, Intrinsic, LocalId, Type, UnaryOp};
use super::{CaptureLayout, DeviceFunction, FunctionKind};

/// The helpers that functors call, pasted once above them: arithmetic that is defined for every operand, Rust's
/// saturating casts and checked reads of slices. `TILEWRIGHT_OFFSETOF` comes from the prelude of every source.
pub const DEVICE_PRELUDE: &str = include_str!("prelude.cuh");

/// The functor of `function`; with its derivative, where one is asked for and there is one.
pub(crate) fn functor(function: &DeviceFunction, with_gradient: bool) -> String {
    let mut names = Names::default();
    let captures: Vec<String> =
        function.captures.iter().map(|capture| names.unique("c", &capture.name)).collect();
    let lengths: Vec<Option<String>> = function
        .captures
        .iter()
        .zip(&captures)
        .map(|(capture, name)| capture.ty.is_slice().then(|| names.unique_as(format!("{name}_len"))))
        .collect();

    let mut fields = Vec::new();
    for ((capture, name), length) in function.captures.iter().zip(&captures).zip(&lengths) {
        let element = capture.ty.element().cuda();
        match length {
            Some(length) => {
                fields.push((format!("const {element}*"), name.clone()));
                fields.push(("int".into(), length.clone()));
            }
            None => fields.push((element.into(), name.clone())),
        }
    }
    let method = |name: &str, body: &Body| {
        let mut names = names.clone();
        let locals: Vec<String> = body.locals.iter().map(|local| names.unique("v", &local.name)).collect();
        let leading = function.kind.leading().iter().zip(&locals);
        let parameters = leading.map(|((_, ty), name)| format!("{} {name}", ty.cuda())).collect();
        let (captures, lengths) = (captures.clone(), lengths.clone());
        let mut printer =
            Printer { function, names, captures, lengths, locals, lines: Vec::new(), indent: 2 };
        printer.statement(&body.value, &Sink::Return);
        Method { name: name.into(), parameters, lines: printer.lines }
    };
    let gradient = function.gradient.as_ref().filter(|_| with_gradient);
    let methods: Vec<Method> = [method(CALL, &function.body)]
        .into_iter()
        .chain(gradient.map(|body| method(GRADIENT, body)))
        .collect();
    functor_text(function.kind, &fields, &function.layout(), &methods)
}

/// The functor that changes nothing.
pub(crate) fn absent(kind: FunctionKind, with_gradient: bool) -> String {
    let method = |name: &str, value: &str| {
        let parameters = kind.leading().iter().map(|(name, ty)| match *name == value {
            true => format!("{} {name}", ty.cuda()),
            false => ty.cuda().into(),
        });
        let lines = vec![format!("        return {value};")];
        Method { name: name.into(), parameters: parameters.collect(), lines }
    };
    let methods = match kind {
        FunctionKind::ScoreMod if with_gradient => vec![method(CALL, "score"), method(GRADIENT, "1.0f")],
        FunctionKind::ScoreMod => vec![method(CALL, "score")],
        FunctionKind::MaskMod => vec![method(CALL, "true")],
    };
    functor_text(kind, &[], &CaptureLayout::of(&[]), &methods)
}

const CALL: &str = "operator()";
const GRADIENT: &str = "gradient";

/// A member function of a functor: what it is called, `int v_q` and so on, its statements.
struct Method {
    name: String,
    parameters: Vec<String>,
    lines: Vec<String>,
}

fn functor_text(
    kind: FunctionKind,
    fields: &[(String, String)],
    layout: &CaptureLayout,
    methods: &[Method],
) -> String {
    let name = kind.functor();
    let mut text = format!("struct {name} {{\n");
    for (ty, field) in fields {
        let _ = writeln!(text, "    {ty} {field};");
    }
    if fields.is_empty() {
        text.push_str("    unsigned unused;\n");
    }
    for method in methods {
        let _ = writeln!(
            text,
            "    __device__ __forceinline__ {} {}({}) const {{",
            kind.returns().cuda(),
            method.name,
            method.parameters.join(", ")
        );
        for line in &method.lines {
            let _ = writeln!(text, "{line}");
        }
        text.push_str("    }\n");
    }
    text.push_str("};\n");
    let _ = writeln!(
        text,
        "static_assert(sizeof({name}) == {} && alignof({name}) == {}, \"{name}: layout differs from the host's\");",
        layout.size, layout.align
    );
    for (field, (_, cuda_name)) in layout.fields.iter().zip(fields) {
        let _ = writeln!(
            text,
            "static_assert(TILEWRIGHT_OFFSETOF({name}, {cuda_name}) == {}, \"{name}: layout differs from the host's\");",
            field.offset
        );
    }
    text
}

/// Names already given. A prefix keeps users' names away from keywords and macros, a number keeps those apart
/// that shadow one another in Rust.
#[derive(Clone, Default)]
struct Names {
    taken: HashSet<String>,
    /// The last number given to a name.
    numbers: HashMap<String, usize>,
}

impl Names {
    fn unique(&mut self, prefix: &str, name: &str) -> String {
        let mut text = format!("{prefix}_");
        for character in name.chars() {
            if character.is_ascii_alphanumeric() || character == '_' {
                text.push(character);
            } else {
                let _ = write!(text, "u{:x}", u32::from(character));
            }
        }
        self.unique_as(text)
    }

    fn unique_as(&mut self, base: String) -> String {
        let mut name = base.clone();
        while !self.taken.insert(name.clone()) {
            let number = self.numbers.entry(base.clone()).or_insert(1);
            *number += 1;
            name = format!("{base}_{number}");
        }
        name
    }
}

/// Where a statement puts its value.
enum Sink {
    Return,
    Variable(String),
}

struct Printer<'a> {
    function: &'a DeviceFunction,
    names: Names,
    captures: Vec<String>,
    lengths: Vec<Option<String>>,
    locals: Vec<String>,
    lines: Vec<String>,
    indent: usize,
}

/// Whether the value of `expr` comes out of an `if` with statements inside, which cannot initialise a const.
fn ends_in_statement(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::Block(_, value) => ends_in_statement(value),
        ExprKind::If(..) => !expr.is_inline(),
        _ => false,
    }
}

/// `text` without the parentheses around the whole of it.
fn bare(text: &str) -> &str {
    let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return text };
    let mut open = 0;
    for character in inner.chars() {
        match character {
            '(' => open += 1,
            ')' if open == 0 => return text,
            ')' => open -= 1,
            _ => {}
        }
    }
    inner
}

impl Printer<'_> {
    fn line(&mut self, text: &str) {
        self.lines.push(format!("{}{text}", "    ".repeat(self.indent)));
    }

    /// Prints statements that put the value of `expr` into `sink`.
    fn statement(&mut self, expr: &Expr, sink: &Sink) {
        match &expr.kind {
            ExprKind::Block(lets, value) => {
                self.lets(lets);
                self.statement(value, sink);
            }
            ExprKind::If(condition, yes, no) if !expr.is_inline() => {
                let condition = self.expr(condition);
                self.line(&format!("if ({}) {{", bare(&condition)));
                self.indented(yes, sink);
                self.line("} else {");
                self.indented(no, sink);
                self.line("}");
            }
            _ => {
                let value = self.expr(expr);
                match sink {
                    Sink::Return => self.line(&format!("return {};", bare(&value))),
                    Sink::Variable(name) => self.line(&format!("{name} = {};", bare(&value))),
                }
            }
        }
    }

    fn indented(&mut self, expr: &Expr, sink: &Sink) {
        self.indent += 1;
        self.statement(expr, sink);
        self.indent -= 1;
    }

    fn lets(&mut self, lets: &[(LocalId, Expr)]) {
        for (local, value) in lets {
            let name = self.locals[*local].clone();
            let ty = value.ty.cuda();
            if !ends_in_statement(value) {
                let value = self.expr(value);
                self.line(&format!("const {ty} {name} = {};", bare(&value)));
            } else {
                self.line(&format!("{ty} {name};"));
                self.statement(value, &Sink::Variable(name));
            }
        }
    }

    /// The text of `expr`: one token, a call, or parenthesised. Blocks inside it are printed first, as statements.
    fn expr(&mut self, expr: &Expr) -> String {
        match &expr.kind {
            ExprKind::Float(value) => float_text(*value),
            ExprKind::Int(value) => int_text(*value, expr.ty),
            ExprKind::Bool(value) => value.to_string(),
            ExprKind::Local(id) => self.locals[*id].clone(),
            ExprKind::Capture(id) => self.captures[*id].clone(),
            ExprKind::Len(id) => format!("((unsigned long long){})", self.length(*id)),
            ExprKind::Index(id, index) => {
                let index = self.expr(index);
                format!("tw::read({}, {}, {})", self.captures[*id], self.length(*id), bare(&index))
            }
            ExprKind::Unary(op, operand) => {
                let text = self.expr(operand);
                match (op, expr.ty) {
                    (UnaryOp::Neg, Type::F32) => format!("(-{text})"),
                    (UnaryOp::Neg, _) => format!("tw::neg({})", bare(&text)),
                    (UnaryOp::Not, Type::Bool) => format!("(!{text})"),
                    (UnaryOp::Not, _) => format!("(~{text})"),
                }
            }
            ExprKind::Binary(op, left, right) => {
                let operands = left.ty;
                let (left, right) = (self.expr(left), self.expr(right));
                binary_text(*op, operands, &left, &right)
            }
            ExprKind::Cast(operand) => {
                let text = self.expr(operand);
                match (operand.ty, expr.ty) {
                    (Type::F32, Type::F32) => text,
                    (Type::F32, to) => format!("tw::to_{}({})", to.name(), bare(&text)),
                    (_, to) => format!("(({}){text})", to.cuda()),
                }
            }
            ExprKind::Call(intrinsic, arguments) => {
                let arguments: Vec<String> = arguments.iter().map(|argument| self.expr(argument)).collect();
                let arguments: Vec<&str> = arguments.iter().map(|text| bare(text)).collect();
                format!("{}({})", intrinsic_name(*intrinsic, expr.ty), arguments.join(", "))
            }
            ExprKind::If(condition, yes, no) if expr.is_inline() => {
                let (condition, yes, no) = (self.expr(condition), self.expr(yes), self.expr(no));
                format!("({condition} ? {yes} : {no})")
            }
            ExprKind::Block(lets, value) => {
                self.lets(lets);
                self.expr(value)
            }
            ExprKind::If(..) => {
                let name = self.names.unique("t", "");
                self.line(&format!("{} {name};", expr.ty.cuda()));
                self.statement(expr, &Sink::Variable(name.clone()));
                name
            }
        }
    }

    fn length(&self, capture: usize) -> &str {
        self.lengths[capture].as_deref().unwrap_or(&self.function.captures[capture].name)
    }
}

fn binary_text(op: BinaryOp, operands: Type, left: &str, right: &str) -> String {
    let helper = match (op, operands) {
        (BinaryOp::Add, Type::I32 | Type::I64) => "tw::add",
        (BinaryOp::Sub, Type::I32 | Type::I64) => "tw::sub",
        (BinaryOp::Mul, Type::I32 | Type::I64) => "tw::mul",
        (BinaryOp::Div, ty) if ty.is_int() => "tw::div",
        (BinaryOp::Rem, ty) if ty.is_int() => "tw::rem",
        (BinaryOp::Rem, _) => "fmodf",
        _ => {
            let symbol = match (op, operands) {
                (BinaryOp::BitAnd, Type::Bool) => "&&",
                (BinaryOp::BitOr, Type::Bool) => "||",
                (BinaryOp::BitXor, Type::Bool) => "!=",
                _ => op.symbol(),
            };
            return format!("({left} {symbol} {right})");
        }
    };
    format!("{helper}({}, {})", bare(left), bare(right))
}

fn intrinsic_name(intrinsic: Intrinsic, ty: Type) -> &'static str {
    match (intrinsic, ty) {
        (Intrinsic::Exp, _) => "expf",
        (Intrinsic::Exp2, _) => "exp2f",
        (Intrinsic::Ln, _) => "logf",
        (Intrinsic::Log2, _) => "log2f",
        (Intrinsic::Tanh, _) => "tanhf",
        (Intrinsic::Sqrt, _) => "sqrtf",
        (Intrinsic::Sin, _) => "sinf",
        (Intrinsic::Cos, _) => "cosf",
        (Intrinsic::Floor, _) => "floorf",
        (Intrinsic::Ceil, _) => "ceilf",
        (Intrinsic::Powi, _) => "tw::powi",
        (Intrinsic::Abs, Type::F32) => "fabsf",
        (Intrinsic::Min, Type::F32) => "fminf",
        (Intrinsic::Max, Type::F32) => "fmaxf",
        (Intrinsic::Abs, _) => "tw::abs",
        (Intrinsic::Min, _) => "tw::min",
        (Intrinsic::Max, _) => "tw::max",
    }
}

fn float_text(value: f32) -> String {
    let decimal = format!("{value:?}");
    // A C++ compiler may round a decimal to double first; only then does the shortest decimal mean `value`.
    if value.is_finite() && decimal.parse::<f64>().is_ok_and(|double| double as f32 == value) {
        if value.is_sign_negative() { format!("({decimal}f)") } else { format!("{decimal}f") }
    } else {
        format!("__int_as_float(0x{:08x})", value.to_bits())
    }
}

fn int_text(value: i128, ty: Type) -> String {
    let suffix = match ty {
        Type::U32 => "u",
        Type::I64 => "ll",
        Type::Usize => "ull",
        _ => "",
    };
    match ty.int_range() {
        // C++ has no literal for the smallest value: it negates one that is too large.
        Some((low, _)) if value == low && low < 0 => format!("(-{}{suffix} - 1{suffix})", -(low + 1)),
        _ if value < 0 => format!("({value}{suffix})"),
        _ => format!("{value}{suffix}"),
    }
}
