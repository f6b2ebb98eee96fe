//! Random device functions as Rust source, for tests.
//!
//! A function is grown from a tape of random bytes: each byte decides one choice, and when the tape is used up
//! every choice is the simplest one. Shrinking the tape therefore shrinks the function.

use proptest::prelude::*;

use super::{CaptureType, CaptureValue, FunctionKind, Type};

/// How deep expressions nest.
const MAX_DEPTH: usize = 5;

/// Names that CUDA, C++ or the functor itself might claim.
const NAMES: &[&str] = &["x", "y", "float", "unused", "r#struct", "é", "q", "c0_len", "__half"];

/// Which methods a random function may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Only those whose value is the same to the last bit on every machine: the interpreter and a kernel compiled
    /// with `--fmad=false` then agree exactly.
    Exact,
    /// All of them. A result that branches on the last bit of an `exp` may differ between host and device.
    All,
}

/// A strategy for well-typed functions named `random`: the source and a value for each capture.
pub fn device_function(
    kind: FunctionKind,
    methods: Methods,
) -> impl Strategy<Value = (String, Vec<CaptureValue>)> {
    proptest::collection::vec(any::<u8>(), 0..300).prop_map(move |tape| grow(kind, methods, &tape))
}

/// The function that `tape` stands for.
pub fn grow(kind: FunctionKind, methods: Methods, tape: &[u8]) -> (String, Vec<CaptureValue>) {
    let mut grower = Grower { tape: tape.iter(), methods, scope: Vec::new(), slices: Vec::new() };
    let mut parameters = Vec::new();
    for (name, ty) in kind.leading() {
        grower.scope.push(((*name).into(), *ty));
        parameters.push(format!("{name}: {}", ty.name()));
    }
    let mut captures = Vec::new();
    for at in 0..grower.choose(4) {
        let name = format!("c{at}");
        let value = grower.capture();
        let ty = value.ty();
        parameters.push(format!("{name}: {}", ty.name()));
        if ty.is_slice() {
            grower.slices.push((name, ty));
        } else {
            grower.scope.push((name, ty.element()));
        }
        captures.push(value);
    }
    let body = grower.block(kind.returns(), 0, true);
    let returns = kind.returns().name();
    (format!("fn random({}) -> {returns} {body}", parameters.join(", ")), captures)
}

struct Grower<'a> {
    tape: std::slice::Iter<'a, u8>,
    methods: Methods,
    scope: Vec<(String, Type)>,
    slices: Vec<(String, CaptureType)>,
}

impl Grower<'_> {
    fn choose(&mut self, choices: usize) -> usize {
        usize::from(self.tape.next().copied().unwrap_or(0)) % choices
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.choose(from.len())]
    }

    fn capture(&mut self) -> CaptureValue {
        const FLOATS: &[f32] = &[0.0, 1.0, -2.5, 30.0, 1e-3, f32::INFINITY, f32::NAN, -0.0];
        const INTS: &[i32] = &[0, 1, -1, 7, 64, i32::MAX, i32::MIN];
        let len = self.choose(5);
        match self.choose(7) {
            0 => CaptureValue::F32(self.pick(FLOATS)),
            1 => CaptureValue::I32(self.pick(INTS)),
            2 => CaptureValue::U32(self.pick(INTS) as u32),
            3 => CaptureValue::Bool(self.choose(2) == 1),
            4 => CaptureValue::F32s((0..len).map(|_| self.pick(FLOATS)).collect()),
            5 => CaptureValue::I32s((0..len).map(|_| self.pick(INTS)).collect()),
            _ => CaptureValue::U32s((0..len).map(|_| self.pick(INTS) as u32).collect()),
        }
    }

    /// `{ lets; value }`; `anchored` as in [`Grower::expr`].
    fn block(&mut self, ty: Type, depth: usize, anchored: bool) -> String {
        let outer_scope = self.scope.len();
        let mut text = String::from("{ ");
        for _ in 0..self.choose(4) {
            let let_type = self.any_type();
            let annotated = self.choose(2) == 0;
            let value = self.expr(let_type, depth + 1, annotated);
            let name = self.pick(NAMES);
            let annotation = if annotated { format!(": {}", let_type.name()) } else { String::new() };
            text.push_str(&format!("let {name}{annotation} = {value}; "));
            self.scope.push((name.into(), let_type));
        }
        let value = self.expr(ty, depth + 1, anchored);
        self.scope.truncate(outer_scope);
        text + &value + " }"
    }

    fn any_type(&mut self) -> Type {
        self.pick(&[Type::F32, Type::I32, Type::Bool, Type::U32, Type::I64, Type::Usize])
    }

    /// An expression that stands alone as an operand. `anchored`: its type follows from what is around it, so
    /// that literals need no suffix.
    fn expr(&mut self, ty: Type, depth: usize, anchored: bool) -> String {
        if depth >= MAX_DEPTH {
            return self.leaf(ty, anchored);
        }
        match self.choose(10) {
            0 | 1 => self.leaf(ty, anchored),
            2 => {
                let condition = self.expr(Type::Bool, depth + 1, true);
                let yes = self.block(ty, depth + 1, anchored);
                let no = self.block(ty, depth + 1, anchored);
                format!("(if {condition} {yes} else {no})")
            }
            3 => self.block(ty, depth + 1, anchored),
            4 if ty != Type::Bool => self.cast(ty, depth),
            5 => self.slice(ty, depth, anchored),
            6 | 7 if ty != Type::Bool => self.method(ty, depth, anchored),
            _ => self.operator(ty, depth, anchored),
        }
    }

    fn leaf(&mut self, ty: Type, anchored: bool) -> String {
        let visible: Vec<String> = self
            .scope
            .iter()
            .enumerate()
            .filter(|(at, (name, found))| {
                *found == ty && !self.scope[at + 1..].iter().any(|(later, _)| later == name)
            })
            .map(|(_, (name, _))| name.clone())
            .collect();
        let choice = self.choose(visible.len() + 1);
        match visible.get(choice) {
            Some(name) => name.clone(),
            None => self.literal(ty, anchored),
        }
    }

    fn literal(&mut self, ty: Type, anchored: bool) -> String {
        let text = match ty {
            Type::Bool => return self.pick(&["false", "true"]).into(),
            Type::F32 => self.pick(&[
                "0.0",
                "1.0",
                "0.1",
                "-1.5",
                "3.25e2",
                "1e-3",
                "16777217.0",
                "f32::INFINITY",
                "f32::NAN",
                "f32::MIN",
            ]),
            Type::I32 => self.pick(&["0", "1", "2", "-1", "0x40", "1_000", "i32::MAX", "-2147483648"]),
            Type::U32 => self.pick(&["0", "1", "5", "4_000_000_000", "u32::MAX"]),
            Type::I64 => self.pick(&["0", "1", "-3", "5_000_000_000", "i64::MIN", "-9223372036854775808"]),
            Type::Usize => self.pick(&["0", "1", "2", "3", "18446744073709551615"]),
        };
        let named = text.contains("::");
        let suffix = if anchored || named { "" } else { ty.name() };
        if text.starts_with('-') { format!("({text}{suffix})") } else { format!("{text}{suffix}") }
    }

    fn cast(&mut self, to: Type, depth: usize) -> String {
        let from = if to == Type::F32 {
            self.pick(&[Type::I32, Type::U32, Type::I64, Type::Usize, Type::F32])
        } else {
            self.any_type()
        };
        let operand = self.expr(from, depth + 1, false);
        format!("({operand} as {})", to.name())
    }

    /// Something of a slice, or a leaf where no slice has the type.
    fn slice(&mut self, ty: Type, depth: usize, anchored: bool) -> String {
        if self.slices.is_empty() {
            return self.leaf(ty, anchored);
        }
        let at = self.choose(self.slices.len());
        let (name, slice) = self.slices[at].clone();
        if slice.element() == ty {
            let index = self.expr(Type::Usize, depth + 1, true);
            format!("{name}[{index}]")
        } else if ty == Type::Usize {
            format!("{name}.len()")
        } else {
            self.leaf(ty, anchored)
        }
    }

    fn method(&mut self, ty: Type, depth: usize, anchored: bool) -> String {
        let mut unary = Vec::new();
        if ty == Type::F32 {
            unary.extend(["sqrt", "floor", "ceil"]);
            if self.methods == Methods::All {
                unary.extend(["exp", "exp2", "ln", "log2", "tanh", "sin", "cos"]);
            }
        }
        if ty.is_signed() {
            unary.push("abs");
        }
        match self.choose(4) {
            0 if !unary.is_empty() => {
                let (name, path) = (self.pick(&unary), self.choose(3) == 0);
                let operand = self.expr(ty, depth + 1, path);
                if path { format!("{}::{name}({operand})", ty.name()) } else { format!("{operand}.{name}()") }
            }
            1 if ty == Type::F32 => {
                let operand = self.expr(ty, depth + 1, false);
                let exponent = self.expr(Type::I32, depth + 1, true);
                format!("{operand}.powi({exponent})")
            }
            2 | 3 => {
                let (name, operand) = (self.pick(&["min", "max"]), self.expr(ty, depth + 1, false));
                let other = self.expr(ty, depth + 1, true);
                format!("{operand}.{name}({other})")
            }
            _ => self.leaf(ty, anchored),
        }
    }

    fn operator(&mut self, ty: Type, depth: usize, anchored: bool) -> String {
        if ty == Type::Bool {
            return match self.choose(3) {
                0 => {
                    let operands = self.any_type();
                    let op = self.pick(&["==", "!=", "<", "<=", ">", ">="]);
                    let left = self.expr(operands, depth + 1, false);
                    let right = self.expr(operands, depth + 1, true);
                    format!("({left} {op} {right})")
                }
                1 => format!("(!{})", self.expr(ty, depth + 1, true)),
                _ => {
                    let op = self.pick(&["&&", "||", "&", "|", "^"]);
                    let left = self.expr(ty, depth + 1, true);
                    let right = self.expr(ty, depth + 1, true);
                    format!("({left} {op} {right})")
                }
            };
        }
        if ty.is_signed() && self.choose(8) == 0 {
            return format!("(-{})", self.expr(ty, depth + 1, false));
        }
        let op = if ty.is_int() {
            self.pick(&["+", "-", "*", "/", "%", "&", "|", "^"])
        } else {
            self.pick(&["+", "-", "*", "/", "%"])
        };
        let left = self.expr(ty, depth + 1, anchored);
        let right = self.expr(ty, depth + 1, anchored);
        format!("({left} {op} {right})")
    }
}
