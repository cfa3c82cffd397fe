//! The control interface is what its document says: schemathesis asks a running raidd what the document allows, and much that it does
//! not, and holds every answer against it.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use super::disks::Disks;
use super::harness::{Companion, Home, free_port, need, run};
use super::mounted::comes_true;

/// Of each answer: no server error, and nothing that is not in the document.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      negative_data_rejection,unsupported_method";

#[test]
fn no_answer_is_undocumented() {
    // `scripts/test` puts it there.
    let schemathesis = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/schemathesis");
    let schemathesis = schemathesis.to_str().unwrap();
    if !need(&[schemathesis, "socat"]) {
        return;
    }
    let home = Home::new();
    let raidd = home.start_with(&["--enable-fault-injection"]);
    home.ok(format!("create vol0 --level 5 {}", Disks::files(&home, "disk", 3, 32).all()));
    // It speaks TCP, raidd does not.
    let port = free_port();
    let mut socat = Command::new("socat");
    socat.arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"));
    socat.arg(format!("UNIX-CONNECT:{}", home.path("control.sock").display()));
    let _socat = Companion::start(&mut socat);
    assert!(comes_true(|| TcpStream::connect(("127.0.0.1", port)).is_ok()));

    let document = format!("http://127.0.0.1:{port}/v1/openapi.json");
    let config = home.path("schemathesis.toml");
    // First what is asked of an array that is there, then of any, and that it stop.
    for (parameters, excluded) in
        [("[parameters]\n\"path.name\" = \"vol0\"\n", &["/v1/arrays/{name}/stop"][..]), ("", &[])]
    {
        std::fs::write(&config, parameters).unwrap();
        // What it writes down of its own accord goes where it runs.
        let folder = home.path("");
        let mut arguments = vec!["-C", folder.to_str().unwrap(), schemathesis, "--config-file"];
        arguments.extend([config.to_str().unwrap(), "run", &document, "--checks", CHECKS, "--no-color"]);
        arguments.extend(["--generation-database", "none", "--seed", "1"]);
        // A stream of events has no end, and a scan has nothing to be asked but would find other tests' members.
        let excluded = excluded.iter().copied().chain(["/v1/events", "/v1/arrays/scan"]);
        arguments.extend(excluded.flat_map(|path| ["--exclude-path", path]));
        let ran = run("env", &arguments);
        assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
        println!("{}", ran.stdout);
        home.ok("list");
    }
    raidd.terminate();
}
