//! `org.banger.Session1.Session`: one session.

use std::sync::{Arc, OnceLock};

use banger_api::Result;
use banger_core::name::VmName;
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::{Connection, interface};

use crate::sessions::Sessions;

#[derive(Clone)]
pub struct SessionObject {
    sessions: Sessions,
    gate: Gate,
    vm: VmName,
    id: String,
    /// Exit status and signal, once it has ended.
    exit: Arc<OnceLock<(i32, i32)>>,
}

impl SessionObject {
    pub fn new(
        sessions: Sessions,
        gate: Gate,
        vm: VmName,
        id: String,
        exit: Arc<OnceLock<(i32, i32)>>,
    ) -> Self {
        Self { sessions, gate, vm, id, exit }
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

    /// running or exited.
    #[zbus(property)]
    fn state(&self) -> String {
        if self.exit.get().is_some() { "exited" } else { "running" }.to_owned()
    }

    /// Exit status, 0 until it has exited.
    #[zbus(property)]
    fn exit_status(&self) -> i32 {
        self.exit.get().map_or(0, |exit| exit.0)
    }

    /// The signal that ended it, or 0.
    #[zbus(property)]
    fn exit_signal(&self) -> i32 {
        self.exit.get().map_or(0, |exit| exit.1)
    }
}
