//! What a request costs, counted and not timed: allocations, and calls of the kernel.
//!
//! The real reactor, session and engine over files, a client on the other end of a socket that allocates nothing while it
//! counts. Everything in this process is counted, so there is one test here. Bounds are above what is seen, by as much as
//! batches may come out smaller on a busy machine.

use std::alloc::System;
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;

use raidd::engine::{Array, AssembleOptions, Memory, assemble, create, load};
use raidd::io::{Buf, Device, DeviceInfo, Fua, IoError, Pool, Slice, Zeroing};
use raidd::md::create::{CreateSpec, plan};
use raidd::nbd::{Attached, Client, Export, ExportInfo, Exports, Limits, Pools, Stop, serve};
use raidd::reactor::{Disk, LocalRuntime, OpenOptions, OpenedDisk, ReactorHandle, Socket, runtime, start};
use raidd::units::Sector;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK: usize = 4096;
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
const MEMBER_BYTES: u64 = 16 << 20;

#[derive(Clone)]
struct Shared(Rc<Array<Disk, LocalRuntime>>);

impl Device for Shared {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    async fn read(&self, offset_bytes: u64, buf: Buf) -> Result<Buf, IoError> {
        self.0.read(offset_bytes, buf).await
    }

    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        self.0.write(offset_bytes, data, fua).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, zeroing: Zeroing, fua: Fua) -> Result<(), IoError> {
        self.0.write_zeroes(at, len, zeroing, fua).await
    }

    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        self.0.discard(offset_bytes, len_bytes).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.0.flush().await
    }
}

#[derive(Clone)]
struct One(Shared);

impl Exports for One {
    type Device = Shared;

    fn list(&self) -> Vec<ExportInfo> {
        Vec::new()
    }

    async fn open(&self, name: &str) -> Option<Export<Shared>> {
        Some(Export { name: name.to_owned(), description: String::new(), device: self.0.clone() })
    }

    fn attach(&self, _name: &str) -> Option<Attached> {
        Some(Attached::unguarded())
    }
}

thread_local! {
    static ARRAYS: RefCell<Vec<Rc<Array<Disk, LocalRuntime>>>> = const { RefCell::new(Vec::new()) };
}

/// Makes an array of files and serves it to the other end of `socket`.
async fn serve_new_array(level: i32, disks: Vec<OpenedDisk>, socket: OwnedFd) {
    let memory = Memory::new(Memory::MIN_BYTES).unwrap();
    let spec = CreateSpec {
        name: "cost",
        level,
        layout: if level == 1 { 0 } else { 2 },
        chunk: Sector(if level == 1 { 0 } else { 128 }),
        members: disks.iter().map(|disk| Some(Sector::floor(disk.info().size_bytes))).collect(),
        spares: vec![],
        size: None,
        bitmap: true,
        ppl: false,
        clean: true,
        set_uuid: [level as u8; 16],
        device_uuids: (0..disks.len() as u8).map(|number| [number + 1; 16]).collect(),
        wall_seconds: 1_700_000_000,
    };
    let created = plan(&spec).unwrap();
    let disks: Vec<Disk> = disks.into_iter().map(Disk::new).collect();
    let label = |number: usize| format!("disk{number}");
    let new =
        |(number, device): (usize, &Disk)| create::NewMember { device: device.clone(), label: label(number) };
    let new: Vec<_> = disks.iter().enumerate().map(new).collect();
    create::write(&new, &created, false, &memory.metadata, &runtime()).await.unwrap();
    drop(new);
    let mut found = Vec::new();
    for (number, disk) in disks.into_iter().enumerate() {
        found.push(load(disk, label(number), &memory.metadata, &runtime()).await.unwrap());
    }
    let options = AssembleOptions { fresh: true, ..Default::default() };
    let array = assemble(found, &options, &memory, &runtime()).await.unwrap();
    array.start();
    ARRAYS.with_borrow_mut(|arrays| arrays.push(array.clone()));
    let pool = |mib: usize| Pool::new(mib << 20).unwrap();
    let pools = Pools { messages: pool(1), receive: pool(4), payloads: pool(32) };
    let socket = Socket::from_fd(socket);
    serve(socket, One(Shared(array)), runtime(), pools, Limits::default(), Stop::new()).await;
}

/// Sends `depth` requests at once and takes all their replies, again and again; what each request cost.
struct Load {
    socket: UnixStream,
    requests: Vec<u8>,
    replies: Vec<u8>,
    depth: usize,
}

impl Load {
    fn new(socket: UnixStream, is_write: bool, depth: usize, blocks: usize) -> Load {
        let mut requests = Vec::new();
        for number in 0..depth {
            requests.extend(0x2560_9513_u32.to_be_bytes());
            requests.extend(0u16.to_be_bytes());
            requests.extend(u16::from(is_write).to_be_bytes());
            requests.extend((number as u64).to_be_bytes());
            requests.extend(((number * 7919 % blocks * BLOCK) as u64).to_be_bytes());
            requests.extend((BLOCK as u32).to_be_bytes());
            requests.extend(vec![number as u8; if is_write { BLOCK } else { 0 }]);
        }
        assert_eq!(requests.len(), depth * (REQUEST_BYTES + if is_write { BLOCK } else { 0 }));
        let replies = vec![0; depth * (REPLY_BYTES + if is_write { 0 } else { BLOCK })];
        Load { socket, requests, replies, depth }
    }

    fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.socket.write_all(&self.requests).unwrap();
            self.socket.read_exact(&mut self.replies).unwrap();
            assert_eq!(self.replies[4..8], [0; 4], "an error");
        }
    }

    /// Allocations and calls of the kernel for each request.
    fn count(&mut self, reactor: &ReactorHandle, rounds: usize) -> (f64, f64) {
        self.run(rounds / 4);
        let (region, calls) = (Region::new(ALLOCATOR), reactor.ring_calls());
        self.run(rounds);
        let change = region.change();
        let allocations = change.allocations + change.reallocations;
        let requests = (rounds * self.depth) as f64;
        (allocations as f64 / requests, (reactor.ring_calls() - calls) as f64 / requests)
    }
}

fn connect(reactor: &ReactorHandle, folder: &Path, level: i32, members: usize) -> UnixStream {
    let disks = (0..members).map(|number| {
        let path = folder.join(format!("raid{level}-{number}"));
        std::fs::write(&path, vec![0; MEMBER_BYTES as usize]).unwrap();
        Disk::open(&path, OpenOptions::default()).unwrap()
    });
    let disks: Vec<OpenedDisk> = disks.collect();
    let (ours, theirs) = UnixStream::pair().unwrap();
    reactor
        .post(move || drop(runtime().handle().call(move || serve_new_array(level, disks, theirs.into()))))
        .unwrap();
    Client::new(&ours, "cost").unwrap();
    ours
}

#[test]
fn requests_cost_what_they_did() {
    // Where members are in memory nothing waits for a disk, so batches are as large as they can be.
    let shm = Path::new("/dev/shm");
    let folder =
        tempfile::tempdir_in(if shm.is_dir() { shm } else { Path::new(env!("CARGO_TARGET_TMPDIR")) })
            .unwrap();
    let (reactor, thread) = start(0, "cost").unwrap();
    println!("{:<8} {:>6} {:>6} {:>12} {:>13}", "", "level", "depth", "allocations", "kernel calls");
    for (level, members) in [(1, 2), (5, 4), (6, 6)] {
        let socket = connect(&reactor, folder.path(), level, members);
        let blocks = (MEMBER_BYTES as usize >> 1) / BLOCK;
        for (is_write, depth, allocations_max, calls_max) in
            [(false, 1, 8.0, 5.0), (false, 32, 1.0, 0.5), (true, 32, 32.0, 1.0)]
        {
            let mut load = Load::new(socket.try_clone().unwrap(), is_write, depth, blocks);
            let (allocations, calls) = load.count(&reactor, 400);
            let what = if is_write { "write" } else { "read" };
            println!("{what:<8} {level:>6} {depth:>6} {allocations:>12.2} {calls:>13.2}");
            assert!(allocations <= allocations_max, "{what} at depth {depth}: {allocations} allocations");
            assert!(calls <= calls_max, "{what} at depth {depth}: {calls} calls of the kernel");
        }
    }
    reactor.stop();
    thread.join().unwrap();
}
