//! Who is let in, as whom, and who is not.

use openssl::ssl::SslVersion;

use super::world::Certified;
use super::*;
use crate::io::{IoErrorKind, Security, Stream};
use crate::tls::Identity;

const BOTH_VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

fn certified(names: &[&str]) -> Option<Identity> {
    Some(Identity::Certificate(names.iter().map(|&name| name.to_owned()).collect()))
}

fn pre_shared(name: &str) -> Option<Identity> {
    Some(Identity::PreSharedKey(name.to_owned()))
}

#[track_caller]
fn let_in(server: Arc<TlsServer>, client: Ssl) -> Option<Identity> {
    let ends = Ends::connected(server, client, 1000, 1 << 20);
    assert_eq!(ends.server.security(), Security::Tls);
    ends.server.identity().get().cloned()
}

#[track_caller]
fn refused(server: Arc<TlsServer>, client: Ssl) {
    let ends = Ends::new(server, client, usize::MAX, 1 << 20);
    let (seen_by_server, _) = ends.shake();
    assert!(seen_by_server.is_err());
    assert_eq!(ends.server.identity().get(), None);
    assert_eq!(ends.server.security(), Security::Tls, "never in the clear again");
    let buf = ends.pool.try_alloc(100).unwrap();
    assert_eq!(run(ends.server.recv(buf)).unwrap_err().kind, IoErrorKind::Closed);
    drop(ends);
}

#[test]
fn whatever_the_sizes() {
    let pki = Pki::new();
    let server = pki.server(true, false, false);
    for (piece, capacity) in [(1, 1), (1, 1 << 20), (7, 100), (5, 3), (usize::MAX, 1 << 20)] {
        let ends = Ends::connected(server.clone(), pki.client(|_| ()), piece, capacity);
        assert_eq!(ends.server.identity().get(), None, "nobody asked who the client is");
    }
}

#[test]
fn a_certificate_of_the_ca() {
    let pki = Pki::new();
    let alice = pki.ca.sign("alice", &["a.example", "b.example"]);
    for version in BOTH_VERSIONS {
        for psk in [false, true] {
            let client = pki.client(|builder| {
                with_certificate(builder, &alice);
                only(builder, version);
            });
            let identity = let_in(pki.server(true, true, psk), client);
            assert_eq!(identity, certified(&["alice", "a.example", "b.example"]));
        }
    }
}

#[test]
fn no_certificate_or_one_of_another_ca() {
    let pki = Pki::new();
    let stranger = Certified::ca("the CA").sign("alice", &[]);
    for version in BOTH_VERSIONS {
        for psk in [false, true] {
            let server = pki.server(true, true, psk);
            refused(server.clone(), pki.client(|builder| only(builder, version)));
            let client = pki.client(|builder| {
                with_certificate(builder, &stranger);
                only(builder, version);
            });
            refused(server, client);
        }
    }
}

#[test]
fn a_client_that_does_not_trust_the_server() {
    let (pki, other) = (Pki::new(), Pki::new());
    refused(pki.server(true, false, false), other.client(|_| ()));
}

#[test]
fn a_pre_shared_key() {
    let pki = Pki::new();
    for version in BOTH_VERSIONS {
        for (certificate, ca) in [(false, false), (true, false), (true, true)] {
            let client = pki.client(|builder| {
                with_key(builder, "alice", &ALICES_KEY);
                // With a certificate the server would choose that, if it could.
                if version == SslVersion::TLS1_2 {
                    builder.set_cipher_list("ECDHE-PSK-CHACHA20-POLY1305").unwrap();
                }
                only(builder, version);
            });
            let identity = let_in(pki.server(certificate, ca, true), client);
            assert_eq!(identity, pre_shared("alice"));
        }
    }
}

#[test]
fn a_wrong_key_or_name() {
    let pki = Pki::new();
    for version in BOTH_VERSIONS {
        for (name, key) in [("alice", &[0xa4; 32][..]), ("bob", &ALICES_KEY), ("mallory", &ALICES_KEY)] {
            let client = pki.client(|builder| {
                with_key(builder, name, key);
                only(builder, version);
            });
            refused(pki.server(false, false, true), client);
        }
    }
}

#[test]
fn a_name_that_was_only_claimed_is_not_believed() {
    let pki = Pki::new();
    let server = pki.server(true, false, true);
    // A name that nobody has, and then the server's certificate does; and a client that knows no keys.
    let unknown = pki.client(|builder| {
        with_key(builder, "mallory", &[1; 32]);
        only(builder, SslVersion::TLS1_3);
    });
    assert_eq!(let_in(server.clone(), unknown), None);
    assert_eq!(let_in(server.clone(), pki.client(|_| ())), None);
    // A right name and a wrong key is a lie.
    let liar = pki.client(|builder| {
        with_key(builder, "alice", &[1; 32]);
        only(builder, SslVersion::TLS1_3);
    });
    refused(server, liar);
}

#[test]
fn old_versions_and_weak_ciphers() {
    let pki = Pki::new();
    let server = pki.server(true, false, true);
    for version in [SslVersion::TLS1, SslVersion::TLS1_1] {
        let old = pki.client(|builder| {
            builder.set_security_level(0);
            only(builder, version);
        });
        refused(server.clone(), old);
    }
    for cipher in ["ECDHE-ECDSA-AES128-SHA256", "AES128-GCM-SHA256", "PSK-AES128-GCM-SHA256", "aNULL"] {
        let weak = pki.client(|builder| {
            with_key(builder, "alice", &ALICES_KEY);
            builder.set_security_level(0);
            builder.set_cipher_list(cipher).unwrap();
            only(builder, SslVersion::TLS1_2);
        });
        refused(server.clone(), weak);
    }
}

#[test]
fn sessions_are_not_resumed() {
    let pki = Pki::new();
    for version in BOTH_VERSIONS {
        let client = pki.client(|builder| only(builder, version));
        let ends = Ends::connected(pki.server(true, false, false), client, usize::MAX, 1 << 20);
        assert!(ends.under_client.take().is_empty(), "a ticket");
    }
}

#[test]
fn what_is_no_client_hello() {
    let pki = Pki::new();
    let server = pki.server(true, true, true);
    let garbage: [&[u8]; 5] = [
        b"IHAVEOPT\0\0\0\x03\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0",
        &[0; 4096],
        &[0xff; 70_000],
        b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc",
        b"",
    ];
    for (bytes, piece) in garbage.into_iter().zip([1, 100, usize::MAX, 3, 1]) {
        let ends = Ends::new(server.clone(), pki.client(|_| ()), piece, 1 << 20);
        ends.under_client.put(bytes);
        let stop_after = async {
            // Either it is refused at once, or more is waited for until the peer is gone.
            std::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                std::task::Poll::Ready(())
            })
            .await;
            ends.under_client.shutdown();
        };
        let (shaken, ()) = run(join(ends.server.start_tls(), stop_after));
        assert!(shaken.is_err());
        assert_eq!(ends.server.identity().get(), None);
    }
}

#[test]
fn no_tls_where_it_is_off() {
    let (under, _other) = wires(1, 1);
    let stream = TlsStream::new(under, TlsPolicy::Off, Pool::new(1 << 20).unwrap());
    assert_eq!(stream.security(), Security::None);
    assert_eq!(run(stream.start_tls()).unwrap_err().kind, IoErrorKind::Unsupported);
}
