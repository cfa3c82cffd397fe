//! The load generator: what an NBD server gets done when its client costs next to nothing.
//!
//! - One thread per connection, `depth` requests in flight on each, all slots always full until the time is over.
//! - Requests for free slots leave in one send; one receive takes as many replies as are there. Data that was read is
//!   thrown away in the receive buffer, which is small enough to stay in the cache.
//! - A latency runs from before the send that carries a request to after the receive that ends its reply.
//! - A reply that is an error, or none of ours, ends the run: a number made of failures would look fast.

use std::io::{IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::greeting::greet;
use crate::histogram::Histogram;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
/// Lets several large writes be on their way without a switch to the server for each.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// What a Unix socket holds by default, and a bit: a receive seldom gets more.
const RECEIVE_BUFFER_BYTES: usize = 256 << 10;
/// Requests of one send: two slices each, and the kernel takes 1024.
const BATCH_MAX: usize = 512;

/// Which commands are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// Reads only.
    Read,
    /// Writes only.
    Write,
    /// Seven reads to three writes.
    Mixed,
}

/// Where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// One after another; each connection has a range of its own.
    Seq,
    /// Anywhere.
    Rand,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server's Unix socket.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
    /// Reads, writes or both.
    pub direction: Direction,
    /// Sequential or random.
    pub order: Order,
    /// Bytes of each request.
    pub block_bytes: usize,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// How many connections.
    pub connections: usize,
    /// For how long.
    pub duration: Duration,
    /// Use no more of the export than this.
    pub span_bytes: Option<u64>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests done.
    pub ios: u64,
    /// From the first request to the last reply.
    pub secs: f64,
    /// Requests a second.
    pub iops: f64,
    /// Millions of bytes a second.
    pub mbps: f64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// What 99 % of the requests did not exceed, in microseconds.
    pub p99_us: f64,
    /// What 99.9 % of the requests did not exceed, in microseconds.
    pub p999_us: f64,
    /// CPU seconds of the client, user and system.
    pub client_cpu_s: f64,
}

/// xorshift64*: good enough to pick blocks, and nearly free.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(drawn) * u128::from(limit)) >> 64) as u64
    }
}

/// A place for one request in flight; its number is the request's cookie.
#[derive(Clone, Copy)]
struct Slot {
    sent: Instant,
    is_write: bool,
    in_flight: bool,
}

/// The reply whose data is coming in.
struct Incoming {
    slot: usize,
    left_bytes: usize,
}

struct Connection<'a> {
    load: &'a Load,
    stream: UnixStream,
    random: Random,
    /// The blocks of this connection: first, next and end.
    blocks: (u64, u64, u64),
    slots: Vec<Slot>,
    free: Vec<usize>,
    headers: Vec<[u8; REQUEST_BYTES]>,
    payload: Vec<u8>,
    buffer: Vec<u8>,
    /// The part of the buffer that holds unread bytes.
    unread: (usize, usize),
    incoming: Option<Incoming>,
    latencies: Histogram,
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_BYTES] {
    let mut out = [0; REQUEST_BYTES];
    out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    out[6..8].copy_from_slice(&command.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..24].copy_from_slice(&offset.to_be_bytes());
    out[24..].copy_from_slice(&len.to_be_bytes());
    out
}

impl<'a> Connection<'a> {
    fn open(load: &'a Load, number: usize) -> Result<Self> {
        let connect = |path: &Path| UnixStream::connect(path).with_context(|| path.display().to_string());
        let mut stream = connect(&load.socket)?;
        setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
        let size_bytes = greet(&mut stream, &load.export)?.size_bytes;
        let used_bytes = load.span_bytes.map_or(size_bytes, |span| span.min(size_bytes));
        let blocks_each = used_bytes / load.block_bytes as u64 / load.connections as u64;
        ensure!(blocks_each > 0, "the export of {size_bytes} bytes is too small for that");
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1));
        let mut payload = vec![0; load.block_bytes];
        // No server and no disk below it finds anything to spare in this.
        payload.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
        let first = blocks_each * number as u64;
        let blocks = match load.order {
            Order::Seq => (first, first, first + blocks_each),
            Order::Rand => (0, 0, blocks_each * load.connections as u64),
        };
        let idle = Slot { sent: Instant::now(), is_write: false, in_flight: false };
        Ok(Self {
            load,
            stream,
            random,
            blocks,
            slots: vec![idle; load.depth],
            free: (0..load.depth).collect(),
            headers: vec![[0; REQUEST_BYTES]; load.depth.min(BATCH_MAX)],
            payload,
            buffer: vec![0; RECEIVE_BUFFER_BYTES],
            unread: (0, 0),
            incoming: None,
            latencies: Histogram::default(),
        })
    }

    fn run(mut self, began: Instant) -> Result<Histogram> {
        let end = began + self.load.duration;
        let mut now = Instant::now();
        loop {
            while now < end && !self.free.is_empty() {
                self.send(now)?;
            }
            if self.free.len() == self.slots.len() {
                break;
            }
            now = self.receive()?;
        }
        self.stream.write_all(&request(COMMAND_DISCONNECT, 0, 0, 0))?;
        Ok(self.latencies)
    }

    fn next_block(&mut self) -> u64 {
        let (first, next, end) = self.blocks;
        match self.load.order {
            Order::Rand => self.random.below(end),
            Order::Seq => {
                self.blocks.1 = if next + 1 == end { first } else { next + 1 };
                next
            }
        }
    }

    /// A request for every free slot, in one send.
    fn send(&mut self, now: Instant) -> Result<()> {
        let (count, block_bytes) = (self.free.len().min(BATCH_MAX), self.load.block_bytes);
        let mut any_write = false;
        let mut writes = [false; BATCH_MAX];
        for (place, write) in writes.iter_mut().enumerate().take(count) {
            let Some(slot) = self.free.pop() else { break };
            let is_write = match self.load.direction {
                Direction::Read => false,
                Direction::Write => true,
                Direction::Mixed => self.random.below(10) < 3,
            };
            let offset = self.next_block() * block_bytes as u64;
            self.slots[slot] = Slot { sent: now, is_write, in_flight: true };
            let command = if is_write { COMMAND_WRITE } else { COMMAND_READ };
            self.headers[place] = request(command, slot as u64, offset, block_bytes as u32);
            *write = is_write;
            any_write |= is_write;
        }
        let headers = &self.headers[..count];
        if !any_write {
            return self.stream.write_all(headers.as_flattened()).context("send");
        }
        let mut slices = Vec::with_capacity(2 * count);
        for (header, is_write) in headers.iter().zip(writes) {
            slices.push(IoSlice::new(header));
            if is_write {
                slices.push(IoSlice::new(&self.payload));
            }
        }
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let sent = self.stream.write_vectored(left).context("send")?;
            ensure!(sent > 0, "the server hung up");
            IoSlice::advance_slices(&mut left, sent);
        }
        Ok(())
    }

    /// Waits until at least one reply is complete; returns when the last bytes arrived.
    fn receive(&mut self) -> Result<Instant> {
        let free_before = self.free.len();
        loop {
            let (from, to) = self.unread;
            // Part of a header at most: data is taken out as it comes.
            self.buffer.copy_within(from..to, 0);
            let room = &mut self.buffer[to - from..];
            let received = self.stream.read(room).context("receive")?;
            ensure!(received > 0, "the server hung up");
            let now = Instant::now();
            self.unread = (0, to - from + received);
            self.take_replies(now)?;
            if self.free.len() > free_before {
                return Ok(now);
            }
        }
    }

    fn take_replies(&mut self, now: Instant) -> Result<()> {
        loop {
            let have = self.unread.1 - self.unread.0;
            if let Some(incoming) = &mut self.incoming {
                let taken = incoming.left_bytes.min(have);
                incoming.left_bytes -= taken;
                self.unread.0 += taken;
                if incoming.left_bytes > 0 {
                    return Ok(());
                }
                let slot = incoming.slot;
                self.incoming = None;
                self.finish(slot, now);
            } else {
                let Some(header) = self.buffer[self.unread.0..self.unread.1].first_chunk::<REPLY_BYTES>()
                else {
                    return Ok(());
                };
                let slot = self.parse(header)?;
                self.unread.0 += REPLY_BYTES;
                if self.slots[slot].is_write {
                    self.finish(slot, now);
                } else {
                    self.incoming = Some(Incoming { slot, left_bytes: self.load.block_bytes });
                }
            }
        }
    }

    /// The slot that a reply is for.
    fn parse(&self, header: &[u8; REPLY_BYTES]) -> Result<usize> {
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        ensure!(word(0) == REPLY_MAGIC, "what should be a simple reply begins with {:#x}", word(0));
        ensure!(word(4) == 0, "the server answered with error {}", word(4));
        let cookie = u64::from(word(8)) << 32 | u64::from(word(12));
        match self.slots.get(cookie as usize) {
            Some(slot) if slot.in_flight => Ok(cookie as usize),
            _ => bail!("a reply to request {cookie}, which is not in flight"),
        }
    }

    fn finish(&mut self, slot: usize, now: Instant) {
        self.latencies.record(now.duration_since(self.slots[slot].sent).as_nanos() as u64);
        self.slots[slot].in_flight = false;
        self.free.push(slot);
    }
}

/// CPU seconds of this process so far.
pub fn own_cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

impl Load {
    /// Runs it. Errors: the server cannot be reached, refuses, hangs up or answers with an error.
    pub fn run(&self) -> Result<Outcome> {
        ensure!(self.depth > 0 && self.connections > 0 && self.block_bytes > 0, "nothing to do");
        ensure!(u32::try_from(self.block_bytes).is_ok(), "blocks are too large");
        let opened: Result<Vec<_>> = (0..self.connections).map(|n| Connection::open(self, n)).collect();
        let cpu_before_s = own_cpu_seconds()?;
        let began = Instant::now();
        let done: Result<Vec<Histogram>> = thread::scope(|scope| {
            let threads: Vec<_> =
                opened?.into_iter().map(|connection| scope.spawn(move || connection.run(began))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Histogram>>| {
                thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?
            };
            threads.into_iter().map(join).collect()
        });
        let secs = began.elapsed().as_secs_f64();
        let mut latencies = Histogram::default();
        done?.iter().for_each(|histogram| latencies.merge(histogram));
        let ios = latencies.seen();
        Ok(Outcome {
            ios,
            secs,
            iops: ios as f64 / secs,
            mbps: ios as f64 * self.block_bytes as f64 / secs / 1e6,
            mean_us: latencies.mean_us(),
            p50_us: latencies.quantile_us(0.5),
            p99_us: latencies.quantile_us(0.99),
            p999_us: latencies.quantile_us(0.999),
            client_cpu_s: own_cpu_seconds()? - cpu_before_s,
        })
    }
}
