//! The client's end of one NBD connection: many requests under way, answered in any order. It shares no code with the
//! server, constants neither.
//!
//! Invariants:
//! - Requests and their payloads are sent in one piece each, one behind the other; nothing after a goodbye.
//! - A request is answered once: by its reply, or by `Closed` when the session behind the connection is over, so that
//!   nothing of it can happen any more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use raidd::io::{Buf, IoError, IoErrorKind, Slice};
use raidd::nbd::SessionEnd;

use crate::stream::{Bell, Wire};
use crate::world::World;

/// READ.
pub const READ: u16 = 0;
/// WRITE.
pub const WRITE: u16 = 1;
/// DISC.
const DISC: u16 = 2;
/// FLUSH.
pub const FLUSH: u16 = 3;
/// TRIM.
pub const TRIM: u16 = 4;
/// WRITE_ZEROES.
pub const WRITE_ZEROES: u16 = 6;
/// BLOCK_STATUS.
pub const BLOCK_STATUS: u16 = 7;
/// The flag FUA of a request.
pub const FUA: u16 = 1;
/// The flag NO_HOLE of a WRITE_ZEROES.
pub const NO_HOLE: u16 = 2;
/// The flag that a WRITE with an extended header must have.
const PAYLOAD_LEN: u16 = 32;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_LIST: u32 = 3;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const OPT_EXTENDED_HEADERS: u32 = 11;
const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const INFO_BLOCK_SIZE: u16 = 3;
const CAN_MULTI_CONN: u16 = 1 << 8;

const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_STATUS: u16 = 5;
const CHUNK_STATUS_EXT: u16 = 6;
const CHUNK_ERROR: u16 = 0x8001;

/// How requests and replies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Simple,
    Structured,
    Extended,
}

/// A request without its payload.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// READ, WRITE and so on.
    pub command: u16,
    /// FUA and so on.
    pub flags: u16,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u64,
}

impl Request {
    fn encode(&self, framing: Framing, cookie: u64) -> Vec<u8> {
        let is_extended = framing == Framing::Extended;
        let magic: u32 = if is_extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let own = if is_extended && self.command == WRITE { PAYLOAD_LEN } else { 0 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend((self.flags | own).to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        match is_extended {
            true => bytes.extend(self.length.to_be_bytes()),
            false => bytes.extend((self.length as u32).to_be_bytes()),
        }
        bytes
    }
}

/// What a request has brought.
#[derive(Debug)]
pub enum Got {
    /// Nothing but that it was done.
    Nothing,
    /// A READ's bytes.
    Data(Buf),
    /// For each context, in the order of its questions, lengths and flags.
    Status(Vec<Vec<(u64, u64)>>),
}

/// What a request has come to.
pub type Outcome = Result<Got, IoError>;

/// Where a request's outcome will be.
#[derive(Default)]
pub struct Answer {
    outcome: RefCell<Option<Outcome>>,
    here: Bell,
}

impl Answer {
    fn give(&self, outcome: Outcome) {
        *self.outcome.borrow_mut() = Some(outcome);
        self.here.ring();
    }

    /// Waits for it.
    pub async fn wait(&self) -> Outcome {
        self.here.until(|| self.outcome.borrow_mut().take()).await
    }
}

struct Pending {
    cookie: u64,
    request: Request,
    /// What is read goes here.
    buf: Option<Buf>,
    /// What has been told so far, by context.
    status: Vec<Vec<(u64, u64)>>,
    answer: Rc<Answer>,
}

enum Outgoing {
    Request(Vec<u8>, Vec<Slice>),
    Finish,
}

/// A connection in the transmission phase.
pub struct Connection {
    world: World,
    wire: Wire,
    framing: Framing,
    /// The ids of the contexts that were chosen.
    contexts: Vec<u32>,
    outgoing: RefCell<VecDeque<Outgoing>>,
    pending: RefCell<Vec<Pending>>,
    cookie: Cell<u64>,
    /// Nothing is sent any more but what is in the queue.
    is_leaving: Cell<bool>,
    /// Nothing will be received any more.
    is_deaf: Cell<bool>,
    changed: Bell,
}

/// What the handshake has told.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    size_bytes: u64,
    flags: u16,
    framing: Framing,
    contexts: Vec<u32>,
}

impl Connection {
    /// Shakes hands over `wire`, in one of the ways that there are. None if the server ends it first, or refuses.
    pub async fn open(world: &World, wire: Wire, name: &str, size_bytes: u64) -> Option<Connection> {
        let facts = shake(world, &wire, name).await?;
        if facts.size_bytes != size_bytes || facts.flags & CAN_MULTI_CONN == 0 {
            world.fail(format!("an export of {size_bytes} bytes introduces itself as {facts:?}"));
        }
        Some(Connection {
            world: world.clone(),
            wire,
            framing: facts.framing,
            contexts: facts.contexts,
            outgoing: RefCell::default(),
            pending: RefCell::default(),
            cookie: Cell::new(world.dice().bits()),
            is_leaving: Cell::new(false),
            is_deaf: Cell::new(false),
            changed: Bell::default(),
        })
    }

    /// Its socket.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Whether requests may be sent.
    pub fn is_open(&self) -> bool {
        !self.is_leaving.get() && !self.is_deaf.get()
    }

    /// Whether ranges may be asked about.
    pub fn can_ask_status(&self) -> bool {
        !self.contexts.is_empty()
    }

    /// Hands a request to the sender.
    pub fn submit(&self, request: Request, payload: Vec<Slice>, buf: Option<Buf>) -> Rc<Answer> {
        assert!(self.is_open(), "a request after the goodbye");
        let cookie = self.cookie.get().wrapping_add(1);
        self.cookie.set(cookie);
        let answer = Rc::new(Answer::default());
        let pending = Pending { cookie, request, buf, status: Vec::new(), answer: answer.clone() };
        self.pending.borrow_mut().push(pending);
        self.queue(Outgoing::Request(request.encode(self.framing, cookie), payload));
        answer
    }

    fn queue(&self, what: Outgoing) {
        self.outgoing.borrow_mut().push_back(what);
        self.changed.ring();
    }

    /// Leaves when what is in the queue has been sent: with a DISC, or by sending no more.
    pub fn leave(&self, says_so: bool) {
        if self.is_leaving.replace(true) {
            return;
        }
        if says_so {
            let goodbye = Request { command: DISC, flags: 0, offset: 0, length: 0 };
            self.queue(Outgoing::Request(goodbye.encode(self.framing, 0), Vec::new()));
        } else {
            self.queue(Outgoing::Finish);
        }
    }

    /// Sends what is submitted until the connection ends.
    pub async fn send(self: Rc<Connection>) {
        loop {
            let look = || {
                let some = !self.outgoing.borrow().is_empty();
                (some || self.is_deaf.get()).then(|| self.outgoing.borrow_mut().pop_front())
            };
            let sent = match self.changed.until(look).await {
                None => return,
                Some(Outgoing::Finish) => return self.wire.finish(),
                Some(Outgoing::Request(header, payload)) => {
                    let mut parts: Vec<&[u8]> = vec![&header];
                    parts.extend(payload.iter().map(|slice| &**slice));
                    self.wire.put(&parts).await
                }
            };
            if sent.is_err() {
                return; // The receiver hears of it, too.
            }
        }
    }

    /// Receives replies until the connection ends.
    pub async fn receive(self: Rc<Connection>) {
        while let Some(()) = self.receive_reply().await {}
        self.is_deaf.set(true);
        self.changed.ring();
    }

    async fn receive_reply(&self) -> Option<()> {
        match self.framing {
            Framing::Simple => self.receive_simple().await,
            Framing::Structured | Framing::Extended => self.receive_chunk().await,
        }
    }

    /// Takes the request of that cookie from those that wait.
    fn pending(&self, cookie: u64, header: &[u8], is_right: bool) -> Option<Pending> {
        let place = self.pending.borrow().iter().position(|pending| pending.cookie == cookie);
        let Some(place) = place.filter(|_| is_right) else {
            self.world.fail(format!("a reply to nothing: {header:x?}"));
            return None;
        };
        Some(self.pending.borrow_mut().remove(place))
    }

    /// Receives a READ's bytes. None if the connection ends; then it still waits.
    async fn receive_data(&self, mut pending: Pending) -> Option<()> {
        let mut buf = pending.buf.take();
        let taken = match &mut buf {
            Some(buf) => take_exact(&self.world, &self.wire, buf, false).await,
            None => Some(()),
        };
        if taken.is_none() {
            self.pending.borrow_mut().push(pending);
            return None;
        }
        pending.answer.give(Ok(buf.map_or(Got::Nothing, Got::Data)));
        Some(())
    }

    async fn receive_simple(&self) -> Option<()> {
        let mut header = [0; 16];
        take_exact(&self.world, &self.wire, &mut header, true).await?;
        let error = number(&header[4..8]) as u32;
        let is_right = header[..4] == 0x6744_6698_u32.to_be_bytes();
        let pending = self.pending(number(&header[8..]), &header, is_right)?;
        if error != 0 {
            pending.answer.give(Err(error_of(error)));
            return Some(());
        }
        self.receive_data(pending).await
    }

    async fn receive_chunk(&self) -> Option<()> {
        let is_extended = self.framing == Framing::Extended;
        let mut header = vec![0; if is_extended { 32 } else { 20 }];
        take_exact(&self.world, &self.wire, &mut header, true).await?;
        let magic: u32 = if is_extended { 0x6e8a_278c } else { 0x668e_33ef };
        let (flags, kind) = (number(&header[4..6]), number(&header[6..8]) as u16);
        let is_right = header[..4] == magic.to_be_bytes() && flags <= 1;
        let mut pending = self.pending(number(&header[8..16]), &header, is_right)?;
        let length = number(if is_extended { &header[24..] } else { &header[16..] }) as usize;
        if is_extended && number(&header[16..24]) != pending.request.offset {
            self.world.fail(format!("a chunk about another offset: {header:x?}"));
        }
        if kind == CHUNK_DATA {
            let mut offset = [0; 8];
            if take_exact(&self.world, &self.wire, &mut offset, false).await.is_none() {
                self.pending.borrow_mut().push(pending);
                return None;
            }
            let wanted = pending.buf.as_ref().map_or(0, |buf| buf.len());
            if flags != 1 || length != 8 + wanted || number(&offset) != pending.request.offset {
                self.world.fail(format!("data that was not asked for: {header:x?}"));
                return None;
            }
            return self.receive_data(pending).await;
        }
        let mut payload = vec![0; length.min(1 << 20)];
        if take_exact(&self.world, &self.wire, &mut payload, false).await.is_none() {
            self.pending.borrow_mut().push(pending);
            return None;
        }
        match kind {
            CHUNK_NONE if flags == 1 && length == 0 => pending.answer.give(Ok(Got::Nothing)),
            CHUNK_ERROR if flags == 1 && length >= 6 => {
                pending.answer.give(Err(error_of(number(&payload[..4]) as u32)));
            }
            CHUNK_STATUS | CHUNK_STATUS_EXT if (kind == CHUNK_STATUS_EXT) == is_extended => {
                self.take_status(&mut pending, &payload);
                if flags == 1 {
                    pending.answer.give(Ok(Got::Status(pending.status)));
                } else {
                    self.pending.borrow_mut().push(pending);
                }
            }
            _ => self.world.fail(format!("a chunk that makes no sense: {header:x?}")),
        }
        Some(())
    }

    fn take_status(&self, pending: &mut Pending, payload: &[u8]) {
        let (head, width) = if self.framing == Framing::Extended { (8, 8) } else { (4, 4) };
        let context = number(&payload[..4]) as u32;
        let extents = payload[head..].chunks_exact(2 * width);
        let extents: Vec<_> = extents.map(|two| (number(&two[..width]), number(&two[width..]))).collect();
        let covered: u64 = extents.iter().map(|extent| extent.0).sum();
        let is_next = self.contexts.get(pending.status.len()) == Some(&context);
        let length = pending.request.length;
        if !is_next || extents.is_empty() || covered > length || extents.iter().any(|extent| extent.0 == 0) {
            self.world.fail(format!("a strange status of {length} bytes: {context}: {extents:?}"));
        }
        pending.status.push(extents);
    }

    /// Waits until nothing comes any more.
    pub async fn ended(&self) {
        self.changed.until(|| self.is_deaf.get().then_some(())).await;
    }

    /// Tells all who wait that there will be no answer: the session is over. Says how many they were.
    pub fn bury(&self, end: SessionEnd) -> usize {
        self.outgoing.borrow_mut().clear();
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        for Pending { answer, .. } in &pending {
            answer.give(Err(IoError::new(IoErrorKind::Closed, "the session ended before it answered")));
        }
        self.world.say(|| format!("connection: over ({end}), {} requests unanswered", pending.len()));
        pending.len()
    }
}

/// What an errno says; the values are the protocol's.
fn error_of(errno: u32) -> IoError {
    let kind = match errno {
        1 => IoErrorKind::ReadOnly,
        5 => IoErrorKind::Media,
        28 => IoErrorKind::NoSpace,
        108 => IoErrorKind::ShuttingDown,
        _ => IoErrorKind::Invalid,
    };
    IoError { kind, context: "the server's answer", errno: Some(errno as i32) }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Fills `out`. None at the end, which may come in the middle only where somebody has cut the connection.
async fn take_exact(world: &World, wire: &Wire, out: &mut [u8], may_end: bool) -> Option<()> {
    let mut filled = 0;
    while filled < out.len() {
        match wire.take(&mut out[filled..]).await {
            Ok(0) | Err(_) => {
                if !(wire.is_cut() || may_end && filled == 0) {
                    world.fail(format!(
                        "the server ended the connection after {filled} of {} bytes",
                        out.len()
                    ));
                }
                return None;
            }
            Ok(count) => filled += count,
        }
    }
    Some(())
}

/// From the greeting to the last reply.
async fn shake(world: &World, wire: &Wire, name: &str) -> Option<Facts> {
    let mut greeting = [0; 18];
    take_exact(world, wire, &mut greeting, true).await?;
    if greeting != *b"NBDMAGICIHAVEOPT\0\x03" {
        world.fail(format!("a strange greeting: {greeting:x?}"));
    }
    wire.put(&[&3_u32.to_be_bytes()]).await.ok()?;
    if world.random(8) == 0 {
        send_option(wire, OPT_LIST, &[]).await?;
        while receive_option_reply(world, wire, OPT_LIST).await?.0 == REP_SERVER {}
    }
    let framing = match world.random(3) {
        0 => Framing::Simple,
        1 => Framing::Structured,
        _ => Framing::Extended,
    };
    let mut contexts = Vec::new();
    if framing != Framing::Simple {
        let is_extended = framing == Framing::Extended;
        let option = if is_extended { OPT_EXTENDED_HEADERS } else { OPT_STRUCTURED_REPLY };
        send_option(wire, option, &[]).await?;
        if receive_option_reply(world, wire, option).await?.0 != REP_ACK {
            return None;
        }
        contexts = choose_contexts(world, wire, name).await?;
    }
    let facts_of = |bytes: &[u8]| Facts {
        size_bytes: number(&bytes[..8]),
        flags: number(&bytes[8..10]) as u16,
        framing,
        contexts: contexts.clone(),
    };
    if framing != Framing::Extended && world.random(4) == 0 {
        // It is answered by what GO's INFO_EXPORT says, or not at all.
        send_option(wire, OPT_EXPORT_NAME, name.as_bytes()).await?;
        let mut facts = [0; 10];
        take_exact(world, wire, &mut facts, true).await?;
        return Some(facts_of(&facts));
    }
    let mut wanted = (name.len() as u32).to_be_bytes().to_vec();
    wanted.extend(name.as_bytes());
    if world.random(2) == 0 {
        wanted.extend([0, 1]);
        wanted.extend(INFO_BLOCK_SIZE.to_be_bytes());
    } else {
        wanted.extend([0, 0]);
    }
    send_option(wire, OPT_GO, &wanted).await?;
    let mut facts = None;
    loop {
        match receive_option_reply(world, wire, OPT_GO).await? {
            (REP_ACK, _) => return facts,
            (REP_INFO, data) if data.len() == 12 && data[..2] == [0, 0] => facts = Some(facts_of(&data[2..])),
            (REP_INFO, _) => {}
            _ => return None,
        }
    }
}

/// The ids of all contexts that there are.
async fn choose_contexts(world: &World, wire: &Wire, name: &str) -> Option<Vec<u32>> {
    let text = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let names = ["base:allocation", "raidd:health", "raidd:dirty"];
    let mut data = [text(name), (names.len() as u32).to_be_bytes().to_vec()].concat();
    data.extend(names.iter().flat_map(|name| text(name)));
    send_option(wire, OPT_SET_META_CONTEXT, &data).await?;
    let mut ids = Vec::new();
    loop {
        match receive_option_reply(world, wire, OPT_SET_META_CONTEXT).await? {
            (REP_ACK, _) => return Some(ids),
            (REP_META_CONTEXT, data) if data[4..] == *names[ids.len()].as_bytes() => {
                ids.push(number(&data[..4]) as u32);
            }
            _ => return None,
        }
    }
}

async fn send_option(wire: &Wire, option: u32, data: &[u8]) -> Option<()> {
    let length = (data.len() as u32).to_be_bytes();
    wire.put(&[b"IHAVEOPT", &option.to_be_bytes(), &length, data]).await.ok()
}

/// A reply's kind and data.
async fn receive_option_reply(world: &World, wire: &Wire, option: u32) -> Option<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    take_exact(world, wire, &mut header, true).await?;
    if number(&header[..8]) != 0x0003_e889_0455_65a9 || number(&header[8..12]) != u64::from(option) {
        world.fail(format!("a reply to another option: {header:x?}"));
    }
    let mut data = vec![0; number(&header[16..]) as usize];
    take_exact(world, wire, &mut data, false).await?;
    Some((number(&header[12..16]) as u32, data))
}
