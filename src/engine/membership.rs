//! Who is in the array is changed here: by the operator (fail, remove, add, re-add, replace), and by spares that take over.
//!
//! Invariants:
//! - One change at a time; each is durable in the superblocks of all live members before it is answered.
//! - A device is written only after everything that could refuse it has been looked at.
//! - A member is given a slot only after it has the whole bitmap (`bitmap`) and a log (`ppl_log`), and with no await
//!   between the last write of these and the seat; from then on every write of its rows reaches it.
//! - Whoever comes back is caught up by the bitmap only if no bit has been cleared since it left, and only in the slot
//!   that it had.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::array::{Array, Busy};
use super::assemble::disagreement;
use super::create::NewMember;
use super::error::Refusal;
use super::load::Found;
use super::member::{Member, MemberState};
use super::plan::Trust;
use super::ppl_log::room_bytes;
use super::state::{Health, Phase};
use crate::io::{Device, Fua, IoError, Runtime};
use crate::layout::Level;
use crate::md::superblock::DEV_ROLES_MAX;
use crate::md::{Features, Role, SUPERBLOCK_OFFSET_BYTES, Superblock};
use crate::units::{EventCount, MemberSlot, SECTOR_BYTES, Sector};

/// What is cleared at the start of a new member: boot sector, partition table, filesystems' superblocks.
const HEAD_BYTES: u64 = 4096;
/// How often it is looked whether an array has come to rest.
const REST_CHECK: Duration = Duration::from_millis(1);

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Operator's `fail`: takes the member of this path out of service, durably.
    pub async fn fail(&self, label: &str) -> Result<(), Refusal> {
        let member = self.member_called(label)?;
        let _busy = self.enter_to_change()?;
        match member.state.get() {
            MemberState::Faulty => {
                member.is_absent.set(false);
                return Ok(());
            }
            MemberState::InSync
                if !self.can_do_without(member.slot.get().expect("a member in sync has a slot")) =>
            {
                return Err(Refusal::NotNow(self.why_not_fail(label)));
            }
            _ => {}
        }
        self.fail_member(&member, "the operator said so");
        member.is_absent.set(false);
        self.persist().await.map_err(|error| Refusal::WriteFailed {
            member: label.to_owned(),
            what: "recording the failure in the superblocks",
            error,
        })
    }

    /// A member by its path.
    pub(super) fn member_called(&self, label: &str) -> Result<Rc<Member<D>>, Refusal> {
        self.roster.borrow().find(label).ok_or_else(|| {
            Refusal::NotNow(format!("{label} is no member of {0}; see raidctl status {0}", self.name()))
        })
    }

    /// The devices of all members that have not failed, with their paths.
    pub fn devices(&self) -> Vec<(D, String)>
    where
        D: Clone,
    {
        let members = self.live_members();
        members.iter().map(|member| (member.device.clone(), member.label.clone())).collect()
    }

    /// Waits until nothing that was let in is under way, here and on the members' devices, and all of them have the last
    /// generation of superblocks: then the array can be stopped without anybody being refused. Nobody may let anything more in.
    /// Says who does not come to rest.
    pub async fn come_to_rest(&self) -> Result<(), Refusal> {
        let not_now = |why: String| Refusal::NotNow(format!("{}: {why}", self.name()));
        let failed = |error: IoError| not_now(format!("its superblocks cannot be written: {error}"));
        while self.state.borrow().busy > 0 {
            self.runtime.sleep(REST_CHECK).await;
        }
        if self.live_members().iter().any(|member| member.lags.get()) {
            self.state.borrow_mut().wanted += 1;
            self.record_what_changed().await.map_err(failed)?;
        }
        // What was given up may still land, over what is written next.
        let deadline = self.runtime.now() + self.deadlines.timeout();
        while let Some(member) = self.live_members().iter().find(|member| member.device.in_flight() > 0) {
            if self.runtime.now() >= deadline {
                let why = format!("{} has not answered all it was asked; try again", member.label);
                return Err(not_now(why));
            }
            self.runtime.sleep(REST_CHECK).await;
        }
        Ok(())
    }

    /// Has the superblocks say what the array was changed into at its assembly. Nothing that clients write comes before that
    /// anyhow; this makes sure of it now.
    pub async fn record_what_changed(&self) -> Result<(), IoError> {
        let _busy = self.enter(true)?;
        self.persist().await
    }

    /// Lets an operator's change of the members in. It is counted, so that no superblock is written behind the last one
    /// of a stop.
    pub(super) fn enter_to_change(&self) -> Result<Busy<'_>, Refusal> {
        if self.state.borrow().phase == Phase::ReadOnly {
            let why =
                format!("{}: the array is read-only; its members' states cannot be changed", self.name());
            return Err(Refusal::NotNow(why));
        }
        self.enter(true).map_err(|error| Refusal::NotNow(format!("{}: {error}", self.name())))
    }

    fn why_not_fail(&self, label: &str) -> String {
        let name = self.name();
        let state = self.state.borrow();
        let torn = state.resync.as_ref().is_some_and(|resync| resync.trust == Trust::Unclean);
        if self.level() != Level::Raid0 && (torn || !state.suspect.is_empty()) {
            return format!(
                "{label}: {name} is being resynced after an unclean stop, and until then this member's data cannot \
                 be worked out from the others; wait until raidctl status {name} shows no resync"
            );
        }
        format!("{label}: {name} would lose data without this member; nothing was changed")
    }

    /// Whether a vacant slot could be given to a spare.
    pub(super) fn spare_is_due(&self) -> bool {
        self.due_spare().is_some()
    }

    fn due_spare(&self) -> Option<(MemberSlot, Rc<Member<D>>)> {
        if !self.keeps_redundancy() || self.health() == Health::Failed {
            return None;
        }
        let roster = self.roster.borrow();
        let slot = *roster.vacant().first()?;
        let spare = roster.others.iter().find(|member| self.is_fit(member))?;
        Some((slot, spare.clone()))
    }

    /// Whether a spare has the room for data, bitmap and log. Those that were added here have; others may have been made by
    /// anybody.
    fn is_fit(&self, spare: &Member<D>) -> bool {
        let superblock = &spare.superblock;
        let bitmap = self.intent.as_ref().map_or(0, |intent| intent.borrow().total_bytes());
        let has_bitmap = superblock.feature_map.contains(Features::BITMAP) == self.has_bitmap();
        let room = bitmap == 0 || superblock.bitmap_room().is_some_and(|room| room.bytes() >= bitmap);
        let log = match &self.logs {
            None => !superblock.has_ppl(),
            Some(logs) => superblock.has_ppl() && room_bytes(superblock.ppl_size()) >= logs.room_bytes(),
        };
        spare.state.get() == MemberState::Spare
            && superblock.data_size.0 >= self.used_sectors()
            && has_bitmap
            && room
            && log
    }

    /// What a member is given before a slot: the bitmap, or the log. The caller holds the bitmap's lane, and seats it with
    /// no await in between.
    async fn prepare(&self, member: &Member<D>) -> Result<(), IoError> {
        self.write_whole_bitmap(member).await?;
        self.give_log(member).await
    }

    /// Gives vacant slots to spares, durably.
    pub(super) async fn seat_spares(&self) -> Result<(), IoError> {
        if self.due_spare().is_none() {
            return Ok(());
        }
        let _changes = self.changes.lock(0..1).await;
        while let Some((slot, spare)) = self.due_spare().filter(|_| self.goes_on()) {
            let seated = {
                let _bitmap = self.bitmap_lane.lock(0..1).await;
                let written = self.prepare(&spare).await;
                match written {
                    Ok(())
                        if self
                            .due_spare()
                            .is_some_and(|(vacant, due)| vacant == slot && Rc::ptr_eq(&due, &spare)) =>
                    {
                        spare.state.set(MemberState::Recovering(Sector::ZERO));
                        spare.checkpoint.set(Sector::ZERO);
                        self.roster.borrow_mut().seat(slot, &spare);
                        true
                    }
                    Ok(()) => false,
                    Err(error) => {
                        spare.note_write_error("bitmap or log write", &error);
                        self.fail_member(&spare, "it could not take the bitmap or the log");
                        false
                    }
                }
            };
            if seated {
                tracing::info!(array = self.name(), member = spare.label, %slot, "spare takes over");
            }
            self.state.borrow_mut().wanted += 1;
            self.persist().await?;
        }
        Ok(())
    }

    /// Operator's `add`: a new member, whatever it was before. It becomes a spare, and takes over at once where a slot is
    /// vacant. `device_uuid` is random, and nobody else's.
    pub async fn add(&self, new: NewMember<D>, device_uuid: [u8; 16]) -> Result<(), Refusal> {
        let _busy = self.enter_to_change()?;
        let _changes = self.changes.lock(0..1).await;
        let superblock = self.new_superblock(&new, device_uuid)?;
        let member = Rc::new(self.member_of(new.device, new.label, superblock));
        self.write_new(&member).await.map_err(|error| Refusal::WriteFailed {
            member: member.label.clone(),
            what: "writing its metadata",
            error,
        })?;
        self.roster.borrow_mut().others.push(member.clone());
        self.record_change(&member, "recording the new member in the superblocks").await?;
        tracing::info!(array = self.name(), member = member.label, "added");
        self.kick();
        Ok(())
    }

    /// Operator's `re-add`: a member that was here before, caught up by what the write-intent bitmap says it has missed.
    pub async fn re_add(&self, found: Found<D>) -> Result<(), Refusal> {
        let _busy = self.enter_to_change()?;
        let _changes = self.changes.lock(0..1).await;
        let slot = self.check_return(&found)?;
        let label = found.label.clone();
        let member = Rc::new(self.member_of(found.device, found.label, found.superblock));
        member.log_is_used.set(!found.bad.is_empty());
        let block = self.block_bytes / SECTOR_BYTES;
        let whole = |bad: &Range<u64>| bad.start - bad.start % block..bad.end.next_multiple_of(block);
        *member.bad.borrow_mut() = found.bad.iter().map(whole).collect();
        {
            let _bitmap = self.bitmap_lane.lock(0..1).await;
            self.write_whole_bitmap(&member).await.map_err(|error| Refusal::WriteFailed {
                member: label,
                what: "writing the bitmap",
                error,
            })?;
            if !self.roster.borrow().vacant().contains(&slot) {
                return Err(Refusal::NotNow(format!(
                    "{}: its slot has just been given to another",
                    member.label
                )));
            }
            member.guided.set(true);
            member.state.set(MemberState::Recovering(Sector::ZERO));
            self.roster.borrow_mut().seat(slot, &member);
        }
        self.record_change(&member, "recording its return in the superblocks").await?;
        tracing::info!(array = self.name(), member = member.label, %slot, "re-added");
        self.kick();
        Ok(())
    }

    /// Whether a former member may come back by the bitmap, and to which slot.
    fn check_return(&self, found: &Found<D>) -> Result<MemberSlot, Refusal> {
        let refuse = |why: String| {
            Err(Refusal::NotNow(format!("{}: {why}; use add for a full recovery", found.label)))
        };
        let superblock = &found.superblock;
        if superblock.set_uuid != self.truth.set_uuid {
            return refuse(format!("it was never a member of {}", self.name()));
        }
        found.check_bitmap()?;
        if let Some(field) = disagreement(&self.truth, superblock) {
            return refuse(format!("its superblock has another {field} than the array"));
        }
        let Some(slot) = superblock.role().slot() else {
            return refuse("it held no slot when it left".into());
        };
        if superblock.recovered() != Sector::MAX {
            return refuse("it was not in sync when it left".into());
        }
        let Some(intent) = &self.intent else {
            return refuse(format!(
                "{} has no write-intent bitmap that could tell what it has missed",
                self.name()
            ));
        };
        let cleared = intent.borrow().events_cleared();
        if superblock.events < cleared {
            let events = superblock.events;
            return refuse(format!(
                "it left at event {events}, and what it has missed is known only since {cleared}"
            ));
        }
        if superblock.events > self.state.borrow().events {
            return refuse("it has been used without this array since".into());
        }
        let roster = self.roster.borrow();
        let knows =
            |member: &Rc<Member<D>>| superblock.role_of(member.superblock.dev_number).slot().is_some();
        if !roster.seated().any(|member| member.in_sync() && knows(member)) {
            return refuse("it has gone on without all who are here now".into());
        }
        if !roster.vacant().contains(&slot) {
            return refuse(format!("its slot, {slot}, has another member"));
        }
        if roster.all().any(|member| member.superblock.dev_number == superblock.dev_number) {
            return refuse("its device number is taken".into());
        }
        drop(roster);
        self.check_device(&found.device, &found.label, superblock.data_offset)?;
        let block = self.block_bytes;
        let places = [Some(superblock.data_offset), superblock.bitmap_sector()];
        if !places.iter().flatten().all(|place| place.bytes().is_multiple_of(block))
            || superblock.bitmap_room().is_none_or(|room| room.bytes() < intent.borrow().total_bytes())
        {
            return refuse("its superblock has no room for the array's bitmap, or other blocks".into());
        }
        Ok(slot)
    }

    /// Operator's `replace`: a spare is filled with what a member holds, which serves until then.
    pub async fn replace(&self, old: &str, new: &str) -> Result<(), Refusal> {
        let _busy = self.enter_to_change()?;
        let _changes = self.changes.lock(0..1).await;
        let (old, spare) = (self.member_called(old)?, self.member_called(new)?);
        if spare.state.get() != MemberState::Spare {
            return Err(Refusal::NotNow(format!("{new} is no spare; add it first, or choose another")));
        }
        let replaceable = |old: &Member<D>| {
            let slot = old.slot.get().filter(|_| old.in_sync())?;
            let seat = self.roster.borrow().seats[slot.index()].replacement.is_none();
            seat.then_some(slot)
        };
        if !self.is_fit(&spare) {
            return Err(Refusal::NotNow(format!(
                "{new} is too small, or was made for another array; add it anew"
            )));
        }
        if !self.keeps_redundancy() {
            return Err(Refusal::NotNow(format!(
                "{}: raid0 takes no spares; copy its members instead",
                self.name()
            )));
        }
        if replaceable(&old).is_none() {
            let label = &old.label;
            return Err(Refusal::NotNow(format!(
                "{label} is not in sync, or is being replaced already; add is for vacant slots"
            )));
        }
        {
            let _bitmap = self.bitmap_lane.lock(0..1).await;
            self.prepare(&spare).await.map_err(|error| Refusal::WriteFailed {
                member: new.to_owned(),
                what: "writing the bitmap or the log",
                error,
            })?;
            let Some(slot) = replaceable(&old).filter(|_| spare.state.get() == MemberState::Spare) else {
                return Err(Refusal::NotNow(format!(
                    "{}: its state has just changed; look again",
                    old.label
                )));
            };
            spare.state.set(MemberState::Replacing(Sector::ZERO));
            spare.checkpoint.set(Sector::ZERO);
            self.roster.borrow_mut().seat_replacement(slot, &spare);
        }
        self.record_change(&spare, "recording the replacement in the superblocks").await?;
        tracing::info!(array = self.name(), old = old.label, new = spare.label, "replacement begun");
        self.kick();
        Ok(())
    }

    /// Operator's `remove`: lets go of a faulty member or a spare.
    pub async fn remove(&self, label: &str) -> Result<(), Refusal> {
        let _busy = self.enter_to_change()?;
        let _changes = self.changes.lock(0..1).await;
        let member = self.member_called(label)?;
        if !matches!(member.state.get(), MemberState::Spare | MemberState::Faulty) {
            return Err(Refusal::NotNow(format!("{label} is in use by {}; fail it first", self.name())));
        }
        // What it has failed at must be on record before it is forgotten.
        let recorded = self.persist().await;
        recorded.map_err(|error| Refusal::WriteFailed {
            member: label.to_owned(),
            what: "recording its failure",
            error,
        })?;
        self.roster.borrow_mut().remove(&member);
        self.state.borrow_mut().wanted += 1;
        self.persist().await.map_err(|error| Refusal::WriteFailed {
            member: label.to_owned(),
            what: "recording the removal in the superblocks",
            error,
        })?;
        tracing::info!(array = self.name(), member = label, "removed");
        Ok(())
    }

    /// Makes a change of one member durable on all. It may have failed at that.
    async fn record_change(&self, member: &Member<D>, what: &'static str) -> Result<(), Refusal> {
        self.state.borrow_mut().wanted += 1;
        let failed = |error| Refusal::WriteFailed { member: member.label.clone(), what, error };
        self.persist().await.map_err(failed)?;
        if member.state.get() == MemberState::Faulty {
            return Err(Refusal::NotNow(format!(
                "{}: it failed while it was written to; see the log",
                member.label
            )));
        }
        Ok(())
    }

    /// The superblock of a new spare.
    fn new_superblock(&self, new: &NewMember<D>, device_uuid: [u8; 16]) -> Result<Superblock, Refusal> {
        if !self.keeps_redundancy() {
            return Err(Refusal::NotNow(format!(
                "{}: raid0 has no redundancy, so a spare is of no use",
                self.name()
            )));
        }
        let data_offset = self.truth.data_offset;
        let data_size = self.check_device(&new.device, &new.label, data_offset)?;
        let roster = self.roster.borrow();
        if roster.all().any(|member| member.label == new.label && member.state.get() != MemberState::Faulty) {
            return Err(Refusal::NotNow(format!("{} is a member already", new.label)));
        }
        let taken = |number: u32| roster.all().any(|member| member.superblock.dev_number == number);
        let number = (self.truth.raid_disks..DEV_ROLES_MAX as u32).find(|&number| !taken(number));
        let Some(dev_number) = number.filter(|&number| self.role_fits(number)) else {
            return Err(Refusal::NotNow(format!(
                "{}: its superblocks have no room for one more",
                self.name()
            )));
        };
        let mut superblock = self.truth.clone();
        superblock.feature_map = Features(superblock.feature_map.0 & !Features::OF_ONE_MEMBER.0);
        superblock.dev_number = dev_number;
        superblock.device_uuid = device_uuid;
        superblock.data_size = data_size;
        superblock.devflags = 0;
        superblock.corrected_reads = 0;
        superblock.recovery_offset = Sector::ZERO;
        superblock.events = EventCount(self.state.borrow().events.0);
        let len = superblock.dev_roles.len().max(dev_number as usize + 1);
        superblock.dev_roles.resize(len, Role::Spare);
        superblock.dev_roles[dev_number as usize] = Role::Spare;
        Ok(superblock)
    }

    /// A superblock with so many roles must still end before what follows it.
    fn role_fits(&self, number: u32) -> bool {
        let mut superblock = self.truth.clone();
        superblock.dev_roles.resize(superblock.dev_roles.len().max(number as usize + 1), Role::Spare);
        let end =
            SUPERBLOCK_OFFSET_BYTES + (superblock.encode().len() as u64).next_multiple_of(self.block_bytes);
        let places =
            [Some(self.truth.data_offset), self.truth.bitmap_sector(), self.truth.bad_blocks_sector()];
        places.iter().flatten().all(|place| place.bytes() >= end)
    }

    /// Whether a device has the room and the kind of blocks; the data sectors it has.
    fn check_device(&self, device: &D, label: &str, data_offset: Sector) -> Result<Sector, Refusal> {
        let info = device.info();
        let refuse = |why: String| Err(Refusal::BadMember { member: label.to_owned(), why });
        if info.read_only {
            return refuse("it is read-only; choose another device".into());
        }
        let block = u64::from(info.read_block_bytes);
        if block > self.block_bytes {
            return refuse(format!(
                "its blocks are of {block} bytes, the array's of {}; choose a device with smaller blocks",
                self.block_bytes
            ));
        }
        let has = Sector::floor(info.size_bytes).0.saturating_sub(data_offset.0);
        let used = self.used_sectors();
        if has < used {
            let short = Sector(used - has).bytes();
            return refuse(format!("it is too small by {short} bytes; choose a larger device"));
        }
        Ok(Sector(has))
    }

    fn member_of(&self, device: D, label: String, superblock: Superblock) -> Member<D> {
        Member {
            device,
            label,
            slot: Cell::new(None),
            state: Cell::new(MemberState::Spare),
            checkpoint: Cell::new(Sector::ZERO),
            filled: Cell::new(false),
            lags: Cell::new(false),
            guided: Cell::new(false),
            bad: RefCell::default(),
            replayed: RefCell::default(),
            log_is_due: Cell::new(false),
            log_shrinks: Cell::new(false),
            log_is_used: Cell::new(false),
            read_errors: Cell::new(0),
            write_errors: Cell::new(0),
            corrected: Cell::new(u64::from(superblock.corrected_reads)),
            corrections: RefCell::default(),
            deadlines: self.deadlines.clone(),
            traffic: self.traffic.clone(),
            work: Default::default(),
            pace: Default::default(),
            last_blame: Cell::new(None),
            is_absent: Cell::new(false),
            awaited: Cell::new(0),
            superblock,
        }
    }

    /// Makes a device one of ours: what was on it goes, then its superblock is written. The others do not know its
    /// number yet, so a crash in between leaves a device that nobody takes for a member.
    async fn write_new(&self, member: &Member<D>) -> Result<(), IoError> {
        for at in [0, SUPERBLOCK_OFFSET_BYTES] {
            let mut buf = self.memory.metadata.alloc(HEAD_BYTES as usize).await;
            buf.zero();
            member.write_metadata(at, vec![buf.freeze()], Fua::Yes).await?;
        }
        {
            let _bitmap = self.bitmap_lane.lock(0..1).await;
            self.write_whole_bitmap(member).await?;
        }
        member.flush().await?;
        let bytes = member.superblock.encode();
        let mut buf =
            self.memory.metadata.alloc(bytes.len().next_multiple_of(self.block_bytes as usize)).await;
        buf.zero();
        buf[..bytes.len()].copy_from_slice(&bytes);
        member.write_metadata(SUPERBLOCK_OFFSET_BYTES, vec![buf.freeze()], Fua::Yes).await
    }
}
