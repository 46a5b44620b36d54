//! Following a session into its log and its row, until nothing can come of it any more.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use banger_api::agent::SessionStatus;
use banger_api::vm::ManagerProxy as VmManagerProxy;
use banger_api::{Error, ErrorKind, Result, now_usec};
use banger_core::name::VmName;
use banger_core::session::State;
use banger_core::spool::Parser;
use banger_guest::Agent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::{sleep, timeout};

use super::rows::blocking;
use super::{Named, Status};
use crate::log::{self, Log};
use crate::sessions::{LIST, LOOK, Sessions};

/// How long an agent that has sent the last byte may take to say how the command ended.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long it takes at least from one status to the next: a guest could have one after the other.
const BREATH: Duration = Duration::from_millis(100);
const BUFFER: usize = 64 * 1024;

impl Sessions {
    /// Has a session followed until nothing can come of it any more.
    pub(super) fn keep(&self, session: Arc<Named>) {
        let (sessions, hold) = (self.clone(), self.context.idle.hold());
        let of = session.clone();
        let task = tokio::spawn(async move {
            let _hold = hold;
            while let Err(error) = sessions.attend(&session).await {
                tracing::debug!(vm = session.vm.as_str(), session = session.name, "{error}");
                if sessions.is_over(&session, &error).await {
                    break;
                }
                sleep(LOOK).await;
            }
        });
        *of.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }

    /// Follows a session until its end, or until the way to it breaks.
    async fn attend(&self, session: &Arc<Named>) -> Result<()> {
        self.check_awake(&session.vm).await?;
        let agent = self.connect(&session.vm).await?;
        let log = open_log(session).await?;
        let stream = agent.drain_session(&session.what.id, log.end.next()).await?;
        let drained = watch::Sender::new(false);
        let drain = async {
            drain(session, stream, log).await?;
            drained.send_replace(true);
            let mut status = session.status.subscribe();
            let told = timeout(LAST_WORD, status.wait_for(Status::is_final)).await;
            told.map(drop)
                .map_err(|_| ErrorKind::AgentUnreachable.error("the output of the session broke off"))
        };
        let follow = self.follow(session, &agent, drained.subscribe());
        tokio::try_join!(drain, follow)?;
        session.set(self, |status| status.open = false);
        agent.forget_session(&session.what.id).await
    }

    /// Writes down what the agent says of a session, until its end.
    async fn follow(&self, session: &Named, agent: &Agent, mut drained: watch::Receiver<bool>) -> Result<()> {
        let mut serial = 0;
        loop {
            let news;
            (serial, news) = agent.watch_session(&session.what.id, serial).await?;
            let state = state_of(&news)?;
            if state.is_final() {
                // Who hears of the end finds all of the output.
                let mut kept = session.kept.subscribe();
                tokio::select! {
                    _ = kept.wait_for(|kept| *kept >= news.end) => {}
                    _ = drained.wait_for(|drained| *drained) => {}
                }
            }
            session.set(self, |status| *status = told(&news, state));
            if state.is_final() {
                return Ok(());
            }
            sleep(BREATH).await;
        }
    }

    /// Whether a session whose agent could not be followed has no future; then that is written down.
    async fn is_over(&self, session: &Arc<Named>, error: &Error) -> bool {
        let is_up = match error.kind() {
            // There is another guest in its place, or one that has lost its mind.
            ErrorKind::NoSuchProcess | ErrorKind::InvalidArgs => false,
            ErrorKind::AgentProtocol | ErrorKind::NotSupported => {
                tracing::warn!(vm = session.vm.as_str(), session = session.name, "giving it up: {error}");
                false
            }
            _ => self.is_up(&session.vm).await,
        };
        if is_up {
            return false;
        }
        if session.status.borrow().started_usec == 0 {
            // Nobody was told that it had started.
            self.discard(session).await;
            return true;
        }
        session.set(self, |status| {
            status.open = false;
            if !status.is_final() {
                status.state = State::Lost.as_str().to_owned();
                status.ended_usec = now_usec();
            }
        });
        true
    }

    /// Whether a VM has a VMM. While nobody knows, it has.
    async fn is_up(&self, vm: &VmName) -> bool {
        let rows = async { VmManagerProxy::new(&self.context.bus).await?.list_vms().await };
        match timeout(LIST, rows).await {
            Ok(Ok(rows)) => rows.iter().any(|(name, state, ..)| {
                name == vm.as_str() && ["starting", "running", "paused", "stopping"].contains(&state.as_str())
            }),
            _ => true,
        }
    }
}

/// The state that an agent says a session is in.
pub(super) fn state_of(news: &SessionStatus) -> Result<State> {
    let unknown = |()| ErrorKind::AgentProtocol.error("the guest's agent names a state that there is not");
    news.state.parse().map_err(unknown)
}

/// What an agent says, as it is written down.
pub(super) fn told(news: &SessionStatus, state: State) -> Status {
    Status {
        state: state.as_str().to_owned(),
        exit_status: news.exit_status,
        exit_signal: news.exit_signal,
        started_usec: news.started_usec.max(1),
        ended_usec: news.ended_usec,
        restarts: news.restarts,
        open: true,
    }
}

/// Copies a session's output into its log until it ends.
async fn drain(session: &Named, stream: UnixStream, mut log: Writer) -> Result<()> {
    let (mut from, mut to) = stream.into_split();
    let broken = |error: io::Error| {
        ErrorKind::AgentUnreachable.error(format!("the connection into the guest broke: {error}"))
    };
    let mut parser = Parser::starting_at(log.end.next());
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await.map_err(broken)?;
        if n == 0 {
            return match parser.rest() {
                0 => Ok(()),
                _ => Err(broken(io::ErrorKind::UnexpectedEof.into())),
            };
        }
        parser.push(&buffer[..n]);
        let mut records = Vec::new();
        while let Some((header, data)) = parser
            .record()
            .map_err(|error| ErrorKind::AgentProtocol.error(format!("the guest's agent: {error}")))?
        {
            records.extend_from_slice(&header.encode());
            records.extend_from_slice(data);
        }
        if records.is_empty() {
            continue;
        }
        let next = parser.next();
        log = blocking(move || log.end.append(&records, next).map(|()| log)).await?;
        session.kept.send_replace(next);
        to.write_all(&next.to_le_bytes()).await.map_err(broken)?;
    }
}

/// The end of a session's log, and the turn to write it.
pub(super) struct Writer {
    end: Log,
    _turn: OwnedMutexGuard<()>,
}

/// Opens a session's log once nobody else writes it.
async fn open_log(session: &Named) -> Result<Writer> {
    rewind(session, u64::MAX).await
}

/// The same, after what was written beyond an offset is cut off.
pub(super) async fn rewind(session: &Named, offset: u64) -> Result<Writer> {
    let turn = session.turn.clone().lock_owned().await;
    let directory = session.directory.clone();
    let log = blocking(move || {
        if offset < u64::MAX {
            log::cut_off(&directory, offset)?;
        }
        Ok(Writer { end: Log::open(&directory)?, _turn: turn })
    });
    let log = log.await?;
    session.kept.send_replace(log.end.next());
    Ok(log)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures_util::FutureExt;

    use super::super::rows::tests::row;
    use super::super::rows::{load, write_row};
    use super::*;

    fn session() -> (tempfile::TempDir, Named) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("web/build")).unwrap();
        write_row(&root.path().join("web/build"), &row()).unwrap();
        let session = load(root.path()).unwrap().remove(0);
        (root, session)
    }

    #[tokio::test]
    async fn one_at_a_time_writes_a_log() {
        let (_root, session) = session();
        let first = open_log(&session).await.unwrap();
        assert!(open_log(&session).now_or_never().is_none());
        drop(first);
        open_log(&session).await.unwrap();
    }

    #[tokio::test]
    async fn hostile_records_end_the_drain() {
        let (_root, session) = session();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(&[0xff; 100]).await.unwrap();
        let log = open_log(&session).await.unwrap();
        let error = drain(&session, ours, log).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AgentProtocol, "{error}");
    }
}
