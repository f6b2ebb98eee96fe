//! When to tune.

use std::fmt;
use std::str::FromStr;

/// The variable that sets the policy where the builder does not.
pub const POLICY_VARIABLE: &str = "TILEWRIGHT_POLICY";

/// What to do where no record says which candidate is fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Time the candidates once and keep the result: seconds at the first use, the fastest kernel ever after.
    #[default]
    Tune,
    /// Take what the declaration prefers, untimed: nothing but a compilation at the first use.
    FirstValid,
    /// Fail, for production: whatever is used must have been tuned or imported before.
    CacheOnly,
}

impl Policy {
    /// Every policy, the default first.
    pub const ALL: [Policy; 3] = [Policy::Tune, Policy::FirstValid, Policy::CacheOnly];

    /// The name that [`POLICY_VARIABLE`] takes.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Tune => "tune",
            Policy::FirstValid => "first-valid",
            Policy::CacheOnly => "cache-only",
        }
    }

    /// The policy of the environment; [`Tune`](Self::Tune) where [`POLICY_VARIABLE`] is unset or empty.
    ///
    /// # Errors
    /// [`PolicyError`] for a name that is none.
    pub fn from_env() -> Result<Self, PolicyError> {
        match std::env::var_os(POLICY_VARIABLE) {
            Some(text) if !text.is_empty() => text.to_string_lossy().parse(),
            _ => Ok(Policy::default()),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let wanted = text.trim().to_lowercase().replace('_', "-");
        Self::ALL
            .into_iter()
            .find(|policy| policy.name() == wanted)
            .ok_or_else(|| PolicyError { found: text.to_owned() })
    }
}

/// A policy that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tuning policy is `{found}`, needed one of {}: set it in the builder or as TILEWRIGHT_POLICY",
    Policy::ALL.map(Policy::name).join(", ")
)]
#[non_exhaustive]
pub struct PolicyError {
    /// What was asked for.
    pub found: String,
}
