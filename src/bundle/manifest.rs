//! manifest.json: what is in a bundle.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::error::{Refusal, excerpt};
use super::place::Place;
use super::{LARGEST, MOST_FILES, SCHEMA};
use crate::cache::transfer::PARTS;

/// The largest manifest.json that is read.
pub(super) const LARGEST_MANIFEST: u64 = 32 << 20;

/// The list of a bundle's files.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    schema: u32,
    /// The version that made it, for people.
    created_by: String,
    pub files: Vec<Listed>,
}

/// A file of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    pub path: String,
    pub size: u64,
    pub blake3: String,
}

/// The fields that every version has.
#[derive(Deserialize)]
struct Version {
    schema: u32,
    #[serde(default)]
    created_by: String,
}

impl Manifest {
    pub(super) fn new(files: Vec<Listed>) -> Self {
        let created_by = concat!("tilewright ", env!("CARGO_PKG_VERSION")).to_string();
        Self { schema: SCHEMA, created_by, files }
    }

    /// The file's text.
    pub(super) fn to_json(&self) -> Vec<u8> {
        // Numbers and texts always have a JSON form.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads the list and checks it: paths that may be, each once; sizes within the limits; entries that are complete.
    pub(super) fn from_json(text: &[u8]) -> Result<Self, Refusal> {
        let unreadable = |error: serde_json::Error| Refusal::Manifest(error.to_string());
        let Version { schema, created_by } = serde_json::from_slice(text).map_err(unreadable)?;
        if schema != SCHEMA {
            return Err(Refusal::Schema { found: schema, created_by: excerpt(created_by.as_bytes()) });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(unreadable)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Refusal> {
        let too_large = |what: String, found: u64, limit: u64| match found > limit {
            true => Err(Refusal::TooLarge { what, found, limit }),
            false => Ok(()),
        };
        too_large("the number of its files is".into(), self.files.len() as u64, MOST_FILES as u64)?;
        let (mut seen, mut entries) = (BTreeSet::new(), BTreeMap::<&str, usize>::new());
        let mut total = 0_u64;
        for Listed { path, size, .. } in &self.files {
            let place = Place::of(path)?;
            if !seen.insert(path) {
                return Err(Refusal::Duplicate { path: path.clone() });
            }
            too_large(format!("the size of {path:?} is"), *size, place.largest())?;
            total = total.saturating_add(*size);
            if let Place::Entry { folder, part } = place {
                *entries.entry(folder).or_default() |= 1 << part;
            }
        }
        too_large("the size of its files together is".into(), total, LARGEST)?;
        for (folder, parts) in entries {
            if let Some(part) = (0..PARTS.len()).find(|part| parts & (1 << part) == 0) {
                return Err(Refusal::Missing { path: format!("{folder}/{}", PARTS[part]) });
            }
        }
        Ok(())
    }

    /// The folders of the compiled kernels, and the files of the records.
    pub(super) fn contents(&self) -> (BTreeSet<&str>, BTreeSet<&str>) {
        let (mut entries, mut records) = (BTreeSet::new(), BTreeSet::new());
        for Listed { path, .. } in &self.files {
            match Place::of(path) {
                Ok(Place::Entry { folder, .. }) => entries.insert(folder),
                Ok(Place::Record) => records.insert(path.as_str()),
                Err(_) => false,
            };
        }
        (entries, records)
    }
}
