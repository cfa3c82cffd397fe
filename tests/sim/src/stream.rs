//! Connections: what one end sends arrives at the other in random pieces, after random times, and may be cut off at any
//! byte.
//!
//! A connection has two *ways*. What is sent on one waits there, in a limited room, until it has arrived and is received;
//! who finds no room waits. A piece that is under way arrives at some event of the way; which one does not matter, so
//! bytes never overtake each other.
//!
//! Invariants:
//! - Bytes arrive in order, once, none after one that is lost.
//! - After a cut a random beginning of what was under way still arrives, then the break; what is sent later is lost, and
//!   the sender learns of it only when the break has come to it, too.
//! - After the last byte of who has ended properly comes the end, and nothing else.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use raidd::io::{Buf, IoError, IoErrorKind, Slice, Stream};

use crate::world::{Happening, World};

/// Wakes all that wait for a change of what they look at.
#[derive(Default)]
pub struct Bell(RefCell<Vec<Waker>>);

impl Bell {
    /// Something has changed.
    pub fn ring(&self) {
        for waker in self.0.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// Waits until a look, now or after a ring, finds something.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(found) = look() {
                return Poll::Ready(found);
            }
            let mut waiting = self.0.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// What comes after the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The other end sends no more.
    Finished,
    /// The connection is broken.
    Broken,
}

#[derive(Clone, Copy)]
enum Piece {
    Bytes(usize),
    End(End),
}

#[derive(Default)]
struct Way {
    /// Sent and not received yet.
    bytes: RefCell<VecDeque<u8>>,
    /// So many of them can be received.
    arrived: Cell<usize>,
    under_way: RefCell<VecDeque<Piece>>,
    end: Cell<Option<End>>,
    /// The sender has said that it sends no more.
    is_finished: Cell<bool>,
    /// Nobody receives any more.
    is_deaf: Cell<bool>,
    /// The connection is cut after so many more bytes.
    fuse: Cell<Option<usize>>,
    readable: Bell,
    writable: Bell,
}

impl Way {
    /// Nobody receives here any more.
    fn deafen(&self) {
        self.is_deaf.set(true);
        self.bytes.borrow_mut().clear();
        self.arrived.set(0);
        self.under_way.borrow_mut().clear();
        self.end.set(Some(End::Finished));
        self.readable.ring();
        self.writable.ring();
    }
}

struct Cable {
    world: World,
    capacity: usize,
    ways: [Way; 2],
    is_cut: Cell<bool>,
}

impl Cable {
    fn push(self: &Rc<Cable>, way: usize, piece: Piece) {
        self.ways[way].under_way.borrow_mut().push_back(piece);
        let dice = self.world.dice();
        let most = match dice.below(256) {
            0 => 20_000,
            1..16 => 1000,
            _ => 20,
        };
        self.world.later(Duration::from_micros(dice.below(most)), self.clone(), way as u32);
    }

    /// Sends so many bytes on their way, mostly at once.
    fn push_bytes(self: &Rc<Cable>, way: usize, len: usize) {
        let dice = self.world.dice();
        let mut rest = len;
        if dice.one_in(16) {
            for _ in 0..dice.between(1, 4) {
                let most = if dice.one_in(2) { rest } else { rest.min(40) };
                let part = 1 + dice.below(most as u64) as usize;
                self.push(way, Piece::Bytes(part));
                rest -= part;
                if rest == 0 {
                    return;
                }
            }
        }
        self.push(way, Piece::Bytes(rest));
    }

    fn finish(self: &Rc<Cable>, way: usize) {
        let state = &self.ways[way];
        if !state.is_finished.replace(true) && !self.is_cut.get() && !state.is_deaf.get() {
            self.push(way, Piece::End(End::Finished));
        }
        state.writable.ring();
    }

    fn cut(self: &Rc<Cable>) {
        if self.is_cut.replace(true) {
            return;
        }
        let dice = self.world.dice();
        for (index, way) in self.ways.iter().enumerate() {
            if !way.is_deaf.get() && way.end.get().is_none() {
                let len = way.bytes.borrow().len();
                let kept = if dice.one_in(2) { len } else { dice.below(len as u64 + 1) as usize };
                way.bytes.borrow_mut().truncate(kept);
                way.arrived.set(way.arrived.get().min(kept));
                way.under_way.borrow_mut().clear();
                if kept > way.arrived.get() {
                    self.push(index, Piece::Bytes(kept - way.arrived.get()));
                }
                self.push(index, Piece::End(End::Broken));
            }
            way.writable.ring();
        }
    }
}

impl Happening for Cable {
    fn happen(self: Rc<Self>, world: &World, way: u32) {
        world.note(6, u64::from(way));
        let way = &self.ways[way as usize];
        match way.under_way.borrow_mut().pop_front() {
            Some(Piece::Bytes(count)) => way.arrived.set(way.arrived.get() + count),
            Some(Piece::End(end)) => way.end.set(Some(end)),
            None => return, // What this was for has been cut off.
        }
        way.readable.ring();
    }
}

/// One end of a connection. Dropping it ends both directions.
pub struct Wire {
    cable: Rc<Cable>,
    /// It sends on the way of this number and receives on the other.
    end: usize,
}

fn closed() -> IoError {
    IoError::new(IoErrorKind::Closed, "the connection is gone")
}

impl Wire {
    /// Both ends of a new connection; either way holds so many bytes.
    pub fn pair(world: &World, capacity: usize) -> (Wire, Wire) {
        assert!(capacity > 0, "nothing would ever arrive");
        let (ways, is_cut) = (Default::default(), Cell::new(false));
        let cable = Rc::new(Cable { world: world.clone(), capacity, ways, is_cut });
        (Wire { cable: cable.clone(), end: 0 }, Wire { cable, end: 1 })
    }

    fn outgoing(&self) -> &Way {
        &self.cable.ways[self.end]
    }

    fn incoming(&self) -> &Way {
        &self.cable.ways[1 - self.end]
    }

    /// Sends these bytes, one part behind the other.
    pub async fn put(&self, parts: &[&[u8]]) -> Result<(), IoError> {
        let (way, back) = (self.outgoing(), self.incoming());
        let mut parts = parts.iter().copied();
        let mut part: &[u8] = &[];
        loop {
            let is_lost = || self.cable.is_cut.get() || way.is_deaf.get();
            let room = || self.cable.capacity - way.bytes.borrow().len();
            way.writable.until(|| (way.is_finished.get() || is_lost() || room() > 0).then_some(())).await;
            let knows = back.end.get() == Some(End::Broken) || way.is_deaf.get() && back.end.get().is_some();
            if way.is_finished.get() || knows {
                return Err(closed());
            }
            if is_lost() {
                return Ok(()); // Nobody has told the sender yet.
            }
            let most = room().min(way.fuse.get().unwrap_or(usize::MAX));
            let mut sent = 0;
            while sent < most {
                if part.is_empty() {
                    let Some(next) = parts.next() else { break };
                    part = next;
                }
                let (now, later) = part.split_at(part.len().min(most - sent));
                way.bytes.borrow_mut().extend(now);
                sent += now.len();
                part = later;
            }
            if sent > 0 {
                self.cable.push_bytes(self.end, sent);
            }
            if let Some(left) = way.fuse.get() {
                way.fuse.set(Some(left - sent));
                if left == sent {
                    self.cable.cut();
                }
            }
            if part.is_empty() {
                match parts.next() {
                    Some(next) => part = next,
                    None => return Ok(()),
                }
            }
        }
    }

    /// Receives what has come into the start of `out`, at least one byte; 0 at the end.
    pub async fn take(&self, out: &mut [u8]) -> Result<usize, IoError> {
        let way = self.incoming();
        way.readable.until(|| (way.arrived.get() > 0 || way.end.get().is_some()).then_some(())).await;
        if way.arrived.get() == 0 {
            return if way.end.get() == Some(End::Broken) { Err(closed()) } else { Ok(0) };
        }
        let count = out.len().min(way.arrived.get());
        let mut bytes = way.bytes.borrow_mut();
        let (head, tail) = bytes.as_slices();
        let from_head = count.min(head.len());
        out[..from_head].copy_from_slice(&head[..from_head]);
        out[from_head..count].copy_from_slice(&tail[..count - from_head]);
        bytes.drain(..count);
        drop(bytes);
        way.arrived.set(way.arrived.get() - count);
        way.writable.ring();
        Ok(count)
    }

    /// Sends no more, but still receives.
    pub fn finish(&self) {
        self.cable.finish(self.end);
    }

    /// The connection breaks, for both ends.
    pub fn cut(&self) {
        self.cable.cut();
    }

    /// The connection breaks after so many more bytes from this end.
    pub fn cut_after_sending(&self, bytes: usize) {
        self.outgoing().fuse.set(Some(bytes));
    }

    /// The connection breaks after so many more bytes from the other end.
    pub fn cut_after_receiving(&self, bytes: usize) {
        self.incoming().fuse.set(Some(bytes));
    }

    /// It does not break by itself any more.
    pub fn mend(&self) {
        self.cable.ways.iter().for_each(|way| way.fuse.set(None));
    }

    /// Whether it was cut.
    pub fn is_cut(&self) -> bool {
        self.cable.is_cut.get()
    }
}

impl Stream for Wire {
    async fn recv(&self, mut buf: Buf) -> Result<(usize, Buf), IoError> {
        let count = self.take(&mut buf).await?;
        Ok((count, buf))
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        let parts: Vec<&[u8]> = data.iter().map(|slice| &**slice).collect();
        self.put(&parts).await
    }

    fn shutdown(&self) {
        self.cable.finish(self.end);
        self.incoming().deafen();
    }

    fn hung_up(&self) -> bool {
        self.incoming().end.get() == Some(End::Broken) || self.outgoing().is_deaf.get()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
    }

    async fn send_all(wire: &Wire, data: &[u8], step: usize) -> Result<(), IoError> {
        for part in data.chunks(step) {
            let (head, tail) = part.split_at(part.len() / 3);
            wire.put(&[head, &[], tail]).await?;
        }
        Ok(())
    }

    async fn receive_all(wire: &Wire, most: usize) -> (Vec<u8>, Result<(), IoError>) {
        let (mut all, mut buf) = (Vec::new(), vec![0; most]);
        loop {
            match wire.take(&mut buf).await {
                Ok(0) => return (all, Ok(())),
                Ok(count) => all.extend_from_slice(&buf[..count]),
                Err(error) => return (all, Err(error)),
            }
        }
    }

    #[test]
    fn all_bytes_arrive_in_order_whatever_the_room() {
        for seed in 0..200 {
            let world = World::new(seed);
            let capacity = 1 + world.random(3000) as usize;
            let (near, far) = Wire::pair(&world, capacity);
            world.run(async move {
                let data = bytes(20_000);
                let sending = async {
                    send_all(&near, &data, 4000).await.unwrap();
                    near.finish();
                    assert_eq!(near.put(&[b"more"]).await.unwrap_err().kind, IoErrorKind::Closed);
                };
                let ((), (received, end)) = join(sending, receive_all(&far, 700)).await;
                assert!(received == data && end.is_ok(), "seed {seed}");
                // The other way is still open.
                far.put(&[b"answer"]).await.unwrap();
                drop(far);
                assert_eq!(receive_all(&near, 100).await, (b"answer".to_vec(), Ok(())));
            });
        }
    }

    #[test]
    fn a_cut_loses_a_tail_of_both_ways() {
        let mut lens = Vec::new();
        for seed in 0..200 {
            let world = World::new(seed);
            let (near, far) = Wire::pair(&world, 5000);
            if seed % 2 == 0 {
                near.cut_after_sending(3333);
            }
            let len = world.run(async move {
                let data = bytes(20_000);
                if seed % 2 == 1 {
                    let soon = Duration::from_micros(50);
                    far.cable.world.later(soon, Rc::new(Cutter(far.cable.clone())), 0);
                }
                let sending = send_all(&near, &data, 1000);
                let (_, (received, end)) = join(sending, receive_all(&far, 700)).await;
                assert!(near.is_cut());
                assert_eq!(end.unwrap_err().kind, IoErrorKind::Closed);
                assert!(data.starts_with(&received));
                assert_eq!(receive_all(&near, 10).await.1.unwrap_err().kind, IoErrorKind::Closed);
                assert_eq!(near.put(&[b"late"]).await.unwrap_err().kind, IoErrorKind::Closed);
                received.len()
            });
            assert!(len <= 3333 || seed % 2 == 1);
            lens.push(len);
        }
        lens.sort_unstable();
        lens.dedup();
        assert!(lens.len() > 50, "always at the same bytes: {lens:?}");
    }

    struct Cutter(Rc<Cable>);

    impl Happening for Cutter {
        fn happen(self: Rc<Self>, _world: &World, _op: u32) {
            self.0.cut();
        }
    }

    #[test]
    fn shutting_down_ends_both_directions() {
        for seed in 0..50 {
            let world = World::new(seed);
            let (near, far) = Wire::pair(&world, 100);
            world.run(async move {
                near.put(&[&bytes(100)]).await.unwrap();
                // There is no room: this waits until nobody listens any more. Whether that is known by then varies.
                let late = async { near.put(&[b"void"]).await.ok() };
                join(late, async { far.shutdown() }).await;
                let mut buf = [0; 10];
                assert_eq!(far.take(&mut buf).await, Ok(0));
                assert_eq!(near.take(&mut buf).await, Ok(0));
                assert_eq!(near.put(&[b"late"]).await.unwrap_err().kind, IoErrorKind::Closed);
            });
        }
    }
}
