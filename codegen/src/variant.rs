//! A rendered source with its name and fingerprint.

use crate::budget::Candidate;
use crate::dsl::{Body, Kernel};

/// One rendered source: self-contained CUDA C++ that NVRTC and nvcc take.
#[derive(Debug, Clone)]
pub struct Variant {
    /// A readable name, also the kernel's symbol.
    pub name: String,
    /// The first 16 hex digits of the source's blake3 hash.
    pub fingerprint: String,
    /// The source.
    pub source: String,
    /// What it was rendered from.
    pub candidate: Candidate,
    /// The blocks along y, in CUDA; absent where the grid has one dimension alone.
    blocks_along_y: Option<String>,
}

/// Where the generated prelude ends.
const END_OF_PRELUDE: &str = "#define TILEWRIGHT_KERNEL ";

impl Variant {
    pub(crate) fn new(name: String, source: String, candidate: Candidate, kernel: &Kernel) -> Self {
        let body = kernel.bodies.iter().find(|body| body.family == candidate.schedule.family);
        let blocks_along_y =
            body.filter(|body| !body.launch.persistent).map(|body| along_y(body, &candidate));
        Variant { fingerprint: fingerprint(&source), name, source, candidate, blocks_along_y }
    }

    /// The same kernel for a grid of more blocks along y or z than CUDA's limit of 65,535: they are laid along x, one row after
    /// the other, and those along x along y. The body reads `blockIdx` and `gridDim` as ever, with its arguments as `p`. Absent
    /// for persistent grids, which have one dimension.
    pub fn folded(&self) -> Option<Variant> {
        let along_y = self.blocks_along_y.as_ref()?;
        let name = format!("{}_folded", self.name);
        let fold = format!(
            "// A grid has at most 65,535 blocks along y and z. This one has those along x, and its x along y.
#define TILEWRIGHT_FOLDED
__device__ __forceinline__ unsigned blocks_along_y(const Params& p) {{ return static_cast<unsigned>({along_y}); }}
__device__ __forceinline__ uint3 unfolded_block(const Params& p) {{
    return make_uint3(blockIdx.y, blockIdx.x % blocks_along_y(p), blockIdx.x / blocks_along_y(p));
}}
__device__ __forceinline__ uint3 unfolded_grid(const Params& p) {{
    return make_uint3(gridDim.y, blocks_along_y(p), gridDim.x / blocks_along_y(p));
}}
#define blockIdx unfolded_block(p)
#define gridDim unfolded_grid(p)

"
        );
        let (prelude, rest) = self.source.split_once(END_OF_PRELUDE)?;
        let body = rest.strip_prefix(self.name.as_str())?;
        let source = format!("{prelude}{fold}{END_OF_PRELUDE}{name}{body}");
        let fingerprint = fingerprint(&source);
        Some(Variant { name, fingerprint, source, candidate: self.candidate.clone(), blocks_along_y: None })
    }
}

fn along_y(body: &Body, candidate: &Candidate) -> String {
    body.launch.grid[1].to_cuda(&|name| match candidate.constant(name) {
        Some(_) => name.to_owned(),
        None => format!("p.{name}"),
    })
}

fn fingerprint(source: &str) -> String {
    blake3::hash(source.as_bytes()).to_hex()[..16].to_owned()
}
