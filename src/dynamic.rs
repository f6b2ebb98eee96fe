//! Device functions made at run time, from a text and the values of its captures.

use crate::codegen::lower::{CaptureError, DeviceFunction, Evaluator, FunctionKind, Value};
use crate::{CaptureValue, DeviceFn, MaskMod, ScoreMod};
use std::sync::Arc;

/// A text that is no device function, or captures that are not its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The text is outside the subset of Rust that device functions have.
    #[error("{line}:{column}: {message}\n{}", excerpt(text, *column, *width))]
    Source {
        /// 1-based line of the token.
        line: usize,
        /// 1-based column of the token, in characters.
        column: usize,
        /// Characters of the token on that line.
        width: usize,
        /// What was found, what was needed, what to write instead.
        message: String,
        /// The line.
        text: String,
    },
    /// The number or the types of the captures differ from the parameters after the leading ones.
    #[error(transparent)]
    Captures(#[from] CaptureError),
}

/// Characters of a line that a message shows.
const SHOWN: usize = 160;

/// The line with the token marked below it: what is around the token of a long one, and nothing that a terminal obeys.
fn excerpt(text: &str, column: usize, width: usize) -> String {
    let at = column.saturating_sub(1);
    let from = if text.chars().count() > SHOWN { at.saturating_sub(SHOWN / 2) } else { 0 };
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = text.chars().skip(from).take(SHOWN).map(plain).collect();
    let marks = width.clamp(1, SHOWN.saturating_sub(at - from).max(1));
    format!("    {line}\n    {}{}", " ".repeat(at - from), "^".repeat(marks))
}

/// What both kinds of function keep.
#[derive(Debug)]
struct Inner {
    source: String,
    evaluator: Evaluator,
}

impl Inner {
    fn new(
        kind: FunctionKind,
        source: &str,
        captures: Vec<CaptureValue>,
    ) -> Result<Arc<Self>, FunctionError> {
        let function = DeviceFunction::from_source(kind, source).map_err(|error| {
            let (start, end) = (error.span().start(), error.span().end());
            let text = source.lines().nth(start.line.saturating_sub(1)).unwrap_or_default().to_owned();
            let last = if end.line == start.line { end.column } else { text.chars().count() };
            FunctionError::Source {
                line: start.line,
                column: start.column + 1,
                width: last.saturating_sub(start.column).max(1),
                message: error.to_string(),
                text,
            }
        })?;
        let evaluator = Evaluator::new(function, captures)?;
        Ok(Arc::new(Inner { source: source.to_owned(), evaluator }))
    }
}

macro_rules! dynamic {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(Arc<Inner>);

        impl $name {
            /// Reads and checks the text of one Rust function and the values of its captures, in the order of its
            /// parameters. The subset is that of the attribute macro, and so are its messages.
            ///
            /// # Errors
            /// [`FunctionError::Source`] at the first token outside the subset, [`FunctionError::Captures`] for
            /// captures of other types.
            pub fn new(source: &str, captures: Vec<CaptureValue>) -> Result<Self, FunctionError> {
                Ok(Self(Inner::new(FunctionKind::$kind, source, captures)?))
            }

            /// The same function with other values of its captures. Its kernels stay those already compiled.
            ///
            /// # Errors
            /// [`FunctionError::Captures`] for captures of other types.
            pub fn with_captures(&self, captures: Vec<CaptureValue>) -> Result<Self, FunctionError> {
                let evaluator = Evaluator::new(self.0.evaluator.function().clone(), captures)?;
                Ok(Self(Arc::new(Inner { source: self.0.source.clone(), evaluator })))
            }

            /// The checked function, with its CUDA text.
            pub fn function(&self) -> &DeviceFunction {
                self.0.evaluator.function()
            }
        }

        impl DeviceFn for $name {
            fn name(&self) -> &str {
                self.0.evaluator.function().name()
            }

            fn source(&self) -> &str {
                &self.0.source
            }

            fn captures(&self) -> Vec<CaptureValue> {
                self.0.evaluator.captures().to_vec()
            }
        }
    };
}

dynamic! {
    /// A score function whose text is known at run time.
    ///
    /// ```
    /// use tilewright::{CaptureValue, DynamicScoreMod, ScoreMod};
    ///
    /// let source = "fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    ///     cap * (score / cap).tanh()
    /// }";
    /// let softcap = DynamicScoreMod::new(source, vec![CaptureValue::F32(30.0)])?;
    /// assert_eq!(softcap.score(1000.0, 0, 0, 0, 0), 30.0);
    /// assert_eq!(softcap.gradient(0.0, 0, 0, 0, 0), 1.0);
    /// # Ok::<(), tilewright::Error>(())
    /// ```
    ///
    /// On the CPU it is interpreted, with the meaning that its CUDA text has: integers wrap, an index out of range
    /// reads 0, nothing panics.
    DynamicScoreMod,
    ScoreMod
}

dynamic! {
    /// A mask function whose text is known at run time: see [`DynamicScoreMod`].
    DynamicMaskMod,
    MaskMod
}

impl ScoreMod for DynamicScoreMod {
    fn score(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
        match self.0.evaluator.run(score, b, h, q, kv) {
            Value::F32(score) => score,
            other => unreachable!("the checker lets a score function return f32 alone: {other:?}"),
        }
    }

    fn gradient(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
        self.0.evaluator.gradient(score, b, h, q, kv)
    }
}

impl MaskMod for DynamicMaskMod {
    fn keep(&self, b: i32, h: i32, q: i32, kv: i32) -> bool {
        match self.0.evaluator.run(0.0, b, h, q, kv) {
            Value::Bool(keep) => keep,
            other => unreachable!("the checker lets a mask function return bool alone: {other:?}"),
        }
    }
}
