//! The services of another host (`-H`), or of a container (`-M`), as systemd's own tools reach them:
//! `systemd-stdio-bridge` connects to the bus there, by ssh or in the container's namespaces, and D-Bus goes over its
//! standard input and output.
//!
//! File descriptors get into a container, but not over ssh. A command that cannot do without is done by the `banger` of
//! that host, which ssh calls with the same arguments, if all it takes from here is standard input and output; one
//! that is about files of this host is refused (see [`Reach`]).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::str::FromStr;

use banger_api::{Error, ErrorKind, Result};
use clap::Parser;
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::args::{self, Arguments};
use crate::{shell, terminal};

const BRIDGE: &str = "systemd-stdio-bridge";

/// What of a command has to get to where it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Messages of D-Bus alone.
    Bus,
    /// Standard input and output as well, and perhaps a terminal.
    Streams { terminal: bool },
    /// More of where it was typed, such as files. This says what.
    Files(&'static str),
    /// A repository where it was typed, which remembers VMs by their names alone.
    Repository,
    /// Nothing: it is about the host that it runs on.
    Host,
}

/// `[USER@]HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// As ssh takes it.
    destination: String,
    port: Option<u16>,
}

impl FromStr for Host {
    type Err = String;

    /// An IPv6 address with a port is in brackets, as in `[::1]:22`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (user, address) = match text.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, text),
        };
        let (address, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, rest)) => (address, Some(rest.strip_prefix(':').unwrap_or(rest))),
            // More than one colon is an IPv6 address.
            None => match address.split_once(':') {
                Some((name, port)) if !port.contains(':') => (name, Some(port)),
                _ => (address, None),
            },
        };
        let port =
            port.map(|port| port.parse().map_err(|_| format!("{port:?} is not a port"))).transpose()?;
        let is_name = |name: &str| {
            !name.is_empty() && !name.starts_with('-') && name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !is_name(address) || !user.is_none_or(is_name) {
            return Err(format!("{text:?} is not [USER@]HOST[:PORT]"));
        }
        let destination = user.map_or(address.to_owned(), |user| format!("{user}@{address}"));
        Ok(Self { destination, port })
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.destination)
    }
}

impl Host {
    /// ssh with a command line for the shell there.
    fn ssh(&self, options: &[&str], words: &[String]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(self.port()).arg("-x").args(options).args(["--", &self.destination, &shell::line(words)]);
        ssh
    }

    fn port(&self) -> Vec<String> {
        self.port.map(|port| vec!["-p".to_owned(), port.to_string()]).unwrap_or_default()
    }

    /// What a person would type.
    fn typed(&self, words: &[String]) -> String {
        let ssh = ["ssh".to_owned()].into_iter().chain(self.port()).chain([self.destination.clone()]);
        shell::line(&ssh.chain(words.iter().cloned()).collect::<Vec<_>>())
    }
}

/// Where services are that are not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    host: Option<Host>,
    /// Of the host, or of this one.
    machine: Option<String>,
}

impl Away {
    /// Nothing if they are here.
    pub fn new(host: Option<Host>, machine: Option<String>) -> Option<Self> {
        (host.is_some() || machine.is_some()).then_some(Self { host, machine })
    }

    /// Whether file descriptors get there. This is known before there is a connection, which would say the same.
    pub fn takes_descriptors(&self) -> bool {
        self.host.is_none()
    }

    /// Connects to the system bus there, or to a socket of a service.
    ///
    /// # Errors
    /// If ssh or the bridge cannot be run.
    pub fn connect(&self, socket: Option<&str>) -> Result<UnixStream> {
        start(&mut self.bridge(&["-T"], socket))
    }

    /// The same without a word to anybody, and only if ssh is connected with the host already: what else it might do
    /// takes time, or asks for something.
    ///
    /// # Errors
    /// If ssh is not connected, or ssh or the bridge cannot be run.
    pub fn connect_at_once(&self) -> Result<UnixStream> {
        let quiet = |command: &mut Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        };
        if let Some(host) = &self.host {
            let mut check = Command::new("ssh");
            check.args(host.port()).args(["-O", "check", "--", &host.destination]);
            quiet(&mut check);
            if !check.status().is_ok_and(|status| status.success()) {
                return Err(ErrorKind::ServiceUnavailable.error(format!("ssh is not connected with {host}")));
            }
        }
        let mut bridge = self.bridge(&["-T", "-o", "BatchMode=yes"], None);
        quiet(&mut bridge);
        start(&mut bridge)
    }

    fn bridge(&self, options: &[&str], socket: Option<&str>) -> Command {
        let machine = self.machine.as_ref().map(|machine| format!("--machine={machine}"));
        let path = socket.map(|socket| format!("--bus-path=unix:path={socket}"));
        let words: Vec<String> = [BRIDGE.to_owned()].into_iter().chain(machine).chain(path).collect();
        match &self.host {
            Some(host) => host.ssh(options, &words),
            None => {
                let mut bridge = Command::new(BRIDGE);
                bridge.args(&words[1..]);
                bridge
            }
        }
    }

    /// Of a connection that did not come about. ssh and the bridge have told the rest.
    pub fn unreachable(&self, error: impl std::fmt::Display) -> Error {
        let (what, remedy) = match (&self.host, &self.machine) {
            (Some(host), machine) => {
                let words: Vec<String> = [BRIDGE, "--version"].map(str::to_owned).into();
                let of = machine
                    .as_ref()
                    .map(|machine| format!("the container {machine} on "))
                    .unwrap_or_default();
                (format!("{of}{host}"), format!("see whether `{}` works", host.typed(&words)))
            }
            (None, machine) => (
                format!("the container {}", machine.as_deref().unwrap_or_default()),
                "it takes root, and a container that machinectl lists and has a system bus".to_owned(),
            ),
        };
        ErrorKind::ServiceUnavailable.error(format!("cannot connect to the bus of {what}: {error}; {remedy}"))
    }

    /// Does a command there as a whole, in place of this program, if it is not done by D-Bus alone.
    ///
    /// # Errors
    /// If it can be done neither way, and if ssh cannot be run.
    pub fn send(&self, command: &args::Command) -> Result<()> {
        let there = || there(words()?);
        let refused = |what: String| Err(ErrorKind::InvalidArgs.error(what));
        let terminal = match (command.reach(), &self.host) {
            (Reach::Bus, _) | (Reach::Streams { .. } | Reach::Files(_), None) => return Ok(()),
            (Reach::Repository, _) => {
                return refused("workspaces are for the VMs of this host; leave out -H and -M".into());
            }
            (Reach::Host, None) => {
                return refused("this is about the host that it runs on; run it in the container".into());
            }
            (Reach::Files(what), Some(host)) => {
                let line = host.typed(&there()?);
                return refused(format!(
                    "{what} of this host cannot be used on {host}; have there what is needed, and use: {line}"
                ));
            }
            (Reach::Streams { terminal }, Some(_)) => terminal && terminal::is_interactive(),
            (Reach::Host, Some(_)) => false,
        };
        let Some(host) = &self.host else { return Ok(()) };
        // Only errors: that the connection is closed at the end is news to nobody.
        let options: &[&str] = if terminal { &["-t", "-o", "LogLevel=ERROR"] } else { &["-T"] };
        let mut ssh = host.ssh(options, &there()?);
        let error = ssh.exec();
        Err(cannot_run(&ssh, &error))
    }
}

/// A program at the other end of a socket. It ends when our end is closed, at the latest with us.
fn start(program: &mut Command) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    program.stdin(theirs.try_clone()?).stdout(theirs);
    let ignore_interrupts = || {
        // SAFETY: no handler is installed, and none was that anybody wants back.
        unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.map_err(io::Error::from).map(drop)
    };
    // Ctrl-C is for us: this connection is what a job is canceled by.
    // SAFETY: it makes one call, of signal(2), which may be made between fork and exec.
    unsafe { program.pre_exec(ignore_interrupts) };
    program.spawn().map_err(|error| cannot_run(program, &error))?;
    Ok(ours)
}

fn cannot_run(program: &Command, error: &io::Error) -> Error {
    ErrorKind::ServiceUnavailable
        .error(format!("cannot run {}: {error}", program.get_program().to_string_lossy()))
}

/// What was typed.
fn words() -> Result<Vec<String>> {
    let words = std::env::args_os().map(std::ffi::OsString::into_string);
    words.collect::<std::result::Result<_, _>>().map_err(|word| {
        ErrorKind::InvalidArgs.error(format!("{} is not UTF-8, which does not go with -H", word.display()))
    })
}

/// The command line as it would be typed on the host itself.
fn there(mut line: Vec<String>) -> Result<Vec<String>> {
    if let Some(program) = line.first_mut() {
        "banger".clone_into(program);
    }
    without_host(&line).ok_or_else(|| Error::internal("-H was not found among the arguments"))
}

/// A command line without `-H HOST`, wherever it is: what is left has to mean the same.
fn without_host(line: &[String]) -> Option<Vec<String>> {
    let host_of = |line: &[String]| Some(Arguments::try_parse_from(line).ok()?.global.host);
    let candidates = (1..line.len()).filter_map(|at| {
        let (before, after) = (&line[..at], &line[at + 1..]);
        let word = &line[at];
        if word.starts_with("--host=") {
            return Some([before, after].concat());
        }
        // Flags may come before it, and the host right behind.
        let short = word
            .strip_prefix('-')
            .filter(|word| !word.starts_with('-'))
            .and_then(|word| word.split_once('H'));
        let (flags, is_apart) = match short {
            Some((flags, host)) => (flags, host.is_empty()),
            None if word == "--host" => ("", true),
            None => return None,
        };
        let flags = if flags.is_empty() { vec![] } else { vec![format!("-{flags}")] };
        Some([before, &flags, after.get(usize::from(is_apart)..)?].concat())
    });
    candidates.into_iter().find_map(|line| match host_of(&line)? {
        None => Some(line),
        // It was said twice.
        Some(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn shown(command: &Command) -> String {
        let words = [command.get_program()].into_iter().chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn hosts() {
        let host = |text: &str| text.parse::<Host>().map(|host| (host.destination, host.port));
        let is = |destination: &str, port| Ok((destination.to_owned(), port));
        assert_eq!(host("server"), is("server", None));
        assert_eq!(host("alice@server:2222"), is("alice@server", Some(2222)));
        assert_eq!(host("a@corp@server"), is("a@corp@server", None));
        assert_eq!(host("alice@[fe80::1%eth0]:22"), is("alice@fe80::1%eth0", Some(22)));
        assert_eq!(host("::1"), is("::1", None));
        for bad in [
            "",
            "@server",
            "alice@",
            "-oProxyCommand=x",
            "a@-x",
            "server:ssh",
            "server:",
            "[::1]x",
            "a b",
            "h:70000",
        ] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bridges() {
        let away = |host: &str, machine: &str| {
            let machine = Some(machine.to_owned()).filter(|machine| !machine.is_empty());
            Away::new(Some(host).filter(|host| !host.is_empty()).map(|host| host.parse().unwrap()), machine)
        };
        assert_eq!(away("", ""), None);
        let shown = |host, machine, socket| shown(&away(host, machine).unwrap().bridge(&["-T"], socket));
        assert_eq!(shown("a@h:2", "", None), "ssh|-p|2|-x|-T|--|a@h|systemd-stdio-bridge");
        assert_eq!(
            shown("h", "it's", Some("/run/x.sock")),
            r"ssh|-x|-T|--|h|systemd-stdio-bridge '--machine=it'\''s' --bus-path=unix:path=/run/x.sock"
        );
        assert_eq!(shown("", "a@c", None), "systemd-stdio-bridge|--machine=a@c");
    }

    #[test]
    fn what_goes_there_says_no_host() {
        for (line, left) in [
            ("banger -H h exec web -- ls -H x", "banger exec web -- ls -H x"),
            ("banger exec --host=h -it web ls", "banger exec -it web ls"),
            ("banger exec -qH h -M c web ls", "banger exec -q -M c web ls"),
            ("banger -Hh shell web", "banger shell web"),
            ("banger run --name H --host h img", "banger run --name H img"),
            ("banger exec -e -H=1 -H h web ls", ""),
        ] {
            let found = without_host(&words(line));
            assert_eq!(found, Some(words(left)).filter(|_| !left.is_empty()), "{line}");
        }
        let host: Host = "a@h:22".parse().unwrap();
        assert_eq!(host.typed(&words("banger cp a web:/b;c")), "ssh -p 22 a@h banger cp a 'web:/b;c'");
    }
}
