//! `attend`: the host's side of a guest's start, see [`banger_core::guest`], and of its life after that.
//!
//! Everything that comes from the guest is untrusted: lines are short, known keys are passed on
//! cleaned, the rest is dropped.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use banger_api::now_usec;
use banger_api::vm::vsock_socket;
use banger_core::ending::Goodbye;
use banger_core::event::Event;
use banger_core::guest::{
    FAILURE_KEY, GOODBYE_KEY, GuestConfig, STAGE_KEY, STAGES, STATUS_PORT, UPTIME_KEY, WARNING_KEY,
};
use banger_core::name::VmName;
use banger_core::timeline;
use banger_core::vm::Stage;
use banger_vmm::control::RESTORE;
use sd_notify::NotifyState;

use crate::timeline::Timeline;
use crate::{health, journal, keep, note, restore};

/// What systemd is told of a guest that is ready.
pub const READY: &str = "READY=1";

/// Name of the guest's configuration in the runtime directory.
pub const CONFIG: &str = "guest.json";

/// Name of the file with the guest's last word, there once it has begun to go down in order.
pub const GOODBYE: &str = "goodbye";

/// The longest status line a guest may write, in bytes.
const MAX_LINE: u64 = 4096;

/// How much of a guest's text systemd shows.
const MAX_TEXT: usize = 200;

/// How many of a guest's warnings go to the journal.
const MAX_WARNINGS: usize = 64;

pub fn attend(name: &VmName, runtime_dir: PathBuf) -> Result<()> {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let status = listen(&runtime_dir, STATUS_PORT)?;
    keep::begin(&runtime_dir)?;
    journal::follow(&runtime_dir);
    if runtime_dir.join(RESTORE).exists() {
        restore::restore(name, &runtime_dir)?;
    } else {
        start(name, listener, &runtime_dir)?;
    }
    health::watch(name, status, &runtime_dir)
}

/// Listens where the guest's calls to a port of the host arrive.
pub fn listen(runtime_dir: &Path, port: u32) -> Result<UnixListener> {
    let mut socket = vsock_socket(runtime_dir).into_os_string();
    socket.push(format!("_{port}"));
    UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", Path::new(&socket).display()))
}

/// Returns when the guest is ready, and nobody is to ask for its configuration any longer.
fn start(name: &VmName, listener: UnixListener, runtime_dir: &Path) -> Result<()> {
    let mut timeline = Timeline::new(runtime_dir);
    // The VMM ends, and this process with it, when a guest restarts: one guest per life. But a
    // guest may call again when its first call broke off.
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept the guest's call")?;
        match converse(name, stream, runtime_dir, &mut timeline) {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => eprintln!("the guest's call ended: {error:#}"),
        }
    }
    Ok(())
}

/// Returns whether the guest has become ready.
fn converse(
    name: &VmName,
    mut stream: UnixStream,
    runtime_dir: &Path,
    timeline: &mut Timeline,
) -> Result<bool> {
    stream.write_all(configuration(&runtime_dir.join(CONFIG))?.as_bytes())?;
    let mut lines = BufReader::new(stream);
    let mut warnings = 0;
    loop {
        let mut line = Vec::new();
        let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(false);
        }
        let line = String::from_utf8_lossy(&line);
        if let Some(text) = warning(&line).filter(|_| warnings < MAX_WARNINGS) {
            warnings += 1;
            crate::warn(&format!("guest: {text}"));
        }
        if let Some((stage, usec)) = reached(&line, now_usec()) {
            timeline.mark_at(stage, usec);
        }
        let states = translate(&line);
        let is_ready = states.iter().any(|state| state == READY);
        if is_ready {
            // Before anybody can act on it.
            note(&Event::VmReady { vm: name.as_str() });
        }
        tell(&states);
        if is_ready {
            return Ok(true);
        }
    }
}

/// The configuration line, with the time and the randomness of this moment.
fn configuration(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config: GuestConfig = serde_json::from_str(&text).context("not a guest configuration")?;
    config.realtime_usec = now_usec();
    let mut seed = [0u8; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    config.seed = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(serde_json::to_string(&config)? + "\n")
}

/// The guest's last word, if the line is that.
pub fn goodbye(line: &str) -> Option<Goodbye> {
    let (key, word) = line.trim_end().split_once('=')?;
    if key == GOODBYE_KEY { Goodbye::parse(word) } else { None }
}

/// The stage whose begin a guest's status line tells. The first uptime tells when the kernel began.
fn reached(line: &str, now: u64) -> Option<(&'static str, u64)> {
    match line.trim_end().split_once('=')? {
        ("READY", "1") => Some((timeline::READY, now)),
        (STAGE_KEY, stage) => Some((STAGES.into_iter().find(|known| *known == stage)?, now)),
        (UPTIME_KEY, uptime) => Some((timeline::KERNEL, now.saturating_sub(uptime.parse().ok()?))),
        _ => None,
    }
}

/// What a guest's status line means to systemd.
fn translate(line: &str) -> Vec<String> {
    let Some((key, value)) = line.trim_end().split_once('=') else { return vec![] };
    let text = clean(value);
    match (key, text.as_str()) {
        ("READY", "1") => vec![format!("STATUS={}", Stage::Ready.as_str()), READY.into()],
        (key, _) if key == STAGE_KEY => vec![format!("STATUS={text}")],
        (key, _) if key == FAILURE_KEY => vec![format!("STATUS=failed: {text}")],
        ("STATUS", _) => vec![format!("STATUS={text}")],
        _ => vec![],
    }
}

/// What a guest comes up without, if its status line says so.
fn warning(line: &str) -> Option<String> {
    let (key, value) = line.trim_end().split_once('=')?;
    (key == WARNING_KEY).then(|| clean(value))
}

fn clean(text: &str) -> String {
    journal::clean(text, MAX_TEXT)
}

/// Tells systemd, in the words of sd_notify(3).
pub fn tell(states: &[String]) {
    if states.is_empty() {
        return;
    }
    let states: Vec<_> = states.iter().map(|state| NotifyState::Custom(state)).collect();
    if let Err(error) = sd_notify::notify(&states) {
        eprintln!("cannot notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_on_what_is_known() {
        assert_eq!(translate("READY=1\n"), ["STATUS=ready", "READY=1"]);
        assert_eq!(translate("X_BANGER_STAGE=agent\n"), ["STATUS=agent"]);
        assert_eq!(translate("X_BANGER_FAILURE=no disk\n"), ["STATUS=failed: no disk"]);
    }

    #[test]
    fn a_goodbye_is_one_of_two_words() {
        assert_eq!(goodbye("X_BANGER_GOODBYE=reboot\n"), Some(Goodbye::Reboot));
        assert_eq!(goodbye("X_BANGER_GOODBYE=never\n"), None);
        assert_eq!(goodbye("STATUS=reboot\n"), None);
    }

    #[test]
    fn stages_are_timed_by_the_host() {
        assert_eq!(reached("X_BANGER_STAGE=disks\n", 9), Some(("disks", 9)));
        assert_eq!(reached("X_BANGER_UPTIME_USEC=4\n", 9), Some(("kernel", 5)));
        assert_eq!(reached("READY=1\n", 9), Some(("ready", 9)));
        for line in ["X_BANGER_STAGE=unit\n", "X_BANGER_UPTIME_USEC=-4\n", "READY=2\n", "\n"] {
            assert_eq!(reached(line, 9), None, "{line:?}");
        }
    }

    #[test]
    fn drops_the_rest() {
        for line in ["", "\n", "MAINPID=1\n", "READY=0\n", "FDSTORE=1", "READY", "=", "STOPPING=1"] {
            assert_eq!(translate(line), Vec::<String>::new(), "{line:?}");
        }
    }

    #[test]
    fn warnings_are_for_the_journal() {
        let line = "X_BANGER_WARNING=cannot write /a: no\u{1b}[31m user\n";
        assert_eq!(warning(line).as_deref(), Some("cannot write /a: no[31m user"));
        assert_eq!(warning("STATUS=a"), None);
        assert_eq!(translate(line), Vec::<String>::new());
        assert_eq!(
            warning(&format!("X_BANGER_WARNING={}", "x".repeat(5000))).map(|it| it.len()),
            Some(MAX_TEXT)
        );
    }

    #[test]
    fn a_guest_cannot_smuggle_lines() {
        assert_eq!(translate("STATUS=a\rMAINPID=1\u{7}"), ["STATUS=aMAINPID=1"]);
        assert_eq!(translate(&format!("STATUS={}", "x".repeat(5000)))[0].len(), MAX_TEXT + 7);
    }
}
