//! One connection's TLS as a state machine: ciphertext in one buffer, ciphertext out of another, plaintext in slices. No
//! I/O and no waiting: it says what it needs.
//!
//! Invariants:
//! - The two buffers of ciphertext are the connection's only ones, and their sizes are ours.
//! - A record is only begun when there is room for all of it, so a write never has to be repeated with the same bytes; and
//!   some room is left behind it, so that an alert has a place when one has to be sent.
//! - Plaintext comes out of here only after the handshake, and only what was authenticated.

use std::io::{ErrorKind, Read, Write};

use openssl::nid::Nid;
use openssl::ssl::{Error, ErrorCode, Ssl, SslRef, SslStream, SslVersion};
use openssl::x509::X509;

use super::identity::Identity;
use super::server::claimed_name;
use crate::io::{Buf, IoError, IoErrorKind, Slice};

/// Bytes of ciphertext received at once, and sent at once: two records, nearly. Every connection under TLS holds this for
/// as long as it lasts.
pub(super) const CIPHERTEXT_BYTES: usize = 32 << 10;

/// What the pool of ciphertext must hold for each connection so that none waits for another's: one buffer each way, of
/// which a small one may spoil the place of a large one.
pub const TLS_BYTES_PER_CONNECTION: usize = 2 * CIPHERTEXT_BYTES;

/// Plaintext in one record: the protocol's limit.
const RECORD_BYTES_MAX: usize = 16 << 10;
/// No record is made smaller than this only because the buffer is nearly full.
const RECORD_BYTES_MIN: usize = 1 << 10;
/// What a record is longer than its plaintext, with something to spare: header, nonce, type and tag take some thirty
/// bytes, a change of keys that goes before it as many.
const RECORD_OVERHEAD_BYTES: usize = 256;

/// How far the engine got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// So many bytes of plaintext were read or written; none for a handshake.
    Done(usize),
    /// The peer has said goodbye.
    End,
    /// More ciphertext has to come in first.
    NeedsInput,
    /// Ciphertext has to go out first, or there is no buffer for it.
    NeedsRoom,
}

/// OpenSSL between two buffers.
pub(super) struct Engine(SslStream<Buffers>);

impl Engine {
    /// Before the handshake. Ciphertext is received into `incoming`, and made in `outgoing`.
    pub(super) fn new(ssl: Ssl, incoming: Buf, outgoing: Buf) -> Result<Engine, IoError> {
        let buffers =
            Buffers { incoming: Some(incoming), start: 0, end: 0, outgoing: Some(outgoing), filled: 0 };
        SslStream::new(ssl, buffers).map(Engine).map_err(|error| {
            tracing::warn!(%error, "OpenSSL has no room for another connection");
            FAILED
        })
    }

    /// The handshake, as far as it goes.
    pub(super) fn shake(&mut self) -> Result<Progress, IoError> {
        let outcome = self.0.do_handshake().map(|()| 0);
        self.progress(outcome, HANDSHAKE_FAILED)
    }

    /// Plaintext into the start of `buf`.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<Progress, IoError> {
        let outcome = self.0.ssl_read(buf);
        self.progress(outcome, FAILED)
    }

    /// Plaintext from the start of `data`, a record's worth at most; `data` must not be empty.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<Progress, IoError> {
        let room = self.0.get_ref().room().saturating_sub(RECORD_OVERHEAD_BYTES);
        if room < data.len().min(RECORD_BYTES_MIN) {
            return Ok(Progress::NeedsRoom);
        }
        let outcome = self.0.ssl_write(&data[..data.len().min(room).min(RECORD_BYTES_MAX)]);
        self.progress(outcome, FAILED)
    }

    /// Writes the last message. There must be room.
    pub(super) fn say_goodbye(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::debug!(%error, "no TLS goodbye");
        }
    }

    fn progress(&self, outcome: Result<usize, Error>, failed: IoError) -> Result<Progress, IoError> {
        let error = match outcome {
            Ok(count) => return Ok(Progress::Done(count)),
            Err(error) => error,
        };
        match error.code() {
            ErrorCode::WANT_READ => Ok(Progress::NeedsInput),
            ErrorCode::WANT_WRITE => Ok(Progress::NeedsRoom),
            ErrorCode::ZERO_RETURN => Ok(Progress::End),
            _ => {
                tracing::debug!(%error, verified = %self.0.ssl().verify_result(), "TLS failed");
                Err(failed)
            }
        }
    }

    /// Takes the buffer for more ciphertext; none while somebody else has it. Panics if there is some in it.
    pub(super) fn take_incoming(&mut self) -> Option<Buf> {
        let buffers = self.0.get_mut();
        assert_eq!(buffers.start, buffers.end, "ciphertext that was not looked at");
        buffers.incoming.take()
    }

    /// Brings the buffer back, with so many bytes received.
    pub(super) fn put_incoming(&mut self, incoming: Buf, count: usize) {
        let buffers = self.0.get_mut();
        assert!(buffers.incoming.is_none() && count <= incoming.len());
        (buffers.incoming, buffers.start, buffers.end) = (Some(incoming), 0, count);
    }

    /// Takes the ciphertext that is to be sent, if there is any. What is left of its buffer stays.
    pub(super) fn take_outgoing(&mut self) -> Option<Slice> {
        let buffers = self.0.get_mut();
        let mut made = buffers.outgoing.take()?;
        buffers.outgoing = Some(made.split_off(buffers.filled));
        buffers.filled = 0;
        if made.is_empty() { None } else { Some(made.freeze()) }
    }

    /// Whether there is ciphertext to be sent.
    pub(super) fn has_outgoing(&self) -> bool {
        self.0.get_ref().filled > 0
    }

    /// Gives up what is left of the buffer for ciphertext to be sent. Panics if there is something in it.
    pub(super) fn drop_room(&mut self) {
        let buffers = self.0.get_mut();
        assert_eq!(buffers.filled, 0, "ciphertext that was not sent");
        buffers.outgoing = None;
    }

    /// A buffer for ciphertext to be sent, after the last was given up.
    pub(super) fn give_room(&mut self, outgoing: Buf) {
        let buffers = self.0.get_mut();
        assert!(buffers.outgoing.is_none(), "two buffers for ciphertext to be sent");
        buffers.outgoing = Some(outgoing);
    }

    /// Who the peer is, if it had to prove that. To be asked after the handshake.
    pub(super) fn identity(&self) -> Option<Identity> {
        let ssl = self.0.ssl();
        if let Some(certificate) = ssl.peer_certificate() {
            return Some(Identity::Certificate(names(&certificate)));
        }
        let name = claimed_name(ssl).filter(|_| used_pre_shared_key(ssl))?;
        Some(Identity::PreSharedKey(name.to_owned()))
    }

    /// Version and cipher, for the log.
    pub(super) fn terms(&self) -> (&'static str, &'static str) {
        let ssl = self.0.ssl();
        (ssl.version_str(), ssl.current_cipher().map_or("none", |cipher| cipher.name()))
    }
}

/// The room for ciphertext that so much plaintext needs, as far as it is given at once.
pub(super) fn room_for(plaintext_bytes: usize) -> usize {
    let records = plaintext_bytes.div_ceil(RECORD_BYTES_MAX) + 1;
    (plaintext_bytes + records * RECORD_OVERHEAD_BYTES).min(CIPHERTEXT_BYTES)
}

const HANDSHAKE_FAILED: IoError = IoError::new(IoErrorKind::Invalid, "the TLS handshake");
const FAILED: IoError = IoError::new(IoErrorKind::Invalid, "what came is not TLS as agreed upon");

/// Whether the handshake was authenticated by a pre-shared key, not only begun with one. TLS 1.3 treats it as a session
/// that is resumed, and nothing else is ever resumed here; TLS 1.2 has ciphers of their own for it.
fn used_pre_shared_key(ssl: &SslRef) -> bool {
    match ssl.version2() {
        Some(SslVersion::TLS1_3) => ssl.session_reused(),
        _ => ssl.current_cipher().is_some_and(|cipher| cipher.name().contains("PSK")),
    }
}

/// The names of a certificate. What is no text is no name.
fn names(certificate: &X509) -> Vec<String> {
    let subject = certificate.subject_name();
    let common = subject.entries_by_nid(Nid::COMMONNAME).filter_map(|entry| entry.data().to_string().ok());
    let mut names: Vec<String> = common.collect();
    let alternatives = certificate.subject_alt_names().into_iter().flatten();
    names.extend(alternatives.filter_map(|name| name.dnsname().map(str::to_owned)));
    names
}

/// What OpenSSL reads from and writes to.
struct Buffers {
    /// `None` while it is received into.
    incoming: Option<Buf>,
    start: usize,
    end: usize,
    /// `None` while another is waited for.
    outgoing: Option<Buf>,
    filled: usize,
}

impl Buffers {
    fn room(&self) -> usize {
        self.outgoing.as_ref().map_or(0, |outgoing| outgoing.len() - self.filled)
    }
}

impl Read for Buffers {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let Some(incoming) = self.incoming.as_ref().filter(|_| self.start < self.end) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let count = buf.len().min(self.end - self.start);
        buf[..count].copy_from_slice(&incoming[self.start..][..count]);
        self.start += count;
        Ok(count)
    }
}

impl Write for Buffers {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let count = data.len().min(self.room());
        let Some(outgoing) = self.outgoing.as_mut().filter(|_| count > 0) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        outgoing[self.filled..][..count].copy_from_slice(&data[..count]);
        self.filled += count;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
