//! Sessions of a VM that has gone on from a snapshot of itself: what ran then runs again, in the memory of the guest, with the
//! agent that holds it.

use std::sync::Arc;

use banger_api::agent::SessionStatus;
use banger_api::{ErrorKind, Result};
use banger_core::name::VmName;
use tokio::time::timeout;

use super::Named;
use super::keeper::{rewind, state_of, told};
use crate::sessions::{LIST, Sessions};

/// No session's status has this serial number, so that nobody waits for another one.
const NO_SERIAL: u32 = u32::MAX;

impl Sessions {
    /// Finds what a VM's agent knows of its sessions, and goes on with those; returns how many that are. The others, which
    /// were begun after the snapshot or had ended before, stay what they are.
    pub async fn recover_named(&self, vm: &VmName) -> Result<u32> {
        let known: Vec<_> = self.known().values().filter(|session| session.vm == *vm).cloned().collect();
        if known.is_empty() {
            return Ok(0);
        }
        let created = self.vm_created(vm).await?;
        let agent = self.guarded(vm, self.agent(vm)).await?;
        let mut recovered = 0;
        for session in known.into_iter().filter(|session| session.what.vm_created_usec == created) {
            let asked = timeout(LIST, agent.watch_session(&session.what.id, NO_SERIAL)).await;
            let asked = asked.unwrap_or_else(|_| {
                Err(ErrorKind::AgentUnreachable.error("the guest's agent does not answer in time"))
            });
            let outcome = match asked {
                Err(error) if error.kind() == ErrorKind::NoSuchProcess => continue,
                Err(error) => Err(error),
                Ok((_, news)) => self.take_up(&session, &news).await,
            };
            match outcome {
                Ok(()) => recovered += 1,
                Err(error) => {
                    let (vm, session) = (vm.as_str(), session.name.as_str());
                    tracing::warn!(vm, session, "cannot be gone on with after the restore: {error}");
                }
            }
        }
        Ok(recovered)
    }

    /// Goes on with a session where its guest is.
    async fn take_up(&self, session: &Arc<Named>, news: &SessionStatus) -> Result<()> {
        let state = state_of(news)?;
        session.stop_keeping();
        if let Err(error) = go_back(session, news).await {
            if session.status.borrow().open {
                self.keep(session.clone());
            }
            return Err(error);
        }
        session.set(self, |status| *status = told(news, state));
        self.keep(session.clone());
        Ok(())
    }
}

/// What the session put out after the snapshot has not happened to the guest: its log goes back to where the guest knew it
/// kept. What it has put out since comes again.
async fn go_back(session: &Named, news: &SessionStatus) -> Result<()> {
    let kept = news.kept.ok_or_else(|| {
        ErrorKind::NotSupported
            .error("the guest's agent is older and does not say what of its output was kept")
    })?;
    rewind(session, kept).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use banger_core::spool::{Header, STDOUT};

    use super::super::rows::tests::row;
    use super::super::rows::{load, write_row};
    use super::*;
    use crate::log::Log;

    #[tokio::test]
    async fn a_log_goes_back_with_its_guest() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("web/build");
        fs::create_dir_all(&directory).unwrap();
        write_row(&directory, &row()).unwrap();
        let mut log = Log::open(&directory).unwrap();
        for (offset, data) in [(0, b"before"), (6, b"after ")] {
            let header = Header { offset, time_usec: 1, stream: STDOUT, length: data.len() };
            log.append(&[&header.encode()[..], data].concat(), header.end()).unwrap();
        }
        let session = load(root.path()).unwrap().remove(0);
        assert_eq!(*session.kept.borrow(), 12);

        // One who does not say leaves everything as it is.
        let older = SessionStatus { state: "running".into(), ..SessionStatus::default() };
        assert_eq!(go_back(&session, &older).await.unwrap_err().kind(), ErrorKind::NotSupported);
        assert_eq!(*session.kept.borrow(), 12);

        go_back(&session, &SessionStatus { kept: Some(6), ..older }).await.unwrap();
        assert_eq!(*session.kept.borrow(), 6);
    }
}
