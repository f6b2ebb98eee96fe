//! Parallel loops, also in a process that was forked.
//!
//! Threads do not survive a fork: a child of `os.fork` (`multiprocessing`'s processes and pools, PyTorch's workers that load data) has
//! rayon's pool of its parent without its threads, and a loop given to it never ends.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// The process whose threads rayon's own pools have; 0 before the first loop.
static FIRST: AtomicU32 = AtomicU32::new(0);

/// The pool of a forked process. It is never freed: to end the threads of a parent's pool is to wait for them.
static FORKED: AtomicPtr<Forked> = AtomicPtr::new(std::ptr::null_mut());

struct Forked {
    process: u32,
    pool: ThreadPool,
}

/// Runs `work`, a whole parallel loop of rayon's: in the pool of the caller, or of rayon, and in a forked process in one of its own, with
/// as many threads as the pool that it stands for.
///
/// Nothing here takes a lock, for a fork may come while another thread holds it.
pub(crate) fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let process = std::process::id();
    match FIRST.compare_exchange(0, process, Ordering::AcqRel, Ordering::Acquire) {
        Err(first) if first != process => match forked(process) {
            Some(pool) => pool.install(work),
            None => {
                // This thread alone is a pool from here on, and the loop runs in it.
                let _alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
                work()
            }
        },
        _ => work(),
    }
}

/// The pool of the forked process; none where the system grants no more threads.
fn forked(process: u32) -> Option<&'static ThreadPool> {
    let known = FORKED.load(Ordering::Acquire);
    // SAFETY: what is stored is never freed, and never changed.
    if let Some(known) = unsafe { known.as_ref() }.filter(|known| known.process == process) {
        return Some(&known.pool);
    }
    let pool = ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build().ok()?;
    let made = Box::into_raw(Box::new(Forked { process, pool }));
    match FORKED.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: as above.
        Ok(_) => Some(unsafe { &(*made).pool }),
        Err(other) => {
            // SAFETY: another thread of this process was first, and nobody has seen this one; what is stored is never freed.
            unsafe {
                drop(Box::from_raw(made));
                Some(&(*other).pool)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_not_forked_keeps_the_callers_pool() {
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| run(rayon::current_num_threads)), 3);
        assert_eq!(run(rayon::current_thread_index), None, "nothing moves to another thread");
    }

    #[test]
    fn a_forked_process_makes_one_pool_for_all_of_its_threads() {
        // A process of another number, as a child sees its parent's.
        let other = std::process::id() + 1;
        let pool = |process| std::ptr::from_ref(forked(process).unwrap()) as usize;
        let pools: Vec<usize> = std::thread::scope(|scope| {
            let made: Vec<_> = (0..4).map(|_| scope.spawn(|| pool(other))).collect();
            made.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(pools.iter().all(|&pool| pool == pools[0]));
        assert!(forked(other).unwrap().install(rayon::current_thread_index).is_some());
        assert_eq!(forked(other).unwrap().current_num_threads(), rayon::current_num_threads());
        assert_ne!(pool(other + 1), pools[0], "a child of the child has its own");
    }
}
