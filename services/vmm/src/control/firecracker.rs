//! Firecracker's API: HTTP/1.1 with JSON over a Unix socket (src/firecracker/swagger/firecracker.yaml
//! of its source).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::{
    ANSWER, ControlError, FIRECRACKER_SOCKET, MEMORY, Restore, Result, RunState, STATE, SnapshotKind,
    TRANSFER, deadline, unreachable,
};
use crate::firecracker::{Features, INTERFACE, RateLimiter, disk_link, drive_id};
use crate::{RateLimit, Version};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Firecracker's API socket.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    features: Features,
}

impl Api {
    pub async fn connect(runtime_dir: &Path) -> Result<Self> {
        let mut api = Self { socket: runtime_dir.join(FIRECRACKER_SOCKET), features: Features::default() };
        let info = api.get("/").await?;
        let version = info["vmm_version"].as_str().and_then(Version::parse);
        api.features = Features::of(version.ok_or_else(|| unreachable("Firecracker gave no version"))?);
        Ok(api)
    }

    pub async fn state(&mut self) -> Result<RunState> {
        let info = self.get("/").await?;
        state(info["state"].as_str().unwrap_or_default())
    }

    pub async fn pause(&mut self) -> Result<()> {
        self.patch("/vm", json!({"state": "Paused"})).await
    }

    pub async fn resume(&mut self) -> Result<()> {
        self.patch("/vm", json!({"state": "Resumed"})).await
    }

    pub async fn power_button(&mut self) -> Result<()> {
        self.put("/actions", json!({"action_type": "SendCtrlAltDel"}), ANSWER).await
    }

    pub async fn grow_disk(&mut self, id: &str, _: u64) -> Result<()> {
        let drive = drive_id(id);
        let body = json!({"drive_id": drive, "path_on_host": disk_link(id)});
        self.patch(&format!("/drives/{drive}"), body).await
    }

    pub async fn set_memory(&mut self, bytes: u64) -> Result<()> {
        let machine = self.get("/machine-config").await?;
        let total = machine["mem_size_mib"].as_u64().unwrap_or(0);
        let balloon = total.saturating_sub(bytes >> 20);
        self.patch("/balloon", json!({"amount_mib": balloon})).await
    }

    pub async fn limit_disk(&mut self, id: &str, limit: RateLimit) -> Result<()> {
        let drive = drive_id(id);
        let body = json!({"drive_id": drive, "rate_limiter": RateLimiter::live(limit)});
        self.patch(&format!("/drives/{drive}"), body).await
    }

    pub async fn snapshot(
        &mut self,
        dir: &Path,
        kind: SnapshotKind,
        disks: impl Future<Output = io::Result<()>>,
    ) -> Result<()> {
        let running = self.state().await? == RunState::Running;
        self.pause().await?;
        let outcome = self.save(dir, kind, disks).await;
        let resumed = if running { self.resume().await } else { Ok(()) };
        outcome.and(resumed)
    }

    async fn save(
        &mut self,
        dir: &Path,
        kind: SnapshotKind,
        disks: impl Future<Output = io::Result<()>>,
    ) -> Result<()> {
        // Without dirty page tracking a diff is what mincore(2) finds in memory: since there is no
        // snapshot before this guest's boot, it stands alone.
        let kind = match kind {
            SnapshotKind::Sparse if self.features.sparse_snapshots => "Diff",
            _ => "Full",
        };
        let body = json!({
            "snapshot_type": kind,
            "snapshot_path": dir.join(STATE),
            "mem_file_path": dir.join(MEMORY),
        });
        self.put("/snapshot/create", body, TRANSFER).await?;
        disks.await.map_err(ControlError::Snapshot)
    }

    pub async fn restore(&mut self, restore: &Restore) -> Result<()> {
        let mut body = json!({
            "snapshot_path": restore.dir.join(STATE),
            "mem_backend": {"backend_type": "File", "backend_path": restore.dir.join(MEMORY)},
        });
        // An older one opens the TAP that the snapshot names, which is right unless the VM is a fork.
        if let (Some(tap), true) = (&restore.tap, self.features.network_overrides) {
            body["network_overrides"] = json!([{"iface_id": INTERFACE, "host_dev_name": tap}]);
        }
        self.put("/snapshot/load", body, TRANSFER).await?;
        self.resume().await
    }

    pub async fn quit(&mut self) -> Result<()> {
        Err(unsupported("it has no command to end; kill its unit"))
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, None, ANSWER).await
    }

    async fn patch(&self, path: &str, body: Value) -> Result<()> {
        self.request(Method::PATCH, path, Some(body), ANSWER).await.map(drop)
    }

    async fn put(&self, path: &str, body: Value, within: Duration) -> Result<()> {
        self.request(Method::PUT, path, Some(body), within).await.map(drop)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        within: Duration,
    ) -> Result<Value> {
        deadline(within, exchange(&self.socket, method, path, body)).await
    }
}

/// One request on a connection of its own. An answer without a body is `null`.
async fn exchange(socket: &Path, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", "localhost")
        .header("Accept", "application/json")
        .header("Content-Type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(unreachable)?;
    let conversation = async move {
        let response = sender.send_request(request).await.map_err(unreachable)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(unreachable)?;
        Ok((status, body.to_bytes()))
    };
    // The connection has to be driven beside what is said on it, and ends with that.
    let (said, _) = tokio::join!(conversation, connection);
    let (status, body) = said?;
    if status.is_success() {
        return if body.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_slice(&body).map_err(unreachable)
        };
    }
    let fault: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = fault["fault_message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    Err(ControlError::Refused(message))
}

fn state(word: &str) -> Result<RunState> {
    match word {
        "Not started" => Ok(RunState::Starting),
        "Running" => Ok(RunState::Running),
        "Paused" => Ok(RunState::Paused),
        other => Err(unreachable(format_args!("{other:?} is no state of Firecracker"))),
    }
}

fn unsupported(what: &str) -> ControlError {
    ControlError::Unsupported { what: what.into(), vmm: "Firecracker" }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    struct Fake {
        _dir: tempfile::TempDir,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Fake {
        fn asked(&self) -> String {
            self.asked.lock().expect("not poisoned").concat()
        }
    }

    /// A Firecracker of a version whose answers to everything but `GET /` are `status` and `body`; what
    /// it was asked is noted.
    async fn talk(version: &str, status: &'static str, body: &'static str) -> (Fake, Api) {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join(FIRECRACKER_SOCKET)).expect("a socket");
        let info = json!({"state": "Paused", "vmm_version": version}).to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = asked.clone();
        let respond = |status: &str, body: &str| {
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await?;
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await?;
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let answer = if request.starts_with("GET / ") {
                    respond("200 OK", &info)
                } else {
                    note.lock().expect("not poisoned").push(request);
                    respond(status, body)
                };
                stream.write_all(answer.as_bytes()).await?;
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            io::Result::Ok(())
        });
        let api = Api::connect(dir.path()).await.expect("connected");
        (Fake { _dir: dir, asked }, api)
    }

    #[tokio::test]
    async fn sends_json_and_takes_silence_for_consent() {
        let (fake, mut api) = talk("1.7.0", "204 No Content", "").await;
        assert_eq!(api.state().await.expect("a state"), RunState::Paused);
        api.resume().await.expect("resumed");
        let asked = fake.asked();
        assert!(asked.starts_with("PATCH /vm HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("\r\n\r\n{\"state\":\"Resumed\"}"), "{asked}");
    }

    #[tokio::test]
    async fn passes_a_refusal_on() {
        let (_fake, mut api) = talk("1.7.0", "400 Bad Request", r#"{"fault_message": "no balloon"}"#).await;
        let error = api.pause().await.expect_err("refused");
        assert!(matches!(&error, ControlError::Refused(reason) if reason == "no balloon"), "{error}");
        let (_fake, mut api) = talk("1.7.0", "500 Internal Server Error", "not JSON").await;
        let error = api.pause().await.expect_err("refused");
        assert!(matches!(&error, ControlError::Refused(reason) if reason.starts_with("500")), "{error}");
    }

    #[tokio::test]
    async fn asks_only_for_what_a_version_has() {
        let (fake, mut old) = talk("1.11.0", "204 No Content", "").await;
        old.snapshot(Path::new("/s"), SnapshotKind::Sparse, async { Ok(()) }).await.expect("saved");
        assert!(fake.asked().contains(r#""snapshot_type":"Full""#));

        let restore = Restore { dir: "/s".into(), tap: Some("bg-1".into()) };
        old.restore(&restore).await.expect("restored");
        assert!(!fake.asked().contains("bg-1"));

        let (fake, mut new) = talk("1.12.0", "204 No Content", "").await;
        new.restore(&restore).await.expect("restored");
        assert!(fake.asked().contains(r#""host_dev_name":"bg-1""#));
    }

    #[tokio::test]
    async fn a_guest_that_was_paused_stays_so_after_its_snapshot() {
        let (fake, mut api) = talk("1.17.0-dev", "204 No Content", "").await;
        api.snapshot(Path::new("/s"), SnapshotKind::Sparse, async { Ok(()) }).await.expect("saved");
        let asked = fake.asked();
        assert!(asked.contains(r#""snapshot_type":"Diff""#) && !asked.contains("Resumed"), "{asked}");
    }
}
