//! What is offered for a line, with two arrays that are made up.

use super::*;

const ARRAYS: &str = r#"[
 {"name":"vol0","uuid":"0","level":"raid5","layout":"left-symmetric","chunk_bytes":0,"size_bytes":0,"member_size_bytes":0,
  "metadata":"1.2","events":1,"consistency_policy":"bitmap","state":"clean","health":"degraded","nbd_uri":null,"connections":0,
  "members":[
   {"slot":0,"path":"/dev/sdb","state":"in_sync","read_errors":0,"write_errors":0,"corrected_errors":0},
   {"slot":1,"path":"/dev/sdc","state":"faulty","read_errors":0,"write_errors":0,"corrected_errors":0},
   {"slot":2,"path":null,"state":"missing","read_errors":0,"write_errors":0,"corrected_errors":0}],
  "spares":[{"slot":null,"path":"/dev/sdd","state":"spare"}],
  "sync":{"action":"idle","done_bytes":0,"total_bytes":0,"bytes_per_sec":0,"eta_seconds":null,"mismatches":0},
  "device":"/dev/nbd0"},
 {"name":"old","uuid":"0","level":"raid1","layout":null,"chunk_bytes":0,"size_bytes":0,"member_size_bytes":0,
  "metadata":"1.2","events":1,"consistency_policy":"bitmap","state":"inactive","health":"failed","nbd_uri":null,"connections":0,
  "members":[{"slot":0,"path":null,"state":"missing","read_errors":0,"write_errors":0,"corrected_errors":0}],
  "spares":[],
  "sync":{"action":"idle","done_bytes":0,"total_bytes":0,"bytes_per_sec":0,"eta_seconds":null,"mismatches":0}}
]"#;

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

/// The values for the last word, and the socket that was asked, if one was.
fn asked(line: &str) -> (Vec<String>, Option<Option<PathBuf>>) {
    let mut socket = None;
    let Some(read) = Line::read(&words(line)) else { return (Vec::new(), None) };
    let offers = read.offers(line.split(' ').next_back().unwrap(), |control| {
        socket = Some(control);
        serde_json::from_str(ARRAYS).unwrap()
    });
    (offers.into_iter().map(|(value, _)| value).collect(), socket)
}

#[test]
fn every_command_that_takes_an_array_is_offered_arrays() {
    let mut count = 0;
    for command in Arguments::command().get_subcommands() {
        let name = command.get_name();
        let first = command.get_positionals().next().map_or("", |place| place.get_id().as_str());
        let wanted: &[&str] = match name {
            "create" => &[],
            "assemble" => &["old"],
            "detach" => &["vol0"],
            _ if first == "name" => &["vol0", "old"],
            _ => &[],
        };
        assert_eq!(asked(&format!("raidctl {name} ")).0, wanted, "{name}");
        count += wanted.len();
    }
    assert!(count > 30, "{count}");
}

#[test]
fn members_are_those_that_the_command_can_be_about() {
    for (line, wanted) in [
        ("fail vol0 ", &["/dev/sdb", "/dev/sdd"][..]),
        ("remove vol0 ", &["/dev/sdc", "/dev/sdd"]),
        ("inject vol0 ", &["/dev/sdb", "/dev/sdc", "/dev/sdd"]),
        ("replace vol0 ", &["/dev/sdb", "/dev/sdd"]),
        ("replace vol0 /dev/sdb ", &["/dev/sdd"]),
        ("replace vol0 /dev/sdb /dev/sdd ", &[]),
        ("fail other ", &[]),
        ("fail vol0 /dev/sdb ", &[]),
        ("add vol0 ", &[]),
        ("attach vol0 ", &[]),
        ("assemble old ", &[]),
        ("create new ", &[]),
    ] {
        assert_eq!(asked(&format!("raidctl {line}")).0, wanted, "{line}");
    }
}

#[test]
fn settings_and_faults_need_no_daemon() {
    let (keys, socket) = asked("raidctl tune vol0 hedge=off ");
    assert!(keys.contains(&"recovery_max=".to_owned()) && !keys.contains(&"hedge=".to_owned()), "{keys:?}");
    assert_eq!(socket, None);
    assert_eq!(
        asked("raidctl tune vol0 auto_re_add=").0,
        ["auto_re_add=on", "auto_re_add=off", "auto_re_add=spare"]
    );
    let (faults, socket) = asked("raidctl inject vol0 /dev/sdb ");
    assert_eq!(
        (faults.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), socket),
        (Fault::WORDS, None)
    );
}

#[test]
fn the_socket_is_the_one_that_was_named() {
    for line in [
        "raidctl --control /run/x status ",
        "raidctl status --control /run/x ",
        "raidctl --json --control=/run/x -y status ",
    ] {
        let (names, socket) = asked(line);
        assert_eq!((names.len(), socket), (2, Some(Some(PathBuf::from("/run/x")))), "{line}");
    }
    assert_eq!(asked("raidctl status ").1, Some(None));
    let home = std::env::var("HOME").unwrap();
    assert_eq!(asked("raidctl --control ~/x status ").1, Some(Some(Path::new(&home).join("x"))));
}

#[test]
fn what_scripts_know_is_left_to_them() {
    for line in [
        "raidctl",
        "raidctl ",
        "raidctl st",
        "raidctl status -",
        "raidctl status --",
        "raidctl --control ",
        "raidctl attach vol0 --wait ",
        "raidctl no-such-command ",
        "raidctl status --no-such-option ",
        "raidctl examine ",
        "raidctl list ",
    ] {
        assert_eq!(asked(line), (Vec::new(), None), "{line}");
    }
    assert_eq!(asked("raidctl status -- ").0, ["vol0", "old"]);
}

#[test]
fn offers_are_lines() {
    let offer = |value: &str| (value.to_owned(), "slot 0".to_owned());
    let offers = vec![offer("/dev/sdb"), offer("/dev/sdc"), offer("/x\ny"), offer("/x\ty")];
    assert_eq!(lines(offers.clone(), ""), "/dev/sdb\tslot 0\n/dev/sdc\tslot 0\n");
    assert_eq!(lines(offers.clone(), "/dev/sdc"), "/dev/sdc\tslot 0\n");
    assert_eq!(lines(offers, "/srv"), "");
}

#[test]
fn a_daemon_that_is_not_there_is_no_error() {
    let nowhere = Some(PathBuf::from("/nonexistent/raidd.sock"));
    assert_eq!(offered(&words("raidctl status "), nowhere.clone()), "");
    assert_eq!(
        offered(&words("raidctl tune vol0 write_through=o"), nowhere.clone()),
        "write_through=on\t\nwrite_through=off\t\n"
    );
    assert_eq!(offered(&[], nowhere), "");
}
