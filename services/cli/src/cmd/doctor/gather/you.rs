//! Who asks, and what polkit lets them do.

use std::collections::HashMap;

use banger_api::access::VM_MANAGE;
use banger_api::{Error, ErrorKind, Result};
use nix::unistd::{Group, Uid, User, getgroups};
use zbus::{Connection, Variant, proxy};

use super::super::facts::{Answer, You};
use crate::Context;

#[proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority"
)]
trait Authority {
    /// Whether it is so, whether it would be with a password, details.
    fn check_authorization(
        &self,
        subject: &(&str, HashMap<&str, Variant<'_>>),
        action: &str,
        details: HashMap<&str, &str>,
        flags: u32,
        cancellation: &str,
    ) -> zbus::Result<(bool, bool, HashMap<String, String>)>;
}

pub async fn you(context: &Context) -> Result<You> {
    let uid = Uid::effective();
    let user = User::from_uid(uid).map_err(std::io::Error::from)?;
    let group = Group::from_name("banger").map_err(std::io::Error::from)?;
    let groups = getgroups().map_err(std::io::Error::from)?;
    let name = user.map_or_else(|| uid.to_string(), |user| user.name);
    let in_group = group.as_ref().is_some_and(|group| groups.contains(&group.gid));
    let in_group_from_login = group.is_some_and(|group| group.mem.contains(&name));
    let polkit = polkit(&context.bus.system().await?).await;
    Ok(You { name, is_root: uid.is_root(), in_group, in_group_from_login, polkit })
}

/// `None` without an answer.
async fn polkit(bus: &Connection) -> Option<Answer> {
    let asked = async {
        let name = bus.unique_name().map(ToString::to_string).unwrap_or_default();
        let subject = ("system-bus-name", HashMap::from([("name", Variant::from(name))]));
        let polkit = AuthorityProxy::new(bus).await?;
        polkit.check_authorization(&subject, VM_MANAGE, HashMap::new(), 0, "").await
    };
    match asked.await.map_err(Error::from) {
        Ok((true, ..)) => Some(Answer::Yes),
        Ok((_, true, _)) => Some(Answer::WithPassword),
        Ok(_) => Some(Answer::No),
        Err(error) if error.kind() == ErrorKind::ServiceUnavailable => None,
        Err(_) => Some(Answer::Unheard),
    }
}
