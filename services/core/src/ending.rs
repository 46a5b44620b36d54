//! How a run of a VM ended, and what follows from it.

use crate::spec::Restart;

/// What is known last of a guest, by what it says if it goes down in order, and by what its VMM sees; the
/// words are those of [`Goodbye::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    PowerOff,
    Reboot,
    /// One or the other: the image's init does not tell.
    Down,
    Panic,
}

impl Goodbye {
    pub fn as_str(self) -> &'static str {
        match self {
            Goodbye::PowerOff => "power-off",
            Goodbye::Reboot => "reboot",
            Goodbye::Down => "down",
            Goodbye::Panic => "panic",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        let all = [Goodbye::PowerOff, Goodbye::Reboot, Goodbye::Down, Goodbye::Panic];
        all.into_iter().find(|goodbye| goodbye.as_str() == word)
    }

    /// What is known when the VMM has seen how the machine ended. A panic resets it as well, so a reset that
    /// nobody announced means something only if the VMM would have seen (`panic_seen`) a panic.
    pub fn after(said: Option<Self>, seen: Finish, panic_seen: bool) -> Option<Self> {
        match (said, seen) {
            (_, Finish::Panic) => Some(Goodbye::Panic),
            (Some(Goodbye::PowerOff | Goodbye::Reboot | Goodbye::Panic), _) => said,
            (_, Finish::PowerOff) => Some(Goodbye::PowerOff),
            (Some(Goodbye::Down), Finish::Reset) => Some(Goodbye::Reboot),
            (None, Finish::Reset) => panic_seen.then_some(Goodbye::Reboot),
        }
    }
}

/// How a machine ended, as its VMM has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    PowerOff,
    Reset,
    Panic,
}

/// What is known when the VMM is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End<'a> {
    /// `$SERVICE_RESULT` of systemd.exec(5).
    pub result: &'a str,
    pub goodbye: Option<Goodbye>,
    /// Whether somebody on the host asked for the end.
    pub asked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the unit is to count as failed, even if systemd sees nothing wrong with the VMM.
    pub failed: bool,
    /// Whether the VM is to be started again.
    pub again: bool,
    /// For people.
    pub reason: &'static str,
}

/// A guest that panics resets its machine, upon which its VMM ends as if all were well. So only a
/// goodbye tells an orderly end from a crash.
pub fn judge(end: End<'_>, policy: Restart) -> Verdict {
    let verdict = |failed, again, reason| Verdict { failed, again, reason };
    match (end.result, end.goodbye) {
        ("success", _) if end.asked => verdict(false, false, "stopped on request"),
        ("timeout", _) if end.asked => verdict(false, false, "killed, as it did not stop in time"),
        (_, _) if end.asked => verdict(false, false, "killed on request"),
        ("success", Some(Goodbye::PowerOff | Goodbye::Down)) => {
            verdict(false, policy == Restart::Always, "the guest powered itself off")
        }
        ("success", Some(Goodbye::Reboot)) => verdict(false, true, "the guest rebooted"),
        ("success", Some(Goodbye::Panic)) => {
            verdict(true, policy != Restart::No, "the guest's kernel panicked")
        }
        ("success", None) => verdict(
            true,
            policy != Restart::No,
            "the guest ended without shutting down: its kernel panicked, or it was reset",
        ),
        (result, _) => verdict(true, policy != Restart::No, explain(result)),
    }
}

fn explain(result: &str) -> &'static str {
    match result {
        "signal" => "its VMM was killed",
        "core-dump" => "its VMM crashed",
        "oom-kill" => "the host, or its unit's limit, ran out of memory",
        "timeout" => "it did not come up in time",
        "watchdog" => "its guest did not answer, so that its watchdog ended it",
        "exit-code" => "its VMM, or what prepares it, failed",
        "protocol" => "the guest ended before it was ready",
        "resources" => "systemd could not set its unit up",
        _ => "its unit failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(result: &str, goodbye: Option<Goodbye>, asked: bool, policy: Restart) -> (bool, bool) {
        let verdict = judge(End { result, goodbye, asked }, policy);
        (verdict.failed, verdict.again)
    }

    #[test]
    fn what_was_asked_for_is_never_undone() {
        for result in ["success", "signal", "timeout", "exit-code"] {
            assert_eq!(end(result, None, true, Restart::Always), (false, false), "{result}");
        }
    }

    #[test]
    fn a_guest_that_says_nothing_has_failed() {
        assert_eq!(end("success", None, false, Restart::No), (true, false));
        assert_eq!(end("success", None, false, Restart::OnFailure), (true, true));
    }

    #[test]
    fn the_vmm_knows_what_the_guest_does_not_tell() {
        use Goodbye::{Down, Panic, PowerOff, Reboot};
        let after = Goodbye::after;
        // The image's init said nothing, or the guest did not go down in order.
        for said in [None, Some(Down)] {
            assert_eq!(after(said, Finish::PowerOff, true), Some(PowerOff));
            assert_eq!(after(said, Finish::Reset, true), Some(Reboot));
            assert_eq!(after(said, Finish::Panic, true), Some(Panic));
        }
        // It may have panicked.
        assert_eq!(after(None, Finish::Reset, false), None);
        assert_eq!(after(Some(Down), Finish::Reset, false), Some(Reboot));
        // The agent powers machines off that it starts again.
        assert_eq!(after(Some(Reboot), Finish::PowerOff, true), Some(Reboot));
        assert_eq!(after(Some(PowerOff), Finish::Reset, true), Some(PowerOff));
        assert_eq!(after(Some(PowerOff), Finish::Panic, true), Some(Panic));
    }

    #[test]
    fn a_panic_is_a_failure() {
        assert_eq!(end("success", Some(Goodbye::Panic), false, Restart::No), (true, false));
        assert_eq!(end("success", Some(Goodbye::Panic), false, Restart::Always), (true, true));
    }

    #[test]
    fn a_guest_may_power_off_and_reboot() {
        let off = Some(Goodbye::PowerOff);
        assert_eq!(end("success", off, false, Restart::OnFailure), (false, false));
        assert_eq!(end("success", off, false, Restart::Always), (false, true));
        assert_eq!(end("success", Some(Goodbye::Reboot), false, Restart::No), (false, true));
    }

    #[test]
    fn a_dead_vmm_is_a_failure_whatever_the_guest_said() {
        let off = Some(Goodbye::PowerOff);
        assert_eq!(end("signal", off, false, Restart::No), (true, false));
        assert_eq!(end("core-dump", None, false, Restart::Always), (true, true));
    }

    #[test]
    fn words_come_back() {
        assert_eq!(Goodbye::parse("reboot"), Some(Goodbye::Reboot));
        assert_eq!(Goodbye::parse(""), None);
    }

    use proptest::prelude::*;

    fn any_end() -> impl Strategy<Value = (&'static str, Option<Goodbye>, bool)> {
        let results =
            ["success", "signal", "core-dump", "oom-kill", "timeout", "exit-code", "resources", "new"];
        let goodbyes = [None, Some(Goodbye::PowerOff), Some(Goodbye::Reboot)];
        (
            proptest::sample::select(results.to_vec()),
            proptest::sample::select(goodbyes.to_vec()),
            any::<bool>(),
        )
    }

    proptest! {
        /// A policy decides only whether a VM that ended by itself starts again: never what the end
        /// was, and the stricter one never starts what the laxer one leaves.
        #[test]
        fn policies_only_decide_about_again((result, goodbye, asked) in any_end()) {
            let [no, failure, always] = [Restart::No, Restart::OnFailure, Restart::Always]
                .map(|policy| judge(End { result, goodbye, asked }, policy));
            prop_assert_eq!((no.failed, no.reason), (failure.failed, failure.reason));
            prop_assert_eq!((no.failed, no.reason), (always.failed, always.reason));
            prop_assert!(no.again <= failure.again && failure.again <= always.again);
            prop_assert!(!asked || !(always.again || always.failed));
            prop_assert_eq!(asked || always.again, true, "what nobody asked for is undone by always");
            prop_assert!(!always.failed || failure.again, "a failure is one to on-failure");
        }
    }
}
