//! Named sessions: what they are called, what they do, and when their command is started again.
//!
//! ```text
//!              started            stop                 ended
//!   starting ─────────▶ running ─────────▶ stopping ─────────▶ exited
//!       ▲                  │ ended                               ▲
//!       └── restart policy ┴─────────────────────────────────────┴─▶ failed
//!
//!   any of the first three ── the VM went down ─▶ lost
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::spec::Restart;

pub const MAX_NAME: usize = 64;

/// Whether a session may have this name, which is also that of a directory: letters, digits, `.`,
/// `_` and `-`, with a letter or digit first.
pub fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(inner)
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its command is about to be started, for the first time or again.
    Starting,
    Running,
    /// It was told to stop.
    Stopping,
    /// The command ended with status 0, or because it was told to stop.
    Exited,
    /// The command ended otherwise, or could not be started again.
    Failed,
    /// The VM went down under it.
    Lost,
}

impl State {
    const ALL: [State; 6] =
        [State::Starting, State::Running, State::Stopping, State::Exited, State::Failed, State::Lost];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Stopping => "stopping",
            State::Exited => "exited",
            State::Failed => "failed",
            State::Lost => "lost",
        }
    }

    /// Whether nothing comes after it.
    pub fn is_final(self) -> bool {
        matches!(self, State::Exited | State::Failed | State::Lost)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(())
    }
}

/// The state after a command ended with an exit status or by a signal, or `None` if it is started
/// again.
pub fn after_end(policy: Restart, told_to_stop: bool, (status, signal): (i32, i32)) -> Option<State> {
    let well = status == 0 && signal == 0;
    match policy {
        _ if told_to_stop => Some(State::Exited),
        Restart::Always => None,
        Restart::OnFailure if !well => None,
        _ if well => Some(State::Exited),
        _ => Some(State::Failed),
    }
}

/// A command that ran this long has shown that it can: the next pause is the shortest again.
const GOOD_RUN: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// How long to wait before the command is started again, after it ran for `ran` and the pause
/// before that was `last`.
pub fn pause(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < GOOD_RUN => (last * 2).min(LONGEST),
        _ => SHORTEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "Build-1", "0", "a.b_c-d", &"x".repeat(MAX_NAME)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", &"x".repeat(MAX_NAME + 1)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn states_have_words() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("paused".parse::<State>(), Err(()));
    }

    #[test]
    fn policies() {
        let (well, ill, killed) = ((0, 0), (1, 0), (0, 9));
        assert_eq!(after_end(Restart::No, false, well), Some(State::Exited));
        assert_eq!(after_end(Restart::No, false, ill), Some(State::Failed));
        assert_eq!(after_end(Restart::OnFailure, false, well), Some(State::Exited));
        assert_eq!(after_end(Restart::OnFailure, false, killed), None);
        assert_eq!(after_end(Restart::Always, false, well), None);
        for end in [well, ill, killed] {
            assert_eq!(after_end(Restart::Always, true, end), Some(State::Exited));
        }
    }

    #[test]
    fn pauses_grow_until_a_run_was_good() {
        let second = Duration::from_secs(1);
        let mut last = None;
        let pauses: Vec<_> = std::iter::repeat_with(|| {
            last = Some(pause(last, second));
            last.unwrap()
        })
        .take(12)
        .collect();
        assert_eq!(pauses[..3], [SHORTEST, SHORTEST * 2, SHORTEST * 4]);
        assert_eq!(pauses[11], LONGEST);
        assert_eq!(pause(last, GOOD_RUN), SHORTEST);
    }
}
