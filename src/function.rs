//! User functions on scores and positions.

/// A function written in the device subset of Rust.
pub trait DeviceFn: Send + Sync + 'static {
    /// The function's name.
    fn name(&self) -> &str;
    /// The function's own tokens as text.
    fn source(&self) -> &str;
}

/// Changes one scaled score before the softmax.
pub trait ScoreMod: DeviceFn {
    /// The new score of query `q` and key `kv` in batch `b` and query head `h`.
    fn score(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32;
}

/// Says which keys a query may attend to.
pub trait MaskMod: DeviceFn {
    /// Whether query `q` attends to key `kv` in batch `b` and query head `h`.
    fn keep(&self, b: i32, h: i32, q: i32, kv: i32) -> bool;
}
