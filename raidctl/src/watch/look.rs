//! One look at everything that the view shows: a few requests to the daemon, one after the other.
//!
//! What an array is comes first. A daemon that does not tell what it does (too old for that, or the array was stopped a moment ago)
//! is shown without.

use raidd::api::{ArrayState, DaemonStatus, Stats, Status};

use crate::failure::Failure;
use crate::identity;
use crate::request::{CallError, Daemon};

/// Arrays that are asked what they do at each look, a request each; of others there is what their status says.
const ASKED_MAX: usize = 64;

/// What was seen.
pub struct Look {
    /// The arrays, in the order of their names.
    pub arrays: Vec<Seen>,
    /// The daemon; none: it does not tell.
    pub daemon: Option<DaemonStatus>,
}

/// One array.
#[derive(Clone)]
pub struct Seen {
    /// What it is.
    pub status: Status,
    /// What it has done; none: it does not run, or nobody counts.
    pub stats: Option<Stats>,
    /// Which disks are to be seen to.
    pub disks: Vec<String>,
}

/// Looks at an array, or at all.
pub fn look(daemon: &Daemon, name: Option<&str>) -> Result<Look, Failure> {
    let arrays = match name {
        Some(name) => vec![daemon.status(name)?],
        None => daemon.list()?,
    };
    let arrays = arrays.into_iter().enumerate().map(|(index, status)| {
        let may_ask = index < ASKED_MAX && status.state != ArrayState::Inactive;
        let stats = match may_ask.then(|| daemon.stats(&status.name)) {
            None | Some(Err(CallError::TooOld | CallError::Refused(_))) => None,
            Some(told) => Some(told.map_err(|error| daemon.explain(error))?),
        };
        Ok(Seen { disks: identity::of_suspects(&status), status, stats })
    });
    let arrays = arrays.collect::<Result<_, Failure>>()?;
    let itself = match daemon.itself() {
        Ok(itself) => Some(itself),
        Err(CallError::TooOld | CallError::Refused(_)) => None,
        Err(error) => return Err(daemon.explain(error)),
    };
    Ok(Look { arrays, daemon: itself })
}
