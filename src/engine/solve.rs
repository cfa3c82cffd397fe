//! The arithmetic of a band: lost data, new parity, changed parity. `parity` has the kernels; here is who is who.

use super::mutant::{self, Mutant};
use super::plan::Place;
use crate::io::{Buf, Slice};
use crate::layout::Stripe;
use crate::parity::{self, Change};

/// The rows of one stripe in memory: what has been read or worked out, by place.
pub(super) struct Band {
    /// Bytes of every cell.
    pub len: usize,
    pub data: Vec<Option<Buf>>,
    pub p: Option<Buf>,
    pub q: Option<Buf>,
    /// Buffers not used yet.
    pub spare: Vec<Buf>,
}

impl Band {
    /// A buffer for a cell.
    pub fn take(&mut self) -> Buf {
        let buf = self.spare.pop().expect("a band is given all its buffers at once");
        assert!(buf.len() == self.len);
        buf
    }

    pub fn put(&mut self, place: Place, buf: Buf) {
        match place {
            Place::Data(i) => self.data[i] = Some(buf),
            Place::P => self.p = Some(buf),
            Place::Q => self.q = Some(buf),
        }
    }
}

/// The data cells in the order of their coefficients in Q: index i has g^i; places that nobody has are holes.
fn by_exponent<'a>(stripe: &Stripe, cell: impl Fn(usize) -> Option<&'a [u8]>) -> Vec<Option<&'a [u8]>> {
    let top = stripe.exponents.iter().copied().max().map_or(0, |top| usize::from(top) + 1);
    let mut out = vec![None; top];
    for (i, &exponent) in stripe.exponents.iter().enumerate() {
        out[usize::from(exponent)] = cell(i);
    }
    out
}

/// Works out the data cells `lost` from the others and as much parity as the band has. All other data cells are there;
/// parity cells are used up.
pub(super) fn lost_data(stripe: &Stripe, lost: &[usize], band: &mut Band) {
    match *lost {
        [] => {}
        [a] => {
            let mut out = band.take();
            if let Some(p) = &band.p {
                let known = band.data.iter().flatten().map(|buf| &buf[..]);
                let sources: Vec<&[u8]> = known.chain([&p[..]]).collect();
                parity::xor(&sources, &mut out);
            } else {
                let q = band.q.as_ref().expect("a plan reads P or Q for what is lost");
                let sources = by_exponent(stripe, |i| band.data[i].as_deref());
                parity::recover_from_q(&sources, stripe.exponents[a], q, &mut out);
            }
            band.data[a] = Some(out);
        }
        [a, b] => {
            let (mut first, mut second) = (band.take(), band.take());
            let (p, q) =
                band.p.as_ref().zip(band.q.as_ref()).expect("a plan reads P and Q for two that are lost");
            let sources = by_exponent(stripe, |i| band.data[i].as_deref());
            let exponents = (stripe.exponents[a], stripe.exponents[b]);
            parity::recover_two(&sources, exponents, p, q, (&mut first, &mut second));
            (band.data[a], band.data[b]) = (Some(first), Some(second));
        }
        _ => unreachable!("no level survives the loss of three"),
    }
    if !lost.is_empty() {
        // What was read of them has served; the new parity goes there.
        band.spare.extend(band.p.take());
        band.spare.extend(band.q.take());
    }
}

/// Works out the data cells `lost` as `lost_data` does, and parity that is there no more. One data cell and one parity
/// cell of a RAID6 take one pass together.
pub(super) fn lost_data_and_parity(stripe: &Stripe, lost: &[usize], band: &mut Band) {
    match (lost, band.p.is_some(), band.q.is_some()) {
        (&[a], false, true) => {
            let (mut out, mut new_p) = (band.take(), band.take());
            let q = band.q.as_ref().expect("just seen");
            let sources = by_exponent(stripe, |i| band.data[i].as_deref());
            parity::recover_with_p(&sources, stripe.exponents[a], q, &mut out, &mut new_p);
            (band.data[a], band.p) = (Some(out), Some(new_p));
        }
        (&[a], true, false) if stripe.q.is_some() => {
            let (mut out, mut new_q) = (band.take(), band.take());
            let p = band.p.as_ref().expect("just seen");
            let sources = by_exponent(stripe, |i| band.data[i].as_deref());
            parity::recover_with_q(&sources, stripe.exponents[a], p, &mut out, &mut new_q);
            (band.data[a], band.q) = (Some(out), Some(new_q));
        }
        _ => {
            lost_data(stripe, lost, band);
            parity(stripe, &[], band);
        }
    }
}

/// Makes P (and Q) anew from all the data: new where it is new, else what the band holds.
pub(super) fn parity(stripe: &Stripe, new: &[Option<Slice>], band: &mut Band) {
    let mut p = band.take();
    let mut q = stripe.q.map(|_| band.take());
    let forgotten = mutant::is(Mutant::ForgetOldData).then(|| Slice::zeroes(band.len));
    let cell = |i: usize| -> &[u8] {
        let new = new.get(i).and_then(|new| new.as_deref()).or(forgotten.as_deref());
        new.or(band.data[i].as_deref()).expect("all data is new, read or worked out")
    };
    match &mut q {
        Some(q) => parity::gen_pq(&by_exponent(stripe, |i| Some(cell(i))), &mut p, q),
        None => parity::xor(&(0..band.data.len()).map(cell).collect::<Vec<_>>(), &mut p),
    }
    (band.p, band.q) = (Some(p), q);
}

/// The part of new parity that data which stays has in it: what a partial parity log holds.
pub(super) fn partial_parity(new: &[Option<Slice>], p: &[u8], out: &mut [u8]) {
    let sources: Vec<&[u8]> = new.iter().flatten().map(|new| &new[..]).chain([p]).collect();
    parity::xor(&sources, out);
}

/// Changes the parity that the band holds by the difference between the new data and the old that the band holds.
pub(super) fn modify(stripe: &Stripe, new: &[Option<Slice>], band: &mut Band) {
    let wrong = u8::from(mutant::is(Mutant::WrongCoefficient));
    let changed = new.iter().enumerate().filter_map(|(i, new)| Some((i, new.as_deref()?)));
    let changes = changed.map(|(i, new)| {
        let old = band.data[i].as_deref().expect("a plan to modify reads what is overwritten");
        Change { old, new, exponent: stripe.exponents.get(i).copied().unwrap_or(0) ^ wrong }
    });
    let changes: Vec<_> = changes.collect();
    parity::update(&changes, band.p.as_deref_mut(), band.q.as_deref_mut());
}
