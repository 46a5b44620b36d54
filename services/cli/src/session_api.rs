//! `org.banger.Session1`, until `banger_api::session` is there.

use std::collections::{BTreeMap, HashMap};

use zbus::{OwnedFd, OwnedObjectPath, Variant, proxy};

/// VM, id, state, command line, start time, path.
pub type SessionRow = (String, String, String, Vec<String>, u64, OwnedObjectPath);

#[proxy(
    interface = "org.banger.Session1.Manager",
    default_service = "org.banger.Session1",
    default_path = "/org/banger/Session1"
)]
pub trait Sessions {
    fn exec(
        &self,
        vm: &str,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, OwnedObjectPath, OwnedFd, OwnedFd, OwnedFd)>;

    fn open_shell(
        &self,
        vm: &str,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, OwnedObjectPath, OwnedFd)>;

    fn wait_session(&self, vm: &str, id: &str) -> zbus::Result<(i32, i32)>;
    fn kill_session(&self, vm: &str, id: &str, signal: i32) -> zbus::Result<()>;
    fn resize_session(&self, vm: &str, id: &str, rows: u16, columns: u16) -> zbus::Result<()>;
    fn list_sessions(&self) -> zbus::Result<Vec<SessionRow>>;
}
