//! The way to the array: straight, or by NBD connections. What comes out of it is the same.

use std::ops::Range;
use std::rc::Rc;

use raidd::io::extent::nothing_to_report;
use raidd::io::{Buf, Device, DeviceInfo, Extent, ExtentKind, Fua, IoError, Slice, Zeroing};

use crate::connection::{self, Got, Outcome, Request};
use crate::sessions::Sessions;
use crate::setup::SimArray;

/// A way to the array; clones lead to the same.
#[derive(Clone)]
pub enum Door {
    /// Calls of the array itself.
    Direct(SimArray),
    /// Requests on one lane's connection, or on any.
    Nbd(Rc<Sessions>, Option<usize>),
}

impl Door {
    /// The sessions behind it.
    pub fn sessions(&self) -> Option<&Rc<Sessions>> {
        match self {
            Door::Direct(_) => None,
            Door::Nbd(sessions, _) => Some(sessions),
        }
    }

    /// The same, on a lane of this number, or one of those there are.
    pub fn by_lane(&self, lane: usize) -> Door {
        match self {
            Door::Direct(_) => self.clone(),
            Door::Nbd(sessions, _) => Door::Nbd(sessions.clone(), Some(lane % sessions.lanes())),
        }
    }
}

fn request(command: u16, flags: u16, offset: u64, length: u64) -> Request {
    Request { command, flags, offset, length }
}

fn flag(fua: Fua) -> u16 {
    if fua == Fua::Yes { connection::FUA } else { 0 }
}

fn done(outcome: Outcome) -> Result<(), IoError> {
    outcome.map(|_| ())
}

impl Device for Door {
    fn info(&self) -> DeviceInfo {
        match self {
            Door::Direct(array) => array.info(),
            // A session reads whole blocks and cuts out what was asked for.
            Door::Nbd(sessions, _) => DeviceInfo { read_block_bytes: 1, ..sessions.info() },
        }
    }

    async fn read(&self, offset: u64, buf: Buf) -> Result<Buf, IoError> {
        match self {
            Door::Direct(array) => array.read(offset, buf).await,
            Door::Nbd(sessions, lane) => {
                let request = request(connection::READ, 0, offset, buf.len() as u64);
                match sessions.ask(*lane, request, Vec::new(), Some(buf)).await? {
                    Got::Data(buf) => Ok(buf),
                    other => panic!("a READ has brought {other:?}"),
                }
            }
        }
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        match self {
            Door::Direct(array) => array.write(offset, data, fua).await,
            Door::Nbd(sessions, lane) => {
                let length = data.iter().map(|slice| slice.len() as u64).sum();
                let request = request(connection::WRITE, flag(fua), offset, length);
                done(sessions.ask(*lane, request, data, None).await)
            }
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64, zeroing: Zeroing, fua: Fua) -> Result<(), IoError> {
        match self {
            Door::Direct(array) => array.write_zeroes(offset, len, zeroing, fua).await,
            Door::Nbd(sessions, lane) => {
                let no_hole = if zeroing == Zeroing::Allocate { connection::NO_HOLE } else { 0 };
                let request = request(connection::WRITE_ZEROES, flag(fua) | no_hole, offset, len);
                done(sessions.ask(*lane, request, Vec::new(), None).await)
            }
        }
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        match self {
            Door::Direct(array) => array.discard(offset, len).await,
            Door::Nbd(sessions, lane) => {
                let request = request(connection::TRIM, 0, offset, len);
                done(sessions.ask(*lane, request, Vec::new(), None).await)
            }
        }
    }

    fn extent_kinds(&self) -> &[ExtentKind] {
        match self {
            Door::Direct(array) => array.extent_kinds(),
            Door::Nbd(..) => &ExtentKind::ALL[..2],
        }
    }

    async fn extents(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Result<Vec<Extent>, IoError> {
        match self {
            Door::Direct(array) => array.extents(kind, range, max).await,
            Door::Nbd(sessions, lane) => {
                let status = sessions.ask_status(*lane, range.start, range.end - range.start).await?;
                let place = ExtentKind::ALL.iter().position(|other| *other == kind).expect("one of them");
                // Clients that cannot ask know nothing.
                let Some(told) = status.and_then(|mut status| status.drain(place..).next()) else {
                    return Ok(nothing_to_report(&range));
                };
                Ok(told
                    .into_iter()
                    .map(|(len_bytes, state)| Extent { len_bytes, state: state as u32 })
                    .collect())
            }
        }
    }

    async fn flush(&self) -> Result<(), IoError> {
        match self {
            Door::Direct(array) => array.flush().await,
            Door::Nbd(sessions, lane) => {
                done(sessions.ask(*lane, request(connection::FLUSH, 0, 0, 0), Vec::new(), None).await)
            }
        }
    }
}
