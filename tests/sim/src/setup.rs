//! Makes arrays of simulated disks, and starts them.

use std::cell::RefCell;
use std::rc::Rc;

use raidd::engine::{Array, AssembleOptions, Found, Memory, Refusal, assemble, create, load};
use raidd::io::{MAX_BUF_BYTES, Pool};
use raidd::md::create::{CreateSpec, plan};
use raidd::md::{Bitmap, Created};
use raidd::nbd::{MESSAGE_BYTES_PER_CONNECTION, Pools};
use raidd::units::Sector;

use crate::disk::{Disk, Platter};
use crate::world::World;

/// The engine's array, on simulated disks.
pub type SimArray = Rc<Array<Disk, World>>;

/// A shape to make an array of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// 0, 1, 4, 5, 6 or 10.
    pub level: i32,
    /// md's number.
    pub layout: u32,
    /// KiB of a chunk; 0 at level 1.
    pub chunk_kib: u64,
    /// Members.
    pub slots: usize,
    /// How many slots may be empty and all data still be there, whichever they are.
    pub spare_slots: usize,
    /// Whether it has partial parity logs.
    pub ppl: bool,
}

impl Shape {
    /// The same with partial parity logs.
    pub const fn with_ppl(self) -> Shape {
        Shape { ppl: true, ..self }
    }

    /// Bytes before the data of a member as small as these.
    pub const fn data_offset(&self) -> usize {
        if self.ppl { 2 << 20 } else { 1 << 20 }
    }
}

/// Writes a shape in one line.
pub const fn shape(level: i32, layout: u32, chunk_kib: u64, slots: usize, spare_slots: usize) -> Shape {
    Shape { level, layout, chunk_kib, slots, spare_slots, ppl: false }
}

/// Every level and layout, with small and odd member counts and chunks.
pub const SHAPES: &[Shape] = &[
    shape(0, 1, 4, 2, 0),
    shape(0, 2, 16, 3, 0),
    shape(0, 1, 12, 4, 0),
    shape(1, 0, 0, 2, 1),
    shape(1, 0, 0, 3, 2),
    shape(4, 0, 8, 3, 1),
    shape(5, 0, 4, 3, 1),
    shape(5, 1, 16, 4, 1),
    shape(5, 2, 64, 4, 1),
    shape(5, 2, 4, 2, 1),
    shape(5, 3, 8, 5, 1),
    shape(5, 4, 16, 3, 1),
    shape(5, 5, 4, 6, 1),
    shape(5, 2, 4, 3, 1).with_ppl(),
    shape(5, 0, 16, 4, 1).with_ppl(),
    shape(5, 5, 8, 5, 1).with_ppl(),
    shape(6, 0, 4, 4, 2),
    shape(6, 1, 8, 5, 2),
    shape(6, 2, 16, 4, 2),
    shape(6, 2, 4, 8, 2),
    shape(6, 3, 8, 6, 2),
    shape(6, 4, 4, 5, 2),
    shape(6, 5, 8, 4, 2),
    shape(6, 8, 4, 5, 2),
    shape(6, 9, 8, 4, 2),
    shape(6, 10, 16, 6, 2),
    shape(6, 16, 4, 5, 2),
    shape(6, 17, 8, 4, 2),
    shape(6, 18, 4, 6, 2),
    shape(6, 19, 8, 5, 2),
    shape(6, 20, 4, 4, 2),
    shape(10, 0x102, 16, 2, 1),
    shape(10, 0x102, 4, 5, 1),
    shape(10, 0x103, 8, 4, 2),
    shape(10, 0x201, 8, 4, 1),
    shape(10, 0x201, 4, 3, 1),
    shape(10, 0x10201, 8, 4, 1),
    shape(10, 0x10301, 4, 5, 2),
    shape(10, 0x202, 4, 4, 3),
];

/// Bytes of data on a member.
const MEMBER_BYTES: usize = 192 << 10;

/// Disks for a shape, full of garbage; they are torn at 512 bytes.
pub fn platters(shape: &Shape, seed: u64) -> Vec<Platter> {
    let odd = |slot: usize| if shape.level == 0 { slot * 20 * 1024 } else { 0 };
    let platter = |slot: usize| {
        let len = shape.data_offset() + MEMBER_BYTES + odd(slot);
        Platter::garbage(slot as u64, len, 512, seed ^ slot as u64)
    };
    (0..shape.slots).map(platter).collect()
}

thread_local! {
    static MEMORY: RefCell<Option<Memory>> = const { RefCell::new(None) };
    static PAYLOADS: RefCell<Option<Pool>> = const { RefCell::new(None) };
    static SESSIONS: RefCell<Option<Pools>> = const { RefCell::new(None) };
}

/// The engine's memory; one for all runs of a thread, which gives it back each time.
pub fn memory() -> Memory {
    let new = || Memory::new(Memory::MIN_BYTES).expect("16 MiB of address space");
    MEMORY.with_borrow_mut(|memory| memory.get_or_insert_with(new).clone())
}

/// Memory for what clients read and write; as above.
pub fn payloads() -> Pool {
    let new = || Pool::new(32 << 20).expect("32 MiB of address space");
    PAYLOADS.with_borrow_mut(|pool| pool.get_or_insert_with(new).clone())
}

/// Memory of NBD sessions, scarce; as above.
pub fn session_pools() -> Pools {
    let pool = |bytes| Pool::new(bytes).expect("a little address space");
    let new = || Pools {
        messages: pool(4 * MESSAGE_BYTES_PER_CONNECTION),
        receive: pool(MAX_BUF_BYTES),
        payloads: pool(4 * MAX_BUF_BYTES),
    };
    SESSIONS.with_borrow_mut(|pools| pools.get_or_insert_with(new).clone())
}

/// Forgets this thread's memory: some of it is in the hands of what panicked.
pub fn forget_memory() {
    MEMORY.set(None);
    PAYLOADS.set(None);
    SESSIONS.set(None);
}

/// Whether all memory of this thread has come back.
pub fn check_memory() -> Result<(), String> {
    let (memory, sessions) = (memory(), session_pools());
    let pools = [
        ("scratch", &memory.scratch),
        ("edges", &memory.edges),
        ("rescue", &memory.rescue),
        ("metadata", &memory.metadata),
        ("payloads", &payloads()),
        ("the sessions' messages", &sessions.messages),
        ("the sessions' payloads", &sessions.payloads),
    ];
    for (name, pool) in pools {
        if pool.free_bytes() != pool.total_bytes() {
            return Err(format!(
                "{} bytes of {name} never came back",
                pool.total_bytes() - pool.free_bytes()
            ));
        }
    }
    Ok(())
}

/// How a new array is made.
#[derive(Clone, Copy, Debug)]
pub struct Making {
    /// Bytes of the disks' blocks.
    pub block: u64,
    /// Zero the members first.
    pub zero: bool,
    /// Take the members' word for it that they agree.
    pub assume_clean: bool,
    /// Give it a write-intent bitmap, with a chunk of so many KiB (0: as mdadm would).
    pub bitmap_kib: Option<u64>,
    /// Distinguishes arrays.
    pub uuid: u8,
}

/// The metadata of a new array on these platters; `None` is a missing member.
pub fn planned(shape: &Shape, platters: &[Option<Platter>], making: &Making) -> Option<Created> {
    let size = |platter: &Platter| Sector::floor(platter.bytes().len() as u64);
    let spec = CreateSpec {
        name: "sim:test",
        level: shape.level,
        layout: shape.layout,
        chunk: Sector(shape.chunk_kib * 2),
        members: platters.iter().map(|platter| platter.as_ref().map(size)).collect(),
        spares: vec![],
        size: None,
        bitmap: making.bitmap_kib.is_some() && shape.level != 0 && !shape.ppl,
        ppl: shape.ppl,
        clean: making.zero || making.assume_clean,
        set_uuid: [making.uuid; 16],
        device_uuids: (0..platters.iter().flatten().count() as u8).map(|i| [i + 1; 16]).collect(),
        wall_seconds: 1_700_000_000,
    };
    let mut created = plan(&spec).ok()?;
    if let (Some(kib @ 1..), Some(bytes)) = (making.bitmap_kib, &created.bitmap) {
        created.bitmap = Some(finer(bytes, kib));
    }
    Some(created)
}

/// The same bitmap with smaller chunks, so that a small array has several bits.
fn finer(bytes: &[u8], chunk_kib: u64) -> Vec<u8> {
    let mut superblock = Bitmap::parse(bytes).expect("a new bitmap").superblock;
    superblock.chunk_bytes = (chunk_kib << 10) as u32;
    let mut finer = Bitmap::new(superblock, true).encode();
    assert!(finer.len() <= bytes.len(), "more bits than there is room for");
    finer.resize(bytes.len(), 0xff);
    finer
}

/// Makes a new array on platters; `None` is a missing member.
pub async fn make_array(
    world: &World,
    shape: &Shape,
    platters: &[Option<Platter>],
    making: &Making,
) -> Result<SimArray, Refusal> {
    let there: Vec<_> = platters.iter().flatten().cloned().collect();
    let created = planned(shape, platters, making).unwrap_or_else(|| panic!("{shape:?} is impossible"));
    let disk = |platter: &Platter| Disk::new(platter, world, making.block);
    let new = |platter: &Platter| create::NewMember { device: disk(platter), label: label(platter) };
    let new: Vec<_> = there.iter().map(new).collect();
    create::write(&new, &created, making.zero, &memory().metadata, world).await?;
    start(world, &there, making.block, AssembleOptions { fresh: true, ..Default::default() }).await
}

/// Makes a new array on platters, with or without a bitmap; `None` is a missing member.
pub async fn create_array(
    world: &World,
    shape: &Shape,
    platters: &[Option<Platter>],
    block: u64,
    zero: bool,
    bitmap: bool,
) -> Result<SimArray, Refusal> {
    let making = Making { block, zero, assume_clean: false, bitmap_kib: bitmap.then_some(0), uuid: 7 };
    make_array(world, shape, platters, &making).await
}

/// What a disk is called.
pub fn label(platter: &Platter) -> String {
    format!("disk{}", platter.number())
}

/// Assembles an array from what is on platters.
pub async fn assemble_array(
    world: &World,
    platters: &[Platter],
    block: u64,
    options: AssembleOptions,
) -> Result<SimArray, Refusal> {
    start(world, platters, block, options).await
}

/// Reads a disk's metadata.
pub async fn load_disk(world: &World, platter: &Platter, block: u64) -> Result<Found<Disk>, Refusal> {
    load(Disk::new(platter, world, block), label(platter), &memory().metadata, world).await
}

async fn start(
    world: &World,
    platters: &[Platter],
    block: u64,
    options: AssembleOptions,
) -> Result<SimArray, Refusal> {
    let mut found = Vec::new();
    for platter in platters {
        found.push(load_disk(world, platter, block).await?);
    }
    let array = assemble(found, &options, &memory(), world).await?;
    array.start();
    Ok(array)
}
