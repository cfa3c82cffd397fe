//! The server's side of TLS: its certificate, the CA of its clients, the pre-shared keys; read once, at start.
//!
//! What is configured decides what clients have to show:
//! - a certificate alone: nothing; they know the server, it does not know them;
//! - a certificate and a CA: a certificate of that CA, with its key;
//! - pre-shared keys alone: one of them;
//! - certificate, CA and keys: either a certificate of the CA or a key; without a CA whoever has neither is let in, too.
//!
//! Invariants:
//! - TLS 1.2 or newer, only with ciphers that authenticate what they encrypt and keep the past secret when a key is lost
//!   later (ephemeral keys).
//! - A file that cannot be used is an error at start, in one line with what to do about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::keys::PreSharedKeys;

/// TLS 1.2, with and without certificates. Of the key exchanges with pre-shared keys only the ephemeral one with elliptic
/// curves: OpenSSL has it with one authenticating cipher.
const CIPHERS_TLS12: &str = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE-PSK-CHACHA20-POLY1305:!aNULL";
/// TLS 1.3 where there are pre-shared keys. Such a key is bound to a hash, which is SHA-256 where nobody says otherwise; a
/// cipher with another would leave the key unused. Every TLS 1.3 client has this one.
const CIPHERSUITES_PSK: &str = "TLS_AES_128_GCM_SHA256";
/// With client certificates OpenSSL wants a name for whom sessions belong to, though none is ever resumed.
const SESSION_CONTEXT: &[u8] = b"raidd";

/// What a PSK client said its name was, noted by the callback that looks for its key.
static CLAIMED_NAME: LazyLock<Index<Ssl, String>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("OpenSSL has room for another index"));

/// What is wrong with TLS's files and what to do, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

fn fail<T>(line: impl Into<String>) -> Result<T, TlsError> {
    Err(TlsError(line.into()))
}

/// What a server proves itself and its clients with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and behind it those between it and its CA; PEM.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key; PEM, not encrypted.
    pub key: Option<PathBuf>,
    /// The CAs that sign clients' certificates; PEM.
    pub ca: Option<PathBuf>,
    /// Pre-shared keys, as psktool writes them.
    pub psk: Option<PathBuf>,
}

/// TLS as this server speaks it. Shared by all connections.
pub struct TlsServer(SslContext);

impl TlsServer {
    /// Reads the files. Warns where others may read what is secret.
    ///
    /// # Errors
    /// The files do not suffice for any client, or one of them cannot be used.
    pub fn new(files: &TlsFiles) -> Result<TlsServer, TlsError> {
        if files.certificate.is_none() && files.psk.is_none() {
            return fail("TLS has neither certificate nor keys: give --tls-cert and --tls-key, or --tls-psk");
        }
        let mut builder = base().map_err(|error| openssl_failed(&error))?;
        match (&files.certificate, &files.key) {
            (Some(certificate), Some(key)) => add_certificate(&mut builder, certificate, key)?,
            (Some(_), None) => return fail("--tls-cert is there without its key: give --tls-key, too"),
            (None, Some(_)) => {
                return fail("--tls-key is there without its certificate: give --tls-cert, too");
            }
            (None, None) => (),
        }
        match &files.ca {
            Some(_) if files.certificate.is_none() => {
                return fail(
                    "--tls-ca is for certificates, and the server has none: give --tls-cert and --tls-key",
                );
            }
            Some(ca) => add_ca(&mut builder, ca)?,
            None => builder.set_verify(SslVerifyMode::NONE),
        }
        if let Some(psk) = &files.psk {
            add_keys(&mut builder, psk)?;
        }
        Ok(TlsServer(builder.build()))
    }

    /// One connection's TLS, before its handshake.
    pub(super) fn accept(&self) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.0)?;
        ssl.set_accept_state();
        Ok(ssl)
    }
}

/// The name that the peer gave for its pre-shared key. It means nothing unless that key was used in the end.
pub(super) fn claimed_name(ssl: &SslRef) -> Option<&str> {
    ssl.ex_data(*CLAIMED_NAME).map(String::as_str)
}

fn openssl_failed(error: &ErrorStack) -> TlsError {
    TlsError(format!("OpenSSL cannot be set up: {}: look at the system's openssl.cnf", first_reason(error)))
}

/// What OpenSSL says, without its file names and numbers.
fn first_reason(error: &ErrorStack) -> &'static str {
    error.errors().first().and_then(|error| error.reason()).unwrap_or("no reason given")
}

fn base() -> Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContextBuilder::new(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_cipher_list(CIPHERS_TLS12)?;
    builder.set_options(
        SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_TICKET
            | SslOptions::NO_COMPRESSION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_num_tickets(0)?;
    builder.set_session_id_context(SESSION_CONTEXT)?;
    // A record that was written is progress; buffers may move between attempts, and are given back while idle.
    builder.set_mode(
        SslMode::ENABLE_PARTIAL_WRITE
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::AUTO_RETRY
            | SslMode::RELEASE_BUFFERS,
    );
    Ok(builder)
}

fn read(path: &Path, option: &str) -> Result<Vec<u8>, TlsError> {
    fs::read(path).or_else(|error| {
        fail(format!("cannot read {option} {}: {error}: correct the path or its mode", path.display()))
    })
}

/// Reads a file that nobody else should.
fn read_secret(path: &Path, option: &str) -> Result<Vec<u8>, TlsError> {
    let bytes = read(path, option)?;
    let others = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o007 != 0);
    if others {
        tracing::warn!(path = %path.display(), "everybody may read the secrets of {option}: chmod it to 0600");
    }
    Ok(bytes)
}

fn certificates(path: &Path, option: &str) -> Result<Vec<X509>, TlsError> {
    let found = X509::stack_from_pem(&read(path, option)?).or_else(|error| {
        let reason = first_reason(&error);
        fail(format!("{option} {} holds no PEM certificates: {reason}: correct it", path.display()))
    })?;
    match found.is_empty() {
        true => fail(format!("{option} {} holds no PEM certificate: correct it", path.display())),
        false => Ok(found),
    }
}

fn add_certificate(builder: &mut SslContextBuilder, certificate: &Path, key: &Path) -> Result<(), TlsError> {
    let mut chain = certificates(certificate, "--tls-cert")?.into_iter();
    let own = chain.next().expect("at least one was found");
    let refused = |error: ErrorStack| {
        let reason = first_reason(&error);
        TlsError(format!("--tls-cert {} cannot be used: {reason}: get another", certificate.display()))
    };
    builder.set_certificate(&own).map_err(refused)?;
    for between in chain {
        builder.add_extra_chain_cert(between).map_err(refused)?;
    }
    let private = private_key(key)?;
    if !own.public_key().is_ok_and(|public| public.public_eq(&private)) {
        return fail(format!(
            "--tls-key {} is not the key of --tls-cert {}: give the one it was made with",
            key.display(),
            certificate.display()
        ));
    }
    builder.set_private_key(&private).map_err(refused)
}

fn private_key(path: &Path) -> Result<PKey<Private>, TlsError> {
    // Without a password of ours OpenSSL would ask for one on the terminal.
    let no_password = |_: &mut [u8]| Ok(0);
    PKey::private_key_from_pem_callback(&read_secret(path, "--tls-key")?, no_password).or_else(|error| {
        let reason = first_reason(&error);
        fail(format!(
            "--tls-key {} holds no PEM key without a password: {reason}: correct it",
            path.display()
        ))
    })
}

/// Wants a certificate of one of these CAs from each client.
fn add_ca(builder: &mut SslContextBuilder, path: &Path) -> Result<(), TlsError> {
    let refused = |error: ErrorStack| {
        let reason = first_reason(&error);
        TlsError(format!("--tls-ca {} cannot be used: {reason}: correct it", path.display()))
    };
    let mut store = X509StoreBuilder::new().map_err(refused)?;
    for ca in certificates(path, "--tls-ca")? {
        builder.add_client_ca(&ca).map_err(refused)?;
        store.add_cert(ca).map_err(refused)?;
    }
    builder.set_verify_cert_store(store.build()).map_err(refused)?;
    builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    Ok(())
}

/// Lets in who has one of these keys.
fn add_keys(builder: &mut SslContextBuilder, path: &Path) -> Result<(), TlsError> {
    let text = String::from_utf8(read_secret(path, "--tls-psk")?);
    let keys = match text.as_deref().map(PreSharedKeys::parse) {
        Ok(Ok(keys)) => Arc::new(keys),
        Ok(Err((line, what))) => {
            return fail(format!("--tls-psk {}, line {line}: {what}", path.display()));
        }
        Err(_) => {
            return fail(format!("--tls-psk {} is no text: make it with psktool", path.display()));
        }
    };
    builder.set_ciphersuites(CIPHERSUITES_PSK).map_err(|error| openssl_failed(&error))?;
    builder.set_psk_server_callback(move |ssl, name, key| {
        let known = name.and_then(|name| std::str::from_utf8(name).ok());
        let Some((name, found)) = known.and_then(|name| Some((name, keys.get(name)?))) else {
            return Ok(0); // which says that there is none
        };
        ssl.set_ex_data(*CLAIMED_NAME, name.to_owned());
        key[..found.len()].copy_from_slice(found);
        Ok(found.len())
    });
    Ok(())
}
