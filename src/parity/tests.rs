//! Every implementation that this machine has against the oracle.

use proptest::prelude::*;

use super::*;

fn available() -> impl Iterator<Item = &'static Implementation> {
    IMPLEMENTATIONS.iter().filter(|implementation| (implementation.available)())
}

/// Bytes that look random and differ from seed to seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Sources as a test owns them: with garbage before them, so that they are not aligned, and None for holes.
struct Sources {
    padding: usize,
    padded: Vec<Option<Vec<u8>>>,
}

/// Which there are, without their bytes.
impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let present: Vec<bool> = self.padded.iter().map(Option::is_some).collect();
        write!(f, "{} bytes of padding, present: {present:?}", self.padding)
    }
}

impl Sources {
    fn new(seed: u64, padding: usize, len: usize, present: &[bool]) -> Sources {
        let source = |(number, present): (u64, &bool)| present.then(|| noise(seed + number, padding + len));
        Sources { padding, padded: (0..).zip(present).map(source).collect() }
    }

    fn slices(&self) -> Vec<Option<&[u8]>> {
        self.padded.iter().map(|source| source.as_ref().map(|source| &source[self.padding..])).collect()
    }

    fn owned(&self) -> Vec<Option<Vec<u8>>> {
        self.slices().into_iter().map(|source| source.map(<[u8]>::to_vec)).collect()
    }

    fn p(&self, len: usize) -> Vec<u8> {
        oracle::p(&self.owned(), len)
    }

    fn q(&self, len: usize) -> Vec<u8> {
        oracle::q(&self.owned(), len)
    }

    /// The slices without some of them.
    fn without(&self, lost: &[u8]) -> Vec<Option<&[u8]>> {
        let mut slices = self.slices();
        for lost in lost {
            slices[usize::from(*lost)] = None;
        }
        slices
    }

    fn or_zeroes(&self, number: u8, len: usize) -> Vec<u8> {
        self.slices()[usize::from(number)].map_or(vec![0; len], <[u8]>::to_vec)
    }
}

fn arb_len() -> impl Strategy<Value = usize> {
    prop_oneof![
        prop::sample::select(vec![0, 1, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 4096, 4096 + 3]),
        0..1500usize
    ]
}

fn arb_sources() -> impl Strategy<Value = (usize, Sources)> {
    (any::<u32>(), 0..70usize, arb_len(), prop::collection::vec(prop::bool::weighted(0.8), 1..=20)).prop_map(
        |(seed, padding, len, present)| (len, Sources::new(u64::from(seed), padding, len, &present)),
    )
}

/// Output that is neither zero nor right, behind some bytes that must not change.
fn dirty(padding: usize, len: usize) -> Vec<u8> {
    vec![0xa5; padding + len + 3]
}

/// What was written; panics if something was written around it.
fn written(output: &[u8], padding: usize, len: usize) -> Vec<u8> {
    let (before, rest) = output.split_at(padding);
    let (written, behind) = rest.split_at(len);
    assert!(before.iter().chain(behind).all(|byte| *byte == 0xa5), "bytes around the output were written");
    written.to_vec()
}

/// Output that begins with a line of the cache.
struct Lines {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Lines {
    fn new(len: usize) -> Lines {
        let memory = vec![0xa5; len + STREAM_ALIGNMENT + 3];
        let start = memory.as_ptr().align_offset(STREAM_ALIGNMENT);
        Lines { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    fn written(&self) -> Vec<u8> {
        written(&self.memory, self.start, self.len)
    }
}

proptest! {
    #[test]
    fn xor_is_p((len, sources) in arb_sources(), padding in 0..70usize) {
        let expected = sources.p(len);
        let slices: Vec<&[u8]> = sources.slices().into_iter().flatten().collect();
        prop_assume!(!slices.is_empty());
        for implementation in available() {
            let mut out = dirty(padding, len);
            perform(implementation, xor_job(&slices, &mut out[padding..padding + len]));
            prop_assert_eq!(&written(&out, padding, len), &expected, "{}", implementation.name);
        }
    }

    #[test]
    fn p_and_q((len, sources) in arb_sources(), padding in 0..70usize) {
        let (p, q) = (sources.p(len), sources.q(len));
        let slices = sources.slices();
        for implementation in available() {
            let (mut p_out, mut q_out) = (dirty(padding, len), dirty(0, len));
            let job = gen_pq_job(&slices, &mut p_out[padding..padding + len], &mut q_out[..len]);
            perform(implementation, job);
            prop_assert_eq!(&written(&p_out, padding, len), &p, "{}", implementation.name);
            prop_assert_eq!(&written(&q_out, 0, len), &q, "{}", implementation.name);

            let mut q_out = dirty(padding, len);
            perform(implementation, gen_q_job(&slices, &mut q_out[padding..padding + len]));
            prop_assert_eq!(&written(&q_out, padding, len), &q, "{}", implementation.name);
        }
    }

    #[test]
    fn updated_parity_is_that_of_the_new_data(
        (len, mut sources) in arb_sources(),
        changed in prop::collection::btree_set(0..20u8, 1..=5),
        (with_p, with_q) in any::<(bool, bool)>(),
    ) {
        let count = sources.padded.len() as u8;
        let changed: Vec<u8> = changed.into_iter().filter(|number| *number < count).collect();
        let old: Vec<_> = changed.iter().map(|number| sources.or_zeroes(*number, len)).collect();
        let (p, q) = (sources.p(len), sources.q(len));
        for number in &changed {
            sources.padded[usize::from(*number)] = Some(noise(77 + u64::from(*number), sources.padding + len));
        }
        let new: Vec<_> = changed.iter().map(|number| sources.or_zeroes(*number, len)).collect();
        let changes = changed.iter().zip(old.iter().zip(&new));
        let changes: Vec<_> =
            changes.map(|(&exponent, (old, new))| Change { old, new, exponent }).collect();
        let (p_expected, q_expected) = (sources.p(len), sources.q(len));
        for implementation in available() {
            let (mut p, mut q) = (p.clone(), q.clone());
            let (p_given, q_given) = (with_p.then_some(&mut p[..]), with_q.then_some(&mut q[..]));
            perform(implementation, update_job(&changes, p_given, q_given));
            prop_assert!(!with_p || p == p_expected, "{}", implementation.name);
            prop_assert!(!with_q || q == q_expected, "{}", implementation.name);
        }
    }

    #[test]
    fn lost_with_parity((len, sources) in arb_sources(), lost: prop::sample::Index) {
        let lost = lost.index(sources.padded.len()) as u8;
        let (p, q) = (sources.p(len), sources.q(len));
        let known = sources.without(&[lost]);
        let expected = sources.or_zeroes(lost, len);
        for implementation in available() {
            let (mut out, mut parity) = (dirty(3, len), dirty(0, len));
            let job = recover_with_p_job(&known, lost, &q, &mut out[3..3 + len], &mut parity[..len]);
            perform(implementation, job);
            prop_assert_eq!(&written(&out, 3, len), &expected, "{}", implementation.name);
            prop_assert_eq!(&written(&parity, 0, len), &p, "{}", implementation.name);

            let (mut out, mut parity) = (dirty(0, len), dirty(3, len));
            let job = recover_with_q_job(&known, lost, &p, &mut out[..len], &mut parity[3..3 + len]);
            perform(implementation, job);
            prop_assert_eq!(&written(&out, 0, len), &expected, "{}", implementation.name);
            prop_assert_eq!(&written(&parity, 3, len), &q, "{}", implementation.name);
        }
    }

    /// Every job that writes past the caches, as small as the others; `streams` decides about real ones.
    #[test]
    fn past_the_caches((len, sources) in arb_sources(), lost in any::<(prop::sample::Index, prop::sample::Index)>()) {
        let count = sources.padded.len();
        let (first, second) = (lost.0.index(count) as u8, lost.1.index(count) as u8);
        let (p, q) = (sources.p(len), sources.q(len));
        let slices = sources.slices();
        let some: Vec<&[u8]> = slices.iter().copied().flatten().collect();
        let one = sources.without(&[first]);
        let two = sources.without(&[first, second]);
        let (first_data, second_data) = (sources.or_zeroes(first, len), sources.or_zeroes(second, len));
        for implementation in available() {
            let Some(stream) = implementation.stream else { continue };
            let check = |job: &mut dyn FnMut(&mut Lines, &mut Lines), expected: [Option<&Vec<u8>>; 2]| {
                let (mut a, mut b) = (Lines::new(len), Lines::new(len));
                job(&mut a, &mut b);
                for (lines, expected) in [&a, &b].into_iter().zip(expected) {
                    if let Some(expected) = expected {
                        assert!(lines.written() == *expected, "{}", implementation.name);
                    }
                }
            };
            let run = |job: Job<'_>| finish(implementation, stream, job);
            if !some.is_empty() {
                check(&mut |a, _| run(xor_job(&some, a.bytes())), [Some(&p), None]);
            }
            check(&mut |a, b| run(gen_pq_job(&slices, a.bytes(), b.bytes())), [Some(&p), Some(&q)]);
            check(&mut |a, _| run(gen_q_job(&slices, a.bytes())), [Some(&q), None]);
            check(&mut |a, _| run(recover_from_q_job(&one, first, &q, a.bytes())), [Some(&first_data), None]);
            check(
                &mut |a, b| run(recover_with_p_job(&one, first, &q, a.bytes(), b.bytes())),
                [Some(&first_data), Some(&p)],
            );
            check(
                &mut |a, b| run(recover_with_q_job(&one, first, &p, a.bytes(), b.bytes())),
                [Some(&first_data), Some(&q)],
            );
            if first != second {
                check(
                    &mut |a, b| run(recover_two_job(&two, (first, second), &p, &q, (a.bytes(), b.bytes()))),
                    [Some(&first_data), Some(&second_data)],
                );
            }
        }
    }

    #[test]
    fn lost_with_p((len, sources) in arb_sources(), lost: prop::sample::Index) {
        let lost = lost.index(sources.padded.len()) as u8;
        let q = sources.q(len);
        let known = sources.without(&[lost]);
        for implementation in available() {
            let mut out = dirty(0, len);
            perform(implementation, recover_from_q_job(&known, lost, &q, &mut out[..len]));
            prop_assert_eq!(&written(&out, 0, len), &sources.or_zeroes(lost, len), "{}", implementation.name);
        }
    }

    #[test]
    fn zero_or_not(len in arb_len(), padding in 0..70usize, at: prop::sample::Index, bit in 0..8u32) {
        let mut bytes = dirty(padding, len);
        bytes[padding..padding + len].fill(0);
        prop_assert!(is_zero(&bytes[padding..padding + len]));
        if len > 0 {
            bytes[padding + at.index(len)] = 1 << bit;
            prop_assert!(!is_zero(&bytes[padding..padding + len]));
        }
    }
}

/// Recovers two from the oracle's parity and compares, with every implementation.
fn check_two(sources: &Sources, lost: (u8, u8), p: &[u8], q: &[u8]) {
    let len = q.len();
    let known = sources.without(&[lost.0, lost.1]);
    for implementation in available() {
        let (mut first, mut second) = (dirty(5, len), dirty(0, len));
        let out = (&mut first[5..5 + len], &mut second[..len]);
        perform(implementation, recover_two_job(&known, lost, p, q, out));
        let found = (written(&first, 5, len), written(&second, 0, len));
        let expected = (sources.or_zeroes(lost.0, len), sources.or_zeroes(lost.1, len));
        assert!(found == expected, "{lost:?} of {} by {}", sources.padded.len(), implementation.name);
    }
}

#[test]
fn every_lost_pair() {
    for count in 2..=20u8 {
        for len in [512 + 3, 0, 1] {
            let mut present = vec![true; usize::from(count)];
            if count > 8 {
                present[3] = false; // a hole, which is also lost in turn
            }
            let sources = Sources::new(u64::from(count), 1, len, &present);
            let (p, q) = (sources.p(len), sources.q(len));
            for first in 0..count {
                for second in (0..count).filter(|second| *second != first) {
                    check_two(&sources, (first, second), &p, &q);
                }
            }
        }
    }
}

#[test]
fn the_highest_exponents() {
    let len = 300;
    let sources = Sources::new(5, 3, len, &[true; MAX_SOURCES]);
    let (p, q) = (sources.p(len), sources.q(len));
    for lost in [(0, 254), (254, 0), (253, 254), (127, 128)] {
        check_two(&sources, lost, &p, &q);
    }
    for implementation in available() {
        let known = sources.without(&[254]);
        let mut out = vec![0; len];
        perform(implementation, recover_from_q_job(&known, 254, &q, &mut out));
        assert_eq!(out, sources.or_zeroes(254, len));

        let mut q_out = q.clone();
        let zeroes = vec![0; len];
        perform(
            implementation,
            update_job(&[Change { old: &out, new: &zeroes, exponent: 254 }], None, Some(&mut q_out)),
        );
        assert_eq!(q_out, oracle::q(&sources.owned()[..254], len));
    }
}

/// Every product there is, as `update` computes it.
#[test]
fn every_factor_times_every_byte() {
    let bytes: Vec<u8> = (0..=255).collect();
    let zeroes = vec![0; 256];
    for implementation in available() {
        for exponent in 0..=254 {
            let mut q = zeroes.clone();
            let change = [Change { old: &zeroes, new: &bytes, exponent }];
            perform(implementation, update_job(&change, None, Some(&mut q)));
            let factor = oracle::power(usize::from(exponent));
            let expected: Vec<u8> = bytes.iter().map(|byte| oracle::multiply(factor, *byte)).collect();
            assert_eq!(q, expected, "g^{exponent} by {}", implementation.name);
        }
    }
}

/// Q of three bytes, worked out by hand: 1 + 2 * 0x80 + 4 * 0x41 = 1 + 0x1d + 0x19.
#[test]
fn q_by_hand() {
    let sources: [Option<&[u8]>; 3] = [Some(&[1]), Some(&[0x80]), Some(&[0x41])];
    let (mut p, mut q) = ([0], [0]);
    gen_pq(&sources, &mut p, &mut q);
    assert_eq!((p, q), ([1 ^ 0x80 ^ 0x41], [1 ^ 0x1d ^ 0x19]));
}

#[test]
fn through_the_front_door() {
    let (a, b, c) = (noise(1, 1000), noise(2, 1000), noise(3, 1000));
    let sources = [Some(&a[..]), Some(&b[..]), Some(&c[..])];
    let (mut p, mut q, mut other) = (vec![0; 1000], vec![0; 1000], vec![0; 1000]);
    gen_pq(&sources, &mut p, &mut q);
    xor(&[&a, &b, &c], &mut other);
    assert_eq!(p, other);
    gen_q(&sources, &mut other);
    assert_eq!(q, other);

    let (mut first, mut second) = (vec![0; 1000], vec![0; 1000]);
    recover_two(&[None, Some(&b), None], (2, 0), &p, &q, (&mut first, &mut second));
    assert!(first == c && second == a);
    recover_from_q(&[Some(&a), None, Some(&c)], 1, &q, &mut first);
    assert_eq!(first, b);

    let sources = [Some(&a[..]), None, Some(&c[..])];
    recover_with_p(&sources, 1, &q, &mut first, &mut second);
    assert!(first == b && second == p);
    recover_with_q(&sources, 1, &p, &mut first, &mut second);
    assert!(first == b && second == q);

    let new = noise(4, 1000);
    update(&[Change { old: &b, new: &new, exponent: 1 }], Some(&mut p), Some(&mut q));
    gen_pq(&[Some(&a), Some(&new), Some(&c)], &mut first, &mut second);
    assert!(p == first && q == second);

    assert_eq!(implementation(), available().next().unwrap().name);
    assert!(is_zero(&[]));
}

#[test]
fn large_and_aligned_jobs_stream() {
    let large = STREAM_BYTES_MIN / 4;
    let (a, b) = (noise(1, large), noise(2, large));
    let sources = [Some(&a[..]), Some(&b[..])];
    let (mut p, mut q) = (Lines::new(large), Lines::new(large));
    assert!(streams(&gen_pq_job(&sources, p.bytes(), q.bytes())));
    assert!(!streams(&gen_q_job(&sources, q.bytes())), "smaller by a slice");
    let changes = [Change { old: &a, new: &b, exponent: 3 }; 2];
    assert!(!streams(&update_job(&changes, Some(p.bytes()), Some(q.bytes()))), "reads what it writes");
    let q_start = q.start + 1;
    assert!(!streams(&gen_pq_job(&sources, p.bytes(), &mut q.memory[q_start..][..large])), "not aligned");

    // As it is done, and as it is done without.
    let (mut plain_p, mut plain_q) = (vec![0; large], vec![0; large]);
    gen_pq(&sources, p.bytes(), q.bytes());
    finish(&CHOSEN, CHOSEN.run, gen_pq_job(&sources, &mut plain_p, &mut plain_q));
    assert!(p.written() == plain_p && *q.bytes() == plain_q);
}

#[test]
fn unaligned_stores_past_the_caches_are_refused() {
    for implementation in available() {
        let Some(stream) = implementation.stream else { continue };
        let mut out = Lines::new(600);
        let start = out.start + 1;
        let source = noise(1, 512);
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            finish(implementation, stream, xor_job(&[&source], &mut out.memory[start..start + 512]));
        }));
        assert!(attempt.is_err(), "{}", implementation.name);
    }
}

/// Seen with --nocapture: what this machine has tested.
#[test]
fn there_is_always_the_portable_one() {
    let names: Vec<&str> = available().map(|implementation| implementation.name).collect();
    println!("available here: {names:?}");
    assert_eq!(names.last(), Some(&"portable"));
}

#[test]
#[should_panic(expected = "another length")]
fn lengths_that_differ() {
    xor(&[&[1, 2], &[3]], &mut [0, 0]);
}

#[test]
#[should_panic(expected = "the XOR of nothing")]
fn no_sources() {
    xor(&[], &mut [0]);
}

#[test]
#[should_panic(expected = "is to be lost")]
fn lost_but_there() {
    recover_from_q(&[Some(&[1])], 0, &[1], &mut [0]);
}

#[test]
#[should_panic(expected = "is to be lost")]
fn lost_but_never_there() {
    recover_from_q(&[None], 1, &[1], &mut [0]);
}

#[test]
#[should_panic(expected = "lost twice")]
fn lost_twice() {
    recover_two(&[None], (0, 0), &[1], &[1], (&mut [0], &mut [0]));
}

#[test]
#[should_panic(expected = "exponent 255")]
fn exponent_without_a_power() {
    update(&[Change { old: &[1], new: &[2], exponent: 255 }], None, Some(&mut [0]));
}

#[test]
#[should_panic(expected = "256 sources")]
fn more_sources_than_powers() {
    gen_q(&[None; 256], &mut [0]);
}
