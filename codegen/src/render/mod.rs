//! From a candidate to its source: the generated prelude and the body template.

mod lines;

use crate::budget::Candidate;
use crate::dsl::{ElementType, Kernel, ScalarType};
use crate::dsl::{FieldKind, ParamsLayout};
use crate::error::Error;
use crate::library;
use crate::lower::{self, DeviceFunction, FunctionKind};
use crate::source::KernelSource;
use crate::value::Value;
use crate::variant::Variant;
use serde::Serialize;
use std::collections::BTreeMap;
use tera::{Context, Delimiters, Tera};

const PRELUDE: &str = "prelude";

/// The templates of one kernel, ready to render.
pub(crate) struct Renderer {
    /// With their lines marked, for the compiler.
    tera: Tera,
    source: KernelSource,
}

#[derive(Serialize)]
struct Named<T> {
    name: String,
    value: T,
}

#[derive(Serialize)]
struct FieldText {
    name: String,
    declaration: String,
    offset: usize,
}

#[derive(Serialize)]
struct SlotText {
    name: String,
    r#type: &'static str,
    present: bool,
    source: String,
}

impl Renderer {
    /// Parses the kernel's templates and the shared headers.
    pub(crate) fn new(source: &KernelSource) -> Result<Self, Error> {
        // The engine's messages have the lines that the author knows.
        let engine = engine(source, lines::marked).or_else(|error| engine(source, unmarked).and(Err(error)));
        let tera = engine.map_err(|error| failure(&source.name, &error))?;
        Ok(Renderer { tera, source: source.clone() })
    }

    /// Renders one candidate into a self-contained source.
    pub(crate) fn render(&self, kernel: &Kernel, candidate: &Candidate) -> Result<Variant, Error> {
        let name = candidate.name();
        let context = context(kernel, candidate, &name);
        let body = format!("{}/{}.cu", kernel.name, candidate.schedule.family);
        let render = |template: &str| {
            let rendered = self.tera.render(template, &context);
            let plainly = || engine(&self.source, unmarked)?.render(template, &context);
            rendered.or_else(|error| plainly().and(Err(error))).map_err(|error| failure(template, &error))
        };
        let mut source = render(PRELUDE)?;
        source += &render(&body)?;
        Ok(Variant::new(name, source, candidate.clone(), kernel))
    }
}

/// The engine with all templates, each as `text` makes it of its path and itself.
fn engine(source: &KernelSource, text: fn(&str, &str) -> String) -> tera::TeraResult<Tera> {
    let mut tera = Tera::new();
    // CUDA and PTX use `{{`, `{%0` and `{#`; none of these pairs occurs in them.
    tera.set_delimiters(Delimiters {
        block_start: "<%".into(),
        block_end: "%>".into(),
        variable_start: "$(".into(),
        variable_end: ")$".into(),
        comment_start: "<#".into(),
        comment_end: "#>".into(),
    })?;
    let own = source.files.iter().map(|(path, text)| (path.as_ref(), text.as_ref()));
    let own = own.filter(|(path, _)| !library::is_declaration(path));
    // A kernel's own file wins over a shared header of the same path.
    let shared = library::headers().filter(|(path, _)| !source.files.iter().any(|(own, _)| own == path));
    let files = shared.chain(own).map(|(path, file)| (path, text(path, file)));
    tera.add_raw_templates(files.chain([(PRELUDE, include_str!("prelude.cu").to_owned())]))?;
    Ok(tera)
}

fn unmarked(_path: &str, text: &str) -> String {
    text.to_owned()
}

/// The engine's error, with the file it points at: that may be a header which the template includes.
fn failure(template: &str, error: &tera::Error) -> Error {
    let message = report(error);
    let place = message.lines().find_map(|line| line.trim_start().strip_prefix("--> "));
    let file = place.and_then(|place| place.rsplitn(3, ':').last()).unwrap_or(template);
    let template = file.to_owned();
    let mut message = message.trim_start_matches("error: ").trim_end().to_owned();
    // The engine names its own delimiters, whatever was set.
    message = message.replace("expected %}", "expected %>").replace("expected }}", "expected )$");
    if message.starts_with("Unknown template") {
        message += "\na header is included by its folder and name: `<kernel>/x.cuh` beside kernel.rs, `lib/x.cuh` of all kernels \
                    or of the tile library";
    }
    Error::Template { template, message }
}

/// The engine's message with its causes, which hold the line and the name.
fn report(error: &tera::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

fn context(kernel: &Kernel, candidate: &Candidate, variant: &str) -> Context {
    let spec = &candidate.spec;
    let mut types = Vec::new();
    let mut constants: Vec<Named<i64>> = kernel
        .constants
        .iter()
        .map(|constant| Named { name: constant.name.clone(), value: constant.value })
        .collect();
    for (name, value) in spec.values() {
        match value {
            Value::DType(dtype) => types.push(Named { name: name.clone(), value: dtype.cuda() }),
            Value::Int(int) => constants.push(Named { name: name.clone(), value: *int }),
        }
    }
    constants.extend(
        candidate.schedule.values.iter().map(|(name, value)| Named { name: name.clone(), value: *value }),
    );
    let budget = &candidate.budget;
    constants.push(Named { name: "THREADS".into(), value: budget.threads });
    constants.push(Named { name: "SMEM_BYTES".into(), value: budget.smem_bytes });

    let layout = ParamsLayout::of(kernel);
    let fields: Vec<FieldText> = layout
        .fields
        .iter()
        .map(|field| FieldText {
            name: field.name.clone(),
            declaration: declaration(&field.name, &field.kind),
            offset: field.offset,
        })
        .collect();
    let functions: Vec<SlotText> = kernel
        .functions
        .iter()
        .zip(spec.functions())
        .map(|(slot, (_, function))| SlotText {
            name: slot.name.clone(),
            r#type: functor(slot.kind),
            present: function.is_some(),
            source: match (function, slot.gradient) {
                (Some(function), true) => function.cuda_with_gradient(),
                (Some(function), false) => function.cuda(),
                (None, true) => DeviceFunction::absent_with_gradient(slot.kind),
                (None, false) => DeviceFunction::absent(slot.kind),
            },
        })
        .collect();

    let mut context = Context::new();
    context.insert("variant", variant);
    context.insert("kernel", &kernel.name);
    context.insert("family", candidate.schedule.family.name());
    let by_name: BTreeMap<&str, i64> = constants.iter().map(|c| (c.name.as_str(), c.value)).collect();
    let body = kernel.bodies.iter().find(|body| body.family == candidate.schedule.family);
    let maps = body.map_or(&[][..], |body| &body.tensor_maps);
    context.insert("tensor_maps", &maps.iter().map(|map| &map.arg).collect::<Vec<_>>());
    context.insert("types", &types);
    context.insert("constant", &by_name);
    context.insert("constants", &constants);
    context.insert("fields", &fields);
    context.insert("params_size", &layout.size);
    context.insert("calls_functions", &functions.iter().any(|slot| slot.present));
    context.insert("functions", &functions);
    context.insert("device_prelude", lower::DEVICE_PRELUDE);
    context
}

fn functor(kind: FunctionKind) -> &'static str {
    match kind {
        FunctionKind::ScoreMod => "ScoreMod",
        FunctionKind::MaskMod => "MaskMod",
    }
}

fn declaration(name: &str, kind: &FieldKind) -> String {
    match kind {
        FieldKind::Pointer { element, mutable } => {
            let element = match element {
                ElementType::Fixed(dtype) => dtype.cuda(),
                ElementType::Param(param) => param,
            };
            let constness = if *mutable { "" } else { "const " };
            format!("{constness}{element}* {name}")
        }
        FieldKind::Strides(count) => format!("long long {name}[{count}]"),
        FieldKind::Dim | FieldKind::Scalar(ScalarType::I32) | FieldKind::Padding => format!("int {name}"),
        FieldKind::Scalar(ScalarType::F32) => format!("float {name}"),
    }
}
