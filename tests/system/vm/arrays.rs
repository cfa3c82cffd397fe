//! Arrays that raidd makes on the host for the kernel in a guest, and a record of what they hold.

use raidd::api::{ArrayState, Status};

use super::super::disks::{Disks, noise};
use super::super::harness::Home;

/// A kind of array.
pub struct Shape {
    pub key: &'static str,
    pub options: &'static str,
    pub members: usize,
    /// Bytes of a stripe's data: what is written so needs nothing to be read.
    pub stripe_bytes: u64,
}

/// One of each that states differ by.
pub const SHAPES: [Shape; 8] = [
    Shape { key: "raid1", options: "--level 1", members: 3, stripe_bytes: 64 << 10 },
    Shape { key: "raid4", options: "--level 4 --chunk 64K", members: 3, stripe_bytes: 128 << 10 },
    Shape { key: "raid5", options: "--level 5 --chunk 16K", members: 4, stripe_bytes: 48 << 10 },
    PPL,
    Shape { key: "raid6", options: "--level 6 --chunk 32K", members: 5, stripe_bytes: 96 << 10 },
    Shape {
        key: "near2",
        options: "--level 10 --layout n2 --chunk 64K",
        members: 4,
        stripe_bytes: 128 << 10,
    },
    Shape { key: "far2", options: "--level 10 --layout f2 --chunk 16K", members: 3, stripe_bytes: 48 << 10 },
    Shape {
        key: "offset2",
        options: "--level 10 --layout o2 --chunk 32K",
        members: 4,
        stripe_bytes: 128 << 10,
    },
];

/// With a partial parity log.
pub const PPL: Shape = Shape {
    key: "ppl",
    options: "--level 5 --chunk 64K --consistency-policy ppl",
    members: 3,
    stripe_bytes: 128 << 10,
};

/// An array that runs, its members, a blank disk, and what it holds.
pub struct Made {
    pub name: String,
    pub disks: Disks,
    pub spare: String,
    pub content: Vec<u8>,
}

impl Made {
    /// A new array, all zeroes.
    pub fn empty(home: &Home, shape: &Shape, state: &str, mib: u64) -> Made {
        let name = format!("{}-{state}", shape.key);
        let mut disks = Disks::files(home, &format!("{name}-"), shape.members + 1, mib);
        let spare = disks.paths.pop().unwrap();
        home.ok(format!("create {name} --init zero {} {}", shape.options, disks.all()));
        let content = vec![0; home.status(&name).size_bytes as usize];
        Made { name, disks, spare, content }
    }

    /// A new array that is filled.
    pub fn new(home: &Home, shape: &Shape, state: &str, mib: u64) -> Made {
        let mut made = Made::empty(home, shape, state, mib);
        let seed = made.name.bytes().fold(1, |seed, byte| seed * 31 % 0xffff_ffff + u64::from(byte));
        made.content = noise(seed, made.content.len());
        let mut client = home.client(&made.name);
        client.write(0, &made.content).unwrap();
        client.disconnect().unwrap();
        made
    }

    /// Writes here and there, at no boundary of anything.
    pub fn scribble(&mut self, home: &Home, seed: u64) {
        let mut client = home.client(&self.name);
        let len = self.content.len();
        for turn in 0..8 {
            let at = (seed * 1_000_003 + turn * len as u64 / 8) as usize % len / 512 * 512;
            let bytes = (30_000 * turn as usize + 512).min(len - at) / 512 * 512;
            let data = noise(seed * 64 + turn, bytes);
            client.write(at as u64, &data).unwrap();
            self.content[at..at + bytes].copy_from_slice(&data);
        }
        client.flush().unwrap();
        client.disconnect().unwrap();
    }

    /// A member's path.
    pub fn disk(&self, slot: usize) -> &str {
        &self.disks.paths[slot]
    }

    /// The members and the disk that was blank.
    pub fn all(&self) -> Vec<String> {
        let mut all = self.disks.paths.clone();
        all.push(self.spare.clone());
        all
    }

    /// What it holds.
    pub fn bytes(&self) -> u64 {
        self.content.len() as u64
    }
}

/// Superblocks say that nothing is being written.
pub fn wait_clean(home: &Home, name: &str) -> Status {
    home.wait_for(name, |status| status.state == ArrayState::Clean)
}

/// What `examine` says of a member.
pub fn examine(home: &Home, path: &str) -> serde_json::Value {
    serde_json::from_str::<serde_json::Value>(&home.ok(format!("examine --json {path}"))).unwrap()[0].take()
}

/// Bytes of a member that are whole, by its own word, while it is being filled.
#[track_caller]
pub fn recovery_offset(home: &Home, path: &str) -> u64 {
    let facts = examine(home, path);
    let offset = facts["recovery_offset_bytes"].as_u64();
    offset.unwrap_or_else(|| panic!("{path} is not being filled: {facts:#}"))
}
