//! Work beside Python: other threads go on, Ctrl-C ends it, a panic is an error.

use crate::error::{Error, to_python};
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use tilewright::Interrupt;

/// Runs `work` on the CPU, or what compiles and tunes, while other Python threads go on.
pub(crate) fn apart<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, tilewright::Error> + Send,
) -> PyResult<T> {
    py.detach(|| unpanicked(work))
}

/// How often a call on the CPU looks for a signal.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs `work` on the CPU while other Python threads go on. Ctrl-C ends it.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, tilewright::Error> + Send,
) -> PyResult<T> {
    let interrupt = Interrupt::default();
    let wait = |done: mpsc::Receiver<PyResult<T>>| loop {
        match done.recv_timeout(PAUSE) {
            Ok(result) => return result,
            // Python runs its handlers in its main thread alone, which waits here.
            Err(RecvTimeoutError::Timeout) => {
                Python::attach(|py| py.check_signals()).inspect_err(|_| interrupt.set())?
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new_err("Tilewright's thread ended before its work was done"));
            }
        }
    };
    py.detach(|| {
        std::thread::scope(|scope| {
            let (send, done) = mpsc::channel();
            let interrupt = &interrupt;
            let run = move || drop(send.send(interrupt.over(|| unpanicked(work))));
            let thread = std::thread::Builder::new().name("tilewright".to_owned()).spawn_scoped(scope, run);
            thread.map_err(|error| Error::new_err(format!("cannot start a thread: {error}")))?;
            wait(done)
        })
    })
}

/// Runs `work`, short as it is, while this thread holds on to Python.
pub(crate) fn unpanicked<T>(work: impl FnOnce() -> Result<T, tilewright::Error>) -> PyResult<T> {
    // What was half done is dropped with the error; locks recover.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(to_python),
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            Err(Error::new_err(format!(
                "Tilewright failed, which is a bug of its own: {}. Please report it with the shapes of the call.",
                text.unwrap_or("no message")
            )))
        }
    }
}
