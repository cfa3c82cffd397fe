//! A small client that blocks: for `raidctl demo` and for tests. One request at a time, no options but GO.

use std::io::{self, Read, Write};

use thiserror::Error;
use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::wire::{self, BlockSizes, Errno, ExportFacts, Greeting, OptionReplyHeader, Request, SimpleReply};

/// Longest reply to an option that is believed.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// Why a client's wish was not done.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The connection failed, or the server closed it.
    #[error("the connection to the NBD server failed")]
    Io(#[from] io::Error),
    /// What came is not NBD as this client speaks it.
    #[error("not understood from the NBD server: {0}")]
    Protocol(&'static str),
    /// The server does not give the export.
    #[error("the NBD server refuses the export: {0}")]
    Refused(String),
    /// The server answered a request with an error.
    #[error("the NBD server answered {0:?}")]
    Server(Errno),
}

/// A connection to one export.
pub struct Client<T> {
    stream: T,
    size_bytes: u64,
    flags: u16,
    payload_bytes_max: usize,
    cookie: u64,
}

impl<T: Read + Write> Client<T> {
    /// Chooses the export of that name on a fresh connection.
    pub fn new(mut stream: T, export: &str) -> Result<Client<T>, ClientError> {
        let greeting: Greeting = read_struct(&mut stream)?;
        if greeting.magic != wire::GREETING_MAGIC || greeting.option_magic != wire::OPTION_MAGIC {
            return Err(ClientError::Protocol("a greeting that is none"));
        }
        if greeting.flags.get() & wire::FIXED_NEWSTYLE == 0 {
            return Err(ClientError::Protocol("a server without the fixed newstyle handshake"));
        }
        let flags = u32::from(greeting.flags.get() & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES));
        stream.write_all(&flags.to_be_bytes())?;
        let wanted = wire::info_request(export, &[wire::INFO_BLOCK_SIZE]);
        stream.write_all(&wire::option(wire::OPT_GO, &wanted))?;
        stream.flush()?;

        let payload_bytes_max = 32 << 20; // what every server takes
        let mut client = Client { stream, size_bytes: 0, flags: 0, payload_bytes_max, cookie: 0 };
        loop {
            let (kind, data) = client.read_option_reply()?;
            match kind {
                wire::REP_ACK if client.flags & wire::FLAG_HAS_FLAGS != 0 => return Ok(client),
                wire::REP_INFO => client.note_info(&data)?,
                kind if kind & wire::REP_ERROR != 0 => {
                    let text = String::from_utf8_lossy(&data).escape_debug().to_string();
                    return Err(ClientError::Refused(text));
                }
                _ => return Err(ClientError::Protocol("an unexpected reply to GO")),
            }
        }
    }

    fn read_option_reply(&mut self) -> Result<(u32, Vec<u8>), ClientError> {
        let header: OptionReplyHeader = read_struct(&mut self.stream)?;
        if header.magic.get() != wire::OPTION_REPLY_MAGIC || header.option.get() != wire::OPT_GO {
            return Err(ClientError::Protocol("a reply to some other option"));
        }
        if header.length.get() > OPTION_REPLY_BYTES_MAX {
            return Err(ClientError::Protocol("an endless reply to GO"));
        }
        let mut data = vec![0; header.length.get() as usize];
        self.stream.read_exact(&mut data)?;
        Ok((header.kind.get(), data))
    }

    fn note_info(&mut self, data: &[u8]) -> Result<(), ClientError> {
        let malformed = || ClientError::Protocol("a malformed INFO");
        let (info, rest) = U16::read_from_prefix(data).map_err(|_| malformed())?;
        match info.get() {
            wire::INFO_EXPORT => {
                let facts = ExportFacts::read_from_bytes(rest).map_err(|_| malformed())?;
                self.size_bytes = facts.size_bytes.get();
                self.flags = facts.flags.get();
            }
            wire::INFO_BLOCK_SIZE => {
                let sizes = BlockSizes::read_from_bytes(rest).map_err(|_| malformed())?;
                self.payload_bytes_max = (sizes.maximum.get() as usize).clamp(4096, 32 << 20);
            }
            _ => (),
        }
        Ok(())
    }

    /// Bytes in the export.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The transmission flags, as the server sent them.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Fills `data` from `offset_bytes`.
    pub fn read(&mut self, offset_bytes: u64, data: &mut [u8]) -> Result<(), ClientError> {
        let mut at = offset_bytes;
        for part in data.chunks_mut(self.payload_bytes_max) {
            self.send(wire::CMD_READ, 0, at, part.len() as u32)?;
            self.stream.flush()?;
            self.read_reply()?;
            self.stream.read_exact(part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset_bytes`; durable only after a [`flush`](Client::flush).
    pub fn write(&mut self, offset_bytes: u64, data: &[u8]) -> Result<(), ClientError> {
        let mut at = offset_bytes;
        for part in data.chunks(self.payload_bytes_max) {
            self.send(wire::CMD_WRITE, 0, at, part.len() as u32)?;
            self.stream.write_all(part)?;
            self.stream.flush()?;
            self.read_reply()?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes the range read as zeroes.
    pub fn write_zeroes(&mut self, offset_bytes: u64, len_bytes: u32) -> Result<(), ClientError> {
        self.request(wire::CMD_WRITE_ZEROES, offset_bytes, len_bytes)
    }

    /// Gives the range up; its content is undefined until it is written again.
    pub fn trim(&mut self, offset_bytes: u64, len_bytes: u32) -> Result<(), ClientError> {
        self.request(wire::CMD_TRIM, offset_bytes, len_bytes)
    }

    /// All that was answered before is durable when this is.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.request(wire::CMD_FLUSH, 0, 0)
    }

    /// Leaves as a client should. Flushes nothing.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.send(wire::CMD_DISC, 0, 0, 0)?;
        self.stream.flush()?;
        Ok(())
    }

    fn request(&mut self, command: u16, offset_bytes: u64, len_bytes: u32) -> Result<(), ClientError> {
        self.send(command, 0, offset_bytes, len_bytes)?;
        self.stream.flush()?;
        self.read_reply()
    }

    fn send(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> Result<(), ClientError> {
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, length: length.into() };
        self.stream.write_all(&request.encode())?;
        Ok(())
    }

    fn read_reply(&mut self) -> Result<(), ClientError> {
        let mut header = [0; wire::SIMPLE_REPLY_BYTES];
        self.stream.read_exact(&mut header)?;
        let reply = SimpleReply::parse(&header).ok_or(ClientError::Protocol("a reply that is none"))?;
        if reply.cookie != self.cookie {
            return Err(ClientError::Protocol("a reply to some other request"));
        }
        match reply.error {
            None => Ok(()),
            Some(errno) => Err(ClientError::Server(errno)),
        }
    }
}

fn read_struct<M: FromBytes + IntoBytes>(stream: &mut impl Read) -> io::Result<M> {
    let mut message = M::new_zeroed();
    stream.read_exact(message.as_mut_bytes())?;
    Ok(message)
}
