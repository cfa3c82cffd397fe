//! Other people's clients over TLS, and who may use what: libnbd's tools and QEMU's, both of which use GnuTLS.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;

use super::disks::{Disks, MIB, hash_of, noise};
use super::harness::{Home, Raidd, Ran, need, run};
use super::pki::Pki;

const TOOLS: &[&str] = &["certtool", "psktool", "nbdinfo", "nbdcopy", "qemu-img"];

/// A daemon on a Unix and a TCP socket, with an array called `vol`.
struct World {
    home: Home,
    pki: Pki,
    raidd: Raidd,
    port: u16,
    _disks: Disks,
}

impl World {
    fn new(mode: &str) -> World {
        World::configured(mode, |_| String::new())
    }

    /// With more in the configuration file.
    fn configured(mode: &str, toml: impl FnOnce(&Home) -> String) -> World {
        let home = Home::new();
        let pki = Pki::new(&home, "pki");
        home.configure(&format!("assemble_wait = \"1s\"\n{}", toml(&home)));
        // Free a moment ago, which is as good as it gets.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut options = pki.options(mode);
        let unix = format!("unix:{}", home.path("nbd.sock").display());
        options.extend(["--nbd".to_owned(), unix, "--nbd".to_owned(), format!("tcp:127.0.0.1:{port}")]);
        let raidd = home.start_with(&options.iter().map(String::as_str).collect::<Vec<_>>());
        let disks = Disks::files(&home, "disk", 3, 24);
        home.ok(format!("create vol --level 5 {}", disks.all()));
        World { home, pki, raidd, port, _disks: disks }
    }

    fn socket(&self) -> String {
        self.home.path("nbd.sock").display().to_string()
    }

    fn psk_uri(&self, name: &str, export: &str) -> String {
        let keys = self.pki.path("keys.psk");
        format!("nbds+unix://{name}@/{export}?socket={}&tls-psk-file={keys}", self.socket())
    }

    /// For a client whose certificates are in this folder.
    fn certificate_uri(&self, folder: &str, export: &str) -> String {
        format!("nbds://localhost:{}/{export}?tls-certificates={folder}", self.port)
    }

    fn plain_uris(&self, export: &str) -> [String; 2] {
        [
            format!("nbd+unix:///{export}?socket={}", self.socket()),
            format!("nbd://127.0.0.1:{}/{export}", self.port),
        ]
    }

    fn qemu_info(&self, credentials: &str, more: &str) -> Ran {
        let image =
            format!("driver=nbd,server.type=unix,server.path={},export=vol,tls-creds=t{more}", self.socket());
        let object = format!("{credentials},id=t,endpoint=client");
        run("qemu-img", &["info", "--output=json", "--object", &object, "--image-opts", &image])
    }

    fn size(&self) -> String {
        self.home.status("vol").size_bytes.to_string()
    }
}

fn exports(ran: Ran) -> Vec<String> {
    let document: Value = serde_json::from_str(&ran.ok()).unwrap();
    let exports = document["exports"].as_array().unwrap();
    exports.iter().map(|export| export["export-name"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn refused(ran: Ran, words: &str) {
    assert!(ran.status != 0 && ran.stdout.is_empty(), "{ran:#?}");
    assert!(ran.stderr.contains(words), "{words:?} is not in {ran:#?}");
}

#[test]
fn pre_shared_keys() {
    if !need(TOOLS) {
        return;
    }
    let world = World::new("require");
    let uri = world.psk_uri("alice", "vol");
    assert_eq!(run("nbdinfo", &["--size", &uri]).ok().trim(), world.size());
    assert!(run("nbdinfo", &[&uri]).ok().contains("with TLS"));
    assert!(world.home.uri("vol").starts_with("nbds+unix:///vol?socket="));

    let (file, back) = (world.home.path("noise"), world.home.path("back"));
    fs::write(&file, noise(1, 48 * MIB as usize)).unwrap();
    let (file_text, back_text) = (file.to_str().unwrap(), back.to_str().unwrap());
    run("truncate", &["-s", &world.size(), file_text]).ok();
    run("nbdcopy", &["--flush", "--connections=4", "--requests=32", file_text, &uri]).ok();
    run("nbdcopy", &["--connections=4", &uri, back_text]).ok();
    assert_eq!(hash_of(&back), hash_of(&file));
    run("nbdcopy", &["--synchronous", &world.psk_uri("bob", "vol"), back_text]).ok();
    assert_eq!(hash_of(&back), hash_of(&file));

    for version in ["1.2", "1.3"] {
        let priority = format!("priority=NORMAL:-VERS-ALL:+VERS-TLS{version}");
        let credentials = format!("tls-creds-psk,dir={},username=alice,{priority}", world.pki.folder());
        let info: Value = serde_json::from_str(&world.qemu_info(&credentials, "").ok()).unwrap();
        assert_eq!(info["virtual-size"].to_string(), world.size());
    }
    let old = format!(
        "tls-creds-psk,dir={},username=alice,priority=NORMAL:-VERS-ALL:+VERS-TLS1.1",
        world.pki.folder()
    );
    refused(world.qemu_info(&old, ""), "");

    // Mallory's name is unknown, and her key for alice is another one.
    run("psktool", &["--username", "mallory", "--pskfile", &world.pki.path("forged.psk")]).ok();
    run("psktool", &["--username", "alice", "--pskfile", &world.pki.path("forged.psk")]).ok();
    for name in ["mallory", "alice"] {
        let forged = world.psk_uri(name, "vol").replace("keys.psk", "forged.psk");
        refused(run("nbdinfo", &["--size", &forged]), "tls");
    }
    world.raidd.terminate();
}

#[test]
fn certificates() {
    if !need(TOOLS) {
        return;
    }
    let world = World::new("require");
    let uri = world.certificate_uri(world.pki.folder(), "vol");
    assert_eq!(run("nbdinfo", &["--size", &uri]).ok().trim(), world.size());
    for version in ["1.2", "1.3"] {
        let priority = format!("priority=NORMAL:-VERS-ALL:+VERS-TLS{version}");
        let credentials = format!("tls-creds-x509,dir={},{priority}", world.pki.folder());
        let info = world.qemu_info(&credentials, ",tls-hostname=localhost").ok();
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"].to_string(), world.size());
        // It is the server whom the client asks for its name.
        refused(world.qemu_info(&credentials, ",tls-hostname=elsewhere"), "elsewhere");
    }

    // Without a certificate; with one of a CA of the same name; and a client that trusts that one.
    let other = Pki::new(&world.home, "other");
    for (name, trusts, has) in [("none", &world.pki, None), ("forged", &world.pki, Some(&other))] {
        let folder = trusts.client_folder(&world.home, name, has);
        let ran = run("nbdinfo", &["--size", &world.certificate_uri(folder.to_str().unwrap(), "vol")]);
        assert_ne!(ran.status, 0, "{name}: {ran:#?}");
    }
    refused(run("nbdinfo", &["--size", &world.certificate_uri(other.folder(), "vol")]), "tls");
    assert_eq!(run("nbdinfo", &["--size", &uri]).ok().trim(), world.size());
    world.raidd.terminate();
}

#[test]
fn in_the_clear() {
    if !need(TOOLS) {
        return;
    }
    let required = World::new("require");
    for uri in required.plain_uris("vol") {
        refused(run("nbdinfo", &["--size", &uri]), "requires TLS");
        refused(run("nbdinfo", &["--list", &uri.replace("/vol", "/")]), "error");
        refused(run("qemu-img", &["info", "-f", "raw", &uri]), "TLS");
    }
    required.raidd.terminate();

    let allowed = World::new("allow");
    for uri in allowed.plain_uris("vol") {
        assert_eq!(run("nbdinfo", &["--size", &uri]).ok().trim(), allowed.size());
        assert_eq!(exports(run("nbdinfo", &["--list", "--json", &uri.replace("/vol", "/")])), ["vol"]);
    }
    assert!(run("nbdinfo", &[&allowed.psk_uri("alice", "vol")]).ok().contains("with TLS"));
    assert!(allowed.home.uri("vol").starts_with("nbd+unix:///vol?socket="));
    allowed.raidd.terminate();
}

#[test]
fn rules_of_exports() {
    if !need(TOOLS) {
        return;
    }
    let rules = r#"
        [exports.vol]
        allow_identities = ["cert:alice.example", "psk:alice"]
        [exports.public]
        read_only = true
        [exports."*"]
        allow_addresses = ["unix"]
    "#;
    let world = World::configured("allow", |_| rules.to_owned());
    let more = Disks::files(&world.home, "more", 4, 24);
    world.home.ok(format!("create public --level 1 {}", more.some(&[0, 1])));
    world.home.ok(format!("create local --level 1 {}", more.some(&[2, 3])));

    let [unix, tcp] = world.plain_uris("");
    let folder = world.pki.folder();
    for (uri, visible) in [
        (unix, &["local", "public"][..]),
        (tcp, &["public"]),
        (world.psk_uri("alice", ""), &["local", "public", "vol"]),
        (world.psk_uri("bob", ""), &["local", "public"]),
        (world.certificate_uri(folder, ""), &["public", "vol"]),
    ] {
        let mut names = exports(run("nbdinfo", &["--list", "--json", &uri]));
        names.sort();
        assert_eq!(names, visible, "{uri}");
        for name in ["local", "public", "vol"] {
            let (head, query) = uri.split_once('?').unwrap_or((&uri, ""));
            let uri = format!("{head}{name}?{query}");
            if visible.contains(&name) {
                let document: Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri]).ok()).unwrap();
                assert_eq!(document["exports"][0]["is_read_only"], name == "public");
            } else {
                refused(run("nbdinfo", &["--size", &uri]), "No such file or directory");
            }
        }
    }
    // The only one that a client knows of needs no name.
    let [_, tcp] = world.plain_uris("");
    run("nbdinfo", &["--size", &tcp]).ok();

    let file = world.home.path("noise");
    fs::write(&file, noise(1, MIB as usize)).unwrap();
    let [public, _] = world.plain_uris("public");
    refused(run("nbdcopy", &[file.to_str().unwrap(), &public]), "read");
    world.raidd.terminate();
}

#[test]
fn the_list_can_be_kept_to_oneself() {
    if !need(TOOLS) {
        return;
    }
    let world = World::configured("allow", |_| "nbd_list = false\n".to_owned());
    for uri in world.plain_uris("vol") {
        refused(run("nbdinfo", &["--list", &uri.replace("/vol", "/")]), "error");
        assert_eq!(run("nbdinfo", &["--size", &uri]).ok().trim(), world.size());
    }
    world.raidd.terminate();
}

#[test]
fn listeners_of_their_own() {
    // Only root may give a socket to any group.
    if !need(TOOLS) || !need(&["root"]) {
        return;
    }
    let home = Home::new();
    let pki = Pki::new(&home, "pki");
    let socket = |name: &str| home.path(name).display().to_string();
    home.configure(&format!(
        r#"
        nbd = [
            {{ address = "unix:{}", tls = "require", mode = "0660", group = "7" }},
            "unix:{}",
        ]
        tls_psk = "{}"
        nbd_socket_mode = "0640"
        "#,
        socket("secret.sock"),
        socket("nbd.sock"),
        pki.path("keys.psk"),
    ));
    let raidd = home.start();
    let disks = Disks::files(&home, "disk", 2, 24);
    home.ok(format!("create vol --level 1 {}", disks.all()));
    let found = fs::metadata(socket("secret.sock")).unwrap();
    assert_eq!((found.permissions().mode() & 0o777, found.gid()), (0o660, 7));
    let found = fs::metadata(socket("nbd.sock")).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o640);
    let secret = format!("nbd+unix:///vol?socket={}", socket("secret.sock"));
    refused(run("nbdinfo", &["--size", &secret]), "requires TLS");
    run("nbdinfo", &["--size", &format!("nbd+unix:///vol?socket={}", socket("nbd.sock"))]).ok();
    assert!(home.uri("vol").starts_with("nbds+unix:"));
    raidd.terminate();
}

#[test]
fn what_cannot_be_is_said_at_start() {
    if !need(TOOLS) {
        return;
    }
    let home = Home::new();
    let pki = Pki::new(&home, "pki");
    let (control, state) = (home.path("control.sock"), home.path("state"));
    let complaint = |options: &[&str]| {
        let mut arguments =
            vec!["--control", control.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
        arguments.extend(options);
        home.bare_raidd(&arguments).complaint(1)
    };
    let file = |name: &str| pki.path(name);
    let (certificate, key) = (file("server-cert.pem"), file("client-key.pem"));
    for (options, fragment) in [
        (&["--nbd-tls", "require"][..], "neither certificate nor keys"),
        (&["--nbd-tls", "allow", "--tls-psk", "/does/not/exist"], "cannot read --tls-psk /does/not/exist"),
        (&["--nbd-tls", "allow", "--tls-psk", &key], "line 1: "),
        (&["--nbd-tls", "allow", "--tls-cert", &certificate], "--tls-key"),
        (&["--nbd-tls", "allow", "--tls-cert", &certificate, "--tls-key", &key], "is not the key of"),
        (&["--tls-cert", &certificate], "TLS is off"),
        (&["--nbd-socket-group", "no-such-group"], "no group \"no-such-group\""),
        (&["--nbd-socket-mode", "rw"], "octal"),
    ] {
        let text = complaint(options);
        assert!(text.starts_with("raidd: ") && text.contains(fragment), "{options:?}: {text}");
    }
}
