//! What the system tests share: running commands in the lab as a user would, and looking at
//! what they did. Everything here goes through the CLI, `busctl` and systemd's own tools.

pub mod between;
pub mod faults;
pub mod monitor;
pub mod oci;
pub mod registry;
pub mod tar;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The images of the lab's registry.
pub const DEBIAN: &str = "localhost:5000/debian:12";
/// Busybox with dropbear, an sshd, and rsync.
pub const SSH: &str = "localhost:5000/ssh:latest";
pub const BUSYBOX: &str = "localhost:5000/busybox:latest";

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub command: String,
    /// Exit status; 128 and more for a signal.
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    fn of(command: String, output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { command, status, stdout: output.stdout, stderr }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts success and returns what was printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{self}");
        self.text()
    }

    /// Asserts that it was refused, with these words in the one line it says.
    #[track_caller]
    pub fn refused(self, words: &[&str]) -> String {
        assert_ne!(self.status, 0, "{self}");
        let lines: Vec<_> = self.stderr.lines().filter(|line| line.starts_with("banger: ")).collect();
        assert_eq!(lines.len(), 1, "one line that says what to do: {self}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} in: {self}");
        }
        self.stderr
    }

    /// Asserts that it failed, with these words in what it says.
    #[track_caller]
    pub fn failed(self, words: &[&str]) {
        assert_ne!(self.status, 0, "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} in: {self}");
        }
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let shown: String = text.chars().take(2000).collect();
        write!(f, "{}\n  status: {}\n  stdout: {shown}\n  stderr: {}", self.command, self.status, self.stderr)
    }
}

/// Runs a program.
pub fn run(program: &str, arguments: &[&str]) -> Done {
    run_with(program, arguments, b"")
}

/// Runs a program that reads `input`.
pub fn run_with(program: &str, arguments: &[&str], input: &[u8]) -> Done {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A program that does not read its input to the end is right to do so.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("waits");
    writer.join().expect("joins");
    Done::of(format!("{program} {}", arguments.join(" ")), output)
}

/// Starts a program that goes on beside the test.
pub fn start(program: &str, arguments: &[&str]) -> std::thread::JoinHandle<Done> {
    let program = program.to_owned();
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    std::thread::spawn(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(&program, &arguments)
    })
}

pub fn banger(arguments: &[&str]) -> Done {
    run("banger", arguments)
}

/// A shell command, for what a person would type at the lab's prompt.
pub fn sh(script: &str) -> Done {
    run("sh", &["-c", script])
}

/// As another user of the lab: `alice` is in the group banger, `mallory` is not.
pub fn as_user(user: &str, script: &str) -> Done {
    run("runuser", &["-u", user, "--", "sh", "-c", script])
}

/// What a command with `--json` prints.
#[track_caller]
pub fn json(arguments: &[&str]) -> Value {
    let mut with = vec!["--json"];
    with.extend(arguments);
    let text = banger(&with).ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// One way to reach the services with `busctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Bus,
    Socket,
}

impl Way {
    pub const BOTH: [Way; 2] = [Way::Bus, Way::Socket];

    /// Calls a method of a service's manager. `signature` may be empty.
    pub fn call(self, service: banger_api::Service, method: &str, arguments: &[&str]) -> Done {
        self.call_at(service, service.path, service.manager, method, arguments)
    }

    /// Calls a method of any object.
    pub fn call_at(
        self,
        service: banger_api::Service,
        path: &str,
        interface: &str,
        method: &str,
        arguments: &[&str],
    ) -> Done {
        let address = format!("--address=unix:path={}", service.socket);
        let mut line = vec!["--timeout=300"];
        if self == Way::Socket {
            line.push(&address);
        }
        line.extend(["call", service.bus_name, path, interface, method]);
        line.extend(arguments);
        run("busctl", &line)
    }

    /// Waits for the job that a call started (`uo ID "PATH"`), and returns its outcome.
    #[track_caller]
    pub fn wait(self, service: banger_api::Service, started: Done) -> Done {
        let text = started.ok();
        let path = text.split('"').nth(1).unwrap_or_else(|| panic!("no job in {text:?}"));
        self.call_at(service, path, banger_api::job::INTERFACE, "Wait", &[])
    }
}

/// The D-Bus error name that the job which a call started ends with.
#[track_caller]
pub fn job_error(service: banger_api::Service, method: &str, arguments: &[&str]) -> String {
    let started = Way::Bus.call(service, method, arguments).ok();
    let job = started.split('"').nth(1).unwrap_or_else(|| panic!("no job in {started:?}"));
    let waited = Way::Bus.call_at(service, job, banger_api::job::INTERFACE, "Wait", &[]);
    assert_ne!(waited.status, 0, "{waited}");
    let name = job_property(service, job, "ErrorName");
    name.split('"').nth(1).expect("a name").to_owned()
}

/// A property of a job as `busctl` prints it.
#[track_caller]
pub fn job_property(service: banger_api::Service, job: &str, property: &str) -> String {
    let get = ["ss", banger_api::job::INTERFACE, property];
    Way::Bus.call_at(service, job, "org.freedesktop.DBus.Properties", "Get", &get).ok()
}

/// The D-Bus error name a call of a service's manager fails with.
///
/// `busctl` prints only the message; what came over the wire is in its debug output.
#[track_caller]
pub fn error_name(service: banger_api::Service, method: &str, arguments: &[&str]) -> String {
    let mut line = vec![
        "SYSTEMD_LOG_LEVEL=debug",
        "busctl",
        "call",
        service.bus_name,
        service.path,
        service.manager,
        method,
    ];
    line.extend(arguments);
    let done = run("env", &line);
    assert_ne!(done.status, 0, "{done}");
    let reply = done.stderr.lines().find(|line| line.contains("type=error")).unwrap_or_default();
    let name = reply.split("error-name=").nth(1).and_then(|rest| rest.split_whitespace().next());
    name.unwrap_or_else(|| panic!("{done}")).to_owned()
}

/// A VM that is deleted, whatever becomes of the test.
#[derive(Debug)]
pub struct Vm(pub String);

impl Vm {
    /// A name no other test uses.
    pub fn named(name: &str) -> Self {
        let vm = Self(name.to_owned());
        vm.delete();
        vm
    }

    /// Creates and starts it.
    #[track_caller]
    pub fn running(name: &str, image: &str) -> Self {
        let vm = Self::named(name);
        banger(&["run", "-d", "--name", name, image]).ok();
        vm
    }

    /// One that has an init of its own, busybox's: the agent is an ordinary process of its guest.
    #[track_caller]
    pub fn with_init(name: &str) -> Self {
        let vm = Self::running(name, BUSYBOX);
        let make =
            "mkdir -p /sbin; ln -sf /bin/busybox /sbin/init; echo '::sysinit:/bin/true' >/etc/inittab; sync";
        vm.sh(make).ok();
        banger(&["stop", name]).ok();
        banger(&["set", name, "--init", "image"]).ok();
        banger(&["start", name]).ok();
        vm
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn unit(&self) -> String {
        format!("banger-vm@{}.service", self.0)
    }

    /// Runs a shell command in it.
    pub fn sh(&self, script: &str) -> Done {
        banger(&["exec", &self.0, "--", "sh", "-c", script])
    }

    #[track_caller]
    pub fn state(&self) -> String {
        json(&["vm", "show", &self.0])["state"].as_str().expect("a state").to_owned()
    }

    /// The process id of its VMM.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let pid = run("systemctl", &["show", "-P", "MainPID", &self.unit()]).ok();
        pid.trim().parse().expect("a process id")
    }

    pub fn delete(&self) {
        let _ = banger(&["rm", "-f", &self.0]);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.delete();
    }
}

/// Waits until imaged has nothing half-made: others may be at work there just now.
#[track_caller]
pub fn nothing_is_staged() {
    let is_empty =
        || std::fs::read_dir("/var/lib/banger/imaged/staging").is_ok_and(|mut files| files.next().is_none());
    eventually("nothing is staged", is_empty);
}

/// Asks until the answer is yes, for at most a minute; for what happens soon but not at once.
#[track_caller]
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(60), what, is_so);
}

/// Asks until the answer is yes.
#[track_caller]
pub fn eventually_within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
