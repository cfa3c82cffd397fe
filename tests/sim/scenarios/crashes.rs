//! Every crash point of a short story: an array is made, written, left alone until it is clean, loses a member, is
//! written, flushed and stopped; and the daemon, or the whole machine, dies before each single change of a disk.
//!
//! What the superblocks say then must be true, what was acknowledged (in a crash of the machine: flushed) must be
//! there, and redundancy must be whole again in the end.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use raidd::engine::create::NewMember;
use raidd::engine::{AssembleOptions, Health, Refusal};
use raidd::io::{Clock, Device, Fua, MAX_BUF_BYTES, Pool};
use raidd::md::Superblock;

use crate::found::{crash, filled};
use crate::rounds::Client;
use raidd_sim::disk::{Disk, Platter};
use raidd_sim::model::Model;
use raidd_sim::random::Random;
use raidd_sim::setup::{Shape, assemble_array, create_array, label, platters, shape};
use raidd_sim::store::Luck;
use raidd_sim::world::{Ended, World};

const SHAPES: [Shape; 5] = [
    shape(1, 0, 0, 2, 1),
    shape(5, 2, 4, 3, 1),
    shape(6, 2, 8, 4, 2),
    shape(10, 0x102, 4, 4, 1),
    shape(10, 0x201, 8, 3, 1),
];

/// What may be read back: for every byte what is durable, and what has been written over it since.
#[derive(Default)]
struct Ledger {
    durable: Vec<Option<u8>>,
    /// In the order they were begun.
    writes: Vec<(Range<usize>, Vec<u8>, bool)>,
    /// What was not acknowledged may be anything.
    garbled: bool,
}

impl Ledger {
    /// What a byte may be after the daemon was killed: its last acknowledged value, or one begun later. After a crash
    /// of the machine: its durable value, or any since.
    fn allows(&self, place: usize, byte: u8, machine: bool) -> bool {
        let Some(durable) = self.durable[place] else { return true };
        let mut allowed = vec![durable];
        for (range, data, acknowledged) in self.writes.iter().filter(|(range, ..)| range.contains(&place)) {
            if self.garbled && !acknowledged {
                return true;
            }
            if *acknowledged && !machine {
                allowed.clear();
            }
            allowed.push(data[place - range.start]);
        }
        allowed.contains(&byte)
    }

    fn flushed(&mut self) {
        for (range, data, acknowledged) in std::mem::take(&mut self.writes) {
            assert!(acknowledged);
            for (byte, place) in data.into_iter().zip(range) {
                self.durable[place] = Some(byte);
            }
        }
    }

    async fn check(&self, array: &impl Device, machine: bool) {
        let pool = Pool::new(1 << 20).unwrap();
        let mut rewritten = vec![false; self.durable.len()];
        self.writes.iter().for_each(|(range, ..)| rewritten[range.clone()].fill(true));
        for at in (0..self.durable.len()).step_by(1 << 16) {
            let buf = pool.alloc((self.durable.len() - at).min(1 << 16)).await;
            let got = array.read(at as u64, buf).await.unwrap();
            for (i, &byte) in got.iter().enumerate() {
                let place = at + i;
                let as_it_was =
                    !rewritten[place] && self.durable[place].is_none_or(|durable| durable == byte);
                assert!(as_it_was || self.allows(place, byte, machine), "byte {place} is {byte}");
            }
        }
    }
}

struct Plot {
    shape: Shape,
    /// All zero at creation, or to be resynced.
    zero: bool,
    fail: bool,
    /// It is made read-only, and read-write again.
    protect: bool,
    /// Another disk takes the place of the one that failed.
    recover: bool,
}

/// The array of the story, written and noted down.
struct Teller {
    client: Client,
    ledger: Rc<RefCell<Ledger>>,
}

impl Teller {
    async fn write(&mut self, start: usize, len: usize) {
        let (bytes, slices) = self.client.payload(start, len);
        self.ledger.borrow_mut().writes.push((start..start + len, bytes, false));
        self.client.array.write(start as u64, slices, Fua::No).await.unwrap();
        self.ledger.borrow_mut().writes.last_mut().expect("just pushed").2 = true;
    }

    async fn flush(&self) {
        self.client.array.flush().await.unwrap();
        self.ledger.borrow_mut().flushed();
    }
}

async fn tell(world: World, plot: &Plot, disks: &[Platter], ledger: Rc<RefCell<Ledger>>) {
    let some: Vec<_> = disks.iter().take(plot.shape.slots).cloned().map(Some).collect();
    let array = create_array(&world, &plot.shape, &some, 512, plot.zero, true).await.unwrap();
    if !plot.zero {
        // So that the first resync is still under way when the array goes clean.
        world.slow_disks(40);
    }
    let client = Client::new(array.clone(), &world);
    let size = client.bytes.len();
    *ledger.borrow_mut() = Ledger { durable: vec![None; size], ..Ledger::default() };
    let mut teller = Teller { client, ledger };
    teller.write(0, 20_000).await;
    teller.write(size - 30_000, 30_000).await;
    teller.flush().await;
    teller.write(3000, 9000).await;
    world.sleep(Duration::from_millis(450)).await;
    teller.write(5000, 700).await;
    if plot.protect {
        array.set_read_only().await.unwrap();
        teller.ledger.borrow_mut().flushed();
        world.sleep(Duration::from_millis(450)).await;
        array.set_read_write().unwrap();
        teller.write(6000, 900).await;
    }
    world.sleep(Duration::from_millis(450)).await;
    if plot.fail {
        array.fail("disk1").await.unwrap();
        teller.write(1000, 12_000).await;
        teller.flush().await;
        teller.write(4096, 4096).await;
        world.sleep(Duration::from_millis(450)).await;
    }
    if plot.recover {
        let spare = disks.last().expect("the spare");
        let new = NewMember { device: Disk::new(spare, &world, 512), label: label(spare) };
        array.add(new, [99; 16]).await.unwrap();
        teller.write(20_000, 5000).await;
        while array.status().health != Health::Optimal {
            world.sleep(Duration::from_millis(1)).await;
        }
        teller.flush().await;
        // Until the bits are cleared.
        world.sleep(Duration::from_secs(12)).await;
        teller.write(2000, 2000).await;
    }
    teller.write(size - 9000, 8000).await;
    array.stop().await.unwrap();
    teller.ledger.borrow_mut().flushed();
}

/// After the crash: what is said, what is there, what becomes of it.
fn aftermath(plot: &Plot, disks: Vec<Platter>, ledger: Rc<Ledger>, machine: bool) {
    let whole = |disk: &Platter| Superblock::parse(&disk.bytes()[4096..8192]).is_ok();
    if ledger.durable.is_empty() || !disks.iter().take(plot.shape.slots).all(whole) {
        return; // There is no array yet, and nobody was told that there is.
    }
    // The spare has nothing to say before it is taken in.
    let disks: Vec<_> = disks.into_iter().filter(whole).collect();
    let model = Model::of(&disks);
    let hidden: Vec<_> = model.inconsistent().into_iter().filter(|&at| !model.admits(at as u64)).collect();
    assert!(hidden.is_empty(), "redundancy disagrees at {hidden:?}, and nothing admits it");
    drop(model);
    let world = World::new(1);
    let inside = world.clone();
    let may_be_refused = plot.fail;
    world.run(async move {
        let array = match assemble_array(&inside, &disks, 512, AssembleOptions::default()).await {
            Ok(array) => array,
            Err(Refusal::DirtyDegraded(_)) if may_be_refused => return,
            Err(error) => panic!("{error}"),
        };
        ledger.check(&*array, machine).await;
        let client = Client::new(array, &inside);
        while client.array.status().sync.is_some() {
            inside.sleep(Duration::from_millis(1)).await;
        }
        ledger.check(&*client.array, machine).await;
        client.array.stop().await.unwrap();
        let torn = Model::of(&disks).inconsistent();
        assert!(torn.is_empty(), "redundancy disagrees at {torn:?}");
    });
}

/// Tells the story until the disks have changed so often. False if it came to its end.
fn crash_after(plot: &Plot, changes: u64, blank: &[Platter], seed: u64) -> bool {
    let disks: Vec<_> = blank.iter().map(|disk| disk.copy(&Random::new(0))).collect();
    let ledger: Rc<RefCell<Ledger>> = Rc::default();
    let world = World::new(seed);
    world.crash_after(changes);
    let (inside, stage, notes) = (world.clone(), disks.clone(), ledger.clone());
    let plot_inside = Plot { ..*plot };
    let ended = world.run_steps(async move { tell(inside, &plot_inside, &stage, notes).await }, u64::MAX);
    let ledger = Rc::new(ledger.take());
    let random = Random::new(seed ^ changes);
    let copies = || -> Vec<Platter> { disks.iter().map(|disk| disk.copy(&random)).collect() };
    aftermath(plot, copies(), ledger.clone(), false);
    let lost = copies();
    let luck = [Luck::None, Luck::Some, Luck::Most][changes as usize % 3];
    lost.iter().for_each(|disk| {
        disk.lose_cache(luck, &random);
    });
    aftermath(plot, lost, ledger, true);
    ended == Ended::Crashed
}

/// Crashes at every point, or at one in so many.
fn crash_points(plot: &Plot, seed: u64, step_max: u64) {
    let mut blank = platters(&plot.shape, seed);
    if plot.recover {
        let len = blank[0].bytes().len();
        blank.push(Platter::garbage(99, len, 512, seed));
    }
    let mut changes = 1;
    let steps = Random::new(seed);
    loop {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            crash_after(plot, changes, &blank, seed)
        }));
        match outcome {
            Ok(true) => changes += steps.bits() % step_max + 1,
            Ok(false) => return println!("{:?}: {changes} crash points", plot.shape),
            Err(panic) => {
                println!(
                    "{:?} zero {} fail {} seed {seed}: after {changes} changes",
                    plot.shape, plot.zero, plot.fail
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn a_crash_at_any_point_of_a_quiet_life() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        crash_points(
            &Plot { shape, zero: true, fail: false, protect: false, recover: false },
            seed as u64,
            1,
        );
    }
}

#[test]
fn a_crash_at_any_point_while_a_new_array_is_resynced() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        crash_points(
            &Plot { shape, zero: false, fail: false, protect: false, recover: false },
            seed as u64,
            3,
        );
    }
}

#[test]
fn a_crash_at_any_point_from_a_failure_to_the_end_of_a_recovery() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let plot = Plot { shape, zero: true, fail: true, protect: false, recover: true };
        crash_points(&plot, seed as u64, 3);
    }
}

#[test]
fn a_crash_at_any_point_around_a_failure() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for zero in [true, false] {
            crash_points(
                &Plot { shape, zero, fail: true, protect: false, recover: false },
                seed as u64,
                if zero { 1 } else { 3 },
            );
        }
    }
}

#[test]
fn a_crash_at_any_point_of_a_time_without_writes() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for zero in [true, false] {
            let plot = Plot { shape, zero, fail: false, protect: true, recover: false };
            crash_points(&plot, seed as u64, if zero { 1 } else { 3 });
        }
    }
}

const PPL_SHAPES: [Shape; 3] =
    [shape(5, 2, 4, 3, 1).with_ppl(), shape(5, 3, 16, 4, 1).with_ppl(), shape(5, 5, 8, 5, 1).with_ppl()];

/// A short life with partial parity logs: all was written once, and then parts of it are, alone and several at once.
/// The crash comes after so many changes from there on.
async fn tell_logged(
    world: World,
    shape: Shape,
    disks: &[Platter],
    degraded: Option<usize>,
    changes: u64,
    ledger: Rc<RefCell<Ledger>>,
) {
    let some: Vec<_> = disks.iter().cloned().map(Some).collect();
    let array = create_array(&world, &shape, &some, 512, true, false).await.unwrap();
    let mut client = Client::new(array.clone(), &world);
    client.fill().await;
    if let Some(slot) = degraded {
        array.fail(&format!("disk{slot}")).await.unwrap();
    }
    array.flush().await.unwrap();
    let durable = client.bytes.iter().map(|&byte| Some(byte)).collect();
    *ledger.borrow_mut() = Ledger { durable, ..Ledger::default() };
    world.crash_after(changes);
    let size = client.bytes.len();
    let stripe = (shape.chunk_kib as usize * 1024) * (shape.slots - 1);
    write_at_once(&client, &ledger, &[(0, 700), (stripe, stripe), (3 * stripe + 100, 5000)]).await;
    write_at_once(&client, &ledger, &[(stripe - 300, 2 * stripe + 1000)]).await;
    world.sleep(Duration::from_millis(450)).await;
    let third = stripe / (shape.slots - 1);
    write_at_once(&client, &ledger, &[(third - 512, 1024), (4 * stripe, 512), (4 * stripe + third, 512)])
        .await;
    write_at_once(&client, &ledger, &[(600, stripe - 1000), (size - 9000, 9000)]).await;
    array.stop().await.unwrap();
}

/// Writes that do not overlap, all under way at the same time.
async fn write_at_once(client: &Client, ledger: &RefCell<Ledger>, places: &[(usize, usize)]) {
    let writes = places.iter().map(async |&(start, len)| {
        let (bytes, slices) = client.payload(start, len);
        let number = ledger.borrow().writes.len();
        ledger.borrow_mut().writes.push((start..start + len, bytes, false));
        client.array.write(start as u64, slices, Fua::No).await.unwrap();
        ledger.borrow_mut().writes[number].2 = true;
    });
    futures_util::future::join_all(writes).await;
}

/// The array starts without `missing`, unforced, and has everything that was not being written; and what was, too, where
/// nobody has gone missing just now.
fn aftermath_logged(disks: &[Platter], missing: Option<usize>, ledger: &Rc<Ledger>, machine: bool) {
    let disks: Vec<_> = disks
        .iter()
        .enumerate()
        .filter(|(slot, _)| Some(*slot) != missing)
        .map(|(_, disk)| disk.clone())
        .collect();
    let world = World::new(1);
    let (inside, ledger) = (world.clone(), ledger.clone());
    world.run(async move {
        let read_only = AssembleOptions { read_only: true, ..Default::default() };
        let array = assemble_array(&inside, &disks, 512, read_only).await.unwrap();
        ledger.check(&*array, machine).await;
        array.stop().await.unwrap();
        drop(array);
        let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
        assert!(!array.status().resync_is_due, "the logs tell all");
        ledger.check(&*array, machine).await;
        let client = Client::new(array, &inside);
        let (_, slices) = client.payload(0, 512);
        client.array.write(0, slices, Fua::No).await.unwrap();
        client.array.stop().await.unwrap();
        let torn = Model::of(&disks).inconsistent();
        assert!(torn.is_empty(), "redundancy disagrees at {torn:?}");
    });
}

/// False if the story came to its end.
fn crash_logged(shape: Shape, blank: &[Platter], degraded: Option<usize>, changes: u64, seed: u64) -> bool {
    let disks: Vec<_> = blank.iter().map(|disk| disk.copy(&Random::new(0))).collect();
    let ledger: Rc<RefCell<Ledger>> = Rc::default();
    let world = World::new(seed);
    let (inside, stage, notes) = (world.clone(), disks.clone(), ledger.clone());
    let story = async move { tell_logged(inside, shape, &stage, degraded, changes, notes).await };
    let ended = world.run_steps(story, u64::MAX);
    let mut ledger = ledger.take();
    let random = Random::new(seed ^ changes);
    let missing = changes as usize % shape.slots;
    for (machine, missing) in [(false, None), (true, None), (false, Some(missing)), (true, Some(missing))] {
        let copies: Vec<_> = disks.iter().map(|disk| disk.copy(&random)).collect();
        if machine {
            let luck = [Luck::None, Luck::Some, Luck::Most][(changes / 7) as usize % 3];
            copies.iter().for_each(|disk| {
                disk.lose_cache(luck, &random);
            });
        }
        let missing = degraded.or(missing);
        ledger.garbled = missing.is_some() && degraded.is_none();
        let told = Rc::new(std::mem::take(&mut ledger));
        aftermath_logged(&copies, missing, &told, machine);
        ledger = Rc::try_unwrap(told).ok().expect("nobody else has it");
    }
    ended == Ended::Crashed
}

#[test]
fn a_crash_at_any_point_with_a_partial_parity_log() {
    for (seed, shape) in PPL_SHAPES.into_iter().enumerate() {
        for degraded in [None, Some(0), Some(1)] {
            let blank = platters(&shape, seed as u64);
            let mut changes = 0;
            while crash_logged(shape, &blank, degraded, changes, seed as u64) {
                // At every point of the smallest, at some of the others.
                changes += if seed == 0 { 1 } else { 5 };
            }
            println!("{shape:?} degraded {degraded:?}: {changes} crash points");
        }
    }
}

#[test]
fn with_write_through_all_that_was_answered_outlives_the_power() {
    for shape in [SHAPES[0], SHAPES[1], SHAPES[2]] {
        let mut lost = [0, 0];
        for seed in 0..60 {
            let write_through = seed % 2 == 0;
            let (world, stage) = (World::new(seed), platters(&shape, seed));
            let (inside, members) = (world.clone(), stage.clone());
            let kept: Rc<RefCell<Vec<u8>>> = Rc::default();
            let notes = kept.clone();
            let ended = world.live(async move {
                let mut client = filled(&inside, &shape, &members, true).await;
                client.array.flush().await.unwrap();
                client.array.set_write_through(write_through);
                for _ in 0..5 {
                    let (start, len) = client.range();
                    client.write(start, len, Fua::No).await.unwrap();
                }
                notes.replace(client.bytes.clone());
                inside.crash_in(0);
                inside.sleep(Duration::from_secs(1)).await;
            });
            assert!(matches!(ended, Ended::Crashed));
            crash(&stage, Luck::None, &Random::new(seed));
            let world = World::new(seed + 1000);
            let (inside, bytes) = (world.clone(), kept.take());
            let is_there = world.run(async move {
                let array = assemble_array(&inside, &stage, 512, AssembleOptions::default()).await.unwrap();
                let pool = Pool::new(16 << 20).unwrap();
                let mut is_there = true;
                for (index, bytes) in bytes.chunks(MAX_BUF_BYTES).enumerate() {
                    let buf = pool.alloc(bytes.len()).await;
                    let found = array.read((index * MAX_BUF_BYTES) as u64, buf).await.unwrap();
                    is_there &= found[..] == *bytes;
                }
                array.stop().await.unwrap();
                is_there
            });
            lost[usize::from(write_through)] += u32::from(!is_there);
        }
        assert_eq!(lost[1], 0, "{shape:?}");
        assert!(lost[0] > 10, "without it, as much is lost: then this shows nothing");
    }
}
