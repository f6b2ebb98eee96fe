//! A small kernel for tests of the generator, so that they do not change with the shipped ones.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use tilewright_codegen::KernelSource;

pub const DECLARATION: &str = "kernel! {
    /// Scales rows.
    fn scale(
        #[align(16)] x: Tensor<T, [rows, columns]>,
        weight: Tensor<f32, [columns]>,
        bias: Option<Tensor<f32, [rows | 1, columns]>>,
        y: out Tensor<T, [rows, columns]>,
        factor: f32,
    )
    specialize { T: [f16, bf16], BLOCK: [64, 128] }
    ship { T: [bf16] }
    functions { score_mod: ScoreMod }
    let blocks = ceil_div(columns, BLOCK);
    require columns % 8 == 0, \"pad the columns\";
    body sm80 {
        tune { WARPS: [4, 8] }
        where { smem_bytes = 4 * BLOCK * WARPS }
        launch { grid = [blocks, rows, 1], threads = 32 * WARPS }
    }
}
";

pub const BODY: &str = "<% include \"scale/load.cuh\" %>
extern \"C\" __global__ void __launch_bounds__(THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f) {
    const int row = blockIdx.y, column = blockIdx.x * BLOCK + threadIdx.x;
    if (threadIdx.x >= BLOCK || column >= p.columns) return;
    const float bias = p.bias ? p.bias[row * p.bias_stride[0] + column] : 0.0f;
    const float x = p.weight[column] * load(p.x, row * p.x_stride[0] + column);
    p.y[row * p.y_stride[0] + column] = T(f.score_mod(x * p.factor + bias, 0, 0, row, column));
}
";

pub const HEADER: &str = "__device__ __forceinline__ float load(const T* from, long long at) {
    return static_cast<float>(from[at]);
}
";

/// The kernel's folder with another declaration or body.
pub fn source(declaration: &str, body: &str) -> KernelSource {
    let files =
        vec![("scale/load.cuh".into(), HEADER.into()), ("scale/sm80.cu".into(), body.to_owned().into())];
    KernelSource {
        name: "scale".into(),
        declaration: declaration.to_owned().into(),
        files: files.into(),
        has_check: false,
    }
}

/// Writes the kernel's folder into `dir`.
pub fn write_kernel(dir: &Path) {
    let folder = dir.join("scale");
    std::fs::create_dir_all(&folder).unwrap();
    for (file, text) in [("kernel.rs", DECLARATION), ("sm80.cu", BODY), ("load.cuh", HEADER)] {
        std::fs::write(folder.join(file), text).unwrap();
    }
}

/// The repository's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
