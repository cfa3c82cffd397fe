//! One io_uring: made with the best flags that the kernel grants, filled, entered and reaped.
//!
//! Invariants:
//! - Entries reach the kernel in the order they were pushed: what a full submission queue cannot take waits in a
//!   backlog, and the backlog goes first. So a cancellation never overtakes what it cancels.
//! - Made, entered and dropped on one thread (SINGLE_ISSUER).
//!
//! How it fails: a kernel or container without io_uring is an error that says what to allow. An `io_uring_enter` that
//! fails for any reason but a passing one is a broken ring: `enter` panics.

#![allow(unsafe_code)] // pushes submission entries, which carry addresses

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, squeue};

/// Entries of the submission queue. More may be in flight; it bounds what one `io_uring_enter` submits.
const SQ_ENTRIES: u32 = 1024;

/// Entries of the completion queue. What does not fit, the kernel keeps until there is room (NODROP).
const CQ_ENTRIES: u32 = 4096;

/// The longest single wait; a later timer waits in several steps.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// How long [`Ring::enter`] may wait for a completion.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// Not at all.
    No,
    /// Until there is one, or until so much time has passed.
    AtMost(Option<Duration>),
}

/// What the kernel says of an operation that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// As it was in the submission entry.
    pub user_data: u64,
    /// Not negative: as the system call returns. Negative: an errno.
    pub result: i32,
}

/// A ring and what waits for room in it.
pub(super) struct Ring {
    ring: IoUring,
    backlog: VecDeque<squeue::Entry>,
    /// Calls of `io_uring_enter`.
    calls: u64,
}

impl Ring {
    /// A ring for the calling thread alone.
    pub fn new() -> Result<Ring> {
        let ring = build().map_err(|error| explain(&error))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this kernel's io_uring is too old: Linux 6.1 is needed",
            ));
        }
        Ok(Ring { ring, backlog: VecDeque::new(), calls: 0 })
    }

    /// Queues an entry; the next `enter` submits it.
    ///
    /// # Safety
    /// The descriptor and all the memory that the entry names stay valid, and untouched as the operation requires,
    /// until its completion has been reaped.
    pub unsafe fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        if !self.fill() {
            // Full. What the kernel does not take now, `enter` tries again.
            self.submit();
            self.fill();
        }
    }

    /// Submits what was pushed, and waits as told unless something is there already.
    pub fn enter(&mut self, wait: Wait) {
        while !self.fill() {
            if self.submit() == 0 {
                // The kernel wants its completions reaped first.
                return;
            }
        }
        let Wait::AtMost(limit) = wait else {
            let queue = self.ring.submission();
            if !queue.is_empty() || queue.taskrun() || queue.cq_overflow() {
                drop(queue);
                self.submit();
            }
            return;
        };
        self.calls += 1;
        let done = match limit {
            None => self.ring.submitter().submit_and_wait(1),
            Some(limit) => {
                let limit = Timespec::from(limit.min(WAIT_MAX));
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        forgive(done);
    }

    /// Whether there is something to be reaped, or would be after an `enter`: a look at memory that the kernel writes.
    pub fn has_news(&mut self) -> bool {
        let queue = self.ring.submission();
        let would_be = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        would_be || !self.ring.completion().is_empty()
    }

    /// How often the kernel has been called.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Takes the completions that have come.
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        let completions = self.ring.completion();
        into.extend(completions.map(|cqe| Completion { user_data: cqe.user_data(), result: cqe.result() }));
    }

    /// Moves the backlog into the submission queue; whether all of it fitted.
    fn fill(&mut self) -> bool {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the caller of `Ring::push` upholds what the entry needs.
            if unsafe { queue.push(entry) }.is_err() {
                return false;
            }
            self.backlog.pop_front();
        }
        true
    }

    /// Submits without waiting; how many entries the kernel took.
    fn submit(&mut self) -> usize {
        self.calls += 1;
        forgive(self.ring.submitter().submit())
    }
}

/// What passes by itself counts as nothing submitted: a timeout, a signal, a completion queue or memory that is full.
fn forgive(done: Result<usize>) -> usize {
    match done {
        Ok(submitted) => submitted,
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => 0,
            _ => panic!("io_uring_enter: {error}"),
        },
    }
}

/// Asks for everything, then for less where the kernel does not know it (EINVAL).
fn build() -> Result<IoUring> {
    let grades: [fn(&mut Builder) -> &mut Builder; 4] = [
        |b| {
            b.setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .setup_no_sqarray()
        },
        |b| b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all(),
        |b| b.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all(),
        |b| b,
    ];
    let mut refusal = Error::from_raw_os_error(libc::EINVAL);
    for (grade, flags) in grades.into_iter().enumerate() {
        let mut builder = IoUring::builder();
        match flags(builder.setup_cqsize(CQ_ENTRIES).setup_clamp()).build(SQ_ENTRIES) {
            Ok(ring) => {
                tracing::debug!(grade, "io_uring made; grade 0 has every flag asked for");
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

/// Why there is no ring, and what to do about it.
fn explain(error: &Error) -> Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here: allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
             seccomp profile, and set the sysctl kernel.io_uring_disabled to 0"
        }
        Some(libc::ENOSYS) => {
            "there is no io_uring here: Linux 6.1 or newer is needed, and a container's seccomp profile must allow \
             io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::ENOMEM) => "no memory for an io_uring: raise the limit of locked memory (ulimit -l)",
        Some(libc::EMFILE | libc::ENFILE) => {
            "no descriptor left for an io_uring: raise the limit of open files"
        }
        _ => "io_uring_setup failed: Linux 6.1 or newer is needed",
    };
    Error::new(error.kind(), format!("{advice} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_allow() {
        let message = explain(&Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(message.contains("seccomp") && message.contains("kernel.io_uring_disabled"), "{message}");
        let message = explain(&Error::from_raw_os_error(libc::ENOSYS)).to_string();
        assert!(message.contains("Linux 6.1") && message.contains("seccomp"), "{message}");
    }

    #[test]
    fn more_than_the_queue_holds_is_submitted_in_order() {
        let mut ring = Ring::new().unwrap();
        let count = u64::from(SQ_ENTRIES) * 3 + 7;
        for user_data in 0..count {
            // SAFETY: a no-op names neither descriptor nor memory.
            unsafe { ring.push(io_uring::opcode::Nop::new().build().user_data(user_data)) };
        }
        let mut reaped = Vec::new();
        while (reaped.len() as u64) < count {
            ring.enter(Wait::AtMost(Some(Duration::from_secs(10))));
            ring.reap(&mut reaped);
        }
        assert!(reaped.iter().map(|completion| completion.user_data).eq(0..count));
    }
}
