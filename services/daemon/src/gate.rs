//! Who may call what.
//!
//! Every method begins with [`Gate::enter`], which looks the member up in the access tables and
//! fails for one that is in none. Callers on the bus are judged by polkit, peers on the socket by
//! their credentials: root and the services of banger may do everything, members of the group
//! `banger` what polkit would be asked about.

use std::collections::HashMap;

use banger_api::access::{COMMON, Entry};
use banger_api::{Access, ErrorKind, Result, SERVICES};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use zbus::message::{Flags, Header};
use zbus::{Connection, fdo};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use crate::idle::{Hold, Idle};

/// The group whose members may use the sockets, and whom the shipped polkit rules trust.
const GROUP: &str = "banger";

/// Judges callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    access: &'static [Entry],
    idle: Idle,
}

/// A call that was let in; the service does not leave before it is dropped.
#[derive(Debug)]
pub struct Call {
    pub caller: Caller,
    _hold: Hold,
}

/// Who is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    /// Process id, if the transport knows it. It may be gone, or be another's, by the time it is
    /// used.
    pub pid: Option<u32>,
}

impl Gate {
    pub fn new(access: &'static [Entry], idle: Idle) -> Self {
        Self { access, idle }
    }

    /// Lets a method call in or refuses it. `details` go to polkit, for rules of the admin.
    ///
    /// # Errors
    /// `AccessDenied`, or `InteractiveAuthorizationRequired` if authenticating would help and the
    /// call does not allow it.
    pub async fn enter(
        &self,
        header: &Header<'_>,
        connection: &Connection,
        details: &[(&str, &str)],
    ) -> Result<Call> {
        let interface = header.interface().map(|name| name.as_str()).unwrap_or_default();
        let member = header.member().map(|name| name.as_str()).unwrap_or_default();
        self.enter_member(interface, member, header, connection, details).await
    }

    /// [`Gate::enter`] for a property setter, whose header names `Properties.Set`.
    ///
    /// # Errors
    /// As [`Gate::enter`].
    pub async fn enter_member(
        &self,
        interface: &str,
        member: &str,
        header: &Header<'_>,
        connection: &Connection,
        details: &[(&str, &str)],
    ) -> Result<Call> {
        let hold = self.idle.call();
        let caller = identify(header, connection).await?;
        let access = self.access(interface, member);
        match access {
            Some(Access::Read | Access::Own) => {}
            Some(Access::Root) if caller.uid == 0 => {}
            Some(Access::Internal) if is_trusted(caller.uid) => {}
            Some(Access::Action(_)) if is_trusted(caller.uid) => {}
            Some(Access::Action(action)) if connection.is_bus() => {
                ask_polkit(header, connection, action, details).await?;
            }
            Some(Access::Action(_)) if is_member(caller.uid) => {}
            Some(Access::Action(_)) => {
                return Err(denied(member, "join the group banger, or call over the system bus"));
            }
            Some(Access::Internal) => return Err(denied(member, "only the services of banger may")),
            Some(Access::Root) => return Err(denied(member, "only root may")),
            None => {
                tracing::error!("{interface}.{member} is in no access table");
                return Err(denied(member, "nobody may"));
            }
        }
        Ok(Call { caller, _hold: hold })
    }

    /// For a method that does what two actions are about: asks for one more than the table says, of a
    /// caller that was let in.
    ///
    /// # Errors
    /// As [`Gate::enter`].
    pub async fn ask_also(
        &self,
        call: &Call,
        action: &'static str,
        header: &Header<'_>,
        connection: &Connection,
        details: &[(&str, &str)],
    ) -> Result<()> {
        if is_trusted(call.caller.uid) || !connection.is_bus() {
            // A member of the group, which is all that counts over a socket.
            return Ok(());
        }
        ask_polkit(header, connection, action, details).await
    }

    fn access(&self, interface: &str, member: &str) -> Option<Access> {
        self.access
            .iter()
            .chain(COMMON)
            .find(|(i, m, _)| *i == interface && *m == member)
            .map(|(_, _, access)| *access)
    }
}

fn denied(member: &str, remedy: &str) -> banger_api::Error {
    ErrorKind::AccessDenied.error(format!("not allowed to call {member}: {remedy}"))
}

/// Who sent the message: the bus knows its clients, the kernel knows a socket's other end.
async fn identify(header: &Header<'_>, connection: &Connection) -> Result<Caller> {
    let unknown = || ErrorKind::AccessDenied.error("cannot tell who is calling");
    if !connection.is_bus() {
        let peer = connection.peer_creds().await.map_err(|_| unknown())?;
        let uid = peer.unix_user_id().ok_or_else(unknown)?;
        return Ok(Caller { uid, pid: peer.process_id() });
    }
    let sender = header.sender().ok_or_else(unknown)?;
    let bus = fdo::DBusProxy::new(connection).await?;
    let sender = bus.get_connection_credentials(sender.clone().into()).await?;
    let uid = sender.unix_user_id().ok_or_else(unknown)?;
    Ok(Caller { uid, pid: sender.process_id() })
}

/// Root, and the users our services run as.
fn is_trusted(uid: u32) -> bool {
    uid == 0
        || SERVICES.iter().any(|service| {
            let user = User::from_name(&format!("banger-{}", service.id));
            matches!(user, Ok(Some(user)) if user.uid == Uid::from_raw(uid))
        })
}

/// Whether the user belongs to the group [`GROUP`].
fn is_member(uid: u32) -> bool {
    let Ok(Some(group)) = Group::from_name(GROUP) else { return false };
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let Ok(name) = std::ffi::CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups: Vec<Gid>| groups.contains(&group.gid))
}

async fn ask_polkit(
    header: &Header<'_>,
    connection: &Connection,
    action: &str,
    details: &[(&str, &str)],
) -> Result<()> {
    let unavailable = |error: zbus::Error| {
        ErrorKind::AccessDenied.error(format!("cannot ask polkit about {action}: {error}"))
    };
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let flags = if interactive {
        CheckAuthorizationFlags::ALLOW_USER_INTERACTION
    } else {
        CheckAuthorizationFlags::empty()
    };
    let subject = Subject::new_for_message_header(header)
        .map_err(|error| ErrorKind::AccessDenied.error(format!("cannot tell who is calling: {error}")))?;
    let details: HashMap<&str, &str> = details.iter().copied().collect();
    let polkit = AuthorityProxy::new(connection).await.map_err(unavailable)?;
    // The shipped policy names our users as owners of the actions: only owners and root may ask
    // about others, and pass details.
    let answer =
        polkit.check_authorization(&subject, action, &details, flags, "").await.map_err(unavailable)?;
    if answer.is_authorized {
        return Ok(());
    }
    if answer.is_challenge && !interactive {
        return Err(ErrorKind::InteractiveAuthorizationRequired
            .error(format!("{action} needs authentication: run as root, join the group banger, or allow interactive authorization")));
    }
    Err(ErrorKind::AccessDenied
        .error(format!("polkit denied {action}: run as root or join the group banger")))
}
