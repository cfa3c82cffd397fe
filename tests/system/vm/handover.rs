//! Arrays are handed to the kernel, many to one guest, and what it makes of them is taken down.
//!
//! `take_over.sh` is the guest's part. Content does not go through a hash there, which is slow under emulation: the guest
//! copies it to a disk of its own, and the host reads that file.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::disks::MIB;
use super::rig::{Ended, Guest};

/// Arrays for the kernel.
#[derive(Default)]
pub struct Handover {
    arrays: Vec<Given>,
}

struct Given {
    name: String,
    bytes: u64,
    members: Vec<String>,
    spare: Option<String>,
}

impl Handover {
    /// One more array, and how much of its content is looked at. Members that have failed may be among its members, as they would be found.
    pub fn give(&mut self, name: &str, bytes: u64, members: &[String]) {
        self.arrays.push(Given { name: name.to_owned(), bytes, members: members.to_vec(), spare: None });
    }

    /// The same, and a disk that the kernel is to add once it has done all that it does by itself.
    pub fn give_with_spare(&mut self, name: &str, bytes: u64, members: &[String], spare: &str) {
        self.give(name, bytes, members);
        self.arrays.last_mut().unwrap().spare = Some(spare.to_owned());
    }

    /// The kernel takes them, one batch after the other.
    #[track_caller]
    pub fn run(self) -> Taken {
        let out = tempfile::NamedTempFile::new().unwrap();
        let disks: usize = self.arrays.iter().map(|given| given.disks().count()).sum();
        let mut guest = Guest::new(include_str!("take_over.sh")).argument(disks.to_string());
        let (mut place, mut next, mut places) = (0, 0, BTreeMap::new());
        for given in &self.arrays {
            let mut words = format!("{} {} {}", given.name, place / MIB, given.bytes.div_ceil(MIB));
            for (path, mark) in given.disks() {
                words.push_str(&format!(" {mark}{next}"));
                next += 1;
                guest = guest.scsi_disk(path);
            }
            guest = guest.argument(words);
            assert!(places.insert(given.name.clone(), (place, given.bytes)).is_none(), "{}", given.name);
            place += given.bytes.next_multiple_of(MIB);
        }
        out.as_file().set_len(place).unwrap();
        let ended = guest.scsi_disk(out.path()).run();
        ended.assert_ok();
        Taken { ended, out: out.into_file(), places }
    }
}

impl Given {
    fn disks(&self) -> impl Iterator<Item = (&str, &str)> {
        let members = self.members.iter().map(|path| (path.as_str(), ""));
        members.chain(self.spare.iter().map(|path| (path.as_str(), "+")))
    }
}

/// What the kernel made of the arrays.
pub struct Taken {
    ended: Ended,
    out: File,
    places: BTreeMap<String, (u64, u64)>,
}

/// Sectors that went between the kernel and a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub read: u64,
    pub written: u64,
}

impl Taken {
    /// A fact about an array.
    #[track_caller]
    pub fn said(&self, name: &str, fact: &str) -> &str {
        self.ended.said(&format!("{name} {fact}"))
    }

    /// A number about an array.
    #[track_caller]
    pub fn number(&self, name: &str, fact: &str) -> u64 {
        let said = self.said(name, fact);
        said.parse().unwrap_or_else(|_| panic!("{name} {fact}: {said:?} is no number"))
    }

    /// What the array holds.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let (place, bytes) = self.places[name];
        let mut content = vec![0; bytes as usize];
        self.out.read_exact_at(&mut content, place).unwrap();
        content
    }

    /// What went to and from each member while the kernel did what it began by itself.
    pub fn moved(&self, name: &str) -> Vec<Moved> {
        let counts = |when| {
            let said = self.said(name, when).split_whitespace();
            said.map(|pair| {
                let (read, written) = pair.split_once('/').unwrap();
                Moved { read: read.parse().unwrap(), written: written.parse().unwrap() }
            })
        };
        let pairs = counts("before").zip(counts("after"));
        let moved = pairs.map(|(before, after)| Moved {
            read: after.read - before.read,
            written: after.written - before.written,
        });
        moved.collect()
    }

    /// The kernel finds what raidd wrote, every member in its place, and redundancy that agrees.
    #[track_caller]
    pub fn assert_whole(&self, name: &str, content: &[u8]) {
        self.assert_sound(name);
        let found = self.content(name);
        assert_eq!(found.len(), content.len(), "{name}");
        if let Some(at) = found.iter().zip(content).position(|(found, wanted)| found != wanted) {
            panic!("{name}: what the kernel reads differs from byte {at} on\n{}", self.ended.output);
        }
    }

    /// Every member is in its place, and redundancy agrees.
    #[track_caller]
    pub fn assert_sound(&self, name: &str) {
        assert_eq!(self.said(name, "State"), "clean", "{name}\n{}", self.ended.output);
        if self.said(name, "Raid Level") != "raid0" {
            assert_eq!(self.number(name, "mismatches"), 0, "{name}\n{}", self.ended.output);
        }
    }
}
