//! Panics of a user's functions become errors; any other panic stays one.

use crate::{Error, Interrupt, parallel};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

const NONE: usize = usize::MAX;

/// The user's functions of one call.
pub(crate) struct UserCode<'a> {
    names: [&'a str; 2],
    interrupt: Option<Interrupt>,
    culprit: AtomicUsize,
}

/// Marks that the thread runs a user's functions, until dropped.
pub(crate) struct Inside<'a> {
    culprit: &'a AtomicUsize,
    function: Cell<usize>,
}

impl Inside<'_> {
    /// To be said before function number `function` is called.
    pub(crate) fn calls(&self, function: usize) {
        self.function.set(function);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.culprit.store(self.function.get(), Ordering::Relaxed);
        }
    }
}

impl<'a> UserCode<'a> {
    pub(crate) fn new(names: [&'a str; 2]) -> Self {
        UserCode { names, interrupt: Interrupt::current(), culprit: AtomicUsize::new(NONE) }
    }

    /// Whether the call is to end: what is left of a loop need not be done.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupt.as_ref().is_some_and(Interrupt::is_set)
    }

    /// To be held while functions are being called.
    pub(crate) fn inside(&self) -> Inside<'_> {
        Inside { culprit: &self.culprit, function: Cell::new(NONE) }
    }

    /// Runs `work`, a whole parallel loop: rayon carries a panic from any of its threads to here.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
        // What the loop was writing is dropped with the error, so nobody sees it half done.
        let done = catch_unwind(AssertUnwindSafe(|| parallel::run(work))).map_err(|payload| {
            let culprit = self.culprit.load(Ordering::Relaxed);
            match self.names.get(culprit) {
                Some(name) => {
                    Error::DeviceFunction { name: (*name).to_owned(), message: message(payload.as_ref()) }
                }
                None => resume_unwind(payload),
            }
        })?;
        if self.is_interrupted() { Err(Error::Interrupted) } else { Ok(done) }
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
