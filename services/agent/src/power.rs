//! The end of the machine, in order where possible.

use std::process::{Command, Stdio};
use std::time::Duration;

use banger_core::ending::Goodbye;
use banger_core::guest::PowerOff;
use nix::libc;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::boot::Context;
use crate::disks::Disks;
use crate::process::Table;
use crate::{sys, systemd};

/// How long processes may take to end before they are killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long the image's init may take before we do its work. systemd's own limit for one unit
/// is 90 s.
const INIT_GRACE: Duration = Duration::from_secs(120);

/// Why the machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The host asked.
    Request,
    /// A signal to PID 1.
    Signal(Goodbye),
    /// The image's init is doing it.
    Init(Goodbye),
}

impl Why {
    pub fn goodbye(self) -> Goodbye {
        match self {
            Why::Request => Goodbye::PowerOff,
            Why::Signal(goodbye) | Why::Init(goodbye) => goodbye,
        }
    }
}

/// What a signal to PID 1 asks for: the convention of busybox, whose `halt`, `poweroff` and
/// `reboot` send `SIGUSR1`, `SIGUSR2` and `SIGTERM`. `SIGINT` is Ctrl-Alt-Del, which is
/// Firecracker's power button; `SIGPWR` is a failing power supply.
pub const SIGNALS: [(libc::c_int, Goodbye); 5] = [
    (libc::SIGUSR1, Goodbye::PowerOff),
    (libc::SIGUSR2, Goodbye::PowerOff),
    (libc::SIGINT, Goodbye::PowerOff),
    (libc::SIGPWR, Goodbye::PowerOff),
    (libc::SIGTERM, Goodbye::Reboot),
];

/// Brings the machine down in order.
pub async fn off(why: Why, context: &Context, table: &Table) -> ! {
    let power_off = context.power_off;
    sys::log!(sys::INFO, "going down: {} ({why:?})", why.goodbye().as_str());
    // Lets the reply to the call that asked for it get out.
    sleep(Duration::from_millis(20)).await;
    if !context.is_init {
        ask_init(power_off);
        sleep(INIT_GRACE).await;
        sys::log!(sys::WARNING, "the image's init did not power off in {INIT_GRACE:?}");
    }
    end_processes(context.is_init, table).await;
    cut(Some(&context.disks), power_off)
}

/// Asks the image's init for an orderly shutdown.
///
/// - systemd: `SIGRTMIN+4` starts poweroff.target, `SIGRTMIN+5` reboot.target. A signal needs neither D-Bus nor a binary.
/// - any other: its own `poweroff` or `reboot` program, which every one of them has (sysvinit,
///   busybox init, OpenRC, runit, s6). The signals of these inits contradict each other:
///   `SIGUSR2` is power off to busybox, but "close your control FIFO" to sysvinit.
/// - and without such a program: `SIGUSR2` (busybox; `SIGTERM`, its reboot, where the machine
///   ends by reset) and `SIGPWR` (others, if their inittab says so).
fn ask_init(power_off: PowerOff) {
    let init = Pid::from_raw(1);
    let reset = power_off == PowerOff::Reset;
    if systemd::is_init() {
        let signal = libc::SIGRTMIN() + if reset { 5 } else { 4 };
        // SAFETY: a plain system call; nix knows no real-time signals.
        unsafe { libc::kill(1, signal) };
        return;
    }
    let program = if reset { "reboot" } else { "poweroff" };
    for directory in ["/sbin", "/usr/sbin", "/bin", "/usr/bin"] {
        let spawned = Command::new(format!("{directory}/{program}"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if spawned.is_ok() {
            return;
        }
    }
    let _ = kill(init, if reset { Signal::SIGTERM } else { Signal::SIGUSR2 });
    let _ = kill(init, Signal::SIGPWR);
}

async fn end_processes(is_init: bool, table: &Table) {
    let everybody = Pid::from_raw(-1);
    for (signal, grace) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, Duration::from_secs(2))] {
        let _ = kill(everybody, signal);
        if signal == Signal::SIGTERM {
            // Shells at a terminal ignore SIGTERM, stopped processes cannot act on it. To all others a hangup
            // would be the end of what they do at SIGTERM.
            for process in sys::processes().filter(|&process| process > 1 && has_terminal(process)) {
                let _ = kill(Pid::from_raw(process as i32), Signal::SIGHUP);
            }
            let _ = kill(everybody, Signal::SIGCONT);
        }
        let deadline = Instant::now() + grace;
        // Every process descends from PID 1: without children there are none.
        while Instant::now() < deadline && (table.reap() || !is_init) {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Whether a process has a controlling terminal: proc(5), `tty_nr` of `stat`.
fn has_terminal(process: u32) -> bool {
    let stat = sys::read_bounded(format!("/proc/{process}/stat"), 4096).unwrap_or_default();
    terminal(&String::from_utf8_lossy(&stat)).is_some_and(|number| number != 0)
}

/// The name of the program, in parentheses, may have any others in it.
fn terminal(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(4)?.parse().ok()
}

/// Writes everything to disk and ends the machine at once.
pub fn cut(disks: Option<&Disks>, power_off: PowerOff) -> ! {
    if let Some(disks) = disks {
        nix::unistd::sync();
        disks.make_read_only();
    }
    nix::unistd::sync();
    let mode = match power_off {
        PowerOff::Acpi => RebootMode::RB_POWER_OFF,
        PowerOff::Reset => RebootMode::RB_AUTOBOOT,
    };
    let _ = reboot(mode);
    // Not reached by root. The end of PID 1 is a kernel panic, and that a reset (panic=-1).
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told() {
        assert_eq!(terminal("7 (a) b) S 1 7 7 34816 7 4194560 1"), Some(34816));
        assert_eq!(terminal("7 (sh) S 1 7 7 0 -1 4194560 1"), Some(0));
        assert_eq!(terminal("7 (sh) S"), None);
        assert_eq!(terminal(""), None);
    }
}
