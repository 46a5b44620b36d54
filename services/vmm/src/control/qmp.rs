//! QEMU's monitor protocol: a JSON object per line, each way (docs/interop/qmp-spec.txt and
//! qapi/*.json of QEMU's source).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_core::ending::Finish;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::sleep;

use super::{
    ANSWER, ControlError, POLL, QEMU_SOCKET, Restore, Result, RunState, STATE, SnapshotKind, TRANSFER,
    deadline, unreachable,
};
use crate::RateLimit;
use crate::qemu::{VSOCK, limits, vsock_device, vsock_device_socket};

/// The longest line that is read, in bytes.
const MAX_LINE: usize = 1 << 20;

/// Name by which QEMU knows the descriptor of a snapshot's file.
const SNAPSHOT_FD: &str = "snapshot";

/// How long the process that is the vsock device gets to go on after a pause. One that is called
/// before (vhost-device-vsock 0.3) never answers again.
const VSOCK_START: Duration = Duration::from_millis(300);

/// How long a guest may take to find the device. An emulated one on a busy host is slow.
const GUEST: Duration = Duration::from_secs(20);

/// What QEMU says of a virtio device whose driver is up.
const DRIVER_OK: &str = "VIRTIO_CONFIG_S_DRIVER_OK";

/// How long a guest gets to finish with a slot that it has switched off. One that is saved before
/// takes the next device for a wish to switch the slot off again.
const SETTLE: Duration = Duration::from_secs(1);

/// A conversation with QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// Read, but not yet a line.
    buffer: Vec<u8>,
    /// Number of the last command: the answer to one that was given up must not pass for another's.
    last: u64,
    runtime_dir: PathBuf,
}

impl Qmp {
    pub async fn connect(runtime_dir: &Path) -> Result<Self> {
        let greet = async {
            let stream = UnixStream::connect(runtime_dir.join(QEMU_SOCKET)).await.map_err(unreachable)?;
            let mut qmp = Self { stream, buffer: Vec::new(), last: 0, runtime_dir: runtime_dir.to_owned() };
            let greeting = qmp.line().await?;
            if greeting.get("QMP").is_none() {
                return Err(unreachable("it is not QEMU that answers"));
            }
            Ok(qmp)
        };
        let mut qmp = deadline(ANSWER, greet).await?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    pub async fn state(&mut self) -> Result<RunState> {
        let status = self.execute("query-status", json!({})).await?;
        Ok(state(status["status"].as_str().unwrap_or_default()))
    }

    pub async fn pause(&mut self) -> Result<()> {
        self.execute("stop", json!({})).await.map(drop)
    }

    /// Brings the vsock device back, too, which a guest lacks that was restored, or whose snapshot
    /// was broken off.
    pub async fn resume(&mut self) -> Result<()> {
        let plugged = self.plug_vsock().await;
        self.execute("cont", json!({})).await?;
        plugged?;
        // The guest finds a new device in its own time, and a call before that breaks off.
        deadline(GUEST, self.vsock_driven()).await?;
        sleep(VSOCK_START).await;
        Ok(())
    }

    /// Returns once the guest's driver serves the vsock device.
    async fn vsock_driven(&mut self) -> Result<()> {
        let path = json!({"path": format!("/machine/peripheral/{VSOCK}/virtio-backend")});
        loop {
            let status = match self.execute("x-query-virtio-status", path.clone()).await {
                // QEMU before 7.2 does not say.
                Err(ControlError::Refused(_)) => return Ok(()),
                status => status?,
            };
            let statuses = status["status"]["statuses"].as_array().cloned().unwrap_or_default();
            let ready = |status: &Value| status.as_str().is_some_and(|text| text.contains(DRIVER_OK));
            if statuses.iter().any(ready) {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    pub async fn power_button(&mut self) -> Result<()> {
        self.execute("system_powerdown", json!({})).await.map(drop)
    }

    pub async fn grow_disk(&mut self, id: &str, bytes: u64) -> Result<()> {
        self.execute("block_resize", json!({"node-name": id, "size": bytes})).await.map(drop)
    }

    pub async fn set_memory(&mut self, bytes: u64) -> Result<()> {
        self.execute("balloon", json!({"value": bytes})).await.map(drop)
    }

    pub async fn limit_disk(&mut self, id: &str, limit: RateLimit) -> Result<()> {
        let value = json!({
            "path": format!("/objects/{}", limits(id)),
            "property": "limits",
            "value": {
                "bps-total": limit.bytes.unwrap_or(0),
                "iops-total": limit.operations.unwrap_or(0),
            },
        });
        self.execute("qom-set", value).await.map(drop)
    }

    pub async fn snapshot(
        &mut self,
        dir: &Path,
        // It leaves out what is zero, whatever it is asked for.
        _: SnapshotKind,
        disks: impl Future<Output = io::Result<()>>,
    ) -> Result<()> {
        if self.state().await? != RunState::Running {
            return Err(unsupported("the guest has to let go of its vsock device, so it must be running"));
        }
        let outcome = self.save(dir, disks).await;
        outcome.and(self.resume().await)
    }

    async fn save(&mut self, dir: &Path, disks: impl Future<Output = io::Result<()>>) -> Result<()> {
        self.unplug_vsock().await?;
        self.pause().await?;
        let file = File::create(dir.join(STATE)).await.map_err(ControlError::Snapshot)?;
        // The guest waits: as fast as the disk can.
        self.execute("migrate-set-parameters", json!({"max-bandwidth": i64::MAX / 8})).await?;
        self.send_file(&file).await?;
        self.execute("migrate", json!({"uri": format!("fd:{SNAPSHOT_FD}")})).await?;
        self.transferred().await?;
        disks.await.map_err(ControlError::Snapshot)?;
        file.sync_all().await.map_err(ControlError::Snapshot)
    }

    pub async fn restore(&mut self, restore: &Restore) -> Result<()> {
        let file = File::open(restore.dir.join(STATE)).await.map_err(ControlError::Snapshot)?;
        self.send_file(&file).await?;
        self.execute("migrate-incoming", json!({"uri": format!("fd:{SNAPSHOT_FD}")})).await?;
        self.transferred().await?;
        self.resume().await
    }

    pub async fn quit(&mut self) -> Result<()> {
        self.execute("quit", json!({})).await.map(drop)
    }

    /// Takes the vsock device away, with which QEMU refuses to save a guest: it does not know what
    /// the process at the other end of vhost-user holds. The guest has to agree, and Linux waits
    /// for five seconds in case somebody presses the slot's button again.
    async fn unplug_vsock(&mut self) -> Result<()> {
        self.execute("device_del", json!({"id": VSOCK})).await?;
        let gone = async {
            while self.has_vsock().await? {
                sleep(POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(3 * ANSWER, gone).await.unwrap_or_else(|_| {
            Err(unsupported(
                "the guest does not let go of its vsock device; its kernel needs PCI hotplug (pciehp)",
            ))
        })?;
        sleep(SETTLE).await;
        Ok(())
    }

    async fn plug_vsock(&mut self) -> Result<()> {
        if self.has_vsock().await? {
            return Ok(());
        }
        let socket = vsock_device_socket(&self.runtime_dir);
        let backend = json!({"type": "socket", "data": {
            "addr": {"type": "unix", "data": {"path": socket}},
            "server": false,
        }});
        // The device's process hangs up when the device goes, and listens again.
        let connected = async {
            loop {
                // There is none if the last attempt failed.
                let _ = self.execute("chardev-remove", json!({"id": VSOCK})).await;
                match self.execute("chardev-add", json!({"id": VSOCK, "backend": backend})).await {
                    Err(ControlError::Refused(_)) => sleep(POLL).await,
                    other => return other,
                }
            }
        };
        deadline(ANSWER, connected).await?;
        self.execute("device_add", vsock_device()).await.map(drop)
    }

    async fn has_vsock(&mut self) -> Result<bool> {
        let devices = self.execute("qom-list", json!({"path": "/machine/peripheral"})).await?;
        Ok(devices.as_array().is_some_and(|devices| devices.iter().any(|device| device["name"] == VSOCK)))
    }

    /// Waits for the end of a migration.
    async fn transferred(&mut self) -> Result<()> {
        let done = async {
            loop {
                let migration = self.execute("query-migrate", json!({})).await?;
                match migration["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed" | "cancelled") => {
                        let reason = migration["error-desc"].as_str().unwrap_or("it gave no reason");
                        return Err(ControlError::Refused(reason.into()));
                    }
                    _ => sleep(POLL).await,
                }
            }
        };
        deadline(TRANSFER, done).await
    }

    /// Makes a file known to QEMU as [`SNAPSHOT_FD`], whether or not it could open it itself.
    async fn send_file(&mut self, file: &File) -> Result<()> {
        let named = json!({"fdname": SNAPSHOT_FD});
        deadline(ANSWER, self.converse("getfd", named, Some(file.as_fd()))).await.map(drop)
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        deadline(ANSWER, self.converse(command, arguments, None)).await
    }

    /// Sends a command and returns its answer. Events are for others.
    async fn converse(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value> {
        self.last += 1;
        let id = self.last;
        let line = json!({"execute": command, "arguments": arguments, "id": id}).to_string() + "\n";
        let sent = match fd {
            Some(fd) => self.send_with(line.as_bytes(), fd).await.map_err(unreachable)?,
            None => 0,
        };
        self.stream.write_all(&line.as_bytes()[sent..]).await.map_err(unreachable)?;
        loop {
            let mut answer = self.line().await?;
            if answer["id"] != id {
                continue;
            }
            if let Some(error) = answer.get("error") {
                return Err(ControlError::Refused(error["desc"].as_str().unwrap_or_default().into()));
            }
            return Ok(answer["return"].take());
        }
    }

    /// Writes a part of `line` with a descriptor; returns how much.
    async fn send_with(&self, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
        let send = || {
            let fds = [fd];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            Ok(sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
        };
        self.stream.async_io(Interest::WRITABLE, send).await
    }

    async fn line(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return serde_json::from_slice(&line).map_err(unreachable);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(unreachable("a line of QEMU's is too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await.map_err(unreachable)? == 0 {
                return Err(unreachable("QEMU hung up"));
            }
        }
    }
}

/// How the machine ended by itself, if a line of QEMU's says so (`SHUTDOWN`, with QEMU's `ShutdownCause`).
pub fn finish(line: &str) -> Option<Finish> {
    let event: Value = serde_json::from_str(line).ok()?;
    match (event["event"].as_str()?, event["data"]["reason"].as_str()?) {
        ("SHUTDOWN", "guest-shutdown") => Some(Finish::PowerOff),
        ("SHUTDOWN", "guest-reset") => Some(Finish::Reset),
        ("SHUTDOWN", "guest-panic") => Some(Finish::Panic),
        _ => None,
    }
}

/// Whether a line of QEMU's says that the guest stands still as the host has no room for what it writes: the one error of
/// a disk for which QEMU stops by itself (`BLOCK_IO_ERROR`; `werror=enospc`).
pub fn stalls(line: &str) -> bool {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return false };
    event["event"] == "BLOCK_IO_ERROR" && event["data"]["action"] == "stop"
}

/// From QEMU's `RunState`.
fn state(status: &str) -> RunState {
    match status {
        "running" => RunState::Running,
        "inmigrate" | "prelaunch" => RunState::Starting,
        "shutdown" | "guest-panicked" => RunState::Ended,
        _ => RunState::Paused,
    }
}

fn unsupported(what: &str) -> ControlError {
    ControlError::Unsupported { what: what.into(), vmm: "QEMU" }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A QEMU that says `greeting`, agrees to the capabilities, and answers each further command with
    /// the next of `answers`, in which `ID` is the command's.
    async fn talk(greeting: &str, answers: &[&str]) -> (tempfile::TempDir, Result<Qmp>) {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join(QEMU_SOCKET)).expect("a socket");
        let greeting = format!("{greeting}\n");
        let answers: Vec<String> = [r#"{"return": {}, "id": ID}"#]
            .iter()
            .chain(answers)
            .map(|answer| format!("{answer}\n"))
            .collect();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(greeting.as_bytes()).await?;
            let (read, mut write) = stream.split();
            let mut commands = BufReader::new(read).lines();
            for answer in answers {
                let Some(command) = commands.next_line().await? else { break };
                let command: Value = serde_json::from_str(&command)?;
                write.write_all(answer.replace("ID", &command["id"].to_string()).as_bytes()).await?;
            }
            io::Result::Ok(())
        });
        let qmp = Qmp::connect(dir.path()).await;
        (dir, qmp)
    }

    #[tokio::test]
    async fn reads_past_events_and_answers_to_others() {
        let answer = concat!(
            r#"{"event": "STOP", "timestamp": {}}"#,
            "\n",
            r#"{"return": {"status": "shutdown"}, "id": 0}"#,
            "\n",
            r#"{"return": {"status": "running"}, "id": ID}"#,
        );
        let (_dir, qmp) = talk(GREETING, &[answer]).await;
        assert_eq!(qmp.expect("connected").state().await.expect("a state"), RunState::Running);
    }

    #[test]
    fn no_room_is_the_error_that_qemu_stops_for() {
        let line = |action: &str| {
            json!({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_IO_ERROR",
                "data": {"device": "", "nospace": true, "node-name": "root", "operation": "write", "action": action,
                "reason": "No space left on device", "qom-path": "/machine/peripheral-anon/device[3]/virtio-backend"}})
            .to_string()
        };
        assert!(stalls(&line("stop")));
        for other in [&line("report"), "", "[]", r#"{"event": "STOP"}"#] {
            assert!(!stalls(other), "{other}");
        }
    }

    #[test]
    fn the_end_has_a_reason() {
        let line = |reason: &str| {
            let event = json!({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",
                "data": {"guest": true, "reason": reason}});
            finish(&event.to_string())
        };
        assert_eq!(line("guest-reset"), Some(Finish::Reset));
        assert_eq!(line("guest-shutdown"), Some(Finish::PowerOff));
        assert_eq!(line("guest-panic"), Some(Finish::Panic));
        assert_eq!(line("host-signal"), None);
        for other in ["", "{}", "[]", r#"{"event": "RESET", "data": {"reason": "guest-reset"}}"#] {
            assert_eq!(finish(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn passes_a_refusal_on() {
        let refusal = r#"{"error": {"class": "GenericError", "desc": "no such disk"}, "id": ID}"#;
        let (_dir, qmp) = talk(GREETING, &[refusal]).await;
        let error = qmp.expect("connected").grow_disk("x", 1).await.expect_err("refused");
        assert!(matches!(&error, ControlError::Refused(reason) if reason == "no such disk"), "{error}");
    }

    #[tokio::test]
    async fn refuses_what_is_not_qmp() {
        let endless = format!("\"{}\"", "x".repeat(2 * MAX_LINE));
        for greeting in ["{}", "hello", &endless] {
            let (_dir, qmp) = talk(greeting, &[]).await;
            assert!(matches!(qmp, Err(ControlError::Unreachable(_))), "{:.20}", greeting);
        }
    }

    #[tokio::test]
    async fn a_vmm_that_hangs_up_is_unreachable() {
        let (_dir, qmp) = talk(GREETING, &[]).await;
        let error = qmp.expect("connected").pause().await.expect_err("nobody there");
        assert!(matches!(error, ControlError::Unreachable(_)), "{error}");
    }

    #[tokio::test]
    async fn a_paused_guest_cannot_be_saved() {
        let (dir, qmp) = talk(GREETING, &[r#"{"return": {"status": "paused"}, "id": ID}"#]).await;
        let outcome =
            qmp.expect("connected").snapshot(dir.path(), SnapshotKind::Full, async { Ok(()) }).await;
        assert!(matches!(outcome, Err(ControlError::Unsupported { .. })), "{outcome:?}");
    }
}
