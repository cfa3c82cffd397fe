//! STARTTLS, and what is told before it. The cryptography has tests of its own; here a stream only remembers that it was
//! asked to be secret.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use raidd::io::{Buf, Clock, IoError, IoErrorKind, Security, Slice, Stream};
use raidd::nbd::SessionEnd;

use crate::disk::initial;
use crate::peer::*;
use crate::world::{Wire, World};

/// A stream that can be made secret, as far as the protocol sees.
struct Curtain {
    wire: Wire,
    security: Rc<Cell<Security>>,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Making it secret fails.
    Fails,
    /// Making it secret takes for ever.
    Hangs,
    /// It takes leave for ever.
    Clings,
}

impl Stream for Curtain {
    async fn recv(&self, buf: Buf) -> Result<(usize, Buf), IoError> {
        self.wire.recv(buf).await
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        self.wire.send(data).await
    }

    fn shutdown(&self) {
        self.wire.shutdown();
    }

    fn security(&self) -> Security {
        self.security.get()
    }

    async fn start_tls(&self) -> Result<(), IoError> {
        match self.fault {
            Fault::Fails => return Err(IoError::new(IoErrorKind::Invalid, "the TLS handshake")),
            Fault::Hangs => pending().await,
            Fault::None | Fault::Clings => (),
        }
        assert!(matches!(self.security.replace(Security::Tls), Security::Offered | Security::Required));
        Ok(())
    }

    async fn close(&self) {
        if self.fault == Fault::Clings {
            pending::<()>().await;
        }
        self.shutdown();
    }
}

struct Listener {
    server: Server,
    security: Rc<Cell<Security>>,
    fault: Fault,
}

impl Listener {
    fn connect(&self) -> Peer {
        let (security, fault) = (self.security.clone(), self.fault);
        self.server.connect_through(|wire| Curtain { wire, security, fault })
    }
}

/// Runs a test against a new server whose streams are in the clear like this, and looks for leaks.
fn with_listener(security: Security, test: impl AsyncFn(&mut Listener) + 'static) {
    let world = World::new(3);
    let server = Server::new(&world, 1 << 20);
    let security = Rc::new(Cell::new(security));
    let mut listener = Listener { server: server.clone(), security, fault: Fault::None };
    world.run(async move { test(&mut listener).await });
    world.settle();
    server.assert_idle();
}

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn what_is_required_comes_first() {
    with_listener(Security::Required, async |listener| {
        let mut peer = listener.connect();
        peer.greet(3).await;
        let name = info_data(b"vol0", &[]);
        for (option, data) in [
            (LIST, &[][..]),
            (LIST, b"x"),
            (INFO, &name),
            (GO, &name),
            (GO, b"?"),
            (8, b""),
            (777, &[1; 9000]),
        ] {
            let replies = peer.option(option, data).await;
            assert_eq!(kinds(&replies), [ERR_TLS_REQD], "{option}");
        }
        assert_eq!(kinds(&peer.option(STARTTLS, b"x").await), [ERR_INVALID]);
        assert_eq!(kinds(&peer.option(LIST, &[]).await), [ERR_TLS_REQD]);

        assert_eq!(peer.option(STARTTLS, &[]).await, [(ACK, vec![])]);
        assert_eq!(listener.security.get(), Security::Tls);
        assert_eq!(kinds(&peer.option(STARTTLS, &[]).await), [ERR_INVALID]);
        assert_eq!(kinds(&peer.option(LIST, &[]).await), [REP_SERVER, REP_SERVER, ACK]);
        assert_eq!(kinds(&peer.option(GO, &name).await), [REP_INFO, ACK]);
        assert_eq!(peer.read(0, 7, 1).await.unwrap(), [initial(7)]);
    });
}

#[test]
fn export_name_and_abort_without_what_is_required() {
    with_listener(Security::Required, async |listener| {
        for flags in [0, 3] {
            let peer = listener.connect();
            peer.greet(flags).await;
            peer.send(&option_bytes(EXPORT_NAME, b"vol0")).await;
            peer.expect_close().await;
            assert_eq!(peer.end(), Some(SessionEnd::Refused("EXPORT_NAME without TLS")));
        }
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(peer.option(ABORT, &[]).await, [(ACK, vec![])]);
        peer.expect_close().await;
    });
}

#[test]
fn what_is_offered_need_not_be_taken() {
    with_listener(Security::Offered, async |listener| {
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(kinds(&peer.option(LIST, &[]).await), [REP_SERVER, REP_SERVER, ACK]);
        assert_eq!(peer.option(STARTTLS, &[]).await, [(ACK, vec![])]);
        assert_eq!(listener.security.get(), Security::Tls);
        // Flags of the greeting are what is left of what was said in the clear.
        peer.send(&option_bytes(EXPORT_NAME, b"vol0")).await;
        assert_eq!(peer.wire.read(10).await.len(), 10);
    });
}

/// Whoever is in between could have agreed upon it in the client's name.
#[test]
fn what_was_agreed_upon_in_the_clear_is_forgotten() {
    with_listener(Security::Offered, async |listener| {
        let queries = [&4_u32.to_be_bytes()[..], b"vol0", &[0; 4]].concat();
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(peer.option(STRUCTURED_REPLY, &[]).await, [(ACK, vec![])]);
        assert_eq!(peer.option(SET_META_CONTEXT, &queries).await, [(ACK, vec![])]);
        assert_eq!(peer.option(STARTTLS, &[]).await, [(ACK, vec![])]);
        assert_eq!(kinds(&peer.option(SET_META_CONTEXT, &queries).await), [ERR_INVALID]);

        listener.security.set(Security::Offered);
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(peer.option(EXTENDED_HEADERS, &[]).await, [(ACK, vec![])]);
        assert_eq!(peer.option(STARTTLS, &[]).await, [(ACK, vec![])]);
        // After extended headers it would be refused.
        peer.send(&option_bytes(EXPORT_NAME, b"vol0")).await;
        assert_eq!(peer.wire.read(10).await.len(), 10);
    });
}

#[test]
fn what_is_not_there_cannot_be_had() {
    with_listener(Security::None, async |listener| {
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(kinds(&peer.option(STARTTLS, &[]).await), [ERR_UNSUP]);
        assert_eq!(kinds(&peer.option(STARTTLS, b"x").await), [ERR_INVALID]);
        assert_eq!(kinds(&peer.option(GO, &info_data(b"vol0", &[])).await), [REP_INFO, ACK]);
    });
}

/// Somebody in between puts an option of his own behind the client's STARTTLS, to be carried out under TLS.
#[test]
fn what_is_put_behind_starttls_ends_the_connection() {
    for security in [Security::Offered, Security::Required] {
        for behind in [&b"I"[..], &option_bytes(GO, &info_data(b"vol0", &[])), b"\x16\x03\x01"] {
            let behind = behind.to_vec();
            with_listener(security, async move |listener| {
                let peer = listener.connect();
                peer.greet(3).await;
                peer.send(&[option_bytes(STARTTLS, &[]), behind.clone()].concat()).await;
                assert_eq!(peer.option_replies(STARTTLS).await, Some(vec![(ACK, vec![])]));
                peer.expect_close().await;
                assert!(matches!(peer.end(), Some(SessionEnd::Refused(_))), "{:?}", peer.end());
                assert_eq!(listener.security.get(), security, "it did not come to that");
            });
        }
    }
}

#[test]
fn a_handshake_that_fails_ends_the_connection() {
    with_listener(Security::Offered, async |listener| {
        listener.fault = Fault::Fails;
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(peer.option(STARTTLS, &[]).await, [(ACK, vec![])]);
        peer.expect_close().await;
        assert!(matches!(peer.end(), Some(SessionEnd::Failed(_))), "{:?}", peer.end());
    });
}

#[test]
fn a_handshake_under_way_holds_up_neither_a_stop_nor_itself() {
    for stop in [false, true] {
        with_listener(Security::Required, async move |listener| {
            listener.fault = Fault::Hangs;
            let before = listener.server.world.now();
            let peer = listener.connect();
            peer.greet(3).await;
            assert_eq!(peer.option(STARTTLS, &[]).await, [(ACK, vec![])]);
            if stop {
                listener.server.stop.stop();
            }
            peer.expect_close().await;
            let (end, seconds) =
                if stop { (SessionEnd::Stopped, 0) } else { (SessionEnd::HandshakeTimeout, 10) };
            assert_eq!(peer.end(), Some(end));
            assert_eq!(listener.server.world.now() - before, Duration::from_secs(seconds));
        });
    }
}

#[test]
fn taking_leave_has_an_end() {
    with_listener(Security::Offered, async |listener| {
        listener.fault = Fault::Clings;
        let before = listener.server.world.now();
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(peer.option(ABORT, &[]).await, [(ACK, vec![])]);
        peer.expect_close().await;
        assert_eq!(listener.server.world.now() - before, Duration::from_secs(1));
    });
}

#[test]
fn a_server_may_keep_its_list_to_itself() {
    with_listener(Security::None, async |listener| {
        listener.server.may_list = false;
        let peer = listener.connect();
        peer.greet(3).await;
        assert_eq!(kinds(&peer.option(LIST, &[]).await), [ERR_POLICY]);
        assert_eq!(kinds(&peer.option(LIST, b"x").await), [ERR_INVALID]);
        assert_eq!(kinds(&peer.option(GO, &info_data(b"vol0", &[])).await), [REP_INFO, ACK]);
    });
}
