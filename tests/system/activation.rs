//! Sockets that systemd listens on: raidd takes them over, and leaves their files where they are.

use std::net::TcpStream;

use raidd::nbd::Client;

use super::disks::{Disks, MIB, noise};
use super::harness::{Home, free_port, need};

#[test]
fn raidd_serves_on_the_sockets_that_it_is_passed() {
    if !need(&["systemd-socket-activate"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let [control, nbd] = ["control.sock", "nbd.sock"].map(|name| home.path(name));
    let tcp = format!("127.0.0.1:{}", free_port());
    let listen = [
        "-l",
        control.to_str().unwrap(),
        "-l",
        nbd.to_str().unwrap(),
        "-l",
        &tcp,
        "--fdname=control:nbd:nbd",
    ];
    // A third address, which nobody passes, is raidd's own affair.
    let own = home.path("own.sock");
    let addresses =
        [format!("unix:{}", nbd.display()), format!("tcp:{tcp}"), format!("unix:{}", own.display())];
    let extra: Vec<_> = addresses.iter().flat_map(|address| ["--nbd", address]).collect();
    let raidd = home.start_activated(&listen, &control, &extra);
    home.ok(format!("create vol --level 1 {}", disks.all()));
    assert!(!home.path("control.sock.lock").exists(), "it is not raidd's own");
    let data = noise(7, MIB as usize);
    let mut client = home.client("vol");
    client.write(0, &data).unwrap();
    client.disconnect().unwrap();
    let mut client = Client::new(TcpStream::connect(&tcp).unwrap(), "vol").unwrap();
    let mut found = vec![0; data.len()];
    client.read(0, &mut found).unwrap();
    assert!(found == data);
    client.disconnect().unwrap();
    assert!(home.uri("vol").starts_with("nbd+unix:"), "{}", home.uri("vol"));

    raidd.terminate();
    assert!(control.exists() && nbd.exists() && !own.exists());
}

#[test]
fn a_socket_that_nothing_is_said_of_is_refused() {
    if !need(&["systemd-socket-activate"]) {
        return;
    }
    let home = Home::new();
    let other = home.path("other.sock");
    let path = other.to_str().unwrap().to_owned();
    let tcp = format!("127.0.0.1:{}", free_port());
    for (listen, fragment) in [
        (vec!["-l", &path, "--fdname=nbd"], "name it with --nbd, too"),
        (vec!["-l", &path, "--fdname=control"], "say the same in the socket unit and with --control"),
        (vec!["-l", &path, "--fdname=telnet"], "call it control or nbd"),
        (vec!["-l", &path, "-l", &tcp, "--fdname=control:control"], "two control sockets"),
    ] {
        if other.exists() {
            std::fs::remove_file(&other).unwrap();
        }
        let line = home.activated_to_its_end(&listen, &other, &[]).complaint(1);
        assert!(line.contains(fragment), "{line}");
    }
}
