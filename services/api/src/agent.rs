//! `org.banger.Agent1`: what the agent in a guest offers to the host, over vsock.
//!
//! The connection is peer to peer and anonymous: whoever reaches the vsock port has been let
//! through by the permissions of the VM's vsock socket on the host.

use std::collections::BTreeMap;

use zbus::proxy;

/// Object path of the agent.
pub const PATH: &str = "/org/banger/Agent1";

#[proxy(
    interface = "org.banger.Agent1",
    default_service = "org.banger.Agent1",
    default_path = "/org/banger/Agent1"
)]
pub trait Agent {
    /// Starts a command. An empty `argv` stands for the user's login shell.
    ///
    /// `environment` is laid over the image's environment; empty `user` and `directory` stand for
    /// the image's own. With `terminal` the command gets a pseudo-terminal of `rows` by `columns`
    /// and there is the one stream `pty`; without it the streams are `stdin`, `stdout` and
    /// `stderr`. What the command writes before its streams are connected waits for them; it is
    /// killed if one still is not after 30 s.
    ///
    /// Returns the id of the process and the token of each stream by name.
    ///
    /// Errors: `NoSuchUser`, `NoSuchDirectory`, `CommandNotFound`, `NotExecutable`, `InvalidArgs`.
    #[allow(clippy::too_many_arguments)]
    fn start(
        &self,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        user: &str,
        directory: &str,
        terminal: bool,
        rows: u16,
        columns: u16,
    ) -> zbus::Result<(String, BTreeMap<String, String>)>;

    /// Waits for the end of a process: `(exit status, signal)`, of which one is 0. Output that it
    /// wrote may still be on its way, and what it started may live on and write more: a stream
    /// ends with its end of file.
    ///
    /// What ended is remembered for ten minutes, so that a host service which was restarted can
    /// still ask.
    fn wait(&self, id: &str) -> zbus::Result<(i32, i32)>;

    /// Sends a signal to the process group of a process. `NoSuchProcess` once it has ended.
    fn kill(&self, id: &str, signal: i32) -> zbus::Result<()>;

    /// Sets the size of a process's terminal.
    fn resize(&self, id: &str, rows: u16, columns: u16) -> zbus::Result<()>;

    /// The processes started by the host, as long as they are remembered: id, state (`running`,
    /// `exited`; treat an unknown one as `running`), command line, start time in microseconds
    /// since 1970.
    fn list(&self) -> zbus::Result<Vec<(String, String, Vec<String>, u64)>>;

    /// Stops all processes, writes everything to disk and powers the machine off.
    /// Returns when the shutdown has begun.
    fn power_off(&self) -> zbus::Result<()>;

    /// [`banger_core::guest::PROTOCOL`] of the agent.
    #[zbus(property(emits_changed_signal = "const"))]
    fn protocol(&self) -> zbus::Result<u32>;

    /// Version of the agent.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
}
