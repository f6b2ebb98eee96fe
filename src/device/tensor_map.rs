//! What the copy engine (TMA) knows of a tensor, which it reads in boxes.

use crate::DType;
use cudarc::driver::sys::{self, CUtensorMapDataType_enum as Element, CUtensorMapSwizzle_enum as Swizzle};
use smallvec::SmallVec;

/// A tensor with the box of one copy, checked against what the copy engine can do (CUDA driver API,
/// `cuTensorMapEncodeTiled`). Sizes are listed from the last dimension to the first, as the driver wants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxedTensor {
    pub(crate) arg: &'static str,
    pub(crate) pointer: u64,
    pub(crate) dtype: DType,
    pub(crate) extents: SmallVec<[u64; 5]>,
    /// In bytes, of all dimensions but the last of the tensor, whose elements lie side by side.
    pub(crate) strides: SmallVec<[u64; 5]>,
    /// Elements of a box along each dimension.
    pub(crate) sides: SmallVec<[u32; 5]>,
}

/// A kernel's `TensorMap`: 128 bytes that only the driver and the copy engine read.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Asks the driver, which computes and touches no GPU (about a microsecond); the reason when it refuses. Of an absent tensor all zeros.
    pub(crate) fn encode(tensor: &BoxedTensor) -> Result<Self, String> {
        let mut map = TensorMap(sys::CUtensorMap { opaque: [0; 16] });
        if tensor.extents.is_empty() {
            return Ok(map);
        }
        let element = match tensor.dtype {
            DType::F16 => Element::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::Bf16 => Element::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F32 => Element::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::I32 => Element::CU_TENSOR_MAP_DATA_TYPE_INT32,
            DType::U8 => Element::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            other => return Err(format!("it knows no {other}")),
        };
        let swizzle = match tensor.sides[0] as usize * tensor.dtype.size() {
            128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        };
        let steps = [1u32; 5];
        // SAFETY: `map` is 128 bytes, aligned to as many; the lists have as many numbers as there are dimensions (one stride less).
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                element,
                tensor.extents.len() as u32,
                tensor.pointer as *mut _,
                tensor.extents.as_ptr(),
                tensor.strides.as_ptr(),
                tensor.sides.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                // Neighbouring columns of a row are wanted next.
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        match result.result() {
            Ok(()) => Ok(map),
            Err(error) => Err(format!("cuTensorMapEncodeTiled answered {error:?} to {tensor:?}")),
        }
    }

    /// The maps one after another, as the kernel's `TensorMaps` has them.
    pub(crate) fn bytes(maps: &[TensorMap]) -> &[u8] {
        // SAFETY: a map is 128 bytes of plain integers without padding.
        unsafe { std::slice::from_raw_parts(maps.as_ptr().cast(), size_of_val(maps)) }
    }
}

const _: () = assert!(size_of::<TensorMap>() == 128 && align_of::<TensorMap>() == 128);
