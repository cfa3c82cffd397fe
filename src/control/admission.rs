//! Who may do what over the control socket, by what the kernel says of whoever connected (SO_PEERCRED).
//!
//! | who | may |
//! |---|---|
//! | root, and the user that raidd runs as | do everything |
//! | members of the group | do everything |
//! | members of the readers' group | look |
//! | everybody else | nothing, where there is a group or a readers' group; else whoever made the socket has decided who can open it |
//!
//! Groups are looked up by the user, not by the process: its number may be another's by then.

use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nix::unistd::{Gid, Uid, User, getgrouplist};

use super::routes::Refusal;
use crate::api::{Problem, ProblemCode};

/// Who is let in beside root and the user that raidd runs as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Its members may do everything.
    pub group: Option<Gid>,
    /// Its members may look.
    pub readers: Option<Gid>,
}

/// Whoever is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rights {
    None,
    Look,
    All,
}

impl Admission {
    /// What somebody may do who is in these groups.
    fn rights(&self, uid: Uid, groups: &[Gid]) -> Rights {
        let is_in = |group: Option<Gid>| group.is_some_and(|group| groups.contains(&group));
        if uid.is_root() || uid == Uid::effective() || *self == Admission::default() || is_in(self.group) {
            Rights::All
        } else if is_in(self.readers) {
            Rights::Look
        } else {
            Rights::None
        }
    }

    /// Groups need not be looked up where they change nothing; where they do, that may take its time.
    async fn rights_of(self, peer: Peer) -> Rights {
        let (uid, gid) = (Uid::from_raw(peer.uid), Gid::from_raw(peer.gid));
        let rights = self.rights(uid, &[gid]);
        if rights == Rights::All {
            return rights;
        }
        let looked_up = tokio::task::spawn_blocking(move || self.rights(uid, &groups_of(uid, gid)));
        looked_up.await.unwrap_or(rights)
    }
}

/// All groups of a user, as far as they are known; one at least.
fn groups_of(uid: Uid, gid: Gid) -> Vec<Gid> {
    let user = User::from_uid(uid).ok().flatten();
    let name = user.and_then(|user| std::ffi::CString::new(user.name).ok());
    let groups = name.and_then(|name| getgrouplist(&name, gid).ok());
    groups.unwrap_or_else(|| vec![gid])
}

/// Lets a request through to whoever answers it, or refuses it.
pub(super) async fn guard(
    State(admission): State<Admission>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let looks = [Method::GET, Method::HEAD].contains(request.method());
    let needed = if looks { Rights::Look } else { Rights::All };
    match admission.rights_of(peer).await {
        rights if rights >= needed => next.run(request).await,
        Rights::Look => refused(
            "members of the readers' group may look, and change nothing: ask as root, or as a member of the group of \
                                 the control socket",
        ),
        _ => refused(
            "this user may not use raidd: ask as root, or as a member of a group that raidd lets in (control_group, \
                      control_read_group)",
        ),
    }
}

fn refused(why: &str) -> Response {
    Refusal::from(Problem::new(ProblemCode::Forbidden, why)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_open_doors() {
        let gid = Gid::from_raw;
        let both = Admission { group: Some(gid(10)), readers: Some(gid(20)) };
        let somebody = Uid::from_raw(Uid::effective().as_raw() + 4711);
        let rights = |admission: Admission, groups: &[u32]| {
            admission.rights(somebody, &groups.iter().copied().map(gid).collect::<Vec<_>>())
        };
        assert_eq!(rights(both, &[5, 10]), Rights::All);
        assert_eq!(rights(both, &[5, 20]), Rights::Look);
        assert_eq!(rights(both, &[10, 20]), Rights::All);
        assert_eq!(rights(both, &[5]), Rights::None);
        let readers = Admission { group: None, ..both };
        assert_eq!((rights(readers, &[10]), rights(readers, &[20])), (Rights::None, Rights::Look));
        // Then the file's mode is all there is.
        assert_eq!(rights(Admission::default(), &[5]), Rights::All);
        for uid in [Uid::from_raw(0), Uid::effective()] {
            assert_eq!(both.rights(uid, &[]), Rights::All);
        }
    }

    #[test]
    fn a_user_that_nobody_knows_has_its_own_group() {
        assert_eq!(groups_of(Uid::from_raw(3_999_999_999), Gid::from_raw(77)), [Gid::from_raw(77)]);
    }
}
