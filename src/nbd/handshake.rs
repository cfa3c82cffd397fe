//! The fixed newstyle handshake: options, one at a time, until one of them chooses an export.
//!
//! Invariants:
//! - No option makes this side allocate by the length it claims: options up to a few KiB are looked at, longer ones are
//!   skipped and answered, still longer ones end the connection.
//! - Names are looked up as they are or refused; they are not echoed, and escaped where they are logged.
//! - A client is attached to an export before it is told that it has it.
//! - Where TLS has to come first, nothing is told before it but that. Nothing that was received or agreed upon in the
//!   clear outlives STARTTLS: who can change what is sent in the clear could put words into the client's mouth.
//!
//! The deadline for all of it is set by who calls this. Fails with the [`SessionEnd`] that the connection then has.

use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U32};

use super::context::{self, Contexts};
use super::export::{Attached, Export, Exports, Terms};
use super::inbox::Inbox;
use super::limits::{Limits, NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, Pools};
use super::session::SessionEnd;
use super::wire::{self, BlockSizes, ExportFacts, Framing, Greeting, InfoRequest, MetaRequest, OptionHeader};
use crate::io::{Clock, Device, PAGE_BYTES, Pool, Security, Stream};

/// Zeroes behind the answer to EXPORT_NAME, for clients that did not say that they do without.
const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// What the client chose.
pub(super) struct Chosen<D> {
    pub(super) device: D,
    pub(super) terms: Terms,
    pub(super) attached: Attached,
}

/// What an option led to.
enum Step<D> {
    /// The next option, after these replies.
    Reply(Vec<u8>),
    /// TLS, after these replies, and then the options once more from the first.
    StartTls(Vec<u8>),
    /// The transmission phase, after these replies.
    Enter(Vec<u8>, Chosen<D>),
    /// The end, after these replies.
    End(Vec<u8>, SessionEnd),
}

/// Haggles until an export is chosen.
pub(super) async fn shake<S: Stream, R: Clock, X: Exports>(
    stream: &S,
    inbox: &mut Inbox<S, R>,
    exports: &X,
    pools: &Pools,
    limits: &Limits,
) -> Result<Chosen<X::Device>, SessionEnd> {
    let greeting = Greeting {
        magic: wire::GREETING_MAGIC,
        option_magic: wire::OPTION_MAGIC,
        flags: (wire::FIXED_NEWSTYLE | wire::NO_ZEROES).into(),
    };
    send(stream, &pools.messages, greeting.as_bytes()).await?;
    let client_flags = u32::from_be_bytes(inbox.take::<{ size_of::<u32>() }>().await?);
    if client_flags & !u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES) != 0 {
        return Err(SessionEnd::Refused("unknown client flags"));
    }
    let mut haggling = Haggling::new(inbox, exports, pools, client_flags, stream.security());
    for _ in 0..limits.options {
        match haggling.take_option().await? {
            Step::Reply(replies) => send(stream, &pools.messages, &replies).await?,
            Step::StartTls(replies) => {
                send(stream, &pools.messages, &replies).await?;
                haggling.inbox.unless_stopped(stream.start_tls()).await??;
                // All that was agreed upon is forgotten with the old one.
                haggling = Haggling::new(haggling.inbox, exports, pools, client_flags, stream.security());
            }
            Step::Enter(replies, chosen) => {
                send(stream, &pools.messages, &replies).await?;
                return Ok(chosen);
            }
            Step::End(replies, end) => {
                send(stream, &pools.messages, &replies).await?;
                return Err(end);
            }
        }
    }
    Err(SessionEnd::Refused("too many options"))
}

struct Haggling<'a, S, R, X> {
    inbox: &'a mut Inbox<S, R>,
    exports: &'a X,
    pools: &'a Pools,
    fixed: bool,
    no_zeroes: bool,
    security: Security,
    framing: Framing,
    /// The contexts of the last SET_META_CONTEXT, and the true name of the export that they were chosen for.
    chosen: Option<(String, Contexts)>,
}

impl<'a, S: Stream, R: Clock, X: Exports> Haggling<'a, S, R, X> {
    /// With nothing agreed upon but the flags of the greeting.
    fn new(
        inbox: &'a mut Inbox<S, R>,
        exports: &'a X,
        pools: &'a Pools,
        client_flags: u32,
        security: Security,
    ) -> Haggling<'a, S, R, X> {
        let fixed = client_flags & u32::from(wire::FIXED_NEWSTYLE) != 0;
        let no_zeroes = client_flags & u32::from(wire::NO_ZEROES) != 0;
        let framing = Framing::Simple;
        Haggling { inbox, exports, pools, fixed, no_zeroes, security, framing, chosen: None }
    }

    async fn take_option(&mut self) -> Result<Step<X::Device>, SessionEnd> {
        let bytes = self.inbox.take::<{ size_of::<OptionHeader>() }>().await?;
        let header: OptionHeader = zerocopy::transmute!(bytes);
        if header.magic != wire::OPTION_MAGIC {
            return Err(SessionEnd::Refused("an option with a wrong magic"));
        }
        let (option, length) = (header.option.get(), header.length.get());
        if length > OPTION_SKIP_BYTES_MAX {
            return Err(SessionEnd::Refused("an option that is far too long"));
        }
        let length = length as usize;
        if option == wire::OPT_EXPORT_NAME {
            // It has no way to say no: all that is wrong is answered by a close.
            if self.security == Security::Required {
                return Err(SessionEnd::Refused("EXPORT_NAME without TLS"));
            }
            if length > NAME_BYTES_MAX {
                return Err(SessionEnd::Refused("a name that is too long"));
            }
            if self.framing == Framing::Extended {
                return Err(SessionEnd::Refused("EXPORT_NAME after EXTENDED_HEADERS"));
            }
            let name = self.inbox.take_vec(length).await?;
            return self.export_name(&name).await;
        }
        if !self.fixed {
            return Err(SessionEnd::Refused("an option that needs the fixed newstyle handshake"));
        }
        if option == wire::OPT_ABORT {
            self.inbox.skip(length).await?;
            return Ok(Step::End(reply(option, wire::REP_ACK, ""), SessionEnd::Disconnected));
        }
        if self.inbox.stopping() {
            self.inbox.skip(length).await?;
            return Ok(Step::Reply(reply(option, wire::REP_ERR_SHUTDOWN, "the server is stopping")));
        }
        if option == wire::OPT_STARTTLS {
            return self.start_tls(length).await;
        }
        if self.security == Security::Required {
            self.inbox.skip(length).await?;
            return Ok(Step::Reply(reply(option, wire::REP_ERR_TLS_REQD, "this server wants TLS first")));
        }
        match option {
            wire::OPT_INFO | wire::OPT_GO if length <= OPTION_BYTES_MAX => {
                let data = self.inbox.take_vec(length).await?;
                self.info(option, &data).await
            }
            wire::OPT_LIST_META_CONTEXT | wire::OPT_SET_META_CONTEXT if length <= OPTION_BYTES_MAX => {
                let data = self.inbox.take_vec(length).await?;
                Ok(Step::Reply(self.meta_context(option, &data).await))
            }
            _ => {
                self.inbox.skip(length).await?;
                Ok(Step::Reply(self.plain(option, length)))
            }
        }
    }

    /// The options that need no data, those that are too long, and those that nobody knows.
    fn plain(&mut self, option: u32, length: usize) -> Vec<u8> {
        match option {
            wire::OPT_INFO | wire::OPT_GO | wire::OPT_LIST_META_CONTEXT | wire::OPT_SET_META_CONTEXT => {
                reply(option, wire::REP_ERR_TOO_BIG, "the option is too long")
            }
            wire::OPT_LIST | wire::OPT_STRUCTURED_REPLY | wire::OPT_EXTENDED_HEADERS if length > 0 => {
                reply(option, wire::REP_ERR_INVALID, "this option has no data")
            }
            wire::OPT_LIST if !self.exports.may_list() => {
                reply(option, wire::REP_ERR_POLICY, "this server does not tell what it has")
            }
            wire::OPT_LIST => self.list(),
            wire::OPT_STRUCTURED_REPLY if self.framing == Framing::Extended => {
                let why = "extended headers were chosen, which have structured replies of their own";
                reply(option, wire::REP_ERR_EXT_HEADER_REQD, why)
            }
            wire::OPT_STRUCTURED_REPLY => {
                self.framing = Framing::Structured;
                reply(option, wire::REP_ACK, "")
            }
            wire::OPT_EXTENDED_HEADERS => {
                self.framing = Framing::Extended;
                reply(option, wire::REP_ACK, "")
            }
            _ => reply(option, wire::REP_ERR_UNSUP, "this server does not know the option"),
        }
    }

    async fn start_tls(&mut self, length: usize) -> Result<Step<X::Device>, SessionEnd> {
        self.inbox.skip(length).await?;
        let refused = |kind, text| Ok(Step::Reply(reply(wire::OPT_STARTTLS, kind, text)));
        if length > 0 {
            return refused(wire::REP_ERR_INVALID, "this option has no data");
        }
        let granted = reply(wire::OPT_STARTTLS, wire::REP_ACK, "");
        match self.security {
            Security::None => refused(wire::REP_ERR_UNSUP, "this server does not speak TLS"),
            Security::Tls => refused(wire::REP_ERR_INVALID, "this is TLS already"),
            // The option is in order and has its answer; what came with it must never be taken for the client's.
            Security::Offered | Security::Required if !self.inbox.is_empty() => {
                Ok(Step::End(granted, SessionEnd::Refused("something in the clear behind STARTTLS")))
            }
            Security::Offered | Security::Required => Ok(Step::StartTls(granted)),
        }
    }

    fn list(&self) -> Vec<u8> {
        let mut replies = Vec::new();
        for export in self.exports.list() {
            let name_bytes = U32::new(export.name.len() as u32);
            let parts = [name_bytes.as_bytes(), export.name.as_bytes(), export.description.as_bytes()];
            wire::push_option_reply(&mut replies, wire::OPT_LIST, wire::REP_SERVER, &parts);
        }
        wire::push_option_reply(&mut replies, wire::OPT_LIST, wire::REP_ACK, &[]);
        replies
    }

    async fn export_name(&mut self, name: &[u8]) -> Result<Step<X::Device>, SessionEnd> {
        if self.inbox.stopping() {
            return Err(SessionEnd::Stopped);
        }
        let name = checked_name(name).ok_or(SessionEnd::Refused("a name that is none"))?;
        let export = self.exports.open(name).await.ok_or(SessionEnd::Refused("an unknown export"))?;
        let terms = self.terms(&export);
        let attached = self.exports.attach(&export.name).ok_or(SessionEnd::Stopped)?;
        tracing::debug!(export = ?export.name, "chosen by EXPORT_NAME");
        let mut answer = export_facts(&terms).as_bytes().to_vec();
        if !self.no_zeroes {
            answer.resize(answer.len() + EXPORT_NAME_PADDING_BYTES, 0);
        }
        Ok(Step::Enter(answer, Chosen { device: export.device, terms, attached }))
    }

    /// INFO, and GO, which is INFO and then enters the transmission phase.
    async fn info(&mut self, option: u32, data: &[u8]) -> Result<Step<X::Device>, SessionEnd> {
        let parsed = InfoRequest::parse(data);
        let Some((name, request)) = parsed.and_then(|request| Some((checked_name(request.name)?, request)))
        else {
            return Ok(Step::Reply(reply(option, wire::REP_ERR_INVALID, "the option is malformed")));
        };
        let Some(export) = self.exports.open(name).await else {
            return Ok(Step::Reply(reply(option, wire::REP_ERR_UNKNOWN, "there is no such export")));
        };
        let mut terms = self.terms(&export);
        let mut replies = info_replies(option, &request, &export, &terms);
        wire::push_option_reply(&mut replies, option, wire::REP_ACK, &[]);
        if option == wire::OPT_INFO {
            return Ok(Step::Reply(replies));
        }
        let Some(attached) = self.exports.attach(&export.name) else {
            return Ok(Step::Reply(reply(option, wire::REP_ERR_SHUTDOWN, "the export is being stopped")));
        };
        if request.wants(wire::INFO_BLOCK_SIZE) {
            terms = terms.strict();
        }
        tracing::debug!(export = ?export.name, "chosen by GO");
        Ok(Step::Enter(replies, Chosen { device: export.device, terms, attached }))
    }

    /// LIST_META_CONTEXT, and SET_META_CONTEXT, which lists what it has chosen.
    async fn meta_context(&mut self, option: u32, data: &[u8]) -> Vec<u8> {
        let chooses = option == wire::OPT_SET_META_CONTEXT;
        if chooses {
            // The old choice is void, also where the new one fails.
            self.chosen = None;
            if self.framing == Framing::Simple {
                return reply(option, wire::REP_ERR_INVALID, "structured replies have to be chosen first");
            }
        }
        let parsed = MetaRequest::parse(data);
        let Some((name, request)) = parsed.and_then(|request| Some((checked_name(request.name)?, request)))
        else {
            return reply(option, wire::REP_ERR_INVALID, "the option is malformed");
        };
        let Some(export) = self.exports.open(name).await else {
            return reply(option, wire::REP_ERR_UNKNOWN, "there is no such export");
        };
        let offered = Contexts::of(export.device.extent_kinds());
        let contexts = match request.asks_nothing() {
            true if chooses => Contexts::NONE,
            true => offered,
            false => request
                .queries()
                .fold(Contexts::NONE, |found, query| found.union(offered.matching(query, !chooses))),
        };
        let mut replies = Vec::new();
        for kind in contexts.iter() {
            let id = U32::new(if chooses { context::id(kind) } else { 0 });
            let parts = [id.as_bytes(), context::name(kind).as_bytes()];
            wire::push_option_reply(&mut replies, option, wire::REP_META_CONTEXT, &parts);
        }
        wire::push_option_reply(&mut replies, option, wire::REP_ACK, &[]);
        if chooses {
            self.chosen = Some((export.name, contexts));
        }
        replies
    }

    fn terms(&self, export: &Export<X::Device>) -> Terms {
        let chosen = self.chosen.as_ref().filter(|(name, _)| *name == export.name);
        let contexts = chosen.map_or(Contexts::NONE, |(_, contexts)| *contexts);
        Terms::new(&export.device.info(), self.pools, self.framing, contexts)
    }
}

/// What INFO and GO say about an export: its size and flags always, the rest on request.
fn info_replies<D>(option: u32, request: &InfoRequest<'_>, export: &Export<D>, terms: &Terms) -> Vec<u8> {
    let mut replies = Vec::new();
    let mut push = |info: u16, data: &[u8]| {
        let info = U16::new(info);
        wire::push_option_reply(&mut replies, option, wire::REP_INFO, &[info.as_bytes(), data]);
    };
    push(wire::INFO_EXPORT, export_facts(terms).as_bytes());
    if request.wants(wire::INFO_NAME) {
        push(wire::INFO_NAME, export.name.as_bytes());
    }
    if request.wants(wire::INFO_DESCRIPTION) && !export.description.is_empty() {
        push(wire::INFO_DESCRIPTION, export.description.as_bytes());
    }
    if request.wants(wire::INFO_BLOCK_SIZE) {
        let sizes = BlockSizes {
            minimum: terms.block_bytes.into(),
            preferred: terms.preferred_bytes.into(),
            maximum: terms.payload_bytes_advertised.into(),
        };
        push(wire::INFO_BLOCK_SIZE, sizes.as_bytes());
    }
    replies
}

fn export_facts(terms: &Terms) -> ExportFacts {
    ExportFacts { size_bytes: terms.size_bytes.into(), flags: terms.flags.into() }
}

/// A name as the protocol allows it.
fn checked_name(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > NAME_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// One reply; an error carries a text for people.
fn reply(option: u32, kind: u32, text: &str) -> Vec<u8> {
    let mut replies = Vec::new();
    wire::push_option_reply(&mut replies, option, kind, &[text.as_bytes()]);
    replies
}

async fn send<S: Stream>(stream: &S, messages: &Pool, bytes: &[u8]) -> Result<(), SessionEnd> {
    for part in bytes.chunks(PAGE_BYTES) {
        let mut buf = messages.alloc(part.len()).await;
        buf.copy_from_slice(part);
        stream.send(vec![buf.freeze()]).await?;
    }
    Ok(())
}
