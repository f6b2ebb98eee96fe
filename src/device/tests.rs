use super::cuda::check_driver;
use super::*;

#[test]
fn a_gpu_that_is_not_there_is_a_typed_error() {
    match Device::cuda(0) {
        Ok(device) => {
            let info = device.as_cuda().expect("a GPU").info();
            let error = Device::cuda(10_000).expect_err("no machine has so many");
            assert!(matches!(error, DeviceError::NoSuchGpu { ordinal: 10_000, .. }), "{error}");
            assert!(info.smem_optin_bytes >= 48 * 1024, "{info:?}");
        }
        Err(DeviceError::NoDriver) => {
            assert!(DeviceError::NoDriver.to_string().contains("libcuda.so"));
            assert!(matches!(Device::best(), Device::Cpu));
            assert_eq!(driver_version(), Err(DeviceError::NoDriver));
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(matches!(Device::best(), Device::Cpu));
        }
    }
}

#[test]
fn the_cpu_has_no_architecture() {
    assert_eq!(Device::cpu().arch(), None);
    assert!(!Device::cpu().is_cuda());
    assert_eq!(Device::cpu().to_string(), "CPU");
}

#[test]
fn architectures_follow_the_compute_capability() {
    let known = [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_87"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_100a"),
        ((10, 3), "sm_103a"),
        ((12, 0), "sm_120a"),
        ((12, 1), "sm_121a"),
    ];
    for (capability, arch) in known {
        assert_eq!(arch_of(capability), Some(arch));
    }
    assert_eq!(arch_of((7, 5)), None);
    let error = DeviceError::UnsupportedGpu { name: "Tesla T4".to_string(), found: (7, 5) };
    assert!(error.to_string().contains("Tesla T4 has compute capability 7.5"), "{error}");
}

#[test]
fn a_driver_loads_its_own_major_version_and_older_ones() {
    for (driver, nvrtc) in [((12, 8), (12, 9)), ((13, 0), (13, 1)), ((13, 0), (12, 8))] {
        assert_eq!(check_driver(driver, nvrtc), Ok(()));
    }
    let error = check_driver((12, 8), (13, 0)).expect_err("the driver is older");
    let DeviceError::DriverTooOld { found: (12, 8), needed: (13, 0), .. } = &error else {
        panic!("{error:?}")
    };
    let text = error.to_string();
    assert!(text.contains("driver 580") && text.contains("TILEWRIGHT_NVRTC"), "{text}");
}

/// By its number: the names are the driver's to tell.
#[test]
fn a_result_of_the_driver_is_told_by_its_number() {
    let failed = |call: &'static str, code| DeviceError::Cuda {
        call,
        code,
        name: "CUDA_ERROR_…".to_string(),
        meaning: "what it means".to_string(),
        hint: "",
    };
    // CUDA_ERROR_INVALID_VALUE, OUT_OF_MEMORY, INVALID_IMAGE, NO_BINARY_FOR_GPU, LAUNCH_OUT_OF_RESOURCES.
    for (code, is_refused, is_out_of_memory) in
        [(1, false, false), (2, false, true), (200, true, false), (209, true, false), (701, true, false)]
    {
        let launch = failed("cuLaunchKernel", code);
        assert_eq!((launch.is_refused_launch(), launch.is_out_of_memory()), (is_refused, is_out_of_memory));
        assert!(!failed("cuMemAllocAsync", code).is_refused_launch(), "{code}");
        assert!(launch.to_string().contains(&format!("(CUDA_ERROR_…, code {code})")), "{launch}");
    }
}

/// The whole path from a source to numbers that come back.
#[test]
#[ignore = "needs a GPU and NVRTC: docs/testing.md"]
fn a_kernel_runs() {
    let device = CudaDevice::new(0).expect("a GPU");
    let toolchain = crate::toolchain::Toolchain::find().expect("NVRTC");
    device.check_toolchain(&toolchain).expect("a driver for this NVRTC");
    let source = r#"
        struct Params { const float* x; float* out; int n; float factor; };
        extern "C" __global__ void scale(const __grid_constant__ Params p) {
            extern __shared__ float tile[];
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            tile[threadIdx.x] = i < p.n ? p.x[i] : 0.0f;
            __syncthreads();
            if (i < p.n) p.out[i] = tile[threadIdx.x] * p.factor;
        }"#;
    let cubin = toolchain.compile("scale", source, device.arch()).expect("it compiles");
    let kernel = device.load(&cubin).expect("it loads");
    let host: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let x = device.upload(bytemuck::cast_slice(&host)).expect("upload");
    let out = device.zeroed(4 * host.len()).expect("zeroed");
    let mut params = Vec::new();
    params.extend(x.address().to_ne_bytes());
    params.extend(out.address().to_ne_bytes());
    params.extend(1000i32.to_ne_bytes());
    params.extend(3.0f32.to_ne_bytes());

    let smem = 100 * 1024;
    let ms = device.time_ms(|device| {
        // SAFETY: the buffers outlive the launch, which is waited for, and have 1000 floats each.
        unsafe { kernel.launch(device, [8, 1, 1], 128, smem, &[&params]) }
    });
    // The smallest GPUs of the supported families have 99 KB for a block.
    if let Err(DeviceError::TooMuch { limit, .. }) = &ms {
        assert!(*limit >= 99 * 1024 && u64::from(smem) > *limit);
        return;
    }
    assert!(ms.expect("it runs") > 0.0);
    let mut back = vec![f32::NAN; host.len()];
    device.dtoh(&out, bytemuck::cast_slice_mut(&mut back)).expect("download");
    assert!(back.iter().zip(&host).all(|(got, x)| *got == 3.0 * x));

    // SAFETY: nothing is launched.
    let error = unsafe { kernel.launch(&device, [8, 1, 1], 128, 0, &[&params[1..]]) };
    assert!(matches!(error, Err(DeviceError::Parameters { .. })), "{error:?}");
    // SAFETY: nothing is launched.
    let error = unsafe { kernel.launch(&device, [1, 70_000, 1], 128, 0, &[&params]) };
    assert!(matches!(error, Err(DeviceError::TooMuch { limit: 65_535, .. })), "{error:?}");
    let again = CudaDevice::new(0).expect("the same device");
    assert_eq!(again.stream(), device.stream());
    let mut cut = cubin;
    cut.bytes.truncate(cut.bytes.len() / 2);
    assert!(matches!(device.load(&cut), Err(DeviceError::BrokenCubin { .. })));
}
