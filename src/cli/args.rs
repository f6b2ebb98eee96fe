//! Arguments that several subcommands share, and how they are read.

use crate::select::number;
use clap::{Args, ValueEnum};
use std::num::ParseFloatError;
use std::str::FromStr;
use tilewright::codegen::{Arch, Value};
use tilewright::device::DeviceError;
use tilewright::services::{Services, line_on_stderr};
use tilewright::toolchain::ToolchainError;
use tilewright::{BlockSize, DType, Device, Scores, Selection, Tail, top_k, top_p};

/// The sparse attention to run.
#[derive(Args, Clone, Copy)]
pub struct AttentionArgs {
    /// Keep this share of each row's key blocks, the best by pooled probability. Without either rule: 0.03.
    #[arg(long, value_name = "SHARE", value_parser = |text: &str| share(text, top_k), allow_hyphen_values = true)]
    top_k: Option<f64>,
    /// Keep the best key blocks until they hold this probability mass; the union with top-k. Without either rule: 0.2.
    #[arg(long, value_name = "MASS", value_parser = |text: &str| share(text, top_p), allow_hyphen_values = true)]
    top_p: Option<f64>,
    /// What blocks are scored by: `means` of their keys, or `keys`, the best of the means of four neighbouring ones each. With a tail keys
    /// keep the blocks that a mean does not stand for.
    #[arg(long, value_enum, default_value = "means")]
    scores: ScoresChoice,
    // The help names the sizes there are.
    #[arg(
        long,
        value_name = "QxKV",
        default_value = "128x64",
        value_parser = block_size,
        allow_hyphen_values = true,
        help = block_help()
    )]
    pub block: BlockSize,
    /// Where to run: `cpu`, `cuda:0`, or `best` for the first GPU that can be used, else the CPU.
    #[arg(long, default_value = "best", allow_hyphen_values = true)]
    pub device: DeviceChoice,
}

impl AttentionArgs {
    /// The rule: the paper's setting for 95 % sparsity unless one is given.
    pub fn selection(&self) -> Selection {
        let rule = match (self.top_k, self.top_p) {
            (None, None) => top_k(0.03) | top_p(0.2),
            (Some(k), None) => top_k(k),
            (None, Some(p)) => top_p(p),
            (Some(k), Some(p)) => top_k(k) | top_p(p),
        };
        rule.by(match self.scores {
            ScoresChoice::Means => Scores::Means,
            ScoresChoice::Keys => Scores::Keys,
        })
    }
}

/// [`Scores`] by their names.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum ScoresChoice {
    Means,
    Keys,
}

/// What blocks are scored by, as `--scores` takes it.
pub fn describe_scores(scores: Scores) -> &'static str {
    match scores {
        Scores::Means => "means",
        Scores::Keys => "keys",
    }
}

/// A rule in words.
pub fn describe(selection: &Selection) -> String {
    let k = selection.k().map(|k| format!("top-k {}", number(k)));
    let p = selection.p().map(|p| format!("top-p {}", number(p)));
    let by_keys = if selection.scores() == Scores::Keys { " by keys" } else { "" };
    k.into_iter().chain(p).collect::<Vec<_>>().join(" ∪ ") + by_keys
}

/// A tail as it is written: the keys of `row` depend on the block, which another argument says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailChoice {
    Block,
    Row { keys: Option<usize> },
}

impl TailChoice {
    /// The tail for these blocks.
    pub fn of(self, blocks: BlockSize) -> Tail {
        match self {
            TailChoice::Block => Tail::Block,
            TailChoice::Row { keys: None } => Tail::row(blocks),
            TailChoice::Row { keys: Some(keys) } => Tail::Row { keys },
        }
    }
}

impl FromStr for TailChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys = |keys: &str| keys.parse().ok().map(|keys| TailChoice::Row { keys: Some(keys) });
        let found = match text {
            "block" => Some(TailChoice::Block),
            "row" => Some(TailChoice::Row { keys: None }),
            _ => text.strip_prefix("row:").and_then(keys),
        };
        found.ok_or_else(|| "write block, row, or row:KEYS such as row:256".to_owned())
    }
}

/// A tail in words, as `--tail` takes it.
pub fn describe_tail(tail: Tail) -> Option<String> {
    match tail {
        Tail::Block => Some("block".to_owned()),
        Tail::Row { keys } => Some(format!("row:{keys}")),
        _ => None,
    }
}

/// A share that `rule` takes.
fn share(text: &str, rule: impl Fn(f64) -> Selection) -> Result<f64, String> {
    let share = text.parse().map_err(|error: ParseFloatError| error.to_string())?;
    rule(share).validate().map_err(|error| error.to_string())?;
    Ok(share)
}

fn block_help() -> String {
    let sizes = BlockSize::ALL.map(|size| format!("{}x{}", size.q(), size.kv()));
    format!("The sparse block, queries by keys: {}", sizes.join(", "))
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    let sizes = text.split_once(['x', '×']).and_then(|(q, kv)| Some((q.parse().ok()?, kv.parse().ok()?)));
    let (q, kv) = sizes.ok_or("write it as QUERIESxKEYS, such as 128x64")?;
    BlockSize::new(q, kv).map_err(|error| error.to_string())
}

/// The device asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Cpu,
    Cuda(usize),
    Best,
}

impl DeviceChoice {
    /// Opens the device.
    pub fn open(self) -> Result<Device, DeviceError> {
        let device = match self {
            DeviceChoice::Cpu => Device::cpu(),
            DeviceChoice::Cuda(ordinal) => Device::cuda(ordinal)?,
            DeviceChoice::Best => Device::best(),
        };
        Ok(device.with_services(&Services::builder().on_first_use(line_on_stderr()).build()))
    }

    /// Where to run instead when `device` was opened and there is no NVRTC: a GPU is of no use without, and `best`
    /// then is the CPU.
    pub fn without_nvrtc(self, device: &Device, error: ToolchainError) -> Result<Device, ToolchainError> {
        if device.is_cuda() && self != DeviceChoice::Best { Err(error) } else { Ok(Device::cpu()) }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(DeviceChoice::Cpu),
            "best" => Ok(DeviceChoice::Best),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| "use cpu, cuda:0 (or another number) or best".to_owned()),
        }
    }
}

/// Architectures: `all`, or names with commas between.
#[derive(Clone, Debug)]
pub struct ArchList(pub Vec<Arch>);

impl FromStr for ArchList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(ArchList(Arch::SHIPPED.to_vec()));
        }
        let mut archs = Vec::new();
        for name in text.split(',').map(str::trim) {
            let arch = name.parse::<Arch>().map_err(|error| error.to_string())?;
            if !archs.contains(&arch) {
                archs.push(arch);
            }
        }
        Ok(ArchList(archs))
    }
}

/// `rows=4096,width=128`: extents by the names of dimensions.
#[derive(Clone, Debug, Default)]
pub struct ExtentList(pub Vec<(String, i64)>);

impl FromStr for ExtentList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let extent =
            |text: &str| text.parse().ok().filter(|extent| (1..=i64::from(i32::MAX)).contains(extent));
        pairs(text, extent, "NAME=EXTENT with an extent from 1 to 2147483647, such as rows=4096")
            .map(ExtentList)
    }
}

/// `epsilon=1e-6,causal=1`: numbers by the names of scalars.
#[derive(Clone, Debug, Default)]
pub struct ScalarList(pub Vec<(String, f64)>);

impl FromStr for ScalarList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `inf` is a number where somebody writes it; `1e999` is one that nothing can hold.
        let number = |text: &str| {
            let value: f64 = text.parse().ok()?;
            let is_too_large = value.is_infinite() && text.contains(|letter: char| letter.is_ascii_digit());
            (!is_too_large).then_some(value)
        };
        pairs(text, number, "NAME=NUMBER, such as epsilon=1e-6").map(ScalarList)
    }
}

/// Values by name, with commas between.
fn pairs<V>(text: &str, read: impl Fn(&str) -> Option<V>, usage: &str) -> Result<Vec<(String, V)>, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), read(value.trim())?))
    };
    text.split(',').map(|text| pair(text).ok_or_else(|| format!("`{text}`: write {usage}"))).collect()
}

/// A list of values of a specialisation, which may be empty.
pub fn spec(text: &str) -> Result<SpecList, String> {
    if text.is_empty() { Ok(SpecList::default()) } else { text.parse() }
}

/// `D=128,T=bf16`.
#[derive(Clone, Debug, Default)]
pub struct SpecList(pub Vec<(String, Value)>);

impl FromStr for SpecList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = |text: &str| {
            let dtype = DType::from_name(text).map(Value::DType);
            dtype.or_else(|| text.parse().ok().map(Value::Int))
        };
        pairs(text, value, "NAME=VALUE, such as D=128 or T=bf16").map(SpecList)
    }
}
