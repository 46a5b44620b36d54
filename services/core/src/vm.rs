//! What a VM is doing.
//!
//! ```text
//!              start            guest ready          stop / guest powers off
//!   created ─────────▶ starting ─────────▶ running ─────────▶ stopping ─────────▶ stopped
//!                         │                 │    ▲                                   │
//!                         │           pause ▼    │ resume                            │
//!                         │                paused│                                   │
//!                         └──── failed ◀────┴────┘           start ◀─────────────────┘
//! ```
//!
//! A VM's state is never stored: [`State::of`] derives it from its unit.

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Never started.
    Created,
    Starting,
    /// The guest has said that it is ready.
    Running,
    /// Its CPUs stand still.
    Paused,
    Stopping,
    Stopped,
    /// The guest did not come up, or its VMM died.
    Failed,
}

impl State {
    /// From the unit's `ActiveState`; `started` tells whether the VM was ever started.
    pub fn of(active_state: &str, started: bool) -> Self {
        match active_state {
            "active" | "reloading" | "refreshing" => State::Running,
            "activating" => State::Starting,
            "deactivating" => State::Stopping,
            "failed" => State::Failed,
            _ if started => State::Stopped,
            _ => State::Created,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }

    /// Whether the VM has a VMM process.
    pub fn is_up(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Paused | State::Stopping)
    }
}

/// The host's stages of creating and starting a VM, in their order. Between [`Stage::Kernel`] and
/// [`Stage::Ready`] come the guest's own, [`crate::guest::STAGES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Find the image and the kernel.
    Resolve,
    /// Fetch the image.
    Pull,
    /// Take name and address.
    Reserve,
    /// Lease the image, make the disks, or link those of a snapshot.
    Disk,
    /// systemd starts the unit.
    Start,
    /// TAP and address on the host.
    Network,
    /// The VMM runs and the guest's kernel boots.
    Kernel,
    /// The guest is ready.
    Ready,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Resolve => "resolve",
            Stage::Pull => "pull",
            Stage::Reserve => "reserve",
            Stage::Disk => "disk",
            Stage::Start => "start",
            Stage::Network => "network",
            Stage::Kernel => "kernel",
            Stage::Ready => "ready",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_the_unit() {
        assert_eq!(State::of("inactive", false), State::Created);
        assert_eq!(State::of("inactive", true), State::Stopped);
        assert_eq!(State::of("active", true), State::Running);
        assert_eq!(State::of("failed", true), State::Failed);
    }
}
