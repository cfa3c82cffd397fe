//! What options, environment and file come to, and how what is wrong with them is said.

use super::*;

/// A socket of which nothing else is said.
fn plain(address: &str) -> NbdListener {
    let address = address.parse().unwrap();
    NbdListener { address, tls: TlsMode::Off, mode: SocketMode::DEFAULT, group: None }
}

fn everybody() -> AccessRules {
    AccessRules { may_list: true, exports: BTreeMap::new() }
}

fn root() -> Environment {
    Environment { is_root: true, cores: 16, ..Environment::default() }
}

fn user() -> Environment {
    Environment {
        cores: 2,
        runtime_dir: Some("/run/user/7".into()),
        home: Some("/home/u".into()),
        ..Environment::default()
    }
}

fn read_with(arguments: &[&str], environment: &Environment) -> Result<Request, ConfigError> {
    read(std::iter::once("raidd").chain(arguments.iter().copied()).map(OsString::from), environment)
}

fn config(arguments: &[&str], environment: &Environment) -> Config {
    match read_with(arguments, environment) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

fn error(arguments: &[&str], environment: &Environment) -> String {
    let text = read_with(arguments, environment).unwrap_err().to_string();
    assert!(!text.contains('\n') && !text.is_empty(), "{text:?}");
    text
}

fn with_file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raidd.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn roots_defaults() {
    assert_eq!(
        config(&[], &root()),
        Config {
            control: "/run/raidd/control.sock".into(),
            control_group: None,
            control_read_group: None,
            nbd: vec![plain("unix:/run/raidd/nbd.sock")],
            tls: None,
            access: everybody(),
            metrics: None,
            state_dir: "/var/lib/raidd".into(),
            mdadm_conf: None,
            reactors: 4,
            memory_bytes: 256 << 20,
            assemble_wait: Duration::from_secs(30),
            enable_fault_injection: false,
            log_filter: "info".to_owned(),
        }
    );
}

#[test]
fn mdadm_is_told_by_the_machines_own_raidd_alone() {
    let with_mdadm =
        |environment: Environment| Environment { mdadm_folder: Some("/etc/mdadm".into()), ..environment };
    let file = |arguments: &[&str], environment| config(arguments, &with_mdadm(environment)).mdadm_conf;
    let usual = Some(PathBuf::from("/etc/mdadm/mdadm.conf.d/raidd.conf"));
    assert_eq!(file(&[], root()), usual);
    assert_eq!(file(&["--state-dir", "/var/lib/raidd"], root()), usual);
    assert_eq!(file(&["--state-dir", "/other"], root()), None);
    assert_eq!(file(&[], user()), None);
    assert_eq!(file(&["--mdadm-conf", "none"], root()), None);
    assert_eq!(file(&["--mdadm-conf", "/m/x.conf"], user()), Some("/m/x.conf".into()));
    let (_folder, path) = with_file("mdadm_conf = \"/f/raidd.conf\"\n");
    assert_eq!(file(&["--config", &path], user()), Some("/f/raidd.conf".into()));
    assert_eq!(config(&[], &root()).mdadm_conf, None, "there is no mdadm");
}

#[test]
fn a_users_defaults() {
    let found = config(&[], &user());
    assert_eq!(found.control, Path::new("/run/user/7/raidd/control.sock"));
    assert_eq!(found.nbd, [plain("unix:/run/user/7/raidd/nbd.sock")]);
    assert_eq!(found.state_dir, Path::new("/home/u/.local/state/raidd"));
    assert_eq!(found.reactors, 2);
    let elsewhere = Environment { state_home: Some("/s".into()), ..user() };
    assert_eq!(config(&[], &elsewhere).state_dir, Path::new("/s/raidd"));
    let nowhere = Environment { runtime_dir: None, ..user() };
    assert!(error(&[], &nowhere).contains("--control"));
    assert_eq!(config(&["--control", "/c/x"], &nowhere).nbd, [plain("unix:/c/nbd.sock")]);
    let homeless = Environment { home: None, ..user() };
    assert!(error(&[], &homeless).contains("--state-dir"));
}

#[test]
fn options_win_over_environment_over_file() {
    let (_folder, path) = with_file(
        r#"
        control = "/f/control.sock"
        nbd = ["tcp:[::1]:10809"]
        state_dir = "/f/state"
        reactors = 3
        memory = "64M"
        assemble_wait = "500ms"
        enable_fault_injection = true
        log = "warn"
        "#,
    );
    let from_file = config(&["--config", &path], &root());
    assert_eq!(
        from_file,
        Config {
            control: "/f/control.sock".into(),
            control_group: None,
            control_read_group: None,
            nbd: vec![plain("tcp:[::1]:10809")],
            tls: None,
            access: everybody(),
            metrics: None,
            state_dir: "/f/state".into(),
            mdadm_conf: None,
            reactors: 3,
            memory_bytes: 64 << 20,
            assemble_wait: Duration::from_millis(500),
            enable_fault_injection: true,
            log_filter: "warn".to_owned(),
        }
    );
    let environment = Environment {
        control: Some("/e/control.sock".into()),
        rust_log: Some("raidd=debug".to_owned()),
        config_file: Some(path.clone().into()),
        ..root()
    };
    let found = config(&[], &environment);
    assert_eq!((found.control, found.log_filter), ("/e/control.sock".into(), "raidd=debug".to_owned()));
    let options = [
        "--control",
        "/o/control.sock",
        "--nbd",
        "unix:/o/nbd",
        "--nbd",
        "tcp:localhost:1",
        "--state-dir",
        "/o/state",
        "--reactors",
        "1",
        "--memory",
        "1G",
        "-v",
    ];
    let found = config(&options, &environment);
    assert_eq!(
        found,
        Config {
            control: "/o/control.sock".into(),
            control_group: None,
            control_read_group: None,
            nbd: vec![plain("unix:/o/nbd"), plain("tcp:localhost:1")],
            tls: None,
            access: everybody(),
            metrics: None,
            state_dir: "/o/state".into(),
            mdadm_conf: None,
            reactors: 1,
            memory_bytes: 1 << 30,
            assemble_wait: Duration::from_millis(500),
            enable_fault_injection: true,
            log_filter: "debug".to_owned(),
        }
    );
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    for (arguments, fragment) in [
        (&["--memory", "16M"][..], "32M at least"),
        (&["--memory", "lots"], "write it like 512K"),
        (&["--reactors", "0"], "1 to 64"),
        (&["--reactors", "65"], "1 to 64"),
        (&["--nbd", "udp:1"], "write unix:PATH or tcp:HOST:PORT"),
        (&["--nbd", "tcp:::1:10809"], "IPv6"),
        (&["--nbd", "tcp:h:0"], "port"),
        (&["--nbd", "unix:"], "names no socket"),
        (&["--nbd", "unix:/a", "--nbd", "unix:/a"], "twice"),
        (&["--control", "/c", "--nbd", "unix:/c"], "at once"),
        (&["--control"], "a value is required"),
        (&["--nonsense"], "--nonsense"),
        (&["-v", "-q"], "cannot be used with"),
        (&["--nbd-tls", "yes"], "invalid value 'yes'"),
        (&["--nbd-list", "no"], "invalid value 'no'"),
        (&["--nbd-socket-mode", "0888"], "octal"),
        (&["--nbd-socket-mode", "+660"], "octal"),
        (&["--nbd-socket-mode", "01777"], "octal"),
        (&["--tls-psk", "/keys"], "TLS is off"),
        (&["--config", "/does/not/exist"], "there is no config file"),
        (&["--config", "/"], "cannot read"),
    ] {
        let text = error(arguments, &root());
        assert!(text.contains(fragment), "{arguments:?}: {text}");
    }
    let bad = Environment { rust_log: Some("a=b=c".to_owned()), ..root() };
    assert!(error(&[], &bad).contains("log filter"));
}

#[test]
fn a_bad_file_is_named_with_its_line() {
    for (text, line, fragment) in [
        ("reactors = 1\nmetrics = \"x\"\n", 2, "metrics address \"x\""),
        ("reactors = 1\nmetric = \"x\"\n", 2, "unknown field `metric`"),
        ("\n\nmemory = \"many\"\n", 3, "size \"many\""),
        ("memory = true\n", 1, "neither a number nor a text"),
        ("assemble_wait = \"soon\"\n", 1, "time \"soon\""),
        ("nbd = [\"unix:/a\",\n \"nbd://\"]\n", 2, "NBD address"),
        ("nbd = [{ address = \"nbd://\" }]\n", 1, "NBD address"),
        ("nbd = [7]\n", 1, "an NBD address, or a table"),
        ("nbd = [{ tls = \"allow\" }]\n", 1, "missing field `address`"),
        ("nbd = [{ address = \"unix:/a\", tsl = \"off\" }]\n", 1, "unknown field `tsl`"),
        ("nbd = [{ address = \"unix:/a\", mode = \"rw\" }]\n", 1, "socket mode"),
        ("\nnbd_tls = \"on\"\n", 2, "unknown variant `on`"),
        ("[exports.vol0]\nallow_addresses = [\"everywhere\"]\n", 2, "address \"everywhere\""),
        ("[exports.vol0]\nallow_identities = [\"alice\"]\n", 2, "identity \"alice\""),
        ("[exports.vol0]\nallow = []\n", 2, "unknown field `allow`"),
        ("control\n", 1, "config file"),
    ] {
        let (_folder, path) = with_file(text);
        let found = error(&["--config", &path], &root());
        assert!(found.contains(&format!("line {line}:")) && found.contains(fragment), "{text:?}: {found}");
    }
    let (_folder, path) = with_file("memory = 33554432\nassemble_wait = 0\n");
    let found = config(&["--config", &path], &root());
    assert_eq!((found.memory_bytes, found.assemble_wait), (32 << 20, Duration::ZERO));
}

#[test]
fn help_shows_an_example_and_nothing_that_is_not_there() {
    let Ok(Request::Print(help)) = read_with(&["--help"], &root()) else { panic!() };
    assert!(help.contains("Example:\n  raidd --control "), "{help}");
    let Ok(Request::Print(version)) = read_with(&["--version"], &root()) else { panic!() };
    assert_eq!(version, format!("raidd {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn metrics_are_read_where_they_are_told() {
    assert_eq!(config(&[], &root()).metrics, None);
    for address in ["127.0.0.1:9273", "[::1]:9273", "localhost:1"] {
        assert_eq!(config(&["--metrics", address], &root()).metrics.unwrap().to_string(), address);
    }
    let (_folder, path) = with_file("metrics = \"10.0.0.1:80\"\n");
    assert_eq!(config(&["--config", &path], &root()).metrics.unwrap().to_string(), "10.0.0.1:80");
    assert_eq!(config(&["--config", &path, "--metrics", "h:1"], &root()).metrics.unwrap().to_string(), "h:1");
    for address in ["9273", ":9273", "host:0", "host:99999", "::1:9273", "[::1:9273"] {
        assert!(error(&["--metrics", address], &root()).contains("metrics address"), "{address}");
    }
}

#[test]
fn log_levels() {
    for (flags, filter) in
        [(&["-v"][..], "debug"), (&["-vv"], "trace"), (&["-q"], "warn"), (&["-qq"], "error")]
    {
        assert_eq!(config(flags, &root()).log_filter, filter);
    }
}

#[test]
fn addresses_make_uris() {
    for (address, uri) in [
        ("unix:/run/raidd/nbd.sock", "nbd+unix:///vol0?socket=/run/raidd/nbd.sock"),
        ("unix:/a b/ü", "nbd+unix:///vol0?socket=/a%20b/%C3%BC"),
        ("tcp:10.0.0.1:10809", "nbd://10.0.0.1/vol0"),
        ("tcp:host:4000", "nbd://host:4000/vol0"),
        ("tcp:[fe80::1]:4000", "nbd://[fe80::1]:4000/vol0"),
        ("tcp:0.0.0.0:4000", "nbd://localhost:4000/vol0"),
    ] {
        let parsed: NbdAddress = address.parse().unwrap();
        assert_eq!(parsed.uri("vol0", false), uri);
        assert_eq!(parsed.uri("vol0", true), uri.replacen("nbd", "nbds", 1));
        assert_eq!(parsed.to_string(), address);
    }
    assert_eq!(
        NbdAddress::Unix("/s".into()).uri("größe/%", false),
        "nbd+unix:///gr%C3%B6%C3%9Fe%2F%25?socket=/s"
    );
}

#[test]
fn sockets_have_defaults_and_exceptions() {
    let (_folder, path) = with_file(
        r#"
        nbd = [
            "unix:/s/plain",
            { address = "unix:/s/mine", tls = "off", mode = "0600", group = "7" },
            { address = "tcp:0.0.0.0:10809", tls = "require" },
        ]
        nbd_tls = "allow"
        nbd_socket_mode = "0660"
        nbd_socket_group = "disk"
        nbd_list = false
        tls_cert = "/t/cert.pem"
        tls_key = "/t/key.pem"
        tls_ca = "/t/ca.pem"
        tls_psk = "/t/keys.psk"
        [exports.vol0]
        read_only = true
        [exports."*"]
        allow_addresses = ["unix", "10.0.0.0/8"]
        allow_identities = ["cert:alice", "psk:bob"]
        "#,
    );
    let found = config(&["--config", &path], &root());
    let group = Some("disk".to_owned());
    let open = NbdListener { tls: TlsMode::Allow, mode: SocketMode(0o660), group, ..plain("unix:/s/plain") };
    assert_eq!(
        found.nbd,
        [
            open.clone(),
            NbdListener { group: Some("7".to_owned()), ..plain("unix:/s/mine") },
            NbdListener { address: "tcp:0.0.0.0:10809".parse().unwrap(), tls: TlsMode::Require, ..open },
        ]
    );
    assert_eq!(found.nbd[2].uri("vol0"), "nbds://localhost/vol0");
    assert_eq!(found.nbd[2].to_string(), "tcp:0.0.0.0:10809 (TLS required)");
    let file = |name: &str| Some(PathBuf::from(format!("/t/{name}")));
    let (certificate, key, ca, psk) = (file("cert.pem"), file("key.pem"), file("ca.pem"), file("keys.psk"));
    assert_eq!(found.tls, Some(TlsFiles { certificate, key, ca, psk }));
    assert!(!found.access.may_list && found.access.exports.len() == 2);
    assert!(found.access.exports["vol0"].read_only && !found.access.exports["*"].read_only);

    let options = ["--config", &path, "--nbd", "unix:/o", "--nbd-tls", "require", "--nbd-list", "on"];
    let found = config(&options, &root());
    let open = NbdListener {
        tls: TlsMode::Require,
        mode: SocketMode(0o660),
        group: Some("disk".to_owned()),
        ..plain("unix:/o")
    };
    assert_eq!(found.nbd, [open]);
    assert!(found.access.may_list);
}

#[test]
fn what_does_not_go_together_is_said() {
    for (text, fragment) in [
        ("nbd = [{ address = \"tcp:h:1\", mode = \"0660\" }]", "is no file"),
        ("nbd = [\"unix:/a\", { address = \"unix:/a\", tls = \"allow\" }]", "twice"),
        ("tls_cert = \"/t/cert.pem\"", "TLS is off"),
        ("[exports.vol0]\nallow_identities = [\"psk:bob\"]", "--tls-psk"),
        ("nbd_tls = \"require\"\n[exports.vol0]\nallow_identities = [\"cert:bob\"]", "--tls-ca"),
    ] {
        let (_folder, path) = with_file(text);
        let found = error(&["--config", &path], &root());
        assert!(found.contains(fragment), "{text}: {found}");
    }
}

#[test]
fn groups_are_let_in_where_they_are_named() {
    let groups = |arguments: &[&str]| {
        let config = config(arguments, &root());
        (config.control_group, config.control_read_group)
    };
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(groups(&[]), (None, None));
    assert_eq!(
        groups(&["--control-group", "disk", "--control-read-group", "adm"]),
        (some("disk"), some("adm"))
    );
    let (_folder, path) = with_file("control_group = \"disk\"\ncontrol_read_group = \"adm\"\n");
    assert_eq!(groups(&["--config", &path, "--control-group", "root"]), (some("root"), some("adm")));
}

/// contrib/raidd.toml, which packages install. Keys that are commented out have no blank before them.
const EXAMPLE_FILE: &str = include_str!("../../../contrib/raidd.toml");

#[test]
fn the_example_file_changes_nothing_and_shows_every_key() {
    let shipped: ConfigFile = toml::from_str(EXAMPLE_FILE).unwrap();
    let with = resolve(Options::default(), shipped, &root()).unwrap();
    assert_eq!(with, resolve(Options::default(), ConfigFile::default(), &root()).unwrap());

    let is_key = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let lines = EXAMPLE_FILE.lines().map(|line| line.strip_prefix('#').filter(|rest| is_key(rest)));
    let shown: Vec<_> = lines.flatten().collect();
    toml::from_str::<ConfigFile>(&shown.join("\n")).unwrap();
    // What else could be there, serde says itself.
    let refused = toml::from_str::<ConfigFile>("no_such_key = 1").unwrap_err().message().to_owned();
    let known: Vec<_> = refused.split('`').skip(3).step_by(2).collect();
    assert!(known.len() > 20, "{refused}");
    for key in known {
        let is_shown = shown
            .iter()
            .any(|line| line.starts_with(&format!("{key} =")) || line.starts_with(&format!("[{key}.")));
        assert!(is_shown, "contrib/raidd.toml does not show {key}");
    }
}
