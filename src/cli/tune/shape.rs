//! Sizes to tune for, as text.

use std::fmt;
use std::str::FromStr;
use tilewright::HeadDim;
use tilewright::tune::Workload;

/// Kernels count positions in 32 bits, a block beyond the last included.
const MOST_TOKENS: usize = i32::MAX as usize - 256;
/// 128 GiB of half precision.
const MOST_ELEMENTS: usize = 1 << 36;

/// `[BATCHx]HEADS[/KV_HEADS]xTOKENS[:KEYS]xHEAD_DIM[/VALUE_DIM]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tokens: usize,
    pub keys: usize,
    pub head_dim: HeadDim,
    pub value_dim: HeadDim,
}

impl Shape {
    pub fn q(&self) -> [usize; 4] {
        [self.batch, self.heads, self.tokens, self.head_dim.get()]
    }

    pub fn k(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.keys, self.head_dim.get()]
    }

    pub fn v(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.keys, self.value_dim.get()]
    }

    /// Refuses what no GPU holds, before anything is made of that size.
    fn check_size(&self) -> Result<(), String> {
        for (what, dims) in [("q", self.q()), ("k", self.k()), ("v", self.v())] {
            let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
            if dims[2] > MOST_TOKENS || elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
                return Err(format!(
                    "{what} of {dims:?} is too large: a sequence has at most {MOST_TOKENS} tokens and a tensor {MOST_ELEMENTS} \
                     elements"
                ));
            }
        }
        Ok(())
    }

    pub fn workload(&self, density: f64) -> Workload {
        Workload { batch: self.batch, heads: self.heads, seq_q: self.tokens, seq_kv: self.keys, density }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "write it as HEADSxTOKENSxHEAD_DIM, such as 12x32760x128, or in full as \
                     [BATCHx]HEADS[/KV_HEADS]xTOKENS[:KEYS]xHEAD_DIM[/VALUE_DIM], such as 2x24/8x4096:512x192/128";
        let number = |text: &str| text.parse::<usize>().ok().filter(|&n| n > 0).ok_or(usage);
        // What stands alone counts twice.
        let pair = |text: &str, mark| match text.split_once(mark) {
            Some((a, b)) => Ok::<_, &str>((number(a)?, number(b)?)),
            None => number(text).map(|n| (n, n)),
        };
        let parts: Vec<&str> = text.split(['x', '×']).collect();
        let (batch, rest) = match parts[..] {
            [_, _, _] => (1, &parts[..]),
            [batch, _, _, _] => (number(batch)?, &parts[1..]),
            _ => return Err(usage.to_owned()),
        };
        let ((heads, kv_heads), (tokens, keys)) = (pair(rest[0], '/')?, pair(rest[1], ':')?);
        if heads % kv_heads != 0 {
            return Err(format!("{heads} heads are no multiple of {kv_heads} key heads"));
        }
        let dim = |dim| HeadDim::new(dim).map_err(|error| error.to_string());
        let (head_dim, value_dim) = pair(rest[2], '/')?;
        let (head_dim, value_dim) = (dim(head_dim)?, dim(value_dim)?);
        let shape = Shape { batch, heads, kv_heads, tokens, keys, head_dim, value_dim };
        shape.check_size().map(|()| shape)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch != 1 {
            write!(f, "{} × ", self.batch)?;
        }
        write!(f, "{}", self.heads)?;
        if self.kv_heads != self.heads {
            write!(f, "/{}", self.kv_heads)?;
        }
        write!(f, " heads × {}", self.tokens)?;
        if self.keys != self.tokens {
            write!(f, " queries × {} keys", self.keys)?;
        }
        write!(f, " × {}", self.head_dim)?;
        if self.value_dim != self.head_dim {
            write!(f, "/{}", self.value_dim)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_as_they_are_written() {
        for (text, batch, heads, seqs, shown) in [
            ("12x32760x128", 1, (12, 12), (32_760, 32_760), "12 heads × 32760 × 128"),
            (
                "2x24/8x4096:512x128",
                2,
                (24, 8),
                (4096, 512),
                "2 × 24/8 heads × 4096 queries × 512 keys × 128",
            ),
            ("3×100×64", 1, (3, 3), (100, 100), "3 heads × 100 × 64"),
            ("3x100x192/128", 1, (3, 3), (100, 100), "3 heads × 100 × 192/128"),
        ] {
            let shape: Shape = text.parse().unwrap();
            assert_eq!((shape.batch, shape.heads, shape.kv_heads), (batch, heads.0, heads.1), "{text}");
            assert_eq!((shape.tokens, shape.keys), seqs, "{text}");
            assert_eq!(shape.to_string(), shown);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "12",
            "12x128",
            "0x100x64",
            "axbxc",
            "1x2x3x4x5",
            "12x32760x100000",
            "6/4x100x64",
            "12x1:x64",
            "12x100x192/100",
            "1x2000000000x256",
            "1x2147483647x8",
            "9223372036854775807x9223372036854775807x9223372036854775807x8",
            "1x9223372036854775807x100x128",
            "-1x100x128",
        ] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }
}
