//! The daemon's entry: arguments in, an exit status out.

use std::io::Write;
use std::process::ExitCode;

use raidd::daemon::config::{self, Environment, Request};

fn main() -> ExitCode {
    let config = match config::read(std::env::args_os(), &Environment::of_this_process()) {
        Ok(Request::Run(config)) => config,
        Ok(Request::Print(text)) => {
            // Nobody reading the help is no failure.
            let _shown = std::io::stdout().write_all(text.as_bytes()).is_ok();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error.into()),
    };
    match raidd::daemon::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("raidd: {error:#}");
    ExitCode::FAILURE
}
