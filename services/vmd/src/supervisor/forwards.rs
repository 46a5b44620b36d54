//! Ports of the host that lead to guests.
//!
//! What listens is a socket unit of systemd for each, named after the address: it holds the port, and
//! its service starts with the first connection and asks where to go. So nothing of banger runs for a
//! forward that nobody uses, and no byte passes through vmd. A socket listens while its VM is up or,
//! if it starts the VM, as long as there is one.

use banger_api::vm::ForwardRow;
use banger_api::{Error, ErrorKind, Result, now_usec};
use banger_core::forward::{Forward, Listen};
use banger_core::name::VmName;
use banger_core::vm::State;
use banger_daemon::failpoint;
use banger_daemon::gate::Caller;

use super::Supervisor;
use crate::store::VmRow;

impl Supervisor {
    /// # Errors
    /// `NoSuchVm`, `InvalidArgs`, `PortInUse`: there is no such forward then.
    pub async fn add_forward(&self, name: &VmName, forward: Forward) -> Result<()> {
        self.get(name)?;
        let _guard = self.lock(name).await;
        let listen = forward.listen;
        if self.get(name)?.spec.forwards.iter().any(|other| other.listen == listen) {
            return Err(ErrorKind::PortInUse.error(format!("{listen} is forwarded to {name} already")));
        }
        let added = self.set_locked(name, move |spec| {
            spec.forwards.push(forward);
            spec.check().map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))
        });
        match added.await {
            Err(error) if self.forwarded_to(&listen).is_some_and(|(row, _)| row.name == *name) => {
                // It was written down, but somebody else listens there.
                self.drop_forward(name, listen).await?;
                Err(error)
            }
            outcome => outcome.map(drop),
        }
    }

    /// # Errors
    /// `NoSuchForward`.
    pub async fn remove_forward(&self, listen: &Listen) -> Result<()> {
        let (row, _) = self.forwarded_to(listen).ok_or_else(|| no_such(listen))?;
        let _guard = self.lock(&row.name).await;
        self.drop_forward(&row.name, *listen).await
    }

    async fn drop_forward(&self, name: &VmName, listen: Listen) -> Result<()> {
        let dropped = self.set_locked(name, move |spec| {
            spec.forwards.retain(|forward| forward.listen != listen);
            Ok(())
        });
        dropped.await.map(drop)
    }

    /// All forwards, by VM.
    pub async fn forwards(&self) -> Result<Vec<ForwardRow>> {
        let listening = self.0.units.listening().await?;
        let mut rows = Vec::new();
        for row in self.0.store.list() {
            for Forward { listen, port, on_demand } in &row.spec.forwards {
                let (protocol, address) = (listen.protocol.as_str().to_owned(), listen.address.to_string());
                let is_open = listening.contains(listen);
                rows.push((row.name.to_string(), protocol, address, *port, *on_demand, is_open));
            }
        }
        Ok(rows)
    }

    /// For the forward's unit: sees to it that the VM runs, and returns where its guest is.
    ///
    /// # Errors
    /// `AccessDenied`, `NoSuchForward`, `NotReady`, `VmNotRunning`, `BootFailed`.
    pub async fn prepare_forward(&self, listen: &Listen, caller: Caller) -> Result<(String, u16)> {
        let unit = listen.service_unit();
        let denied = || ErrorKind::AccessDenied.error(format!("only {unit} may do this"));
        let pid = caller.pid.ok_or_else(denied)?;
        if !self.0.units.runs_in(&unit, pid).await.unwrap_or(false) {
            return Err(denied());
        }
        let (row, forward) = self.forwarded_to(listen).ok_or_else(|| no_such(listen))?;
        let name = &row.name;
        if self.is_read(name) {
            return Err(ErrorKind::NotReady.error(format!("the disk of {name} is being read: wait for that")));
        }
        let state = self.state(&row);
        if matches!(state, State::Running | State::Paused) {
            return Ok((row.address.to_string(), forward.port));
        }
        // Its unit may be on its way up already; then this waits for it. One on its way down is not turned round.
        if !(forward.on_demand || state == State::Starting) {
            return Err(ErrorKind::VmNotRunning.error(format!("{name} is {}", state.as_str())));
        }
        tracing::info!(vm = name.as_str(), "wanted at {listen}");
        let wanted_usec = now_usec();
        match self.0.units.start(name, |_| {}).await?.as_str() {
            "done" => Ok((row.address.to_string(), forward.port)),
            result => Err(self.boot_failure(name, result, wanted_usec)),
        }
    }

    /// The VM that a forward leads to.
    pub(super) fn forwarded_to(&self, listen: &Listen) -> Option<(VmRow, Forward)> {
        self.0.store.list().into_iter().find_map(|row| {
            let forward = row.spec.forwards.iter().find(|forward| forward.listen == *listen)?.clone();
            Some((row, forward))
        })
    }

    /// Whether a forward is to listen now.
    pub(super) fn is_wanted(&self, row: &VmRow, forward: &Forward) -> bool {
        row.whole && row.spec.network && (forward.on_demand || self.state(row).is_up())
    }

    /// Listens where a VM's forwards are to listen now, and no longer where only the old ones did.
    pub(super) async fn follow_forwards(&self, row: &VmRow, old: &[Forward]) -> Result<()> {
        for forward in old.iter().filter(|forward| !row.spec.forwards.contains(forward)) {
            self.0.units.close(&forward.listen).await?;
        }
        failpoint!("forward.closed");
        for forward in row.spec.forwards.iter().filter(|forward| self.is_wanted(row, forward)) {
            self.open_port(&forward.listen).await?;
        }
        Ok(())
    }

    /// Listens for a VM that is being started.
    pub(super) async fn listen(&self, row: &VmRow) -> Result<()> {
        for forward in row.spec.forwards.iter().filter(|_| row.spec.network) {
            self.open_port(&forward.listen).await?;
        }
        Ok(())
    }

    /// Breaks off what leads to a VM that is down, and goes on listening only for what starts it.
    pub(super) async fn end_forwards(&self, name: &VmName) -> Result<()> {
        let Ok(row) = self.get(name) else { return Ok(()) };
        for forward in &row.spec.forwards {
            if forward.on_demand {
                self.0.units.hang_up(&forward.listen).await?;
            } else {
                self.0.units.close(&forward.listen).await?;
            }
        }
        Ok(())
    }

    /// Closes all ports of a VM that goes.
    pub(super) async fn forget_forwards(&self, name: &VmName) -> Result<()> {
        for forward in &self.get(name)?.spec.forwards {
            self.0.units.close(&forward.listen).await?;
        }
        Ok(())
    }

    async fn open_port(&self, listen: &Listen) -> Result<()> {
        if self.0.units.open(listen).await? {
            return Ok(());
        }
        Err(ErrorKind::PortInUse.error(format!(
            "cannot listen at {listen}: another program does, or the host has no such address; see \
             systemctl status '{}'",
            listen.socket_unit()
        )))
    }
}

fn no_such(listen: &Listen) -> Error {
    ErrorKind::NoSuchForward
        .error(format!("nothing is forwarded from {listen}; `banger net forward ls` lists all"))
}
