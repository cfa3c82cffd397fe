//! A small PKI made by GnuTLS's certtool, and keys made by its psktool, as an administrator would.

use std::fs;
use std::path::{Path, PathBuf};

use super::harness::{Home, run};

/// A folder of certificates and keys, named as libnbd and QEMU look for them.
pub struct Pki {
    folder: PathBuf,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Pki {
    /// A CA, a server `localhost`, a client `alice`, and the pre-shared keys of `alice` and `bob`.
    pub fn new(home: &Home, folder: &str) -> Pki {
        let pki = Pki { folder: home.path(folder) };
        fs::create_dir(&pki.folder).unwrap();
        pki.key("ca");
        let template = pki.template("ca", "cn=the CA\nca\ncert_signing_key\n");
        let (key, certificate) = (pki.path("ca-key.pem"), pki.path("ca-cert.pem"));
        let arguments = ["--generate-self-signed", "--load-privkey", &key, "--template", &template];
        run("certtool", &[&arguments[..], &["--outfile", &certificate]].concat()).ok();
        pki.certify("server", "cn=the server\ndns_name=localhost\ntls_www_server\n");
        pki.certify("client", "cn=alice\ndns_name=alice.example\ntls_www_client\n");
        for name in ["alice", "bob"] {
            run("psktool", &["--username", name, "--pskfile", &pki.path("keys.psk")]).ok();
        }
        pki
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        text(&self.folder.join(name)).to_owned()
    }

    /// The folder itself.
    pub fn folder(&self) -> &str {
        text(&self.folder)
    }

    /// Options of a server that has all of it.
    pub fn options(&self, mode: &str) -> Vec<String> {
        let mut options = vec!["--nbd-tls".to_owned(), mode.to_owned()];
        for (option, file) in [
            ("--tls-cert", "server-cert.pem"),
            ("--tls-key", "server-key.pem"),
            ("--tls-ca", "ca-cert.pem"),
            ("--tls-psk", "keys.psk"),
        ] {
            options.extend([option.to_owned(), self.path(file)]);
        }
        options
    }

    /// Makes a key and a certificate that this CA signs.
    pub fn certify(&self, name: &str, facts: &str) {
        self.key(name);
        let usage = "signing_key\nencryption_key\n";
        let template = self.template(name, &format!("{facts}{usage}"));
        let pem = |name: &str, what: &str| self.path(&format!("{name}-{what}.pem"));
        let (ca_key, ca_certificate) = (pem("ca", "key"), pem("ca", "cert"));
        let (key, certificate) = (pem(name, "key"), pem(name, "cert"));
        let ca = ["--load-ca-privkey", &ca_key, "--load-ca-certificate", &ca_certificate];
        let own = ["--load-privkey", &key, "--template", &template, "--outfile", &certificate];
        run("certtool", &[&["--generate-certificate"], &ca[..], &own[..]].concat()).ok();
    }

    fn key(&self, name: &str) {
        let outfile = self.path(&format!("{name}-key.pem"));
        // RSA: QEMU wants keys that may encrypt keys.
        let arguments = ["--generate-privkey", "--key-type", "rsa", "--bits", "2048", "--outfile", &outfile];
        run("certtool", &arguments).ok();
    }

    fn template(&self, name: &str, facts: &str) -> String {
        let path = self.path(&format!("{name}.info"));
        fs::write(&path, format!("{facts}expiration_days=2\n")).unwrap();
        path
    }

    /// A folder with this CA's certificate, and with a client's own where `with` is another PKI.
    pub fn client_folder(&self, home: &Home, name: &str, with: Option<&Pki>) -> PathBuf {
        let folder = home.path(name);
        fs::create_dir(&folder).unwrap();
        fs::copy(self.path("ca-cert.pem"), folder.join("ca-cert.pem")).unwrap();
        for file in ["client-cert.pem", "client-key.pem"] {
            if let Some(other) = with {
                fs::copy(other.path(file), folder.join(file)).unwrap();
            }
        }
        folder
    }
}
