//! Random rounds against an oracle: an array of every level and layout, healthy or not, is driven with reads, writes,
//! zeroes and flushes of odd sizes and offsets; a plain array of bytes says what every read must return; and at the end
//! the members' own bytes are looked at.

use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use raidd::engine::{AssembleOptions, Health, MemberState};
use raidd::io::{Clock, Device, Fua, IoErrorKind, Pool, Slice, Spawn, Zeroing};

use raidd_sim::disk::Platter;
use raidd_sim::model::Model;
use raidd_sim::setup::{SHAPES, Shape, SimArray, assemble_array, create_array, platters};
use raidd_sim::world::{Ended, World};

const BLOCKS: [u64; 2] = [512, 4096];

/// A client of one array that knows what it has written.
pub struct Client {
    pub array: SimArray,
    pub world: World,
    pub bytes: Vec<u8>,
    pool: Pool,
}

impl Client {
    pub fn new(array: SimArray, world: &World) -> Client {
        let bytes = vec![0; array.size_bytes() as usize];
        Client { array, world: world.clone(), bytes, pool: Pool::new(16 << 20).unwrap() }
    }

    /// The same client of the array after it was assembled again.
    pub fn again(array: SimArray, before: Client) -> Client {
        Client { array, ..before }
    }

    /// Gives every byte a known value.
    pub async fn fill(&mut self) {
        let len = self.bytes.len();
        self.write(0, len, Fua::No).await.unwrap();
    }

    /// A range of any bytes, mostly small, sometimes several stripes.
    pub fn range(&self) -> (usize, usize) {
        let size = self.bytes.len() as u64;
        let start = self.world.random(size);
        let most = match self.world.random(4) {
            0 => 600,
            1 => 9000,
            2 => 70_000,
            _ => size,
        };
        let len = 1 + self.world.random(most.min(size - start));
        let (mut start, mut end) = (start, start + len);
        if self.world.random(2) == 0 {
            (start, end) = (start & !511, (end.next_multiple_of(512)).min(size));
        }
        (start as usize, (end - start) as usize)
    }

    /// Payload as a session hands it over: in step with the offset, in several slices.
    pub fn payload(&self, start: usize, len: usize) -> (Vec<u8>, Vec<Slice>) {
        let random = raidd_sim::random::Random::new(self.world.random(u64::MAX));
        let bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).take(len).collect();
        let mut slices = Vec::new();
        let mut at = 0;
        while at < len {
            let pad = (start + at) % 4096;
            // Every slice but the last ends where a block does, as `Device::write` wants it.
            let blocks = if random.one_in(2) { 5 } else { 255 };
            let most = 4096 * (1 + random.below(blocks)) as usize - pad;
            let take = most.min(len - at);
            let mut buf = self.pool.try_alloc(pad + take).expect("memory for a payload");
            let mut data = buf.split_off(pad);
            data.copy_from_slice(&bytes[at..at + take]);
            slices.push(data.freeze());
            at += take;
        }
        (bytes, slices)
    }

    pub async fn write(&mut self, start: usize, len: usize, fua: Fua) -> Result<(), IoErrorKind> {
        let (bytes, slices) = self.payload(start, len);
        let result = self.array.write(start as u64, slices, fua).await;
        if result.is_ok() {
            self.bytes[start..start + len].copy_from_slice(&bytes);
        }
        result.map_err(|error| error.kind)
    }

    pub async fn check(&self, start: usize, len: usize) {
        let block = u64::from(self.array.info().read_block_bytes) as usize;
        let (first, end) = (start / block * block, (start + len).next_multiple_of(block));
        for at in (first..end).step_by(1 << 20) {
            let buf = self.pool.alloc((end - at).min(1 << 20)).await;
            let got = self.array.read(at as u64, buf).await;
            let got = got.unwrap_or_else(|error| panic!("read of {at}+{len}: {error}"));
            let want = &self.bytes[at..at + got.len()];
            if let Some(place) = got.iter().zip(want).position(|(got, want)| got != want) {
                panic!("wrong byte at {} (read of {start}+{len}, {:?})", at + place, self.array.level());
            }
        }
    }

    pub async fn check_all(&self) {
        self.check(0, self.bytes.len()).await;
    }

    /// One random operation, alone.
    pub async fn step(&mut self) {
        let (start, len) = self.range();
        match self.world.random(12) {
            0..5 => {
                let fua = if self.world.random(4) == 0 { Fua::Yes } else { Fua::No };
                self.write(start, len, fua).await.unwrap();
            }
            5..9 => self.check(start, len).await,
            9 => {
                let zeroing = if self.world.random(2) == 0 { Zeroing::Unmap } else { Zeroing::Allocate };
                self.array.write_zeroes(start as u64, len as u64, zeroing, Fua::No).await.unwrap();
                self.bytes[start..start + len].fill(0);
            }
            10 => self.array.flush().await.unwrap(),
            _ => {
                self.array.discard(start as u64, len as u64).await.unwrap();
                // Undefined until written again; and what is read there must not be relied on.
                self.write(start, len, Fua::No).await.unwrap();
            }
        }
    }

    /// Several writes and reads at once, on ranges of their own.
    pub async fn burst(&mut self) {
        let mut cuts: Vec<usize> =
            (0..8).map(|_| self.world.random(self.bytes.len() as u64) as usize).collect();
        cuts.sort_unstable();
        let mut jobs: Vec<LocalBoxFuture<'_, ()>> = Vec::new();
        let mut bytes = self.bytes.clone();
        for pair in cuts.windows(2).filter(|pair| pair[0] < pair[1]) {
            let (start, len) = (pair[0], (pair[1] - pair[0]).min(100_000));
            if self.world.random(3) > 0 {
                let (data, slices) = self.payload(start, len);
                bytes[start..start + len].copy_from_slice(&data);
                let array = self.array.clone();
                jobs.push(
                    async move { array.write(start as u64, slices, Fua::No).await.unwrap() }.boxed_local(),
                );
            } else {
                // Reads are of whole blocks, so leave the neighbours' blocks out.
                let (first, end) = (start.next_multiple_of(4096), (start + len) / 4096 * 4096);
                if first < end {
                    jobs.push(self.check(first, end - first).boxed_local());
                }
            }
        }
        futures_util::future::join_all(jobs).await;
        self.bytes = bytes;
    }

    pub async fn until_synced(&self) {
        while self.array.status().resync_is_due {
            self.world.sleep(Duration::from_millis(5)).await;
        }
    }
}

fn run(seed: u64, name: &str, round: impl AsyncFn(World, Shape, u64) + Copy + 'static) {
    for (index, &shape) in SHAPES.iter().enumerate() {
        let seed = seed.wrapping_mul(1000) + index as u64;
        println!("{name}: seed {seed}, {shape:?}");
        let world = World::new(seed);
        let inside = world.clone();
        world.run(async move { round(inside, shape, seed).await });
    }
}

async fn stop_and_verify(client: &Client, platters: &[Platter], what: &str) {
    client.array.stop().await.unwrap();
    let torn = Model::of(platters).inconsistent();
    assert!(torn.is_empty(), "{what}: parity or copies disagree in rows at {torn:?}");
}

#[test]
fn healthy_arrays_keep_every_byte() {
    for seed in 0..4 {
        run(seed, "healthy", async |world, shape, seed| {
            let disks = platters(&shape, seed);
            let some: Vec<_> = disks.iter().cloned().map(Some).collect();
            let block = BLOCKS[seed as usize % 2];
            let array =
                create_array(&world, &shape, &some, block, seed % 3 == 0, seed % 2 == 0).await.unwrap();
            let mut client = Client::new(array, &world);
            client.fill().await;
            for _ in 0..40 {
                client.step().await;
                if world.random(4) == 0 {
                    client.burst().await;
                }
            }
            client.until_synced().await;
            client.check_all().await;
            assert_eq!(client.array.health(), Health::Optimal);
            stop_and_verify(&client, &disks, "healthy").await;

            let again = assemble_array(&world, &disks, block, AssembleOptions::default()).await.unwrap();
            assert!(!again.status().resync_is_due, "a clean array has nothing to resync");
            let client = Client { array: again, ..client };
            client.check_all().await;
        });
    }
}

#[test]
fn failed_members_cost_nothing() {
    for seed in 100..104 {
        run(seed, "failing", async |world, shape, seed| {
            if shape.spare_slots == 0 {
                return;
            }
            let disks = platters(&shape, seed);
            let some: Vec<_> = disks.iter().cloned().map(Some).collect();
            let array = create_array(&world, &shape, &some, 512, false, true).await.unwrap();
            let mut client = Client::new(array, &world);
            client.fill().await;
            for failed in 0..=shape.spare_slots {
                for _ in 0..12 {
                    client.step().await;
                    client.burst().await;
                }
                if failed == shape.spare_slots {
                    break;
                }
                let slot = world.random(shape.slots as u64) as usize;
                match world.random(3) {
                    // It fails on its own, at some write from now on.
                    0 => disks[slot].faults().writes_left.set(Some(world.random(20))),
                    _ => match client.array.fail(&format!("disk{slot}")).await {
                        Ok(()) => {}
                        Err(_) => assert!(
                            client.array.status().members[slot].state == Some(MemberState::Faulty)
                                || client.array.level().md() == 10,
                            "only what cannot be spared is refused"
                        ),
                    },
                }
            }
            client.check_all().await;
            assert_ne!(client.array.health(), Health::Failed);
            client.until_synced().await;
            stop_and_verify(&client, &disks, "failing").await;

            // The survivors know who was left behind, with or without it.
            for disk in &disks {
                disk.faults().writes_left.set(None);
            }
            let again = assemble_array(&world, &disks, 512, AssembleOptions::default()).await.unwrap();
            let mut client = Client { array: again, ..client };
            client.check_all().await;
            for _ in 0..10 {
                client.step().await;
            }
            client.check_all().await;
            stop_and_verify(&client, &disks, "failing, assembled again").await;
        });
    }
}

#[test]
fn every_survivable_set_of_missing_members_reads_right() {
    run(200, "missing", async |world, shape, seed| {
        let disks = platters(&shape, seed);
        let some: Vec<_> = disks.iter().cloned().map(Some).collect();
        let array = create_array(&world, &shape, &some, 512, true, false).await.unwrap();
        let mut client = Client::new(array, &world);
        client.fill().await;
        client.array.stop().await.unwrap();
        for set in 0u32..1 << shape.slots {
            let present: Vec<_> = (0..shape.slots).filter(|slot| set >> slot & 1 == 0).collect();
            let some: Vec<_> = present.iter().map(|&slot| disks[slot].clone()).collect();
            let gone = shape.slots - present.len();
            match assemble_array(&world, &some, 512, AssembleOptions::default()).await {
                Ok(array) => {
                    assert!(gone <= shape.spare_slots || shape.level == 10);
                    client = Client { array, ..client };
                    client.check_all().await;
                }
                Err(error) => assert!(gone > shape.spare_slots, "{shape:?} without {set:b}: {error}"),
            }
        }
    });
}

#[test]
fn unreadable_sectors_are_read_from_the_rest() {
    for seed in 300..303 {
        run(seed, "unreadable", async |world, shape, seed| {
            if shape.spare_slots == 0 {
                return;
            }
            let disks = platters(&shape, seed);
            let some: Vec<_> = disks.iter().cloned().map(Some).collect();
            let array = create_array(&world, &shape, &some, 512, false, true).await.unwrap();
            let mut client = Client::new(array, &world);
            client.fill().await;
            client.until_synced().await;
            // One member cannot read a good part of what it has.
            let slot = world.random(shape.slots as u64) as usize;
            for _ in 0..6 {
                let start = shape.data_offset() as u64 + world.random(180 << 10) / 512 * 512;
                disks[slot].spoil(start..start + 512 * (1 + world.random(40)));
            }
            for _ in 0..25 {
                client.step().await;
                client.burst().await;
            }
            client.check_all().await;
            stop_and_verify(&client, &disks, "unreadable").await;
        });
    }
}

#[test]
fn a_killed_daemon_loses_nothing_acknowledged() {
    for seed in 400..412u64 {
        for (index, &shape) in SHAPES.iter().enumerate().filter(|(_, shape)| shape.level > 0) {
            let seed = seed * 1000 + index as u64;
            println!("killed: seed {seed}, {shape:?}");
            killed(seed, shape);
        }
    }
}

fn killed(seed: u64, shape: Shape) {
    let disks = platters(&shape, seed);
    // What was acknowledged, and what was under way.
    let known: Rc<std::cell::RefCell<Option<Vec<u8>>>> = Rc::default();
    let under_way: Rc<std::cell::RefCell<Vec<std::ops::Range<usize>>>> = Rc::default();
    let world = World::new(seed);
    let (inside, platters) = (world.clone(), disks.clone());
    let (acknowledged, pending) = (known.clone(), under_way.clone());
    let steps = 400 + world.random(12_000);
    let survived = world.run_steps(
        async move {
            let some: Vec<_> = platters.iter().cloned().map(Some).collect();
            let array = create_array(&inside, &shape, &some, 512, true, true).await.unwrap();
            let mut client = Client::new(array, &inside);
            client.fill().await;
            *acknowledged.borrow_mut() = Some(client.bytes.clone());
            // Three writers, each on a third of the array.
            let third = client.bytes.len() / 3;
            for part in 0..3 {
                let (array, world) = (client.array.clone(), inside.clone());
                let mut writer = Client::new(array, &inside);
                let (acknowledged, pending) = (acknowledged.clone(), pending.clone());
                inside.spawn(async move {
                    loop {
                        let start = part * third + world.random(third as u64 - 1) as usize;
                        let len = 1 + world.random(((part + 1) * third - start).min(50_000) as u64) as usize;
                        pending.borrow_mut().push(start..start + len);
                        if writer.write(start, len, Fua::No).await.is_err() {
                            return; // Being stopped.
                        }
                        pending.borrow_mut().retain(|range| range.start != start);
                        acknowledged.borrow_mut().as_mut().expect("filled")[start..start + len]
                            .copy_from_slice(&writer.bytes[start..start + len]);
                        if world.random(8) == 0 {
                            world.sleep(Duration::from_millis(world.random(900))).await;
                        }
                    }
                });
            }
            std::future::pending::<()>().await;
        },
        steps,
    );
    assert_eq!(survived, Ended::Crashed);
    disks.iter().for_each(|disk| disk.abandon(world.dice()));
    let Some(bytes) = known.borrow_mut().take() else { return };
    let torn: Vec<_> = under_way.borrow().clone();

    let world = World::new(seed + 1);
    let inside = world.clone();
    world.run(async move {
        let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
        let mut client = Client::new(array, &inside);
        client.bytes = bytes;
        client.learn(&torn).await;
        client.check_all().await;
        for _ in 0..10 {
            client.step().await;
        }
        client.until_synced().await;
        client.check_all().await;
        stop_and_verify(&client, &disks, "killed").await;
    });
}

impl Client {
    /// Takes what is there for true in ranges whose writes were never answered, block by block as they are read.
    pub async fn learn(&mut self, ranges: &[std::ops::Range<usize>]) {
        for range in ranges {
            let (first, end) = (range.start / 512 * 512, range.end.next_multiple_of(512));
            let buf = self.pool.alloc(end - first).await;
            let got = self.array.read(first as u64, buf).await.unwrap();
            self.bytes[range.clone()].copy_from_slice(&got[range.start - first..range.end - first]);
        }
    }
}

#[test]
fn a_full_disk_fails_writes_but_no_member() {
    run(500, "full", async |world, shape, seed| {
        if shape.spare_slots == 0 {
            return;
        }
        let disks = platters(&shape, seed);
        let some: Vec<_> = disks.iter().cloned().map(Some).collect();
        let array = create_array(&world, &shape, &some, 512, true, true).await.unwrap();
        let mut client = Client::new(array, &world);
        client.fill().await;
        let full = world.random(shape.slots as u64) as usize;
        disks[full].faults().full.set(true);
        let mut torn = Vec::new();
        for _ in 0..10 {
            let (start, len) = client.range();
            match client.write(start, len, Fua::No).await {
                Ok(()) => {}
                Err(kind) => {
                    assert_eq!(kind, IoErrorKind::NoSpace);
                    torn.push(start..start + len);
                }
            }
        }
        assert_eq!(client.array.health(), Health::Optimal, "a full disk is no failed disk");
        disks[full].faults().full.set(false);
        client.learn(&torn).await;
        client.check_all().await;
        for _ in 0..10 {
            client.step().await;
        }
        client.check_all().await;
        client.array.stop().await.unwrap();

        // Whatever was left torn is made to agree at the next start.
        let again = assemble_array(&world, &disks, 512, AssembleOptions::default()).await.unwrap();
        let client = Client { array: again, ..client };
        client.until_synced().await;
        client.check_all().await;
        stop_and_verify(&client, &disks, "full").await;
    });
}
