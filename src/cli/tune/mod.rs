//! `tune`: time the schedules for some shapes, or of a kernel of the user's own, now, so that no later process has
//! to, and explain the choice.

mod arguments;
mod noise;
mod own;
mod shape;

use super::args::{AttentionArgs, TailChoice, describe, describe_tail};
use super::bundle::{exported, exported_json};
use super::error::CliError;
use super::files::{self, Destination};
use super::report::Report;
use clap::Args;
use noise::Noise;
use own::OwnArgs;
use serde_json::{Value, json};
use shape::Shape;
use std::fmt::Write;
use std::time::Instant;
use tilewright::attention::{Attend, Backward, Inputs, MaskLists, Plan, Shapes, Step};
use tilewright::bundle::{Contents, export_to};
use tilewright::cache::KernelCache;
use tilewright::launch::Choice;
use tilewright::output::{Output as File, shown};
use tilewright::tune::{Policy, synthetic_mask};
use tilewright::{Attention, DType, Device, Gradients, Output, Tail, Tensor};

#[derive(Args)]
pub struct TuneArgs {
    /// What to tune for, several with commas: HEADSxTOKENSxHEAD_DIM, in full
    /// [BATCHx]HEADS[/KV_HEADS]xTOKENS[:KEYS]xHEAD_DIM. Without it the sizes of Wan 2.1 at 480p and 720p and of
    /// CogVideoX.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SHAPES",
        allow_hyphen_values = true,
        default_value = "12x32760x128,10x75600x128,30x17776x64"
    )]
    shapes: Vec<Shape>,
    /// The dtype of q, k and v: bf16 or f16.
    #[arg(long, default_value = "bf16", value_parser = dtype, allow_hyphen_values = true)]
    dtype: DType,
    #[command(flatten)]
    attention: AttentionArgs,
    /// The share of blocks that the mask to time on keeps; of a rule with top-k, its share when not given, else 0.05.
    #[arg(long, value_name = "SHARE", value_parser = share, allow_hyphen_values = true)]
    density: Option<f64>,
    /// How unevenly: the standard deviation of the number of blocks a row keeps, over its mean. Top-k alone has 0.
    #[arg(long, value_name = "RATIO", default_value_t = 0.5, value_parser = spread, allow_hyphen_values = true)]
    spread: f64,
    /// What stands for the blocks that are dropped: `block`, `row`, or `row:KEYS` for one mean of so many keys, a multiple of the
    /// block's. `row` alone is 128 keys, or the next multiple. Nothing if not given.
    #[arg(long, value_name = "TAIL", allow_hyphen_values = true)]
    tail: Option<TailChoice>,
    /// Tune the kernels of the backward too, for training.
    #[arg(long)]
    backward: bool,
    /// Print every candidate: schedule, registers, shared memory, time, or why it was rejected.
    #[arg(long)]
    explain: bool,
    /// Draw the times of the candidates into an SVG file: those of the kernel of `--templates`, else the forward's,
    /// of several shapes the last one's. `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<Destination>,
    /// Write the cache's kernels and tuning records of this GPU's architecture to a bundle, for other machines. `-` is
    /// standard output.
    #[arg(long, value_name = "FILE")]
    pub export: Option<Destination>,
    #[command(flatten)]
    own: OwnArgs,
}

fn dtype(text: &str) -> Result<DType, String> {
    DType::from_name(text)
        .filter(|dtype| matches!(dtype, DType::Bf16 | DType::F16))
        .ok_or_else(|| "needed bf16 or f16".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    number(text)
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| "needed above 0, up to 1".to_owned())
}

fn spread(text: &str) -> Result<f64, String> {
    number(text).filter(|spread| *spread >= 0.0).ok_or_else(|| "needed 0 or more".to_owned())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// The argument that names the picture.
const PLOT: &str = "--plot";

pub fn run(args: &TuneArgs) -> Result<Report, CliError> {
    if let Some(folder) = &args.own.templates {
        return own::run(folder, args);
    }
    let device = args.gpu()?;
    let selection = args.attention.selection();
    let density = args.density.or(selection.k()).unwrap_or(0.05);
    let tail = args.tail.map_or(Tail::None, |tail| tail.of(args.attention.block));
    let mut text = format!(
        "{device}, {}, blocks of {}, {}{}; timed on {:.1} % of the blocks\n",
        args.dtype,
        args.attention.block,
        describe(&selection),
        describe_tail(tail).map_or(String::new(), |tail| format!(", tail {tail}")),
        100.0 * density
    );
    let files = Files::open(args)?;
    let (mut shapes, mut drawing) = (Vec::new(), None);
    for shape in &args.shapes {
        let build = |tail| {
            Attention::builder(shape.head_dim, args.dtype)
                .value_dim(shape.value_dim)
                .blocks(args.attention.block)
                .select(selection)
                .tail(tail)
                .policy(Policy::Tune)
                .build(&device)
        };
        let attention = build(tail)?;
        let mut noise = Noise::default();
        let mut input = |dims: [usize; 4]| noise.tensor(args.dtype, &dims)?.to(&device);
        let (q, k, v) = (input(shape.q())?, input(shape.k())?, input(shape.v())?);
        let plan = attention.plan(Shapes::of(&q, &k)?)?;
        let mask_of = |density| {
            let mask = synthetic_mask(&shape.workload(density), args.attention.block, args.spread)?;
            if tail == Tail::None { mask.to(&device) } else { mask.with_unlisted_dropped()?.to(&device) }
        };
        let mask = mask_of(density)?;
        let start = Instant::now();
        attention.mask(&q, &k)?;
        if tail == Tail::None {
            // A mask may be asked what it drops, whatever stands for that.
            build(Tail::Block)?.mask(&q, &k)?;
        }
        // Noise has no structure to select by: what a rule keeps of it is no mask of a model.
        let (out, lse) = attention.attend_with(&q, &k, &v, &mask)?;
        let timed = plan.for_mask(&mask);
        let mut output = Output { out, lse, mask };
        // A gradient as noisy as the rest: q is one.
        let d_out = args.backward.then_some(&q);
        if let Some(d_out) = d_out {
            attention.backward(&q, &k, &v, &output, d_out, None)?;
        }
        // Nobody counts the blocks of such lists: they go by the share that the rule asks for.
        if let Some(asked) = selection.k().filter(|&asked| asked != density) {
            output.mask = mask_of(asked)?;
        }
        over_lists(&device, &plan, Inputs { q: &q, k: &k, v: &v }, &mut output, d_out)?;
        let seconds = start.elapsed().as_secs_f64();
        let choices = choices(&[timed, plan]);
        let _ = writeln!(text, "\n{shape}: ready in {seconds:.2} s");
        for choice in &choices {
            let _ = writeln!(text, "  {}", choice.variant.name);
        }
        if args.explain {
            choices.iter().for_each(|choice| text.push_str(&explain(choice)));
        }
        drawing = plot(&choices).or(drawing);
        shapes.push(json!({
            "shape": shape.to_string(),
            "heads": shape.heads,
            "tokens": shape.tokens,
            "head_dim": shape.head_dim.get(),
            "value_dim": shape.value_dim.get(),
            "density": density,
            "seconds": seconds,
            "kernels": choices.iter().map(to_json).collect::<Vec<_>>(),
        }));
    }
    let json = json!({ "device": device.to_string(), "shapes": shapes });
    files.finish(&device, text, json, drawing)
}

impl TuneArgs {
    /// The GPU to tune on.
    fn gpu(&self) -> Result<Device, CliError> {
        let device = self.attention.device.open()?;
        if device.is_cuda() { Ok(device) } else { Err(CliError::NothingToTune) }
    }
}

/// What is written beside the cache, opened before there is anything to write.
struct Files {
    picture: Option<File>,
    bundle: Option<File>,
}

impl Files {
    fn open(args: &TuneArgs) -> Result<Self, CliError> {
        let picture = args.plot.as_ref().map(|file| file.open(PLOT)).transpose()?;
        let bundle = args.export.as_ref().map(|file| file.open("--export")).transpose()?;
        Ok(Files { picture, bundle })
    }

    /// Writes them, and the report on it.
    fn finish(
        self,
        device: &Device,
        mut text: String,
        mut json: Value,
        drawing: Option<String>,
    ) -> Result<Report, CliError> {
        match (self.picture, drawing) {
            (Some(picture), Some(drawing)) => files::write(picture, PLOT, drawing.as_bytes())?,
            (Some(picture), None) => {
                text += &format!("\n{} was not written: no candidates were timed\n", shown(picture.path()));
            }
            (None, _) => {}
        }
        if let Some(bundle) = self.bundle {
            let arch = device.arch().unwrap_or_default();
            let report = export_to(&KernelCache::open()?, &Contents::Archs(&[&arch]), bundle)?;
            text += &format!("\n{}", exported(&report));
            json["bundle"] = exported_json(&report);
        }
        Ok(Report::new(text, &json))
    }
}

/// Calls over lists in a caller's memory, as PyTorch makes them: the kernels that complete such lists are wanted then.
fn over_lists(
    device: &Device,
    plan: &Plan,
    Inputs { q, k, v }: Inputs<'_>,
    Output { out, lse, mask }: &mut Output,
    d_out: Option<&Tensor>,
) -> Result<(), CliError> {
    let scratch = |step| Tensor::uninit(device, DType::U8, &[plan.scratch_bytes(step)?]);
    let lists = &MaskLists { q: None, full_q: None, ..MaskLists::from(&*mask) };
    let mut work = scratch(Step::Attend(lists))?;
    plan.run(Attend { q, k, v, lists, out, lse }, &mut work)?;
    if let Some(d_out) = d_out {
        let like = |tensor: &Tensor| Tensor::uninit(device, tensor.dtype(), tensor.shape());
        let gradients = &mut Gradients { dq: like(q)?, dk: like(k)?, dv: like(v)? };
        let mut work = scratch(Step::Backward(lists))?;
        plan.run(Backward { q, k, v, out, lse, d_out, d_lse: None, lists, gradients }, &mut work)?;
    }
    Ok(())
}

/// What the plans' kernels are, each once.
fn choices(plans: &[Plan]) -> Vec<Choice> {
    let mut all: Vec<Choice> = Vec::new();
    for choice in plans.iter().flat_map(Plan::choices) {
        let key = |choice: &Choice| choice.record.as_ref().map(|record| record.key().clone());
        let same = |known: &Choice| known.variant.name == choice.variant.name && key(known) == key(&choice);
        if !all.iter().any(same) {
            all.push(choice);
        }
    }
    all
}

fn explain(choice: &Choice) -> String {
    match &choice.record {
        Some(record) => {
            format!("\n{}\n{}\n", choice.variant.candidate.spec.kernel(), record.explain(&choice.pruned))
        }
        None => {
            format!("\n{}: nothing to time, there is one candidate\n", choice.variant.candidate.spec.kernel())
        }
    }
}

fn to_json(choice: &Choice) -> serde_json::Value {
    json!({
        "variant": choice.variant.name,
        "fingerprint": choice.variant.fingerprint,
        "candidates": choice.record.as_ref().map(|record| record.explain_json(&choice.pruned)),
    })
}

/// The forward's candidates as an SVG.
fn plot(choices: &[Choice]) -> Option<String> {
    let choice = choices.iter().find(|choice| choice.variant.candidate.spec.kernel() == "forward")?;
    Some(choice.record.as_ref()?.plot(&choice.pruned))
}
