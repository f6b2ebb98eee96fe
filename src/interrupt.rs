//! Ending a call on the CPU before it is done, as Ctrl-C in Python does.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static CURRENT: RefCell<Option<Interrupt>> = const { RefCell::new(None) };
}

/// Ends the calls that run under it, from another thread. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Calls of the CPU executor end soon, with [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Runs `work`, whose calls end once this is [`set`](Self::set).
    pub fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Before(Option<Interrupt>);
        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _before = Before(CURRENT.replace(Some(self.clone())));
        work()
    }

    /// That of the calls of this thread.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attention, DType, Device, Error, HeadDim, Tensor};

    #[test]
    fn every_call_on_the_cpu_ends() {
        let zeros = vec![half::bf16::ZERO; 300 * 64];
        let x = Tensor::from_slice(&zeros, &[1, 1, 300, 64]).unwrap();
        let attention = Attention::builder(HeadDim::D64, DType::Bf16).build(&Device::cpu()).unwrap();
        let output = attention.forward(&x, &x, &x).unwrap();
        let interrupt = Interrupt::default();
        let ended = |result: Result<(), Error>| matches!(result, Err(Error::Interrupted));
        let calls: [&dyn Fn() -> Result<(), Error>; 3] = [
            &|| attention.forward(&x, &x, &x).map(drop),
            &|| attention.attend_with(&x, &x, &x, &output.mask).map(drop),
            &|| attention.backward(&x, &x, &x, &output, &x, None).map(drop),
        ];
        let shape = [1, 1, 3, 5];
        let classified =
            || crate::mask::classify(&causal {}, shape, Default::default(), (300, 300)).map(drop);
        for call in calls {
            assert!(interrupt.over(call).is_ok(), "it was not set");
        }
        interrupt.set();
        for call in calls {
            assert!(ended(interrupt.over(call)));
            assert!(call().is_ok(), "calls outside go on");
        }
        assert!(ended(interrupt.over(classified)) && classified().is_ok());
    }

    #[crate::mask_mod]
    fn causal(_b: i32, _h: i32, q: i32, kv: i32) -> bool {
        q >= kv
    }
}
