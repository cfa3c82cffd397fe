//! Ctrl-C during a demo: noted, so that the demo ends at the next step and cleans up after itself.
//!
//! The signals are blocked in every thread and awaited by one of its own, so nothing runs in a signal handler. A second
//! Ctrl-C does not wait for the clean-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal};

use crate::failure::{Failure, failed};

/// Whether the user has had enough.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    wanted: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes the signals over. To be called while the process has one thread; others inherit what it sets.
    pub fn watch() -> Result<Interrupt, Failure> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals
            .thread_block()
            .map_err(|errno| failed(format_args!("cannot wait for Ctrl-C: {}", errno.desc())))?;
        let interrupt = Interrupt::default();
        let wanted = Arc::clone(&interrupt.wanted);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                while signals.wait().is_ok() {
                    if wanted.swap(true, Ordering::Relaxed) {
                        std::process::exit(1);
                    }
                }
            })
            .map_err(|error| failed(format_args!("cannot wait for Ctrl-C: {error}")))?;
        Ok(interrupt)
    }

    /// Whether to go on; a failure if not.
    pub fn check(&self) -> Result<(), Failure> {
        if self.wanted.load(Ordering::Relaxed) {
            return Err(failed("the demo was interrupted: run it again when you have a minute"));
        }
        Ok(())
    }
}
