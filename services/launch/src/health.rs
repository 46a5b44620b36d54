//! The guest's health after its start, see [`banger_core::health`]: hears the signs of life of its
//! agent, and tells systemd and the journal what follows from them.
//!
//! It hears as well how the guest goes down, from the guest and from its VMM.
//!
//! systemd's own watchdog (`WatchdogSec=`) goes by the same signs and by the same clock, which stands
//! still before the first of them, while the VM is paused, and once the guest goes down.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use banger_api::vm::{HEARTBEAT, PAUSE_MARK};
use banger_core::ending::Goodbye;
use banger_core::event::Event;
use banger_core::guest::{ALIVE_KEY, PANIC_SEEN_KEY};
use banger_core::health::{Health, SILENCE};
use banger_core::name::VmName;
use banger_vmm::control::{QEMU_EVENTS, QEMU_GO_ON, QEMU_HELLO, finish, stalls};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::attend::{self, GOODBYE};
use crate::note;

/// The longest line that is heard; what is longer says nothing.
const MAX_LINE: usize = 1024;

/// Name of a file in the runtime directory that is there while the VMM may still tell of its guest's end.
const LISTENING: &str = "listening";

/// How long that may take when the VMM is gone.
const SETTLE: Duration = Duration::from_secs(2);

/// Waits until everything that the VMM had to tell is noted.
pub fn settle(runtime_dir: &Path) {
    let deadline = Instant::now() + SETTLE;
    while runtime_dir.join(LISTENING).exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

/// However fast a guest speaks, systemd and the journal are told no more often than this.
const RESPITE: Duration = Duration::from_millis(100);

/// How often a guest for whose writes there is no room tries again.
const RETRY: Duration = Duration::from_secs(2);

/// Watches over the guest until the VMM ends, and this process with it.
pub fn watch(name: &VmName, listener: UnixListener, runtime_dir: &Path) -> Result<()> {
    listener.set_nonblocking(true)?;
    let marks = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&marks, runtime_dir, inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE)
        .with_context(|| format!("cannot watch {}", runtime_dir.display()))?;
    let watchdog = std::env::var("WATCHDOG_USEC").ok();
    let mut watch = Watch {
        name: name.to_string(),
        runtime_dir: runtime_dir.to_owned(),
        listener,
        marks,
        call: None,
        vmm: None,
        said: None,
        panic_seen: false,
        pulse: Pulse::new(watchdog),
    };
    watch.tell(watch.pulse.begin());
    loop {
        watch.turn()?;
    }
}

struct Watch {
    name: String,
    runtime_dir: PathBuf,
    listener: UnixListener,
    /// Tells that the mark of a pause may have come or gone.
    marks: OwnedFd,
    /// The guest's last call.
    call: Option<Call>,
    /// What the VMM tells, if it is one that does.
    vmm: Option<Call>,
    /// How the guest goes down.
    said: Option<Goodbye>,
    /// Whether the VMM would see a panic.
    panic_seen: bool,
    pulse: Pulse,
}

impl Watch {
    /// Waits for something to happen, and sees to it.
    fn turn(&mut self) -> Result<()> {
        let mut waits =
            vec![PollFd::new(&self.marks, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        let calls = self.call.iter().chain(&self.vmm);
        waits.extend(calls.map(|call| PollFd::new(&call.stream, PollFlags::IN)));
        let next = self.pulse.deadline().into_iter().chain(self.pulse.retry()).min();
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose()?;
        match poll(&mut waits, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.look_for_pause();
        let heard = self.hear();
        self.answer();
        self.hear_vmm();
        // After what was said meanwhile.
        let words = self.pulse.expire(Instant::now());
        self.tell(words);
        self.try_again();
        if heard {
            thread::sleep(RESPITE);
        }
        Ok(())
    }

    fn look_for_pause(&mut self) {
        // Which file it was does not matter; there is one to look at.
        while rustix::io::read(&self.marks, &mut [0; 4096]).is_ok() {}
        let paused = self.runtime_dir.join(PAUSE_MARK).symlink_metadata().is_ok();
        let words = self.pulse.pause(paused, Instant::now());
        self.tell(words);
    }

    /// Takes what the guest has said, if it has.
    fn hear(&mut self) -> bool {
        let Some(call) = &mut self.call else { return false };
        let (lines, ended) = call.read();
        if ended {
            self.call = None;
        }
        if lines.iter().any(|line| line.strip_prefix(ALIVE_KEY) == Some("=1")) {
            self.note_beat();
            self.listen_to_vmm();
            let words = self.pulse.beat(Instant::now());
            self.tell(words);
        }
        self.panic_seen |= lines.iter().any(|line| line.strip_prefix(PANIC_SEEN_KEY) == Some("=1"));
        if let Some(goodbye) = lines.iter().rev().find_map(|line| attend::goodbye(line)) {
            self.note_goodbye(goodbye);
            let words = self.pulse.end(goodbye);
            self.tell(words);
        }
        !lines.is_empty()
    }

    /// Listens to whoever calls last: the guest knows first when a call broke off.
    fn answer(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        self.hear();
        self.call = stream.set_nonblocking(true).is_ok().then_some(Call { stream, line: Vec::new() });
    }

    /// A VMM whose guest is alive serves its sockets.
    fn listen_to_vmm(&mut self) {
        let socket = self.runtime_dir.join(QEMU_EVENTS);
        if self.vmm.is_some() || !socket.exists() {
            return;
        }
        let listen = || -> io::Result<Call> {
            let mut stream = UnixStream::connect(socket)?;
            stream.write_all(QEMU_HELLO)?;
            stream.set_nonblocking(true)?;
            File::create(self.runtime_dir.join(LISTENING))?;
            Ok(Call { stream, line: Vec::new() })
        };
        match listen() {
            Ok(vmm) => self.vmm = Some(vmm),
            Err(error) => eprintln!("cannot listen to the VMM: {error}"),
        }
    }

    fn hear_vmm(&mut self) {
        let Some(vmm) = &mut self.vmm else { return };
        let (lines, ended) = vmm.read();
        if let Some(seen) = lines.iter().find_map(|line| finish(line)) {
            if let Some(goodbye) = Goodbye::after(self.said, seen, self.panic_seen) {
                self.note_goodbye(goodbye);
            }
            // systemd kills this process soon after the VMM's end, but not before this is gone.
            let _ = fs::remove_file(self.runtime_dir.join(LISTENING));
        }
        if ended {
            self.vmm = None;
            let _ = fs::remove_file(self.runtime_dir.join(LISTENING));
        }
        if lines.iter().any(|line| stalls(line)) {
            let words = self.pulse.stall(Instant::now());
            self.tell(words);
        }
    }

    /// Has a guest that stands still for want of room go on. It stands still again if there is none yet.
    fn try_again(&mut self) {
        if !self.pulse.is_to_try(Instant::now()) {
            return;
        }
        let Some(vmm) = &mut self.vmm else { return };
        if let Err(error) = vmm.stream.write_all(QEMU_GO_ON) {
            eprintln!("cannot have the guest go on: {error}");
        }
    }

    fn note_goodbye(&mut self, goodbye: Goodbye) {
        self.said = Some(goodbye);
        if let Err(error) = fs::write(self.runtime_dir.join(GOODBYE), goodbye.as_str()) {
            eprintln!("cannot note how the guest goes down: {error}");
        }
    }

    /// The file's time is that of the last sign of life.
    fn note_beat(&self) {
        let noted = File::create(self.runtime_dir.join(HEARTBEAT))
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = noted {
            eprintln!("cannot note the guest's sign of life: {error}");
        }
    }

    fn tell(&self, words: Words) {
        attend::tell(&words.states);
        if let Some(change) = words.change {
            note(&change.event(&self.name));
        }
    }
}

/// A call of the guest's.
struct Call {
    stream: UnixStream,
    /// The beginning of a line.
    line: Vec<u8>,
}

impl Call {
    /// The lines that there are, and whether the call has ended.
    fn read(&mut self) -> (Vec<String>, bool) {
        let mut lines = Vec::new();
        let mut buffer = [0; 4096];
        let ended = match self.stream.read(&mut buffer) {
            Ok(0) => true,
            Ok(read) => {
                take_lines(&mut self.line, &buffer[..read], &mut lines);
                false
            }
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        (lines, ended)
    }
}

/// Adds to `line` what was read, and to `lines` those that are complete. Of one that is too long only
/// the beginning is kept.
fn take_lines(line: &mut Vec<u8>, read: &[u8], lines: &mut Vec<String>) {
    for &byte in read {
        if byte == b'\n' {
            lines.push(String::from_utf8_lossy(line).into_owned());
            line.clear();
        } else if line.len() < MAX_LINE {
            line.push(byte);
        }
    }
}

/// What follows from something that happened.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    /// For systemd, see sd_notify(3).
    states: Vec<String>,
    change: Option<Change>,
}

/// What is worth an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Unresponsive,
    Stalled,
    Healthy,
    Paused,
    Resumed,
}

impl Change {
    fn event(self, vm: &str) -> Event<'_> {
        match self {
            Change::Unresponsive => Event::VmUnresponsive { vm },
            Change::Stalled => Event::VmStalled { vm },
            Change::Healthy => Event::VmHealthy { vm },
            Change::Paused => Event::VmPaused { vm },
            Change::Resumed => Event::VmResumed { vm },
        }
    }
}

/// What is known of the guest, and the clock that runs while nothing is heard of it.
struct Pulse {
    health: Health,
    /// Since when nothing was heard; `None` while the clock stands still.
    silent_since: Option<Instant>,
    /// When a guest that stands still for want of room is to try again.
    retry: Option<Instant>,
    paused: bool,
    /// Whether the guest has said how it goes down.
    ending: bool,
    /// `WatchdogSec=` of the unit in microseconds, if that is set.
    watchdog: Option<String>,
}

impl Pulse {
    fn new(watchdog: Option<String>) -> Self {
        Self {
            health: Health::Unknown,
            silent_since: None,
            retry: None,
            paused: false,
            ending: false,
            watchdog,
        }
    }

    /// systemd would start its clock by itself, when the unit is active.
    fn begin(&self) -> Words {
        Words { states: self.hold_watchdog(), change: None }
    }

    fn beat(&mut self, now: Instant) -> Words {
        let mut words = Words::default();
        if self.health != Health::Healthy {
            let was_told = matches!(self.health, Health::Unresponsive | Health::Stalled);
            words.change = was_told.then_some(Change::Healthy);
            self.health = Health::Healthy;
            words.states.extend(self.status());
        }
        // It may have been under way when the VM was paused.
        if !self.paused && !self.ending {
            let held = self.silent_since.replace(now).is_none();
            words.states.extend(if held { self.run_watchdog() } else { vec!["WATCHDOG=1".into()] });
        }
        words
    }

    /// The VM is paused, or is not.
    fn pause(&mut self, paused: bool, now: Instant) -> Words {
        if paused == self.paused {
            return Words::default();
        }
        self.paused = paused;
        let change = if paused { Change::Paused } else { Change::Resumed };
        let mut words = Words { states: self.status(), change: Some(change) };
        if paused {
            self.silent_since = None;
            words.states.extend(self.hold_watchdog());
        } else if self.health != Health::Unknown && !self.ending {
            // All the time that it has, from the beginning.
            self.silent_since = Some(now);
            words.states.extend(self.run_watchdog());
        }
        words
    }

    /// The VMM has the guest stand still, for want of room.
    fn stall(&mut self, now: Instant) -> Words {
        self.retry = Some(now + RETRY);
        let ran = self.silent_since.take().is_some();
        let mut words = Words::default();
        if self.health != Health::Stalled {
            self.health = Health::Stalled;
            words = Words { states: self.status(), change: Some(Change::Stalled) };
        }
        if ran {
            words.states.extend(self.hold_watchdog());
        }
        words
    }

    /// When the guest is to try again. One that is paused stays so.
    fn retry(&self) -> Option<Instant> {
        self.retry.filter(|_| !self.paused)
    }

    /// Whether that is now. It is once: whoever still has no room is told to be stalled again.
    fn is_to_try(&mut self, now: Instant) -> bool {
        let due = self.retry().is_some_and(|retry| now >= retry);
        if due {
            self.retry = None;
        }
        due
    }

    /// The guest goes down in order, which has limits of its own.
    fn end(&mut self, goodbye: Goodbye) -> Words {
        self.ending = true;
        self.silent_since = None;
        let status = match goodbye {
            Goodbye::PowerOff => "STATUS=powering off",
            Goodbye::Reboot => "STATUS=rebooting",
            Goodbye::Down | Goodbye::Panic => "STATUS=going down",
        };
        Words { states: [vec![status.into()], self.hold_watchdog()].concat(), change: None }
    }

    /// When the silence has been too long, if the clock runs.
    fn deadline(&self) -> Option<Instant> {
        let due = self.health != Health::Unresponsive;
        self.silent_since.filter(|_| due).map(|since| since + SILENCE)
    }

    fn expire(&mut self, now: Instant) -> Words {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Words::default();
        }
        self.health = Health::Unresponsive;
        Words { states: self.status(), change: Some(Change::Unresponsive) }
    }

    /// The unit's status. Of a guest that has not been heard it stays as it is.
    fn status(&self) -> Vec<String> {
        let status = match self.health {
            _ if self.ending => return Vec::new(),
            _ if self.paused => "paused",
            Health::Unknown => "ready",
            health => health.as_str(),
        };
        vec![format!("STATUS={status}")]
    }

    fn hold_watchdog(&self) -> Vec<String> {
        self.watchdog.iter().map(|_| "WATCHDOG_USEC=0".into()).collect()
    }

    /// From the beginning.
    fn run_watchdog(&self) -> Vec<String> {
        let usec = self.watchdog.iter().map(|usec| format!("WATCHDOG_USEC={usec}"));
        usec.chain(["WATCHDOG=1".into()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pulse() -> (Pulse, Instant) {
        (Pulse::new(Some("60000000".into())), Instant::now())
    }

    #[test]
    fn the_first_beat_starts_the_clock() {
        let (mut pulse, now) = pulse();
        assert_eq!(pulse.begin().states, ["WATCHDOG_USEC=0"]);
        assert_eq!(pulse.deadline(), None);
        assert_eq!(pulse.expire(now + 1000 * SECOND), Words::default());
        assert_eq!(pulse.beat(now).states, ["STATUS=healthy", "WATCHDOG_USEC=60000000", "WATCHDOG=1"]);
        assert_eq!(pulse.beat(now + SECOND).states, ["WATCHDOG=1"]);
        assert_eq!(pulse.deadline(), Some(now + SECOND + SILENCE));
    }

    #[test]
    fn silence_is_told_once_and_so_is_its_end() {
        let (mut pulse, now) = pulse();
        pulse.beat(now);
        assert_eq!(pulse.expire(now + SILENCE - SECOND), Words::default());
        let silent = pulse.expire(now + SILENCE);
        assert_eq!(silent.states, ["STATUS=unresponsive"]);
        assert_eq!(silent.change, Some(Change::Unresponsive));
        assert_eq!(pulse.expire(now + 2 * SILENCE), Words::default());
        let again = pulse.beat(now + 3 * SILENCE);
        assert_eq!(again.states, ["STATUS=healthy", "WATCHDOG=1"]);
        assert_eq!(again.change, Some(Change::Healthy));
        assert_eq!(pulse.deadline(), Some(now + 4 * SILENCE));
    }

    #[test]
    fn the_clock_stands_still_while_the_guest_does() {
        let (mut pulse, now) = pulse();
        pulse.beat(now);
        assert_eq!(pulse.pause(true, now + SECOND).states, ["STATUS=paused", "WATCHDOG_USEC=0"]);
        assert_eq!(pulse.pause(true, now + SECOND), Words::default());
        // This one was on its way.
        assert_eq!(pulse.beat(now + SECOND), Words::default());
        assert_eq!(pulse.expire(now + 1000 * SECOND), Words::default());
        let resumed = now + 1000 * SECOND;
        let states = pulse.pause(false, resumed).states;
        assert_eq!(states, ["STATUS=healthy", "WATCHDOG_USEC=60000000", "WATCHDOG=1"]);
        assert_eq!(pulse.deadline(), Some(resumed + SILENCE));
    }

    #[test]
    fn a_guest_without_room_tries_again_until_it_answers() {
        let (mut pulse, now) = pulse();
        pulse.beat(now);
        let stalled = pulse.stall(now);
        assert_eq!(stalled.states, ["STATUS=stalled", "WATCHDOG_USEC=0"]);
        assert_eq!(stalled.change, Some(Change::Stalled));
        assert_eq!(pulse.deadline(), None);
        for tries in 0..3 {
            let now = now + tries * RETRY;
            assert!(!pulse.is_to_try(now));
            assert_eq!(pulse.retry(), Some(now + RETRY));
            assert!(pulse.is_to_try(now + RETRY));
            assert_eq!(pulse.retry(), None);
            assert_eq!(pulse.stall(now + RETRY), Words::default());
        }
        // Whoever pauses it has the say.
        pulse.pause(true, now);
        assert_eq!(pulse.retry(), None);
        pulse.pause(false, now);
        assert_eq!(pulse.stall(now).states, ["WATCHDOG_USEC=0"]);
        assert!(pulse.is_to_try(now + RETRY));
        let healthy = pulse.beat(now + 2 * RETRY);
        assert_eq!(healthy.states, ["STATUS=healthy", "WATCHDOG_USEC=60000000", "WATCHDOG=1"]);
        assert_eq!(healthy.change, Some(Change::Healthy));
    }

    #[test]
    fn a_pause_changes_nothing_of_what_was_known() {
        let (mut pulse, now) = pulse();
        assert_eq!(pulse.pause(true, now).change, Some(Change::Paused));
        let resumed = pulse.pause(false, now);
        assert_eq!((resumed.states, resumed.change), (vec!["STATUS=ready".into()], Some(Change::Resumed)));
        pulse.beat(now);
        pulse.expire(now + SILENCE);
        pulse.pause(true, now + SILENCE);
        let states = pulse.pause(false, now + SILENCE).states;
        assert_eq!(states, ["STATUS=unresponsive", "WATCHDOG_USEC=60000000", "WATCHDOG=1"]);
    }

    #[test]
    fn a_guest_that_goes_down_need_not_answer() {
        let (mut pulse, now) = pulse();
        pulse.beat(now);
        assert_eq!(pulse.end(Goodbye::Reboot).states, ["STATUS=rebooting", "WATCHDOG_USEC=0"]);
        assert_eq!(pulse.beat(now + SECOND), Words::default());
        assert_eq!(pulse.deadline(), None);
    }

    #[test]
    fn without_a_watchdog_none_is_set() {
        let mut pulse = Pulse::new(None);
        assert_eq!(pulse.begin(), Words::default());
        assert_eq!(pulse.beat(Instant::now()).states, ["STATUS=healthy", "WATCHDOG=1"]);
        assert_eq!(pulse.pause(true, Instant::now()).states, ["STATUS=paused"]);
    }

    #[test]
    fn lines_come_in_pieces_and_are_short() {
        let (mut line, mut lines) = (Vec::new(), Vec::new());
        take_lines(&mut line, b"a=1\nb", &mut lines);
        take_lines(&mut line, b"=2\n", &mut lines);
        assert_eq!(lines, ["a=1", "b=2"]);
        take_lines(&mut line, &[b'x'; 5000], &mut lines);
        assert_eq!(line.len(), MAX_LINE);
    }
}
