//! Parity over slices of bytes: P, the XOR of the data, and Q, its sum weighted with powers of g in GF(2^8), as Linux's
//! RAID6 has it (`lib/raid6`); and lost data from them.
//!
//! Source i of a call has the coefficient g^i in Q. A source may be None: a hole, whose bytes are zero. A stripe whose
//! coefficients are not 0, 1, 2, .. in a row (DDF's layouts, P and Q leave holes there) is put in order by the caller.
//!
//! The kernels that the CPU is best at are chosen when the first one is needed; they all compute the same. In reading
//! order: `gf` (the field, one byte at a time), `kernels` (the loops), `portable`, `x86` and `neon` (what a vector is), this
//! file (what may be asked for, and who does it).
//!
//! Invariants:
//! - All slices of a call are equally long, of any length and alignment; there is no output that is also a source.
//! - An implementation runs only on a CPU that has its instructions: `perform` is the one place that calls them.
//!
//! Whoever breaks the rules of a call (lengths that differ, lost sources that are there) is told so by a panic.

#![allow(unsafe_code)] // the one call of code that uses instructions which not every CPU has

mod gf;
mod kernels;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

pub use kernels::Change;
use kernels::Job;

/// The most sources of Q: so many powers of g differ.
pub const MAX_SOURCES: usize = gf::ORDER;

/// Jobs of at least so many bytes, sources and outputs together, store past the caches: so much is a core's second cache
/// where it is largest, and where a job fits, its outputs stay there, which is faster. Above it P+Q of 512 KiB chunks ran at
/// 1.0 to 1.45 of a loop with plain stores and no arithmetic but XOR (`cargo bench --bench parity -- --table`; a Xeon with
/// 2 MiB); the bound itself was not varied.
const STREAM_BYTES_MIN: usize = 2 << 20;

/// How outputs must be aligned for that: to lines of the cache.
const STREAM_ALIGNMENT: usize = 64;

/// A kind of vectors, and the kernels on them.
struct Implementation {
    name: &'static str,
    /// Whether this CPU has the instructions that `run` uses.
    available: fn() -> bool,
    /// Does a job from a byte on as far as it can, and returns where it stopped. Unsafe to call if not `available`.
    run: unsafe fn(&mut Job<'_>, usize) -> usize,
    /// The same with stores past the caches, where there are such; its outputs are aligned to `STREAM_ALIGNMENT`.
    stream: Option<unsafe fn(&mut Job<'_>, usize) -> usize>,
}

/// All of them, the fastest first. The last one is always available.
static IMPLEMENTATIONS: &[Implementation] = &[
    #[cfg(target_arch = "x86_64")]
    Implementation {
        name: "avx512-gfni",
        available: || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("gfni")
        },
        run: x86::avx512_gfni::run::<false>,
        stream: Some(x86::avx512_gfni::run::<true>),
    },
    #[cfg(target_arch = "x86_64")]
    Implementation {
        name: "avx2-gfni",
        available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni"),
        run: x86::avx2_gfni::run::<false>,
        stream: Some(x86::avx2_gfni::run::<true>),
    },
    #[cfg(target_arch = "x86_64")]
    Implementation {
        name: "avx512",
        available: || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"),
        run: x86::avx512::run::<false>,
        stream: Some(x86::avx512::run::<true>),
    },
    #[cfg(target_arch = "x86_64")]
    Implementation {
        name: "avx2",
        available: || is_x86_feature_detected!("avx2"),
        run: x86::avx2::run::<false>,
        stream: Some(x86::avx2::run::<true>),
    },
    #[cfg(target_arch = "x86_64")]
    Implementation {
        name: "ssse3",
        available: || is_x86_feature_detected!("ssse3"),
        run: x86::ssse3::run::<false>,
        stream: Some(x86::ssse3::run::<true>),
    },
    #[cfg(target_arch = "aarch64")]
    Implementation {
        name: "neon",
        available: || std::arch::is_aarch64_feature_detected!("neon"),
        run: neon::neon::run::<false>,
        stream: None,
    },
    Implementation { name: "portable", available: || true, run: portable::run::<false>, stream: None },
];

static CHOSEN: LazyLock<&'static Implementation> = LazyLock::new(|| {
    let mut available = IMPLEMENTATIONS.iter().filter(|implementation| (implementation.available)());
    available.next().expect("the portable one is always available")
});

/// Does all of a job.
fn perform(implementation: &Implementation, job: Job<'_>) {
    let run = implementation.stream.filter(|_| streams(&job)).unwrap_or(implementation.run);
    finish(implementation, run, job);
}

/// Whether to store past the caches: large, and all that is written begins with a line of the cache.
fn streams(job: &Job<'_>) -> bool {
    let (slices, outputs) = job.traffic();
    let is_aligned = |output: &[u8]| output.as_ptr().addr().is_multiple_of(STREAM_ALIGNMENT);
    slices * job.len() >= STREAM_BYTES_MIN
        && outputs[0].is_some()
        && outputs.into_iter().flatten().all(is_aligned)
}

/// `run` is one of the implementation's.
fn finish(implementation: &Implementation, run: unsafe fn(&mut Job<'_>, usize) -> usize, mut job: Job<'_>) {
    assert!((implementation.available)(), "{} on a CPU that does not have it", implementation.name);
    // SAFETY: `run` needs nothing but the instructions that `available` has just asked for.
    let done = unsafe { run(&mut job, 0) };
    if done < job.len() {
        portable::run::<false>(&mut job, done);
    }
}

/// Which kernels this CPU uses: "avx512-gfni", "avx2", "portable", ...
pub fn implementation() -> &'static str {
    CHOSEN.name
}

/// out = the XOR of all sources. Panics if there is none, or one of another length than `out`.
pub fn xor(sources: &[&[u8]], out: &mut [u8]) {
    perform(&CHOSEN, xor_job(sources, out));
}

/// P and Q of the sources: p = the XOR of them, q = the sum of g^i * source i. A source that is None is all zero.
/// Panics if there are more than [`MAX_SOURCES`], or lengths differ.
pub fn gen_pq(sources: &[Option<&[u8]>], p: &mut [u8], q: &mut [u8]) {
    perform(&CHOSEN, gen_pq_job(sources, p, q));
}

/// Q of the sources: q = the sum of g^i * source i. A source that is None is all zero. Panics if there are more than
/// [`MAX_SOURCES`], or lengths differ.
pub fn gen_q(sources: &[Option<&[u8]>], q: &mut [u8]) {
    perform(&CHOSEN, gen_q_job(sources, q));
}

/// Makes parity of old data that of new data, for any number of changes in one pass: p += old + new, q += g^exponent *
/// (old + new). Panics if an exponent is above 254 or lengths differ.
pub fn update(changes: &[Change<'_>], p: Option<&mut [u8]>, q: Option<&mut [u8]>) {
    perform(&CHOSEN, update_job(changes, p, q));
}

/// Source `lost` from Q and the other sources, where P is lost too. Panics if there is no source `lost` or it is not
/// None, if there are more than [`MAX_SOURCES`], or lengths differ.
pub fn recover_from_q(sources: &[Option<&[u8]>], lost: u8, q: &[u8], out: &mut [u8]) {
    perform(&CHOSEN, recover_from_q_job(sources, lost, q, out));
}

/// As [`recover_from_q`], and P anew, in the same pass. Panics as it does.
pub fn recover_with_p(sources: &[Option<&[u8]>], lost: u8, q: &[u8], out: &mut [u8], new_p: &mut [u8]) {
    perform(&CHOSEN, recover_with_p_job(sources, lost, q, out, new_p));
}

/// Source `lost` from P and the other sources, and Q anew, in one pass. Panics if there is no source `lost` or it is not
/// None, if there are more than [`MAX_SOURCES`], or lengths differ.
pub fn recover_with_q(sources: &[Option<&[u8]>], lost: u8, p: &[u8], out: &mut [u8], new_q: &mut [u8]) {
    perform(&CHOSEN, recover_with_q_job(sources, lost, p, out, new_q));
}

/// Two lost sources from P, Q and the other sources, in the order of `lost`. Panics if `lost` is one source twice, if
/// one does not exist or is not None, if there are more than [`MAX_SOURCES`], or lengths differ.
pub fn recover_two(
    sources: &[Option<&[u8]>],
    lost: (u8, u8),
    p: &[u8],
    q: &[u8],
    out: (&mut [u8], &mut [u8]),
) {
    perform(&CHOSEN, recover_two_job(sources, lost, p, q, out));
}

/// Whether all bytes are zero. Those of no bytes are.
pub fn is_zero(bytes: &[u8]) -> bool {
    portable::is_zero(bytes)
}

fn xor_job<'a>(sources: &'a [&'a [u8]], out: &'a mut [u8]) -> Job<'a> {
    assert!(!sources.is_empty(), "the XOR of nothing");
    for source in sources {
        assert_eq!(source.len(), out.len(), "a source of another length");
    }
    Job::Xor { sources, out }
}

fn gen_pq_job<'a>(sources: &'a [Option<&'a [u8]>], p: &'a mut [u8], q: &'a mut [u8]) -> Job<'a> {
    check_sources(sources, q.len());
    assert_eq!(p.len(), q.len(), "P of another length than Q");
    Job::GenPq { sources, p, q }
}

fn gen_q_job<'a>(sources: &'a [Option<&'a [u8]>], q: &'a mut [u8]) -> Job<'a> {
    check_sources(sources, q.len());
    Job::GenQ { sources, q }
}

fn update_job<'a>(changes: &'a [Change<'a>], p: Option<&'a mut [u8]>, q: Option<&'a mut [u8]>) -> Job<'a> {
    let parity_lens = [p.as_deref().map(<[u8]>::len), q.as_deref().map(<[u8]>::len)];
    for Change { old, new, exponent } in changes {
        assert!(usize::from(*exponent) < MAX_SOURCES, "exponent {exponent}");
        assert_eq!(old.len(), new.len(), "old and new data of different lengths");
        for parity_len in parity_lens.into_iter().flatten() {
            assert_eq!(parity_len, old.len(), "parity of another length than data");
        }
    }
    Job::Update { changes, p, q }
}

/// q_rest = g^lost * out, where q_rest is Q less the known sources.
fn recover_from_q_job<'a>(
    sources: &'a [Option<&'a [u8]>],
    lost: u8,
    q: &'a [u8],
    out: &'a mut [u8],
) -> Job<'a> {
    check_sources(sources, q.len());
    check_lost(sources, lost);
    assert_eq!(out.len(), q.len(), "lost data of another length than Q");
    Job::RecoverFromQ { sources, q, factor: gf::inverse(gf::power(lost)), out }
}

fn recover_with_p_job<'a>(
    sources: &'a [Option<&'a [u8]>],
    lost: u8,
    q: &'a [u8],
    out: &'a mut [u8],
    new_p: &'a mut [u8],
) -> Job<'a> {
    check_sources(sources, q.len());
    check_lost(sources, lost);
    assert_eq!(out.len(), q.len(), "lost data of another length than Q");
    assert_eq!(new_p.len(), q.len(), "P of another length than Q");
    Job::RecoverWithP { sources, q, factor: gf::inverse(gf::power(lost)), out, new_p }
}

fn recover_with_q_job<'a>(
    sources: &'a [Option<&'a [u8]>],
    lost: u8,
    p: &'a [u8],
    out: &'a mut [u8],
    new_q: &'a mut [u8],
) -> Job<'a> {
    check_sources(sources, p.len());
    check_lost(sources, lost);
    assert_eq!(out.len(), p.len(), "lost data of another length than P");
    assert_eq!(new_q.len(), p.len(), "Q of another length than P");
    Job::RecoverWithQ { sources, p, factor: gf::power(lost), out, new_q }
}

/// With a and b lost, and P and Q less the known sources: p_rest = a + b and q_rest = g^i * a + g^j * b. So
/// a = (g^j * p_rest + q_rest) / (g^i + g^j), and b = p_rest + a.
fn recover_two_job<'a>(
    sources: &'a [Option<&'a [u8]>],
    lost: (u8, u8),
    p: &'a [u8],
    q: &'a [u8],
    (first, second): (&'a mut [u8], &'a mut [u8]),
) -> Job<'a> {
    check_sources(sources, q.len());
    check_lost(sources, lost.0);
    check_lost(sources, lost.1);
    assert_ne!(lost.0, lost.1, "one source lost twice");
    assert_eq!(p.len(), q.len(), "P of another length than Q");
    for lost in [&first, &second] {
        assert_eq!(lost.len(), q.len(), "lost data of another length than Q");
    }
    let (g_i, g_j) = (gf::power(lost.0), gf::power(lost.1));
    let q_factor = gf::inverse(g_i ^ g_j);
    let p_factor = gf::multiply(g_j, q_factor);
    Job::RecoverTwo { sources, p, q, p_factor, q_factor, first, second }
}

fn check_sources(sources: &[Option<&[u8]>], len: usize) {
    assert!(sources.len() <= MAX_SOURCES, "{} sources, and g has only 255 powers", sources.len());
    for source in sources.iter().flatten() {
        assert_eq!(source.len(), len, "a source of another length");
    }
}

fn check_lost(sources: &[Option<&[u8]>], lost: u8) {
    let source = sources.get(usize::from(lost));
    assert!(source.is_some_and(Option::is_none), "source {lost} of {} is to be lost", sources.len());
}
