//! The client's half of an NBD greeting: fixed newstyle, NBD_OPT_GO, simple replies (nothing else is negotiated).
//!
//! - What the server says is checked; a server that refuses, or speaks another protocol, is an error that says so.
//! - After [`greet`] the stream is in the transmission phase and not a byte of it has been read.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};

const GREETING_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Longer replies to an option are none that we asked for.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// What the server said of the export.
#[derive(Debug, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its transmission flags.
    pub flags: u16,
}

fn take<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).context("the server hung up during the greeting")?;
    Ok(bytes)
}

/// Greets the server and enters the export of that name.
pub fn greet(stream: &mut (impl Read + Write), export: &str) -> Result<Export> {
    ensure!(u64::from_be_bytes(take(stream)?) == GREETING_MAGIC, "this is no NBD server");
    ensure!(u64::from_be_bytes(take(stream)?) == OPTION_MAGIC, "the server speaks the oldstyle protocol");
    let offered = u16::from_be_bytes(take(stream)?);
    ensure!(offered & FLAG_FIXED_NEWSTYLE != 0, "the server is not fixed newstyle");
    let mut hello = u32::from(offered & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_be_bytes().to_vec();
    let name_len = u32::try_from(export.len()).context("the export's name is too long")?;
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(OPTION_GO.to_be_bytes());
    hello.extend((4 + name_len + 2).to_be_bytes());
    hello.extend(name_len.to_be_bytes());
    hello.extend(export.as_bytes());
    hello.extend(0_u16.to_be_bytes());
    stream.write_all(&hello).context("the server hung up during the greeting")?;

    let mut found = None;
    loop {
        ensure!(u64::from_be_bytes(take(stream)?) == OPTION_REPLY_MAGIC, "no reply to an option");
        let option = u32::from_be_bytes(take(stream)?);
        ensure!(option == OPTION_GO, "a reply to option {option}, which was not sent");
        let kind = u32::from_be_bytes(take(stream)?);
        let len = u32::from_be_bytes(take(stream)?);
        ensure!(len <= REPLY_BYTES_MAX, "a reply of {len} bytes to an option");
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body).context("the server hung up during the greeting")?;
        match kind {
            REPLY_ACK => return found.context("the server did not say how large the export is"),
            REPLY_INFO if body.len() == 12 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                let (size, flags) = body[2..].split_at(8);
                found = Some(Export {
                    size_bytes: u64::from_be_bytes(size.try_into()?),
                    flags: u16::from_be_bytes(flags.try_into()?),
                });
            }
            _ if kind & REPLY_ERROR != 0 => {
                bail!("the server refused export {export:?}: {kind:#x} {}", String::from_utf8_lossy(&body))
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// A server that says `bytes` after its greeting, whatever it is told; and what it was told.
    fn greet_with(offered: u16, bytes: &[u8], export: &str) -> (Result<Export>, Vec<u8>) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let mut say = b"NBDMAGICIHAVEOPT".to_vec();
        say.extend(offered.to_be_bytes());
        say.extend(bytes);
        theirs.write_all(&say).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let outcome = greet(&mut ours, export);
        drop(ours);
        let mut told = Vec::new();
        // Who hangs up without having read everything resets the connection.
        if let Err(error) = theirs.read_to_end(&mut told) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        (outcome, told)
    }

    fn reply(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut out = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        out.extend(OPTION_GO.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend((body.len() as u32).to_be_bytes());
        out.extend(body);
        out
    }

    fn info(size_bytes: u64, flags: u16) -> Vec<u8> {
        let mut body = INFO_EXPORT.to_be_bytes().to_vec();
        body.extend(size_bytes.to_be_bytes());
        body.extend(flags.to_be_bytes());
        reply(REPLY_INFO, &body)
    }

    #[test]
    fn enters_the_export_past_facts_it_did_not_ask_for() {
        let block_sizes = reply(REPLY_INFO, &[0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
        let say = [block_sizes, info(1 << 30, 0x109), reply(REPLY_ACK, &[])].concat();
        let (outcome, told) = greet_with(3, &say, "vol0");
        assert_eq!(outcome.unwrap(), Export { size_bytes: 1 << 30, flags: 0x109 });
        let expected = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04vol0\0\0";
        assert_eq!(told, expected);
    }

    #[test]
    fn a_refusal_says_what_the_server_said() {
        let (outcome, _) = greet_with(3, &reply(REPLY_ERROR | 6, b"no such export"), "nope");
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("nope") && message.contains("no such export"), "{message}");
    }

    #[test]
    fn what_is_no_server_of_ours_is_an_error() {
        assert!(greet_with(0, &[], "").0.unwrap_err().to_string().contains("fixed newstyle"));
        assert!(greet_with(3, &reply(REPLY_ACK, &[]), "").0.unwrap_err().to_string().contains("how large"));
        assert!(greet_with(3, &info(1, 0)[..20], "").0.unwrap_err().to_string().contains("hung up"));
        assert!(greet_with(3, &[0; 20], "").0.unwrap_err().to_string().contains("no reply"));
    }
}
