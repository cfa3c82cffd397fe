//! Completions in the shells that use them: bash, zsh and fish, also with what only a running daemon knows.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::disks::Disks;
use super::harness::{Home, need, raidctl_program};
use super::tmux::Terminal;

/// Where the completions of a shell have been written.
fn completions(home: &Home, shell: &str, name: &str) -> String {
    let path = home.path(name);
    fs::write(&path, home.ok(format!("completions {shell}"))).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn bash_completes() {
    if !need(&["bash"]) {
        return;
    }
    let home = Home::new();
    let file = completions(&home, "bash", "raidctl.bash");
    let complete = |words: &str| {
        let last = words.split(' ').next_back().unwrap();
        let script = format!(
            "bash --norc -euc 'source {file}; complete -p raidctl >/dev/null; set +u; COMP_WORDS=({words}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _raidctl raidctl \"{last}\" \"\" || true; \
             printf \"%s\\n\" \"${{COMPREPLY[@]}}\"'"
        );
        let ran = home.shell(&script);
        assert_eq!(ran.stderr, "", "{words}");
        ran.ok()
    };
    let found = complete("raidctl sta");
    assert!(found.lines().any(|word| word == "status"), "{found}");
    let found = complete("raidctl create --le");
    assert_eq!(found.trim(), "--level");
}

#[test]
fn fish_completes() {
    if !need(&["fish"]) {
        return;
    }
    let home = Home::new();
    let file = completions(&home, "fish", "raidctl.fish");
    let complete = |line: &str| {
        // Its history and settings go where the test's things are.
        let own = home.path("fish");
        let ran =
            home.shell(&format!("HOME={} fish -c 'source {file}; complete -C \"{line}\"'", own.display()));
        assert_eq!(ran.stderr, "", "{line}");
        ran.ok()
    };
    let found = complete("raidctl sta");
    assert!(found.lines().any(|line| line.starts_with("status\t")), "{found}");
    let found = complete("raidctl create --le");
    assert!(found.starts_with("--level\t"), "{found}");
}

/// On a terminal that zsh makes itself: what it completes, it shows there.
#[test]
fn zsh_completes() {
    if !need(&["zsh"]) {
        return;
    }
    let home = Home::new();
    fs::create_dir(home.path("functions")).unwrap();
    completions(&home, "zsh", "functions/_raidctl");
    let script = r#"
zmodload zsh/zpty || exit
zpty z zsh -f -i
zpty -w z "PS1=; fpath=(FOLDER \$fpath); autoload -Uz compinit; compinit -u -D; print READ''Y"
zpty -r z told '*READY*' || exit
zpty -w -n z $'raidctl zero\t'
zpty -r z shown '*zero-superblock*' || exit
zpty -w -n z $'\C-uraidctl create --lev\t'
zpty -r z more '*--level*' || exit
zpty -d z
print -r -- "$told $shown $more"
"#;
    let file = home.path("complete.zsh");
    fs::write(&file, script.replace("FOLDER", home.path("functions").to_str().unwrap())).unwrap();
    let ran = home.shell(&format!("timeout 30 zsh -f {}", file.display()));
    assert_eq!(ran.stderr, "", "{ran:?}");
    let shown = ran.ok();
    assert!(shown.contains("zero-superblock") && !shown.contains("_raidctl:"), "{shown}");
}

/// How often a shell's screen is looked at before a key is pressed once more.
const LOOKS_BETWEEN_KEYS: u32 = 20;

/// A shell on a terminal, with its completions and nothing of the user's.
struct Shell {
    terminal: Terminal,
}

impl Shell {
    fn start(home: &Home, shell: &str) -> Shell {
        let folder = home.path(shell);
        fs::create_dir_all(folder.join("functions")).unwrap();
        let folder = folder.to_str().unwrap();
        // raidctl is called as users do; what it does not say for itself comes from the environment.
        let environment = format!(
            "cd {folder}; export HOME={folder} ZDOTDIR={folder} RAIDD_CONTROL={} PATH={}:$PATH LC_ALL=C.UTF-8",
            home.path("control.sock").display(),
            raidctl_program().parent().unwrap().display()
        );
        let start = match shell {
            "bash" => {
                let file = completions(home, shell, "bash/raidctl.bash");
                fs::write(home.path("bash/rc"), format!("PS1='$ '\nsource {file}\n")).unwrap();
                format!("bash --noprofile --rcfile {folder}/rc -i")
            }
            "zsh" => {
                completions(home, shell, "zsh/functions/_raidctl");
                let settings = format!(
                    "PS1='$ '\nfpath=({folder}/functions $fpath)\nautoload -Uz compinit && compinit -u -D\n"
                );
                fs::write(home.path("zsh/.zshrc"), settings).unwrap();
                "zsh -d -i".to_owned()
            }
            _ => {
                let file = completions(home, shell, "fish/raidctl.fish");
                // A prompt as the others', and no guesses from what was typed before.
                let settings = "function fish_prompt\n  echo -n '$ '\nend\nset -g fish_greeting\nset -g fish_autosuggestion_enabled 0\n";
                fs::write(home.path("fish/settings.fish"), format!("{settings}source {file}\n")).unwrap();
                format!("fish --no-config --private --init-command 'source {folder}/settings.fish'")
            }
        };
        let terminal = Terminal::running(home, (200, 24), &format!("{environment}; {start}"));
        let shell = Shell { terminal };
        shell.terminal.once(|screen| screen.trim_end().ends_with('$'));
        shell
    }

    /// Types a line to its end, asks for completion there, and gives what is seen once that is as wanted.
    #[track_caller]
    fn complete(&self, line: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.terminal.type_in(line);
        self.terminal.once(|screen| screen.contains(line.trim_end()));
        self.terminal.press("Tab");
        let seen = self.terminal.once(wanted);
        assert!(!seen.contains("raidctl:") && !seen.contains("rror"), "{seen}");
        seen
    }

    /// As `complete`, but asks again as long as it is not as wanted: shells list what there is only then.
    #[track_caller]
    fn list(&self, line: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut looks = 0;
        self.complete(line, |_| true);
        self.terminal.once(|screen| {
            looks += 1;
            if !wanted(screen) && looks % LOOKS_BETWEEN_KEYS == 0 {
                self.terminal.press("Tab");
            }
            wanted(screen)
        })
    }

    /// Forgets what was typed, and what is seen. A key that comes while a shell is still busy may be lost.
    #[track_caller]
    fn clear(&self) {
        let mut looks = 0;
        self.terminal.once(|screen| {
            if looks % LOOKS_BETWEEN_KEYS == 0 {
                self.terminal.press("C-c");
                self.terminal.type_in("clear");
                self.terminal.press("Enter");
            }
            looks += 1;
            looks > 1 && screen.trim() == "$"
        });
    }
}

/// Those of the shells that are here.
fn shells() -> impl Iterator<Item = &'static str> {
    ["bash", "zsh", "fish"].into_iter().filter(|shell| need(&["tmux", shell]))
}

#[test]
fn shells_offer_arrays_and_members_of_a_running_daemon() {
    let home = Home::new();
    let _raidd = home.start();
    let disks = Disks::files(&home, "disk", 4, 16);
    let odd = Disks::files(&home, "odd one:", 1, 16);
    home.ok(format!("create vol0 --level 1 {}", disks.some(&[0, 1])));
    home.ok(format!("create archive --level 1 {}", disks.some(&[2, 3])));
    home.raidctl_words(&["add", "vol0", &odd.paths[0]]).ok();
    for shell in shells() {
        let typed = Shell::start(&home, shell);
        // What begins differently is told apart, whichever command it is for.
        for (line, whole) in [
            ("raidctl status v", "raidctl status vol0"),
            ("raidctl --json status a", "raidctl --json status archive"),
            ("raidctl tune vol0 read_p", "raidctl tune vol0 read_policy="),
            ("raidctl tune vol0 read_policy=lat", "raidctl tune vol0 read_policy=latency"),
        ] {
            typed.complete(line, |screen| screen.contains(whole));
            typed.clear();
        }
        // All of them, where nothing tells them apart.
        typed.list("raidctl scrub ", |screen| screen.contains("vol0") && screen.contains("archive"));
        typed.clear();
        // The members of the array that was named, and no others.
        let seen = typed
            .list("raidctl fail archive ", |screen| screen.contains("disk2") && screen.contains("disk3"));
        assert!(!seen.contains("disk0") && !seen.contains("vol0"), "{shell}: {seen}");
        typed.clear();
        // A path that a shell has to quote, whole and from where a shell may cut it. What comes out is what raidctl takes.
        let spare = home.path("odd");
        let cut = format!("raidctl remove vol0 {}", spare.to_str().unwrap());
        let cut = if shell == "bash" { format!("{cut}\\ one:") } else { cut };
        for line in ["raidctl remove vol0 ", &cut] {
            typed.complete(line, |screen| screen.contains("one:0") || screen.contains("one\\:0"));
            assert_eq!(home.status("vol0").spares.len(), 1);
            typed.terminal.press("Enter");
            home.wait_for("vol0", |status| status.spares.is_empty());
            typed.clear();
            home.raidctl_words(&["add", "vol0", &odd.paths[0]]).ok();
        }
        // What is no member is a file.
        fs::write(home.path("nbd-like"), "").unwrap();
        let device = home.path("nbd-li").display().to_string();
        typed.complete(&format!("raidctl attach vol0 {device}"), |screen| screen.contains("nbd-like"));
        // Options still are what they were.
        typed.clear();
        typed.complete("raidctl status --js", |screen| screen.contains("status --json"));
    }
}

#[test]
fn shells_ask_the_daemon_that_the_line_names_and_wait_for_none() {
    let home = Home::new();
    let raidd = home.start();
    let disks = Disks::files(&home, "disk", 2, 16);
    home.ok(format!("create vol0 --level 1 {}", disks.all()));
    let elsewhere = home.path("elsewhere.sock");
    fs::rename(home.path("control.sock"), &elsewhere).unwrap();
    let named = format!("raidctl --control {} status v", elsewhere.display());
    for shell in shells() {
        let typed = Shell::start(&home, shell);
        // Nobody is where the environment says.
        typed.complete("raidctl status v", |screen| screen.trim_end().ends_with("status v"));
        typed.terminal.type_in("x");
        typed.terminal.once(|screen| screen.contains("status vx"));
        typed.clear();
        typed.complete(&named, |screen| screen.contains("status vol0"));
        typed.clear();
        // One that is there, and does not answer.
        kill(raidd.pid(), Signal::SIGSTOP).unwrap();
        let begun = Instant::now();
        typed.complete(&named, |_| true);
        typed.terminal.type_in("x");
        let seen = typed.terminal.once(|screen| screen.contains("status vx"));
        let waited = begun.elapsed();
        kill(raidd.pid(), Signal::SIGCONT).unwrap();
        assert!(!seen.contains("vol0"), "{shell}: {seen}");
        assert!(waited < Duration::from_secs(10), "{shell} waited for {waited:?}");
    }
}
