//! The composition root: reads the configuration, starts everything in order, and stops it in the reverse order.
//!
//! Start: state directory (one raidd each), control socket, memory, reactors, NBD sockets, known arrays; only then are
//! clients and commands let in, and systemd told. Stop: no new clients, the old ones' requests finished, arrays flushed
//! and marked clean, reactors ended. A stop at any other moment is a crash, which the engine's laws are for.

mod access;
mod array_home;
mod assembly;
mod attach;
pub mod config;
mod event_log;
mod exports;
mod faults;
mod grow;
mod health;
mod inherited;
mod listening;
mod mdadm_conf;
mod members;
mod membership;
mod observe;
mod operator;
mod patience;
mod probe;
mod registry;
mod release;
mod replace;
mod report;
mod returning;
mod saved;
mod schedule;
mod sharing;
mod start;
mod uevents;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use self::config::Config;
use self::event_log::EventLog;
use self::exports::Service;
use self::inherited::Inherited;
use self::mdadm_conf::MdadmConf;
use self::operator::Operator;
use self::saved::StateDir;
use crate::control;
use crate::engine::Memory;
use crate::reactor::{self, ReactorHandle};
use crate::tls::TlsServer;

/// How long clients get to take their last replies.
const CLIENTS_LEAVE: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// What went wrong at start, in one line; or that some array could not be stopped cleanly.
pub fn run(config: &Config) -> anyhow::Result<()> {
    start_logging(&config.log_filter)?;
    abort_on_panic();
    // Before any thread is started, so that all of them leave these signals to us.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;

    let mut inherited = Inherited::receive()?;
    allow_many_files();
    serve_local_disks();
    let tls = config.tls.as_ref().map(TlsServer::new).transpose()?;
    let mdadm = MdadmConf::at(config.mdadm_conf.clone());
    let state = StateDir::open(&config.state_dir, mdadm).map_err(|why| anyhow!(why))?;
    let admission = listening::admission(config)?;
    let socket = match inherited.control(&config.control, admission)? {
        Some(socket) => socket,
        None => control::bind(&config.control, admission)?,
    };
    let engine_bytes = (config.memory_bytes as usize * 3 / 8).max(Memory::MIN_BYTES);
    let memory = Memory::new(engine_bytes).context("cannot map memory: lower --memory")?;
    let (reactors, threads) = start_reactors(config.reactors)?;
    let registry = Arc::default();
    let nbd_bytes = config.memory_bytes as usize - engine_bytes;
    let service = Service::new(registry, Arc::new(reactors.clone()), nbd_bytes, tls, config.access.clone())
        .context("cannot map memory: lower --memory")?;
    let listeners = config.nbd.iter().map(|config| match inherited.nbd(&config.address)? {
        Some(socket) => Ok((socket, None)),
        None => listening::bind(config),
    });
    let listeners = listeners.collect::<anyhow::Result<Vec<_>>>()?;
    inherited.finish()?;
    let metrics = config.metrics.as_ref().map(listening::bind_metrics).transpose()?;

    if config.enable_fault_injection {
        tracing::warn!("fault injection is enabled: whoever may use the control socket can corrupt members");
    }
    let events = EventLog::open(&config.state_dir).map_err(|why| anyhow!(why))?;
    let operator = Arc::new(Operator::new(service.clone(), memory, state, events, config));
    let known = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let known = known.context("cannot start a thread")?;
    known.block_on(operator.start_known(config.assemble_wait));
    let mut places = Vec::new();
    for ((listener, place), config) in listeners.into_iter().zip(config.nbd.iter().cloned()) {
        places.extend(place);
        let service = service.clone();
        reactors[0].post(move || service.listen(listener, &config)).context("cannot listen")?;
    }
    let server =
        control::start(socket, metrics, operator.clone()).context("cannot serve the control socket")?;
    let upkeep = known.spawn(upkeep::run(operator.clone()));
    let keeping = known.spawn(attach::keep(operator.clone()));
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let nbd: Vec<String> = config.nbd.iter().map(ToString::to_string).collect();
    tracing::info!(control = %config.control.display(), ?nbd, "ready");

    let signal = signals.wait().context("cannot wait for signals")?;
    tracing::info!(%signal, "stopping");
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    upkeep.abort();
    keeping.abort();
    for place in &places {
        listening::remove(place);
    }
    service.stop_all();
    let clean = known.block_on(async {
        let deadline = tokio::time::Instant::now() + CLIENTS_LEAVE;
        while !service.is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        operator.stop_all().await
    });
    operator.events.close();
    server.stop().context("the control server failed")?;
    for reactor in &reactors {
        reactor.stop();
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a reactor panicked; see the log"))?;
    }
    if !clean {
        bail!("some arrays could not be stopped cleanly; see the log");
    }
    Ok(())
}

/// As many open files as this process may have: every client is one. What is usual, 1024, is for programs that use select.
fn allow_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised; it limits the number of clients");
    }
}

/// Says that the machine's own disks may be behind this process: memory that it asks for is never waited for until pages
/// have been written to a disk, which may be one of ours. Also before any thread is started, as they inherit it.
fn serve_local_disks() {
    // Only root may; who is not attaches nothing.
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "not an I/O flusher: arrays should not be mounted on this machine");
    }
}

fn start_logging(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .with_context(|| format!("log filter {filter:?} makes no sense: see RUST_LOG in raidd --help"))?;
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logger = logger.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    logger.try_init().map_err(|error| anyhow!("cannot log: {error}"))
}

/// A panic has found an impossible state: nothing may be done on top of it. Stopping is safe at any instant.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

type Threads = Vec<std::thread::JoinHandle<()>>;

fn start_reactors(count: usize) -> anyhow::Result<(Vec<ReactorHandle>, Threads)> {
    let mut handles = Vec::new();
    let mut threads = Vec::new();
    for index in 0..count {
        let (handle, thread) = reactor::start(index, &format!("reactor-{index}"))?;
        handles.push(handle);
        threads.push(thread);
    }
    Ok((handles, threads))
}

fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    // Not having been started by systemd is no error.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}
