//! What the environment says about the cache.

use std::path::PathBuf;
use std::time::Duration;

use etcetera::BaseStrategy;

use super::CacheError;

/// Names the folder of the cache.
pub const CACHE_VARIABLE: &str = "TILEWRIGHT_CACHE";
/// The bytes that all cubins together may take, such as `500M`; 2 GiB by default.
pub const LIMIT_VARIABLE: &str = "TILEWRIGHT_CACHE_LIMIT";
/// How long a process waits for another one that compiles the same kernel, in milliseconds; 20 seconds by default.
pub const LOCK_TIMEOUT_VARIABLE: &str = "TILEWRIGHT_LOCK_TIMEOUT_MS";

const LIMIT: u64 = 2 << 30;
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn folder() -> Result<PathBuf, CacheError> {
    match std::env::var_os(CACHE_VARIABLE).filter(|value| !value.is_empty()) {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => etcetera::choose_base_strategy()
            .map(|base| base.cache_dir().join("tilewright"))
            .map_err(|_| CacheError::NoFolder),
    }
}

pub(super) fn limit() -> u64 {
    variable(LIMIT_VARIABLE, parse_size).unwrap_or(LIMIT)
}

pub(super) fn lock_timeout() -> Duration {
    variable(LOCK_TIMEOUT_VARIABLE, |text| text.trim().parse().ok())
        .map_or(LOCK_TIMEOUT, Duration::from_millis)
}

fn variable<T>(name: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    let parsed = parse(&value);
    if parsed.is_none() {
        tracing::warn!(name, value, "ignored a variable that makes no sense");
    }
    parsed
}

/// Reads a number of bytes: `1048576`, `512K`, `500M`, `2G`, `2GiB` (units of 1024).
#[doc(hidden)]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        let read =
            [("0", 0), ("17", 17), ("2k", 2048), ("500M", 500 << 20), ("2 GiB", 2 << 30), ("1TB", 1 << 40)];
        for (text, bytes) in read {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "2X", "99999999999999999999", "99999999999T", "1 000"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
