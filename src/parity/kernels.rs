//! The loops over blocks of bytes, written once for all kinds of vectors.
//!
//! Every kernel makes one pass: each source byte is read once, each result written once, and what is in between stays in
//! registers. Q is computed as Horner does, from the last source to the first, doubling what there is and adding the next
//! one, so it costs one multiplication with 2 a source, whatever the source's coefficient. Recovery subtracts what is
//! known from P and Q on the same way and needs two more multiplications at the end.
//!
//! `kernels!` is a macro because functions that use instructions which not every CPU has cannot be methods of a trait.
//! `blocks_of!` makes a block of four vectors out of what is defined for one. `kernels!` expects in scope, for one kind of vectors:
//! - `Block`, and `BLOCK`, how many bytes it is: a multiple of the portable one's;
//! - `block_count(len)`: how many blocks there are in so many bytes;
//! - `load(bytes, index)`, `store(bytes, index, block)`; and `stream(bytes, index, block)`, a store past the caches where
//!   there is one, with `fence()`, which ends those (`mod.rs` says when they pay);
//! - `zero()`, `xor(a, b)`, `double(a)`, `factor(byte)`, `scale(factor, a)`: arithmetic on each byte of a block.
//!
//! The slices of a job are equally long, and sources that are to be recovered are None; `mod.rs` asserts both.

/// A source that changes: what it was, what it becomes, and the exponent of its coefficient in Q.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// Its bytes before.
    pub old: &'a [u8],
    /// Its bytes from now on.
    pub new: &'a [u8],
    /// Its coefficient in Q is g to this.
    pub exponent: u8,
}

/// One pass over memory. All slices are equally long; source i has the coefficient g^i, and None is all zero.
pub(super) enum Job<'a> {
    /// out = the XOR of the sources.
    Xor { sources: &'a [&'a [u8]], out: &'a mut [u8] },
    /// P and Q of the sources.
    GenPq { sources: &'a [Option<&'a [u8]>], p: &'a mut [u8], q: &'a mut [u8] },
    /// Q of the sources.
    GenQ { sources: &'a [Option<&'a [u8]>], q: &'a mut [u8] },
    /// For each change: p += old + new, q += g^exponent * (old + new).
    Update { changes: &'a [Change<'a>], p: Option<&'a mut [u8]>, q: Option<&'a mut [u8]> },
    /// out = factor * (q + Q of the sources).
    RecoverFromQ { sources: &'a [Option<&'a [u8]>], q: &'a [u8], factor: u8, out: &'a mut [u8] },
    /// out as above, and new_p = out + P of the sources.
    RecoverWithP {
        sources: &'a [Option<&'a [u8]>],
        q: &'a [u8],
        factor: u8,
        out: &'a mut [u8],
        new_p: &'a mut [u8],
    },
    /// out = p + P of the sources, new_q = factor * out + Q of the sources.
    RecoverWithQ {
        sources: &'a [Option<&'a [u8]>],
        p: &'a [u8],
        factor: u8,
        out: &'a mut [u8],
        new_q: &'a mut [u8],
    },
    /// With dp = p + P of the sources and dq = q + Q of the sources:
    /// first = p_factor * dp + q_factor * dq, second = first + dp.
    RecoverTwo {
        sources: &'a [Option<&'a [u8]>],
        p: &'a [u8],
        q: &'a [u8],
        p_factor: u8,
        q_factor: u8,
        first: &'a mut [u8],
        second: &'a mut [u8],
    },
}

impl Job<'_> {
    /// How long its slices are.
    pub(super) fn len(&self) -> usize {
        match self {
            Job::Xor { out, .. } | Job::RecoverFromQ { out, .. } => out.len(),
            Job::RecoverWithP { out, .. } | Job::RecoverWithQ { out, .. } => out.len(),
            Job::GenPq { q, .. } | Job::GenQ { q, .. } => q.len(),
            Job::Update { changes, .. } => changes.first().map_or(0, |change| change.old.len()),
            Job::RecoverTwo { first, .. } => first.len(),
        }
    }

    /// How many slices it reads and writes, and those that it writes without having read them.
    pub(super) fn traffic(&self) -> (usize, [Option<&[u8]>; 2]) {
        let there = |sources: &[Option<&[u8]>]| sources.iter().flatten().count();
        match self {
            Job::Xor { sources, out } => (sources.len() + 1, [Some(&**out), None]),
            Job::GenPq { sources, p, q } => (there(sources) + 2, [Some(&**p), Some(&**q)]),
            Job::GenQ { sources, q } => (there(sources) + 1, [Some(&**q), None]),
            // P and Q are in the cache because they have just been read.
            Job::Update { changes, .. } => (2 * changes.len() + 2, [None, None]),
            Job::RecoverFromQ { sources, out, .. } => (there(sources) + 2, [Some(&**out), None]),
            Job::RecoverWithP { sources, out, new_p: parity, .. }
            | Job::RecoverWithQ { sources, out, new_q: parity, .. } => {
                (there(sources) + 3, [Some(&**out), Some(&**parity)])
            }
            Job::RecoverTwo { sources, first, second, .. } => {
                (there(sources) + 4, [Some(&**first), Some(&**second)])
            }
        }
    }
}

/// Defines `run`, which does a job from byte `from` on, a multiple of `BLOCK`, as far as there are blocks, and returns
/// where it stopped. `STREAM` has it write past the caches. The attributes are given to every function.
macro_rules! kernels {
    ($(#[$attribute:meta])*) => {
        $(#[$attribute])*
        pub(in super::super) fn run<const STREAM: bool>(job: &mut Job<'_>, from: usize) -> usize {
            let blocks = from / BLOCK..block_count(job.len());
            let end = blocks.end * BLOCK;
            match job {
                Job::Xor { sources, out } => {
                    for index in blocks {
                        let mut sum = zero();
                        for source in sources.iter() {
                            sum = xor(sum, load(source, index));
                        }
                        write::<STREAM>(out, index, sum);
                    }
                }
                Job::GenPq { sources, p, q } => {
                    for index in blocks {
                        let (sum, horner) = p_and_q(sources, index);
                        write::<STREAM>(p, index, sum);
                        write::<STREAM>(q, index, horner);
                    }
                }
                Job::GenQ { sources, q } => {
                    for index in blocks {
                        write::<STREAM>(q, index, only_q(sources, index));
                    }
                }
                Job::Update { changes, p: Some(p), q: Some(q) } => {
                    for index in blocks {
                        let (mut p_sum, mut q_sum) = (load(p, index), load(q, index));
                        for Change { old, new, exponent } in changes.iter() {
                            let difference = xor(load(old, index), load(new, index));
                            p_sum = xor(p_sum, difference);
                            q_sum = xor(q_sum, scale(factor(gf::power(*exponent)), difference));
                        }
                        store(p, index, p_sum);
                        store(q, index, q_sum);
                    }
                }
                Job::Update { changes, p, q } => {
                    for index in blocks {
                        if let Some(p) = p {
                            let mut sum = load(p, index);
                            for Change { old, new, .. } in changes.iter() {
                                sum = xor(sum, xor(load(old, index), load(new, index)));
                            }
                            store(p, index, sum);
                        }
                        if let Some(q) = q {
                            let mut sum = load(q, index);
                            for Change { old, new, exponent } in changes.iter() {
                                let difference = xor(load(old, index), load(new, index));
                                sum = xor(sum, scale(factor(gf::power(*exponent)), difference));
                            }
                            store(q, index, sum);
                        }
                    }
                }
                Job::RecoverFromQ { sources, q, factor: coefficient, out } => {
                    let coefficient = factor(*coefficient);
                    for index in blocks {
                        let rest = xor(load(q, index), only_q(sources, index));
                        write::<STREAM>(out, index, scale(coefficient, rest));
                    }
                }
                Job::RecoverWithP { sources, q, factor: coefficient, out, new_p } => {
                    let coefficient = factor(*coefficient);
                    for index in blocks {
                        let (sum, horner) = p_and_q(sources, index);
                        let recovered = scale(coefficient, xor(load(q, index), horner));
                        write::<STREAM>(out, index, recovered);
                        write::<STREAM>(new_p, index, xor(sum, recovered));
                    }
                }
                Job::RecoverWithQ { sources, p, factor: coefficient, out, new_q } => {
                    let coefficient = factor(*coefficient);
                    for index in blocks {
                        let (sum, horner) = p_and_q(sources, index);
                        let recovered = xor(load(p, index), sum);
                        write::<STREAM>(out, index, recovered);
                        write::<STREAM>(new_q, index, xor(horner, scale(coefficient, recovered)));
                    }
                }
                Job::RecoverTwo { sources, p, q, p_factor, q_factor, first, second } => {
                    let (p_factor, q_factor) = (factor(*p_factor), factor(*q_factor));
                    for index in blocks {
                        let (sum, horner) = p_and_q(sources, index);
                        let (p_rest, q_rest) = (xor(sum, load(p, index)), xor(horner, load(q, index)));
                        let recovered = xor(scale(p_factor, p_rest), scale(q_factor, q_rest));
                        write::<STREAM>(first, index, recovered);
                        write::<STREAM>(second, index, xor(recovered, p_rest));
                    }
                }
            }
            if STREAM {
                fence();
            }
            end
        }

        $(#[$attribute])*
        #[inline]
        fn write<const STREAM: bool>(bytes: &mut [u8], index: usize, block: Block) {
            if STREAM {
                stream(bytes, index, block);
            } else {
                store(bytes, index, block);
            }
        }

        $(#[$attribute])*
        #[inline]
        fn p_and_q(sources: &[Option<&[u8]>], index: usize) -> (Block, Block) {
            let (mut sum, mut horner) = (zero(), zero());
            for source in sources.iter().rev() {
                horner = double(horner);
                if let Some(source) = source {
                    let block = load(source, index);
                    sum = xor(sum, block);
                    horner = xor(horner, block);
                }
            }
            (sum, horner)
        }

        $(#[$attribute])*
        #[inline]
        fn only_q(sources: &[Option<&[u8]>], index: usize) -> Block {
            let mut horner = zero();
            for source in sources.iter().rev() {
                horner = double(horner);
                if let Some(source) = source {
                    horner = xor(horner, load(source, index));
                }
            }
            horner
        }
    };
}

/// The part that is the same for all kinds of vectors: blocks of four of them, and the kernels.
macro_rules! blocks_of {
    ($vector:ty, $vector_bytes:literal, $features:literal) => {
        const BLOCK: usize = 4 * $vector_bytes;
        const _: () = assert!(BLOCK.is_multiple_of(super::super::portable::BLOCK));

        type Block = [$vector; 4];

        /// Whole blocks only; the rest is left to the portable kernels.
        fn block_count(len: usize) -> usize {
            len / BLOCK
        }

        #[inline]
        fn load(bytes: &[u8], index: usize) -> Block {
            zerocopy::transmute!(bytes.as_chunks::<BLOCK>().0[index])
        }

        #[inline]
        fn store(bytes: &mut [u8], index: usize, block: Block) {
            bytes.as_chunks_mut::<BLOCK>().0[index] = zerocopy::transmute!(block);
        }

        #[inline]
        fn zero() -> Block {
            zerocopy::transmute!([0u8; BLOCK])
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn xor(a: Block, b: Block) -> Block {
            [xor_one(a[0], b[0]), xor_one(a[1], b[1]), xor_one(a[2], b[2]), xor_one(a[3], b[3])]
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn double(a: Block) -> Block {
            [double_one(a[0]), double_one(a[1]), double_one(a[2]), double_one(a[3])]
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn scale(factor: Factor, a: Block) -> Block {
            let [a0, a1, a2, a3] = a;
            [scale_one(factor, a0), scale_one(factor, a1), scale_one(factor, a2), scale_one(factor, a3)]
        }

        kernels!(#[target_feature(enable = $features)]);
    };
}

pub(super) use {blocks_of, kernels};
