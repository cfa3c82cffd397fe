//! The devices of arrays: opened for a new one, found and opened for one that exists. All of this blocks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::attach::is_own_device;
use super::membership::{SpareIdentity, Welcome};
use super::operator::{open_problem, problem};
use super::patience::{self, Silent};
use super::probe;
use crate::api::{BitmapChoice, ConsistencyPolicy, CreateArray, Init, MISSING, Problem, ProblemCode};
use crate::layout::Level;
use crate::md::create::{CreateError, CreateSpec, Created, NewMember, plan, set_name};
use crate::md::format_uuid;
use crate::md::superblock::pack_name;
use crate::reactor::{Identity, OpenOptions, OpenedDisk};
use crate::units::Sector;

/// Bytes of a chunk by default. Without parity mdadm's; with parity less than mdadm's 512 KiB, so that a client's queue holds
/// whole stripes: eight writes of 128 KiB one behind the other are two stripes of four members, and are written without
/// reading anything, where with mdadm's they would be parts of one stripe and have old data and parity read for each of them.
const fn chunk_bytes(level: Level) -> u64 {
    match level {
        Level::Raid4 | Level::Raid5 | Level::Raid6 => 128 << 10,
        Level::Raid0 | Level::Raid1 | Level::Raid10 => 512 << 10,
    }
}

/// How long members' locks are waited for: a daemon that was killed may still have writes in its ring.
const WAIT_FOR_LOCK: Duration = Duration::from_secs(5);

/// A disk that is to be a member, with its path as the operator wrote it.
pub struct Candidate {
    pub disk: OpenedDisk,
    pub label: String,
}

/// Opens what is to become an array, and refuses what should not. Nothing is written but the allocation of files.
pub fn open_for_create(spec: &CreateArray, level: Level) -> Result<Vec<Option<Candidate>>, Problem> {
    let slots = spec.devices.iter().map(|path| Some(path).filter(|path| *path != MISSING));
    let all: Vec<Option<&String>> = slots.chain(spec.spares.iter().map(Some)).collect();
    check_distinct(all.iter().copied().flatten())?;
    let mut out = Vec::new();
    for path in all {
        let Some(path) = path else {
            out.push(None);
            continue;
        };
        let disk = open(Path::new(path), OpenOptions::default())?;
        if !spec.force
            && let Some(what) = probe::contents(Path::new(path))
                .map_err(|why| problem(ProblemCode::DeviceUnavailable, why))?
        {
            let why =
                format!("{path} holds {what}, which would be lost: choose another device, or use --force");
            return Err(problem(ProblemCode::DeviceNotEmpty, why));
        }
        out.push(Some(Candidate { disk, label: path.clone() }));
    }
    check_sizes(spec, level, out.iter().flatten())?;
    for candidate in out.iter().flatten() {
        // A filesystem that fills up later would fail all of its members at once.
        if !candidate.disk.allocate().map_err(|error| open_problem(&error))? {
            tracing::warn!(
                member = candidate.label,
                "its filesystem cannot reserve space; see that it does not fill up"
            );
        }
    }
    Ok(out)
}

/// An array's name as its superblocks have it: with this machine's, where both fit.
fn full_name(name: &str) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok()).unwrap_or_default();
    set_name(&host, name)
}

/// The same, packed. None: it is too long even so.
pub fn stored_name(name: &str) -> Option<[u8; 32]> {
    pack_name(&full_name(name))
}

/// Opens a device that is to become a member of a running array, and says whether it was one before. Refused: what holds
/// anything else, what was no member where only one is welcome, and what is not the spare that it is said to be.
pub fn open_to_add(path: &str, set_uuid: &[u8; 16], welcome: Welcome) -> Result<(Candidate, bool), Problem> {
    // A device that was just removed is let go when its last operation has ended.
    let options = OpenOptions { wait_for_lock: WAIT_FOR_LOCK, ..OpenOptions::default() };
    let disk = open(Path::new(path), options)?;
    let superblock = probe::superblock(Path::new(path));
    let was_member = superblock.as_ref().is_some_and(|superblock| superblock.set_uuid == *set_uuid);
    if welcome == Welcome::Back && !was_member {
        let what = match superblock {
            Some(other) => format!("a member of another array, {}", format_uuid(&other.set_uuid)),
            None => "no md superblock".into(),
        };
        let why = format!("{path} was no member of this array (found: {what}): use add for a new device");
        return Err(problem(ProblemCode::MembersDisagree, why));
    }
    if let Welcome::Spare(wanted) = welcome {
        if superblock.as_ref().and_then(SpareIdentity::of) != Some(wanted) {
            let why = format!("{path} is not the spare any more that it was: nothing was written to it");
            return Err(problem(ProblemCode::MembersDisagree, why));
        }
    } else if !was_member
        && let Some(what) = probe::contents(Path::new(path))
            .map_err(|why| problem(ProblemCode::DeviceUnavailable, why.replace(", or use --force", "")))?
    {
        let how = match superblock {
            Some(_) => format!("raidctl zero-superblock {path}"),
            None => format!("wipefs --all {path}"),
        };
        let why = format!(
            "{path} holds {what}, which would be lost: choose another device, or, if it may go, clear it with `{how}` first"
        );
        return Err(problem(ProblemCode::DeviceNotEmpty, why));
    }
    if !disk.allocate().map_err(|error| open_problem(&error))? {
        tracing::warn!(member = path, "its filesystem cannot reserve space; see that it does not fill up");
    }
    Ok((Candidate { disk, label: path.to_owned() }, was_member))
}

/// Opens a device, if it answers.
fn open(path: &Path, options: OpenOptions) -> Result<OpenedDisk, Problem> {
    let opened = patience::ask(path, options.wait_for_lock, move |path| {
        if path.canonicalize().is_ok_and(|path| is_own_device(&path)) {
            let path = path.display();
            let why =
                format!("{path}: raidd itself is behind it: choose a device that is none of its arrays");
            return Err(problem(ProblemCode::DeviceInUse, why));
        }
        OpenedDisk::open(path, options).map_err(|error| open_problem(&error))
    });
    opened.map_err(silent_problem)?
}

/// Says which device it is, if it answers.
pub fn identify(path: &Path) -> Result<Identity, Problem> {
    let identity = patience::ask(path, Duration::ZERO, Identity::of);
    identity.map_err(silent_problem)?.map_err(|error| open_problem(&error))
}

fn silent_problem(silent: Silent) -> Problem {
    problem(ProblemCode::DeviceUnavailable, silent.to_string())
}

fn check_distinct<'a>(paths: impl Iterator<Item = &'a String>) -> Result<(), Problem> {
    let mut seen: HashMap<Identity, &String> = HashMap::new();
    for path in paths {
        let identity = identify(Path::new(path))?;
        if let Some(other) = seen.insert(identity, path) {
            let why = format!("{other} and {path} are one and the same device: name each member once");
            return Err(problem(ProblemCode::InvalidRequest, why));
        }
    }
    Ok(())
}

/// Refuses members of which much would lie idle, as that is more often a mistake than meant.
fn check_sizes<'a>(
    spec: &CreateArray,
    level: Level,
    members: impl Iterator<Item = &'a Candidate> + Clone,
) -> Result<(), Problem> {
    if spec.force || spec.size_bytes.is_some() || level == Level::Raid0 {
        return Ok(());
    }
    let size = |candidate: &&Candidate| candidate.disk.info().size_bytes;
    let (Some(small), Some(large)) = (members.clone().min_by_key(size), members.max_by_key(size)) else {
        return Ok(());
    };
    if size(&large) / 2 >= size(&small).max(1) {
        let why = format!(
            "{} is more than twice as large as {} and most of it would lie idle: choose members of one size, give --size, \
             or use --force",
            large.label, small.label
        );
        return Err(problem(ProblemCode::DeviceUnsuitable, why));
    }
    Ok(())
}

/// The new array's metadata, and the devices that it goes to.
pub fn plan_create(
    spec: &CreateArray,
    level: Level,
    layout: u32,
    candidates: Vec<Option<Candidate>>,
) -> Result<(Created, Vec<Candidate>), Problem> {
    let sectors = |candidate: &Option<Candidate>| {
        candidate.as_ref().map(|candidate| Sector::floor(candidate.disk.info().size_bytes))
    };
    let (members, spares) = candidates.split_at(spec.devices.len());
    let members: Vec<_> = members.iter().map(sectors).collect();
    let chunk_bytes = match level {
        Level::Raid1 => 0,
        _ => spec.chunk_bytes.unwrap_or(chunk_bytes(level)),
    };
    let whole_sectors = |bytes: u64, what: &str| {
        if bytes.is_multiple_of(512) {
            return Ok(Sector::floor(bytes));
        }
        let why = format!("{what} of {bytes} bytes is no whole number of sectors: use a multiple of 512");
        Err(problem(ProblemCode::InvalidRequest, why))
    };
    let bitmap = match (spec.bitmap, spec.consistency_policy) {
        (Some(choice), _) => choice == BitmapChoice::Internal,
        (None, Some(policy)) => policy == ConsistencyPolicy::Bitmap,
        (None, None) => level.is_redundant(),
    };
    let name = full_name(&spec.name);
    let plan_spec = CreateSpec {
        name: &name,
        level: level.md(),
        layout,
        chunk: whole_sectors(chunk_bytes, "a chunk")?,
        spares: spares.iter().filter_map(sectors).collect(),
        size: spec.size_bytes.map(Sector::floor),
        bitmap,
        ppl: spec.consistency_policy == Some(ConsistencyPolicy::Ppl),
        clean: spec.init != Init::Resync,
        set_uuid: uuid::Uuid::new_v4().into_bytes(),
        device_uuids: candidates.iter().flatten().map(|_| uuid::Uuid::new_v4().into_bytes()).collect(),
        wall_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        members,
    };
    let created = plan(&plan_spec)
        .map_err(|error| problem(ProblemCode::DeviceUnsuitable, name_devices(&error, spec)))?;
    Ok((created, candidates.into_iter().flatten().collect()))
}

/// The planner speaks of slots and numbers; people think of devices and names.
fn name_devices(error: &CreateError, spec: &CreateArray) -> String {
    match (error, &spec.layout) {
        (CreateError::DeviceTooSmall { member, .. }, _) => {
            let path = match member {
                NewMember::Slot(slot) => spec.devices.get(slot.index()),
                NewMember::Spare(index) => spec.spares.get(*index),
            };
            path.map_or_else(|| error.to_string(), |path| format!("{path}: {error}"))
        }
        (CreateError::Layout { level, .. }, Some(name)) => format!(
            "level {level} has no layout {name} with {} members; leave --layout out for the usual one",
            spec.devices.len()
        ),
        _ => error.to_string(),
    }
}

/// Opens the members of an array. `strict`: all of them must be usable; otherwise those that are not are passed over.
pub fn open_members(
    paths: &[PathBuf],
    uuid: Option<[u8; 16]>,
    strict: bool,
    read_only: bool,
) -> Result<Vec<Candidate>, Problem> {
    let mut seen: HashMap<Identity, &PathBuf> = HashMap::new();
    let mut out = Vec::new();
    let deadline = Instant::now() + WAIT_FOR_LOCK; // for all of them together
    for path in paths {
        if let Some(uuid) = uuid
            && probe::superblock(path).is_none_or(|superblock| superblock.set_uuid != uuid)
        {
            if strict {
                let why =
                    format!("{} is no member of array {}: leave it out", path.display(), format_uuid(&uuid));
                return Err(problem(ProblemCode::MembersDisagree, why));
            }
            continue;
        }
        let wait_for_lock = deadline.saturating_duration_since(Instant::now());
        let options = OpenOptions { read_only, exclusive: true, wait_for_lock };
        let identity = match identify(path) {
            Ok(identity) => identity,
            Err(error) if strict => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "member left out");
                continue;
            }
        };
        if let Some(other) = seen.insert(identity, path) {
            if !strict {
                continue;
            }
            let (a, b) = (other.display(), path.display());
            let why = format!("{a} and {b} are one and the same device: name each member once");
            return Err(problem(ProblemCode::InvalidRequest, why));
        }
        match open(path, options) {
            Ok(disk) => out.push(Candidate { disk, label: path.display().to_string() }),
            Err(error) if strict => return Err(error),
            Err(error) => tracing::warn!(%error, "member left out"),
        }
    }
    Ok(out)
}

/// Where the members of an array are: where they were last seen, and else wherever a block device says so.
pub fn find_members(uuid: &[u8; 16], last_seen: &[String]) -> Vec<PathBuf> {
    let is_member =
        |path: &PathBuf| probe::superblock(path).is_some_and(|superblock| superblock.set_uuid == *uuid);
    let known: Vec<_> = last_seen.iter().map(PathBuf::from).filter(is_member).collect();
    if known.len() == last_seen.len() && !known.is_empty() {
        return known;
    }
    let mut all = known;
    let mut seen: Vec<_> = all.iter().filter_map(|path| identify(path).ok()).collect();
    for path in probe::block_devices().into_iter().filter(is_member) {
        let Ok(identity) = identify(&path) else { continue };
        if !seen.contains(&identity) {
            seen.push(identity);
            all.push(path);
        }
    }
    all
}

/// Every array of which there is a member, and where its members are.
pub fn find_all(known: &[String]) -> HashMap<[u8; 16], Vec<PathBuf>> {
    let mut out: HashMap<[u8; 16], Vec<PathBuf>> = HashMap::new();
    let mut seen = Vec::new();
    for path in known.iter().map(PathBuf::from).chain(probe::block_devices()) {
        let Some(superblock) = probe::superblock(&path) else { continue };
        let Ok(identity) = identify(&path) else { continue };
        if !seen.contains(&identity) {
            seen.push(identity);
            out.entry(superblock.set_uuid).or_default().push(path);
        }
    }
    out
}

/// Whether these are all the members that the freshest of them calls active.
pub fn is_whole(paths: &[PathBuf]) -> bool {
    let superblocks: Vec<_> = paths.iter().filter_map(|path| probe::superblock(path)).collect();
    let holders = superblocks.iter().filter(|superblock| superblock.role().slot().is_some());
    let Some(truth) = holders.clone().max_by_key(|superblock| superblock.events) else { return false };
    let expected = truth.dev_roles.iter().filter(|role| role.slot().is_some()).count();
    let here = holders.filter(|superblock| truth.role_of(superblock.dev_number).slot().is_some()).count();
    here >= expected
}
