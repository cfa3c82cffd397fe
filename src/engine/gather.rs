//! Writes of a stream become full stripes: a part of a stripe waits a moment for what follows it.
//!
//! A client that writes one piece behind the other has several of them under way, but they arrive one by one. Written as they
//! come, nearly every one would have old data and parity read for it, and parity written for it. So a part that goes on where
//! another write ended opens a *group* for its stripe; parts that are adjacent to it join; and when the stripe is full, or
//! nothing more has come for a while, the group is written as one.
//!
//! Nothing waits that is no stream: what does not begin where a recent write ended is written at once. And nothing waits in
//! vain for long: after a group that nobody joined, streams are not waited for until some more writes have passed; each time
//! twice as many.
//!
//! Invariants:
//! - A group holds no lock and has marked nothing: it is written by `write_stripe` like any other write, and its parts are
//!   answered after that. So the laws see one large write.
//! - Who overlaps a group lets it go first, into the queue of the row locks: writes of the same bytes keep the order in which
//!   they came, also where the first one's client is gone and has sent it again.
//! - The parts of a group are whole blocks, adjacent, and do not overlap; together they are one range.
//! - A group has one writer, its first part; should that be dropped, the others are told that it failed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::future::select;
use smallvec::SmallVec;

use super::array::Array;
use super::mutant::{self, Mutant};
use crate::io::{Device, Fua, IoError, IoErrorKind, Runtime, Slice};
use crate::layout::{Parity, Stripe};

/// How long a group waits for its next part. A client on the same machine sends one within a tenth of it.
const PATIENCE: Duration = Duration::from_micros(300);

/// How long it waits in all while other writes are under way, whose clients will go on when they are answered.
const PATIENCE_MAX: Duration = Duration::from_millis(5);

/// Smaller parts of a stripe than this are not gathered: what is written would be cut where each of them ends.
const PARTS_MAX: u64 = 16;

/// Writes that have to pass, at most, before a stream is waited for again that was waited for in vain.
const SKIPPED_MAX: u32 = 255;

/// Ends of writes that are remembered: so many streams are told apart.
const STREAMS: usize = 16;

const GIVEN_UP: IoError =
    IoError::new(IoErrorKind::ShuttingDown, "the write that this one had joined was given up");

/// The streams of an array.
#[derive(Default)]
pub(super) struct Gathering {
    groups: RefCell<Vec<Rc<Group>>>,
    /// Stripes that are being written.
    writing: Cell<usize>,
    /// Where the latest writes ended, in bytes of the array.
    ends: RefCell<[u64; STREAMS]>,
    next_end: Cell<usize>,
    /// Writes that are to pass, and how many were to last time.
    skip: Cell<u32>,
    skipped: Cell<u32>,
}

/// Parts of a stripe that are to be written together.
struct Group {
    stripe: u64,
    open: RefCell<Open>,
    /// Nobody joins any more, and its writer goes for the row lock before anybody else is run.
    is_closed: Cell<bool>,
    outcome: Cell<Option<Result<(), IoError>>>,
    /// Who waits for the outcome, and the writer for more to do.
    wakers: RefCell<SmallVec<[Waker; 8]>>,
}

struct Open {
    /// Bytes within the stripe.
    part: Range<u64>,
    /// By where they begin.
    pieces: Vec<(u64, Vec<Slice>)>,
    fua: Fua,
    grown_at: Duration,
    /// It is waited for no more.
    released: bool,
}

impl Group {
    fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        wakers.into_iter().for_each(Waker::wake);
    }

    fn release(&self) {
        self.open.borrow_mut().released = true;
        self.wake();
    }

    /// Waits until `ready` has something; looks now and whenever the group has changed.
    async fn until<T>(&self, ready: impl Fn() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(result) = ready() {
                return Poll::Ready(result);
            }
            self.wakers.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn overlaps(&self, part: &Range<u64>) -> bool {
        let open = self.open.borrow();
        open.part.start < part.end && part.start < open.part.end
    }

    /// Waits until it is next for its rows, or has been written, or given up.
    async fn closed(&self) {
        self.until(|| self.is_closed.get().then_some(())).await;
    }

    /// Waits for it to be written.
    async fn written(&self) -> Result<(), IoError> {
        self.until(|| self.outcome.get()).await
    }

    /// Adds a part that is adjacent. Hands it back where it is not, or comes too late.
    fn join(&self, part: &Range<u64>, data: Vec<Slice>, fua: Fua, now: Duration) -> Result<(), Vec<Slice>> {
        let mut open = self.open.borrow_mut();
        if open.released || (open.part.end != part.start && part.end != open.part.start) {
            return Err(data);
        }
        open.part = open.part.start.min(part.start)..open.part.end.max(part.end);
        open.pieces.push((part.start, data));
        if fua == Fua::Yes {
            open.fua = Fua::Yes;
        }
        open.grown_at = now;
        Ok(())
    }
}

/// The writer's hold on its group.
struct Lead<'a> {
    gathering: &'a Gathering,
    group: Rc<Group>,
}

impl Lead<'_> {
    fn close(&self) {
        self.gathering.groups.borrow_mut().retain(|group| !Rc::ptr_eq(group, &self.group));
        self.group.is_closed.set(true);
        self.group.wake();
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.close();
        if self.group.outcome.get().is_none() {
            self.group.outcome.set(Some(Err(GIVEN_UP)));
        }
        self.group.wake();
    }
}

/// Counts a stripe that is being written.
struct Writing<'a>(&'a Cell<usize>);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Gathering {
    /// Takes note of a write; whether it goes on where another ended.
    pub fn note(&self, request: &Range<u64>) -> bool {
        let mut ends = self.ends.borrow_mut();
        if let Some(end) = ends.iter_mut().find(|end| **end == request.start && request.start != 0) {
            *end = request.end;
            return true;
        }
        let next = self.next_end.get();
        ends[next] = request.end;
        self.next_end.set((next + 1) % STREAMS);
        false
    }

    fn is_waited_for(&self) -> bool {
        match self.skip.get() {
            0 => true,
            left => {
                self.skip.set(left - 1);
                false
            }
        }
    }

    /// A group has ended, with more parts than it began with or not.
    fn learn(&self, grew: bool) {
        let skipped = if grew { 0 } else { (2 * self.skipped.get() + 1).min(SKIPPED_MAX) };
        self.skipped.set(skipped);
        self.skip.set(skipped);
    }

    fn groups_of(&self, stripes: Range<u64>) -> SmallVec<[Rc<Group>; 2]> {
        self.groups.borrow().iter().filter(|group| stripes.contains(&group.stripe)).cloned().collect()
    }

    fn count_writing(&self) -> Writing<'_> {
        self.writing.set(self.writing.get() + 1);
        Writing(&self.writing)
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Writes `part` (bytes, counted from the stripe's beginning in the array) of a stripe, with what comes beside it if it
    /// is part of a stream.
    pub(super) async fn write_gathered(
        &self,
        parity: &Parity,
        stripe: Stripe,
        part: Range<u64>,
        data: Vec<Slice>,
        is_stream: bool,
        fua: Fua,
    ) -> Result<(), IoError> {
        let is_square = (part.start | part.end).is_multiple_of(self.block_bytes);
        let groups = self.gathering.groups_of(stripe.index.0..stripe.index.0 + 1);
        let before: SmallVec<[_; 2]> = groups.iter().filter(|group| group.overlaps(&part)).collect();
        if !before.is_empty() {
            // All of them, and then the row lock and nothing else: whoever comes now comes after this one.
            before.iter().for_each(|group| group.release());
            for group in before {
                group.closed().await;
            }
            let _writing = self.gathering.count_writing();
            return self.write_stripe(parity, stripe, part, data, fua).await;
        }
        let width = parity.stripe_sectors().bytes();
        let is_worth_it = is_square && (part.end - part.start) * PARTS_MAX >= width;
        let mut data = data;
        for group in groups.iter().filter(|_| is_worth_it) {
            data = match group.join(&part, data, fua, self.runtime.now()) {
                Ok(()) => {
                    group.wake();
                    if mutant::is(Mutant::AnswerJoinedEarly) {
                        return Ok(());
                    }
                    return group.written().await;
                }
                Err(data) => data,
            };
        }
        if !is_stream || !is_worth_it || part == (0..width) || !self.gathering.is_waited_for() {
            let _writing = self.gathering.count_writing();
            return self.write_stripe(parity, stripe, part, data, fua).await;
        }
        self.lead_group(parity, stripe, part, data, fua).await
    }

    /// Lets everything go that waits to be part of these stripes; when this returns, it has its place before whoever asks for
    /// their rows now.
    pub(super) async fn close_groups(&self, stripes: Range<u64>) {
        let groups = self.gathering.groups_of(stripes);
        groups.iter().for_each(|group| group.release());
        for group in groups {
            group.closed().await;
        }
    }

    async fn lead_group(
        &self,
        parity: &Parity,
        stripe: Stripe,
        part: Range<u64>,
        data: Vec<Slice>,
        fua: Fua,
    ) -> Result<(), IoError> {
        let begun_at = self.runtime.now();
        let pieces = vec![(part.start, data)];
        let open = Open { part, pieces, fua, grown_at: begun_at, released: false };
        let (open, is_closed) = (RefCell::new(open), Cell::new(false));
        let (outcome, wakers) = (Cell::new(None), RefCell::default());
        let group = Rc::new(Group { stripe: stripe.index.0, open, is_closed, outcome, wakers });
        self.gathering.groups.borrow_mut().push(group.clone());
        let lead = Lead { gathering: &self.gathering, group };
        self.await_parts(&lead.group, parity.stripe_sectors().bytes(), begun_at).await;
        let (part, data, fua) = {
            let mut open = lead.group.open.borrow_mut();
            open.released = true;
            self.gathering.learn(open.pieces.len() > 1);
            let mut pieces = std::mem::take(&mut open.pieces);
            pieces.sort_unstable_by_key(|(start, _)| *start);
            let data: Vec<Slice> = pieces.into_iter().flat_map(|(_, data)| data).collect();
            (open.part.clone(), data, open.fua)
        };
        let _writing = self.gathering.count_writing();
        // No await between this and the row lock.
        lead.close();
        let outcome = self.write_stripe(parity, stripe, part, data, fua).await;
        lead.group.outcome.set(Some(outcome));
        outcome
    }

    /// Waits until the stripe is full or nothing more is to be expected.
    async fn await_parts(&self, group: &Group, width: u64, begun_at: Duration) {
        loop {
            let seen = group.open.borrow().pieces.len();
            let is_complete = || {
                let open = group.open.borrow();
                open.released || open.part == (0..width)
            };
            if is_complete() {
                return;
            }
            let changed =
                group.until(|| (is_complete() || group.open.borrow().pieces.len() > seen).then_some(()));
            select(pin!(changed), pin!(self.runtime.sleep(PATIENCE))).await;
            if group.open.borrow().pieces.len() > seen {
                continue;
            }
            let now = self.runtime.now();
            let others_go_on = self.gathering.writing.get() > 0 && now < begun_at + PATIENCE_MAX;
            if !others_go_on && now >= group.open.borrow().grown_at + PATIENCE {
                return;
            }
        }
    }
}
