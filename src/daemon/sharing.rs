//! Spares that arrays share: one that has lost a member and has no spare gets that of another array of its group, as
//! `mdadm --monitor` does it for a `spare-group`.
//!
//! Invariants:
//! - A spare is taken only from an array that is whole, and given only to one that has been degraded for [`PATIENCE`] with
//!   nothing being done about it: a member that was away for a moment is back by then.
//! - It is the spare of that very array, by what its superblock says, or it is left alone. What will not do goes back, and is
//!   not tried again for the same array.
//! - Between the two arrays it belongs to none. A crash then leaves it so: a device that carries the superblock of a spare.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::array_home::ArrayId;
use super::membership::Welcome;
use super::operator::Operator;
use super::registry::Entry;
use crate::api::{ArrayState, Health, MemberState, Status, SyncAction};

/// How long an array is left to itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is remembered between looks.
#[derive(Default)]
pub(super) struct Sharing {
    needy_since: HashMap<ArrayId, Instant>,
    /// Spares, by their paths, that will not do for an array.
    unfit: HashSet<(ArrayId, String)>,
}

/// Whether an array has lost a member, and nobody is there to take over.
fn is_needy(status: &Status) -> bool {
    let is_vacant = |state| matches!(state, MemberState::Missing | MemberState::Faulty);
    status.health == Health::Degraded
        && matches!(status.state, ArrayState::Clean | ArrayState::Active)
        && status.sync.action == SyncAction::Idle
        && !status.sync_paused
        && status.members.iter().any(|member| is_vacant(member.state))
        && spares(status).next().is_none()
}

/// The spares that an array has and does not need.
fn spares(status: &Status) -> impl Iterator<Item = &str> {
    status
        .spares
        .iter()
        .filter(|spare| spare.state == MemberState::Spare)
        .filter_map(|spare| spare.path.as_deref())
}

impl Operator {
    /// Gives spares to those who need one.
    pub(super) async fn share_spares(&self, sharing: &mut Sharing) {
        let mut arrays = Vec::new();
        for entry in self.service.registry.all() {
            let group = self.saved(&entry.uuid).and_then(|saved| saved.tuning.spare_group);
            if let (Some(group), Ok(status)) =
                (group.filter(|name| !name.is_empty()), self.status_of(&entry).await)
            {
                arrays.push((entry, group, status));
            }
        }
        let now = Instant::now();
        let needy =
            |id: &ArrayId| arrays.iter().any(|(entry, _, status)| entry.id == *id && is_needy(status));
        sharing.needy_since.retain(|id, _| needy(id));
        for (to, group, _) in arrays.iter().filter(|(_, _, status)| is_needy(status)) {
            let since = *sharing.needy_since.entry(to.id).or_insert(now);
            if now - since < PATIENCE {
                continue;
            }
            let others = arrays.iter().filter(|(from, other, status)| {
                from.id != to.id && other == group && status.health == Health::Optimal
            });
            let found = others
                .flat_map(|(from, _, status)| spares(status).map(move |path| (from, path.to_owned())))
                .find(|(_, path)| !sharing.unfit.contains(&(to.id, path.clone())));
            let Some((from, path)) = found else { continue };
            if let Err(why) = self.move_spare(from, to, &path).await {
                tracing::warn!(from = from.name, to = to.name, spare = path, %why, "a shared spare was not moved");
                sharing.unfit.insert((to.id, path));
            }
            // What was seen of the others may be so no more.
            return;
        }
    }

    async fn move_spare(
        &self,
        from: &Arc<Entry>,
        to: &Arc<Entry>,
        path: &str,
    ) -> Result<(), crate::api::Problem> {
        self.remove(&from.name, path.to_owned()).await?;
        let spare = Welcome::Spare(from.uuid);
        if let Err(why) = self.welcome(to, path.to_owned(), spare).await {
            if let Err(again) = self.add(&from.name, path.to_owned()).await {
                tracing::error!(array = from.name, spare = path, why = %again, "a spare was not taken back");
            }
            return Err(why);
        }
        self.changed(to).await?;
        tracing::info!(from = from.name, to = to.name, spare = path, "a shared spare was moved");
        self.events.teller().tell(&to.name, "MoveSpare", Some(path.to_owned()));
        Ok(())
    }
}
