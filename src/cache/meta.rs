//! meta.json: what an entry says about itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::files::Fault;
use super::key::{CubinKey, SCHEMA, digest};
use crate::compile::{Cubin, PtxasReport};

/// The largest meta.json that is read.
pub(super) const LARGEST: u64 = 1 << 20;

/// How many bytes of warnings are kept.
const WARNINGS: usize = 64 << 10;

/// The facts about an entry. The digests make its other files verifiable, `checksum` itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    schema: u32,
    name: String,
    arch: String,
    nvrtc: (i32, i32),
    options: Vec<String>,
    source_blake3: String,
    pub source_bytes: u64,
    pub cubin_blake3: String,
    pub cubin_bytes: u64,
    pub report: PtxasReport,
    compile_ms: u64,
    /// Seconds since 1970, for people: clocks go backwards.
    pub created: u64,
    pub warnings: Vec<String>,
    /// blake3 of this document with an empty checksum.
    checksum: String,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

impl Meta {
    pub(super) fn new(key: &CubinKey, source: &str, cubin: &Cubin) -> Self {
        let mut room = WARNINGS;
        let fits = |warning: &&String| {
            let fits = warning.len() <= room;
            room = room.saturating_sub(warning.len());
            fits
        };
        Self {
            schema: SCHEMA,
            name: key.name().to_string(),
            arch: key.arch().to_string(),
            nvrtc: key.nvrtc(),
            options: key.options().to_vec(),
            source_blake3: key.source_blake3().to_string(),
            source_bytes: source.len() as u64,
            cubin_blake3: digest(&cubin.bytes),
            cubin_bytes: cubin.bytes.len() as u64,
            report: cubin.report,
            compile_ms: u64::try_from(cubin.compile_time.as_millis()).unwrap_or(u64::MAX),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            warnings: cubin.warnings.iter().take_while(fits).cloned().collect(),
            checksum: String::new(),
        }
    }

    /// The same without the times, which differ between equal compilations.
    #[cfg(feature = "bundle")]
    pub(super) fn timeless(self) -> Self {
        Self { compile_ms: 0, created: 0, ..self }
    }

    /// The file's text.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let unsealed = Self { checksum: String::new(), ..self.clone() };
        Self { checksum: digest(&unsealed.text()), ..unsealed }.text()
    }

    /// Reads the file's text. A text that differs from what [`to_json`](Self::to_json) makes of its content is refused:
    /// every bit of it counts.
    pub(super) fn from_json(text: &[u8]) -> Result<Self, Fault> {
        let broken = |error: serde_json::Error| Fault::Broken(format!("meta.json is unreadable: {error}"));
        match serde_json::from_slice(text).map_err(broken)? {
            Version { schema: SCHEMA } => {}
            Version { schema } => return Err(Fault::Schema(schema)),
        }
        let meta: Self = serde_json::from_slice(text).map_err(broken)?;
        match meta.to_json() == text {
            true => Ok(meta),
            false => Err(Fault::Broken("meta.json was changed".to_string())),
        }
    }

    /// The key of the entry.
    pub(super) fn key(&self) -> CubinKey {
        let (source, options) = (self.source_blake3.clone(), self.options.clone());
        CubinKey::from_parts(&self.name, &self.arch, source, options, self.nvrtc)
    }

    /// How long the compilation took.
    pub(super) fn compile_time(&self) -> Duration {
        Duration::from_millis(self.compile_ms)
    }

    fn text(&self) -> Vec<u8> {
        // Numbers and texts always have a JSON form.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}
