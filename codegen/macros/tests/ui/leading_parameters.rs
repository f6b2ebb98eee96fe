use tilewright_macros::score_mod;

#[score_mod]
fn f(b: i32, h: i32, q: i32, kv: i32) -> f32 {
    0.0
}

fn main() {}
