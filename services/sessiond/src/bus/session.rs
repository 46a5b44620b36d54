//! `org.banger.Session1.Session`: one session.

use banger_api::Result;
use banger_core::name::VmName;
use banger_daemon::Gate;
use tokio::sync::watch;
use zbus::message::Header;
use zbus::{Connection, interface};

use crate::named::Status;
use crate::sessions::Sessions;

#[derive(Clone)]
pub struct SessionObject {
    sessions: Sessions,
    gate: Gate,
    vm: VmName,
    id: String,
    name: String,
    status: watch::Receiver<Status>,
}

impl SessionObject {
    pub fn new(
        sessions: Sessions,
        gate: Gate,
        vm: VmName,
        id: String,
        name: String,
        status: watch::Receiver<Status>,
    ) -> Self {
        Self { sessions, gate, vm, id, name, status }
    }
}

#[interface(name = "org.banger.Session1.Session")]
impl SessionObject {
    /// As KillSession of the manager.
    async fn kill(
        &self,
        signal: i32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.vm.as_str())]).await?;
        self.sessions.kill(&self.vm, &self.id, signal).await
    }

    /// As ResizeSession of the manager.
    async fn resize(
        &self,
        rows: u16,
        columns: u16,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.vm.as_str())]).await?;
        self.sessions.resize(&self.vm, &self.id, rows, columns).await
    }

    /// As WaitSession of the manager.
    #[zbus(out_args("status", "signal"))]
    async fn wait(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(i32, i32)> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.vm.as_str())]).await?;
        self.sessions.wait(&self.vm, &self.id).await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn vm(&self) -> String {
        self.vm.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.id.clone()
    }

    /// The name it was started under, or nothing; it is the id, too.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.name.clone()
    }

    /// running or exited, and for those with a name also starting, stopping, failed or lost.
    #[zbus(property)]
    fn state(&self) -> String {
        self.status.borrow().state.clone()
    }

    /// Exit status, 0 until it has exited.
    #[zbus(property)]
    fn exit_status(&self) -> i32 {
        self.status.borrow().exit_status
    }

    /// The signal that ended it, or 0.
    #[zbus(property)]
    fn exit_signal(&self) -> i32 {
        self.status.borrow().exit_signal
    }

    /// Microseconds since 1970.
    #[zbus(property)]
    fn started_timestamp(&self) -> u64 {
        self.status.borrow().started_usec
    }

    /// Microseconds since 1970, 0 until then.
    #[zbus(property)]
    fn ended_timestamp(&self) -> u64 {
        self.status.borrow().ended_usec
    }

    /// How often its command was started again.
    #[zbus(property)]
    fn restarts(&self) -> u32 {
        self.status.borrow().restarts
    }
}
