//! `stop`: ask the guest's agent, press the power button if it cannot be reached or takes too long, and wait for
//! the VMM to end. systemd kills it if all that takes too long.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use banger_api::vm::{PAUSE_MARK, vsock_socket};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_guest::Agent;
use banger_vmm::control::{Control, RunState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{block_on, health, note};

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Between two calls of an agent that cannot be reached.
const RETRY: Duration = Duration::from_millis(500);

pub fn stop(name: &VmName, runtime_dir: &Path, power_button_after: Duration) -> Result<()> {
    let Some(vmm) = vmm()? else {
        health::settle(runtime_dir);
        return Ok(());
    };
    note(&Event::VmStopping { vm: name.as_str() });
    bring_down(&mut Running { vmm, runtime_dir, answer: ANSWER.min(power_button_after) }, power_button_after)
}

/// What can be done about a guest that is to go down.
trait Guest {
    /// Asks the agent to power off.
    fn ask(&mut self) -> Result<()>;

    fn press_power_button(&mut self) -> Result<()>;

    /// Waits for the end of the VMM, but no longer than `within`; returns whether it came.
    fn ended(&mut self, within: Option<Duration>) -> Result<bool>;
}

/// Returns when the guest is down. One that cannot be reached is asked again and again: it may have just woken up, or
/// be in the middle of a snapshot. But it may have no agent any more, and listen to its power button.
fn bring_down(guest: &mut impl Guest, power_button_after: Duration) -> Result<()> {
    let deadline = Instant::now() + power_button_after;
    let mut pressed = false;
    while let Err(error) = guest.ask() {
        if guest.ended(Some(Duration::ZERO))? {
            return Ok(());
        }
        if !pressed {
            eprintln!("{error:#}: pressing the power button, and asking again");
            pressed = press(guest);
        }
        if guest.ended(Some(RETRY))? {
            return Ok(());
        }
    }
    if guest.ended(Some(deadline.saturating_duration_since(Instant::now())))? {
        return Ok(());
    }
    eprintln!("it has not ended yet: pressing the power button");
    press(guest);
    guest.ended(None).map(drop)
}

/// Returns whether that worked: a VMM that is busy with a snapshot listens to nobody else.
fn press(guest: &mut impl Guest) -> bool {
    guest
        .press_power_button()
        .inspect_err(|error| eprintln!("cannot press the power button: {error:#}"))
        .is_ok()
}

/// The guest of this unit.
struct Running<'a> {
    vmm: OwnedFd,
    runtime_dir: &'a Path,
    answer: Duration,
}

impl Guest for Running<'_> {
    fn ask(&mut self) -> Result<()> {
        wake(self.runtime_dir);
        let vsock = vsock_socket(self.runtime_dir);
        block_on(async {
            let asked = tokio::time::timeout(self.answer, Agent::power_off(&vsock));
            Ok(asked.await.context("the agent does not answer")??)
        })
    }

    fn press_power_button(&mut self) -> Result<()> {
        block_on(async { Ok(Control::connect(self.runtime_dir).await?.power_button().await?) })
    }

    fn ended(&mut self, within: Option<Duration>) -> Result<bool> {
        let within = within.and_then(|within| Timespec::try_from(within).ok());
        // A pidfd becomes readable when its process ends.
        Ok(poll(&mut [PollFd::new(&self.vmm, PollFlags::IN)], within.as_ref())? > 0)
    }
}

/// The VMM, unless it is gone already and there is nothing to stop.
fn vmm() -> Result<Option<OwnedFd>> {
    let Some(pid) = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()) else { return Ok(None) };
    let pid = Pid::from_raw(pid).context("MAINPID is 0")?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(vmm) => Ok(Some(vmm)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error).context("cannot watch the VMM"),
    }
}

/// A paused guest hears nothing, and one that was left in the middle of a snapshot has no vsock device.
fn wake(runtime_dir: &Path) {
    let marked = runtime_dir.join(PAUSE_MARK).symlink_metadata().is_ok();
    let woken = block_on(async {
        let mut control = Control::connect(runtime_dir).await?;
        if marked || control.state().await? == RunState::Paused {
            control.resume().await?;
        }
        Ok(())
    });
    if let Err(error) = woken {
        eprintln!("cannot wake the guest if it is paused: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    /// A guest whose agent can be reached the `reachable`th time it is asked, and that goes down once `obeys` was done to it.
    struct Pretended {
        reachable: usize,
        obeys: &'static str,
        done: Vec<&'static str>,
    }

    impl Guest for Pretended {
        fn ask(&mut self) -> Result<()> {
            let asked = self.done.iter().filter(|done| done.ends_with("ask")).count();
            if asked + 1 < self.reachable {
                self.done.push("vain ask");
                bail!("the connection broke");
            }
            self.done.push("ask");
            Ok(())
        }

        fn press_power_button(&mut self) -> Result<()> {
            self.done.push("press");
            Ok(())
        }

        fn ended(&mut self, within: Option<Duration>) -> Result<bool> {
            let ended = self.done.contains(&self.obeys);
            assert!(ended || within.is_some(), "it would wait for ever after {:?}", self.done);
            Ok(ended)
        }
    }

    fn done(reachable: usize, obeys: &'static str) -> Vec<&'static str> {
        let mut guest = Pretended { reachable, obeys, done: Vec::new() };
        bring_down(&mut guest, Duration::ZERO).expect("it goes down");
        guest.done
    }

    #[test]
    fn a_guest_is_asked() {
        assert_eq!(done(1, "ask"), ["ask"]);
    }

    #[test]
    fn one_that_breaks_the_call_off_is_asked_again() {
        assert_eq!(done(3, "ask"), ["vain ask", "press", "vain ask", "ask"]);
    }

    #[test]
    fn one_without_an_agent_has_its_power_button_pressed() {
        assert_eq!(done(usize::MAX, "press"), ["vain ask", "press"]);
    }

    #[test]
    fn one_that_takes_too_long_has_its_power_button_pressed() {
        assert_eq!(done(1, "press"), ["ask", "press"]);
    }

    #[test]
    fn one_that_ends_while_it_is_asked_is_left_alone() {
        assert_eq!(done(2, "vain ask"), ["vain ask"]);
    }
}
