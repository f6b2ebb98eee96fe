//! `inspect`: the kernels there are; one kernel's candidates; one candidate's source, budget and ptxas report.

use super::args::SpecList;
use super::error::CliError;
use super::progress;
use super::report::Report;
use super::table::{number, table};
use super::templates::{Kernels, specialised};
use super::variants::{self, Job};
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use tilewright::codegen::dsl::{SpecParam, SpecValues};
use tilewright::codegen::{Arch, Candidates, Generator, KernelSource, KernelSpec};
use tilewright::toolchain::Toolchain;

#[derive(Args)]
pub struct InspectArgs {
    /// The kernel; without one, the kernels there are.
    kernel: Option<String>,
    /// Show the kernels of this folder, each a folder with kernel.rs and its bodies, instead of the shipped ones.
    #[arg(long, value_name = "DIR")]
    templates: Option<PathBuf>,
    /// What to specialise: `D=128,T=bf16`. What is not given is as in the first shipped variant.
    #[arg(
        long,
        value_name = "NAME=VALUE,…",
        default_value = "",
        hide_default_value = true,
        value_parser = super::args::spec,
        allow_hyphen_values = true,
        requires = "kernel"
    )]
    spec: SpecList,
    /// The architecture.
    #[arg(long, default_value = "sm_90a", allow_hyphen_values = true, requires = "kernel")]
    arch: Arch,
    /// The candidate to look at, by its number in the list.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_hyphen_values = true, requires = "kernel")]
    candidate: usize,
    /// Print the candidate's source and nothing else (with --json: add it).
    #[arg(long, requires = "kernel")]
    source: bool,
}

pub fn run(args: &InspectArgs) -> Result<Report, CliError> {
    let kernels = Kernels::of(args.templates.as_deref())?;
    match &args.kernel {
        Some(name) => one(&kernels, kernels.named(name)?, args),
        None => list(&kernels),
    }
}

fn list(kernels: &Kernels) -> Result<Report, CliError> {
    let mut table = table(&["kernel", "specialised over", "bodies", "shipped", "what it does"]);
    let mut json = Vec::new();
    for source in kernels.all() {
        let generator = kernels.placed(Generator::new(source))?;
        let kernel = generator.kernel();
        let params: Vec<String> = kernel.specialize.iter().map(parameter).collect();
        let bodies: Vec<String> = kernel.bodies.iter().map(|body| body.family.to_string()).collect();
        let shipped = kernels.placed(generator.shipped())?;
        let summary = first_sentence(&kernel.doc);
        table.add_row([
            kernel.name.clone(),
            params.join("\n"),
            bodies.join(", "),
            shipped.len().to_string(),
            summary,
        ]);
        json.push(json!({
            "kernel": kernel.name,
            "doc": kernel.doc,
            "specialize": params,
            "bodies": bodies,
            "shipped": shipped.iter().map(|variant| &variant.name).collect::<Vec<_>>(),
        }));
    }
    Ok(Report::new(format!("{table}\n"), &json!({ "kernels": json })))
}

/// The first sentence of a description, without its dot and on one line.
fn first_sentence(doc: &str) -> String {
    let paragraph = doc.trim().split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let ends = |(at, word): (usize, &&str)| {
        let next = words.get(at + 1).and_then(|next| next.chars().next());
        // `e.g.`, `et al.` and `Eq. 3` go on: with a small letter, a digit or a bracket.
        let goes_on = next.is_some_and(|next| next.is_lowercase() || next.is_numeric() || next == '(');
        let is_short = matches!(word.trim_start_matches('('), "e.g." | "i.e." | "cf." | "vs." | "al.");
        word.ends_with('.') && !goes_on && !is_short
    };
    let end = words.iter().enumerate().position(ends).map_or(words.len(), |at| at + 1);
    words[..end].join(" ").trim_end_matches('.').to_owned()
}

fn parameter(param: &SpecParam) -> String {
    let values: Vec<String> = match &param.values {
        SpecValues::DTypes(all) => all.iter().map(ToString::to_string).collect(),
        SpecValues::Ints(all) => all.iter().map(ToString::to_string).collect(),
    };
    format!("{}: {}", param.name, values.join(" "))
}

fn one(kernels: &Kernels, source: &KernelSource, args: &InspectArgs) -> Result<Report, CliError> {
    let generator = kernels.placed(Generator::new(source))?;
    let spec = specialised(&generator, &args.spec)?;
    let candidates = generator.candidates(&spec, args.arch)?;
    let Some(candidate) = candidates.accepted.get(args.candidate) else {
        let (found, count) = (args.candidate, candidates.accepted.len());
        return Err(CliError::NoCandidate { found, count, arch: args.arch.to_string() });
    };
    let variant = kernels.placed(generator.render(candidate))?;
    let preferred = if args.candidate == 0 { vec![args.arch] } else { Vec::new() };
    let job = Job { variant, archs: vec![args.arch], preferred };
    // A look at a kernel must not start a download.
    let compiled =
        Toolchain::find().map(|toolchain| variants::compile(&toolchain, std::slice::from_ref(&job)));
    let report = compiled.as_ref().ok().and_then(|reports| reports.first()?.compiled.first());
    let failure = report.and_then(|one| one.error.as_deref());

    let mut text = if args.source { job.variant.source.clone() } else { describe(&spec, &candidates, args) };
    if !args.source {
        let _ = writeln!(text, "\ncandidate {}: {}", args.candidate, job.variant.name);
        let _ = writeln!(text, "  fingerprint {}", job.variant.fingerprint);
        let _ = match (&compiled, report.and_then(|one| Some((one, one.ptxas?)))) {
            (_, Some((one, ptxas))) => writeln!(
                text,
                "  ptxas: {} registers, {} bytes of spill stores and {} of loads, {} bytes of stack, {} bytes of \
                 shared memory, {} barriers; compiled in {:.0} ms",
                ptxas.registers,
                ptxas.spill_store_bytes,
                ptxas.spill_load_bytes,
                ptxas.stack_bytes,
                one.shared_bytes,
                ptxas.barriers,
                one.compile_ms
            ),
            (Err(_), _) => {
                writeln!(text, "  ptxas: no NVRTC to ask; `tilewright toolchain install` gets one")
            }
            _ => writeln!(text, "  ptxas: {}", failure.unwrap_or_default()),
        };
    }
    if let (true, Some(error)) = (args.source, failure) {
        // The source alone goes to standard output.
        progress::note(&format!("error: {error}"));
    }
    let ok = failure.is_none();
    let json = json!({
        "kernel": source.name,
        "arch": args.arch,
        "limits": args.arch.limits(),
        "accepted": candidates.accepted.iter().map(|candidate| json!({
            "name": candidate.name(),
            "schedule": candidate.schedule,
            "budget": candidate.budget,
        })).collect::<Vec<_>>(),
        "rejected": candidates.rejected,
        "variant": variants::VariantReport::new(&job.variant),
        "compiled": report,
        "source": args.source.then(|| Value::from(job.variant.source.as_str())),
    });
    Ok(Report::new(text, &json).with_outcome(ok))
}

fn describe(spec: &KernelSpec, candidates: &Candidates, args: &InspectArgs) -> String {
    let values: Vec<String> = spec.values().iter().map(|(name, value)| format!("{name}={value}")).collect();
    let limits = args.arch.limits();
    let mut text = format!("{} {} on {}\n", spec.kernel(), values.join(" "), args.arch);
    let _ = writeln!(
        text,
        "a block may have {} threads and {} bytes of shared memory, a thread {} registers\n",
        limits.threads_per_block, limits.smem_per_block, limits.registers_per_thread
    );
    let mut accepted = table(&["", "schedule", "threads", "shared memory", "registers, estimated"]);
    for (index, candidate) in candidates.accepted.iter().enumerate() {
        let budget = candidate.budget;
        let estimate = if budget.registers == 0 { "–".to_owned() } else { budget.registers.to_string() };
        accepted.add_row(vec![
            number(index),
            candidate.schedule.to_string().into(),
            number(budget.threads),
            number(budget.smem_bytes),
            number(estimate),
        ]);
    }
    let _ = writeln!(text, "{accepted}");
    if !candidates.rejected.is_empty() {
        let mut rejected = table(&["rejected", "why"]);
        for rejection in &candidates.rejected {
            rejected.add_row([rejection.schedule.to_string(), rejection.reason.to_string()]);
        }
        let _ = writeln!(text, "\n{rejected}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tilewright::kernels;

    #[test]
    fn a_sentence_ends_at_a_dot_that_ends_one() {
        for (doc, sentence) in [
            ("", ""),
            ("Means of runs of\nconsecutive keys.", "Means of runs of consecutive keys"),
            ("No dot at all\n\nAnother paragraph.", "No dot at all"),
            (
                "Keeps 0.05 of the blocks, e.g. Those of `a.b`. Then more.",
                "Keeps 0.05 of the blocks, e.g. Those of `a.b`",
            ),
            (
                "After (Dao et al., arXiv\n2205.14135, appendix B.2). More.",
                "After (Dao et al., arXiv 2205.14135, appendix B.2)",
            ),
            ("By Dao et al. (2022) and by Eq. 3 of it. More.", "By Dao et al. (2022) and by Eq. 3 of it"),
            ("Ends in an ellipsis... and goes on. More.", "Ends in an ellipsis... and goes on"),
        ] {
            assert_eq!(first_sentence(doc), sentence, "{doc:?}");
        }
    }

    #[test]
    fn every_kernel_has_a_whole_summary() {
        for source in kernels::ALL {
            let generator = Generator::new(source).unwrap();
            let summary = first_sentence(&generator.kernel().doc);
            let open = |a, b| summary.matches(a).count() != summary.matches(b).count();
            assert!(summary.len() > 20 && !open('(', ')') && !open('[', ']'), "{}: {summary}", source.name);
            assert_eq!(summary.matches('`').count() % 2, 0, "{}: {summary}", source.name);
        }
    }
}
