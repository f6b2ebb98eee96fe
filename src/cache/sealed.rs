//! The form of small files: a line of JSON that says what the file is, then the content. Both are JSON where the
//! content is, so that `jq` reads the file.

use serde::{Deserialize, Serialize};

use super::files::Fault;
use super::key::{SCHEMA, digest};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    schema: u32,
    device: String,
    file: String,
    bytes: u64,
    blake3: String,
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// A sealed file that was read.
pub(super) struct Opened {
    pub device: String,
    pub file: String,
    pub content: Vec<u8>,
}

/// The file's bytes.
pub(super) fn seal(device: &str, file: &str, content: &[u8]) -> Vec<u8> {
    let (device, file) = (device.to_string(), file.to_string());
    let seal = Seal { schema: SCHEMA, device, file, bytes: content.len() as u64, blake3: digest(content) };
    let mut bytes = line(&seal);
    bytes.extend_from_slice(content);
    bytes
}

/// Reads and verifies the file's bytes.
pub(super) fn open(bytes: &[u8]) -> Result<Opened, Fault> {
    let broken = |why: &str| Fault::Broken(why.to_string());
    let end =
        bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| broken("its first line is cut short"))?;
    let (head, content) = bytes.split_at(end + 1);
    let unreadable = |error| Fault::Broken(format!("its first line is unreadable: {error}"));
    match serde_json::from_slice(head).map_err(unreadable)? {
        Version { schema: SCHEMA } => {}
        Version { schema } => return Err(Fault::Schema(schema)),
    }
    let seal: Seal = serde_json::from_slice(head).map_err(unreadable)?;
    if line(&seal) != head || content.len() as u64 != seal.bytes || digest(content) != seal.blake3 {
        return Err(broken("it is not what its first line says"));
    }
    Ok(Opened { device: seal.device, file: seal.file, content: content.to_vec() })
}

fn line(seal: &Seal) -> Vec<u8> {
    // Numbers and texts always have a JSON form.
    let mut line = serde_json::to_vec(seal).unwrap_or_default();
    line.push(b'\n');
    line
}
