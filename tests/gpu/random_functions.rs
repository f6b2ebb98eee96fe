//! Random well-typed device functions and their derivatives: the GPU gives what the interpreter of the same text gives, to
//! the bit.

use super::Test;
use super::support::Random;
use libtest_mimic::Failed;
use tilewright::Device;
use tilewright::codegen::lower::testing::{Methods, grow};
use tilewright::codegen::lower::{CaptureValue, DEVICE_PRELUDE, DeviceFunction, FunctionKind};
use tilewright::device::{CudaDevice, DeviceBuffer};
use tilewright::toolchain::Toolchain;

pub const TESTS: &[Test] = &[("random_functions::gpu_agrees_with_the_interpreter", agree)];

const FUNCTIONS: usize = 200;
const INPUTS: usize = 64;

struct Function {
    parsed: DeviceFunction,
    source: String,
    captures: Vec<CaptureValue>,
    packed: Vec<u8>,
    _slices: Vec<DeviceBuffer>,
}

impl Function {
    fn random(cuda: &CudaDevice, random: &mut Random, kind: FunctionKind) -> Result<Self, Failed> {
        let tape: Vec<u8> = (0..200).map(|_| random.bits() as u8).collect();
        let (source, captures) = grow(kind, Methods::Exact, &tape);
        let parsed = DeviceFunction::from_source(kind, &source).map_err(|error| error.to_string())?;
        let slices = captures
            .iter()
            .filter(|capture| capture.slice_len().is_some())
            .map(|capture| cuda.upload(&capture.to_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<u64> = slices.iter().map(DeviceBuffer::address).collect();
        let packed = parsed.pack(&captures, &pointers)?;
        Ok(Function { parsed, source, captures, packed, _slices: slices })
    }
}

fn agree(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let mut random = Random(61);
    let functions = (0..FUNCTIONS)
        .map(|i| {
            let kind = if i % 4 == 3 { FunctionKind::MaskMod } else { FunctionKind::ScoreMod };
            Function::random(cuda, &mut random, kind)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let inputs: Vec<[i32; 5]> = (0..INPUTS)
        .map(|i| {
            let score = match i {
                0 => 0.0,
                1 => f32::NAN,
                2 => f32::INFINITY,
                3 => f32::NEG_INFINITY,
                4 => 1e30,
                _ => random.normal() * 10.0,
            };
            let mut position = || (random.bits() % 2000) as i32;
            [score.to_bits() as i32, position() % 4, position() % 40, position(), position()]
        })
        .collect();

    let found = evaluate(cuda, &functions, &inputs)?;
    for (function, results) in functions.iter().zip(found.chunks(2 * INPUTS)) {
        for (input, found) in inputs.iter().zip(results.chunks(2)) {
            let [score, b, h, q, kv] = *input;
            let value =
                function.parsed.eval(f32::from_bits(score as u32), b, h, q, kv, &function.captures)?;
            let expected = match (value.as_f32(), value.as_bool()) {
                (Some(x), _) => x,
                (None, Some(keep)) => f32::from(u8::from(keep)),
                other => return Err(format!("{other:?} is no result").into()),
            };
            let slope =
                function.parsed.gradient(f32::from_bits(score as u32), b, h, q, kv, &function.captures)?;
            for (what, &found, expected) in [("value", &found[0], expected), ("derivative", &found[1], slope)]
            {
                if found.to_bits() != expected.to_bits() && !(found.is_nan() && expected.is_nan()) {
                    return Err(format!(
                        "{}\n{:?} at {input:?}: {what} on the GPU {found:e}, of the interpreter {expected:e}",
                        function.source, function.captures
                    )
                    .into());
                }
            }
        }
    }
    println!("{FUNCTIONS} functions on {INPUTS} inputs each agree to the bit");
    Ok(())
}

/// Every function on every input: one thread block a function, one thread an input. Values, each before its derivative.
fn evaluate(cuda: &CudaDevice, functions: &[Function], inputs: &[[i32; 5]]) -> Result<Vec<f32>, Failed> {
    let mut source = format!(
        "#define TILEWRIGHT_OFFSETOF(type, member) __INTADDR__(&((type*)0)->member)\n{DEVICE_PRELUDE}\n"
    );
    let (mut packed, mut cases) = (Vec::new(), String::new());
    for (i, function) in functions.iter().enumerate() {
        packed.resize(packed.len().next_multiple_of(16), 0u8);
        let (name, leading) = match function.parsed.kind() {
            FunctionKind::ScoreMod => ("ScoreMod", "__int_as_float(x[0]), "),
            FunctionKind::MaskMod => ("MaskMod", ""),
        };
        source += &format!("namespace f{i} {{\n{}\n}}\n", function.parsed.cuda_with_gradient());
        let functor = format!("(*(const f{i}::{name}*)(captures + {}))", packed.len());
        let arguments = format!("({leading}x[1], x[2], x[3], x[4])");
        cases += &format!("    case {i}: r = (float){functor}{arguments};");
        if function.parsed.kind() == FunctionKind::ScoreMod {
            cases += &format!(" slope = {functor}.gradient{arguments};");
        }
        cases += " break;\n";
        packed.extend_from_slice(&function.packed);
    }
    source += &format!(
        "struct Params {{ const unsigned char* captures; const int* inputs; float* results; }};
extern \"C\" __global__ void evaluate(const __grid_constant__ Params p) {{
  const unsigned char* captures = p.captures;
  const int* x = p.inputs + 5 * threadIdx.x;
  float r = 0, slope = 0;
  switch (blockIdx.x) {{
{cases}  }}
  float* results = p.results + 2 * (blockIdx.x * {INPUTS} + threadIdx.x);
  results[0] = r;
  results[1] = slope;
}}\n"
    );
    // The interpreter rounds after every operation.
    let cubin = Toolchain::find()?.compile_with("evaluate", &source, cuda.arch(), &["--fmad=false"])?;
    let kernel = cuda.load(&cubin)?;
    let captures = cuda.upload(&packed)?;
    let inputs_gpu =
        cuda.upload(&inputs.iter().flatten().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>())?;
    let results = cuda.zeroed(8 * functions.len() * inputs.len())?;
    let params: Vec<u8> = [captures.address(), inputs_gpu.address(), results.address()]
        .iter()
        .flat_map(|address| address.to_ne_bytes())
        .collect();
    // SAFETY: the struct holds three addresses of buffers that live until the results are read; the grid has one block
    // for each function and one thread for each input.
    unsafe { kernel.launch(cuda, [functions.len() as u32, 1, 1], inputs.len() as u32, 0, &[&params])? };
    Ok(cuda
        .download(&results)?
        .chunks_exact(4)
        .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect())
}
