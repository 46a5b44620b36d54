//! The host's way to the names of VMs: systemd-resolved is told to ask us for them, by way of the bridge.
//!
//! resolved forgets what it was told when the bridge goes, and keeps it when it is restarted itself. Only
//! when it comes after the bridge has nobody told it: so `banger-resolved.service` starts with it and
//! calls `Refresh`, if there is the mark that is left here while there is a bridge. Watching for it ourselves
//! would keep netd from leaving.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use banger_api::Result;
use banger_api::network::Problem;
use banger_daemon::Context;
use tokio::sync::watch;
use zbus::Connection;

use crate::effects::resolved;

/// In netd's runtime directory, and in the condition of `banger-resolved.service`.
const MARK: &str = "bridge";

/// A resolved that hangs is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How things are with the host's way to the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is no bridge yet, so no names.
    Unset,
    /// We are at it.
    Pending,
    Routed,
    /// resolved does not run.
    Absent,
    Failed(String),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Routing {
    bus: Connection,
    state: watch::Receiver<State>,
    /// Why there is nobody to ask.
    no_server: Option<Problem>,
    gateway: Ipv4Addr,
    domain: String,
}

/// What resolved is told.
pub struct Plan {
    pub gateway: Ipv4Addr,
    /// The domains to route, that of the names first.
    pub domains: Vec<String>,
    /// Why guests and host get no answers, if they get none: then nothing is routed.
    pub no_server: Option<Problem>,
}

impl Routing {
    /// Follows the bridge: its interface index, or `None` while there is none.
    pub fn start(context: &Context, plan: Plan, bridge: watch::Receiver<Option<u32>>) -> Self {
        if let Some((problem, remedy)) = &plan.no_server {
            tracing::warn!("guests are not served by DNS: {problem}: {remedy}");
        }
        let (sender, state) = watch::channel(State::Unset);
        let routing = Self {
            bus: context.bus.clone(),
            state,
            no_server: plan.no_server.clone(),
            gateway: plan.gateway,
            domain: plan.domains.first().cloned().unwrap_or_default(),
        };
        tokio::spawn(routing.clone().follow(context.clone(), plan.domains, bridge, sender));
        routing
    }

    async fn follow(
        self,
        context: Context,
        domains: Vec<String>,
        mut bridge: watch::Receiver<Option<u32>>,
        state: watch::Sender<State>,
    ) {
        let mark = context.runtime_dir.join(MARK);
        let mut last = None;
        let mut known = State::Unset;
        // What was there before us counts as a change.
        bridge.mark_changed();
        while bridge.changed().await.is_ok() {
            let hold = context.idle.hold();
            let index = *bridge.borrow_and_update();
            state.send_replace(State::Pending);
            let new = self.apply(&domains, index.or(last), index.is_some(), &mark).await;
            last = index;
            state.send_replace(new.clone());
            if let Some((problem, remedy)) =
                problem_of(&new, self.gateway, &self.domain).filter(|_| new != known)
            {
                tracing::warn!("{problem}: {remedy}");
            }
            known = new;
            drop(hold);
        }
    }

    /// Makes resolved agree, and says how that went.
    async fn apply(&self, domains: &[String], index: Option<u32>, there: bool, mark: &PathBuf) -> State {
        let Some(index) = index else { return State::Unset };
        let marked = if there { std::fs::write(mark, "") } else { std::fs::remove_file(mark) };
        if let Err(error) = marked {
            tracing::debug!("{}: {error}", mark.display());
        }
        let applied = async {
            if !resolved::runs(&self.bus).await? {
                return Ok(State::Absent);
            }
            if there && self.no_server.is_none() {
                resolved::route(&self.bus, index, self.gateway, domains).await?;
                return Ok(State::Routed);
            }
            resolved::revert(&self.bus, index).await?;
            Ok(State::Unset)
        };
        let outcome: Result<State> = match tokio::time::timeout(PATIENCE, applied).await {
            Ok(outcome) => outcome,
            Err(_) => return State::Failed("systemd-resolved does not answer".into()),
        };
        outcome.unwrap_or_else(|error| State::Failed(error.message().to_owned()))
    }

    /// One word: see `ResolvedState` on the bus.
    pub async fn state(&self) -> String {
        word(&self.current().await).to_owned()
    }

    /// What keeps names from being found, and what to do about it.
    pub async fn problems(&self) -> Vec<Problem> {
        let routing = problem_of(&self.current().await, self.gateway, &self.domain);
        self.no_server.iter().cloned().chain(routing).collect()
    }

    /// How it went, if resolved has not ended since.
    async fn current(&self) -> State {
        let mut state = self.state.clone();
        let state = match state.wait_for(|state| *state != State::Pending).await {
            Ok(state) => state.clone(),
            Err(_) => State::Unset,
        };
        match state {
            State::Routed if !resolved::runs(&self.bus).await.unwrap_or(true) => State::Absent,
            state => state,
        }
    }
}

fn word(state: &State) -> &'static str {
    match state {
        State::Unset | State::Pending => "unset",
        State::Routed => "routed",
        State::Absent => "absent",
        State::Failed(_) => "failed",
    }
}

fn problem_of(state: &State, gateway: Ipv4Addr, domain: &str) -> Option<Problem> {
    match state {
        State::Unset | State::Pending | State::Routed => None,
        State::Absent => Some((
            "systemd-resolved does not run, so this host does not find VMs by name; guests do".to_owned(),
            format!(
                "systemctl enable --now systemd-resolved, or have the host's resolver ask {gateway} for {domain}"
            ),
        )),
        State::Failed(reason) => Some((
            format!(
                "systemd-resolved did not take {domain}, so this host does not find VMs by name ({reason})"
            ),
            "systemctl restart systemd-resolved".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_amiss_says_what_to_do() {
        let gateway = Ipv4Addr::new(10, 209, 0, 1);
        let problem = |state| problem_of(&state, gateway, "banger.internal");
        assert_eq!((problem(State::Unset), problem(State::Routed)), (None, None));
        let (_, remedy) = problem(State::Absent).expect("a problem");
        assert!(remedy.contains("systemctl enable --now"), "{remedy}");
        assert!(remedy.contains("ask 10.209.0.1 for banger.internal"), "{remedy}");
        let (what, _) = problem(State::Failed("polkit is gone".into())).expect("a problem");
        assert!(what.contains("(polkit is gone)"), "{what}");
    }
}
