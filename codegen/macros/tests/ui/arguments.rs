use tilewright_macros::mask_mod;

#[mask_mod(window = 4)]
fn f(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

fn main() {}
