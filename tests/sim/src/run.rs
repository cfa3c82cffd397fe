//! One seed from beginning to end: an array is made, served, crashed or stopped, looked at from outside, and started
//! again, a few times over; then everything must be there.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use raidd::engine::{AssembleOptions, Health, Hedge, MemberState, MemberStatus, Phase, ReadPolicy, Refusal};
use raidd::io::{Clock, Spawn};
use raidd::units::MemberSlot;

use crate::clients::{Done, Scene};
use crate::director::{
    Atlas, PATIENCE, Tally, add, direct, endow, is_in_agreement, look, may_crash, newcomer, release,
    until_agreed,
};
use crate::disk::Platter;
use crate::model::{Model, superblock, survives};
use crate::oracle::Oracle;
use crate::plan::{Narrow, Part, Plan, Profile};
use crate::setup::{SimArray, assemble_array, check_memory, forget_memory, label, make_array};
use crate::store::Luck;
use crate::world::{Ended, World};

/// What came of a seed.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Of the whole trace.
    pub hash: u64,
    /// Client operations.
    pub ops: u64,
    /// Of these, answered with an error.
    pub errors: u64,
    /// Bytes that clients read, and that were checked.
    pub checked: u64,
    /// Operations of disks.
    pub disk_ops: u64,
    /// The scheduler's steps.
    pub steps: u64,
    /// What befell it.
    pub tally: Tally,
}

struct Run {
    plan: Rc<Plan>,
    world: World,
    atlas: Rc<Atlas>,
    oracle: Rc<RefCell<Oracle>>,
    done: Rc<Done>,
}

/// How an era ended, other than by a crash.
#[derive(Debug, PartialEq, Eq)]
enum EraEnd {
    Stopped,
    /// It could not be started.
    Refused,
}

/// Lives through a seed; panics of the engine are failures, too.
pub fn run(seed: u64, profile: Profile, narrow: Narrow, telling: bool) -> Report {
    let plan = Rc::new(Plan::new(seed, profile, narrow));
    let world = World::new(seed);
    if telling {
        world.tell_all();
        println!("{plan:#?}");
    }
    if !plan.sessions {
        world.starve_tasks();
    }
    let disks = plan.platters();
    endow(&disks, world.dice());
    let run = Run {
        oracle: Rc::new(RefCell::new(Oracle::new(0, plan.grain, false))),
        atlas: Rc::new(Atlas::new(disks)),
        done: Rc::default(),
        world,
        plan,
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.live()));
    let failure = match outcome {
        Ok(result) => result.err(),
        Err(panic) => Some(format!("panicked: {}", words(&*panic))),
    };
    let disk_ops = run.atlas.disks.iter().map(|disk| disk.counts().operations).sum();
    let report = Report {
        seed,
        failure,
        hash: run.world.hash(),
        ops: run.done.ops.get(),
        errors: run.done.errors.get(),
        checked: run.done.checked.get(),
        disk_ops,
        steps: run.world.steps(),
        tally: Tally {
            connections: run.done.connections.get(),
            cuts: run.done.cuts.get(),
            ..*run.atlas.tally.borrow()
        },
    };
    drop(run);
    let leak = check_memory().err();
    if leak.is_some() {
        forget_memory();
    }
    Report { failure: report.failure.or(leak), ..report }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "?".into())
}

impl Run {
    fn live(&self) -> Result<(), String> {
        let mut until = 0;
        for (number, ops) in self.plan.eras.iter().enumerate() {
            until = (until + ops).min(self.plan.ops());
            match self.era(number, until)? {
                Some(EraEnd::Refused) => return Ok(()),
                Some(EraEnd::Stopped) => {
                    self.atlas.count(|tally| tally.stops += 1);
                    self.after_stop()?;
                }
                None => {}
            }
        }
        self.at_last()
    }

    /// One era. None if it ended in a crash; what the crash leaves has been looked at.
    fn era(&self, number: usize, until: u64) -> Result<Option<EraEnd>, String> {
        let present = if number == 0 { Vec::new() } else { self.return_disks() };
        let (plan, world) = (self.plan.clone(), self.world.clone());
        let (atlas, oracle, done) = (self.atlas.clone(), self.oracle.clone(), self.done.clone());
        world.say(|| format!("run: era {number}"));
        let ended = self.world.live(async move {
            let array = if number == 0 {
                make(&world, &plan, &atlas, &oracle).await
            } else {
                start(&world, &plan, &atlas, &oracle, &present, true).await
            };
            let Some(array) = array else { return EraEnd::Refused };
            let scene = Scene::new(&world, &plan, array, &oracle, &done, until);
            serve(&scene, &atlas, number).await;
            EraEnd::Stopped
        });
        match ended {
            Ended::Done(end) => Ok(Some(end)),
            Ended::Failed(why) => Err(why),
            Ended::Crashed => {
                self.crash()?;
                Ok(None)
            }
        }
    }

    /// The daemon has just died. Whether the machine has, too, is drawn here.
    fn crash(&self) -> Result<(), String> {
        let dice = self.world.dice();
        for disk in &self.atlas.disks {
            disk.abandon(dice);
        }
        let machine = dice.below(3) > 0;
        let luck = *dice.pick(&[Luck::All, Luck::None, Luck::None, Luck::Some, Luck::Some, Luck::Most]);
        if machine {
            let lost: u64 = self.atlas.disks.iter().map(|disk| disk.lose_cache(luck, dice)).sum();
            self.world.say(|| format!("run: the machine crashes; {lost} units are lost ({luck:?})"));
            self.atlas.count(|tally| tally.power_cuts += 1);
        } else {
            self.world.say(|| "run: the daemon is killed");
            self.atlas.count(|tally| tally.kills += 1);
        }
        self.world.note(5, u64::from(machine));
        self.oracle.borrow_mut().crash(machine);
        self.atlas.torn.set(false);
        self.atlas.unclean.set(true);
        self.check_admitted()
    }

    /// What disagrees is admitted by the metadata, whatever has happened.
    fn check_admitted(&self) -> Result<(), String> {
        let Some(mut model) = Model::try_of(&self.atlas.disks) else { return Ok(()) };
        model.distrust_filled();
        if !model.disks().iter().any(Option::is_some) {
            return Ok(());
        }
        let torn = model.inconsistent();
        let hidden: Vec<_> = torn.iter().filter(|&&at| !model.admits(at as u64)).collect();
        if hidden.is_empty() {
            return Ok(());
        }
        Err(format!(
            "redundancy disagrees at {hidden:?}, and the metadata does not admit it ({}): {}",
            model.tells(),
            superblocks(&self.atlas.disks)
        ))
    }

    /// An array that was stopped says what is.
    fn after_stop(&self) -> Result<(), String> {
        let busy: Vec<_> = self.atlas.disks.iter().filter(|disk| disk.awaited() > 0).map(label).collect();
        if !busy.is_empty() {
            return Err(format!("the array has been stopped, but writes to {busy:?} are under way"));
        }
        // Operations that nobody waited for may have been left to themselves.
        self.atlas.disks.iter().for_each(|disk| disk.abandon(self.world.dice()));
        self.check_admitted()
    }

    /// Who is there at the next start: everybody, or everybody but some who are not missed.
    fn return_disks(&self) -> Vec<Platter> {
        let dice = self.world.dice();
        let mut present = Vec::new();
        // Spares have no data, whatever they have heard of.
        let held = self.atlas.disks.iter().filter_map(superblock).filter(|it| it.role().slot().is_some());
        let newest = held.map(|superblock| superblock.events).max();
        for (disk, impaired) in self.atlas.disks.iter().zip(&self.atlas.impaired) {
            let faults = disk.faults();
            let was_bad = faults.dead.get()
                || faults.writes_left.get().is_some()
                || faults.flush_fails.get()
                || faults.hangs.get() > 0;
            let is_fresh = superblock(disk).is_some_and(|superblock| Some(superblock.events) == newest);
            if was_bad && dice.one_in(2) && !(self.plan.profile == Profile::Beyond && is_fresh) {
                // It stays away; but in a cupboard nothing is wrong with it.
                disk.mend();
                faults.dead.set(true);
                impaired.set(true);
                continue;
            }
            if was_bad {
                self.atlas.count(|tally| tally.returns += 1);
            }
            let unreadable = std::mem::take(&mut *faults.unreadable.borrow_mut());
            disk.mend();
            impaired.set(!unreadable.is_empty());
            *faults.unreadable.borrow_mut() = unreadable;
            if superblock(disk).is_some() {
                present.push(disk.clone());
            }
        }
        self.lose_one(&mut present);
        present
    }

    /// With partial parity logs a disk may be lost together with what was running.
    fn lose_one(&self, present: &mut Vec<Platter>) {
        let (dice, plan) = (self.world.dice(), &self.plan);
        let is_sound = self.atlas.impaired.iter().all(|impaired| !impaired.get());
        if !plan.shape.ppl || !is_sound || plan.narrow.is_without(Part::Failures) || !dice.one_in(2) {
            return;
        }
        let Some(model) = Model::try_of(present).filter(Model::can_spare_one) else { return };
        let slot = dice.below(plan.shape.slots as u64) as usize;
        let lost = model.disks()[slot].expect("all are there");
        drop(model);
        let lost = present.remove(lost);
        let number = self.atlas.disk(&label(&lost));
        self.world.say(|| format!("run: {} is lost, too", label(&lost)));
        lost.faults().dead.set(true);
        self.atlas.impaired[number].set(true);
        self.atlas.count(|tally| tally.deaths += 1);
    }

    /// After the last era: all disks are well again, the array is started once more, and everything is looked at.
    fn at_last(&self) -> Result<(), String> {
        self.atlas.mend_all();
        let all = self.atlas.disks.iter().filter(|disk| superblock(disk).is_some());
        let present: Vec<Platter> = all.cloned().collect();
        let (plan, world) = (self.plan.clone(), self.world.clone());
        let (atlas, oracle, done) = (self.atlas.clone(), self.oracle.clone(), self.done.clone());
        world.say(|| "run: the last look");
        let ended = self.world.live(async move {
            let Some(array) = start(&world, &plan, &atlas, &oracle, &present, false).await else {
                return;
            };
            let scene = Scene::new(&world, &plan, array, &oracle, &done, 0);
            make_whole(&scene, &atlas).await;
            inspect(&scene, &atlas).await;
            corrupt(&scene, &atlas).await;
            stop(&scene, &atlas).await;
        });
        match ended {
            Ended::Done(()) => self.after_stop(),
            Ended::Failed(why) => Err(why),
            Ended::Crashed => Err("crashed, unasked".into()),
        }
    }
}

async fn make(world: &World, plan: &Plan, atlas: &Atlas, oracle: &Rc<RefCell<Oracle>>) -> Option<SimArray> {
    let platters = atlas.disks.iter().enumerate().take(plan.shape.slots);
    let platters: Vec<_> =
        platters.map(|(slot, disk)| (Some(slot) != plan.missing).then(|| disk.clone())).collect();
    let array = match make_array(world, &plan.shape, &platters, &plan.making).await {
        Ok(array) => array,
        Err(error) => {
            world.fail(format!("it could not be made: {error}"));
            return None;
        }
    };
    let zero = plan.making.zero || plan.making.assume_clean;
    *oracle.borrow_mut() = Oracle::new(array.size_bytes(), plan.grain, zero);
    Some(array)
}

/// Assembles what is there. None if that is refused, rightly.
async fn start(
    world: &World,
    plan: &Plan,
    atlas: &Atlas,
    oracle: &Rc<RefCell<Oracle>>,
    present: &[Platter],
    may_fall: bool,
) -> Option<SimArray> {
    if may_fall
        && world.random(6) == 0
        && plan.profile == Profile::Within
        && !plan.narrow.is_without(Part::Crashes)
    {
        let whole = Model::try_of(present).is_some_and(|model| model.disks().iter().all(Option::is_some));
        let sound = atlas.impaired.iter().all(|impaired| !impaired.get());
        if whole && sound {
            // It may not even get up properly.
            if world.random(2) == 0 {
                world.crash_in(world.random(3000));
            } else {
                world.crash_at_superblock(world.dice().between(1, 60));
            }
        }
    }
    let block = plan.making.block;
    let mut present = present.to_vec();
    let options = AssembleOptions::default();
    let mut result = assemble_array(world, &present, block, options).await;
    world.say(|| format!("run: assembled {} disks: {:?}", present.len(), result.as_ref().err()));
    if matches!(&result, Err(Refusal::BadSet(why)) if why.starts_with("split brain")) {
        // A disk that left long ago may look like one that went its own way. The operator leaves such disks out.
        atlas.count(|tally| tally.refusals += 1);
        let events = |disk: &Platter| superblock(disk).map_or(0, |superblock| superblock.events.0);
        let newest = present.iter().map(events).max().unwrap_or(0);
        present.retain(|disk| events(disk) + 1 >= newest);
        result = assemble_array(world, &present, block, AssembleOptions::default()).await;
        world.say(|| format!("run: without the old ones: {:?}", result.as_ref().err()));
    }
    if let Err(error) = &result {
        atlas.count(|tally| tally.refusals += 1);
        if plan.profile == Profile::Within {
            world.fail(format!("it was not started: {error}"));
            return None;
        }
        if !matches!(error, Refusal::DirtyDegraded(_) | Refusal::TooFew(_) | Refusal::BadSet(_)) {
            world.fail(format!("it was refused for a strange reason: {error}"));
            return None;
        }
        if matches!(error, Refusal::DirtyDegraded(_)) {
            let options = AssembleOptions { force: true, ..Default::default() };
            result = assemble_array(world, &present, block, options).await;
            atlas.count(|tally| tally.forced += 1);
            match &result {
                // Where it was being written, what is missing is anything.
                Ok(array) => oracle.borrow_mut().lose_touched(array.size_bytes(), stripe_bytes(plan)),
                Err(error) => world.fail(format!("dirty and degraded, and not even by force: {error}")),
            }
        }
    }
    // What cannot be read is lost as a member is.
    let is_unreadable = present.iter().any(|disk| !disk.faults().unreadable.borrow().is_empty());
    if let Ok(array) = &result
        && plan.shape.ppl
        && (is_unreadable || array.health() != Health::Optimal)
    {
        oracle.borrow_mut().lose_cut_off();
    }
    result.ok()
}

/// Bytes of the array in a stripe.
fn stripe_bytes(plan: &Plan) -> u64 {
    let data = match plan.shape.level {
        4 | 5 => plan.shape.slots - 1,
        6 => plan.shape.slots - 2,
        _ => 1,
    };
    (plan.shape.chunk_kib << 10) * data as u64
}

/// An era from the first request to the stop.
async fn serve(scene: &Rc<Scene>, atlas: &Rc<Atlas>, number: usize) {
    let (world, dice) = (scene.world.clone(), scene.world.dice());
    look(scene, atlas);
    if number == 0 && scene.plan.fill {
        scene.fill().await;
    }
    scene.open();
    if dice.one_in(2) {
        // Fast enough to be over in the time of a few requests.
        scene.array.set_recovery_speed(Some(dice.between(1, 1000) << 20), None);
    }
    // Not where deliberate faults are looked for: these draws would shift the seeds that are known to find them.
    if !cfg!(raidd_mutants) && dice.one_in(2) {
        scene.array.set_read_policy(match dice.below(4) {
            0 => ReadPolicy::RoundRobin,
            1 => ReadPolicy::LeastPending,
            2 => ReadPolicy::Latency,
            _ => ReadPolicy::Prefer(MemberSlot(dice.below(scene.plan.shape.slots as u64) as u16)),
        });
        // Often enough before a disk answers, so that both do.
        scene.array.set_hedge(Hedge::After(Duration::from_micros(dice.between(10, 300))));
    }
    direct(scene, atlas).await;
    let crashes = !scene.plan.narrow.is_without(Part::Crashes);
    if crashes && dice.one_in(3) && !world.will_crash() && may_crash(scene, atlas) {
        if dice.one_in(2) {
            // Just when the array goes clean.
            scene.close().await;
            world.crash_at_superblock(dice.between(1, scene.plan.shape.slots as u64 + 1));
            world.sleep(Duration::from_millis(450)).await;
        } else {
            // Nothing is under way, or hardly anything; and some time may have passed.
            world.crash_in(dice.below(3000));
        }
    }
    if dice.one_in(2) {
        scene.close().await;
        inspect(scene, atlas).await;
    }
    stop(scene, atlas).await;
}

/// Gives every vacant slot a disk, and every sector that could not be written its content.
async fn make_whole(scene: &Rc<Scene>, atlas: &Rc<Atlas>) {
    let within = scene.plan.profile == Profile::Within;
    if scene.plan.shape.level == 0 || scene.plan.narrow.is_without(Part::Members) {
        return;
    }
    until_agreed(scene).await;
    for _ in 0..atlas.disks.len() {
        if scene.array.health() == Health::Optimal || scene.world.has_failed() {
            break;
        }
        let Some(number) = newcomer(scene, atlas) else { break };
        add(scene, atlas, number).await;
        until_agreed(scene).await;
    }
    if within && scene.array.health() != Health::Optimal {
        let status = scene.array.status();
        return scene.world.fail(format!("redundancy is not whole again: {status:?}"));
    }
    if within && scene.world.random(2) == 0 {
        scene.read_all().await;
        scene.fill().await;
        scene.array.scrub(true);
        until_agreed(scene).await;
        let status = scene.array.status();
        let bad: u64 = status.members.iter().map(|member| member.bad_sectors).sum();
        if bad > 0 {
            scene.world.fail(format!("{bad} sectors stay bad although all was written anew"));
        }
        if status.mismatched_sectors > 0 {
            scene.world.fail(format!("a scrub found {} sectors", status.mismatched_sectors));
        }
    }
}

/// At a quiet moment everything is looked at: by the clients' way, and on the members.
async fn inspect(scene: &Rc<Scene>, atlas: &Rc<Atlas>) {
    until_agreed(scene).await;
    look(scene, atlas);
    scene.read_all().await;
    scene.flush().await;
    scene.world.sleep(Duration::from_millis(450)).await;
    until_quiet(scene, atlas).await;
    if scene.world.has_failed() {
        return;
    }
    let (status, within) = (scene.array.status(), scene.plan.profile == Profile::Within);
    let shape = &scene.plan.shape;
    if within {
        let sound: Vec<bool> = atlas.sound(&status).iter().map(Option::is_some).collect();
        let failed = status.health == Health::Failed || status.phase == Phase::ReadOnly;
        if failed || !survives(shape.level, shape.layout, &sound) {
            return scene.world.fail(format!("within redundancy, and yet: {status:?}"));
        }
    }
    // One that takes no writes any more may have rows that it cannot make agree.
    if is_in_agreement(&status)
        && status.phase != Phase::ReadOnly
        && let Err(why) = check_members(scene, atlas, &status)
    {
        return scene.world.fail(why);
    }
    if is_in_agreement(&status) && status.phase == Phase::Clean {
        scene.oracle.borrow_mut().at_rest();
    }
}

/// Changes a few bytes of one member behind everybody's back, where redundancy tells which: a scrub has to name that member
/// and to mend it.
async fn corrupt(scene: &Rc<Scene>, atlas: &Rc<Atlas>) {
    let (dice, shape, status) = (scene.world.dice(), &scene.plan.shape, scene.array.status());
    let tells = shape.level == 6 || shape.level == 1 && shape.slots > 2;
    let sound: Vec<usize> = atlas.sound(&status).into_iter().flatten().collect();
    let is_quiet = status.health == Health::Optimal && is_in_agreement(&status) && status.read_only.is_none();
    if !tells || !is_quiet || sound.len() < shape.slots || !dice.one_in(3) || scene.world.has_failed() {
        return;
    }
    let slot = dice.below(shape.slots as u64) as usize;
    let disk = &atlas.disks[sound[slot]];
    let chunk = (shape.chunk_kib << 10).max(4096);
    let used = status.member_sectors.bytes() / chunk * chunk;
    let line = dice.below(used / 4096) * 4096;
    let start = superblock(disk).map_or(0, |superblock| superblock.data_offset.bytes()) + line;
    for _ in 0..dice.between(1, 64) {
        disk.bytes_mut()[(start + dice.below(4096)) as usize] ^= dice.between(1, 255) as u8;
    }
    scene.world.say(|| format!("run: {} is corrupted in {start}+4096", label(disk)));
    atlas.count(|tally| tally.corrupted += 1);
    scene.array.scrub(true);
    until_agreed(scene).await;
    let findings = scene.array.findings();
    let sector = line / 512;
    let named = findings.iter().any(|finding| {
        let names = finding.liar.is_some_and(|liar| liar.index() == slot);
        names && finding.repaired && finding.rows.start <= sector && sector < finding.rows.end
    });
    if !named {
        return scene
            .world
            .fail(format!("{} is corrupted at {sector}, and a scrub found {findings:?}", label(disk)));
    }
    scene.read_all().await;
    let torn = Model::of(&atlas.disks).inconsistent();
    if !torn.is_empty() {
        scene.world.fail(format!("redundancy disagrees at {torn:?} after a scrub that repaired"));
    }
}

/// Waits until nothing has been asked of any disk for a while.
async fn until_quiet(scene: &Scene, atlas: &Atlas) {
    let ended = || -> u64 { atlas.disks.iter().map(|disk| disk.counts().operations).sum() };
    let mut before = ended();
    let since = scene.world.now();
    loop {
        if scene.world.now() > since + PATIENCE {
            release(atlas, &scene.world);
        }
        scene.world.sleep(Duration::from_millis(1)).await;
        let now = ended();
        // A hedged read that nobody waits for any more may still fail its member.
        let is_over = scene.array.stats(&[]).members.iter().all(|member| member.in_flight == 0);
        if now == before && is_over && atlas.disks.iter().all(|disk| disk.awaited() == 0) {
            return;
        }
        before = now;
    }
}

/// Members in sync hold what they should: superblocks, redundancy, every acknowledged write.
fn check_members(scene: &Scene, atlas: &Atlas, status: &raidd::engine::ArrayStatus) -> Result<(), String> {
    let Some(model) = Model::try_of(&atlas.disks) else { return Err("no member has a superblock".into()) };
    if scene.plan.shape.level == 0 {
        return Ok(());
    }
    let (claimed, seated) = (model.disks(), model.seated());
    // One that takes no writes any more can record nothing, and acknowledges none.
    let is_full = atlas.disks.iter().any(|disk| disk.faults().full.get());
    let records = status.phase != Phase::ReadOnly && !is_full;
    let mut unrecorded = false;
    for member in &status.members {
        let Some(slot) = member.slot else { continue };
        let Some(path) = &member.path else {
            // It is not here, but superblocks that have not been written since it left still count it in.
            unrecorded |= seated[slot.index()].is_some();
            continue;
        };
        // What it is known not to hold could not be put on record: nobody was told of success, and the array stays dirty.
        unrecorded |= is_full && member.bad_sectors > 0;
        let is_in_sync = member.state == Some(MemberState::InSync);
        let is_claimed = claimed[slot.index()] == Some(atlas.disk(path));
        if is_in_sync && status.phase == Phase::Clean && !is_claimed {
            let what = superblocks(&atlas.disks);
            return Err(format!("{path} is in sync, but the members' superblocks do not know it: {what}"));
        }
    }
    // Those whose seat another has taken are listed with the spares. A path may be that of one that came back.
    let everybody = || status.members.iter().chain(&status.spares);
    let is_faulty = |member: &MemberStatus| member.state == Some(MemberState::Faulty);
    let living: Vec<_> = everybody().filter(|member| !is_faulty(member)).map(|member| &member.path).collect();
    let faulty = everybody().filter(|member| is_faulty(member) && !living.contains(&&member.path));
    for path in faulty.filter_map(|member| member.path.as_ref()) {
        if seated.contains(&Some(atlas.disk(path))) {
            if records {
                let what = superblocks(&atlas.disks);
                return Err(format!("{path} is faulty, but the members' superblocks do not know it: {what}"));
            }
            unrecorded = true;
        }
    }
    let mut torn = model.inconsistent();
    if unrecorded {
        torn.retain(|&at| !model.admits(at as u64));
    }
    if !torn.is_empty() {
        let what = superblocks(&atlas.disks);
        return Err(format!(
            "redundancy disagrees at {torn:?}, and all is said to be well: {what}; {status:?}"
        ));
    }
    // Started by force, it may have nothing left that could disagree, and has not said so yet.
    let within = scene.plan.profile == Profile::Within;
    if within && status.phase == Phase::Clean && !model.says_clean() {
        return Err(format!(
            "the array is clean, but its superblocks do not say so: {}",
            superblocks(&atlas.disks)
        ));
    }
    if unrecorded {
        return Ok(());
    }
    let mut oracle = scene.oracle.borrow_mut();
    model.each_copy(|disk, at, bytes| {
        oracle.check_now(at, bytes).map_err(|why| format!("on disk{disk}: {why}"))
    })
}

async fn stop(scene: &Rc<Scene>, atlas: &Rc<Atlas>) {
    if scene.door.sessions().is_some() && scene.world.random(2) == 0 {
        // Sessions stop while there is work for them.
        scene.open_shortly();
        scene.world.sleep(Duration::from_micros(scene.world.random(1000))).await;
    }
    scene.stopping.set(true);
    let (impatient, disks) = (scene.world.clone(), atlas.clone());
    scene.world.spawn(async move {
        impatient.sleep(PATIENCE).await;
        release(&disks, &impatient);
    });
    if let Some(sessions) = scene.door.sessions() {
        sessions.stop().await;
    }
    let result = scene.array.stop().await;
    scene.world.say(|| format!("run: stopped: {result:?}"));
    scene.close().await;
    if let Some(sessions) = scene.door.sessions() {
        sessions.gone().await;
    }
    let within = scene.plan.profile == Profile::Within;
    if within && result.is_err() && !scene.full.get() {
        return scene.world.fail(format!("it could not be stopped: {result:?}"));
    }
    if result.is_err() || !within {
        return;
    }
    let status = scene.array.status();
    if !is_in_agreement(&status) || status.read_only.is_some() || scene.plan.shape.level == 0 {
        return;
    }
    if let Some(model) = Model::try_of(&atlas.disks)
        && !model.says_clean()
    {
        let what = superblocks(&atlas.disks);
        scene.world.fail(format!("it was stopped in order, but its superblocks do not say clean: {what}"));
    }
}

/// What the superblocks say, for people.
fn superblocks(disks: &[Platter]) -> String {
    let say = |disk: &Platter| {
        let it = superblock(disk)?;
        let (events, role, resync) = (it.events, it.role(), it.resync_offset);
        Some(format!("{}: events {events}, {role:?}, number {}, resync {resync}", label(disk), it.dev_number))
    };
    disks.iter().filter_map(say).collect::<Vec<_>>().join("; ")
}
