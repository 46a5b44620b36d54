//! The figures of running VMs: what systemd accounts for on the host, and what guests say.

use std::time::{Duration, Instant};

use banger_api::agent::Port;
use banger_api::vm::VmStats;
use banger_api::{ErrorKind, Result};
use banger_core::name::VmName;
use banger_core::vm::State;
use banger_guest::Agent;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::timeout;

use super::Supervisor;
use crate::effects::peers::NetCounters;
use crate::store::VmRow;

/// How long a guest may take to tell its figures, which go without otherwise.
const GUEST: Duration = Duration::from_secs(5);

impl Supervisor {
    /// # Errors
    /// `NoSuchVm`, `VmNotRunning`.
    pub async fn stats(&self, name: &VmName) -> Result<VmStats> {
        let row = self.get(name)?;
        let state = self.check_up(name)?;
        let (accounting, network, disk, guest) = tokio::join!(
            self.0.units.accounting(name),
            self.network_counters(&row),
            self.disk_used(&row),
            timeout(GUEST, async {
                if state != State::Running {
                    return None;
                }
                self.agent(name).await.ok()?.stats().await.ok()
            })
        );
        let guest = guest.ok().flatten();
        Ok(VmStats {
            disk_used_bytes: disk?,
            monotonic_usec: monotonic_usec(),
            net_received_bytes: network.map(|it| it.received_bytes),
            net_received_packets: network.map(|it| it.received_packets),
            net_received_dropped: network.map(|it| it.received_dropped),
            net_sent_bytes: network.map(|it| it.sent_bytes),
            net_sent_packets: network.map(|it| it.sent_packets),
            net_sent_dropped: network.map(|it| it.sent_dropped),
            reachable: guest.is_some(),
            guest,
            ..accounting?
        })
    }

    /// `None` for a VM without network, and where netd does not say.
    async fn network_counters(&self, row: &VmRow) -> Option<NetCounters> {
        if !row.started_spec().network {
            return None;
        }
        self.0.peers.network_counters(row.name.as_str()).await.ok()
    }

    /// How long the guest's agent takes to answer, in microseconds.
    pub async fn ping(&self, name: &VmName) -> Result<u64> {
        let agent = self.awake(name).await?;
        let asked = Instant::now();
        agent.ping().await?;
        Ok(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// What listens in the guest's network.
    pub async fn ports(&self, name: &VmName) -> Result<Vec<Port>> {
        self.awake(name).await?.listening_ports().await
    }

    /// The agent of a VM that can answer.
    async fn awake(&self, name: &VmName) -> Result<Agent> {
        self.get(name)?;
        match self.check_up(name)? {
            State::Paused => Err(ErrorKind::VmPaused
                .error(format!("{name} is paused and does not answer: `banger resume {name}` first"))),
            State::Starting => Err(ErrorKind::AgentUnreachable
                .error(format!("{name} is starting and does not answer yet: try again when it runs"))),
            _ => self.agent(name).await,
        }
    }
}

/// Microseconds since the host's boot, without the time it was suspended.
pub(super) fn monotonic_usec() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}
