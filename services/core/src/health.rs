//! Whether a guest answers: its agent gives a sign of life every [`BEAT`], and is taken for hung
//! after [`SILENCE`].
//!
//! What is known stands in the status of the VM's unit, as a word of [`Health::as_str`].

use std::time::Duration;

use crate::vm::State;

/// How often the agent gives a sign of life.
pub const BEAT: Duration = Duration::from_secs(10);

/// How long it may give none, in the guest's own time: while its CPUs stand still none passes.
pub const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It does not run, or its agent has not been heard yet.
    Unknown,
    Healthy,
    /// Nothing was heard for [`SILENCE`].
    Unresponsive,
    /// Its VMM has it stand still, as the host has no room for what it writes.
    Stalled,
}

impl Health {
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unresponsive => "unresponsive",
            Health::Stalled => "stalled",
        }
    }

    /// From what the VM does and the last status of its unit.
    pub fn of(state: State, status: &str) -> Self {
        let known = [Health::Healthy, Health::Unresponsive, Health::Stalled];
        let known = known.into_iter().find(|it| it.as_str() == status);
        known.filter(|_| state == State::Running).unwrap_or(Health::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_of_a_guest_that_runs_anything_is_known() {
        assert_eq!(Health::of(State::Running, "healthy"), Health::Healthy);
        assert_eq!(Health::of(State::Running, "unresponsive"), Health::Unresponsive);
        assert_eq!(Health::of(State::Running, "stalled"), Health::Stalled);
        for status in ["", "ready", "unknown", "paused"] {
            assert_eq!(Health::of(State::Running, status), Health::Unknown, "{status:?}");
        }
        for state in [State::Paused, State::Stopping, State::Stopped, State::Failed, State::Starting] {
            assert_eq!(Health::of(state, "healthy"), Health::Unknown, "{state:?}");
        }
    }
}
