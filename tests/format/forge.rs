//! Arrays in states that md leaves them in, forged: made and filled by the engine in memory, then changed by hand.

use raidd::engine::{AssembleOptions, Memory, create};
use raidd::io::{Device, Fua, MAX_BUF_BYTES, MemoryDevice, Pool};
use raidd::md::create::{CreateSpec, plan};
use raidd::md::{Features, Role, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock, bad_blocks};
use raidd::units::{MemberSlot, Sector};

use crate::members::{MemoryMember, open, stop};
use raidd_sim::random::Random;
use raidd_sim::world::World;

/// The members' bytes, and what the array holds.
#[derive(Clone)]
pub struct Forged {
    pub members: Vec<Vec<u8>>,
    pub content: Vec<u8>,
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub level: i32,
    pub layout: u32,
    pub chunk: u64,
    pub slots: usize,
}

pub const fn shape(level: i32, layout: u32, chunk: u64, slots: usize) -> Shape {
    Shape { level, layout, chunk, slots }
}

/// Sectors of a member: 1 MiB before the data, and little of that.
pub const MEMBER_SECTORS: u64 = 2048 + 1024;

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let random = Random::new(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

impl Forged {
    /// A clean array, full of noise.
    pub fn new(shape: Shape, spares: usize, bitmap: bool) -> Forged {
        let sizes = vec![MEMBER_SECTORS; shape.slots + spares];
        let devices: Vec<_> =
            sizes.iter().map(|size| MemoryDevice::new(vec![0; *size as usize * 512], 512)).collect();
        let spec = CreateSpec {
            name: "host:vol0",
            level: shape.level,
            layout: shape.layout,
            chunk: Sector(shape.chunk),
            members: vec![Some(Sector(MEMBER_SECTORS)); shape.slots],
            spares: vec![Sector(MEMBER_SECTORS); spares],
            size: None,
            bitmap,
            ppl: false,
            clean: true,
            set_uuid: [7; 16],
            device_uuids: (0..sizes.len() as u8).map(|number| [number + 1; 16]).collect(),
            wall_seconds: 1_700_000_000,
        };
        let created = plan(&spec).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
        let world = World::new(3);
        let new: Vec<_> = devices
            .iter()
            .map(|device| create::NewMember { device: device.clone(), label: "new".to_owned() })
            .collect();
        let runtime = world.clone();
        world.run(async move {
            let memory = Memory::new(Memory::MIN_BYTES).expect("memory");
            let written = create::write(&new, &created, false, &memory.metadata, &runtime).await;
            written.expect("nothing fails in memory");
        });
        let members: Vec<_> = devices
            .iter()
            .map(|device| MemoryMember { label: "new".to_owned(), device: device.clone() })
            .collect();
        let array = open(&world, &members, &AssembleOptions::default()).expect("a new array");
        let content = noise(4, array.size_bytes() as usize);
        let (writer, bytes) = (array.clone(), content.clone());
        world.run(async move {
            let pool = Pool::new(MAX_BUF_BYTES).expect("memory");
            for (number, part) in bytes.chunks(MAX_BUF_BYTES).enumerate() {
                let mut buf = pool.alloc(part.len()).await;
                buf.copy_from_slice(part);
                let at = (number * MAX_BUF_BYTES) as u64;
                writer.write(at, vec![buf.freeze()], Fua::No).await.expect("nothing fails in memory");
            }
        });
        stop(&world, array);
        Forged { members: devices.iter().map(MemoryDevice::content).collect(), content }
    }

    pub fn superblock(&self, index: usize) -> Superblock {
        let at = SUPERBLOCK_OFFSET_BYTES as usize;
        Superblock::parse(&self.members[index][at..at + SUPERBLOCK_BYTES]).expect("a superblock")
    }

    /// Changes a member's superblock.
    pub fn change(&mut self, index: usize, change: impl FnOnce(&mut Superblock)) {
        let mut superblock = self.superblock(index);
        change(&mut superblock);
        let bytes = superblock.encode();
        self.members[index][SUPERBLOCK_OFFSET_BYTES as usize..][..bytes.len()].copy_from_slice(&bytes);
    }

    /// The same in all members.
    pub fn change_all(&mut self, change: impl Fn(&mut Superblock)) {
        (0..self.members.len()).for_each(|index| self.change(index, &change));
    }

    /// A part of a member's data area.
    pub fn data(&mut self, index: usize, start: u64, end: u64) -> &mut [u8] {
        let first = self.superblock(index).data_offset.0;
        &mut self.members[index][((first + start) * 512) as usize..((first + end) * 512) as usize]
    }

    /// Overwrites a part of a member's data area with noise.
    pub fn spoil(&mut self, index: usize, start: u64, end: u64) {
        let data = self.data(index, start, end);
        let noise = noise(start ^ 0x5555, data.len());
        data.copy_from_slice(&noise);
    }

    /// A member that is rebuilt up to a sector; what follows is noise.
    pub fn half_rebuild(&mut self, index: usize, recovered: u64) {
        let end = self.superblock(index).data_size.0;
        self.spoil(index, recovered, end);
        self.change(index, |superblock| {
            superblock.feature_map.insert(Features::RECOVERY_OFFSET);
            superblock.recovery_offset = Sector(recovered);
        });
    }

    /// The last member, a spare, replaces that of a slot up to a sector; what follows is noise.
    pub fn half_replace(&mut self, slot: usize, recovered: u64) {
        let spare = self.members.len() - 1;
        let copy = self.data(slot, 0, recovered).to_vec();
        self.data(spare, 0, recovered).copy_from_slice(&copy);
        self.half_rebuild(spare, recovered);
        self.change(spare, |superblock| superblock.feature_map.insert(Features::REPLACEMENT));
        let number = self.superblock(spare).dev_number as usize;
        self.change_all(|superblock| superblock.dev_roles[number] = Role::Active(MemberSlot(slot as u16)));
    }

    /// Ranges of a member's data area are bad: noise, and in its log.
    pub fn make_bad(&mut self, index: usize, ranges: &[(u64, u64)]) {
        ranges.iter().for_each(|&(start, end)| self.spoil(index, start, end));
        self.change(index, |superblock| superblock.feature_map.insert(Features::BAD_BLOCKS));
        let superblock = self.superblock(index);
        let ranges: Vec<_> =
            ranges.iter().map(|&(start, end)| (Sector(start), Sector(end - start))).collect();
        let log = bad_blocks::encode(&ranges, 0, superblock.data_offset, superblock.bblog_size);
        let (log, at) = (log.expect("few ranges"), superblock.bad_blocks_sector().expect("a log"));
        self.members[index][at.bytes() as usize..][..log.len()].copy_from_slice(&log);
    }

    /// The members but some, as devices with blocks of so many bytes.
    pub fn without(&self, missing: &[usize], block_bytes: u32) -> Vec<MemoryMember> {
        let all = self.members.iter().enumerate().filter(|(index, _)| !missing.contains(index));
        let member = |(index, bytes): (usize, &Vec<u8>)| {
            MemoryMember::with_blocks(&format!("disk{index}"), bytes.clone(), block_bytes)
        };
        all.map(member).collect()
    }
}
