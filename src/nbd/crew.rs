//! The tasks that do a connection's requests, one request each at a time.
//!
//! A task that has done its request waits for the next one, so that a busy connection makes no tasks: what a request needs
//! to be done is already there.
//!
//! Invariants:
//! - There is a task under way for every job that has been assigned: one that was idle, or a new one.
//! - Who is idle holds nothing of any request. No more than [`IDLE_MAX`] are.
//! - After `dismiss` nobody stays idle.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use super::execute::Work;

/// Tasks that wait for work: as many as a busy client has requests in flight. What comes on top is done by tasks made for it.
const IDLE_MAX: usize = 64;

/// A request to be done, and what its reply needs.
pub(super) struct Job {
    pub(super) cookie: u64,
    pub(super) offset_bytes: u64,
    pub(super) reserved_bytes: usize,
    pub(super) work: Work,
}

#[derive(Default)]
pub(super) struct Crew {
    jobs: RefCell<VecDeque<Job>>,
    idle: RefCell<Vec<Waker>>,
    dismissed: Cell<bool>,
}

impl Crew {
    /// Hands a job to whoever is idle. False if nobody is: another has to be hired, that asks for its job like all.
    #[must_use]
    pub(super) fn assign(&self, job: Job) -> bool {
        self.jobs.borrow_mut().push_back(job);
        let waker = self.idle.borrow_mut().pop();
        let found = waker.is_some();
        waker.into_iter().for_each(Waker::wake);
        found
    }

    /// Waits for a job; none for whoever is not needed any more.
    pub(super) async fn next(&self) -> Option<Job> {
        let mut is_listed = false;
        poll_fn(|context| {
            if std::mem::take(&mut is_listed) {
                // Whoever is polled for no reason is still in the list, and must not be taken for idle twice, or after it left.
                self.idle.borrow_mut().retain(|waker| !waker.will_wake(context.waker()));
            }
            if let Some(job) = self.jobs.borrow_mut().pop_front() {
                return Poll::Ready(Some(job));
            }
            let mut idle = self.idle.borrow_mut();
            if self.dismissed.get() || idle.len() >= IDLE_MAX {
                return Poll::Ready(None);
            }
            idle.push(context.waker().clone());
            is_listed = true;
            Poll::Pending
        })
        .await
    }

    /// The connection is over.
    pub(super) fn dismiss(&self) {
        self.dismissed.set(true);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        idle.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn job(cookie: u64) -> Job {
        Job { cookie, offset_bytes: 0, reserved_bytes: 0, work: Work::Flush }
    }

    #[test]
    fn the_idle_are_asked_first_and_leave_when_dismissed() {
        let crew = Crew::default();
        assert!(!crew.assign(job(1)), "nobody is there yet");
        assert_eq!(crew.next().now_or_never().flatten().map(|job| job.cookie), Some(1));
        let mut idle = Box::pin(crew.next());
        assert!(idle.as_mut().now_or_never().is_none());
        assert!(crew.assign(job(2)));
        assert!(!crew.assign(job(3)), "it has something to do already");
        assert_eq!(idle.now_or_never().flatten().map(|job| job.cookie), Some(2));
        assert_eq!(crew.next().now_or_never().flatten().map(|job| job.cookie), Some(3));
        let mut idle = Box::pin(crew.next());
        assert!(idle.as_mut().now_or_never().is_none());
        crew.dismiss();
        assert!(idle.now_or_never().is_some_and(|job| job.is_none()));
        assert!(crew.idle.borrow().is_empty());
    }

    /// A waker of its own.
    fn somebody() -> Waker {
        struct Nobody;
        impl std::task::Wake for Nobody {
            fn wake(self: std::sync::Arc<Self>) {}
        }
        std::sync::Arc::new(Nobody).into()
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
        future.poll(&mut std::task::Context::from_waker(waker))
    }

    #[test]
    fn who_is_polled_for_no_reason_is_idle_once() {
        let crew = Crew::default();
        let wakers: Vec<Waker> = (0..IDLE_MAX).map(|_| somebody()).collect();
        let mut idle: Vec<_> = wakers.iter().map(|_| Box::pin(crew.next())).collect();
        for _ in 0..3 {
            for (next, waker) in idle.iter_mut().zip(&wakers) {
                assert!(poll(next.as_mut(), waker).is_pending(), "there is still a place for it");
            }
            assert_eq!(crew.idle.borrow().len(), IDLE_MAX);
        }
        // One takes the job of another, and is not there any more.
        assert!(crew.assign(job(1)));
        assert!(poll(idle[0].as_mut(), &wakers[0]).is_ready());
        assert!(crew.idle.borrow().iter().all(|waker| !waker.will_wake(&wakers[0])));
        // One more than may wait does not.
        assert!(poll(Box::pin(crew.next()).as_mut(), &somebody()).is_pending());
        assert!(poll(idle[IDLE_MAX - 1].as_mut(), &wakers[IDLE_MAX - 1]).is_pending());
        assert!(matches!(poll(Box::pin(crew.next()).as_mut(), &somebody()), Poll::Ready(None)));
    }
}
