use tilewright_macros::mask_mod;

#[mask_mod]
fn f(b: i32, h: i32, q: i32, kv: i32, names: &[String]) -> bool {
    q >= kv
}

fn main() {}
