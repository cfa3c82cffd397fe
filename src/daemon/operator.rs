//! Commands: from `api`'s words to the engine's deeds.
//!
//! Commands that change which arrays there are are carried out one at a time. What blocks (opening devices, blkid) is
//! done on a thread that may; what touches an array is done on the reactor where the array lives.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use super::array_home::{ArrayId, move_out, present, resident};
use super::attach::Ends;
use super::config::{Config, NbdListener};
use super::event_log::EventLog;
use super::exports::{Service, stop_clients};
use super::faults::MemberDisk;
use super::members::{
    Candidate, find_all, find_members, is_whole, open_for_create, open_members, plan_create,
};
use super::observe::{Concerns, add_concerns};
use super::probe;
use super::registry::Entry;
use super::report;
use super::saved::{SavedArray, StateDir};
use super::start::{Beginning, start_here};
use crate::api::{
    Command, CreateArray, Event, Health, Init, Problem, ProblemCode, Reply, Status, Tuning, valid_name,
};
use crate::control;
use crate::engine::{ArrayStatus, AssembleOptions, Memory, Refusal, create};
use crate::layout::{Level, default_layout, parse_layout};
use crate::md::{format_uuid, parse_uuid};
use crate::reactor::{Disk, OpenError, OpenErrorKind, runtime};

/// How long a forced stop waits for clients to leave.
const CLIENTS_LEAVE: Duration = Duration::from_secs(10);

/// Carries out commands.
pub struct Operator {
    pub(super) service: Service,
    pub(super) memory: Memory,
    state: Mutex<StateDir>,
    /// Held while arrays are made, started or stopped.
    pub(super) one_at_a_time: tokio::sync::Mutex<()>,
    listeners: Vec<NbdListener>,
    pub(super) injectable: bool,
    pub(super) ends: Ends,
    pub(super) events: EventLog,
    pub(super) concerns: Concerns,
    next_id: AtomicU64,
    /// When raidd was started, since 1970.
    pub(super) started: Duration,
    /// Why arrays that should run do not, by UUID.
    waiting: Mutex<HashMap<String, String>>,
}

pub(super) fn problem(code: ProblemCode, detail: impl AsRef<str>) -> Problem {
    Problem::new(code, detail)
}

pub(super) fn open_problem(error: &OpenError) -> Problem {
    let code = match error.kind {
        OpenErrorKind::InUse => ProblemCode::DeviceInUse,
        _ => ProblemCode::DeviceUnavailable,
    };
    problem(code, error.to_string())
}

pub(super) fn refusal_problem(refusal: &Refusal) -> Problem {
    let code = match refusal {
        Refusal::Unreadable { .. } | Refusal::WriteFailed { .. } => ProblemCode::MemberIo,
        Refusal::NotAMember { .. } => ProblemCode::BadSuperblock,
        Refusal::BadMember { .. } | Refusal::Geometry(_) => ProblemCode::Unsupported,
        Refusal::BadSet(_) => ProblemCode::MembersDisagree,
        Refusal::TooFew(_) => ProblemCode::TooFewMembers,
        Refusal::DirtyDegraded(_) => ProblemCode::DirtyDegraded,
        Refusal::NotNow(_) => ProblemCode::WrongState,
    };
    problem(code, refusal.to_string())
}

pub(super) fn internal(what: &str) -> Problem {
    problem(ProblemCode::Internal, format!("{what}: see raidd's log"))
}

/// Does what blocks elsewhere.
pub(super) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(job).await.map_err(|_| internal("a helper thread failed"))
}

impl Operator {
    pub fn new(
        service: Service,
        memory: Memory,
        state: StateDir,
        events: EventLog,
        config: &Config,
    ) -> Operator {
        Operator {
            service,
            memory,
            state: Mutex::new(state),
            one_at_a_time: tokio::sync::Mutex::default(),
            listeners: config.nbd.clone(),
            events,
            injectable: config.enable_fault_injection,
            ends: Ends::default(),
            concerns: Concerns::default(),
            next_id: AtomicU64::new(1),
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            waiting: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, StateDir> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Making an array.

    async fn create(&self, spec: CreateArray) -> Result<Reply, Problem> {
        let invalid = |why: String| problem(ProblemCode::InvalidRequest, why);
        spec.check().map_err(invalid)?;
        let level = Level::from_md(i32::from(spec.level_number().map_err(invalid)?));
        let level = level.ok_or_else(|| internal("a level that was checked is unknown"))?;
        let layout = match &spec.layout {
            None => default_layout(level),
            Some(name) => parse_layout(level, name).ok_or_else(|| {
                let why = format!("{level} has no layout {name:?}; leave --layout out for the usual one");
                problem(ProblemCode::InvalidRequest, why)
            })?,
        };
        let _turn = self.one_at_a_time.lock().await;
        self.check_name(&spec.name)?;
        let for_checks = spec.clone();
        let candidates = blocking(move || open_for_create(&for_checks, level)).await??;
        let (created, present) = plan_create(&spec, level, layout, candidates)?;
        let array = self.next_array();
        let home = self.home_of(array);
        let (memory, name, injectable) = (self.memory.clone(), spec.name.clone(), self.injectable);
        let zero = spec.init == Init::Zero;
        let teller = self.events.teller();
        let made = home.call(move || async move {
            let new = present.into_iter().map(|Candidate { disk, label }| create::NewMember {
                device: MemberDisk::new(Disk::new(disk), &label, injectable),
                label,
            });
            let new: Vec<_> = new.collect();
            create::write(&new, &created, zero, &memory.metadata, &runtime()).await?;
            let devices = new.into_iter().map(|member| (member.device, member.label)).collect();
            let options = AssembleOptions { name: Some(name), fresh: true, ..Default::default() };
            let beginning = Beginning {
                strict: true,
                options,
                tuning: Tuning::default(),
                protect: false,
                paused: false,
                teller,
            };
            start_here(array, devices, beginning, &memory).await
        });
        made.await
            .map_err(|_| internal("a reactor has ended"))?
            .map_err(|refusal| refusal_problem(&refusal))?;
        let status = self.register(array, home, false).await?;
        tracing::info!(array = status.name, level = status.level, size_bytes = status.size_bytes, "created");
        Ok(Reply::Array(Box::new(status)))
    }

    fn check_name(&self, name: &str) -> Result<(), Problem> {
        valid_name(name).map_err(|why| problem(ProblemCode::InvalidRequest, why))?;
        if self.service.registry.get(name).is_some() {
            let why =
                format!("an array called {name} runs already: choose another name, or stop that one first");
            return Err(problem(ProblemCode::ArrayExists, why));
        }
        Ok(())
    }

    fn next_array(&self) -> ArrayId {
        ArrayId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    fn home_of(&self, array: ArrayId) -> crate::reactor::ReactorHandle {
        let reactors = &self.service.reactors;
        reactors[array.0 as usize % reactors.len()].clone()
    }

    /// Makes an array that runs known to clients and to the next start.
    async fn register(
        &self,
        array: ArrayId,
        home: crate::reactor::ReactorHandle,
        read_only: bool,
    ) -> Result<Status, Problem> {
        let facts = home.call(move || async move { resident(array).map(|array| array.status()) }).await;
        let facts = facts.ok().flatten().ok_or_else(|| internal("the array is gone"))?;
        let paths = home.call(move || async move { resident(array).map(|array| array.member_paths()) }).await;
        let paths = paths.ok().flatten().unwrap_or_default();
        let entry = Arc::new(Entry::new(array, facts.name.clone(), facts.uuid, home));
        self.service.registry.insert(entry.clone());
        let before = self.saved(&facts.uuid);
        let mut status = report::status(&facts, &self.listeners, 0);
        report::add_saved(&mut status, before.as_ref());
        let teller = self.events.teller();
        teller.tell(&facts.name, "NewArray", None);
        if status.health != Health::Optimal {
            teller.tell(&facts.name, "DegradedArray", None);
        }
        self.waiting().remove(&status.uuid);
        let saved = SavedArray {
            uuid: status.uuid.clone(),
            name: status.name.clone(),
            members: paths,
            start: true,
            read_only,
            protected: facts.is_protected,
            tuning: before.as_ref().map(|saved| saved.tuning.clone()).unwrap_or_default(),
            last_scrub_unix_seconds: before.as_ref().and_then(|saved| saved.last_scrub_unix_seconds),
            scrub_put_off_unix_seconds: before.as_ref().and_then(|saved| saved.scrub_put_off_unix_seconds),
            attached: before.and_then(|saved| saved.attached),
            last: status.clone(),
        };
        self.remember(|state| state.put(saved));
        self.attach_again(&entry).await;
        status.device = self.device_of(&facts.uuid);
        Ok(status)
    }

    /// The UUID of an array that is remembered by this name.
    pub(super) fn uuid_of(&self, name: &str) -> Option<[u8; 16]> {
        let state = self.state();
        let saved = state.arrays().iter().find(|array| array.start && array.name == name)?;
        parse_uuid(&saved.uuid)
    }

    /// What is remembered of an array.
    pub(super) fn saved(&self, uuid: &[u8; 16]) -> Option<SavedArray> {
        let text = format_uuid(uuid);
        self.state().arrays().iter().find(|array| array.uuid == text).cloned()
    }

    /// Changes what is remembered. A state directory that cannot be written is said, but stops nothing that works.
    pub(super) fn remember(&self, change: impl FnOnce(&mut StateDir) -> std::io::Result<()>) {
        if let Err(error) = change(&mut self.state()) {
            tracing::error!(%error, "the state directory cannot be written: the next start will not know of this");
        }
    }

    // Starting an array. What an operator names is in `assembly`.

    /// Starts an array from devices. `strict`: all of them must be members that can be used; otherwise those that are
    /// not are passed over. `protect`: the operator had made it read-only.
    pub(super) async fn start_array(
        &self,
        paths: Vec<PathBuf>,
        uuid: Option<[u8; 16]>,
        strict: bool,
        options: AssembleOptions,
        protect: bool,
    ) -> Result<Status, Problem> {
        let read_only = options.read_only;
        // Before its members are waited for, which it would not let go.
        let look = paths.clone();
        let first = blocking(move || look.iter().find_map(|path| probe::superblock(path))).await?;
        let new_uuid = options.new_uuid.as_ref().map(|new| new.uuid);
        let wanted = new_uuid.or(uuid).or(first.map(|superblock| superblock.set_uuid));
        if let Some(running) = wanted.and_then(|uuid| self.service.registry.by_uuid(&uuid)) {
            let why = format!("the array runs already, as {}: stop it first", running.name);
            return Err(problem(ProblemCode::ArrayExists, why));
        }
        let open = move || open_members(&paths, uuid, strict, read_only);
        let candidates = blocking(open).await??;
        let Some(first) = candidates.first() else {
            return Err(problem(
                ProblemCode::TooFewMembers,
                "none of the array's members was found: name its devices",
            ));
        };
        let superblock = blocking({
            let path = first.disk.path().to_owned();
            move || probe::superblock(&path)
        })
        .await?;
        let name = options.name.clone().or_else(|| superblock.map(|superblock| superblock.name()));
        if let Some(name) = &name {
            self.check_name(name)?;
        }
        let array = self.next_array();
        let home = self.home_of(array);
        let memory = self.memory.clone();
        let tuning = wanted.and_then(|uuid| self.saved(&uuid)).map(|saved| saved.tuning).unwrap_or_default();
        let options = AssembleOptions { name, ..options };
        let (injectable, teller) = (self.injectable, self.events.teller());
        let started = home.call(move || async move {
            let devices = candidates.into_iter().map(|Candidate { disk, label }| {
                (MemberDisk::new(Disk::new(disk), &label, injectable), label)
            });
            let beginning = Beginning { strict, options, tuning, protect, paused: false, teller };
            start_here(array, devices.collect(), beginning, &memory).await
        });
        started
            .await
            .map_err(|_| internal("a reactor has ended"))?
            .map_err(|refusal| refusal_problem(&refusal))?;
        let status = self.register(array, home, read_only).await?;
        tracing::info!(array = status.name, health = status.health.as_str(), "assembled");
        Ok(status)
    }

    /// Starts everything that can be found and started.
    async fn scan(&self) -> Result<Reply, Problem> {
        let _turn = self.one_at_a_time.lock().await;
        let known: Vec<_> = self.state().arrays().iter().flat_map(|array| array.members.clone()).collect();
        let found = blocking(move || find_all(&known)).await?;
        let mut started = Vec::new();
        for (uuid, paths) in found {
            if self.service.registry.by_uuid(&uuid).is_some() {
                continue;
            }
            let name = self.known_name(&uuid);
            match self
                .start_array(paths, Some(uuid), false, AssembleOptions { name, ..Default::default() }, false)
                .await
            {
                Ok(status) => started.push(status),
                Err(error) => tracing::warn!(uuid = format_uuid(&uuid), %error, "not assembled"),
            }
        }
        Ok(Reply::Arrays(started))
    }

    fn known_name(&self, uuid: &[u8; 16]) -> Option<String> {
        self.saved(uuid).map(|saved| saved.name)
    }

    /// Starts the arrays that ran when raidd was last stopped. Those that lack members are waited for, in the
    /// background, and then started degraded.
    pub async fn start_known(self: &Arc<Self>, wait: Duration) {
        let known: Vec<_> = self.state().arrays().iter().filter(|array| array.start).cloned().collect();
        for saved in known {
            if self.start_saved(&saved, false).await {
                continue;
            }
            let operator = self.clone();
            tracing::warn!(array = saved.name, ?wait, "members are missing: waiting for them");
            tokio::spawn(async move {
                let deadline = tokio::time::Instant::now() + wait;
                loop {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    let late = tokio::time::Instant::now() >= deadline;
                    if operator.start_saved(&saved, late).await || late {
                        return;
                    }
                }
            });
        }
    }

    /// Starts a known array if all its members are here, or, `late`, with those that are. True if it runs, or should not.
    async fn start_saved(&self, saved: &SavedArray, late: bool) -> bool {
        let _turn = self.one_at_a_time.lock().await;
        let Some(uuid) = parse_uuid(&saved.uuid) else { return false };
        // Meanwhile the operator may have started it, or have said that it is to be left alone.
        let is_wanted = self.saved(&uuid).is_some_and(|saved| saved.start);
        if !is_wanted || self.service.registry.by_uuid(&uuid).is_some() {
            return true;
        }
        let last_seen = saved.members.clone();
        let found = blocking(move || {
            let paths = find_members(&uuid, &last_seen);
            let whole = is_whole(&paths);
            (paths, whole)
        });
        let Ok((paths, whole)) = found.await else { return false };
        if !whole && !late {
            self.waiting()
                .insert(saved.uuid.clone(), "some of its members are missing, raidd waits for them".into());
            return false;
        }
        let name = Some(saved.name.clone());
        let options = AssembleOptions { name, read_only: saved.read_only, ..Default::default() };
        match self.start_array(paths, Some(uuid), false, options, saved.protected).await {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(array = saved.name, %error, "cannot be started");
                self.waiting().insert(saved.uuid.clone(), error.to_string());
                false
            }
        }
    }

    // Stopping an array.

    async fn stop(&self, name: &str, force: bool) -> Result<Reply, Problem> {
        let _turn = self.one_at_a_time.lock().await;
        let Some(entry) = self.service.registry.get(name) else {
            if let Some(uuid) = self.uuid_of(name) {
                self.without_device(&uuid, name, force).await?;
            }
            return self.forget_inactive(name);
        };
        self.without_device(&entry.uuid, name, force).await?;
        self.stop_entry(&entry, force).await?;
        let uuid = format_uuid(&entry.uuid);
        self.remember(|state| state.update(&uuid, |array| array.start = false));
        self.events.teller().tell(name, "DeviceDisappeared", None);
        tracing::info!(array = name, "stopped");
        Ok(Reply::Done)
    }

    /// Makes sure that an array is not attached, with `force` by taking its device away.
    pub(super) async fn without_device(
        &self,
        uuid: &[u8; 16],
        name: &str,
        force: bool,
    ) -> Result<(), Problem> {
        let Some(device) = self.device_of(uuid) else { return Ok(()) };
        if !force {
            let why = format!(
                "{name} is attached as {device}: raidctl detach {name} first, or stop it with --force"
            );
            return Err(problem(ProblemCode::ArrayInUse, why));
        }
        self.detach_device(uuid, name, true).await.map(drop)
    }

    /// An array that does not run, but should, is told not to.
    fn forget_inactive(&self, name: &str) -> Result<Reply, Problem> {
        let known = self.state().arrays().iter().find(|array| array.start && array.name == name).cloned();
        let Some(known) = known else { return Err(Problem::no_such_array(name)) };
        self.waiting().remove(&known.uuid);
        self.remember(|state| state.update(&known.uuid, |array| array.start = false));
        Ok(Reply::Done)
    }

    pub(super) async fn stop_entry(&self, entry: &Arc<Entry>, force: bool) -> Result<(), Problem> {
        let name = &entry.name;
        let clients = entry.close(force).map_err(|connected| {
            let why = format!(
                "{connected} NBD clients are connected to {name}: disconnect them, or stop it with --force"
            );
            problem(ProblemCode::ArrayInUse, why)
        })?;
        stop_clients(entry.id, clients);
        let deadline = tokio::time::Instant::now() + CLIENTS_LEAVE;
        while entry.connections() > 0 {
            if tokio::time::Instant::now() >= deadline {
                entry.reopen();
                let why =
                    format!("the clients of {name} do not leave: try again, or disconnect them by hand");
                return Err(problem(ProblemCode::ArrayInUse, why));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.note_scrub(entry).await;
        let (id, home) = (entry.id, entry.home.clone());
        let stopped = home.call(move || async move {
            let Some(array) = move_out(id) else { return Ok(()) };
            array.stop().await
        });
        let result = stopped.await.map_err(|_| internal("a reactor has ended"))?;
        // Whatever became of the last flush, the array does not run any more, and its members are free.
        self.service.registry.remove(name);
        result.map_err(|error| {
            let why = format!(
                "{name} was stopped, but could not be flushed or marked clean: {error}; it will be resynced"
            );
            problem(ProblemCode::MemberIo, why)
        })
    }

    /// Stops everything, for the end of the daemon. True if all went well.
    pub async fn stop_all(&self) -> bool {
        let _turn = self.one_at_a_time.lock().await;
        let mut clean = true;
        for entry in self.service.registry.all() {
            if let Err(error) = self.stop_entry(&entry, true).await {
                tracing::error!(array = entry.name, %error, "not stopped cleanly");
                clean = false;
            }
        }
        clean
    }

    // Looking at arrays.

    pub(super) async fn status_of(&self, entry: &Entry) -> Result<Status, Problem> {
        let facts = self.facts_of(entry).await.ok_or_else(|| Problem::no_such_array(&entry.name))?;
        let mut status = report::status(&facts, &self.listeners, entry.connections() as u64);
        report::add_saved(&mut status, self.saved(&entry.uuid).as_ref());
        status.device = self.device_of(&entry.uuid);
        add_concerns(&mut status, self.concerns.of(entry.id));
        Ok(status)
    }

    /// The engine's picture of an array, while it runs.
    pub(super) async fn facts_of(&self, entry: &Entry) -> Option<ArrayStatus> {
        let id = entry.id;
        let facts =
            entry.home.call(move || async move { present(id).await.map(|array| array.status()) }).await;
        facts.ok().flatten()
    }

    async fn status(&self, name: &str) -> Result<Reply, Problem> {
        if let Some(entry) = self.service.registry.get(name) {
            return Ok(Reply::Array(Box::new(self.status_of(&entry).await?)));
        }
        let inactive = self.inactive().into_iter().find(|status| status.name == name);
        inactive.map(|status| Reply::Array(Box::new(status))).ok_or_else(|| Problem::no_such_array(name))
    }

    async fn list(&self) -> Result<Reply, Problem> {
        let mut all = self.inactive();
        for entry in self.service.registry.all() {
            all.extend(self.status_of(&entry).await.ok());
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Reply::Arrays(all))
    }

    fn no_such_array(&self, name: &str) -> Problem {
        let running = self.service.registry.all();
        let state = self.state();
        let names = running.iter().map(|entry| entry.name.as_str());
        Problem::no_such_array_among(
            name,
            names.chain(state.arrays().iter().map(|array| array.name.as_str())),
        )
    }

    /// The arrays that should run and do not.
    fn inactive(&self) -> Vec<Status> {
        let waiting = self.waiting().clone();
        let mut idle: Vec<_> = self.state().arrays().iter().filter(|array| array.start).cloned().collect();
        idle.retain(|array| self.service.registry.get(&array.name).is_none());
        let status = |array: SavedArray| {
            let mut status = report::inactive(&array.last, waiting.get(&array.uuid).cloned());
            status.device = parse_uuid(&array.uuid).and_then(|uuid| self.device_of(&uuid));
            status
        };
        idle.into_iter().map(status).collect()
    }
}

impl control::Operator for Operator {
    fn events(&self) -> (Vec<Event>, Option<broadcast::Receiver<Event>>) {
        self.events.subscribe()
    }

    async fn execute(&self, command: Command) -> Result<Reply, Problem> {
        let name = command.array().map(str::to_owned);
        let done = self.carry_out(command).await;
        match (done, name) {
            // Other words for that code say something else to do.
            (Err(problem), Some(name)) if problem == Problem::no_such_array(&name) => {
                Err(self.no_such_array(&name))
            }
            (done, _) => done,
        }
    }
}

impl Operator {
    async fn carry_out(&self, command: Command) -> Result<Reply, Problem> {
        match command {
            Command::Create(spec) => self.create(spec).await,
            Command::Assemble(request) => self.assemble(request).await,
            Command::AssembleScan => self.scan().await,
            Command::Stop { name, force, release: false } => self.stop(&name, force).await,
            Command::Stop { name, force, release: true } => self.release(&name, force).await,
            Command::List => self.list().await,
            Command::Status { name } => self.status(&name).await,
            Command::Fail { name, device } => self.fail(&name, device).await,
            Command::Remove { name, device } => self.remove(&name, device).await,
            Command::Add { name, device } => self.add(&name, device).await,
            Command::ReAdd { name, device } => self.re_add(&name, device).await,
            Command::Replace { name, old, new } => self.replace(&name, old, new).await,
            Command::Scrub { name, scrub } => self.scrub(&name, scrub).await,
            Command::Findings { name } => self.findings(&name).await,
            Command::Stats { name } => self.stats(&name).await,
            Command::Daemon => Ok(self.daemon()),
            Command::ReadOnly { name } => self.set_read_only(&name, true).await,
            Command::ReadWrite { name } => self.set_read_only(&name, false).await,
            Command::Pause { name } => self.set_paused(&name, true).await,
            Command::Resume { name } => self.set_paused(&name, false).await,
            Command::Tune { name, tuning } => self.tune(&name, tuning).await,
            Command::Grow { name, how } => self.grow(&name, &how).await,
            Command::Attach { name, how } => self.attach(&name, &how).await,
            Command::Detach { name, force } => self.detach(&name, force).await,
            Command::Inject { name, device, fault } => self.inject(&name, device, fault).await,
        }
    }
}
