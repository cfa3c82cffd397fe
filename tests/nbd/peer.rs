//! A client under a test's full control, and the server it talks to.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use raidd::io::{Buf, Device, IoError, MAX_BUF_BYTES, Pool, Slice, Spawn, Stream};
use raidd::nbd::{
    Attached, Export, ExportInfo, Exports, Handover, Limits, MESSAGE_BYTES_PER_CONNECTION, Negotiated, Pools,
    Served, SessionEnd, Stop, negotiate, serve, take_over,
};

use crate::disk::Disk;
use crate::world::{Wire, World};

pub const EXPORT_NAME: u32 = 1;
pub const ABORT: u32 = 2;
pub const LIST: u32 = 3;
pub const STARTTLS: u32 = 5;
pub const INFO: u32 = 6;
pub const GO: u32 = 7;
pub const STRUCTURED_REPLY: u32 = 8;
pub const LIST_META_CONTEXT: u32 = 9;
pub const SET_META_CONTEXT: u32 = 10;
pub const EXTENDED_HEADERS: u32 = 11;

pub const ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
pub const ERR_UNSUP: u32 = 0x8000_0001;
pub const ERR_POLICY: u32 = 0x8000_0002;
pub const ERR_INVALID: u32 = 0x8000_0003;
pub const ERR_TLS_REQD: u32 = 0x8000_0005;
pub const ERR_UNKNOWN: u32 = 0x8000_0006;
pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
pub const ERR_TOO_BIG: u32 = 0x8000_0009;
pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;
pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;
pub const PAYLOAD_LEN: u16 = 32;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

/// A wire with more than one descriptor.
#[derive(Clone)]
struct Shared(Rc<Wire>);

impl Stream for Shared {
    async fn recv(&self, buf: Buf) -> Result<(usize, Buf), IoError> {
        self.0.recv(buf).await
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        self.0.send(data).await
    }

    fn shutdown(&self) {
        self.0.shutdown();
    }

    fn hung_up(&self) -> bool {
        self.0.hung_up()
    }
}

/// A server of the export "vol0" and of one that is going away, "leaving".
#[derive(Clone)]
pub struct Server {
    pub world: World,
    pub disk: Disk,
    pub pools: Pools,
    pub limits: Limits,
    pub stop: Stop,
    pub export_stop: Stop,
    pub may_list: bool,
    /// Clients attached to "vol0".
    pub attached: Rc<Cell<usize>>,
    pub piece: usize,
    pub capacity: usize,
}

struct Guard(Rc<Cell<usize>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Exports for Server {
    type Device = Disk;

    fn may_list(&self) -> bool {
        self.may_list
    }

    fn list(&self) -> Vec<ExportInfo> {
        let info = |name: &str| ExportInfo { name: name.into(), description: format!("the array {name}") };
        vec![info("vol0"), info("leaving")]
    }

    async fn open(&self, name: &str) -> Option<Export<Disk>> {
        let name = if name.is_empty() { "vol0" } else { name };
        let info = self.list().into_iter().find(|info| info.name == name)?;
        Some(Export { name: info.name, description: info.description, device: self.disk.clone() })
    }

    fn attach(&self, name: &str) -> Option<Attached> {
        if name == "leaving" {
            return None;
        }
        self.attached.set(self.attached.get() + 1);
        Some(Attached { guard: Box::new(Guard(self.attached.clone())), stop: self.export_stop.clone() })
    }
}

impl Server {
    pub fn new(world: &World, size_bytes: usize) -> Server {
        Server::of(world, Disk::new(world, size_bytes))
    }

    pub fn of(world: &World, disk: Disk) -> Server {
        Server {
            world: world.clone(),
            disk,
            pools: Pools {
                messages: Pool::new(8 * MESSAGE_BYTES_PER_CONNECTION).unwrap(),
                receive: Pool::new(MAX_BUF_BYTES).unwrap(),
                payloads: Pool::new(16 * MAX_BUF_BYTES).unwrap(),
            },
            limits: Limits::default(),
            stop: Stop::new(),
            export_stop: Stop::new(),
            may_list: true,
            attached: Rc::default(),
            piece: usize::MAX,
            capacity: 1 << 20,
        }
    }

    /// A new connection, nothing read yet.
    pub fn connect(&self) -> Peer {
        self.connect_through(|wire| wire)
    }

    /// A new connection that the server has something around.
    pub fn connect_through<S: Stream + 'static>(&self, wrap: impl FnOnce(Wire) -> S) -> Peer {
        let (ours, theirs) = self.world.wire(self.piece, self.capacity);
        let end = Rc::new(Cell::new(None));
        let (slot, server, theirs) = (end.clone(), self.clone(), wrap(theirs));
        self.world.spawn(async move {
            let world = server.world.clone();
            let (pools, limits, stop) = (server.pools.clone(), server.limits, server.stop.clone());
            slot.set(Some(serve(theirs, server, world, pools, limits, stop).await));
        });
        Peer { wire: ours, cookie: 0, end, log: RefCell::default() }
    }

    /// A new connection that is served anew, by another descriptor, whenever its traffic changes; `moves` counts that.
    pub fn connect_moving(&self, moves: Rc<Cell<usize>>) -> Peer {
        let (ours, theirs) = self.world.wire(self.piece, self.capacity);
        let end = Rc::new(Cell::new(None));
        let (slot, server, mut stream) = (end.clone(), self.clone(), Shared(Rc::new(theirs)));
        self.world.spawn(async move {
            let Server { world, pools, limits, stop, .. } = server.clone();
            let first = negotiate(stream.clone(), server.clone(), world, pools, limits, stop).await;
            let mut client: Negotiated<Shared, Disk, World> = first.unwrap_or_else(|end| panic!("{end}"));
            let end = loop {
                match client.serve_while_alike().await {
                    Served::Over(end) => break end,
                    Served::Changed(changed) => client = *changed,
                }
                assert!(client.is_portable());
                moves.set(moves.get() + 1);
                stream = Shared(stream.0.clone());
                let (handover, _before) = client.hand_over();
                let attached = server.attach("vol0").expect("it is not leaving");
                let Server { world, disk, pools, limits, stop, .. } = server.clone();
                client =
                    take_over(stream.clone(), handover, disk, attached, world, pools, limits, stop).await;
            };
            slot.set(Some(end));
        });
        Peer { wire: ours, cookie: 0, end, log: RefCell::default() }
    }

    /// A connection of the kernel's: in the transmission phase from the start.
    pub fn connect_kernel(&self) -> Peer {
        let (ours, theirs) = self.world.wire(self.piece, self.capacity);
        let end = Rc::new(Cell::new(None));
        let (slot, server) = (end.clone(), self.clone());
        self.world.spawn(async move {
            let attached = server.attach("vol0").expect("it is not leaving");
            let (world, disk, pools) = (server.world.clone(), server.disk.clone(), server.pools.clone());
            let handover = Handover::of_kernel(&disk.info(), &pools);
            let client =
                take_over(theirs, handover, disk, attached, world, pools, server.limits, server.stop);
            slot.set(Some(client.await.serve().await));
        });
        Peer { wire: ours, cookie: 0, end, log: RefCell::default() }
    }

    /// A connection in the transmission phase, told the block sizes or not.
    pub async fn enter(&self, block_sizes: bool) -> Peer {
        self.enter_by(self.connect(), block_sizes).await
    }

    /// The same for a connection that there is already.
    pub async fn enter_by(&self, peer: Peer, block_sizes: bool) -> Peer {
        peer.greet(3).await;
        let wanted: &[u16] = if block_sizes { &[3] } else { &[] };
        let replies = peer.option(GO, &info_data(b"vol0", wanted)).await;
        assert_eq!(replies.last().unwrap().0, ACK);
        peer
    }

    /// All memory has come back.
    pub fn assert_idle(&self) {
        assert_eq!(self.pools.payloads.free_bytes(), self.pools.payloads.total_bytes());
        assert_eq!(self.pools.messages.free_bytes(), self.pools.messages.total_bytes());
        assert_eq!(self.pools.receive.free_bytes(), self.pools.receive.total_bytes());
        assert_eq!((self.disk.busy(), self.attached.get()), (0, 0));
    }
}

pub struct Peer {
    pub wire: Wire,
    cookie: u64,
    end: Rc<Cell<Option<SessionEnd>>>,
    /// Cookies in the order in which they were answered.
    pub log: RefCell<Vec<u64>>,
}

pub fn info_data(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|info| info.to_be_bytes()));
    data
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn request_bytes(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    headed_bytes(0x2560_9513, command, flags, cookie, offset, &length.to_be_bytes())
}

/// A request with an extended header.
pub fn extended_bytes(command: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    headed_bytes(0x21e4_1c71, command, flags, cookie, offset, &length.to_be_bytes())
}

fn headed_bytes(magic: u32, command: u16, flags: u16, cookie: u64, offset: u64, length: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length);
    bytes
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_data(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let text = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let mut data = [text(name), (queries.len() as u32).to_be_bytes().to_vec()].concat();
    data.extend(queries.iter().flat_map(|query| text(query)));
    data
}

/// One chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub done: bool,
    pub kind: u16,
    pub cookie: u64,
    /// Only with extended headers.
    pub offset: Option<u64>,
    pub payload: Vec<u8>,
}

pub const CHUNK_NONE: u16 = 0;
pub const CHUNK_DATA: u16 = 1;
pub const CHUNK_STATUS: u16 = 5;
pub const CHUNK_STATUS_EXT: u16 = 6;
pub const CHUNK_ERROR: u16 = 0x8001;

impl Chunk {
    /// An error's number and text.
    pub fn error(&self) -> (u32, String) {
        assert_eq!(self.kind, CHUNK_ERROR, "{self:?}");
        assert_eq!(be(&self.payload[4..6]) as usize, self.payload.len() - 6);
        (be(&self.payload[..4]) as u32, String::from_utf8(self.payload[6..].to_vec()).unwrap())
    }

    /// A status's context and extents.
    pub fn status(&self) -> (u32, Vec<(u64, u64)>) {
        let (head, width) = match self.kind {
            CHUNK_STATUS => (4, 4),
            CHUNK_STATUS_EXT => (8, 8),
            _ => panic!("{self:?}"),
        };
        let extents = self.payload[head..].chunks_exact(2 * width);
        assert!(extents.remainder().is_empty());
        let extents: Vec<_> = extents.map(|bytes| (be(&bytes[..width]), be(&bytes[width..]))).collect();
        assert!(width == 4 || be(&self.payload[4..8]) == extents.len() as u64);
        (be(&self.payload[..4]) as u32, extents)
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl Peer {
    /// Why the server thinks that the connection is over, if it is.
    pub fn end(&self) -> Option<SessionEnd> {
        self.end.get()
    }

    pub async fn greet(&self, client_flags: u32) {
        let greeting = self.wire.read(18).await;
        assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&client_flags.to_be_bytes()).await;
    }

    pub async fn send(&self, bytes: &[u8]) {
        self.wire.write(bytes).await.expect("the server takes it");
    }

    /// All replies to an option, types and data; the last is an ACK or an error.
    pub async fn option(&self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option_bytes(option, data)).await;
        self.option_replies(option).await.expect("an answer")
    }

    /// `None` if the server closes instead.
    pub async fn option_replies(&self, option: u32) -> Option<Vec<(u32, Vec<u8>)>> {
        let mut replies = Vec::new();
        loop {
            let header = self.wire.read(20).await;
            if header.is_empty() {
                return None;
            }
            assert_eq!(be(&header[..8]), 0x0003_e889_0455_65a9);
            assert_eq!(be(&header[8..12]), u64::from(option));
            let kind = be(&header[12..16]) as u32;
            let data = self.wire.read(be(&header[16..20]) as usize).await;
            assert!(kind != ACK || data.is_empty());
            replies.push((kind, data));
            if kind == ACK || kind >> 31 == 1 {
                return Some(replies);
            }
        }
    }

    pub async fn expect_close(&self) {
        assert_eq!(self.wire.read(1).await, b"", "the server should have closed");
    }

    /// Sends a request; its payload is whatever `payload` is.
    pub async fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = request_bytes(command, flags, self.cookie, offset, len);
        bytes.extend(payload);
        self.send(&bytes).await;
        self.cookie
    }

    /// The next reply's cookie and error; `None` at the end.
    pub async fn reply(&self) -> Option<(u64, u32)> {
        let header = self.wire.read(16).await;
        if header.is_empty() {
            return None;
        }
        assert_eq!(be(&header[..4]), 0x6744_6698);
        let cookie = be(&header[8..]);
        self.log.borrow_mut().push(cookie);
        Some((cookie, be(&header[4..8]) as u32))
    }

    /// The next chunk of a reply.
    pub async fn chunk(&self) -> Chunk {
        let mut header = self.wire.read(20).await;
        let offset = match be(&header[..4]) {
            0x668e_33ef => None,
            0x6e8a_278c => {
                header.extend(self.wire.read(12).await);
                Some(be(&header[16..24]))
            }
            magic => panic!("a reply's magic is {magic:x}"),
        };
        let length = if offset.is_some() { &header[24..32] } else { &header[16..20] };
        let payload = self.wire.read(be(length) as usize).await;
        let flags = be(&header[4..6]);
        assert!(flags <= 1);
        let (kind, cookie) = (be(&header[6..8]) as u16, be(&header[8..16]));
        Chunk { done: flags == 1, kind, cookie, offset, payload }
    }

    /// A request that is not a READ, alone.
    pub async fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u32 {
        let cookie = self.request(command, flags, offset, len, payload).await;
        let (answered, error) = self.reply().await.expect("a reply");
        assert_eq!(answered, cookie);
        error
    }

    pub async fn read(&mut self, flags: u16, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        match self.ask(READ, flags, offset, len, &[]).await {
            0 => Ok(self.wire.read(len as usize).await),
            error => Err(error),
        }
    }

    pub async fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.ask(WRITE, flags, offset, data.len() as u32, data).await
    }
}
