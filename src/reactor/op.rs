//! Operations: what the kernel is doing for us, and what it needs for that.
//!
//! An operation owns its descriptor and its memory from before it is pushed until its completion has been reaped. They
//! lie in a table, not in the future that waits. Dropping the future leaves the entry an orphan that frees itself when
//! the completion comes; so any of these futures may be raced against a timer.
//!
//! States of an entry, and the only moves: in flight -> ended (its completion came; its future takes it away), in
//! flight -> orphan (its future was dropped; its completion takes it away).
//!
//! Invariants:
//! - One completion an entry; its number holds the entry's generation, so a late cancellation finds nobody.
//! - What the submission entry points to is reached through the table's entry: buffers in a pool's arena, and boxes.
//!   Neither moves when the table grows.
//! - The descriptor stays open as long, so its number is not given to another file under a queued operation, and the
//!   lock on it is held until the kernel has let go.
//! - A table that is dropped with operations in flight leaks what they own.

#![allow(unsafe_code)] // forms the addresses that the kernel reads and writes, and pushes them

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::types::{CancelBuilder, Fd, FsyncFlags};
use io_uring::{opcode, squeue};
use nix::errno::Errno;
use slab::Slab;
use smallvec::SmallVec;

use super::executor::Local;
use super::ring::Completion;
use crate::io::{Buf, Slice};

/// An open file, kept open by all who use it.
pub(super) type Descriptor = Rc<dyn AsFd>;

/// Entries of one vectored write, the kernel's UIO_MAXIOV.
const IOVECS_MAX: usize = 1024;

/// Marks what nobody waits for: cancellations.
const NOBODY: u64 = u64::MAX;

/// Whose hand does what the kernel cannot do without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hand {
    /// The kernel tries it on this thread first, and gives it to a worker rather than wait.
    Own,
    /// A worker's from the start: for files that make whoever submits wait all the same (FUSE, for an inode's lock), which
    /// would hold up everything that lives on this thread.
    Worker,
    /// Either's, as [`Shares`] says: for writes to files in memory, which are copies that are done within their submission.
    /// Not for reads: who has read goes on to use the bytes, so they had better be in this processor's cache (checks took
    /// twice as long with it).
    Either,
}

/// Shorter copies than this are done before a worker would have begun.
const SHARED_BYTES_MIN: usize = 64 << 10;

/// Bytes that workers copy for each that this thread does, which has the sockets to serve as well.
const WORKERS_SHARE: usize = 2;

/// Copies within memory that one turn of the loop has submitted, so that the next goes to who has less to do: a worker does it
/// on another processor while this thread does the first.
#[derive(Clone, Copy, Default)]
pub(super) struct Shares {
    own_bytes: usize,
    workers_bytes: usize,
}

impl Shares {
    /// Whose hand copies so many bytes. The first copy is this thread's, so one that comes alone wakes nobody.
    fn next(&mut self, bytes: usize) -> Hand {
        if bytes < SHARED_BYTES_MIN {
            return Hand::Own;
        }
        if self.workers_bytes + bytes <= self.own_bytes * WORKERS_SHARE {
            self.workers_bytes += bytes;
            return Hand::Worker;
        }
        self.own_bytes += bytes;
        Hand::Own
    }
}

/// What is to be done, with the memory that is needed for it.
enum Operation {
    Read { buf: Buf, skip: usize, offset: u64, hand: Hand },
    Write { data: Box<Gather>, offset: u64, durable: bool, hand: Hand },
    Sync,
    Fallocate { offset: u64, len: u64, mode: i32 },
    Recv { buf: Buf },
    Send { data: Box<Gather> },
    Accept,
    Accepted(OwnedFd),
    Event { count: Box<u64> },
    HangUp,
}

impl Operation {
    /// Whether it may wait for a peer for ever, so that it is cancelled when nobody waits for it any more. Disk
    /// operations are not: they end by themselves, or hang where no cancellation reaches.
    fn waits_for_peer(&self) -> bool {
        use Operation as O;
        matches!(self, O::Recv { .. } | O::Send { .. } | O::Accept | O::Event { .. } | O::HangUp)
    }

    /// Who does it.
    fn hand(&self, shares: &mut Shares) -> Hand {
        match self {
            Operation::Write { hand: Hand::Either, data, .. } => shares.next(data.left),
            Operation::Read { hand, .. } | Operation::Write { hand, .. } => *hand,
            _ => Hand::Own,
        }
    }

    /// The submission entry: its addresses lie in `self`, or in what `self` owns.
    fn entry(&mut self, fd: Fd) -> squeue::Entry {
        match self {
            Operation::Read { buf, skip, offset, .. } => {
                let rest = &mut buf[*skip..];
                opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32).offset(*offset).build()
            }
            Operation::Write { data, offset, durable, .. } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                match data.fill() {
                    [one] => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                    many => opcode::Writev::new(fd, many.as_ptr(), many.len() as u32)
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Operation::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Operation::Fallocate { offset, len, mode } => {
                opcode::Fallocate::new(fd, *len).offset(*offset).mode(*mode).build()
            }
            Operation::Recv { buf } => opcode::Recv::new(fd, buf.as_mut_ptr(), buf.len() as u32).build(),
            Operation::Send { data } => {
                // The kernel goes on after a partial send by itself where it can (MSG_WAITALL).
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                opcode::SendMsg::new(fd, data.header()).flags(flags as u32).build()
            }
            Operation::Accept => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            Operation::Event { count } => {
                opcode::Read::new(fd, (&raw mut **count).cast(), size_of::<u64>() as u32).build()
            }
            // Nothing is asked for: that the peer ends one direction, or both, and errors are always told.
            Operation::HangUp => opcode::PollAdd::new(fd, 0).build(),
            Operation::Accepted(_) => unreachable!("an accepted connection is a result"),
        }
    }
}

/// Slices to be written one behind the other, and how far that has come.
pub(super) struct Gather {
    slices: Vec<Slice>,
    /// The first slice that is not all written, and the bytes of it that are.
    index: usize,
    skip: usize,
    left: usize,
    /// Mostly one, for which nothing is allocated; in a box with the rest, so that the kernel may read them where they are.
    iovecs: SmallVec<[libc::iovec; 1]>,
    header: libc::msghdr,
}

impl Gather {
    pub fn new(slices: Vec<Slice>) -> Box<Gather> {
        let left = slices.iter().map(|slice| slice.len()).sum();
        // SAFETY: msghdr is plain C data, for which all zeroes mean "nothing".
        let header = unsafe { std::mem::zeroed() };
        Box::new(Gather { slices, index: 0, skip: 0, left, iovecs: SmallVec::new(), header })
    }

    /// Bytes that are still to be written.
    pub fn left(&self) -> usize {
        self.left
    }

    /// So many more bytes are written.
    pub fn advance(&mut self, mut count: usize) {
        self.left = self.left.checked_sub(count).expect("no more is written than there was");
        while count > 0 {
            let rest = self.slices[self.index].len() - self.skip;
            if count < rest {
                self.skip += count;
                return;
            }
            count -= rest;
            self.index += 1;
            self.skip = 0;
        }
    }

    /// Says where the next bytes are: as many as one operation takes.
    fn fill(&mut self) -> &[libc::iovec] {
        self.iovecs.clear();
        let mut skip = self.skip;
        for slice in self.slices[self.index..].iter().filter(|slice| !slice.is_empty()).take(IOVECS_MAX) {
            let rest = &slice[skip..];
            // The kernel only reads through this pointer: these are writes.
            self.iovecs.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
            skip = 0;
        }
        &self.iovecs
    }

    fn header(&mut self) -> *const libc::msghdr {
        self.fill();
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len() as _;
        &raw const self.header
    }
}

enum State {
    InFlight(Waker),
    Orphan,
    Ended(i32),
}

struct Entry {
    generation: u32,
    state: State,
    operation: Operation,
    _file: Descriptor,
}

/// The operations of one reactor.
#[derive(Default)]
pub(super) struct OpTable {
    entries: Slab<Entry>,
    generation: u32,
}

/// What is left of an operation whose completion came: someone to wake, or an orphan to drop. Use it when nothing is
/// borrowed.
#[must_use]
pub(super) struct Ended {
    waker: Option<Waker>,
    _orphan: Option<Entry>,
}

impl Ended {
    pub fn wake(self) {
        if let Some(waker) = self.waker {
            waker.wake();
        }
    }
}

impl OpTable {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes note of a completion. Panics if it belongs to no operation in flight.
    pub fn complete(&mut self, completion: Completion) -> Ended {
        if completion.user_data == NOBODY {
            return Ended { waker: None, _orphan: None };
        }
        let key = key_of(completion.user_data);
        let entry = self.entries.get_mut(key).expect("a completion belongs to an operation");
        assert_eq!(user_data(key, entry.generation), completion.user_data, "one completion an operation");
        if matches!(entry.operation, Operation::Accept) && completion.result >= 0 {
            // SAFETY: the kernel has just made this descriptor as the result of this operation; nobody else knows it.
            entry.operation = Operation::Accepted(unsafe { OwnedFd::from_raw_fd(completion.result) });
        }
        match std::mem::replace(&mut entry.state, State::Ended(completion.result)) {
            State::InFlight(waker) => Ended { waker: Some(waker), _orphan: None },
            State::Orphan => Ended { waker: None, _orphan: Some(self.entries.remove(key)) },
            State::Ended(_) => panic!("an operation ended twice"),
        }
    }
}

impl Drop for OpTable {
    fn drop(&mut self) {
        for entry in self.entries.drain() {
            if !matches!(entry.state, State::Ended(_)) {
                // The kernel may still use it.
                std::mem::forget(entry);
            }
        }
    }
}

fn user_data(key: usize, generation: u32) -> u64 {
    assert!(key < u32::MAX as usize);
    u64::from(generation) << 32 | key as u64
}

fn key_of(user_data: u64) -> usize {
    (user_data & u64::from(u32::MAX)) as usize
}

/// An operation and its file, to be submitted when first polled; then the wait for its end.
struct Op<'a> {
    local: &'a Rc<Local>,
    todo: Option<(Operation, Descriptor)>,
    user_data: Option<u64>,
}

impl Future for Op<'_> {
    /// What the kernel said, and the operation back.
    type Output = (Result<usize, Errno>, Operation);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some((operation, file)) = self.todo.take() {
            self.user_data = Some(submit(self.local, operation, file, context.waker().clone()));
            return Poll::Pending;
        }
        let key = key_of(self.user_data.expect("not polled after its end"));
        let mut table = self.local.ops.borrow_mut();
        let entry = &mut table.entries[key];
        match &mut entry.state {
            State::InFlight(waker) if waker.will_wake(context.waker()) => Poll::Pending,
            State::InFlight(waker) => {
                let old = std::mem::replace(waker, context.waker().clone());
                drop(table);
                drop(old);
                Poll::Pending
            }
            State::Orphan => unreachable!("an orphan has no future"),
            State::Ended(result) => {
                let result = if *result < 0 { Err(Errno::from_raw(-*result)) } else { Ok(*result as usize) };
                let entry = table.entries.remove(key);
                drop(table);
                self.user_data = None;
                Poll::Ready((result, entry.operation))
            }
        }
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        let Some(user_data) = self.user_data else { return };
        let key = key_of(user_data);
        let mut table = self.local.ops.borrow_mut();
        let entry = &mut table.entries[key];
        if let State::Ended(_) = entry.state {
            let entry = table.entries.remove(key);
            drop(table);
            drop(entry);
            return;
        }
        let cancel = entry.operation.waits_for_peer();
        let State::InFlight(waker) = std::mem::replace(&mut entry.state, State::Orphan) else {
            unreachable!("an orphan has no future");
        };
        drop(table);
        drop(waker);
        if cancel {
            push_cancel(self.local, CancelBuilder::user_data(user_data));
        }
    }
}

fn submit(local: &Local, operation: Operation, file: Descriptor, waker: Waker) -> u64 {
    let fd = Fd(file.as_fd().as_raw_fd());
    let mut table = local.ops.borrow_mut();
    table.generation = table.generation.wrapping_add(1);
    let generation = table.generation;
    let slot = table.entries.vacant_entry();
    let user_data = user_data(slot.key(), generation);
    let entry = slot.insert(Entry { generation, state: State::InFlight(waker), operation, _file: file });
    let mut shares = local.shares.get();
    let flags = match entry.operation.hand(&mut shares) {
        Hand::Own | Hand::Either => squeue::Flags::empty(),
        Hand::Worker => squeue::Flags::ASYNC,
    };
    local.shares.set(shares);
    let sqe = entry.operation.entry(fd).flags(flags).user_data(user_data);
    // SAFETY: the table's entry owns the descriptor and all that `Operation::entry` took the address of, at places that
    // do not move, until `OpTable::complete`; nothing else gets at them before (a `Buf` is exclusive, a `Slice` does
    // not change, the boxes are private). If the table goes first, it leaks the entry.
    unsafe { local.ring.borrow_mut().push(sqe) };
    user_data
}

/// Asks the kernel to end all the operations of this reactor.
pub(super) fn cancel_all(local: &Local) {
    push_cancel(local, CancelBuilder::any());
}

fn push_cancel(local: &Local, which: CancelBuilder) {
    let entry = opcode::AsyncCancel2::new(which).build().user_data(NOBODY);
    // SAFETY: a cancellation names neither descriptor nor memory.
    unsafe { local.ring.borrow_mut().push(entry) };
}

fn run<'a>(local: &'a Rc<Local>, file: &Descriptor, operation: Operation) -> Op<'a> {
    Op { local, todo: Some((operation, file.clone())), user_data: None }
}

/// Reads from `offset` into `buf` behind its first `skip` bytes. May read less.
pub(super) async fn read(
    local: &Rc<Local>,
    file: &Descriptor,
    offset: u64,
    buf: Buf,
    skip: usize,
    hand: Hand,
) -> (Result<usize, Errno>, Buf) {
    let (result, operation) = run(local, file, Operation::Read { buf, skip, offset, hand }).await;
    let Operation::Read { buf, .. } = operation else { unreachable!("an operation keeps its kind") };
    (result, buf)
}

/// Writes the next bytes of `data` to `offset`, and advances it. May write less. `durable`: with RWF_DSYNC.
pub(super) async fn write(
    local: &Rc<Local>,
    file: &Descriptor,
    offset: u64,
    data: Box<Gather>,
    durable: bool,
    hand: Hand,
) -> (Result<usize, Errno>, Box<Gather>) {
    let (result, operation) = run(local, file, Operation::Write { data, offset, durable, hand }).await;
    let Operation::Write { mut data, .. } = operation else { unreachable!("an operation keeps its kind") };
    data.advance(result.unwrap_or(0));
    (result, data)
}

/// fdatasync.
pub(super) async fn sync(local: &Rc<Local>, file: &Descriptor) -> Result<(), Errno> {
    run(local, file, Operation::Sync).await.0.map(drop)
}

/// fallocate with this mode.
pub(super) async fn fallocate(
    local: &Rc<Local>,
    file: &Descriptor,
    mode: i32,
    offset: u64,
    len: u64,
) -> Result<(), Errno> {
    run(local, file, Operation::Fallocate { offset, len, mode }).await.0.map(drop)
}

/// Receives what has come into the start of `buf`. Dropped, it is cancelled; what had come may be lost.
pub(super) async fn recv(local: &Rc<Local>, file: &Descriptor, buf: Buf) -> (Result<usize, Errno>, Buf) {
    let (result, operation) = run(local, file, Operation::Recv { buf }).await;
    let Operation::Recv { buf } = operation else { unreachable!("an operation keeps its kind") };
    (result, buf)
}

/// Sends the next bytes of `data`, and advances it. May send less. Dropped, it is cancelled.
pub(super) async fn send(
    local: &Rc<Local>,
    file: &Descriptor,
    data: Box<Gather>,
) -> (Result<usize, Errno>, Box<Gather>) {
    let (result, operation) = run(local, file, Operation::Send { data }).await;
    let Operation::Send { mut data } = operation else { unreachable!("an operation keeps its kind") };
    data.advance(result.unwrap_or(0));
    (result, data)
}

/// Accepts a connection. Dropped, it is cancelled; a connection that had come is closed.
pub(super) async fn accept(local: &Rc<Local>, file: &Descriptor) -> Result<OwnedFd, Errno> {
    match run(local, file, Operation::Accept).await {
        (Ok(_), Operation::Accepted(connection)) => Ok(connection),
        (Err(errno), _) => Err(errno),
        (Ok(_), _) => unreachable!("an accepted connection was taken over at its completion"),
    }
}

/// Waits until a socket's peer sends no more, has ended both directions, or is gone. Dropped, it is cancelled.
pub(super) async fn hang_up(local: &Rc<Local>, file: &Descriptor) {
    // What it was is for who waited to ask: between here and there it may become more.
    let _what = run(local, file, Operation::HangUp).await.0.is_ok();
}

/// Waits until an eventfd is written, and takes its count.
pub(super) async fn read_event(local: &Rc<Local>, file: &Descriptor) -> Result<(), Errno> {
    match run(local, file, Operation::Event { count: Box::new(0) }).await.0 {
        Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Pool;

    #[test]
    fn copies_are_shared_with_workers_where_there_are_several() {
        let mut shares = Shares::default();
        let mut whose = |bytes| shares.next(bytes);
        assert_eq!(whose(1 << 20), Hand::Own, "a lone copy wakes nobody");
        assert_eq!([whose(1 << 20), whose(1 << 20)], [Hand::Worker; 2]);
        assert_eq!([whose(1 << 20), whose(4096)], [Hand::Own; 2]);
        assert_eq!(whose(128 << 10), Hand::Worker);
    }

    fn receive_into(table: &mut OpTable, buf: Buf, state: State) -> usize {
        let file = Rc::new(std::fs::File::open("/dev/null").unwrap());
        table.entries.insert(Entry { generation: 1, state, operation: Operation::Recv { buf }, _file: file })
    }

    #[test]
    fn an_orphan_goes_with_its_completion() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut table = OpTable::default();
        let key = receive_into(&mut table, pool.try_alloc(4096).unwrap(), State::Orphan);
        let ended = table.complete(Completion { user_data: user_data(key, 1), result: 0 });
        assert!(table.is_empty() && pool.free_bytes() < pool.total_bytes());
        drop(ended);
        assert_eq!(pool.free_bytes(), pool.total_bytes());
    }

    #[test]
    #[should_panic(expected = "one completion an operation")]
    fn a_completion_of_another_generation_is_impossible() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut table = OpTable::default();
        let key = receive_into(&mut table, pool.try_alloc(4096).unwrap(), State::Orphan);
        table.complete(Completion { user_data: user_data(key, 2), result: 0 }).wake();
    }

    #[test]
    fn a_table_that_goes_first_leaks_what_the_kernel_may_still_use() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut table = OpTable::default();
        receive_into(&mut table, pool.try_alloc(4096).unwrap(), State::Orphan);
        receive_into(&mut table, pool.try_alloc(4096).unwrap(), State::InFlight(Waker::noop().clone()));
        receive_into(&mut table, pool.try_alloc(4096).unwrap(), State::Ended(0));
        drop(table);
        assert_eq!(pool.total_bytes() - pool.free_bytes(), 2 * 4096);
    }

    #[test]
    fn gather_advances_over_slices_and_within_them() {
        let zeroes = Slice::zeroes(100);
        let lens = [10, 0, 20, 30];
        let mut data = Gather::new(lens.iter().map(|&len| zeroes.slice(0..len)).collect());
        assert_eq!(data.fill().iter().map(|part| part.iov_len).collect::<Vec<_>>(), [10, 20, 30]);
        data.advance(15);
        assert_eq!(data.fill().iter().map(|part| part.iov_len).collect::<Vec<_>>(), [15, 30]);
        data.advance(15);
        assert_eq!((data.left(), data.fill().len()), (30, 1));
        data.advance(30);
        assert_eq!((data.left(), data.fill().len()), (0, 0));
    }

    #[test]
    fn gather_takes_no_more_than_the_kernel_does() {
        let one = Slice::zeroes(8);
        let mut data = Gather::new(vec![one; IOVECS_MAX + 5]);
        assert_eq!(data.fill().len(), IOVECS_MAX);
        data.advance(IOVECS_MAX * 8);
        assert_eq!(data.fill().len(), 5);
    }
}
