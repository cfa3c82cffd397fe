//! raidd beside other NBD servers and the raw members: a load generator, and the matrix of jobs that becomes
//! docs/performance.md. Never shipped.

mod daemon;
mod fio;
mod greeting;
mod histogram;
mod jobs;
mod load;
mod machine;
mod members;
mod plot;
mod process;
mod repair;
mod report;
mod rows;
mod run;
mod sample;
mod servers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::load::{Direction, Load, Order};

/// Measures NBD servers: raidd, others, and what the members do without any.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads one server and prints what came of it as one JSON line.
    Load(LoadArguments),
    /// Measures everything, and prints and writes the tables.
    Run(Box<run::Options>),
    /// Prints and writes the tables of several runs together.
    Merge(run::Merge),
}

#[derive(Args)]
struct LoadArguments {
    /// The server's Unix socket.
    socket: PathBuf,
    direction: Direction,
    order: Order,
    /// Bytes of each request.
    block_bytes: usize,
    /// Requests in flight on each connection.
    depth: usize,
    connections: usize,
    seconds: f64,
    #[arg(default_value = "")]
    export: String,
    /// Use no more of the export than so many bytes.
    #[arg(long)]
    span: Option<u64>,
}

impl LoadArguments {
    fn run(self) -> Result<()> {
        let load = Load {
            socket: self.socket,
            export: self.export,
            direction: self.direction,
            order: self.order,
            block_bytes: self.block_bytes,
            depth: self.depth,
            connections: self.connections,
            duration: Duration::from_secs_f64(self.seconds),
            span_bytes: self.span,
        };
        println!("{}", serde_json::to_string(&load.run()?)?);
        Ok(())
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Load(load) => load.run(),
        Command::Merge(merge) => merge.run(),
        Command::Run(options) => {
            let outcome = process::end_all_on_signal().and_then(|()| options.run());
            process::end_all();
            outcome
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raidd-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
