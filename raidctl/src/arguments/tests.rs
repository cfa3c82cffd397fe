//! What may be typed, and what is refused.

use clap::CommandFactory;

use super::*;

fn parse(words: &[&str]) -> Command {
    let words = std::iter::once(&"raidctl").chain(words);
    Arguments::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).command
}

fn usage_error(words: &[&str]) -> String {
    let words = std::iter::once(&"raidctl").chain(words);
    let error = Arguments::try_parse_from(words).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

fn create(words: &[&str]) -> Result<CreateArray, String> {
    match parse(words) {
        Command::Create(options) => options.request(),
        other => panic!("{other:?}"),
    }
}

fn assemble(words: &[&str]) -> Result<AssembleArray, String> {
    match parse(words) {
        Command::Assemble(options) => options.request(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Arguments::command().debug_assert();
}

#[test]
fn every_command_shows_an_example() {
    for command in Arguments::command().get_subcommands_mut() {
        let help = command.render_long_help().to_string();
        assert!(help.contains("Example:\n  raidctl "), "{help}");
    }
}

#[test]
fn create_takes_everything() {
    let here = std::env::current_dir().unwrap();
    let request = create(&[
        "create",
        "vol0",
        "--level",
        "5",
        "--chunk",
        "64K",
        "--layout",
        "left-asymmetric",
        "--size",
        "1G",
        "--bitmap",
        "internal",
        "--consistency-policy",
        "bitmap",
        "--init",
        "assume-clean",
        "--spare",
        "/s1",
        "--spare",
        "/s2",
        "--force",
        "/a",
        "missing",
        "c",
    ]);
    assert_eq!(
        request.unwrap(),
        CreateArray {
            name: "vol0".to_owned(),
            level: "5".to_owned(),
            chunk_bytes: Some(65_536),
            layout: Some("left-asymmetric".to_owned()),
            size_bytes: Some(1 << 30),
            bitmap: Some(BitmapChoice::Internal),
            consistency_policy: Some(ConsistencyPolicy::Bitmap),
            init: Init::AssumeClean,
            spares: vec!["/s1".to_owned(), "/s2".to_owned()],
            force: true,
            devices: vec!["/a".to_owned(), "missing".to_owned(), here.join("c").to_str().unwrap().to_owned()],
        }
    );
}

#[test]
fn creates_mistakes_are_usage_errors() {
    for words in [
        &["create", "vol0", "/a", "/b"][..],
        &["create", "vol0", "--level", "5"],
        &["create", "a b", "--level", "5", "/a", "/b"],
        &["create", "vol0", "--level", "5", "--chunk", "big", "/a", "/b"],
        &["create", "vol0", "--level", "5", "--init", "magic", "/a", "/b"],
        &["create", "vol0", "--level", "5", "--bitmap", "external", "/a", "/b"],
        &["create", "vol0", "--level", "5", "--consistency-policy", "journal", "/a", "/b"],
    ] {
        usage_error(words);
    }
    let both =
        ["create", "v", "--level", "5", "--bitmap", "internal", "--consistency-policy", "ppl", "/a", "/b"];
    assert!(create(&both).unwrap_err().contains("not both"));
    assert!(create(&["create", "v", "--level", "7", "/a", "/b"]).unwrap_err().contains("level"));
    assert!(create(&["create", "v", "--level", "6", "/a", "/b"]).unwrap_err().contains("4 members"));
}

#[test]
fn the_first_word_of_assemble_may_be_a_name() {
    let request = assemble(&["assemble", "vol0", "/a", "/b"]).unwrap();
    assert_eq!((request.name.as_deref(), request.devices), (Some("vol0"), vec!["/a".into(), "/b".into()]));
    let request = assemble(&["assemble", "/a", "/b", "--read-only", "--force"]).unwrap();
    assert_eq!((request.name, request.read_only, request.force), (None, true, true));
    // A file of this package, where tests run.
    let request = assemble(&["assemble", "Cargo.toml"]).unwrap();
    assert_eq!((request.name, request.devices.len()), (None, 1));
    let request = assemble(&["assemble", "vol0"]).unwrap();
    assert_eq!((request.name.as_deref(), request.devices.len()), (Some("vol0"), 0));
    usage_error(&["assemble"]);
    usage_error(&["assemble", "--scan", "/a"]);
    usage_error(&["assemble", "--uuid", "6f1c", "/a"]);
    assert!(matches!(parse(&["assemble", "--scan"]), Command::Assemble(options) if options.scan));
}

#[test]
fn an_assembly_may_change_name_and_uuid() {
    let updates = |words: &[&str]| {
        let request = assemble(&[&["assemble", "copy"], words, &["/a", "/b"]].concat()).unwrap();
        (request.update_name, request.update_uuid)
    };
    assert_eq!(updates(&[]), (false, false));
    assert_eq!(updates(&["--update", "name"]), (true, false));
    assert_eq!(updates(&["--update", "uuid"]), (false, true));
    assert_eq!(updates(&["--update=uuid", "--update=name"]), (true, true));
    usage_error(&["assemble", "copy", "--update", "size", "/a"]);
    usage_error(&["assemble", "--scan", "--update", "uuid"]);
}

#[test]
fn a_usage_error_is_one_line() {
    let line = |words: &[&str]| {
        let words = std::iter::once(&"raidctl").chain(words);
        usage_line(&Arguments::try_parse_from(words).unwrap_err())
    };
    let missing = line(&["create", "vol0", "/a", "/b"]).unwrap();
    assert_eq!(
        missing,
        "the following required arguments were not provided: --level <L>: see `raidctl create --help`"
    );
    let init = line(&["create", "vol0", "--level", "1", "--init", "magic", "/a"]).unwrap();
    assert!(init.contains("'magic'") && init.contains("assume-clean") && !init.contains('\n'), "{init}");
    let similar = line(&["stop", "--froce", "vol0"]).unwrap();
    assert!(similar.contains("--force") && similar.ends_with("`raidctl stop --help`"), "{similar}");
    assert!(line(&["explode"]).unwrap().ends_with("see `raidctl --help`"));
    assert_eq!(line(&["--help"]), None);
    assert_eq!(line(&["create", "--help"]), None);
    assert_eq!(line(&[]), None);
}

#[test]
fn global_options_may_stand_anywhere() {
    for words in
        [["raidctl", "--json", "--control", "/c", "list"], ["raidctl", "list", "--json", "--control", "/c"]]
    {
        let arguments = Arguments::try_parse_from(words).unwrap();
        assert!(arguments.json && arguments.control.as_deref() == Some(Path::new("/c")));
    }
}

#[test]
fn only_what_is_there_is_offered() {
    let command = Arguments::command();
    let names: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
    assert_eq!(
        names,
        [
            "create",
            "assemble",
            "stop",
            "list",
            "status",
            "check",
            "watch",
            "stats",
            "info",
            "fail",
            "remove",
            "add",
            "re-add",
            "replace",
            "scrub",
            "attach",
            "detach",
            "pause",
            "resume",
            "readonly",
            "readwrite",
            "wait",
            "tune",
            "grow",
            "events",
            "inject",
            "examine",
            "zero-superblock",
            "dump",
            "restore",
            "demo",
            "completions",
            "man"
        ]
    );
}

#[test]
fn demo_sizes_have_a_floor() {
    assert!(usage_error(&["demo", "--size", "1M"]).contains("16M at least"));
    assert!(usage_error(&["demo", "--size", "16777217"]).contains("round it"));
    usage_error(&["demo", "--level", "0"]);
    assert!(matches!(parse(&["demo"]), Command::Demo(options) if options.size == 64 << 20));
}

#[test]
fn a_pause_is_a_time_or_seconds() {
    for (text, ms) in [("5", 5000), ("5s", 5000), ("1ms", 1), ("1m", 60_000)] {
        for command in ["stats", "watch"] {
            match parse(&[command, "--interval", text]) {
                Command::Stats { interval, .. } => assert_eq!(interval, Some(Duration::from_millis(ms))),
                Command::Watch { interval, .. } => assert_eq!(interval, Duration::from_millis(ms)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(usage_error(&["stats", "--interval", "0"]).contains("1ms at least"));
    for words in [
        &["stats", "--interval", "-1"][..],
        &["stats", "--interval", "1.5"],
        &["stats", "--interval", ""],
        &["stats", "--count", "3"],
        &["stats", "--interval", "1", "--count", "0"],
        &["stats", "a b"],
        &["watch", "--interval", "99999999999999999999"],
    ] {
        usage_error(words);
    }
}
