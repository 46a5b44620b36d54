//! What the binary meets: services that are pretended, and what they were asked.

use std::collections::HashMap;
use std::future::pending;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use banger_api::vm::ForwardRow;
use banger_api::{Error, ErrorKind, Result};
use tokio::sync::watch;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, connection, interface};

/// A private dbus-daemon, and what the services were asked.
pub struct World {
    bus: Child,
    pub address: String,
    calls: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
    _services: Connection,
}

const BUS: &str = r#"<busconfig><listen>unix:tmpdir=/tmp</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>"#;

impl World {
    pub fn new() -> Self {
        let mut config = tempfile::NamedTempFile::new().expect("a file");
        config.write_all(BUS.as_bytes()).expect("writes");
        let mut bus = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg("--print-address")
            .arg("--config-file")
            .arg(config.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("these tests need dbus-daemon");
        let mut address = String::new();
        BufReader::new(bus.stdout.take().expect("piped")).read_line(&mut address).expect("an address");
        let address = address.trim().to_owned();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runs");
        let calls: Arc<Mutex<Vec<String>>> = Arc::default();
        let services = runtime.block_on(serve(&address, &calls)).expect("serves");
        Self { bus, address, calls, _runtime: runtime, _services: services }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
        command
            .args(arguments)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn banger(&self, line: &str) -> Run {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        Run::new(&self.command(&arguments).output().expect("runs"))
    }

    /// Whether there was a call that begins so.
    pub fn was_asked(&self, beginning: &str) -> bool {
        self.calls.lock().expect("lock").iter().any(|call| call.starts_with(beginning))
    }

    /// What was asked since the last time this was.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("lock"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn new(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

type Options = HashMap<String, OwnedVariant>;
type Job = (u32, OwnedObjectPath);

fn path(text: &str) -> OwnedObjectPath {
    OwnedObjectPath::try_from(text.to_owned()).expect("a path")
}

fn keys(options: &Options) -> String {
    let mut keys: Vec<_> = options.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys.join(",")
}

#[derive(Clone)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn call(&self, text: String) {
        self.0.lock().expect("lock").push(text);
    }
}

/// `org.banger.Vm1.Manager`: jobs are objects that are there already.
struct Vms(Log);

#[interface(name = "org.banger.Vm1.Manager")]
impl Vms {
    fn create_vm(&self, name: &str, image: &str, options: Options) -> Result<Job> {
        self.0.call(format!("create {name} {image} {}", keys(&options)));
        match name {
            "taken" => Err(ErrorKind::NameTaken.error("there is a VM taken; choose another name")),
            "endless" => Ok((2, path("/org/banger/Vm1/job/2"))),
            _ => Ok((1, path("/org/banger/Vm1/job/1"))),
        }
    }

    fn start_vm(&self, name: &str) -> Result<Job> {
        self.0.call(format!("start {name}"));
        match name {
            "missing" => Err(ErrorKind::NoSuchVm.error("there is no VM missing")),
            _ => Ok((1, path("/org/banger/Vm1/job/1"))),
        }
    }

    fn stop_vm(&self, name: &str, options: Options) -> Job {
        self.0.call(format!("stop {name} {}", keys(&options)));
        (1, path("/org/banger/Vm1/job/1"))
    }

    fn delete_vm(&self, name: &str, options: Options) -> Result<()> {
        self.0.call(format!("delete {name} {}", keys(&options)));
        match name {
            "missing" => Err(ErrorKind::NoSuchVm.error("there is no VM missing")),
            "locked" => Err(ErrorKind::AccessDenied.error("not allowed")),
            _ => Ok(()),
        }
    }

    fn list_vms(&self) -> Vec<(String, String, String, String, String, OwnedObjectPath)> {
        let row = |name: &str, state: &str, address: &str, health: &str| {
            (name.into(), state.into(), "debian:12".into(), address.into(), health.into(), path("/x"))
        };
        vec![row("web", "running", "10.209.0.2", "healthy"), row("old", "stopped", "", "unknown")]
    }

    fn get_vm(&self, name: &str) -> Result<OwnedObjectPath> {
        match name {
            "taken" => Ok(path("/x")),
            _ => Err(ErrorKind::NoSuchVm.error(format!("there is no VM {name}"))),
        }
    }

    fn list_snapshots(&self, vm: &str) -> Vec<(String, u64, u64, String)> {
        vec![(format!("of-{vm}"), 0, 0, String::new())]
    }

    fn list_forwards(&self) -> Vec<ForwardRow> {
        vec![("web".into(), "tcp".into(), "127.0.0.1:8080".into(), 80, false, true)]
    }
}

/// `org.banger.Vm1.Vm`: those that `ListVms` lists.
struct Vm {
    name: &'static str,
    state: &'static str,
    address: &'static str,
    health: &'static str,
}

#[interface(name = "org.banger.Vm1.Vm")]
impl Vm {
    #[zbus(property)]
    fn name(&self) -> &str {
        self.name
    }

    #[zbus(property)]
    fn state(&self) -> &str {
        self.state
    }

    #[zbus(property)]
    fn image(&self) -> &'static str {
        "debian:12"
    }

    #[zbus(property)]
    fn address(&self) -> &str {
        self.address
    }

    #[zbus(property)]
    fn health(&self) -> &str {
        self.health
    }

    #[zbus(property)]
    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([("team".into(), self.name.into())])
    }

    #[zbus(property)]
    fn created_timestamp(&self) -> u64 {
        7
    }

    #[zbus(property)]
    fn started_timestamp(&self) -> u64 {
        banger_api::now_usec() - 90_000_000
    }
}

/// A job that has ended, or one that only ends when it is canceled.
struct PretendedJob {
    canceled: watch::Sender<bool>,
    endless: bool,
}

#[interface(name = "org.banger.Job1")]
impl PretendedJob {
    fn cancel(&self) {
        self.canceled.send_replace(true);
    }

    async fn wait(&self) -> Result<String> {
        if self.endless {
            let mut canceled = self.canceled.subscribe();
            let _ = canceled.wait_for(|canceled| *canceled).await;
            return Err(ErrorKind::JobCanceled.error("the job was canceled"));
        }
        Ok("web".into())
    }

    #[zbus(property)]
    fn stage(&self) -> &str {
        "boot"
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn stages(&self) -> Vec<(String, u64)> {
        vec![("reserve".into(), 1_000_000), ("boot".into(), 1_002_500)]
    }
}

struct Images(Log);

#[interface(name = "org.banger.Image1.Manager")]
impl Images {
    fn list_kernels(&self) -> Vec<(String, String, String, String, bool, u32, OwnedObjectPath)> {
        if self.0.0.lock().expect("lock").iter().any(|call| call.starts_with("import kernel")) {
            vec![("6.1".into(), "6.1".into(), "x86_64".into(), "a kernel".into(), true, 0, path("/x"))]
        } else {
            vec![]
        }
    }

    fn import_kernel(&self, source: &str, _name: &str, _options: Options) -> Job {
        self.0.call(format!("import kernel {source}"));
        (1, path("/org/banger/Image1/job/1"))
    }

    fn list_images(&self) -> Vec<(String, String, u64, u64, u32, OwnedObjectPath)> {
        let row = |name: &str| (name.to_owned(), String::new(), 0, 0, 0, path("/x"));
        vec![row("debian:12"), row("localhost:5000/a:1"), row("localhost:5000/b:1")]
    }

    fn list_presets(&self) -> Vec<(String, String, String)> {
        vec![("debian".into(), "docker.io/library/debian:stable".into(), "Debian".into())]
    }

    fn get_image(&self, name: &str) -> Result<OwnedObjectPath> {
        match name {
            "debian:12" => Ok(path("/org/banger/Image1/image/a")),
            _ => Err(ErrorKind::NoSuchImage.error(format!("there is no image {name}; pull it"))),
        }
    }

    fn pull(&self, reference: &str, options: Options) -> Job {
        self.0.call(format!("pull {reference} {}", keys(&options)));
        (1, path("/org/banger/Image1/job/1"))
    }
}

/// Sessions that do what their command says, without any guest.
struct Sessions {
    log: Log,
    signal: watch::Sender<i32>,
    waits: Mutex<u32>,
}

fn streams() -> (Vec<zbus::OwnedFd>, Vec<UnixStream>) {
    let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().expect("pair")).collect();
    pairs
        .into_iter()
        .map(|(theirs, ours)| {
            theirs.set_nonblocking(true).expect("sets");
            (zbus::OwnedFd::from(OwnedFd::from(theirs)), ours)
        })
        .unzip()
}

#[interface(name = "org.banger.Session1.Manager")]
impl Sessions {
    fn list_sessions(&self) -> Vec<(String, String, String, Vec<String>, u64, OwnedObjectPath)> {
        let row =
            |vm: &str, id: &str| (vm.to_owned(), id.to_owned(), "running".to_owned(), vec![], 0, path("/x"));
        vec![row("web", "build"), row("web", "test"), row("old", "other")]
    }

    async fn exec(
        &self,
        vm: &str,
        argv: Vec<String>,
        environment: HashMap<String, String>,
        options: Options,
    ) -> Result<(String, OwnedObjectPath, zbus::OwnedFd, zbus::OwnedFd, zbus::OwnedFd)> {
        self.log.call(format!("exec {vm} {} {environment:?} {}", argv.join(" "), keys(&options)));
        if argv[0] == "nothing" {
            return Err(ErrorKind::CommandNotFound.error("there is no command nothing in the guest"));
        }
        if argv[0] == "never" {
            pending::<()>().await;
        }
        let (theirs, mut ours) = streams();
        let mut signal = self.signal.subscribe();
        let handle = tokio::runtime::Handle::current();
        let id = argv.join("-");
        std::thread::spawn(move || {
            let (mut err, mut out, mut stdin) =
                (ours.pop().expect("3"), ours.pop().expect("3"), ours.pop().expect("3"));
            match argv[0].as_str() {
                "big" => (0..100).for_each(|n| out.write_all(&vec![n; 1 << 20]).expect("writes")),
                "cat" => drop(std::io::copy(&mut stdin, &mut out)),
                "sleep" | "deaf" => {
                    out.write_all(b"asleep\n").expect("writes");
                    handle.block_on(async { drop(signal.wait_for(|signal| *signal != 0).await) });
                }
                _ => {
                    out.write_all(b"to stdout\n").expect("writes");
                    err.write_all(b"to stderr\n").expect("writes");
                }
            }
        });
        let mut theirs = theirs.into_iter();
        let mut next = || theirs.next().expect("3");
        Ok((id, path("/org/banger/Session1/session/1"), next(), next(), next()))
    }

    /// A terminal that echoes until it reads a `q` or Ctrl-D. `late` begins with the first signal to any session.
    async fn open_shell(
        &self,
        vm: &str,
        argv: Vec<String>,
        environment: HashMap<String, String>,
        options: Options,
    ) -> (String, OwnedObjectPath, zbus::OwnedFd) {
        let term = environment.get("TERM").cloned().unwrap_or_default();
        self.log.call(format!("shell {vm} {} TERM={term} {}", argv.join(" "), keys(&options)));
        if argv == ["late"] {
            let _ = self.signal.subscribe().wait_for(|signal| *signal != 0).await;
        }
        let (theirs, mut ours) = UnixStream::pair().expect("pair");
        std::thread::spawn(move || {
            let mut byte = [0];
            while ours.read_exact(&mut byte).is_ok() && byte != *b"q" {
                let echo: &[u8] = if byte == [4] { b"^D" } else { &byte };
                ours.write_all(echo).expect("writes");
                if byte == [4] {
                    break;
                }
            }
        });
        ("shell".into(), path("/org/banger/Session1/session/2"), OwnedFd::from(theirs).into())
    }

    async fn start_session(
        &self,
        vm: &str,
        name: &str,
        argv: Vec<String>,
        environment: HashMap<String, String>,
        options: Options,
    ) -> (String, OwnedObjectPath) {
        self.log.call(format!("session {vm} {name} {} {environment:?} {}", argv.join("-"), keys(&options)));
        if argv == ["never"] {
            pending::<()>().await;
        }
        (if name.is_empty() { "made-up" } else { name }.into(), path("/x"))
    }

    /// Of a guest that does not answer.
    async fn lock_workspace(&self, vm: &str, _options: Options) -> zbus::OwnedFd {
        self.log.call(format!("lock {vm}"));
        pending().await
    }

    fn resize_session(&self, _vm: &str, _id: &str, rows: u16, columns: u16) {
        self.log.call(format!("resize {rows} {columns}"));
    }

    async fn wait_session(&self, _vm: &str, id: &str) -> Result<(i32, i32)> {
        if id == "restarted" {
            let mut waits = self.waits.lock().expect("lock");
            *waits += 1;
            if *waits < 3 {
                // What the bus says when a service is killed during a call.
                return Err(Error::from_reply("org.freedesktop.DBus.Error.NoReply", "it was killed"));
            }
        }
        if ["sleep", "deaf"].contains(&id) {
            let mut signal = self.signal.subscribe();
            let signal = *signal.wait_for(|signal| *signal != 0).await.expect("there");
            return Ok((0, signal));
        }
        Ok((7, 0))
    }

    async fn kill_session(&self, _vm: &str, id: &str, signal: i32) {
        if id == "deaf" {
            self.log.call(format!("signal {signal}"));
            pending::<()>().await;
        }
        self.signal.send_replace(signal);
    }
}

async fn serve(address: &str, calls: &Arc<Mutex<Vec<String>>>) -> zbus::Result<Connection> {
    let log = Log(calls.clone());
    let job = |endless| PretendedJob { canceled: watch::Sender::new(false), endless };
    connection::Builder::address(address)
        .serve_at("/org/banger/Vm1", Vms(log.clone()))
        .serve_at("/org/banger/Vm1", zbus::fdo::ObjectManager)
        .serve_at(
            "/org/banger/Vm1/vm/web",
            Vm { name: "web", state: "running", address: "10.209.0.2", health: "healthy" },
        )
        .serve_at(
            "/org/banger/Vm1/vm/old",
            Vm { name: "old", state: "stopped", address: "", health: "unknown" },
        )
        .serve_at("/org/banger/Vm1/job/1", job(false))
        .serve_at("/org/banger/Vm1/job/2", job(true))
        .serve_at("/org/banger/Image1", Images(log.clone()))
        .serve_at("/org/banger/Image1/job/1", job(false))
        .serve_at(
            "/org/banger/Session1",
            Sessions { log, signal: watch::Sender::new(0), waits: Mutex::new(0) },
        )
        .name("org.banger.Vm1")
        .name("org.banger.Image1")
        .name("org.banger.Session1")
        .build()
        .await
}
