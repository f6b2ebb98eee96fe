//! The rule that picks key blocks: top-k, top-p, or their union.
//!
//! ```
//! use tilewright::{top_k, top_p};
//! let rule = top_k(0.03) | top_p(0.2);
//! assert_eq!((rule.k(), rule.p()), (Some(0.03), Some(0.2)));
//! assert!((top_k(0.0) | top_p(0.2)).validate().is_err());
//! ```
//!
//! With the row's `n` admissible blocks in descending order of their pooled probability P̄ (ties: lower index first),
//! top-k takes the first `max(1, ceil(k · n))` and top-p the shortest prefix whose mass is at least `p`. Both are
//! prefixes of one order, so their union is the longer of the two (SpargeAttention2, arXiv 2602.13515).

/// A share outside its range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// `k` or `p` is not in (0, 1].
    #[error("top-{name} is {}, needed a share in (0, 1]: 0.03 keeps 3 %", number(*found))]
    Share {
        /// `k` or `p`.
        name: char,
        /// The value.
        found: f64,
    },
    /// Blocks are to be scored by keys, and there are means of blocks alone.
    #[error(
        "block means were given and the rule scores by keys, which they do not have: make the mask of q and k, or score by means"
    )]
    Keys,
}

/// A number to read: with an exponent where it would have rows of zeros.
pub(crate) fn number(x: f64) -> String {
    match x == 0.0 || !x.is_finite() || (1e-5..1e16).contains(&x.abs()) {
        true => x.to_string(),
        false => format!("{x:e}"),
    }
}

/// Keys that have one mean in [`Scores::Keys`].
pub(crate) const FINE: usize = 4;

/// What a pair of blocks is scored by. With the mean query q̄ of the query block and a scale σ:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scores {
    /// The block's mean key: `σ · q̄ · k̄`, as in SpargeAttention. What a few keys have is lost in the mean.
    #[default]
    Means,
    /// The block's best keys: the largest of `σ · q̄ · k̃` over the means k̃ of four neighbouring keys each. With a
    /// [tail](crate::tail), which stands for the mean of what is dropped, the blocks to keep are those whose keys are not
    /// like their mean: see `docs/tails.md` for what it is worth. Scores take 16 times the products for blocks of 64 keys,
    /// a tenth of a percent of dense attention's.
    Keys,
}

/// Which key blocks a query block keeps. Made by [`top_k`], [`top_p`] and `|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selection {
    k: Option<f64>,
    p: Option<f64>,
    scores: Scores,
}

/// Keep the `ceil(share · n)` best of `n` admissible blocks, at least one.
pub fn top_k(share: f64) -> Selection {
    Selection { k: Some(share), p: None, scores: Scores::Means }
}

/// Keep the shortest prefix of the best blocks whose probability mass is at least `mass`.
pub fn top_p(mass: f64) -> Selection {
    Selection { k: None, p: Some(mass), scores: Scores::Means }
}

impl std::ops::BitOr for Selection {
    type Output = Selection;

    /// The union: the longer prefix of each row. A rule given on both sides keeps the larger share. Scored by keys where
    /// either side is.
    fn bitor(self, other: Selection) -> Selection {
        let larger = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(if b > a || b.is_nan() { b } else { a }),
            (a, b) => a.or(b),
        };
        let scores = if self.scores == Scores::Means { other.scores } else { self.scores };
        Selection { k: larger(self.k, other.k), p: larger(self.p, other.p), scores }
    }
}

impl Selection {
    /// The same rule over other scores.
    ///
    /// ```
    /// use tilewright::{Scores, top_k};
    /// let rule = top_k(0.05).by(Scores::Keys);
    /// assert_eq!(rule.scores(), Scores::Keys);
    /// ```
    #[must_use]
    pub fn by(self, scores: Scores) -> Selection {
        Selection { scores, ..self }
    }

    /// What the blocks are scored by.
    pub fn scores(&self) -> Scores {
        self.scores
    }

    /// The share of blocks top-k keeps.
    pub fn k(&self) -> Option<f64> {
        self.k
    }

    /// The mass top-p keeps.
    pub fn p(&self) -> Option<f64> {
        self.p
    }

    /// Checks that every share given is in (0, 1].
    ///
    /// # Errors
    /// [`SelectError::Share`] otherwise; NaN is refused too.
    pub fn validate(&self) -> Result<(), SelectError> {
        for (name, share) in [('k', self.k), ('p', self.p)] {
            if let Some(found) = share
                && !(found > 0.0 && found <= 1.0)
            {
                return Err(SelectError::Share { name, found });
            }
        }
        Ok(())
    }

    /// `k` as the kernels take it: 0 when there is no top-k (one block is kept all the same).
    pub(crate) fn k_f32(&self) -> f32 {
        self.k.unwrap_or(0.0) as f32
    }

    /// `p` as the kernels take it: 0 when there is no top-p.
    pub(crate) fn p_f32(&self) -> f32 {
        self.p.unwrap_or(0.0) as f32
    }
}
