//! Writers whose every sector says where it belongs and which write it is of, so that after a crash it can be told of
//! each whether what is there may be there.
//!
//! The rule: of each sector at least the last write that was acknowledged before the crash is there, and nothing older;
//! a write that was under way may be there or not. No sector is of two writes.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raidd::nbd::{Client, ClientError};

use super::disks::noise;
use super::harness::Home;

const SECTOR: usize = 512;
/// Sectors of each writer's own region.
const REGION_SECTORS: u64 = 6 << 10;
const WRITERS: u64 = 3;
/// Sectors in one write, at most: more than a chunk of the arrays here.
const WRITE_SECTORS_MAX: u64 = 160;
const WRITES_PER_FLUSH: u64 = 8;

/// What is known of a sector: the number of its last acknowledged write and of the last that was tried; 0 is none.
#[derive(Clone, Copy, Default)]
struct Known {
    acknowledged: u64,
    tried: u64,
}

/// A region and what was written there.
struct Region {
    first: u64,
    known: Vec<Known>,
    /// Number of the last write.
    writes: u64,
}

/// All regions of an export.
pub struct Load {
    name: String,
    regions: Vec<Region>,
}

impl Load {
    /// Nothing written yet. The export holds zeroes.
    pub fn new(name: &str) -> Load {
        // Odd sectors between the regions, so that they begin at no boundary of anything.
        let region = |number| Region {
            first: 7 + number * (REGION_SECTORS + 13),
            known: vec![Known::default(); REGION_SECTORS as usize],
            writes: 0,
        };
        Load { name: name.to_owned(), regions: (0..WRITERS).map(region).collect() }
    }

    /// How many writes were acknowledged or tried so far.
    pub fn writes(&self) -> u64 {
        self.regions.iter().map(|region| region.writes).sum()
    }

    /// Writes for this long, then does `crash` while it still writes, and returns when the writers have noticed.
    pub fn run(&mut self, home: &Home, time: Duration, crash: impl FnOnce()) {
        let end = Arc::new(AtomicBool::new(false));
        let regions = std::mem::take(&mut self.regions);
        let start = |mut region: Region| -> JoinHandle<Region> {
            let mut client = home.client(&self.name);
            let end = end.clone();
            std::thread::spawn(move || {
                let mut random = region.first + region.writes;
                while !end.load(Ordering::Relaxed) {
                    if region.write(&mut client, &mut random).is_err() {
                        break;
                    }
                }
                region
            })
        };
        let writers: Vec<_> = regions.into_iter().map(start).collect();
        std::thread::sleep(time);
        crash();
        end.store(true, Ordering::Relaxed);
        self.regions = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    }

    /// Every sector must be what the rule allows.
    #[track_caller]
    pub fn check(&mut self, home: &Home) {
        let mut client = home.client(&self.name);
        for region in &mut self.regions {
            let mut data = vec![0; region.known.len() * SECTOR];
            client.read(region.first * SECTOR as u64, &mut data).unwrap();
            region.check(&data);
        }
        client.disconnect().unwrap();
    }

    /// The same of what somebody else has read, from the beginning of the array.
    #[track_caller]
    pub fn check_content(&mut self, content: &[u8]) {
        for region in &mut self.regions {
            region.check(&content[region.first as usize * SECTOR..][..region.known.len() * SECTOR]);
        }
    }
}

impl Region {
    /// One write somewhere in the region, and now and then a flush.
    fn write(&mut self, client: &mut Client<UnixStream>, random: &mut u64) -> Result<(), ClientError> {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = 1 + (*random >> 33) % WRITE_SECTORS_MAX;
        let start = (*random >> 13) % (REGION_SECTORS - len);
        self.writes += 1;
        let range = start as usize..(start + len) as usize;
        for known in &mut self.known[range.clone()] {
            known.tried = self.writes;
        }
        let sectors = self.first + start..self.first + start + len;
        let data: Vec<u8> = sectors.clone().flat_map(|sector| content(sector, self.writes)).collect();
        client.write(sectors.start * SECTOR as u64, &data)?;
        for known in &mut self.known[range] {
            known.acknowledged = self.writes;
        }
        if self.writes.is_multiple_of(WRITES_PER_FLUSH) {
            client.flush()?;
        }
        Ok(())
    }

    #[track_caller]
    fn check(&mut self, data: &[u8]) {
        for (index, known) in self.known.iter_mut().enumerate() {
            let sector = self.first + index as u64;
            let found = &data[index * SECTOR..][..SECTOR];
            let number = u64::from_le_bytes(found[8..16].try_into().unwrap());
            let whole = if number == 0 { vec![0; SECTOR] } else { content(sector, number) };
            assert!(found == whole, "sector {sector} holds a mixture: {:x?}", &found[..64]);
            assert!(
                (known.acknowledged..=known.tried).contains(&number),
                "sector {sector} holds write {number}, but {} was acknowledged and {} the last",
                known.acknowledged,
                known.tried
            );
            // What is there now must stay.
            *known = Known { acknowledged: number, tried: number };
        }
    }
}

fn content(sector: u64, write: u64) -> Vec<u8> {
    let word = [sector.to_le_bytes(), write.to_le_bytes()].concat();
    word.repeat(SECTOR / word.len())
}

/// Clients that write, read and flush without a pause, and tell how long a request took at most.
pub struct Stopwatch {
    end: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Duration>>,
}

impl Stopwatch {
    /// Starts so many clients.
    pub fn start(home: &Home, name: &str, clients: u64) -> Stopwatch {
        let end = Arc::new(AtomicBool::new(false));
        let start = |number| {
            let (client, end) = (home.client(name), end.clone());
            std::thread::spawn(move || time_requests(client, number, &end))
        };
        Stopwatch { clients: (0..clients).map(start).collect(), end }
    }

    /// The longest request of all.
    pub fn stop(self) -> Duration {
        self.end.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().unwrap()).max().unwrap()
    }
}

fn time_requests(mut client: Client<UnixStream>, number: u64, end: &AtomicBool) -> Duration {
    const BYTES: u64 = 64 << 10;
    let mut longest = Duration::ZERO;
    let mut data = noise(number, BYTES as usize);
    for turn in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let offset = (turn % 64 * 4 + number) * BYTES;
        for request in 0..3 {
            let began = Instant::now();
            match request {
                0 => client.write(offset, &data).unwrap(),
                1 => client.read(offset, &mut data).unwrap(),
                _ => client.flush().unwrap(),
            }
            longest = longest.max(began.elapsed());
        }
    }
    client.disconnect().unwrap();
    longest
}
