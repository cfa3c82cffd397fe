//! Who belongs to an array, and whether it may start: decided from superblocks alone, in pure code; then the array is
//! put together. Nothing is written to any member until the first write to the array.
//!
//! The rules (DESIGN law 7, and md's where that is silent):
//! - The *freshest* member is the truth: the one with the highest event count of those that hold a slot by their own
//!   superblock; of equals, the one with the lowest slot.
//! - A member more than one event behind is stale and left out. All others have the role that the freshest's table gives
//!   them, whatever they say themselves; but one that has not heard of its slot yet holds nothing, as a spare does.
//! - Members that each list the other as out are a split brain.
//! - An array that is dirty and lacks a member has parity that may lie: refused, unless there is a partial parity log or
//!   the operator forces it.

mod change;
mod new_uuid;
mod room;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

pub use self::change::Change;
use self::change::{Changed, has_moved_up, rows};
pub use self::new_uuid::NewUuid;
use self::room::{block_bytes, check_blocks, check_room};
use super::array::{Array, Memory};
use super::bitmap::Intent;
use super::deadline::Deadlines;
use super::error::Refusal;
use super::load::{Found, Source};
use super::member::{Member, MemberState};
use super::mutant::{self, Mutant};
use super::plan::Trust;
use super::ppl;
use super::ppl_log::{Logs, room_bytes};
use super::ranges::RowSet;
use super::roster::{Roster, Seat};
use super::state::{Phase, State};
use super::tally::Standing;
use super::traffic::Traffic;
use crate::io::{Device, Runtime};
use crate::layout::{Geometry, Level, Shape};
use crate::md::ppl::PPL_HEADER_BYTES;
use crate::md::{Bitmap, Features, Role, Superblock, format_uuid};
use crate::units::{MemberSlot, SECTOR_BYTES, Sector};

/// What the operator wants of an assembly.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The array's name; else what its superblocks say.
    pub name: Option<String>,
    /// Start although parity may lie.
    pub force: bool,
    /// Serve it, but write nothing.
    pub read_only: bool,
    /// The array has just been created by the caller: rows that no resync has come to hold nothing anybody wants.
    pub fresh: bool,
    /// The name that its superblocks are to have from now on, with its "host:" where it has one. Members are told apart by
    /// UUID, so a crash that leaves it on some of them loses nothing: the freshest says what it is.
    pub stored_name: Option<[u8; 32]>,
    /// What else it is to be from now on.
    pub change: Option<Change>,
    /// The UUID that it is to have from now on.
    pub new_uuid: Option<NewUuid>,
}

/// Where each of the given members goes, as indices into what was given.
#[derive(Debug, PartialEq, Eq)]
struct Seating {
    freshest: usize,
    /// By slot: the member and the one that is to replace it.
    slots: Vec<(Option<usize>, Option<usize>)>,
    spares: Vec<usize>,
    /// Left out, and why.
    left_out: Vec<(usize, String)>,
}

impl Seating {
    /// All that hold a slot, each with the one that is to replace it behind it.
    fn seated(&self) -> impl Iterator<Item = usize> + Clone {
        self.slots.iter().flat_map(|&(main, other)| [main, other]).flatten()
    }
}

/// Puts an array together from members that have been loaded. On refusal nothing has been changed on any of them, unless it is
/// the writing of a new UUID that failed.
pub async fn assemble<D: Device + 'static, R: Runtime>(
    mut found: Vec<Found<D>>,
    options: &Options,
    memory: &Memory,
    runtime: &R,
) -> Result<Rc<Array<D, R>>, Refusal> {
    match &options.new_uuid {
        Some(new) => new_uuid::adopt(&mut found, new)?,
        None => new_uuid::check_one_array(&found)?,
    }
    let mut seating = seat(&found)?;
    let mut changed = Changed::default();
    if let Some(change) = options.change {
        changed = change::apply(change, &mut found, &seating)?;
        seating = seat(&found)?;
    }
    for member in found.iter_mut() {
        member.superblock.set_name = options.stored_name.unwrap_or(member.superblock.set_name);
    }
    let truth = found[seating.freshest].superblock.clone();
    change::catch_up(&mut found, &truth, options.new_uuid.is_some())?;
    for (index, why) in &seating.left_out {
        tracing::warn!(array = truth.name(), member = found[*index].label, why, "member left out");
    }
    let shape = shape_of(&truth, &seating, &found)?;
    let geometry = Geometry::new(&shape)?;
    let block_bytes = block_bytes(&seating, &found);
    check_room(&geometry, &seating, &found)?;
    check_blocks(&geometry, &seating, &found, block_bytes)?;
    let mut start = decide(&truth, &geometry, &seating, &found, options)?;
    start.resync = changed.new_rows.map(|from| (from, Trust::Initial)).or(start.resync);
    if options.new_uuid.is_some() {
        new_uuid::check(&truth, &seating, &found, &start, options)?;
    }
    let changes = options.new_uuid.as_ref().map(|_| new_uuid::changes(&found, block_bytes));
    let deadlines = Deadlines::new(runtime);
    if start.replay {
        let source = Source { pool: &memory.metadata, deadlines: &deadlines };
        let told = ppl::replay(&truth, &geometry, &seating.slots, &mut found, source).await;
        distrust_logs(&mut start, &truth, told, options)?;
    }

    let logs = truth.has_ppl().then(|| {
        let room = seating.seated().map(|index| room_bytes(found[index].superblock.ppl_size())).min();
        Logs::new(seating.slots.len(), &truth.set_uuid, room.unwrap_or(0), start.replay)
    });
    let intent = found[seating.freshest].bitmap.take();
    let intent = intent.map(|bitmap| intent_of(bitmap, &truth, &geometry, block_bytes)).transpose()?;
    if let Some(intent) = intent.as_ref().filter(|_| options.fresh && start.resync.is_none()) {
        intent.borrow_mut().begin_clean();
    }
    if let Some(intent) = intent.as_ref().filter(|_| !options.fresh) {
        let others = seating.seated().filter(|&index| index != seating.freshest).map(|index| {
            let Found { bitmap, superblock, .. } = &found[index];
            let is_as_fresh = superblock.events == truth.events;
            bitmap.as_ref().filter(|bitmap| is_as_fresh && bitmap.superblock.events >= truth.events)
        });
        intent.borrow_mut().unite(others);
    }
    if let Some(changes) = changes {
        new_uuid::write(changes, &truth, &found, Source { pool: &memory.metadata, deadlines: &deadlines })
            .await?;
    }
    let traffic = Rc::<Traffic>::default();
    let mut taken: Vec<Option<Found<D>>> = found.into_iter().map(Some).collect();
    let mut take = |index: usize, slot: Option<MemberSlot>, replacement: bool| {
        let found = taken[index].take().expect("a member has one place");
        let member = member(found, slot, replacement, block_bytes, &deadlines, &traffic);
        member.lags.set(member.superblock.events < truth.events);
        Rc::new(member)
    };
    let seats = seating.slots.iter().enumerate().map(|(slot, &(main, replacement))| {
        let slot = Some(MemberSlot(slot as u16));
        // One whose original is gone is the member, as far as it has been filled.
        let (main, replacement) = if main.is_none() { (replacement, None) } else { (main, replacement) };
        Seat {
            member: main.map(|index| take(index, slot, false)),
            replacement: replacement.map(|index| take(index, slot, true)),
        }
    });
    let seats: Vec<Seat<D>> = seats.collect();
    let distrusts = start.torn && distrust_filled(&seats, matches!(geometry, Geometry::Parity(_)));
    let others: Vec<_> = seating.spares.iter().map(|&index| take(index, None, false)).collect();
    let name = options.name.clone().unwrap_or_else(|| truth.name());
    let array = Rc::new_cyclic(|weak| {
        let mut array = Array {
            shape,
            geometry,
            name,
            block_bytes,
            roster: RefCell::new(Roster { seats, others }),
            truth: truth.clone(),
            state: RefCell::new(State {
                phase: if start.read_only.is_some() { Phase::ReadOnly } else { Phase::Clean },
                read_only: start.read_only,
                is_protected: false,
                in_flight: 0,
                busy: 0,
                writing: 0,
                last_write: Duration::ZERO,
                writes: 0,
                resync: None,
                suspect: RowSet::default(),
                events: truth.events,
                wanted: u64::from(options.stored_name.is_some() || options.change.is_some()),
                written: 0,
                recorded: None,
                distrusts,
                unflushed: !options.fresh,
                settling: false,
                flush_lost: false,
            }),
            locks: Default::default(),
            gathering: Default::default(),
            lane: Default::default(),
            intent,
            bitmap_lane: Default::default(),
            logs,
            changes: Default::default(),
            mending: Default::default(),
            choice: Default::default(),
            hedging: Default::default(),
            sync: Default::default(),
            deadlines,
            traffic,
            clients: Default::default(),
            standing: Standing::since(runtime.now()),
            discards: Default::default(),
            write_through: Cell::new(false),
            memory: memory.clone(),
            runtime: runtime.clone(),
            weak: weak.clone(),
        };
        let resync = start.resync.map(|(from, trust)| array.resync_from(from, trust, !options.fresh));
        array.state.get_mut().resync = resync;
        let recorded = if options.fresh { truth.resync_offset } else { array.resync_offset(false) };
        array.state.get_mut().recorded = Some(recorded);
        array
    });
    array.note_standing();
    Ok(array)
}

/// The bitmap as it is to be kept up. One that does not cover the array is begun anew, if there is room.
fn intent_of(
    mut bitmap: Bitmap,
    truth: &Superblock,
    geometry: &Geometry,
    block_bytes: u64,
) -> Result<RefCell<Intent>, Refusal> {
    let mut stale = bitmap.superblock.is_stale() || bitmap.superblock.events < truth.events;
    let rows = rows(geometry);
    if bitmap.superblock.sync_size < rows {
        let mut superblock = bitmap.superblock.clone();
        superblock.sync_size = rows;
        let room = truth.bitmap_room().unwrap_or(Sector::ZERO);
        if superblock.total_bytes().next_multiple_of(block_bytes) > room.bytes() {
            return Err(Refusal::BadSet(format!(
                "{}: its write-intent bitmap covers {} of {rows} sectors, and there is no room for more; mdadm --grow \
                 --bitmap=none removes it",
                truth.name(),
                superblock.sync_size
            )));
        }
        bitmap = Bitmap::new(superblock, true);
        stale = true;
    }
    Ok(RefCell::new(Intent::new(bitmap, stale, block_bytes)))
}

fn member<D: Device>(
    found: Found<D>,
    slot: Option<MemberSlot>,
    replacement: bool,
    block_bytes: u64,
    deadlines: &Rc<Deadlines>,
    traffic: &Rc<Traffic>,
) -> Member<D> {
    let superblock = found.superblock;
    // What it holds begins and ends anywhere; what is read of it does so with a block.
    let block = block_bytes / SECTOR_BYTES;
    let recovered = superblock.recovered();
    let whole = Sector(recovered.0 - recovered.0 % block);
    let state = match slot {
        None => MemberState::Spare,
        Some(_) if recovered == Sector::MAX && !replacement => MemberState::InSync,
        Some(_) if replacement => MemberState::Replacing(whole),
        Some(_) => MemberState::Recovering(whole),
    };
    let bad = found.bad.iter().map(|bad| bad.start - bad.start % block..bad.end.next_multiple_of(block));
    Member {
        device: found.device,
        label: found.label,
        slot: Cell::new(slot),
        state: Cell::new(state),
        checkpoint: Cell::new(whole),
        filled: Cell::new(false),
        lags: Cell::new(false),
        guided: Cell::new(superblock.feature_map.contains(Features::RECOVERY_BITMAP) && slot.is_some()),
        bad: RefCell::new(bad.collect()),
        replayed: RefCell::new(found.replayed),
        log_is_due: Cell::new(false),
        log_shrinks: Cell::new(false),
        log_is_used: Cell::new(superblock.feature_map.contains(Features::BAD_BLOCKS)),
        read_errors: Cell::new(0),
        write_errors: Cell::new(0),
        corrected: Cell::new(u64::from(superblock.corrected_reads)),
        corrections: RefCell::default(),
        deadlines: deadlines.clone(),
        traffic: traffic.clone(),
        work: Default::default(),
        pace: Default::default(),
        last_blame: Cell::new(None),
        is_absent: Cell::new(false),
        awaited: Cell::new(0),
        superblock,
    }
}

/// Where it was being written, a replacement may differ from its original, and a resync compares only originals. With
/// parity, a member that is being filled may differ from what the others make of it, and with nothing to spare nobody
/// would compare them. Both are filled anew. True if there is one that had been filled to some point.
fn distrust_filled<D: Device>(seats: &[Seat<D>], parity: bool) -> bool {
    let mut distrusts = false;
    for member in seats.iter().flat_map(Seat::occupants) {
        match member.state.get() {
            MemberState::Replacing(_) => member.state.set(MemberState::Replacing(Sector::ZERO)),
            MemberState::Recovering(_) if parity => member.state.set(MemberState::Recovering(Sector::ZERO)),
            _ => continue,
        }
        distrusts |= member.checkpoint.replace(Sector::ZERO) > Sector::ZERO;
    }
    distrusts
}

/// Who sits where.
fn seat<D>(found: &[Found<D>]) -> Result<Seating, Refusal> {
    let superblocks: Vec<&Superblock> = found.iter().map(|found| &found.superblock).collect();
    let label = |index: usize| &found[index].label;
    check_identities(found)?;
    let own_slot = |index: usize| superblocks[index].role().slot();
    let candidates = (0..found.len()).filter(|&index| own_slot(index).is_some());
    // One that an equally fresh one has gone on without knows less than that one.
    let is_out = |index: usize| {
        let mut peers =
            candidates.clone().filter(|&peer| superblocks[peer].events == superblocks[index].events);
        peers.any(|peer| lists_as_out(superblocks[peer], superblocks[index]))
    };
    let rank =
        |&index: &usize| (superblocks[index].events, !is_out(index), std::cmp::Reverse(own_slot(index)));
    let Some(freshest) = candidates.clone().max_by_key(rank) else {
        let why = "none of these members holds a place in an array: all are spares or faulty; name its other members";
        return Err(Refusal::BadSet(why.into()));
    };
    let truth = superblocks[freshest];
    for index in (0..found.len()).filter(|&index| !is_stale(superblocks[index], truth)) {
        let other = superblocks[index];
        let changed = misses_one(other, truth).then(|| Superblock {
            size: truth.size,
            raid_disks: truth.raid_disks,
            ..other.clone()
        });
        if let Some(field) = disagreement(truth, changed.as_ref().unwrap_or(other)) {
            return Err(Refusal::BadSet(format!(
                "{} and {} belong to one array but disagree on its {field}; one of them is damaged: leave it out",
                label(freshest),
                label(index)
            )));
        }
    }
    for index in candidates.filter(|&index| lists_as_out(truth, superblocks[index])) {
        if !is_continued(&superblocks, index, truth) {
            return Err(Refusal::BadSet(format!(
                "split brain: {} and {} have each been used without the other (events {} and {}); decide which one is \
                 right, assemble without the other, and add that one anew",
                label(index),
                label(freshest),
                superblocks[index].events,
                truth.events
            )));
        }
    }
    check_witnesses(found, truth, label(freshest))?;
    let slots = truth.raid_disks as usize;
    let mut seating =
        Seating { freshest, slots: vec![(None, None); slots], spares: Vec::new(), left_out: Vec::new() };
    for (index, superblock) in superblocks.iter().enumerate() {
        let trusts = mutant::is(Mutant::TrustStale) && is_far_behind(superblock, truth);
        let role = match mutant::is(Mutant::IgnoreRoles) || trusts {
            true => superblock.role(),
            false => truth.role_of(superblock.dev_number),
        };
        place(&mut seating, &superblocks, index, role, slots);
    }
    leave_out_doubles(&mut seating, &superblocks);
    Ok(seating)
}

/// A spare has no data, but it remembers: where it has seen the array go on without the freshest of those that are here,
/// the ones that went on are missing, and what is here is old.
fn check_witnesses<D>(found: &[Found<D>], truth: &Superblock, freshest: &str) -> Result<(), Refusal> {
    let has_gone_on = |spare: &&Found<D>| {
        let spare = &spare.superblock;
        spare.events.0 > truth.events.0.saturating_add(1) && spare.role_of(truth.dev_number) == Role::Faulty
    };
    let Some(witness) = found.iter().find(has_gone_on) else { return Ok(()) };
    Err(Refusal::TooFew(format!(
        "{freshest} is the freshest member here, but {} has seen the array go on without it (events {} and {}): find the \
         members that went on, or leave {} out to start from what is old",
        witness.label, truth.events, witness.superblock.events, witness.label
    )))
}

/// Of spares with the same number only the freshest stays, and none with the number of one that holds a slot: one that was
/// removed, or whose addition failed half-way, may carry a number that has been given away again.
fn leave_out_doubles(seating: &mut Seating, superblocks: &[&Superblock]) {
    let number = |index: usize| superblocks[index].dev_number;
    let mut known: Vec<u32> = seating.seated().map(number).collect();
    seating.spares.sort_by_key(|&index| std::cmp::Reverse(superblocks[index].events));
    for index in std::mem::take(&mut seating.spares) {
        if known.contains(&number(index)) {
            let why = format!("its number, {}, is another member's; add it anew", number(index));
            seating.left_out.push((index, why));
        } else {
            known.push(number(index));
            seating.spares.push(index);
        }
    }
}

/// Gives one member the place that the freshest's table has for it.
fn place(seating: &mut Seating, superblocks: &[&Superblock], index: usize, role: Role, slots: usize) {
    let (superblock, truth) = (superblocks[index], superblocks[seating.freshest]);
    match role {
        _ if is_stale(superblock, truth) => {
            let why = format!("stale: its events are {}, the freshest's {}", superblock.events, truth.events);
            seating.left_out.push((index, why));
        }
        Role::Active(_) if superblock.role() != role && !has_moved_up(superblock, truth) => {
            // It missed the generation that gave it its slot, so nothing of that is on it yet.
            seating.spares.push(index);
        }
        Role::Active(slot) if slot.index() < slots => {
            let replacement = superblock.feature_map.contains(Features::REPLACEMENT);
            let (main, other) = &mut seating.slots[slot.index()];
            let seat = if replacement { other } else { main };
            match *seat {
                Some(sitting) if superblocks[sitting].events >= superblock.events => {
                    seating.left_out.push((index, format!("slot {slot} is taken by a fresher member")));
                }
                sitting => {
                    seating.left_out.extend(
                        sitting.map(|old| (old, format!("slot {slot} is taken by a fresher member"))),
                    );
                    *seat = Some(index);
                }
            }
        }
        Role::Active(slot) => seating.left_out.push((index, format!("there is no slot {slot}"))),
        _ if superblock.dev_number as usize >= truth.dev_roles.len() => {
            let why = format!("the others have no entry for its number, {}", superblock.dev_number);
            seating.left_out.push((index, why));
        }
        Role::Faulty => seating.left_out.push((index, "the others say that it is faulty".into())),
        Role::Spare if superblock.role().slot().is_some() => {
            seating.left_out.push((index, "the others say that it was removed".into()));
        }
        _ => seating.spares.push(index),
    }
}

fn is_stale(superblock: &Superblock, truth: &Superblock) -> bool {
    is_far_behind(superblock, truth) && !mutant::is(Mutant::TrustStale)
}

/// By the one generation that a crash may leave a member behind: it may have changed what all have in common.
fn misses_one(superblock: &Superblock, truth: &Superblock) -> bool {
    superblock.events.0.checked_add(1) == Some(truth.events.0)
}

/// By more than the one generation that a crash may leave a member behind.
fn is_far_behind(superblock: &Superblock, truth: &Superblock) -> bool {
    superblock.events.0.saturating_add(1) < truth.events.0
}

fn check_identities<D>(found: &[Found<D>]) -> Result<(), Refusal> {
    let Some(first) = found.first() else {
        return Err(Refusal::BadSet("no members given; name the devices of the array".into()));
    };
    for other in &found[1..] {
        if other.superblock.set_uuid != first.superblock.set_uuid {
            return Err(Refusal::BadSet(format!(
                "{} belongs to array {}, {} to array {}; name the members of one array",
                first.label,
                format_uuid(&first.superblock.set_uuid),
                other.label,
                format_uuid(&other.superblock.set_uuid)
            )));
        }
    }
    for (i, a) in found.iter().enumerate() {
        for b in &found[i + 1..] {
            if a.superblock.device_uuid == b.superblock.device_uuid {
                return Err(Refusal::BadSet(format!(
                    "{} and {} are the same member, or one is a copy of the other; give it once",
                    a.label, b.label
                )));
            }
        }
    }
    Ok(())
}

/// What two superblocks of one array must agree on and do not.
pub(super) fn disagreement(a: &Superblock, b: &Superblock) -> Option<&'static str> {
    let fields = [
        (a.level == b.level, "level"),
        (a.layout == b.layout, "layout"),
        (a.chunk == b.chunk, "chunk size"),
        (a.raid_disks == b.raid_disks, "number of members"),
        (a.size == b.size, "component size"),
        (a.ctime == b.ctime, "creation time"),
    ];
    fields.into_iter().find(|(agree, _)| !agree).map(|(_, field)| field)
}

/// Whether `a` has gone on without `b`: its table calls it faulty, or has nobody at all in its slot.
fn lists_as_out(a: &Superblock, b: &Superblock) -> bool {
    match a.role_of(b.dev_number) {
        Role::Active(_) => false,
        Role::Faulty => true,
        _ => !a.dev_roles.contains(&b.role()),
    }
}

/// Whether a member that is out has left nothing behind: somebody was with it to the end, and went on from there, or was
/// so with one who was, and so on to the freshest. Else it has gone on alone, and there are two histories.
fn is_continued(superblocks: &[&Superblock], index: usize, truth: &Superblock) -> bool {
    let was_with = |one: &Superblock, other: &Superblock| {
        let seen = one.role_of(other.dev_number).slot().is_some() && other.events >= one.events;
        seen && one.device_uuid != other.device_uuid
    };
    let mut known = vec![index];
    let mut next = 0;
    while let Some(&at) = known.get(next) {
        next += 1;
        let one = superblocks[at];
        // Whoever was with it then and is with the freshest now need not be here: both tables tell.
        let in_both = |(number, role): (usize, &Role)| {
            let other = number as u32 != one.dev_number;
            other && role.slot().is_some() && truth.role_of(number as u32) == *role
        };
        if one.dev_roles.iter().enumerate().any(in_both) {
            return true;
        }
        for (other, superblock) in superblocks.iter().enumerate() {
            if !known.contains(&other) && was_with(one, superblock) {
                known.push(other);
            }
        }
    }
    false
}

fn shape_of<D>(truth: &Superblock, seating: &Seating, found: &[Found<D>]) -> Result<Shape, Refusal> {
    let level = Level::from_md(truth.level).ok_or_else(|| {
        Refusal::BadSet(format!(
            "level {} is none that raidd knows; raidd leaves it untouched, use mdadm",
            truth.level
        ))
    })?;
    let slots = u16::try_from(truth.raid_disks)
        .ok()
        .filter(|&slots| slots > 0)
        .ok_or_else(|| Refusal::BadSet(format!("the superblocks speak of {} members", truth.raid_disks)))?;
    let mut raid0_members = Vec::new();
    if level == Level::Raid0 {
        for (slot, (main, _)) in seating.slots.iter().enumerate() {
            let Some(index) = main else {
                return Err(Refusal::TooFew(format!(
                    "the member of slot {slot} is missing, and raid0 needs all of its {slots} members; find it"
                )));
            };
            raid0_members.push(found[*index].superblock.data_size);
        }
    }
    let layout = if level == Level::Raid0 && !truth.feature_map.contains(Features::RAID0_LAYOUT) {
        0
    } else {
        truth.layout
    };
    Ok(Shape { level, layout, chunk: truth.chunk, slots, member: truth.size, raid0_members })
}

/// How the array starts.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    read_only: Option<String>,
    /// From where, and what the rows above are worth.
    resync: Option<(Sector, Trust)>,
    /// Partial parity logs tell what was being written.
    replay: bool,
    degraded: bool,
    /// Rows may be torn: what was filled of members that are not whole is not believed.
    torn: bool,
    /// What the superblocks say of it.
    resync_offset: Sector,
}

/// Where a partial parity log is damaged, nobody can tell which parity is torn.
fn distrust_logs(
    start: &mut Start,
    truth: &Superblock,
    told: bool,
    options: &Options,
) -> Result<(), Refusal> {
    if told || options.force && start.degraded {
        return Ok(());
    }
    if start.degraded {
        return Err(Refusal::DirtyDegraded(format!(
            "{} was not stopped cleanly, a member is missing, and a partial parity log is not there or damaged: where it \
             was being written, missing data may be worked out wrong; bring the missing member back, or accept that with \
             --force",
            truth.name()
        )));
    }
    start.resync = Some((start.resync_offset, Trust::Unclean));
    Ok(())
}

fn decide<D: Device>(
    truth: &Superblock,
    geometry: &Geometry,
    seating: &Seating,
    found: &[Found<D>],
    options: &Options,
) -> Result<Start, Refusal> {
    let whole = |index: Option<usize>| index.is_some_and(|i| found[i].superblock.recovered() == Sector::MAX);
    let in_sync: Vec<bool> = seating.slots.iter().map(|&(main, other)| whole(main) || whole(other)).collect();
    let name = truth.name();
    let slots = seating.slots.len();
    let present = in_sync.iter().filter(|&&present| present).count();
    if !geometry.survives(&in_sync) {
        let left_out: Vec<_> =
            seating.left_out.iter().map(|(i, why)| format!("; {}: {why}", found[*i].label)).collect();
        return Err(Refusal::TooFew(format!(
            "{name}: {present} of {slots} members are here and in sync, too few for {}; find the missing ones{}",
            Level::from_md(truth.level).map_or("its level", |level| level.name()),
            left_out.concat()
        )));
    }
    // All that are as fresh as the freshest are asked: one "dirty" is enough.
    let seated = seating.seated();
    let peers =
        seated.clone().map(|index| &found[index].superblock).filter(|peer| peer.events == truth.events);
    let resync_offset = peers.map(|peer| peer.resync_offset).chain([truth.resync_offset]).min();
    let resync_offset = resync_offset.unwrap_or(truth.resync_offset);
    let degraded = present < slots;
    let mut resync = None;
    if truth.level != 0 && resync_offset != Sector::MAX && (!truth.has_ppl() || options.fresh) {
        let parity = matches!(geometry, Geometry::Parity(_));
        if degraded && parity && !options.fresh {
            if !options.force && !mutant::is(Mutant::StartDirtyDegraded) {
                return Err(Refusal::DirtyDegraded(format!(
                    "{name} was not stopped cleanly and {} of its {slots} members are missing: where it was being \
                     written, missing data may be worked out wrong; bring the missing members back, or accept that \
                     with --force",
                    slots - present
                )));
            }
            tracing::warn!(
                array = name,
                "dirty and degraded, started by force: what was being written may be wrong"
            );
        }
        // Whose redundancy is all used up has nothing that could disagree with the rest.
        let redundant = match geometry {
            Geometry::Parity(parity) => slots - present < parity.parity_count(),
            Geometry::Copies(_) => true,
        };
        let trust = if options.fresh || degraded && parity { Trust::Initial } else { Trust::Unclean };
        resync = redundant.then_some((resync_offset, trust));
    }
    let read_only = read_only_reason(truth, seated.map(|index| &found[index]), options);
    let replay = truth.has_ppl() && resync_offset != Sector::MAX && !options.fresh;
    let torn = truth.level != 0 && resync_offset != Sector::MAX && !options.fresh;
    Ok(Start { read_only, resync, replay, degraded, torn, resync_offset })
}

/// Why the array can only be served read-only, if so.
fn read_only_reason<'a, D: Device + 'a>(
    truth: &Superblock,
    seated: impl Iterator<Item = &'a Found<D>> + Clone,
    options: &Options,
) -> Option<String> {
    if options.read_only {
        return Some("assembled with --read-only".into());
    }
    if let Some(member) = seated.clone().find(|member| member.device.info().read_only) {
        return Some(format!("{} is read-only", member.label));
    }
    let has_room = |member: &Found<D>| {
        let block = member.device.info().read_block_bytes as usize;
        room_bytes(member.superblock.ppl_size()) >= PPL_HEADER_BYTES as u64 && block <= PPL_HEADER_BYTES
    };
    let member = seated.clone().find(|member| truth.has_ppl() && !has_room(member))?;
    Some(format!("the partial parity log of {} is too small for its blocks", member.label))
}
