//! Waking one task from another on the same thread.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Something that one task waits for at a time. Who changes what the waiter looks at calls [`wake`](Signal::wake).
#[derive(Default)]
pub(super) struct Signal {
    waker: Cell<Option<Waker>>,
}

impl Signal {
    /// Lets the waiter look again.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until `ready` holds; looks now and after each wake.
    pub(super) async fn until(&self, ready: impl Fn() -> bool) {
        poll_fn(|context| {
            if ready() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
