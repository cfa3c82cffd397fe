//! Members that disappeared and are there again: taken back without being asked, by the bitmap.
//!
//! Invariants:
//! - Only a member that the engine calls absent; never one that the operator or its media failed.
//! - It is known by the array's UUID, its own and its number, all three, at the path that it had or at one that the kernel
//!   has news of.
//! - Not while an operation on its old device is outstanding: a write that is late must not land on what was caught up.
//! - Each attempt doubles the time to the next one of the same member, so that a disk that comes and goes costs little.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::array_home::ArrayId;
use super::attach::is_own_device;
use super::faults::MemberDisk;
use super::membership::Welcome;
use super::operator::{Operator, blocking};
use super::probe;
use super::registry::Entry;
use crate::api::{AutoReAdd, Problem};
use crate::engine::Absent;

/// The time between the first two attempts.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest time between two. A member that has been well for so long begins anew.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// How long a device may take to be looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Devices that the kernel had news of: the latest.
const NEWS_MAX: usize = 64;

/// What is known of members that come and go.
#[derive(Default)]
pub struct Returning {
    /// By array and device UUID.
    attempts: HashMap<(ArrayId, [u8; 16]), Attempts>,
    news: VecDeque<PathBuf>,
}

struct Attempts {
    next: Instant,
    pause: Duration,
    /// It has been taken out of the array to be taken back, and was not yet.
    out: Option<Absent>,
}

impl Attempts {
    fn new(now: Instant) -> Attempts {
        Attempts { next: now, pause: PAUSE_MIN, out: None }
    }

    /// Whether it is time; if so, it is counted.
    fn begin(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        if now > self.next + PAUSE_MAX {
            self.pause = PAUSE_MIN;
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

impl Returning {
    /// A block device has appeared, or changed.
    pub fn note(&mut self, path: PathBuf) {
        if is_own_device(&path) {
            return;
        }
        self.news.retain(|known| *known != path);
        if self.news.len() == NEWS_MAX {
            self.news.pop_front();
        }
        self.news.push_back(path);
    }

    /// Forgets arrays that do not run any more.
    pub fn keep(&mut self, runs: impl Fn(ArrayId) -> bool) {
        self.attempts.retain(|(array, _), _| runs(*array));
    }

    /// Members of an array that were taken out of it to be taken back.
    fn out_of(&self, array: ArrayId) -> Vec<Absent> {
        let attempts = self.attempts.iter().filter(|((id, _), _)| *id == array);
        attempts.filter_map(|(_, attempts)| attempts.out.clone()).collect()
    }

    fn places(&self, absent: &Absent) -> Vec<PathBuf> {
        let news = self.news.iter().rev().filter(|path| **path != Path::new(&absent.path));
        std::iter::once(PathBuf::from(&absent.path)).chain(news.cloned()).collect()
    }
}

/// Where a member is. This blocks.
fn find(places: &[PathBuf], set_uuid: [u8; 16], absent: &Absent) -> Option<String> {
    let is_it = |path: &&PathBuf| {
        probe::superblock(path).is_some_and(|found| {
            (found.set_uuid, found.device_uuid, found.dev_number)
                == (set_uuid, absent.device_uuid, absent.dev_number)
        })
    };
    places.iter().find(is_it)?.to_str().map(str::to_owned)
}

impl Operator {
    /// Takes back whoever of an array has come back.
    pub(super) async fn take_back(&self, entry: &Entry, returning: &mut Returning) {
        let policy = self.saved(&entry.uuid).and_then(|saved| saved.tuning.auto_re_add).unwrap_or_default();
        if policy == AutoReAdd::Off {
            return;
        }
        for absent in self.awaited(entry, policy, returning).await {
            let places = returning.places(&absent);
            let key = (entry.id, absent.device_uuid);
            let now = Instant::now();
            let attempts = returning.attempts.entry(key).or_insert_with(|| Attempts::new(now));
            if now < attempts.next {
                continue;
            }
            let (uuid, looked_for) = (entry.uuid, absent.clone());
            let look = blocking(move || find(&places, uuid, &looked_for));
            let path = match tokio::time::timeout(LOOK, look).await {
                Ok(Ok(Some(path))) => path,
                Ok(_) => continue,
                // One that hangs again is not looked at again so soon.
                Err(_) => {
                    attempts.begin(now);
                    continue;
                }
            };
            if !attempts.begin(now) {
                continue;
            }
            let name = &entry.name;
            match self.take_in(entry, policy, &absent, &path, attempts).await {
                Ok(()) => {
                    attempts.out = None;
                    tracing::info!(array = name, member = path, "a member that disappeared is back");
                    self.events.teller().tell(name, "MemberReturned", Some(path));
                }
                Err(why) => {
                    tracing::warn!(array = name, member = path, %why, again_in = ?attempts.pause, "not taken back");
                }
            }
            if let Err(why) = self.changed(entry).await {
                tracing::warn!(array = name, %why, "its members are not on record");
            }
        }
    }

    /// The members of an array that may be taken back if they are there.
    async fn awaited(&self, entry: &Entry, policy: AutoReAdd, returning: &mut Returning) -> Vec<Absent> {
        let out = returning.out_of(entry.id);
        let found = Self::on_array(entry, |array| async move {
            let mut absent = array.absent_members();
            absent.retain(|member| member.in_flight == 0 && !MemberDisk::is_withheld(&member.path));
            // The operator may have been first.
            let (back, out): (Vec<_>, Vec<_>) =
                out.into_iter().partition(|member| array.has_device(&member.device_uuid));
            Ok((absent, back, out))
        });
        let Ok((mut absent, back, out)) = found.await else { return Vec::new() };
        for member in back {
            returning.attempts.remove(&(entry.id, member.device_uuid));
        }
        absent.retain(|member| member.may_catch_up || policy == AutoReAdd::Spare);
        absent.extend(out);
        absent
    }

    /// Lets go of what is left of a member, and takes it in again.
    async fn take_in(
        &self,
        entry: &Entry,
        policy: AutoReAdd,
        absent: &Absent,
        path: &str,
        attempts: &mut Attempts,
    ) -> Result<(), Problem> {
        if attempts.out.is_none() {
            let label = absent.path.clone();
            Self::on_array(entry, |array| async move { array.remove(&label).await }).await?;
            attempts.out = Some(absent.clone());
        }
        let welcome = if policy == AutoReAdd::Spare { Welcome::BackOrNew } else { Welcome::Back };
        self.welcome(entry, path.to_owned(), welcome).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut attempts = Attempts::new(start);
        let begun: Vec<u64> = (0..1300).filter(|&second| attempts.begin(at(second))).collect();
        assert_eq!(begun, [0, 5, 15, 35, 75, 155, 315, 615, 915, 1215]);
        // Long after the last one it begins anew.
        assert!(attempts.begin(at(3000)) && !attempts.begin(at(3004)) && attempts.begin(at(3005)));
    }

    #[test]
    fn the_latest_news_are_kept() {
        let mut returning = Returning::default();
        for number in 0..NEWS_MAX + 3 {
            returning.note(PathBuf::from(format!("/dev/d{number}")));
        }
        returning.note(PathBuf::from("/dev/d10"));
        assert_eq!(returning.news.len(), NEWS_MAX);
        let absent = Absent {
            path: "/dev/d20".into(),
            device_uuid: [1; 16],
            dev_number: 1,
            may_catch_up: true,
            in_flight: 0,
        };
        let places = returning.places(&absent);
        assert_eq!(
            (places.len(), places[0].to_str(), places[1].to_str()),
            (NEWS_MAX, Some("/dev/d20"), Some("/dev/d10"))
        );
    }
}
