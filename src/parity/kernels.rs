//! The loops over blocks of bytes, written once for all kinds of vectors.
//!
//! Every kernel makes one pass: each source byte is read once, each result written once, and what is in between stays in
//! registers. Q is computed as Horner does, from the last source to the first, doubling what there is and adding the next
//! one, so it costs one multiplication with 2 a source, whatever the source's coefficient. Recovery subtracts what is
//! known from P and Q on the same way and needs two more multiplications at the end.
//!
//! `kernels!` is a macro because functions that use instructions which not every CPU has cannot be methods of a trait.
//! It expects in scope, for one kind of vectors:
//! - `Block`, and `BLOCK`, how many bytes it is: a multiple of the portable one's;
//! - `block_count(len)`: how many blocks there are in so many bytes;
//! - `load(bytes, index)`, `store(bytes, index, block)`;
//! - `zero()`, `xor(a, b)`, `double(a)`, `factor(byte)`, `scale(factor, a)`: arithmetic on each byte of a block.
//!
//! The slices of a job are equally long, and sources that are to be recovered are None; `mod.rs` asserts both.

/// One pass over memory. All slices are equally long; source i has the coefficient g^i, and None is all zero.
pub(super) enum Job<'a> {
    /// out = the XOR of the sources.
    Xor { sources: &'a [&'a [u8]], out: &'a mut [u8] },
    /// P and Q of the sources.
    GenPq { sources: &'a [Option<&'a [u8]>], p: &'a mut [u8], q: &'a mut [u8] },
    /// Q of the sources.
    GenQ { sources: &'a [Option<&'a [u8]>], q: &'a mut [u8] },
    /// p += old + new, q += factor * (old + new).
    Update { old: &'a [u8], new: &'a [u8], factor: u8, p: Option<&'a mut [u8]>, q: Option<&'a mut [u8]> },
    /// out = factor * (q + Q of the sources).
    RecoverFromQ { sources: &'a [Option<&'a [u8]>], q: &'a [u8], factor: u8, out: &'a mut [u8] },
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
            Job::GenPq { q, .. } | Job::GenQ { q, .. } => q.len(),
            Job::Update { old, .. } => old.len(),
            Job::RecoverTwo { first, .. } => first.len(),
        }
    }
}

/// Defines `run`, which does a job from byte `from` on, a multiple of `BLOCK`, as far as there are blocks, and returns
/// where it stopped. The attributes are given to every function.
macro_rules! kernels {
    ($(#[$attribute:meta])*) => {
        $(#[$attribute])*
        pub(in super::super) fn run(job: &mut Job<'_>, from: usize) -> usize {
            let blocks = from / BLOCK..block_count(job.len());
            let end = blocks.end * BLOCK;
            match job {
                Job::Xor { sources, out } => {
                    for index in blocks {
                        let mut sum = zero();
                        for source in sources.iter() {
                            sum = xor(sum, load(source, index));
                        }
                        store(out, index, sum);
                    }
                }
                Job::GenPq { sources, p, q } => {
                    for index in blocks {
                        let (sum, horner) = p_and_q(sources, index);
                        store(p, index, sum);
                        store(q, index, horner);
                    }
                }
                Job::GenQ { sources, q } => {
                    for index in blocks {
                        store(q, index, only_q(sources, index));
                    }
                }
                Job::Update { old, new, factor: coefficient, p, q } => {
                    let coefficient = factor(*coefficient);
                    for index in blocks {
                        let difference = xor(load(old, index), load(new, index));
                        if let Some(p) = p {
                            let sum = xor(load(p, index), difference);
                            store(p, index, sum);
                        }
                        if let Some(q) = q {
                            let sum = xor(load(q, index), scale(coefficient, difference));
                            store(q, index, sum);
                        }
                    }
                }
                Job::RecoverFromQ { sources, q, factor: coefficient, out } => {
                    let coefficient = factor(*coefficient);
                    for index in blocks {
                        let rest = xor(load(q, index), only_q(sources, index));
                        store(out, index, scale(coefficient, rest));
                    }
                }
                Job::RecoverTwo { sources, p, q, p_factor, q_factor, first, second } => {
                    let (p_factor, q_factor) = (factor(*p_factor), factor(*q_factor));
                    for index in blocks {
                        let (sum, horner) = p_and_q(sources, index);
                        let (p_rest, q_rest) = (xor(sum, load(p, index)), xor(horner, load(q, index)));
                        let recovered = xor(scale(p_factor, p_rest), scale(q_factor, q_rest));
                        store(first, index, recovered);
                        store(second, index, xor(recovered, p_rest));
                    }
                }
            }
            end
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

pub(super) use kernels;
