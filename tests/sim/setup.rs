//! Makes arrays of simulated disks, and starts them.

use std::rc::Rc;

use raidd::engine::{Array, AssembleOptions, Memory, Refusal, assemble, create, load};
use raidd::md::create::{CreateSpec, plan};
use raidd::units::Sector;

use crate::disk::{Disk, Platter};
use crate::world::World;

pub type SimArray = Rc<Array<Disk, World>>;

/// A shape to make an array of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub level: i32,
    pub layout: u32,
    pub chunk_kib: u64,
    pub slots: usize,
    /// How many slots may be empty and all data still be there, whichever they are.
    pub spare_slots: usize,
}

pub const fn shape(level: i32, layout: u32, chunk_kib: u64, slots: usize, spare_slots: usize) -> Shape {
    Shape { level, layout, chunk_kib, slots, spare_slots }
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

/// Bytes of a member: a megabyte of metadata and a little data.
const MEMBER_BYTES: usize = (1 << 20) + (192 << 10);

pub fn platters(shape: &Shape, seed: u64) -> Vec<Platter> {
    let odd = |slot: usize| if shape.level == 0 { slot * 20 * 1024 } else { 0 };
    (0..shape.slots).map(|slot| Platter::blank(MEMBER_BYTES + odd(slot), seed ^ slot as u64)).collect()
}

pub fn memory() -> Memory {
    Memory::new(Memory::MIN_BYTES).unwrap()
}

/// Makes a new array on platters; `None` is a missing member.
pub async fn create_array(
    world: &World,
    shape: &Shape,
    platters: &[Option<Platter>],
    block: u64,
    zero: bool,
    bitmap: bool,
) -> Result<SimArray, Refusal> {
    let disks: Vec<_> = platters.iter().flatten().map(|platter| Disk::new(platter, world, block)).collect();
    let spec = CreateSpec {
        name: "sim:test",
        level: shape.level,
        layout: shape.layout,
        chunk: Sector(shape.chunk_kib * 2),
        members: platters
            .iter()
            .map(|p| p.as_ref().map(|p| Sector::floor(p.bytes.borrow().len() as u64)))
            .collect(),
        spares: vec![],
        size: None,
        bitmap: bitmap && shape.level != 0,
        ppl: false,
        clean: zero,
        set_uuid: [7; 16],
        device_uuids: (0..disks.len() as u8).map(|i| [i + 1; 16]).collect(),
        wall_seconds: 1_700_000_000,
    };
    let created = plan(&spec).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
    let memory = memory();
    let new: Vec<_> = disks
        .iter()
        .enumerate()
        .map(|(i, disk)| create::NewMember { device: disk.clone(), label: format!("disk{i}") })
        .collect();
    create::write(&new, &created, zero, &memory.metadata).await?;
    start(world, disks, AssembleOptions { fresh: true, ..Default::default() }).await
}

/// Assembles an array from what is on platters.
pub async fn assemble_array(
    world: &World,
    platters: &[Platter],
    block: u64,
    options: AssembleOptions,
) -> Result<SimArray, Refusal> {
    let disks = platters.iter().map(|platter| Disk::new(platter, world, block)).collect();
    start(world, disks, options).await
}

async fn start(world: &World, disks: Vec<Disk>, options: AssembleOptions) -> Result<SimArray, Refusal> {
    let memory = memory();
    let mut found = Vec::new();
    for (i, disk) in disks.into_iter().enumerate() {
        found.push(load(disk, format!("disk{i}"), &memory.metadata).await?);
    }
    let array = assemble(found, &options, &memory, world).await?;
    array.start();
    Ok(array)
}
