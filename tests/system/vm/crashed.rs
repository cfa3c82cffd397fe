//! raidd is killed while it writes, with rows torn for certain: one member of each array hangs, so what it is to hold is
//! missing there, while the others have theirs. The kernel mends what is torn, and looks at nothing else.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use raidd::api::{ArrayState, SyncAction};

use super::super::disks::{MIB, noise};
use super::super::harness::{Home, Raidd};
use super::super::load::Load;
use super::super::members::read_all;
use super::super::mounted::comes_true;
use super::arrays::{Made, PPL, SHAPES, Shape, examine};
use super::handover::Handover;
use super::rig::can_run;

/// The member that hangs.
const HUNG: usize = 1;
/// Where whole stripes are written, behind the regions of [`Load`].
const STRIPES: u64 = 10 * MIB;
/// How many.
const STRIPES_COUNT: u64 = 6;
/// Bytes of a member, or of a RAID 10, that a bit of raidd's bitmaps is for.
const BIT_BYTES: u64 = 64 * MIB;

/// An array that is killed while it is written.
struct Victim {
    made: Made,
    load: Load,
    stripes: Vec<u8>,
}

impl Victim {
    fn new(home: &Home, shape: &Shape, state: &str, mib: u64) -> Victim {
        let made = Made::empty(home, shape, state, mib);
        home.ok(format!("tune {} member_timeout=60s", made.name));
        let stripes = noise(77, (STRIPES_COUNT * shape.stripe_bytes) as usize);
        Victim { load: Load::new(&made.name), stripes, made }
    }

    /// Where the stripes are: at the beginning of one.
    fn stripes_start(&self) -> u64 {
        STRIPES.next_multiple_of(self.stripes.len() as u64 / STRIPES_COUNT)
    }

    /// Whether a member holds any of the stripes.
    fn is_on(&self, slot: usize) -> bool {
        holds_any(self.made.disk(slot), &self.stripes)
    }

    /// Each sector of the stripes is as before, or as written.
    #[track_caller]
    fn check(&mut self, content: &[u8]) {
        self.load.check_content(content);
        let found = &content[self.stripes_start() as usize..][..self.stripes.len()];
        for (index, (found, written)) in found.chunks(512).zip(self.stripes.chunks(512)).enumerate() {
            let is_right = found == written || found.iter().all(|byte| *byte == 0);
            assert!(is_right, "{}: sector {index} of the stripes is neither old nor new", self.made.name);
        }
    }
}

/// Whether a member holds any block of what was written; it would be near its beginning.
fn holds_any(path: &str, written: &[u8]) -> bool {
    let mut bytes = vec![0; 15 * MIB as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    written.chunks(4096).any(|block| bytes.chunks(4096).any(|found| found == block))
}

/// Writes to all of them, and kills the daemon when rows of each are torn.
fn tear(home: &Home, victims: &mut [Victim], raidd: &mut Raidd) {
    let (loaded, killed) = (Barrier::new(victims.len() + 1), Barrier::new(victims.len() + 1));
    std::thread::scope(|scope| {
        let mut places = Vec::new();
        for victim in victims.iter_mut() {
            let start = victim.stripes_start();
            let Victim { made, load, stripes } = victim;
            places.push((&*made, &*stripes, start));
            let (loaded, killed) = (&loaded, &killed);
            scope.spawn(move || {
                load.run(home, Duration::from_millis(300), || {
                    loaded.wait();
                    killed.wait();
                });
            });
        }
        loaded.wait();
        for (made, stripes, start) in &places {
            home.ok(format!("inject {} {} hang", made.name, made.disk(HUNG)));
            let (mut client, stripes, start) = (home.client(&made.name), *stripes, *start);
            scope.spawn(move || client.write(start, stripes).expect_err("a member hangs"));
        }
        for (made, stripes, _) in places.iter().filter(|(made, ..)| !made.name.starts_with("ppl")) {
            // If it does not, that is seen below, when no thread waits any more.
            comes_true(|| holds_any(made.disk(0), stripes));
        }
        raidd.kill();
        killed.wait();
    });
    // The load has all logs waiting for the member that hangs; what is torn for certain with logs is in a test of its own.
    for victim in victims.iter().filter(|victim| !victim.made.name.starts_with("ppl")) {
        assert!(victim.is_on(0) && !victim.is_on(HUNG), "{}: nothing is torn", victim.made.name);
    }
}

#[test]
fn the_kernel_mends_what_a_crash_of_raidd_has_torn() {
    if !can_run() {
        return;
    }
    let home = Home::new();
    let mut raidd = home.start_with(&["--enable-fault-injection"]);
    let mut victims: Vec<_> = SHAPES.iter().map(|shape| Victim::new(&home, shape, "torn", 16)).collect();
    tear(&home, &mut victims, &mut raidd);
    let mut handover = Handover::default();
    for victim in &victims {
        handover.give(&victim.made.name, victim.made.bytes(), &victim.made.disks.paths);
    }
    let taken = handover.run();
    let mut contents = Vec::new();
    for victim in &mut victims {
        let name = victim.made.name.clone();
        taken.assert_sound(&name);
        let content = taken.content(&name);
        victim.check(&content);
        contents.push((name.clone(), content));
        // A RAID 1 is copied without a look; a partial parity log leaves nothing to resync.
        let (mended, looked_at) = (taken.number(&name, "mended"), taken.moved(&name)[0].read);
        match name.as_str() {
            "raid1-torn" => {}
            "ppl-torn" => {
                assert!(mended == 0 && looked_at < 8192, "{mended} were torn, {looked_at} looked at");
            }
            _ => {
                assert!(mended > 0 && looked_at > 16384, "{name}: {mended} were torn, {looked_at} looked at");
            }
        }
    }

    let raidd = home.start();
    for (name, content) in contents {
        home.wait_for(&name, |status| status.nbd_uri.is_some());
        assert_eq!(home.status(&name).sync.action, SyncAction::Idle, "{name}: the kernel has left it clean");
        assert!(read_all(&home, &name) == content, "{name} came back with something else");
    }
    raidd.terminate();
}

#[test]
fn the_kernel_resyncs_only_where_raidds_bitmap_says() {
    if !can_run() {
        return;
    }
    const BITS: u64 = 3;
    let home = Home::new();
    let mut raidd = home.start_with(&["--enable-fault-injection"]);
    let shapes =
        SHAPES.iter().filter(|shape| ["raid1", "raid4", "raid5", "raid6", "near2"].contains(&shape.key));
    let mut victims: Vec<_> =
        shapes.map(|shape| Victim::new(&home, shape, "marked", BITS * 64 + 1)).collect();
    // What this test would see if the kernel took no notice of bitmaps.
    let unmarked = Shape { options: "--level 5 --chunk 16K --bitmap none", ..SHAPES[2] };
    victims.push(Victim::new(&home, &unmarked, "unmarked", BITS * 64 + 1));
    // Bits stay for some seconds where something was written: that is from the creation on.
    tear(&home, &mut victims, &mut raidd);
    let mut handover = Handover::default();
    let mut dirty = Vec::new();
    for victim in &victims {
        let bitmap = &examine(&home, victim.made.disk(0))["bitmap"];
        dirty.push(bitmap["dirty_chunks"].as_u64().map(|bits| (bits, bitmap["chunks"].as_u64().unwrap())));
        handover.give(&victim.made.name, 12 * MIB, &victim.made.disks.paths);
    }
    let taken = handover.run();
    for (victim, dirty) in victims.iter_mut().zip(dirty) {
        let name = victim.made.name.clone();
        taken.assert_sound(&name);
        victim.check(&taken.content(&name));
        let looked_at =
            taken.moved(&name).iter().map(|moved| moved.read + moved.written).max().unwrap() * 512;
        let bits = match dirty {
            // Of a RAID 10 of two pairs, a bit is for half as much of each member.
            Some((1, all)) if all == 2 * BITS => BIT_BYTES / 2,
            Some((1, BITS)) => BIT_BYTES,
            None => BITS * BIT_BYTES,
            other => panic!("{name}: {other:?} bits are set"),
        };
        assert!(
            (bits..bits + 4 * MIB).contains(&looked_at),
            "{name}: {looked_at} bytes of a member were looked at"
        );
    }
}

/// Members of a RAID 5 with logs: the daemon was killed in the middle of writing one chunk of many rows, and the member
/// with the other chunk is lost.
#[test]
fn the_kernel_replays_raidds_partial_parity_log() {
    if !can_run() {
        return;
    }
    const CHUNK: u64 = 64 << 10;
    /// In these rows, of three, the chunk being written is on the member that hangs, parity on the first, the other chunk
    /// on the last.
    const ROWS: [u64; 3] = [2, 5, 8];
    let home = Home::new();
    let mut raidd = home.start_with(&["--enable-fault-injection"]);
    let made = Made::new(&home, &PPL, "lost", 16);
    let name = made.name.as_str();
    home.ok(format!("tune {name} member_timeout=60s"));
    let parity = examine(&home, made.disk(0))["data_offset_bytes"].as_u64().unwrap();
    let parity_of = |row: u64| {
        let mut bytes = vec![0; CHUNK as usize];
        File::open(made.disk(0)).unwrap().read_exact_at(&mut bytes, parity + row * CHUNK).unwrap();
        bytes
    };
    let before = ROWS.map(parity_of);
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        // So that superblocks say that writes are under way already: the member that hangs could not say so any more.
        let mut client = home.client(name);
        // Where it needs the other chunk, it hangs before it comes to a log.
        let (again, busy) = (&made.content[42 * CHUNK as usize..][..4096], &busy);
        scope.spawn(move || while busy.load(Ordering::Relaxed) && client.write(42 * CHUNK, again).is_ok() {});
        home.wait_for(name, |status| status.state == ArrayState::Active);
        home.ok(format!("inject {name} {} hang", made.disk(HUNG)));
        for row in ROWS {
            let mut client = home.client(name);
            scope.spawn(move || {
                client.write(row * 2 * CHUNK, &noise(row, CHUNK as usize)).expect_err("a member hangs");
            });
        }
        comes_true(|| ROWS.map(parity_of) != before);
        raidd.kill();
        busy.store(false, Ordering::Relaxed);
    });
    assert!(ROWS.map(parity_of) != before, "nothing is torn");
    let mut handover = Handover::default();
    handover.give_with_spare(name, made.bytes(), &made.disks.paths[..2], &made.spare);
    let taken = handover.run();
    assert_eq!(taken.said(name, "found"), "clean, degraded");
    taken.assert_sound(name);
    let content = taken.content(name);
    for (number, (found, before)) in
        (0..).zip(content.chunks(CHUNK as usize).zip(made.content.chunks(CHUNK as usize)))
    {
        let is_new =
            number % 2 == 0 && ROWS.contains(&(number / 2)) && found == noise(number / 2, CHUNK as usize);
        assert!(found == before || is_new, "chunk {number} is neither old nor new");
    }
}
