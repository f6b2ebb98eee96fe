use tilewright_macros::score_mod;

#[score_mod]
fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
    let mut bias = score;
    bias += 1.0;
    bias
}

fn main() {}
