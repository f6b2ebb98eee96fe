use tilewright_macros::mask_mod;

#[mask_mod]
fn f(b: i32, h: i32, q: i32, kv: i32) -> f32 {
    0.0
}

fn main() {}
