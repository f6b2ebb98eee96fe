use tilewright_macros::score_mod;

#[score_mod]
fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
    score.hypot(2.0)
}

fn main() {}
