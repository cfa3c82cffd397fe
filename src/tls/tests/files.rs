//! Files that cannot be used: each is an error of one line that says what to do.

use super::*;

#[track_caller]
fn complaint(files: TlsFiles) -> String {
    let Err(error) = TlsServer::new(&files) else { panic!("{files:?} is taken") };
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains(": "), "{text:?}");
    text
}

#[test]
fn what_does_not_suffice() {
    let pki = Pki::new();
    let whole = pki.files(true, true, true);
    for (files, fragment) in [
        (TlsFiles::default(), "neither certificate nor keys"),
        (TlsFiles { key: None, ..whole.clone() }, "--tls-key, too"),
        (TlsFiles { certificate: None, ..whole.clone() }, "--tls-cert, too"),
        (TlsFiles { certificate: None, key: None, ..whole.clone() }, "--tls-ca is for certificates"),
    ] {
        let text = complaint(files);
        assert!(text.contains(fragment), "{text}");
    }
}

#[test]
fn what_cannot_be_read() {
    let pki = Pki::new();
    let whole = pki.files(true, true, true);
    let missing = Some(pki.path("missing"));
    let empty = Some(pki.path("empty"));
    std::fs::write(pki.path("empty"), "").unwrap();
    pki.ca.sign("other", &[]).write(pki.folder.path(), "other");
    let locked = pki.ca.key.private_key_to_pem_pkcs8_passphrase(
        openssl::symm::Cipher::aes_128_cbc(),
        b"a password that nobody is asked for",
    );
    std::fs::write(pki.path("locked"), locked.unwrap()).unwrap();
    std::fs::write(pki.path("bad.psk"), "alice:00\n").unwrap();
    std::fs::write(pki.path("binary.psk"), [0xff, 0xfe]).unwrap();
    for (files, fragment) in [
        (TlsFiles { certificate: missing.clone(), ..whole.clone() }, "cannot read --tls-cert"),
        (TlsFiles { key: missing.clone(), ..whole.clone() }, "cannot read --tls-key"),
        (TlsFiles { ca: missing.clone(), ..whole.clone() }, "cannot read --tls-ca"),
        (TlsFiles { psk: missing, ..whole.clone() }, "cannot read --tls-psk"),
        (TlsFiles { certificate: empty.clone(), ..whole.clone() }, "no PEM certificate"),
        (TlsFiles { key: empty.clone(), ..whole.clone() }, "no PEM key"),
        (TlsFiles { ca: empty.clone(), ..whole.clone() }, "no PEM certificate"),
        (TlsFiles { psk: empty, ..whole.clone() }, "line 1: there is no key"),
        (TlsFiles { key: Some(pki.path("locked")), ..whole.clone() }, "without a password"),
        (TlsFiles { key: Some(pki.path("other-key.pem")), ..whole.clone() }, "is not the key of"),
        (TlsFiles { psk: Some(pki.path("bad.psk")), ..whole.clone() }, "line 1: the key of \"alice\" has 1 "),
        (TlsFiles { psk: Some(pki.path("binary.psk")), ..whole }, "is no text"),
    ] {
        let text = complaint(files);
        assert!(text.contains(fragment), "{text}");
    }
}
