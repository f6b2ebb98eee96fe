use tilewright_macros::mask_mod;

#[mask_mod]
fn f(b: i32, h: i32, q: i32, kv: i32) -> bool {
    if kv == 0 {
        return true;
    }
    q >= kv
}

fn main() {}
