//! A terminal with raidctl or a shell on it, held by tmux: keys go in, what is to be seen comes out.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::harness::{Home, raidctl_program, run};

/// How long something may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(50);

/// The terminal. It goes with its value, and what runs on it.
pub struct Terminal {
    socket: String,
}

impl Terminal {
    /// One of so many columns and lines on which raidctl runs, and then tells how it has ended and how the terminal is set.
    pub fn start(home: &Home, size: (u16, u16), arguments: &str) -> Terminal {
        let script = format!(
            "RAIDD_CONTROL={} {} {arguments}; echo -- ended with $?; stty -a; sleep 600",
            home.path("control.sock").display(),
            raidctl_program().display()
        );
        Terminal::running(home, size, &script)
    }

    /// One of so many columns and lines on which a script of the shell runs.
    pub fn running(home: &Home, size: (u16, u16), script: &str) -> Terminal {
        // Not that of one before: its server may still be on its way out.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let socket = format!("tmux{}.sock", NEXT.fetch_add(1, Ordering::Relaxed));
        let terminal = Terminal { socket: home.path(&socket).display().to_string() };
        let (columns, lines) = (size.0.to_string(), size.1.to_string());
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &lines, script]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        run("tmux", &[&["-u", "-S", &self.socket], arguments].concat()).ok()
    }

    /// Presses a key, as tmux calls it.
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Types a text.
    pub fn type_in(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Gives it another size.
    pub fn resize(&self, size: (u16, u16)) {
        self.tmux(&["resize-window", "-x", &size.0.to_string(), "-y", &size.1.to_string()]);
    }

    /// What is on it, once that is as wanted.
    #[track_caller]
    pub fn once(&self, mut wanted: impl FnMut(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.tmux(&["capture-pane", "-p"]);
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "this is not what should be seen:\n{screen}");
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let ran = run("tmux", &["-S", &self.socket, "kill-server"]);
        if ran.status != 0 {
            eprintln!("tmux does not end: {ran:?}");
        }
    }
}
