//! Handing an array over to the kernel, on purpose: it is stopped, forgotten, and mdadm may have it.
//!
//! udev looks at a member when raidd closes it, and has mdadm take it if nothing says otherwise. So mdadm's line is dropped
//! while the array still runs and its members are held, and comes back if the array cannot be stopped.

use super::operator::{Operator, internal, problem};
use crate::api::{Problem, ProblemCode, Reply};
use crate::md::{format_uuid, parse_uuid};

impl Operator {
    /// Stops an array if it runs, and forgets it.
    pub(super) async fn release(&self, name: &str, force: bool) -> Result<Reply, Problem> {
        let _turn = self.one_at_a_time.lock().await;
        let running = self.service.registry.get(name);
        let set_uuid = match &running {
            Some(entry) => entry.uuid,
            None => self.remembered_uuid(name)?,
        };
        self.without_device(&set_uuid, name, force).await?;
        let uuid = format_uuid(&set_uuid);
        let kept = |why: String| problem(ProblemCode::Internal, format!("{name} is not released: {why}"));
        self.state().let_mdadm_have(&uuid).map_err(kept)?;
        if let Some(entry) = running
            && let Err(error) = self.stop_entry(&entry, force).await
        {
            self.state().keep_from_mdadm();
            return Err(error);
        }
        self.waiting().remove(&uuid);
        self.remember(|state| state.forget(&uuid));
        self.events.teller().tell(name, "DeviceDisappeared", None);
        tracing::info!(array = name, uuid, "released: mdadm and the kernel may take it");
        Ok(Reply::Done)
    }

    /// The UUID of an array that does not run.
    fn remembered_uuid(&self, name: &str) -> Result<[u8; 16], Problem> {
        let state = self.state();
        let mut known = state.arrays().iter().filter(|array| array.name == name);
        match (known.next(), known.next()) {
            (None, _) => Err(Problem::no_such_array(name)),
            (Some(only), None) => {
                parse_uuid(&only.uuid).ok_or_else(|| internal("a UUID that was remembered cannot be read"))
            }
            (Some(one), Some(other)) => {
                let why = format!(
                    "{} and {} were both called {name}: assemble the one to release by its --uuid first",
                    one.uuid, other.uuid
                );
                Err(problem(ProblemCode::WrongState, why))
            }
        }
    }
}
