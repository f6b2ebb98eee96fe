//! What a record holds for: a kernel, a GPU, and sizes of about the same.

use super::spec::Fields;
use crate::device::DeviceInfo;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The upper ends of the density bands, in percent of the blocks. Sparse masks differ most at the low end, where a
/// few blocks more or less decide how wide a step pays.
pub const DENSITY_BANDS: [f64; 6] = [3.0, 7.0, 15.0, 35.0, 70.0, 100.0];

/// The sizes of a launch that decide which schedule is fastest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// The batch size.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Queries.
    pub seq_q: usize,
    /// Keys.
    pub seq_kv: usize,
    /// The share of blocks kept, 0 to 1; 1 for dense kernels.
    pub density: f64,
}

/// Sizes of about the same, for which one record serves.
///
/// Sequence lengths go by half octaves (a factor of 1.41), heads × batch by octaves, the density by
/// [bands](DENSITY_BANDS): what a schedule gains changes slowly with them. Each field counts buckets from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Half octaves of the number of queries: 2·log₂, rounded down.
    pub seq_q: u32,
    /// Half octaves of the number of keys.
    pub seq_kv: u32,
    /// Octaves of heads × batch: log₂, rounded down.
    pub heads: u32,
    /// The index of the density band.
    pub density: u32,
}

impl Bucket {
    /// The bucket of these sizes.
    pub fn of(workload: &Workload) -> Self {
        // The logarithm of the square, in integers: exact at every border.
        let half_octaves = |n: usize| (n.max(1) as u128 * n.max(1) as u128).ilog2();
        let heads = (workload.batch as u128 * workload.heads as u128).max(1);
        let percent = workload.density * 100.0;
        let last = DENSITY_BANDS.len() - 1;
        // A density that is no number counts as dense.
        let density = DENSITY_BANDS[..last].iter().position(|&end| percent < end).unwrap_or(last);
        Bucket {
            seq_q: half_octaves(workload.seq_q),
            seq_kv: half_octaves(workload.seq_kv),
            heads: heads.ilog2(),
            density: density as u32,
        }
    }

    /// The bucket of a launch of which nothing but the extents of its dimensions is known: the two longest count as queries and keys,
    /// the product of the others as heads.
    pub fn of_extents(extents: &[i64]) -> Self {
        let mut longest: Vec<usize> =
            extents.iter().map(|&extent| usize::try_from(extent).unwrap_or(0)).collect();
        longest.sort_unstable_by(|a, b| b.cmp(a));
        let mut longest = longest.into_iter();
        let [seq_q, seq_kv] = [0; 2].map(|none| longest.next().unwrap_or(none));
        let heads = longest.fold(1, |all: usize, extent| all.saturating_mul(extent.max(1)));
        Bucket::of(&Workload { batch: 1, heads, seq_q, seq_kv, density: 1.0 })
    }

    /// The band's densities in percent, lowest and highest.
    pub fn density_percent(&self) -> (f64, f64) {
        let band = (self.density as usize).min(DENSITY_BANDS.len() - 1);
        (if band == 0 { 0.0 } else { DENSITY_BANDS[band - 1] }, DENSITY_BANDS[band])
    }
}

impl fmt::Display for Bucket {
    /// `queries 23170–32767, keys 23170–32767, heads × batch 8–15, density 3–7 %`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = |half_octaves: u32| (first(half_octaves), first(half_octaves.saturating_add(1)) - 1);
        let ((q, last_q), (kv, last_kv)) = (ends(self.seq_q), ends(self.seq_kv));
        let octave = |n: u32| 1u128 << n.min(126);
        let (heads, last_head) = (octave(self.heads), octave(self.heads.saturating_add(1)) - 1);
        let (low, high) = self.density_percent();
        write!(
            f,
            "queries {q}–{last_q}, keys {kv}–{last_kv}, heads × batch {heads}–{last_head}, density {low}–{high} %"
        )
    }
}

/// The smallest number of a half octave: the least n with n² ≥ 2^half_octaves.
fn first(half_octaves: u32) -> u128 {
    let square = 1u128 << half_octaves.min(126);
    let root = square.isqrt();
    if root * root == square { root } else { root + 1 }
}

/// Which GPU: two of the same key are the same to a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKey {
    /// The architecture, such as `sm_90a`.
    pub arch: String,
    /// The marketing name; it tells slices of a shared GPU apart.
    pub name: String,
    /// How many multiprocessors it has.
    pub sm_count: usize,
    /// The memory clock in steps of 100 MHz, 0 where it is not known: cards of one name come with different memory.
    pub memory_clock: u32,
}

impl DeviceKey {
    /// The key of a GPU. The driver's attribute gives the memory clock in kHz; 0 where it does not.
    pub fn new(info: &DeviceInfo, memory_clock_khz: u32) -> Self {
        DeviceKey {
            arch: info.arch.clone(),
            name: info.name.clone(),
            sm_count: info.sm_count,
            memory_clock: memory_clock_khz.saturating_add(50_000) / 100_000,
        }
    }

    /// A name for the folder of this GPU's records: `sm_90a-nvidia-h200-132sm-m32`. Whatever the driver calls the GPU,
    /// only letters, digits, `-` and `_` are in it.
    pub fn folder_name(&self) -> String {
        format!("{}-{}-{}sm-m{}", slug(&self.arch), slug(&self.name), self.sm_count, self.memory_clock)
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} SMs)", self.name, self.arch, self.sm_count)
    }
}

/// What a record holds for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneKey {
    /// The kernel, by [`spec_fingerprint`](super::spec_fingerprint).
    pub spec: String,
    /// The GPU.
    pub device: DeviceKey,
    /// The sizes.
    pub bucket: Bucket,
}

impl TuneKey {
    /// A hash of the whole key, 32 hex digits.
    pub fn hash(&self) -> String {
        let TuneKey { spec, device, bucket } = self;
        let mut fields = Fields::new("tilewright tune 1");
        fields.add(spec);
        fields.add(&device.arch);
        fields.add(&device.name);
        fields.add(device.sm_count);
        fields.add(device.memory_clock);
        for number in [bucket.seq_q, bucket.seq_kv, bucket.heads, bucket.density] {
            fields.add(number);
        }
        fields.hex()
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &str {
        self.spec.rsplit_once('-').map_or(&self.spec, |(kernel, _)| kernel)
    }

    /// The record's file inside the GPU's folder, without its extension: `forward-<hash>`.
    pub fn file_name(&self) -> String {
        format!("{}-{}", slug(self.kernel()), self.hash())
    }
}

/// Lower-case letters, digits and `_`, with single dashes for the rest; short enough for any file system.
pub(super) fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars().take(64) {
        if c.is_ascii_alphanumeric() || c == '_' {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "unnamed".to_owned() } else { slug.to_owned() }
}
