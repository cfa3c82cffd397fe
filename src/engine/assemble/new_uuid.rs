//! WHEN an array gets another UUID: before it starts, on all its members, in an order by which a change that was cut off is
//! known again.
//!
//! An array is its UUID: while only some of its members have the new one, they make no array. Such members are refused, with
//! the UUID that was begun with, and the change is finished when the operator names it; not without, as nobody can tell a copy
//! that is half done from one half of a copy and one of its original. Only the set's UUID changes. A member's own is looked at
//! among the members of one array only, so a copy may keep it (as mdadm has it, too).
//!
//! Invariants:
//! - Nothing is written before all that may refuse the array has been asked. Every member that is named gets the UUID, and every
//!   member that the array counts on is named, unless the operator forces it.
//! - One write at a time, each durable before the next: the heads of the bitmaps by device number, then the superblocks by device
//!   number. So the first of these has the new UUID as soon as anything has, and a member that has half of it has a bitmap that
//!   is another array's: neither raidd nor md starts from it.
//! - Nothing but the UUID changes, not even events and times: what is half done is of one generation still.

use std::collections::BTreeSet;
use std::pin::pin;

use super::super::bitmap::bitmap_offset_bytes;
use super::super::error::Refusal;
use super::super::load::{Found, Source};
use super::{Options, Seating, Start, check_identities, disagreement};
use crate::io::{Device, Fua};
use crate::md::superblock::unpack_seconds;
use crate::md::{SUPERBLOCK_OFFSET_BYTES, Superblock, format_uuid};

/// Another UUID for an array.
#[derive(Clone, Debug)]
pub struct NewUuid {
    /// What it is to be.
    pub uuid: [u8; 16],
    /// The operator named it, and did not leave it to chance. Only then is a change finished that was cut off.
    pub is_named: bool,
}

/// Something to be written.
pub(super) struct Change {
    index: usize,
    at_bytes: u64,
    bytes: Vec<u8>,
}

/// Takes the members for those of one array with the new UUID, in memory.
pub(super) fn adopt<D: Device>(found: &mut [Found<D>], new: &NewUuid) -> Result<(), Refusal> {
    if !new.is_named || begun(found) != Some(new.uuid) {
        check_one_array(found)?;
    }
    for member in found {
        member.superblock.set_uuid = new.uuid;
        if let Some(bitmap) = &mut member.bitmap {
            bitmap.superblock.uuid = new.uuid;
        }
    }
    Ok(())
}

/// Refuses members of several arrays, and says so where they are of one whose UUID was being changed.
pub(super) fn check_one_array<D: Device>(found: &[Found<D>]) -> Result<(), Refusal> {
    let one = check_identities(found).and_then(|()| found.iter().try_for_each(Found::check_bitmap));
    match (one, begun(found)) {
        (Err(_), Some(new)) => {
            let new = format_uuid(&new);
            Err(Refusal::BadSet(format!(
                "the change of these members' UUID to {new} was cut off: if they are all of one array, finish it with \
                 --update uuid --uuid {new}"
            )))
        }
        (one, _) => one,
    }
}

/// The members' UUIDs, in the order in which they are changed.
fn uuids<D>(found: &[Found<D>]) -> Vec<[u8; 16]> {
    let order = order(found);
    let bitmaps = order.iter().filter_map(|&index| Some(found[index].bitmap.as_ref()?.superblock.uuid));
    bitmaps.chain(order.iter().map(|&index| found[index].superblock.set_uuid)).collect()
}

fn order<D>(found: &[Found<D>]) -> Vec<usize> {
    let mut order: Vec<_> = (0..found.len()).collect();
    order.sort_by_key(|&index| found[index].superblock.dev_number);
    order
}

/// The UUID that some members have and others are still to get, if that is how they stand.
fn begun<D>(found: &[Found<D>]) -> Option<[u8; 16]> {
    let numbers: BTreeSet<_> = found.iter().map(|member| member.superblock.dev_number).collect();
    if numbers.len() < found.len() {
        return None;
    }
    let uuids = uuids(found);
    let new = *uuids.first()?;
    let rest: Vec<_> = uuids.iter().skip_while(|uuid| **uuid == new).collect();
    let old = rest.first()?;
    (rest.iter().all(|uuid| uuid == old) && is_of_one_generation(found)).then_some(new)
}

/// Whether the superblocks could be those of one array that has not been used since some of them were changed.
fn is_of_one_generation<D>(found: &[Found<D>]) -> bool {
    let all = || found.iter().map(|found| &found.superblock);
    // md does not tell spares everything, and takes an array's events back when it goes idle: times tell what they do not. raidd
    // writes one generation's within a moment.
    let holders = || all().filter(|superblock| superblock.role().slot().is_some());
    let Some(truth) = holders().max_by_key(|superblock| superblock.events) else { return false };
    let is_like = |one: &Superblock| {
        one.events.0 + 1 == truth.events.0
            || one.events == truth.events
                && unpack_seconds(one.utime).abs_diff(unpack_seconds(truth.utime)) <= 1
                && one.resync_offset == truth.resync_offset
                && one.dev_roles == truth.dev_roles
    };
    all().all(|one| disagreement(truth, one).is_none() && one.set_name == truth.set_name)
        && holders().all(is_like)
}

/// Refuses what would be lost or left behind.
pub(super) fn check<D: Device>(
    truth: &Superblock,
    seating: &Seating,
    found: &[Found<D>],
    start: &Start,
    options: &Options,
) -> Result<(), Refusal> {
    assert!(!options.read_only, "nobody wants a UUID that is not written");
    let name = truth.name();
    if let Some((index, why)) = seating.left_out.first() {
        return Err(Refusal::BadSet(format!(
            "{}: {why}; it would get the new UUID and not be in the array: leave it out",
            found[*index].label
        )));
    }
    let refuse =
        |member: &Found<D>, why: &str| Refusal::BadMember { member: member.label.clone(), why: why.into() };
    if let Some(member) = found.iter().find(|member| member.device.info().read_only) {
        return Err(refuse(member, "it is read-only, so it cannot get another UUID; make it writable"));
    }
    let has_lost_bitmap =
        |member: &&Found<D>| member.bitmap.is_none() && member.superblock.bitmap_sector().is_some();
    if let Some(member) = found.iter().find(has_lost_bitmap) {
        return Err(refuse(
            member,
            "its write-intent bitmap changes while it is read; see who else writes it",
        ));
    }
    if start.replay {
        return Err(Refusal::NotNow(format!(
            "{name} was not stopped cleanly, and its partial parity logs, which are needed then, are bound to its UUID: start \
             it under that, where no other array has it, stop it, and change the UUID then"
        )));
    }
    let is_here = |number: usize| found.iter().any(|found| found.superblock.dev_number as usize == number);
    let holders =
        truth.dev_roles.iter().enumerate().filter_map(|(number, role)| Some((number, role.slot()?)));
    let away = holders.into_iter().find(|(number, _)| !is_here(*number));
    if let Some((_, slot)) = away.filter(|_| !options.force) {
        return Err(Refusal::TooFew(format!(
            "{name}: the member of slot {slot} is not named, and would stay behind under the old UUID: name it, too, or give it \
             up with --force"
        )));
    }
    Ok(())
}

/// What is to be written, in this order.
pub(super) fn changes<D>(found: &[Found<D>], block_bytes: u64) -> Vec<Change> {
    let order = order(found);
    let bitmaps = order.iter().filter_map(|&index| {
        let mut bytes = found[index].bitmap.as_ref()?.encode();
        // What follows the last bit counts as set, as mdadm leaves it.
        bytes.resize(block_bytes as usize, 0xff);
        Some(Change { index, at_bytes: bitmap_offset_bytes(found[index].superblock.bitmap_offset), bytes })
    });
    let superblocks = order.iter().map(|&index| {
        let mut bytes = found[index].superblock.encode();
        bytes.resize(bytes.len().next_multiple_of(block_bytes as usize), 0);
        Change { index, at_bytes: SUPERBLOCK_OFFSET_BYTES, bytes }
    });
    bitmaps.chain(superblocks).collect()
}

/// Writes it.
pub(super) async fn write<D: Device>(
    changes: Vec<Change>,
    truth: &Superblock,
    found: &[Found<D>],
    Source { pool, deadlines }: Source<'_>,
) -> Result<(), Refusal> {
    for Change { index, at_bytes, bytes } in changes {
        let member = &found[index];
        let mut buf = pool.alloc(bytes.len()).await;
        buf.copy_from_slice(&bytes);
        let written =
            deadlines.bound(0, pin!(member.device.write(at_bytes, vec![buf.freeze()], Fua::Yes))).await;
        written.map_err(|error| Refusal::WriteFailed {
            member: member.label.clone(),
            what: "writing its new UUID",
            error,
        })?;
    }
    tracing::info!(array = truth.name(), uuid = format_uuid(&truth.set_uuid), "has a new UUID");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{found, members, members_and_spares};
    use super::*;
    use crate::io::MemoryDevice;
    use crate::md::{Bitmap, BitmapSuperblock};
    use crate::units::{EventCount, Sector};

    const OLD: [u8; 16] = [7; 16];
    const NEW: [u8; 16] = [8; 16];

    fn bitmap(uuid: [u8; 16]) -> Bitmap {
        let superblock = BitmapSuperblock {
            uuid,
            events: EventCount(100),
            events_cleared: EventCount(100),
            sync_size: Sector(8192),
            state: 0,
            chunk_bytes: 1 << 20,
            daemon_sleep_seconds: 5,
            write_behind: 0,
            sectors_reserved: 0,
            nodes: 0,
            rest: [0; 184],
        };
        Bitmap::new(superblock, false)
    }

    /// Members whose superblocks, and bitmaps where they have such, have these UUIDs: `n` the new one.
    fn standing(superblocks: &str, bitmaps: &str) -> Vec<Found<MemoryDevice>> {
        let uuid = |letter: char| if letter == 'n' { NEW } else { OLD };
        let mut all = found(&members(5, superblocks.len()));
        for (member, letter) in all.iter_mut().zip(superblocks.chars()) {
            member.superblock.set_uuid = uuid(letter);
        }
        for (member, letter) in all.iter_mut().zip(bitmaps.chars()) {
            member.bitmap = Some(bitmap(uuid(letter)));
        }
        all
    }

    fn named(uuid: [u8; 16]) -> NewUuid {
        NewUuid { uuid, is_named: true }
    }

    #[test]
    fn what_was_cut_off_is_known_by_its_order() {
        for (superblocks, bitmaps) in
            [("ooo", "noo"), ("ooo", "nno"), ("ooo", "nnn"), ("noo", "nnn"), ("nno", "nnn"), ("nno", "")]
        {
            let mut half = standing(superblocks, bitmaps);
            // In whatever order they are named.
            half.reverse();
            let chance = NewUuid { uuid: NEW, is_named: false };
            for other in [named([9; 16]), named(OLD), chance] {
                let refusal = adopt(&mut half, &other).unwrap_err().to_string();
                assert!(refusal.contains(&format!("--uuid {}", format_uuid(&NEW))), "{refusal}");
            }
            let refusal = check_one_array(&half).unwrap_err().to_string();
            assert!(refusal.contains("was cut off"), "{refusal}");
            adopt(&mut half, &named(NEW)).unwrap();
            assert!(uuids(&half).iter().all(|uuid| *uuid == NEW), "{superblocks} {bitmaps}");
        }
    }

    #[test]
    fn a_copy_and_its_original_are_not_taken_for_half_a_copy() {
        // With bitmaps: whoever has a new superblock was changed after all bitmaps.
        for (superblocks, bitmaps) in
            [("ono", "ono"), ("noo", "noo"), ("onn", "onn"), ("onn", "nnn"), ("noo", "ooo")]
        {
            let mut mixed = standing(superblocks, bitmaps);
            let refusal = adopt(&mut mixed, &named(NEW)).unwrap_err().to_string();
            assert!(refusal.contains("another array's") || refusal.contains("belongs to array"), "{refusal}");
        }
        // Without: by its generation, once one of them was used.
        let used: [fn(&mut Superblock); 5] = [
            |superblock| superblock.events.0 += 2,
            |superblock| superblock.utime += 2,
            |superblock| superblock.resync_offset = Sector(0),
            |superblock| superblock.set_name = [b'x'; 32],
            |superblock| superblock.ctime += 1,
        ];
        for use_it in used {
            let mut mixed = standing("noo", "");
            use_it(&mut mixed[0].superblock);
            assert_eq!(begun(&mixed), None);
            assert!(adopt(&mut mixed, &named(NEW)).is_err());
        }
        let mut doubled = standing("no", "");
        doubled[1].superblock.dev_number = 0;
        assert_eq!(begun(&doubled), None);
    }

    #[test]
    fn a_spare_need_not_know_the_generation() {
        let mut superblocks = members_and_spares(5, 3, 1);
        superblocks[0].set_uuid = NEW;
        superblocks[3].events.0 -= 7;
        assert_eq!(begun(&found(&superblocks)), Some(NEW));
        superblocks[2].events.0 -= 1;
        assert_eq!(begun(&found(&superblocks)), Some(NEW), "one that a crash has left behind");
        superblocks[2].events.0 -= 1;
        assert_eq!(begun(&found(&superblocks)), None);
    }

    #[test]
    fn members_of_one_array_are_as_they_were() {
        let mut whole = standing("ooo", "ooo");
        check_one_array(&whole).unwrap();
        assert_eq!(begun(&whole), None);
        adopt(&mut whole, &NewUuid { uuid: NEW, is_named: false }).unwrap();
        assert_eq!(begun(&whole), None);
        check_one_array(&whole).unwrap();
        let order: Vec<_> = changes(&whole, 512).iter().map(|change| change.index).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }
}
