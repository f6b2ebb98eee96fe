//! The time of work on a GPU.

use tilewright::device::{CudaDevice, DeviceError};

pub const LAUNCHES: usize = 30;

/// The median of the times, by CUDA events, of [`LAUNCHES`] runs after a few more, in ms.
pub fn median<E: From<DeviceError>>(
    cuda: &CudaDevice,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<f32, E> {
    let mut failure = None;
    let mut once = || {
        cuda.time_ms(|_| {
            if let Err(error) = work() {
                failure = Some(error);
            }
            Ok::<(), DeviceError>(())
        })
    };
    for _ in 0..5 {
        once()?;
    }
    let mut times = (0..LAUNCHES).map(|_| once()).collect::<Result<Vec<f32>, _>>()?;
    if let Some(error) = failure {
        return Err(error);
    }
    times.sort_by(f32::total_cmp);
    Ok(times[LAUNCHES / 2])
}
