//! Streams in memory that tear what is sent, a loop that polls, and a small PKI.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use crate::io::{Buf, IoError, IoErrorKind, Pool, Slice, Stream};

/// Polls until it is ready; everything in it waits for nothing but itself.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
    panic!("nothing can happen any more");
}

#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    closed: Cell<bool>,
}

/// One end of a connection: gives up to `piece` bytes at once, takes no more than `capacity` before the other has read.
#[derive(Clone)]
pub struct Wire {
    incoming: Rc<Pipe>,
    outgoing: Rc<Pipe>,
    piece: usize,
    capacity: usize,
}

pub fn wires(piece: usize, capacity: usize) -> (Wire, Wire) {
    let (a, b) = (Rc::<Pipe>::default(), Rc::<Pipe>::default());
    let left = Wire { incoming: a.clone(), outgoing: b.clone(), piece, capacity };
    (left, Wire { incoming: b, outgoing: a, piece, capacity })
}

impl Wire {
    /// Sends these very bytes.
    pub fn put(&self, bytes: &[u8]) {
        self.outgoing.bytes.borrow_mut().extend(bytes);
    }

    /// Takes all that has come.
    pub fn take(&self) -> Vec<u8> {
        self.incoming.bytes.borrow_mut().drain(..).collect()
    }

    /// Changes the last byte on its way to the other end.
    pub fn corrupt(&self) {
        *self.outgoing.bytes.borrow_mut().back_mut().expect("something is under way") ^= 1;
    }
}

impl Stream for Wire {
    async fn recv(&self, mut buf: Buf) -> Result<(usize, Buf), IoError> {
        let count = poll_fn(|_| {
            let mut bytes = self.incoming.bytes.borrow_mut();
            if bytes.is_empty() && !self.incoming.closed.get() {
                return Poll::Pending;
            }
            let count = buf.len().min(self.piece).min(bytes.len());
            buf.iter_mut().zip(bytes.drain(..count)).for_each(|(to, byte)| *to = byte);
            Poll::Ready(count)
        });
        Ok((count.await, buf))
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        for slice in data {
            for &byte in &slice[..] {
                poll_fn(|_| {
                    let mut bytes = self.outgoing.bytes.borrow_mut();
                    if self.outgoing.closed.get() {
                        return Poll::Ready(Err(IoError::new(IoErrorKind::Closed, "the pipe is closed")));
                    }
                    if bytes.len() >= self.capacity {
                        return Poll::Pending;
                    }
                    bytes.push_back(byte);
                    Poll::Ready(Ok(()))
                })
                .await?;
            }
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.incoming.closed.set(true);
        self.outgoing.closed.set(true);
    }
}

/// A slice with these bytes in it.
pub fn slice(pool: &Pool, bytes: &[u8]) -> Slice {
    let mut buf = pool.try_alloc(bytes.len()).expect("a test's pool is large enough");
    buf.copy_from_slice(bytes);
    buf.freeze()
}

/// A certificate and its key.
pub struct Certified {
    pub certificate: X509,
    pub key: PKey<Private>,
}

impl Certified {
    /// A CA of that name.
    pub fn ca(name: &str) -> Certified {
        make(name, &[], None)
    }

    /// A certificate of that name, signed by this CA.
    pub fn sign(&self, name: &str, dns_names: &[&str]) -> Certified {
        make(name, dns_names, Some(self))
    }

    /// Writes certificate and key into a folder; says where.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let paths = (folder.join(format!("{name}-cert.pem")), folder.join(format!("{name}-key.pem")));
        std::fs::write(&paths.0, self.certificate.to_pem().unwrap()).unwrap();
        std::fs::write(&paths.1, self.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        paths
    }
}

fn make(name: &str, dns_names: &[&str], issuer: Option<&Certified>) -> Certified {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let subject = subject.build();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let serial = BigNum::from_u32(1 + dns_names.len() as u32).unwrap().to_asn1_integer().unwrap();
    builder.set_serial_number(&serial).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(issuer.map_or(&subject, |ca| ca.certificate.subject_name())).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.set_pubkey(&key).unwrap();
    if issuer.is_none() {
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    }
    if !dns_names.is_empty() {
        let mut names = SubjectAlternativeName::new();
        dns_names.iter().for_each(|name| {
            names.dns(name);
        });
        let names = names.build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(names).unwrap();
    }
    builder.sign(issuer.map_or(&key, |ca| &ca.key), MessageDigest::sha256()).unwrap();
    Certified { certificate: builder.build(), key }
}
