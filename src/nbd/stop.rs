//! Telling connections to stop: the daemon's end, or `stop --force` of one array.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// A request to stop, seen by all clones. Single-threaded, as connections are; a core has its own.
#[derive(Clone, Default)]
pub struct Stop(Rc<State>);

#[derive(Default)]
struct State {
    stopped: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

impl Stop {
    /// Not stopped.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Asks all who have a clone to stop. Cannot be taken back.
    pub fn stop(&self) {
        self.0.stopped.set(true);
        let waiting = std::mem::take(&mut *self.0.waiting.borrow_mut());
        for (_, waker) in waiting {
            waker.wake();
        }
    }

    /// Whether [`stop`](Stop::stop) was called.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.get()
    }

    /// Waits for [`stop`](Stop::stop).
    pub async fn stopped(&self) {
        let mut place = Place { state: &self.0, key: None };
        poll_fn(move |context| place.poll(context)).await;
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stop").field(&self.is_stopped()).finish()
    }
}

/// A place among those who wait, given up when dropped.
struct Place<'a> {
    state: &'a State,
    key: Option<usize>,
}

impl Place<'_> {
    fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.state.stopped.get() {
            self.key = None; // stop() has emptied the list
            return Poll::Ready(());
        }
        let mut waiting = self.state.waiting.borrow_mut();
        match self.key {
            None => self.key = Some(waiting.insert(context.waker().clone())),
            Some(key) => waiting[key].clone_from(context.waker()),
        }
        Poll::Pending
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.filter(|_| !self.state.stopped.get()) {
            self.state.waiting.borrow_mut().remove(key);
        }
    }
}

/// The reasons for a connection to stop: the server does, or its export; either is enough.
#[derive(Clone)]
pub(super) struct Halt {
    server: Stop,
    export: Option<Stop>,
}

impl Halt {
    pub(super) fn of_server(server: Stop) -> Halt {
        Halt { server, export: None }
    }

    pub(super) fn add_export(&mut self, export: Stop) {
        self.export = Some(export);
    }

    fn reasons(&self) -> impl Iterator<Item = &Stop> {
        self.export.iter().chain([&self.server])
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.reasons().any(Stop::is_stopped)
    }

    /// Whether it is the export that goes away.
    pub(super) fn is_export_stopped(&self) -> bool {
        self.export.as_ref().is_some_and(Stop::is_stopped)
    }

    pub(super) async fn stopped(&self) {
        let mut places: Vec<_> = self.reasons().map(|stop| Place { state: &stop.0, key: None }).collect();
        poll_fn(move |context| {
            // All are asked, not only the first: each must know whom to wake.
            let stopped = places.iter_mut().fold(false, |any, place| place.poll(context).is_ready() | any);
            if stopped { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn all_clones_stop_and_leave_no_waiter_behind() {
        let stop = Stop::new();
        let clone = stop.clone();
        let mut halt = Halt::of_server(Stop::new());
        halt.add_export(clone.clone());
        let mut waiting = Box::pin(halt.stopped());
        assert!(waiting.as_mut().now_or_never().is_none());
        {
            let mut dropped = Box::pin(clone.stopped());
            assert!(dropped.as_mut().now_or_never().is_none());
        }
        assert_eq!(stop.0.waiting.borrow().len(), 1);
        stop.stop();
        assert!(waiting.as_mut().now_or_never().is_some());
        drop(waiting);
        assert!(halt.is_stopped() && halt.is_export_stopped() && clone.stopped().now_or_never().is_some());
    }
}
