//! The director: faults and the operator's deeds, while clients are at work; and the atlas of what is broken, which keeps
//! faults within what redundancy survives, where the profile wants that.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use raidd::engine::create::NewMember;
use raidd::engine::{ArrayStatus, Health, MemberState, Phase, Refusal};
use raidd::io::{Clock, Spawn};

use crate::clients::Scene;
use crate::disk::{Ability, Disk, Platter};
use crate::model::survives;
use crate::plan::{Part, Profile};
use crate::setup::{label, load_disk};
use crate::world::World;

/// What befell a run, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Crashes of the daemon.
    pub kills: u64,
    /// Crashes of the machine.
    pub power_cuts: u64,
    /// Orderly stops.
    pub stops: u64,
    /// Members that the operator failed.
    pub failed: u64,
    /// Disks whose writes begin to fail.
    pub write_errors: u64,
    /// Disks that died.
    pub deaths: u64,
    /// Dead or failed disks that were there again at the next start.
    pub returns: u64,
    /// Stretches of sectors that became unreadable.
    pub unreadable: u64,
    /// Disks that became slow.
    pub slow: u64,
    /// Disks that became full.
    pub full: u64,
    /// Disks whose flushes fail.
    pub flush_errors: u64,
    /// Disks with operations that never end.
    pub hangs: u64,
    /// Blank or foreign disks that were added.
    pub added: u64,
    /// Former members that were caught up.
    pub re_added: u64,
    /// Members that another was to replace.
    pub replaced: u64,
    /// Members that were let go of.
    pub removed: u64,
    /// Scrubs.
    pub scrubs: u64,
    /// Members of which a few bytes were changed behind everybody's back.
    pub corrupted: u64,
    /// Starts that were refused.
    pub refusals: u64,
    /// Starts by force.
    pub forced: u64,
    /// NBD connections.
    pub connections: u64,
    /// Of these, cut.
    pub cuts: u64,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: &Tally) {
        let Tally { kills, power_cuts, stops, failed, write_errors, deaths, .. } = other;
        let Tally { returns, unreadable, slow, full, flush_errors, refusals, forced, .. } = other;
        let Tally { connections, cuts, .. } = other;
        self.connections += connections;
        self.cuts += cuts;
        let Tally { hangs, added, re_added, replaced, removed, scrubs, corrupted, .. } = other;
        self.hangs += hangs;
        self.added += added;
        self.re_added += re_added;
        self.replaced += replaced;
        self.removed += removed;
        self.scrubs += scrubs;
        self.corrupted += corrupted;
        self.kills += kills;
        self.power_cuts += power_cuts;
        self.stops += stops;
        self.failed += failed;
        self.write_errors += write_errors;
        self.deaths += deaths;
        self.returns += returns;
        self.unreadable += unreadable;
        self.slow += slow;
        self.full += full;
        self.flush_errors += flush_errors;
        self.refusals += refusals;
        self.forced += forced;
    }

    /// Faults of all kinds.
    pub fn faults(&self) -> u64 {
        let disks = self.write_errors + self.deaths + self.flush_errors + self.hangs;
        self.failed + disks + self.unreadable + self.slow + self.full + self.corrupted
    }
}

/// What is broken, by disk. It outlives crashes.
pub struct Atlas {
    /// All disks of the run, by number.
    pub disks: Vec<Platter>,
    /// Disks that may deny something, or soon will.
    pub impaired: Vec<Cell<bool>>,
    /// A write has failed half-way, which only the next start mends.
    pub torn: Cell<bool>,
    /// The last stop was unclean, and redundancy has not been seen to agree since.
    pub unclean: Cell<bool>,
    /// What has happened.
    pub tally: RefCell<Tally>,
    /// Makes UUIDs of disks that are added.
    added: Cell<u8>,
}

impl Atlas {
    /// An atlas of sound disks.
    pub fn new(disks: Vec<Platter>) -> Atlas {
        Atlas {
            impaired: disks.iter().map(|_| Cell::new(false)).collect(),
            disks,
            torn: Cell::new(false),
            unclean: Cell::new(false),
            tally: RefCell::default(),
            added: Cell::new(100),
        }
    }

    /// Notes that something has happened.
    pub fn count(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.borrow_mut());
    }

    /// The disk of this label.
    pub fn disk(&self, path: &str) -> usize {
        self.disks.iter().position(|disk| label(disk) == path).expect("a label of a disk")
    }

    /// By slot: the disk in sync there, if it is sound.
    pub fn sound(&self, status: &ArrayStatus) -> Vec<Option<usize>> {
        let mut slots = vec![None; usize::from(status.shape.slots)];
        for member in &status.members {
            if let (Some(slot), Some(path), Some(MemberState::InSync)) =
                (member.slot, &member.path, member.state)
            {
                let disk = self.disk(path);
                let is_sound = !self.impaired[disk].get() && member.bad_sectors == 0;
                slots[slot.index()] = Some(disk).filter(|_| is_sound);
            }
        }
        slots
    }

    /// A disk is sound again if nothing is wrong with it now.
    fn acquit(&self, number: usize) {
        let faults = self.disks[number].faults();
        let breaks = faults.dead.get()
            || faults.writes_left.get().is_some()
            || faults.flush_fails.get()
            || faults.hangs.get() > 0
            || !faults.unreadable.borrow().is_empty();
        self.impaired[number].set(breaks);
    }

    /// Nothing is wrong with any disk any more, but for what they have missed.
    pub fn mend_all(&self) {
        self.disks.iter().for_each(Platter::mend);
        self.impaired.iter().for_each(|impaired| impaired.set(false));
    }
}

/// What the director may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `Array::fail`.
    Fail,
    /// The disk's writes fail, from soon on.
    WriteErrors,
    /// The disk is gone.
    Die,
    /// Some of its sectors cannot be read.
    Spoil,
    /// Its flushes fail.
    FlushErrors,
    /// Operations of it never end.
    Hang,
    /// `Array::add`.
    Add,
    /// `Array::re_add`.
    ReAdd,
    /// `Array::remove`.
    Remove,
    /// `Array::replace`.
    Replace,
    /// `Array::scrub`, or `stop_scrub`.
    Scrub,
    /// It takes long for everything.
    Slow,
    /// It has no space left, for a while.
    Fill,
    /// What is slow, unreadable or full is no longer.
    Mend,
    /// The daemon, or the machine, crashes.
    Crash,
}

const ACTIONS: [(Action, Part); 20] = [
    (Action::Fail, Part::Failures),
    (Action::WriteErrors, Part::Failures),
    (Action::Die, Part::Failures),
    (Action::Spoil, Part::Unreadable),
    (Action::FlushErrors, Part::Failures),
    (Action::Hang, Part::Hangs),
    (Action::Slow, Part::Slowness),
    (Action::Fill, Part::Full),
    (Action::Mend, Part::Slowness),
    (Action::Add, Part::Members),
    (Action::Add, Part::Members),
    (Action::ReAdd, Part::Members),
    (Action::ReAdd, Part::Members),
    (Action::Remove, Part::Members),
    (Action::Replace, Part::Members),
    (Action::Scrub, Part::Scrubs),
    (Action::Crash, Part::Crashes),
    (Action::Crash, Part::Crashes),
    (Action::Crash, Part::Crashes),
    (Action::Crash, Part::Crashes),
];

/// Directs an era until its clients have had enough, or the world ends.
pub async fn direct(scene: &Rc<Scene>, atlas: &Rc<Atlas>) {
    let (world, dice) = (&scene.world, scene.world.dice());
    let (mut progress, mut since) = (scene.done.ops.get(), world.now());
    while scene.clients.get() > 0 && !world.has_failed() {
        if scene.done.ops.get() != progress {
            (progress, since) = (scene.done.ops.get(), world.now());
        }
        if world.now() > since + PATIENCE {
            release(atlas, world);
            since = world.now();
        }
        world.sleep(Duration::from_micros(dice.between(20, 1500))).await;
        if world.will_crash() || !dice.one_in(scene.plan.trouble) {
            continue;
        }
        let (action, part) = *dice.pick(&ACTIONS);
        if !scene.plan.narrow.is_without(part) {
            act(scene, atlas, action).await;
        }
        look(scene, atlas);
    }
}

/// So long a disk hangs at most where everybody waits for it: what hangs keeps its buffers, and there are only so many.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What hangs goes on.
pub fn release(atlas: &Atlas, world: &World) {
    for disk in &atlas.disks {
        disk.faults().hangs.set(0);
        disk.release_hung(world);
    }
}

/// What is seen from outside tells the oracle how much to believe.
pub fn look(scene: &Scene, atlas: &Atlas) {
    let status = scene.array.status();
    let agrees = is_in_agreement(&status);
    let is_sound = atlas.impaired.iter().all(|impaired| !impaired.get());
    let mut oracle = scene.oracle.borrow_mut();
    if agrees {
        oracle.settle();
        atlas.unclean.set(false);
    }
    if status.ppl_is_open {
        oracle.mend_cut_off();
    }
    oracle.learn(agrees || (scene.plan.profile == Profile::Within && is_sound));
}

/// Whether redundancy agrees everywhere.
pub fn is_in_agreement(status: &ArrayStatus) -> bool {
    !status.resync_is_due && !status.has_suspect_rows
}

/// A disk on which a fault is survived, if there is one.
fn victim(scene: &Scene, atlas: &Atlas) -> Option<usize> {
    let (dice, shape) = (scene.world.dice(), &scene.plan.shape);
    let status = scene.array.status();
    if scene.plan.profile == Profile::Beyond {
        return Some(dice.below(atlas.disks.len() as u64) as usize);
    }
    let sound = atlas.sound(&status);
    let is_parity = matches!(shape.level, 4..=6);
    // A first resync is a resync like any other to the next start, so it is not within redundancy to lose data now.
    let is_trusted = is_in_agreement(&status) || !is_parity;
    if atlas.torn.get() || scene.full.get() || !is_trusted || status.has_suspect_rows {
        return None;
    }
    let slot = dice.below(sound.len() as u64) as usize;
    let mut present: Vec<bool> = sound.iter().map(Option::is_some).collect();
    present[slot] = false;
    sound[slot].filter(|_| survives(shape.level, shape.layout, &present))
}

/// Whether a crash now is survived.
pub fn may_crash(scene: &Scene, atlas: &Atlas) -> bool {
    if scene.plan.profile == Profile::Beyond || !matches!(scene.plan.shape.level, 4..=6) {
        return true;
    }
    let status = scene.array.status();
    status.ppl_is_open || atlas.sound(&status).iter().all(Option::is_some)
}

fn doubt(scene: &Scene, disk: usize, atlas: &Atlas) {
    let agrees = is_in_agreement(&scene.array.status());
    let mut oracle = scene.oracle.borrow_mut();
    if agrees {
        oracle.settle();
    } else {
        oracle.doubt();
    }
    atlas.impaired[disk].set(true);
}

/// Does it, where the profile allows that.
pub async fn act(scene: &Rc<Scene>, atlas: &Rc<Atlas>, action: Action) {
    let (world, dice) = (&scene.world, scene.world.dice());
    match action {
        Action::Slow => {
            let disk = dice.pick(&atlas.disks);
            disk.faults().slow.set(dice.between(2, 60));
            atlas.count(|tally| tally.slow += 1);
            return world.say(|| format!("director: {} is slow", label(disk)));
        }
        Action::Mend => {
            for disk in &atlas.disks {
                let faults = disk.faults();
                faults.slow.set(1);
                faults.full.set(false);
                if dice.one_in(2) && disk.hung() > 0 {
                    faults.hangs.set(0);
                    disk.release_hung(world);
                }
                if !faults.dead.get() && !faults.unreadable.borrow().is_empty() {
                    faults.unreadable.borrow_mut().clear();
                    let (scene, atlas, number) = (scene.clone(), atlas.clone(), disk.number() as usize);
                    world.spawn(async move {
                        scene.outlive_requests().await;
                        atlas.acquit(number);
                    });
                }
            }
            return world.say(|| "director: what was slow or unreadable is no longer");
        }
        Action::Crash => {
            if may_crash(scene, atlas) {
                if dice.one_in(2) {
                    world.crash_in(dice.below(500));
                } else {
                    world.crash_at_superblock(dice.between(1, 24));
                }
                world.say(|| "director: a crash is coming");
            }
            return;
        }
        Action::Add | Action::ReAdd | Action::Remove | Action::Replace | Action::Scrub => {
            return operate(scene, atlas, action).await;
        }
        _ => {}
    }
    if action == Action::Fail && scene.array.status().resync_is_due && atlas.unclean.get() {
        return fail_in_vain(scene, atlas).await;
    }
    let Some(number) = victim(scene, atlas) else { return };
    let disk = &atlas.disks[number];
    let faults = disk.faults();
    world.note(4, action as u64);
    match action {
        Action::Fail => {
            doubt(scene, number, atlas);
            let result = scene.array.fail(&label(disk)).await;
            world.say(|| format!("director: fail {} -> {result:?}", label(disk)));
            match result {
                Ok(()) => atlas.count(|tally| tally.failed += 1),
                Err(error) if scene.plan.profile == Profile::Within && !scene.stopping.get() => {
                    let already = scene.array.status().members.iter().any(|member| {
                        member.path.as_deref() == Some(&label(disk))
                            && member.state == Some(MemberState::Faulty)
                    });
                    if !already {
                        world.fail(format!("{} could be spared, but: {error}", label(disk)));
                    }
                }
                Err(_) => {}
            }
        }
        Action::WriteErrors => {
            doubt(scene, number, atlas);
            faults.writes_left.set(Some(dice.below(12)));
            atlas.count(|tally| tally.write_errors += 1);
            world.say(|| format!("director: writes to {} fail soon", label(disk)));
        }
        Action::Die => {
            doubt(scene, number, atlas);
            faults.dead.set(true);
            atlas.count(|tally| tally.deaths += 1);
            world.say(|| format!("director: {} dies", label(disk)));
        }
        Action::Spoil => {
            doubt(scene, number, atlas);
            let offset = scene.plan.shape.data_offset() as u64;
            let data = disk.bytes().len() as u64 - offset;
            for _ in 0..dice.between(1, 4) {
                let start = offset + dice.below(data / 512) * 512;
                let end = start + 512 * dice.between(1, 32);
                disk.spoil(start..end.min(offset + data));
                world.say(|| format!("director: {} cannot read {start}..{end}", label(disk)));
            }
            atlas.count(|tally| tally.unreadable += 1);
        }
        Action::FlushErrors => {
            doubt(scene, number, atlas);
            faults.flush_fails.set(true);
            atlas.count(|tally| tally.flush_errors += 1);
            world.say(|| format!("director: flushes of {} fail", label(disk)));
        }
        Action::Fill => {
            // Requests that hit it fail; nobody else may have a fault at the same time.
            let sound = atlas.sound(&scene.array.status());
            if scene.plan.profile == Profile::Within && !sound.iter().all(Option::is_some) {
                return;
            }
            scene.full.set(true);
            atlas.torn.set(true);
            faults.full.set(true);
            atlas.count(|tally| tally.full += 1);
            world.say(|| format!("director: {} is full", label(disk)));
            if scene.plan.profile == Profile::Beyond {
                return; // Until somebody mends it.
            }
            world.sleep(Duration::from_micros(dice.below(5000))).await;
            faults.full.set(false);
            world.say(|| format!("director: {} is no longer full", label(disk)));
        }
        Action::Hang => {
            doubt(scene, number, atlas);
            faults.hangs.set(dice.between(1, 4));
            atlas.count(|tally| tally.hangs += 1);
            world.say(|| format!("director: {} hangs", label(disk)));
        }
        _ => unreachable!("done above"),
    }
}

/// While parity is not trusted after an unclean stop, nobody else has what a member holds: it must not be failed (law 8).
async fn fail_in_vain(scene: &Scene, atlas: &Atlas) {
    let status = scene.array.status();
    let is_parity = matches!(scene.plan.shape.level, 4..=6);
    let sound: Vec<usize> = atlas.sound(&status).into_iter().flatten().collect();
    if !is_parity || sound.len() < status.members.len() || scene.plan.profile == Profile::Beyond {
        return;
    }
    let disk = &atlas.disks[*scene.world.dice().pick(&sound)];
    let result = scene.array.fail(&label(disk)).await;
    scene.world.say(|| format!("director: fail {} in an unclean array -> {result:?}", label(disk)));
    if result.is_ok() {
        scene.world.fail(format!("{} was failed while no parity could stand in for it", label(disk)));
    }
}

/// What the operator does with members, apart from failing them. Refusals are answers, too, but for a sound disk that is
/// added.
async fn operate(scene: &Rc<Scene>, atlas: &Rc<Atlas>, action: Action) {
    let (world, dice, array) = (&scene.world, scene.world.dice(), &scene.array);
    match action {
        Action::Add => {
            if let Some(number) = newcomer(scene, atlas) {
                add(scene, atlas, number).await;
            }
        }
        Action::ReAdd => {
            let Some(number) = newcomer(scene, atlas) else { return };
            let disk = &atlas.disks[number];
            disk.mend();
            array.remove(&label(disk)).await.ok();
            // What left the array at another time says so itself.
            let Ok(found) = load_disk(world, disk, scene.plan.making.block).await else { return };
            let result = array.re_add(found).await;
            world.say(|| format!("director: re-add {} -> {result:?}", label(disk)));
            if result.is_ok() {
                atlas.impaired[number].set(false);
                atlas.count(|tally| tally.re_added += 1);
            }
        }
        Action::Remove => {
            let status = array.status();
            let gone = status
                .members
                .iter()
                .chain(&status.spares)
                .filter(|member| matches!(member.state, Some(MemberState::Faulty | MemberState::Spare)));
            let gone: Vec<String> = gone.filter_map(|member| member.path.clone()).collect();
            if gone.is_empty() {
                return;
            }
            let path = dice.pick(&gone);
            let result = array.remove(path).await;
            world.say(|| format!("director: remove {path} -> {result:?}"));
            atlas.count(|tally| tally.removed += u64::from(result.is_ok()));
        }
        Action::Replace => {
            let status = array.status();
            let is_spare = |state: Option<MemberState>| state == Some(MemberState::Spare);
            let spare = status.spares.iter().find(|member| is_spare(member.state));
            let old = dice.pick(&status.members).path.clone();
            let (Some(old), Some(new)) = (old, spare.and_then(|spare| spare.path.clone())) else { return };
            let result = array.replace(&old, &new).await;
            world.say(|| format!("director: replace {old} by {new} -> {result:?}"));
            atlas.count(|tally| tally.replaced += u64::from(result.is_ok()));
        }
        _ => {
            let repair = dice.one_in(2);
            if dice.one_in(4) {
                array.stop_scrub();
            } else if array.scrub(repair) {
                atlas.count(|tally| tally.scrubs += 1);
            }
            world.say(|| format!("director: scrub, repair {repair}"));
        }
    }
}

/// A disk that the array does not use, and that nothing hangs on.
pub fn newcomer(scene: &Scene, atlas: &Atlas) -> Option<usize> {
    let status = scene.array.status();
    let mut used = vec![false; atlas.disks.len()];
    for member in status.members.iter().chain(&status.spares) {
        if let (Some(path), Some(state)) = (&member.path, member.state)
            && state != MemberState::Faulty
        {
            used[atlas.disk(path)] = true;
        }
    }
    let free = (0..used.len()).filter(|&disk| !used[disk] && atlas.disks[disk].hung() == 0);
    let free: Vec<usize> = free.filter(|&disk| atlas.disks[disk].busy() == 0).collect();
    (!free.is_empty()).then(|| *scene.world.dice().pick(&free))
}

/// Adds a disk as it is, or swapped for a blank one.
pub async fn add(scene: &Scene, atlas: &Atlas, number: usize) {
    let (world, dice) = (&scene.world, scene.world.dice());
    let disk = &atlas.disks[number];
    disk.mend();
    if dice.one_in(3) {
        disk.bytes_mut().fill(dice.bits() as u8);
        disk.store().settle_all();
    }
    atlas.added.set(atlas.added.get() + 1);
    let new = NewMember { device: Disk::new(disk, world, scene.plan.making.block), label: label(disk) };
    let result = scene.array.add(new, [atlas.added.get(); 16]).await;
    world.say(|| format!("director: add {} -> {result:?}", label(disk)));
    match result {
        Ok(()) => {
            atlas.impaired[number].set(false);
            atlas.count(|tally| tally.added += 1);
        }
        // It may be smaller than those that made the array.
        Err(Refusal::BadMember { .. }) => {}
        Err(error) => {
            let status = scene.array.status();
            let open = status.phase != Phase::Stopped && status.read_only.is_none();
            let useful = scene.plan.shape.level != 0 && !scene.stopping.get();
            if scene.plan.profile == Profile::Within && open && useful {
                world.fail(format!("{} was not added: {error}", label(disk)));
            }
        }
    }
}

/// Waits until redundancy agrees, as far as the array will bring it about by itself.
pub async fn until_agreed(scene: &Scene) {
    let patience = scene.world.now() + Duration::from_secs(600);
    if scene.full.get() {
        // A sync action that found no space is not tried again by itself.
        scene.array.resume();
    }
    // What somebody has just set going shows in a moment.
    scene.world.sleep(Duration::from_millis(5)).await;
    loop {
        let status = scene.array.status();
        let spare = status.spares.iter().any(|member| member.state == Some(MemberState::Spare));
        let is_due = spare && status.health == Health::Degraded;
        if status.sync.is_none() && !is_due
            || status.phase == Phase::ReadOnly
            || status.phase == Phase::Stopped
        {
            return;
        }
        if scene.world.now() > patience && scene.plan.profile == Profile::Beyond {
            return; // It may be out of its power.
        }
        if scene.world.now() > patience {
            return scene.world.fail(format!("a sync action does not end: {status:?}"));
        }
        scene.world.sleep(Duration::from_millis(2)).await;
    }
}

/// Disks differ in what they can do at once.
pub fn endow(disks: &[Platter], dice: &crate::random::Random) {
    for disk in disks {
        disk.faults().zeroing.set(*dice.pick(&[Ability::Always, Ability::Never, Ability::Mostly]));
        disk.faults().short_reads.set(dice.one_in(2));
    }
}
