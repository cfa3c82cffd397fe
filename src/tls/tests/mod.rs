//! TLS against clients that know it and clients that do not, over streams in memory that tear what is sent.
//!
//! The client is OpenSSL, too, through the same stream; GnuTLS's clients are in tests/system.

mod files;
mod handshake;
mod traffic;
mod world;

use std::cell::RefCell;
use std::sync::Arc;

use futures_util::future::join;
use openssl::ssl::{Ssl, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};

use self::world::{Certified, Wire, run, wires};
use super::{TlsFiles, TlsPolicy, TlsServer, TlsStream};
use crate::io::{IoError, Pool};

const ALICES_KEY: [u8; 32] = [0xa5; 32];

/// Certificates, keys, and the files they are in.
struct Pki {
    folder: tempfile::TempDir,
    ca: Certified,
}

impl Pki {
    fn new() -> Pki {
        let folder = tempfile::tempdir().unwrap();
        let ca = Certified::ca("the CA");
        ca.write(folder.path(), "ca");
        ca.sign("server", &["localhost"]).write(folder.path(), "server");
        let line = |name: &str, key: &[u8]| {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{name}:{hex}\n")
        };
        let text = line("alice", &ALICES_KEY) + &line("bob", &[7; 16]);
        std::fs::write(folder.path().join("keys.psk"), text).unwrap();
        Pki { folder, ca }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Files for a server with a certificate, a CA, keys, or several of them.
    fn files(&self, certificate: bool, ca: bool, psk: bool) -> TlsFiles {
        TlsFiles {
            certificate: certificate.then(|| self.path("server-cert.pem")),
            key: certificate.then(|| self.path("server-key.pem")),
            ca: ca.then(|| self.path("ca-cert.pem")),
            psk: psk.then(|| self.path("keys.psk")),
        }
    }

    fn server(&self, certificate: bool, ca: bool, psk: bool) -> Arc<TlsServer> {
        Arc::new(TlsServer::new(&self.files(certificate, ca, psk)).unwrap())
    }

    /// A client that trusts this CA, before its handshake; `change` may do more to it.
    fn client(&self, change: impl FnOnce(&mut SslContextBuilder)) -> Ssl {
        let mut builder = SslContextBuilder::new(SslMethod::tls_client()).unwrap();
        builder.cert_store_mut().add_cert(self.ca.certificate.clone()).unwrap();
        builder.set_verify(SslVerifyMode::PEER);
        change(&mut builder);
        let mut ssl = Ssl::new(&builder.build()).unwrap();
        ssl.set_connect_state();
        ssl
    }
}

/// A client that has a pre-shared key.
fn with_key(builder: &mut SslContextBuilder, name: &'static str, key: &'static [u8]) {
    // OpenSSL's own list leaves such ciphers out of TLS 1.2.
    builder.set_cipher_list("ECDHE-PSK-CHACHA20-POLY1305:ECDHE+AESGCM").unwrap();
    builder.set_psk_client_callback(move |_, _, identity, psk| {
        identity[..name.len()].copy_from_slice(name.as_bytes());
        identity[name.len()] = 0;
        psk[..key.len()].copy_from_slice(key);
        Ok(key.len())
    });
}

/// A client that has a certificate.
fn with_certificate(builder: &mut SslContextBuilder, own: &Certified) {
    builder.set_certificate(&own.certificate).unwrap();
    builder.set_private_key(&own.key).unwrap();
}

fn only(builder: &mut SslContextBuilder, version: SslVersion) {
    builder.set_min_proto_version(Some(version)).unwrap();
    builder.set_max_proto_version(Some(version)).unwrap();
}

/// A server's and a client's end, and the raw wires under them.
struct Ends {
    server: TlsStream<Wire>,
    client: TlsStream<Wire>,
    client_ssl: RefCell<Option<Ssl>>,
    under_client: Wire,
    pool: Pool,
}

impl Ends {
    fn new(server: Arc<TlsServer>, client: Ssl, piece: usize, capacity: usize) -> Ends {
        let (under_server, under_client) = wires(piece, capacity);
        let pool = Pool::new(8 << 20).unwrap();
        Ends {
            server: TlsStream::new(under_server, TlsPolicy::Require(server), pool.clone()),
            client: TlsStream::new(under_client.clone(), TlsPolicy::Off, pool.clone()),
            client_ssl: RefCell::new(Some(client)),
            under_client,
            pool,
        }
    }

    /// The handshake, as the server and as the client see it. The client hears of being refused only when it reads, as
    /// in TLS 1.3 it is done first.
    fn shake(&self) -> (Result<(), IoError>, Result<(), IoError>) {
        use crate::io::Stream;
        let client_ssl = self.client_ssl.borrow_mut().take().unwrap();
        let server = async {
            let shaken = self.server.start_tls().await;
            if shaken.is_err() {
                self.server.close().await;
            }
            shaken
        };
        run(join(server, self.client.make_secret(client_ssl)))
    }

    /// After a handshake that must have succeeded.
    fn connected(server: Arc<TlsServer>, client: Ssl, piece: usize, capacity: usize) -> Ends {
        let ends = Ends::new(server, client, piece, capacity);
        assert_eq!(ends.shake(), (Ok(()), Ok(())));
        ends
    }
}
