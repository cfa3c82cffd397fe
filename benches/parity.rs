//! How fast parity is, beside ISA-L and beside the memory traffic alone.
//!
//! `cargo bench --bench parity` is criterion's; `cargo bench --bench parity -- --table` prints medians of five rounds, in which
//! the three take turns, and ours divided by the others: what docs/performance.md shows.
//!
//! Ours is what the engine calls. ISA-L is the library of the distribution (libisal2), if it is there: `xor_gen`,
//! `pq_gen`, and `ec_encode_data` with prepared tables where data is recovered. The *roof* reads the same slices and
//! writes as many, with no arithmetic but XOR.
//!
//! GB/s are bytes of sources by time. *cached* is one stripe again and again; *memory* is a walk over 512 MiB of sources. Every
//! chunk lies at a random place of an arena of huge pages, because strides of powers of two measure the caches' placement.

#![allow(unsafe_code)] // a C library, to measure against

use std::ffi::{c_int, c_uchar, c_void};
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use memmap2::{Advice, MmapMut, MmapOptions};
use raidd::parity::{self, Change};

const WALKED_BYTES: usize = 512 << 20;
const ROUNDS: usize = 5;
/// How long one implementation is measured in one round.
const TURN: Duration = Duration::from_millis(40);

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    P,
    PQ,
    /// Two of the sources change.
    Update,
    D,
    DD,
    DP,
}

const OPERATIONS: [(&str, Operation); 6] = [
    ("P", Operation::P),
    ("P+Q", Operation::PQ),
    ("update", Operation::Update),
    ("D", Operation::D),
    ("D+D", Operation::DD),
    ("D+P", Operation::DP),
];

#[derive(Clone, Copy)]
enum Who<'a> {
    Ours,
    Isal(&'a Isal),
    Roof,
}

/// The arena's chunks in a random order, handed out stripe by stripe.
struct Arena {
    memory: MmapMut,
}

impl Arena {
    fn new() -> Arena {
        let memory = MmapOptions::new().len(2 * WALKED_BYTES).map_anon().expect("a gigabyte of memory");
        memory.advise(Advice::HugePage).ok();
        let mut arena = Arena { memory };
        let mut state = 1u64;
        for word in arena.memory.as_chunks_mut::<8>().0 {
            state = random(state);
            *word = state.to_le_bytes();
        }
        arena
    }

    /// Stripes of `width` chunks; as many as make up `bytes` of sources, at least one.
    fn stripes(&mut self, width: usize, sources: usize, chunk: usize, bytes: usize) -> Vec<Vec<&mut [u8]>> {
        let mut slots: Vec<&mut [u8]> = self.memory.chunks_exact_mut(chunk).collect();
        let mut state = 7;
        for i in (1..slots.len()).rev() {
            state = random(state);
            slots.swap(i, (state >> 33) as usize % (i + 1));
        }
        let count = (bytes / (sources * chunk)).clamp(1, slots.len() / width);
        (0..count).map(|_| slots.split_off(slots.len() - width)).collect()
    }
}

fn random(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

/// What of ISA-L is measured.
struct Isal {
    xor_gen: unsafe extern "C" fn(c_int, c_int, *mut *mut c_void) -> c_int,
    pq_gen: unsafe extern "C" fn(c_int, c_int, *mut *mut c_void) -> c_int,
    encode: unsafe extern "C" fn(c_int, c_int, c_int, *const c_uchar, *mut *mut c_uchar, *mut *mut c_uchar),
    init_tables: unsafe extern "C" fn(c_int, c_int, *const c_uchar, *mut c_uchar),
}

impl Isal {
    fn load() -> Option<Isal> {
        // SAFETY: a name that ends with a zero; the library's initialisers have nothing to do with us.
        let library = unsafe { libc::dlopen(c"libisal.so.2".as_ptr(), libc::RTLD_NOW) };
        let symbol = |name: &std::ffi::CStr| {
            // SAFETY: the library has just been opened, and is never closed.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!symbol.is_null()).then_some(symbol)
        };
        if library.is_null() {
            return None;
        }
        // SAFETY: these are their types in ISA-L's raid.h and erasure_code.h.
        unsafe {
            Some(Isal {
                xor_gen: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(c_int, c_int, *mut *mut c_void) -> c_int,
                >(symbol(c"xor_gen")?),
                pq_gen: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(c_int, c_int, *mut *mut c_void) -> c_int,
                >(symbol(c"pq_gen")?),
                encode: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(
                        c_int,
                        c_int,
                        c_int,
                        *const c_uchar,
                        *mut *mut c_uchar,
                        *mut *mut c_uchar,
                    ),
                >(symbol(c"ec_encode_data")?),
                init_tables: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(c_int, c_int, *const c_uchar, *mut c_uchar),
                >(symbol(c"ec_init_tables")?),
            })
        }
    }
}

/// Everything of one cell of the table that is prepared before the clock runs.
struct Case {
    operation: Operation,
    /// Data chunks of a stripe.
    k: usize,
    tables: Vec<u8>,
}

impl Case {
    fn new(operation: Operation, k: usize, isal: Option<&Isal>) -> Case {
        let mut case = Case { operation, k, tables: Vec::new() };
        if let Some(isal) = isal {
            let rows = case.matrix();
            case.tables = vec![0; 32 * rows.len()];
            let outputs = case.outputs();
            // SAFETY: `rows` is outputs x sources, and the tables have 32 bytes for each of its elements.
            unsafe {
                (isal.init_tables)(
                    case.sources() as c_int,
                    outputs as c_int,
                    rows.as_ptr(),
                    case.tables.as_mut_ptr(),
                );
            }
        }
        case
    }

    /// Slices that are read: k where something is made or recovered of k, old and new data and parity where it changes.
    fn sources(&self) -> usize {
        if self.operation == Operation::Update { 6 } else { self.k }
    }

    fn outputs(&self) -> usize {
        if matches!(self.operation, Operation::P | Operation::D) { 1 } else { 2 }
    }

    /// What each output is of the sources, in GF(2^8), row by row. ISA-L's time does not depend on the factors, so where
    /// data is recovered they are any that are not trivial.
    fn matrix(&self) -> Vec<u8> {
        (0..self.sources() * self.outputs()).map(|i| 2 + 7 * i as u8).collect()
    }

    /// One stripe: sources first, then outputs.
    fn run(&self, who: Who<'_>, stripe: &mut [&mut [u8]]) {
        match who {
            Who::Ours => self.ours(stripe),
            Who::Isal(isal) => self.isal(isal, stripe),
            Who::Roof => roof(stripe, self.sources(), self.operation == Operation::Update),
        }
    }

    fn ours(&self, stripe: &mut [&mut [u8]]) {
        let (sources, outputs) = stripe.split_at_mut(self.sources());
        let mut data = [None; 16];
        // Lost are 1 and k - 2, where two are; what is left are k - 2 data and P and Q, or k - 1 and one of them.
        let lost = (1, self.k - 2);
        let mut fill = |present: usize, lost: &[usize]| {
            let places = (0..).filter(|i| !lost.contains(i));
            for (place, source) in places.zip(&sources[..present]) {
                data[place] = Some(&**source);
            }
        };
        match (self.operation, outputs) {
            (Operation::P, [p, ..]) => {
                let mut slices = [&[][..]; 16];
                for (slice, source) in slices.iter_mut().zip(&*sources) {
                    *slice = source;
                }
                parity::xor(&slices[..self.k], p);
            }
            (Operation::PQ, [p, q]) => {
                fill(self.k, &[]);
                parity::gen_pq(&data[..self.k], p, q);
            }
            (Operation::D, [out, ..]) => {
                fill(self.k - 1, &[lost.0]);
                parity::recover_from_q(&data[..self.k], lost.0 as u8, sources[self.k - 1], out);
            }
            (Operation::DP, [out, p]) => {
                fill(self.k - 1, &[lost.0]);
                parity::recover_with_p(&data[..self.k], lost.0 as u8, sources[self.k - 1], out, p);
            }
            (Operation::DD, [first, second]) => {
                fill(self.k - 2, &[lost.0, lost.1]);
                let (p, q) = (&*sources[self.k - 2], &*sources[self.k - 1]);
                let lost = (lost.0 as u8, lost.1 as u8);
                parity::recover_two(&data[..self.k], lost, p, q, (first, second));
            }
            (Operation::Update, _) => {
                let [a, new_a, b, new_b, p, q] = sources else { unreachable!() };
                let changes =
                    [Change { old: a, new: new_a, exponent: 1 }, Change { old: b, new: new_b, exponent: 5 }];
                parity::update(&changes, Some(p), Some(q));
            }
            _ => unreachable!(),
        }
    }

    fn isal(&self, isal: &Isal, stripe: &mut [&mut [u8]]) {
        let len = stripe[0].len() as c_int;
        let mut pointers = [std::ptr::null_mut::<u8>(); 20];
        for (pointer, slice) in pointers.iter_mut().zip(stripe.iter_mut()) {
            *pointer = slice.as_mut_ptr();
        }
        let (k, outputs) = (self.sources(), self.outputs());
        let all = (k + outputs) as c_int;
        // SAFETY: so many pointers to so many bytes each, disjoint, aligned to a chunk; the tables are of this matrix.
        unsafe {
            match self.operation {
                Operation::P => _ = (isal.xor_gen)(all, len, pointers.as_mut_ptr().cast()),
                Operation::PQ => _ = (isal.pq_gen)(all, len, pointers.as_mut_ptr().cast()),
                _ => {
                    let (sources, out) = pointers.split_at_mut(k);
                    let (sources, out) = (sources.as_mut_ptr(), out.as_mut_ptr());
                    (isal.encode)(len, k as c_int, outputs as c_int, self.tables.as_ptr(), sources, out);
                }
            }
        }
    }
}

/// The XOR of the sources, to each output; where parity changes, the last two sources are the outputs.
#[inline(never)]
fn roof(stripe: &mut [&mut [u8]], sources: usize, in_place: bool) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: just asked for.
        return unsafe { roof_avx512(stripe, sources, in_place) };
    }
    roof_of(stripe, sources, in_place);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn roof_avx512(stripe: &mut [&mut [u8]], sources: usize, in_place: bool) {
    roof_of(stripe, sources, in_place);
}

#[inline(always)]
fn roof_of(stripe: &mut [&mut [u8]], sources: usize, in_place: bool) {
    let first_output = if in_place { sources - 2 } else { sources };
    let end = if in_place { sources } else { stripe.len() };
    for index in 0..stripe[0].len() / 256 {
        let mut sum = [0u64; 32];
        for source in &stripe[..sources] {
            let block: [u64; 32] = zerocopy::transmute!(source.as_chunks::<256>().0[index]);
            for (sum, word) in sum.iter_mut().zip(block) {
                *sum ^= word;
            }
        }
        for output in &mut stripe[first_output..end] {
            output.as_chunks_mut::<256>().0[index] = zerocopy::transmute!(sum);
        }
    }
}

/// GB/s of one turn; as many whole walks as fit.
fn turn(case: &Case, who: Who<'_>, stripes: &mut [Vec<&mut [u8]>]) -> f64 {
    let bytes = (case.sources() * stripes[0][0].len() * stripes.len()) as f64;
    let (began, mut walks) = (Instant::now(), 0);
    while began.elapsed() < TURN {
        // The clock is not read after each small stripe.
        for _ in 0..(if stripes.len() == 1 { 16 } else { 1 }) {
            for stripe in &mut *stripes {
                case.run(who, black_box(stripe));
            }
            walks += 1;
        }
    }
    bytes * f64::from(walks) / began.elapsed().as_secs_f64() / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn each_cell(mut cell: impl FnMut(&str, Operation, usize, usize, bool)) {
    for cached in [true, false] {
        for (name, operation) in OPERATIONS {
            for k in [4, 8] {
                for chunk in [64 << 10, 512 << 10] {
                    if operation != Operation::Update || k == 4 {
                        cell(name, operation, k, chunk, cached);
                    }
                }
            }
        }
    }
}

fn table(isal: Option<&Isal>) {
    let mut arena = Arena::new();
    println!("{}; GB/s of what is read, median of {ROUNDS}", parity::implementation());
    println!("| operation | k | chunk | from | ours | ISA-L | roof | ours/ISA-L | ours/roof |");
    println!("|---|---|---|---|---|---|---|---|---|");
    each_cell(|name, operation, k, chunk, cached| {
        let case = Case::new(operation, k, isal);
        let bytes = if cached { 1 } else { WALKED_BYTES };
        let width = case.sources() + case.outputs();
        let mut stripes = arena.stripes(width, case.sources(), chunk, bytes);
        let who = [Some(Who::Ours), isal.map(Who::Isal), Some(Who::Roof)];
        let mut speeds = [const { Vec::new() }; 3];
        for round in 0..=ROUNDS {
            for (who, speeds) in who.iter().zip(&mut speeds) {
                let Some(who) = who else { continue };
                let speed = turn(&case, *who, &mut stripes);
                speeds.extend((round > 0).then_some(speed)); // The first one warms up.
            }
        }
        let [ours, theirs, roof] =
            speeds.map(|speeds| if speeds.is_empty() { f64::NAN } else { median(speeds) });
        let from = if cached { "cache" } else { "memory" };
        println!(
            "| {name} | {k} | {} KiB | {from} | {ours:.1} | {theirs:.1} | {roof:.1} | {:.2} | {:.2} |",
            chunk >> 10,
            ours / theirs,
            ours / roof
        );
    });
}

fn criterion(isal: Option<&Isal>) {
    let mut arena = Arena::new();
    let mut criterion = Criterion::default().configure_from_args();
    each_cell(|name, operation, k, chunk, cached| {
        let case = Case::new(operation, k, isal);
        let bytes = if cached { 1 } else { WALKED_BYTES };
        let width = case.sources() + case.outputs();
        let mut stripes = arena.stripes(width, case.sources(), chunk, bytes);
        let from = if cached { "cache" } else { "memory" };
        let mut group = criterion.benchmark_group(format!("{name}/k{k}/{}KiB/{from}", chunk >> 10));
        group.throughput(Throughput::Bytes((case.sources() * chunk) as u64));
        let who = [("ours", Some(Who::Ours)), ("isa-l", isal.map(Who::Isal)), ("roof", Some(Who::Roof))];
        for (label, who) in who {
            let Some(who) = who else { continue };
            let mut next = 0;
            group.bench_function(label, |bencher| {
                bencher.iter(|| {
                    case.run(who, black_box(&mut stripes[next]));
                    next = (next + 1) % stripes.len();
                });
            });
        }
        group.finish();
    });
    criterion.final_summary();
}

fn main() {
    let isal = Isal::load();
    if isal.is_none() {
        println!("SKIPPED: ISA-L is not there (package libisal2)");
    }
    if std::env::args().any(|argument| argument == "--table") {
        table(isal.as_ref());
    } else {
        criterion(isal.as_ref());
    }
}
