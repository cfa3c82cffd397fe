//! Writing partial parity logs (`md::ppl` says what they are, `ppl` replays them): before a row's data and parity are
//! written, the log of the member that holds the parity says what of the row stays, so that a crash costs nothing of it,
//! whoever is missing afterwards.
//!
//! Each slot has a log, with one header, at its start. Writers of different rows share a header: whoever comes while the
//! log is in use waits, and the first of those who waited writes for all of them.
//!
//! Invariants:
//! - Log before data: an entry is durable before the first write that it protects.
//! - A header is overwritten only after every write that the last one protects has ended, is durable itself (such
//!   writes are forced), and whoever failed at it is on record.
//! - A header changes in one sector: it has no more entries than fit there. So it is the old one or the new one after
//!   any crash, and partial parity that does not match it belongs to writes that never began.
//! - The logs are *open* or *closed*, all of them. While rows await resync or are suspect they are closed: no member has a
//!   valid header, so the next start resyncs a dirty array, as it does one without logs. From the first row that no log
//!   can take until they are closed, durably, no write begins.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use futures_util::future::join_all;

use super::array::Array;
use super::locks::RowLocks;
use super::member::Member;
use super::mutant::{self, Mutant};
use super::ranges::RowSet;
use crate::io::{Device, Fua, IoError, IoErrorKind, Runtime, Slice};
use crate::md::ppl::{self, NewEntry, PPL_HEADER_BYTES};
use crate::units::{MemberSlot, SECTOR_BYTES, Sector};

const NOT_CLOSED: IoError =
    IoError::new(IoErrorKind::ReadOnly, "rows disagree, and no partial parity log can take that");

/// Entries of a header that end within its second sector.
const ENTRIES_MAX: usize = 20;
/// Partial parity behind one header, unless a single entry has more.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// What is written at a time of zeroes, and of parity that was replayed: 64 KiB.
const STEP_SECTORS: u64 = 128;

/// What the logs on the members are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// As they were found: nothing has been written since.
    Found,
    /// Every write is logged.
    Open,
    /// They are being closed: nobody writes until they are. It stays at that, and at no more writes, if they cannot be.
    Closing,
    /// No member has a valid header, and no write is logged.
    Closed,
}

/// The logs of an array.
pub(super) struct Logs {
    slots: Vec<Log>,
    standing: Cell<Standing>,
    /// Held while they are being closed.
    closing: RowLocks,
    generation: Cell<u64>,
    signature: u32,
    room_bytes: u64,
    tells: bool,
    /// The array may do things on its own.
    pub is_started: Cell<bool>,
}

/// The log of one slot.
#[derive(Default)]
struct Log {
    queue: RefCell<Queue>,
    /// In which it is written.
    lane: RowLocks,
}

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    /// In order of arrival.
    waiting: VecDeque<Request>,
    /// Those in the header that is being written.
    under_way: Vec<(u64, Option<Waker>)>,
    outcomes: BTreeMap<u64, Result<(), IoError>>,
    is_led: bool,
    /// Writes that the header on the members protects, and that have not ended.
    unfinished: usize,
}

struct Request {
    ticket: u64,
    entry: Entry,
    waker: Option<Waker>,
}

/// What one band's write is about to change.
pub(super) struct Entry {
    /// The first array sector that is written.
    pub data_sector: Sector,
    /// Bytes of data that are written, over all data chunks.
    pub data_size: u32,
    pub parity_disk: u32,
    /// None where all data chunks are written.
    pub partial: Option<Slice>,
}

impl Entry {
    fn len(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.len())
    }
}

enum Turn {
    Lead,
    Done(Result<(), IoError>),
}

/// An entry that is durable. While it lives, it is not overwritten.
pub(super) struct Logged<'a>(&'a Log);

impl Drop for Logged<'_> {
    fn drop(&mut self) {
        let waker = {
            let mut queue = self.0.queue.borrow_mut();
            queue.unfinished -= 1;
            queue.next_leader()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Queue {
    /// Who waits to write the next header, if it may be written now.
    fn next_leader(&mut self) -> Option<Waker> {
        let is_free = !self.is_led && self.unfinished == 0;
        self.waiting.front_mut().filter(|_| is_free)?.waker.take()
    }

    fn poll(&mut self, ticket: u64, waker: &Waker) -> Poll<Turn> {
        if let Some(outcome) = self.outcomes.remove(&ticket) {
            return Poll::Ready(Turn::Done(outcome));
        }
        if let Some((_, waiter)) = self.under_way.iter_mut().find(|(other, _)| *other == ticket) {
            *waiter = Some(waker.clone());
            return Poll::Pending;
        }
        let is_free = !self.is_led && self.unfinished == 0;
        let first = self.waiting.front().map(|request| request.ticket);
        if is_free && first == Some(ticket) {
            self.is_led = true;
            return Poll::Ready(Turn::Lead);
        }
        let request = self.waiting.iter_mut().find(|request| request.ticket == ticket);
        request.expect("it waits, or is in a batch").waker = Some(waker.clone());
        Poll::Pending
    }
}

impl Log {
    fn enter(&self, entry: Entry) -> u64 {
        let mut queue = self.queue.borrow_mut();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push_back(Request { ticket, entry, waker: None });
        ticket
    }

    async fn turn(&self, ticket: u64) -> Turn {
        poll_fn(|context| self.queue.borrow_mut().poll(ticket, context.waker())).await
    }

    /// Takes as many from the queue as go behind one header, at least one.
    fn take_batch(&self, room: usize) -> Vec<Entry> {
        let mut queue = self.queue.borrow_mut();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(request) = queue.waiting.front() {
            bytes += request.entry.len();
            if !batch.is_empty() && (batch.len() == ENTRIES_MAX || bytes > BATCH_BYTES_MAX.min(room)) {
                break;
            }
            let request = queue.waiting.pop_front().expect("just seen");
            queue.under_way.push((request.ticket, request.waker));
            batch.push(request.entry);
        }
        batch
    }

    fn end_batch(&self, result: Result<(), IoError>) {
        let mut wakers = Vec::new();
        {
            let mut queue = self.queue.borrow_mut();
            queue.is_led = false;
            let batch = std::mem::take(&mut queue.under_way);
            queue.unfinished = if result.is_ok() { batch.len() } else { 0 };
            for (ticket, waker) in batch {
                queue.outcomes.insert(ticket, result);
                wakers.extend(waker);
            }
            wakers.extend(queue.next_leader());
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Logs {
    /// Logs for so many slots, each with room for so many bytes behind the header. `tells`: they were found in use.
    pub fn new(slots: usize, set_uuid: &[u8; 16], room_bytes: u64, tells: bool) -> Logs {
        Logs {
            slots: (0..slots).map(|_| Log::default()).collect(),
            standing: Cell::new(Standing::Found),
            closing: RowLocks::default(),
            generation: Cell::new(0),
            signature: ppl::signature(set_uuid),
            room_bytes,
            tells,
            is_started: Cell::new(false),
        }
    }

    /// The most that one entry may have of partial parity.
    pub fn height_bytes(&self) -> u64 {
        let most = self.room_bytes.min(BATCH_BYTES_MAX as u64);
        most - most % PPL_HEADER_BYTES as u64
    }

    pub fn room_bytes(&self) -> u64 {
        self.room_bytes
    }

    pub fn standing(&self) -> Standing {
        self.standing.get()
    }

    fn header(&self, batch: &[Entry]) -> Vec<u8> {
        self.generation.set(self.generation.get() + 1);
        let entries = batch.iter().map(|entry| NewEntry {
            data_sector: entry.data_sector,
            data_size: entry.data_size,
            parity_disk: entry.parity_disk,
            parity: entry.partial.as_deref().unwrap_or(&[]),
        });
        ppl::encode_header(self.signature, self.generation.get(), &entries.collect::<Vec<_>>())
    }
}

/// Bytes behind the header in a log of so many sectors.
pub(super) fn room_bytes(log_sectors: u16) -> u64 {
    Sector(log_sectors.into()).bytes().saturating_sub(PPL_HEADER_BYTES as u64)
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Whether writes are logged at the moment. It begins only while nobody holds any row.
    pub(super) fn logs_writes(&self) -> bool {
        self.logs.as_ref().is_some_and(|logs| logs.standing() == Standing::Open)
    }

    /// Returns once this is durable in the log of a slot; none if nothing is logged.
    pub(super) async fn log(&self, slot: MemberSlot, entry: Entry) -> Result<Option<Logged<'_>>, IoError> {
        let Some(logs) = self.logs.as_ref().filter(|_| self.logs_writes()) else { return Ok(None) };
        let log = &logs.slots[slot.index()];
        let ticket = log.enter(entry);
        let mut turn = log.turn(ticket).await;
        if let Turn::Lead = turn {
            let batch = log.take_batch(logs.room_bytes as usize);
            let result = self.write_batch(logs, slot, batch).await;
            log.end_batch(result);
            turn = log.turn(ticket).await;
        }
        match turn {
            Turn::Done(Ok(())) => Ok(Some(Logged(log))),
            Turn::Done(Err(error)) => Err(error),
            Turn::Lead => unreachable!("its batch has ended"),
        }
    }

    async fn write_batch(&self, logs: &Logs, slot: MemberSlot, batch: Vec<Entry>) -> Result<(), IoError> {
        {
            let lane = logs.slots[slot.index()].lane.lock(0..1).await;
            if logs.standing() != Standing::Open || mutant::is(Mutant::SkipPplWrite) {
                drop(lane);
                return self.until_closed().await;
            }
            let header = self.header_slice(logs.header(&batch)).await;
            let members: Vec<_> = self.writers(slot).collect();
            let writes = members.iter().map(|member| {
                let mut data = vec![header.clone()];
                data.extend(batch.iter().filter_map(|entry| entry.partial.clone()));
                self.write_ppl(member, data)
            });
            let results = join_all(writes).await;
            for (member, result) in members.iter().zip(results) {
                self.settle_log(member, result)?;
            }
        }
        // Whose log does not have it must not come back as in sync: its parity is going to be wrong.
        self.persist().await
    }

    fn settle_log(&self, member: &Rc<Member<D>>, result: Result<(), IoError>) -> Result<(), IoError> {
        let Err(error) = result else { return Ok(()) };
        member.note_write_error("log write", &error);
        if !member.takes_writes() {
            return Ok(()); // It has failed already.
        }
        let can_fail = !member.in_sync() || member.slot.get().is_some_and(|slot| self.can_fail(slot));
        if !error.blames_media() || !can_fail {
            if error.kind == IoErrorKind::Timeout {
                // It may land at any time, also on what would be written there later.
                self.stop_writing("a write to the log of the last usable copy has not ended in time");
            }
            return Err(error);
        }
        self.fail_member(member, "it could not take its partial parity log");
        Ok(())
    }

    async fn header_slice(&self, bytes: Vec<u8>) -> Slice {
        let mut buf = self.memory.metadata.alloc(PPL_HEADER_BYTES).await;
        buf.copy_from_slice(&bytes);
        buf.freeze()
    }

    /// Writes from the start of a member's log, and an end that no walk over headers goes past.
    async fn write_ppl(&self, member: &Member<D>, mut data: Vec<Slice>) -> Result<(), IoError> {
        let (at, len) = place(member);
        let end: u64 = data.iter().map(|slice| slice.len() as u64).sum();
        if end + PPL_HEADER_BYTES as u64 <= len {
            data.push(Slice::zeroes(PPL_HEADER_BYTES));
        }
        member.write_metadata(at, data, Fua::Yes).await
    }

    /// Makes a member's log empty, if logs are open, else invalid. With `wipe`, whatever else was in it goes.
    async fn reset_log(
        &self,
        logs: &Logs,
        member: &Member<D>,
        open: bool,
        wipe: bool,
    ) -> Result<(), IoError> {
        let (at, len) = place(member);
        if !open {
            // First of all it must not be valid.
            member.write_metadata(at, vec![Slice::zeroes(PPL_HEADER_BYTES)], Fua::Yes).await?;
        }
        let mut done = PPL_HEADER_BYTES as u64;
        while wipe && done < len {
            let step = Sector(STEP_SECTORS).bytes().min(len - done);
            member.write_metadata(at + done, vec![Slice::zeroes(step as usize)], Fua::Yes).await?;
            done += step;
        }
        if open {
            let header = self.header_slice(ppl::empty_header(logs.signature)).await;
            self.write_ppl(member, vec![header]).await?;
        }
        Ok(())
    }

    /// Whether the logs still tell of the last time: until then the superblocks must go on saying dirty.
    pub(super) fn replay_is_due(&self) -> bool {
        self.logs.as_ref().is_some_and(|logs| logs.tells && logs.standing() == Standing::Found)
    }

    /// Before anything is written to the array: what was replayed is written to the members, durably, and then logs
    /// begin anew. The caller holds the lane.
    pub(super) async fn begin_logs(&self) -> Result<(), IoError> {
        let Some(logs) = self.logs.as_ref().filter(|logs| logs.standing() == Standing::Found) else {
            return Ok(());
        };
        // Parity is about to be made of them, and the log that could make it again is about to go.
        self.make_findings_durable().await?;
        let members = self.live_seated();
        let results = join_all(members.iter().map(|member| self.write_replayed(member))).await;
        for (member, result) in members.iter().zip(results) {
            self.settle_log(member, result)?;
        }
        // Whoever is missing must not come back as in sync with what only the logs knew to be torn.
        if self.counts_absent() {
            self.write_generation(true).await?;
        }
        let open = self.logs_may_open();
        let members = self.live_seated();
        let resets = members.iter().map(|member| self.reset_log(logs, member, open, true));
        let results = join_all(resets.collect::<Vec<_>>()).await;
        for (member, result) in members.iter().zip(results) {
            self.settle_log(member, result)?;
        }
        logs.standing.set(if open { Standing::Open } else { Standing::Closed });
        Ok(())
    }

    /// Whether the superblocks count in who is not here: not found, or failed since.
    fn counts_absent(&self) -> bool {
        let live = self.live_seated();
        let is_here = |number| live.iter().any(|member| member.superblock.dev_number as usize == number);
        let counted = self.truth.dev_roles.iter().enumerate().filter(|(_, role)| role.slot().is_some());
        counted.map(|(number, _)| number).any(|number| !is_here(number))
    }

    /// The same, where nobody has written yet; then the superblocks say what is.
    pub(super) async fn settle_replay(&self) -> Result<(), IoError> {
        self.flush_members().await?;
        let _lane = self.lane.lock(0..1).await;
        if !self.replay_is_due() || !self.may_sync() {
            return Ok(());
        }
        self.begin_logs().await?;
        let active = self.state.borrow().phase != super::state::Phase::Clean;
        self.write_generation(active).await
    }

    async fn write_replayed(&self, member: &Member<D>) -> Result<(), IoError> {
        let block = self.block_bytes / SECTOR_BYTES;
        let rows = RowSet::from_iter(member.replayed.borrow().keys().map(|&at| at..at + 1));
        for run in rows.ranges() {
            let end = run.end.next_multiple_of(block);
            for at in (run.start - run.start % block..end).step_by(STEP_SECTORS as usize) {
                let part = at..end.min(at + STEP_SECTORS);
                let mut buf = self.memory.metadata.alloc(Sector(part.end - at).bytes() as usize).await;
                if part.start < run.start || run.end < part.end {
                    buf = member.read(Sector(at), buf).await?;
                }
                member.lay_replayed(Sector(at), &mut buf);
                member.write(Sector(at), vec![buf.freeze()], Fua::Yes).await?;
            }
        }
        member.replayed.borrow_mut().clear();
        Ok(())
    }

    fn logs_may_open(&self) -> bool {
        let state = self.state.borrow();
        state.resync.is_none() && state.suspect.is_empty()
    }

    /// Opens logs that were closed, once all rows agree. Nobody writes meanwhile.
    pub(super) async fn open_logs(&self) -> Result<(), IoError> {
        let is_due = |logs: &&Logs| logs.standing() == Standing::Closed && self.logs_may_open();
        if self.logs.as_ref().filter(is_due).is_none() {
            return Ok(());
        }
        let _changes = self.changes.lock(0..1).await;
        let _rows = self.locks.lock(0..self.lock_rows()).await;
        self.flush_members().await?;
        let Some(logs) = self.logs.as_ref().filter(is_due) else { return Ok(()) };
        let members = self.live_seated();
        let results = join_all(members.iter().map(|member| self.reset_log(logs, member, true, false))).await;
        let settled = members.iter().zip(results).map(|(member, result)| self.settle_log(member, result));
        // Whoever has failed must not count when all are asked whether they have a log.
        let settled = match settled.collect::<Result<(), _>>() {
            Ok(()) => self.persist().await,
            Err(error) => Err(error),
        };
        if settled.is_ok() && self.logs_may_open() && self.goes_on() {
            logs.standing.set(Standing::Open);
        } else {
            self.wipe_logs(logs).await;
        }
        settled
    }

    /// Rows disagree that no log tells of: from now on none tells anything. One member that is without a log is enough
    /// for the next start to see that.
    pub(super) async fn close_logs(&self) {
        let Some(logs) = &self.logs else { return };
        let _closing = logs.closing.lock(0..1).await;
        if logs.standing() != Standing::Open {
            return;
        }
        logs.standing.set(Standing::Closing);
        if self.wipe_logs(logs).await {
            logs.standing.set(Standing::Closed);
            self.kick();
        }
    }

    /// Before anything is written: if logs are being closed, until they are.
    pub(super) async fn until_closed(&self) -> Result<(), IoError> {
        let Some(logs) = self.logs.as_ref().filter(|logs| logs.standing() == Standing::Closing) else {
            return Ok(());
        };
        drop(logs.closing.lock(0..1).await);
        match logs.standing() {
            Standing::Closing => Err(NOT_CLOSED),
            Standing::Found | Standing::Open | Standing::Closed => Ok(()),
        }
    }

    /// False if no log could be made invalid; then the array takes no writes any more.
    async fn wipe_logs(&self, logs: &Logs) -> bool {
        let mut closed = 0;
        for (index, log) in logs.slots.iter().enumerate() {
            let _lane = log.lane.lock(0..1).await;
            for member in self.writers(MemberSlot(index as u16)) {
                let result = self.reset_log(logs, &member, false, false).await;
                closed += usize::from(result.is_ok() && member.in_sync());
                self.settle_log(&member, result).ok(); // Counted: if none could, nothing is written any more.
            }
        }
        if closed == 0 {
            self.stop_writing("rows disagree, and no log can take that");
        }
        closed > 0
    }

    /// Gives a member that is to hold a slot its log. The caller seats it with no await in between.
    pub(super) async fn give_log(&self, member: &Member<D>) -> Result<(), IoError> {
        let Some(logs) = &self.logs else { return Ok(()) };
        loop {
            let standing = logs.standing();
            self.reset_log(logs, member, standing != Standing::Closed, true).await?;
            if standing == logs.standing() {
                return Ok(());
            }
        }
    }
}

/// Where a member's log lies, and how long it is, in bytes.
fn place<D>(member: &Member<D>) -> (u64, u64) {
    let at = member.superblock.ppl_sector().expect("a member of an array with logs");
    (at.bytes(), Sector(member.superblock.ppl_size().into()).bytes())
}
