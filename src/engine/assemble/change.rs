//! What an array can be changed into without moving data: larger, where its members are; of more or fewer copies, if it is a
//! mirror; with a write-intent bitmap, or without.
//!
//! Only superblocks and bitmaps change, and only here, while nobody uses the array: it has been stopped, and is assembled
//! again. Decided in pure code; the next generation of superblocks says it, after the bitmap that it points to, and no
//! client's write comes before that generation (`docs/on-disk-format.md`, "Changes that move no data", has the crash points).
//!
//! Invariants:
//! - Nothing is changed of an array that is not whole: dirty, degraded (but to drop the vacant slots of a mirror), with a
//!   member that is being filled, or that has missed a generation. So there is nothing that the old bitmap would have to tell.
//! - All members that are here are changed in the same way. One that a crash leaves behind takes it from the others (`adopt`).

use std::collections::BTreeMap;

use super::super::array::Array;
use super::super::error::Refusal;
use super::super::load::Found;
use super::super::member::MemberState;
use super::super::state::Health;
use super::super::sync::SyncAction;
use super::{Seating, misses_one, seat, shape_of};
use crate::io::{Device, Runtime};
use crate::layout::{Geometry, Level};
use crate::md::create::{BITMAP_ROOM_MAX, BITMAP_ROOM_MIN, FIRST_OFFSET, MIRROR_ROUNDING, bitmap_head};
use crate::md::superblock::{DEV_ROLES_MAX, PARITY_CHUNK_MIN};
use crate::md::{Bitmap, BitmapSuperblock, Features, Role, Superblock};
use crate::units::{EventCount, MemberSlot, Sector};

/// A change that moves no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// So many sectors are used of every member; as many as the smallest has, if none are named.
    MemberSize(Option<Sector>),
    /// A mirror of so many slots. More are vacant at first, fewer must have been.
    Slots(u16),
    /// With a write-intent bitmap beside the superblock, or without one.
    Bitmap(bool),
}

/// What the rest of the assembly has to know of a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Rows from here on (in the units of the row locks) are new: nobody has written them, and they do not agree.
    pub new_rows: Option<Sector>,
}

/// Changes what was found on the members of one array, as if it had always been so. Nothing has been written on return, and
/// on refusal nothing is changed.
pub(super) fn apply<D: Device>(
    change: Change,
    found: &mut [Found<D>],
    seating: &Seating,
) -> Result<Changed, Refusal> {
    check_whole(change, found, seating)?;
    match change {
        Change::MemberSize(size) => set_member_size(size, found, seating),
        Change::Slots(slots) => set_slots(slots, found, seating),
        Change::Bitmap(true) => add_bitmap(found, seating),
        Change::Bitmap(false) => remove_bitmap(found, seating),
    }
}

/// Gives those that missed the last generation what it has changed for all. A new UUID is not for an array that a crash has left
/// between two states: only that is to be changed on its members.
pub(super) fn catch_up<D: Device>(
    found: &mut [Found<D>],
    truth: &Superblock,
    is_renamed: bool,
) -> Result<(), Refusal> {
    let behind = |member: &&mut Found<D>| misses_one(&member.superblock, truth);
    if is_renamed && found.iter_mut().filter(behind).any(|member| is_torn(&member.superblock, truth)) {
        let why = "a crash has left it between two states: start it under its own UUID, write to it, and stop it before";
        return refuse(&truth.name(), why);
    }
    found.iter_mut().filter(behind).for_each(|member| adopt(member, truth));
    Ok(())
}

/// Whether it holds another slot by its own word because it missed the generation in which a mirror dropped vacant ones.
pub(super) fn has_moved_up(superblock: &Superblock, truth: &Superblock) -> bool {
    let is_smaller = truth.raid_disks < superblock.raid_disks;
    is_smaller && misses_one(superblock, truth) && superblock.role().slot().is_some()
}

/// Whether one that missed the last generation differs in what that may have changed for all.
fn is_torn(own: &Superblock, truth: &Superblock) -> bool {
    own.size != truth.size
        || own.raid_disks != truth.raid_disks
        || own.bitmap_sector().is_some() != truth.bitmap_sector().is_some()
}

fn adopt<D: Device>(member: &mut Found<D>, truth: &Superblock) {
    let has = room(member);
    let own = &mut member.superblock;
    if own.size != truth.size {
        own.size = truth.size;
        own.data_size = own.data_size.max(has);
    }
    own.raid_disks = truth.raid_disks;
    if !own.has_ppl() && !truth.has_ppl() {
        own.bitmap_offset = truth.bitmap_offset;
        let bitmap = Features(truth.feature_map.0 & Features::BITMAP.0);
        own.feature_map = Features(own.feature_map.0 & !Features::BITMAP.0 | bitmap.0);
    }
}

impl<D: Device + Clone + 'static, R: Runtime> Array<D, R> {
    /// Whether the array could be stopped, changed into this, and started again: its members are whole, and allow it. Says what
    /// to do otherwise. Nothing is written.
    pub fn check_change(&self, change: Change) -> Result<(), Refusal> {
        let name = self.name();
        drop(self.enter_to_change()?);
        let failed =
            self.roster.borrow().all().find(|member| member.state.get() == MemberState::Faulty).cloned();
        if let Some(member) = failed {
            let label = &member.label;
            return refuse(
                name,
                &format!("{label} has failed: take it out first, with raidctl remove {name} {label}"),
            );
        }
        if self.state.borrow().read_only.is_some() || self.state.borrow().flush_lost {
            return refuse(name, "it takes no writes since a member failed to; see raidctl status");
        }
        if let Some(progress) = self.sync.progress.get()
            && matches!(progress.action, SyncAction::Check | SyncAction::Repair)
        {
            let why = format!("a scrub is under way: wait until it is over, or raidctl scrub {name} --stop");
            return refuse(name, &why);
        }
        if self.state.borrow().resync.is_some() || !self.state.borrow().suspect.is_empty() {
            return refuse(
                name,
                "it awaits a resync: wait until that is over (raidctl wait), then try again",
            );
        }
        if !self.filling().is_empty() {
            return refuse(
                name,
                "a member is being filled: wait until that is over (raidctl wait), then try again",
            );
        }
        let drops_vacant = matches!(change, Change::Slots(slots) if slots < self.shape.slots);
        if self.health() != Health::Optimal && !drops_vacant {
            return refuse(
                name,
                "it is degraded: replace the missing member first, and wait until the new one is filled",
            );
        }
        // As they will be found when it has been stopped.
        let events = self.state.borrow().events;
        let found = self.live_members().into_iter().map(|member| Found {
            device: member.device.clone(),
            label: member.label.clone(),
            superblock: self.superblock_of(&member, events, Sector::MAX),
            bad: Vec::new(),
            bitmap: None,
            ppl_log: Vec::new(),
            replayed: BTreeMap::new(),
        });
        let mut found: Vec<_> = found.collect();
        let seating = seat(&found)?;
        apply(change, &mut found, &seating).map(drop)
    }
}

fn refuse<T>(name: &str, why: &str) -> Result<T, Refusal> {
    Err(Refusal::NotNow(format!("{name}: {why}")))
}

/// Sectors that a member's device has for data.
fn room<D: Device>(member: &Found<D>) -> Sector {
    let device = Sector::floor(member.device.info().size_bytes);
    Sector(device.0.saturating_sub(member.superblock.data_offset.0))
}

fn check_whole<D>(change: Change, found: &[Found<D>], seating: &Seating) -> Result<(), Refusal> {
    let truth = &found[seating.freshest].superblock;
    let name = truth.name();
    if truth.level == 0 {
        return refuse(&name, "RAID 0 has nothing that could be changed in place; make a new array");
    }
    if found.iter().any(|member| !member.superblock.is_clean()) {
        return refuse(&name, "it awaits a resync: wait until it is over, then try again");
    }
    let drops_vacant = matches!(change, Change::Slots(slots) if u32::from(slots) < truth.raid_disks);
    let is_vacant = |&(main, other): &(Option<usize>, Option<usize>)| main.is_none() && other.is_none();
    if !drops_vacant && seating.slots.iter().any(is_vacant) {
        return refuse(&name, "a member is missing: replace it first, and wait until the new one is filled");
    }
    for (slot, &(main, other)) in seating.slots.iter().enumerate() {
        let is_whole = main.is_none_or(|index| found[index].superblock.recovered() == Sector::MAX);
        if other.is_some() || !is_whole {
            let why =
                format!("the member of slot {slot} is being filled or replaced: wait until that is over");
            return refuse(&name, &why);
        }
    }
    if let Some(&(index, ref why)) = seating.left_out.first() {
        return refuse(&name, &format!("{} could not take part: {why}", found[index].label));
    }
    let behind = found.iter().find(|member| member.superblock.events != truth.events);
    if let Some(member) = behind {
        return refuse(&name, &format!("{} has missed the last change: try again", member.label));
    }
    Ok(())
}

/// Rows in the units of the row locks, and sectors that a bitmap has to cover.
pub(super) fn rows(geometry: &Geometry) -> Sector {
    match geometry {
        Geometry::Parity(_) => geometry.used_member_sectors(),
        Geometry::Copies(copies) => copies.array_sectors(),
    }
}

fn set_member_size<D: Device>(
    size: Option<Sector>,
    found: &mut [Found<D>],
    seating: &Seating,
) -> Result<Changed, Refusal> {
    let truth = found[seating.freshest].superblock.clone();
    let name = truth.name();
    if truth.has_ppl() {
        return refuse(
            &name,
            "an array with a partial parity log cannot be grown by raidd; release it, and use mdadm",
        );
    }
    let far = truth.layout >> 8 & 0xff;
    if truth.level == 10 && far > 1 && truth.layout & 1 << 16 == 0 {
        return refuse(
            &name,
            "where its far copies lie depends on its size, so that all would have to move; make a new array",
        );
    }
    let smallest = found.iter().map(|member| (room(member), member.label.clone())).min();
    let (most, smallest) = smallest.expect("there is a freshest member");
    let unit = match (truth.level, size) {
        (1, None) => MIRROR_ROUNDING,
        (1, Some(_)) => PARITY_CHUNK_MIN,
        _ => truth.chunk,
    };
    let new = size.unwrap_or(most).round_down(unit);
    if new > most {
        let why = format!(
            "{smallest} has room for {} bytes of data, not for {}; replace it by a larger one (a spare: take it out), or name a \
             smaller size",
            most.bytes(),
            new.bytes()
        );
        return refuse(&name, &why);
    }
    if new == truth.size || size.is_none() && new < truth.size {
        let why = format!(
            "it is as large already: {} bytes of each member, and {smallest} has room for {}; replace what is \
             too small by larger ones first, one after the other",
            truth.size.bytes(),
            most.bytes()
        );
        return refuse(&name, &why);
    }
    if new < truth.size {
        let why = format!(
            "it uses {} bytes of each member and cannot shrink; make a new array",
            truth.size.bytes()
        );
        return refuse(&name, &why);
    }
    let old_rows = rows(&Geometry::new(&shape_of(&truth, seating, found)?)?);
    let geometry = Geometry::new(&shape_of(&Superblock { size: new, ..truth.clone() }, seating, found)?)?;
    let bitmap = match truth.feature_map.contains(Features::BITMAP) {
        true => {
            let rooms = found.iter().filter_map(|member| member.superblock.bitmap_room());
            let room = rooms.min().unwrap_or(Sector::ZERO);
            let before = found[seating.freshest].bitmap.as_ref().map(|bitmap| &bitmap.superblock);
            Some(new_bitmap(&truth, rows(&geometry), room, before)?)
        }
        false => None,
    };
    for member in found.iter_mut() {
        let has = room(member);
        let superblock = &mut member.superblock;
        superblock.size = new;
        superblock.data_size = superblock.data_size.max(has);
    }
    give_bitmap(bitmap, found, seating);
    Ok(Changed { new_rows: Some(old_rows) })
}

fn set_slots<D>(slots: u16, found: &mut [Found<D>], seating: &Seating) -> Result<Changed, Refusal> {
    let truth = &found[seating.freshest].superblock;
    let (name, old) = (truth.name(), truth.raid_disks);
    if truth.level != 1 {
        let level = Level::from_md(truth.level).map_or("its level", |level| level.name());
        let why = format!(
            "only a mirror (RAID 1) can have another number of members without moving its data, and this is {level}; release \
             it, and use mdadm --grow, which reshapes it"
        );
        return refuse(&name, &why);
    }
    let new = u32::from(slots);
    if new == old {
        return refuse(&name, &format!("it has {old} slots already"));
    }
    if new == 0 || new as usize > DEV_ROLES_MAX {
        return refuse(&name, &format!("a mirror has 1 to {DEV_ROLES_MAX} slots"));
    }
    let held: Vec<u32> =
        seating.slots.iter().filter_map(|&(main, _)| Some(found[main?].superblock.dev_number)).collect();
    if held.len() > new as usize {
        let why = format!(
            "{} members hold its slots, more than {new}: say which are to go with raidctl fail {name} PATH and raidctl remove \
             {name} PATH, then try again",
            held.len()
        );
        return refuse(&name, &why);
    }
    for member in found.iter_mut() {
        let superblock = &mut member.superblock;
        superblock.raid_disks = new;
        if new > old {
            continue;
        }
        // Those that are left move up; nobody else holds a slot any more.
        for (number, role) in superblock.dev_roles.iter_mut().enumerate() {
            if let Role::Active(_) = role {
                let slot = held.iter().position(|&holder| holder as usize == number);
                *role = slot.map_or(Role::Faulty, |slot| Role::Active(MemberSlot(slot as u16)));
            }
        }
    }
    Ok(Changed::default())
}

fn add_bitmap<D>(found: &mut [Found<D>], seating: &Seating) -> Result<Changed, Refusal> {
    let truth = &found[seating.freshest].superblock;
    let name = truth.name();
    if truth.has_ppl() {
        return refuse(
            &name,
            "it has a partial parity log, which does the same; an array has one of the two",
        );
    }
    if truth.feature_map.contains(Features::BITMAP) {
        return refuse(&name, "it has a write-intent bitmap already");
    }
    let Some((offset, room)) = place_of_bitmap(found) else {
        return refuse(
            &name,
            "there is no room between its superblocks and its data for a bitmap, of 4 KiB at least",
        );
    };
    let covered = rows(&Geometry::new(&shape_of(truth, seating, found)?)?);
    let bitmap = new_bitmap(truth, covered, room, None)?;
    for member in found.iter_mut() {
        member.superblock.feature_map.insert(Features::BITMAP);
        member.superblock.bitmap_offset = offset;
    }
    give_bitmap(Some(bitmap), found, seating);
    Ok(Changed::default())
}

fn remove_bitmap<D>(found: &mut [Found<D>], seating: &Seating) -> Result<Changed, Refusal> {
    let truth = &found[seating.freshest].superblock;
    if truth.bitmap_sector().is_none() {
        return refuse(&truth.name(), "it has no write-intent bitmap");
    }
    for member in found.iter_mut() {
        let superblock = &mut member.superblock;
        superblock.feature_map = Features(superblock.feature_map.0 & !Features::BITMAP.0);
        superblock.bitmap_offset = 0;
    }
    give_bitmap(None, found, seating);
    Ok(Changed::default())
}

/// Where, in sectors from the superblock, all members have room for a bitmap, and how much: right behind the superblock, as
/// mdadm has it, or else behind the bad-block log.
fn place_of_bitmap<D>(found: &[Found<D>]) -> Option<(i32, Sector)> {
    let superblocks = || found.iter().map(|member| &member.superblock);
    let log_end = |superblock: &Superblock| superblock.bblog_offset + i32::from(superblock.bblog_size);
    let behind = superblocks().map(log_end).max()?.max(FIRST_OFFSET);
    let places = [FIRST_OFFSET, behind.saturating_add(7) / 8 * 8];
    places.into_iter().find_map(|offset| {
        let room = superblocks().map(|superblock| superblock.free_at(offset)).min()?;
        (room >= BITMAP_ROOM_MIN).then_some((offset, room.min(BITMAP_ROOM_MAX)))
    })
}

/// One that nobody has ever cleared a bit of: whoever has been away is filled as a whole. It is like the one before, where there
/// was one, and as fine as that where it fits.
fn new_bitmap(
    truth: &Superblock,
    covered: Sector,
    room: Sector,
    before: Option<&BitmapSuperblock>,
) -> Result<Bitmap, Refusal> {
    let like = before.map(|before| BitmapSuperblock { sync_size: covered, ..before.clone() });
    let fitting = like.clone().filter(|head| head.total_bytes() <= room.bytes());
    let Some(mut head) = fitting.or_else(|| bitmap_head(truth.set_uuid, covered, room)) else {
        let why = format!(
            "no write-intent bitmap for {covered} sectors fits into {room}; remove it first: --bitmap none"
        );
        return refuse(&truth.name(), &why);
    };
    if let Some(like) = like {
        head = BitmapSuperblock { chunk_bytes: head.chunk_bytes, ..like };
    }
    (head.events, head.events_cleared, head.state) = (EventCount(0), EventCount(truth.events.0 + 1), 0);
    Ok(Bitmap::new(head, true))
}

/// The freshest one's counts. It is as old as can be: all of it is written again, to everybody.
fn give_bitmap<D>(bitmap: Option<Bitmap>, found: &mut [Found<D>], seating: &Seating) {
    found.iter_mut().for_each(|member| member.bitmap = None);
    found[seating.freshest].bitmap = bitmap;
}
