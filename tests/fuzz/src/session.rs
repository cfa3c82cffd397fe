//! One session, fed with bytes until their end, and everything that it answered.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use raidd::io::{Clock, ExtentKind, IoErrorKind, Pool, Spawn};
use raidd::nbd::{Attached, Export, ExportInfo, Exports, Limits, Pools, Stop, serve};

use crate::disk::{Call, Disk};
use crate::world::World;

/// Bytes of the export.
pub const SIZE: usize = 64 << 10;

/// Virtual time after which a session is over whose client has nothing more to say.
const PATIENCE: Duration = Duration::from_secs(1000);

thread_local! {
    static POOLS: RefCell<Option<Pools>> = const { RefCell::new(None) };
}

/// Memory for all sessions of this thread, one after another: mapping it would take longer than most of them.
fn pools() -> Pools {
    let pool = |mib: usize| Pool::new(mib << 20).expect("a little address space");
    let new = || Pools { messages: pool(1), receive: pool(1), payloads: pool(4) };
    POOLS.with_borrow_mut(|pools| pools.get_or_insert_with(new).clone())
}

#[derive(Clone)]
struct OneExport(Disk);

impl Exports for OneExport {
    type Device = Disk;

    fn list(&self) -> Vec<ExportInfo> {
        vec![ExportInfo { name: "vol0".into(), description: "the only one".into() }]
    }

    async fn open(&self, name: &str) -> Option<Export<Disk>> {
        let info = self.list().pop().filter(|info| name.is_empty() || info.name == name)?;
        Some(Export { name: info.name, description: info.description, device: self.0.clone() })
    }

    fn attach(&self, _name: &str) -> Option<Attached> {
        Some(Attached::unguarded())
    }
}

/// How the world around a session is.
#[derive(Clone, Copy)]
pub struct Surroundings {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Bytes that arrive at a time, at most.
    pub piece: usize,
    /// Operations on the disk take time, each another.
    pub slow: bool,
    /// All operations on the disk fail.
    pub fails: bool,
    /// The disk cannot zero by itself.
    pub zeroes_by_writing: bool,
}

impl Surroundings {
    /// As a byte of a fuzzer's says.
    pub fn new(byte: u8) -> Surroundings {
        let piece = [1, 5, 28, 100, 4096, usize::MAX, usize::MAX, usize::MAX][usize::from(byte & 7)];
        let bit = |bit: u8| byte & 1 << bit != 0;
        Surroundings {
            seed: byte.into(),
            piece,
            slow: bit(3),
            fails: bit(4) && bit(5),
            zeroes_by_writing: bit(6),
        }
    }
}

/// Feeds a session with bytes, sends no more then, and gives all that it answered. Panics if the session does not end, or
/// keeps memory.
pub fn feed(surroundings: Surroundings, bytes: Vec<u8>) -> Vec<u8> {
    let world = World::new(surroundings.seed);
    let disk = Disk::new(&world, SIZE);
    disk.set_extents(ExtentKind::Allocation, &[(8 << 10, 0), (24 << 10, 3), (32 << 10, 2)]);
    disk.fail_with(surroundings.fails.then_some(IoErrorKind::Media));
    if surroundings.zeroes_by_writing {
        disk.zero_by_writing();
    }
    if surroundings.slow {
        let random = world.clone();
        disk.delay(move |_: Call| Duration::from_micros(random.random(3000)));
    }
    let (ours, theirs) = world.wire(surroundings.piece, 256 << 10);
    let (ours, is_over) = (Rc::new(ours), Rc::new(Cell::new(false)));
    let pools = pools();
    let (over, exports, session_pools) = (is_over.clone(), OneExport(disk.clone()), pools.clone());
    let runtime = world.clone();
    world.spawn(async move {
        serve(theirs, exports, runtime, session_pools, Limits::default(), Stop::new()).await;
        over.set(true);
    });
    let writer = ours.clone();
    world.spawn(async move {
        // A session may end before it has heard everything.
        if writer.write(&bytes).await.is_ok() {
            writer.close_write();
        }
    });
    let clock = world.clone();
    let answered = world.run(async move {
        let mut answered = Vec::new();
        loop {
            let part = ours.read_some().await;
            if part.is_empty() {
                break;
            }
            answered.extend(part);
        }
        while !is_over.get() {
            assert!(clock.now() < PATIENCE, "the session does not end");
            clock.sleep(Duration::from_millis(1)).await;
        }
        answered
    });
    world.settle();
    assert_eq!(disk.busy(), 0, "something is still under way");
    for pool in [&pools.messages, &pools.receive, &pools.payloads] {
        assert_eq!(pool.free_bytes(), pool.total_bytes(), "memory has not come back");
    }
    answered
}

/// A number, most significant byte first.
pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// What is left to be looked at, front to back.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes; none if there are fewer.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}
