//! Spares that arrays share: one that has lost a member and has no spare gets that of another array of its group, as
//! `mdadm --monitor` does it for a `spare-group`.
//!
//! Invariants:
//! - A spare is taken only from an array that is whole, and given only to one that has been degraded for [`PATIENCE`] with
//!   nothing being done about it: a member that was away for a moment is back by then.
//! - It is the spare of that very array, by what its superblock says before it is let go of and after it was opened again, or it is
//!   left alone. What will not do goes back, and is not offered to the same array again for [`PAUSE`].
//! - Between the two arrays it belongs to none. A crash then leaves it so: a device that carries the superblock of a spare. The
//!   daemon's end waits for it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::array_home::ArrayId;
use super::membership::{SpareIdentity, Welcome};
use super::operator::{Operator, blocking};
use super::probe;
use super::registry::Entry;
use crate::api::{ArrayState, Health, MemberState, Status, SyncAction};
use crate::engine::{self, Refusal};

/// How long an array is left to itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a spare that was not taken is not offered to the same array again.
const PAUSE: Duration = Duration::from_secs(600);

/// What is remembered between looks.
#[derive(Default)]
pub(super) struct Sharing {
    needy_since: HashMap<ArrayId, Instant>,
    /// Spares, by their paths, that an array did not take, and until when they are not offered to it.
    refused: HashMap<(ArrayId, String), Instant>,
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
    pub(super) async fn share_spares(self: &Arc<Self>, sharing: &mut Sharing) {
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
        sharing.refused.retain(|(id, _), until| needy(id) && now < *until);
        for (to, group, _) in arrays.iter().filter(|(_, _, status)| is_needy(status)) {
            let since = *sharing.needy_since.entry(to.id).or_insert(now);
            if now - since < PATIENCE {
                continue;
            }
            let others = arrays.iter().filter(|(from, other, status)| {
                from.id != to.id && other == group && status.health == Health::Optimal
            });
            let found = others
                .flat_map(|(from, _, status)| spares(status).map(move |path| (from.clone(), path.to_owned())))
                .find(|(_, path)| !sharing.refused.contains_key(&(to.id, path.clone())));
            let Some((from, path)) = found else { continue };
            // A task of its own, which goes on when this one is ended with the daemon: that waits for its turn.
            let (operator, lent, gets) = (self.clone(), path.clone(), to.clone());
            let moved = tokio::spawn(async move { operator.move_spare(&from, &gets, &lent).await });
            if !matches!(moved.await, Ok(true)) {
                sharing.refused.insert((to.id, path), now + PAUSE);
            }
            // What was seen of the others may be so no more.
            return;
        }
    }

    /// True if it was moved.
    async fn move_spare(&self, from: &Arc<Entry>, to: &Arc<Entry>, path: &str) -> bool {
        let _turn = self.one_at_a_time.lock().await;
        let refuse = |why: &dyn std::fmt::Display| {
            tracing::warn!(from = from.name, to = to.name, spare = path, %why, "a shared spare is not moved");
            false
        };
        let look = PathBuf::from(path);
        let found = blocking(move || probe::superblock(&look)).await.ok().flatten();
        let identity = found.as_ref().and_then(SpareIdentity::of);
        let Some(identity) = identity.filter(|spare| spare.set_uuid == from.uuid) else {
            return refuse(
                &"by its superblock it is no spare of that array: was another disk put in its place?",
            );
        };
        let label = path.to_owned();
        let removed = Self::on_array(from, |array| async move {
            match array.health() {
                engine::Health::Optimal => array.remove(&label).await,
                _ => Err(Refusal::NotNow("that array needs it itself".into())),
            }
        });
        if let Err(why) = removed.await {
            return refuse(&why);
        }
        let taken = self.welcome(to, path.to_owned(), Welcome::Spare(identity)).await;
        if let Err(why) = &taken {
            refuse(why);
            if let Err(again) = self.welcome(from, path.to_owned(), Welcome::Spare(identity)).await {
                tracing::error!(array = from.name, spare = path, why = %again, "a spare was not taken back");
            }
        }
        for entry in [from, to] {
            if let Err(why) = self.changed(entry).await {
                tracing::warn!(array = entry.name, %why, "its members are not on record");
            }
        }
        if taken.is_ok() {
            tracing::info!(from = from.name, to = to.name, spare = path, "a shared spare was moved");
            self.events.teller().tell(&to.name, "MoveSpare", Some(path.to_owned()));
        }
        taken.is_ok()
    }
}
