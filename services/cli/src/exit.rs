//! Exit codes, all of them.

use std::ffi::OsString;

use banger_api::{Error, ErrorKind};
use clap::CommandFactory;

use crate::args::Arguments;
use crate::output::tell;

/// For `--help` and the manual.
pub const HELP: &str = "\
Exit status:
  0    success
  1    failure
  2    wrong usage, or a value that was refused
  3    there is no such VM, image, kernel, …
  4    not allowed
  5    a service of banger cannot be reached
  6    a step of banger image build, or of a workspace's bootstrap, failed
  7    banger doctor found something that does not work
  130  interrupted: the work was canceled

run, exec, shell and session attach and wait exit as the command in the guest did, with 128 + N if signal N ended it. What \
goes wrong before that:
  125  banger failed (any of the above)
  126  the command cannot be executed
  127  there is no such command in the guest
Signals go to the command. After three that a guest does not hear, because it stands still, its command is not waited
for any more (130).
With -H they are carried out by ssh, which itself exits with 255 if it fails.

Environment:
  BANGER_PEER=1  as --peer";

pub const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const DENIED: u8 = 4;
const UNAVAILABLE: u8 = 5;
/// Of a build, or a bootstrap.
pub const STEP_FAILED: u8 = 6;
/// Of a host, says `banger doctor`.
pub const UNWELL: u8 = 7;
const BEFORE_COMMAND: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const COMMAND_NOT_FOUND: u8 = 127;
const INTERRUPTED: u8 = 130;

/// The exit code for a failure. `guest_command` if the command's own code would have been it.
pub fn code(error: &Error, guest_command: bool) -> u8 {
    match error.kind() {
        ErrorKind::JobCanceled => INTERRUPTED,
        ErrorKind::CommandNotFound => COMMAND_NOT_FOUND,
        ErrorKind::NotExecutable => NOT_EXECUTABLE,
        _ if guest_command => BEFORE_COMMAND,
        ErrorKind::InvalidArgs => USAGE,
        ErrorKind::NoSuchJob
        | ErrorKind::NoSuchVm
        | ErrorKind::NoSuchSnapshot
        | ErrorKind::NoSuchVolume
        | ErrorKind::NoSuchImage
        | ErrorKind::NoSuchKernel
        | ErrorKind::NoSuchForward
        | ErrorKind::NoSuchLease
        | ErrorKind::NoSuchSession
        | ErrorKind::NoSuchProcess
        | ErrorKind::NoSuchUser
        | ErrorKind::NoSuchDirectory
        | ErrorKind::NoSuchFile
        | ErrorKind::NoSuchTransfer
        | ErrorKind::NoSuchWorkspace => NOT_FOUND,
        ErrorKind::AccessDenied | ErrorKind::InteractiveAuthorizationRequired => DENIED,
        ErrorKind::ServiceUnavailable => UNAVAILABLE,
        ErrorKind::BootstrapFailed => STEP_FAILED,
        _ => FAILURE,
    }
}

/// Prints what clap says instead of arguments (help, version, what is wrong with them), and tells the exit code.
pub fn answer(said: &clap::Error, words: impl IntoIterator<Item = OsString>) -> u8 {
    let printed = said.print();
    match said.use_stderr() {
        true if would_run_guest_command(words) => BEFORE_COMMAND,
        true => USAGE,
        false => match printed {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                say(&format!("cannot write to standard output: {error}"));
                FAILURE
            }
            _ => SUCCESS,
        },
    }
}

/// Whether words that are no command line as a whole begin one whose exit code is that of a command in a guest.
fn would_run_guest_command(words: impl IntoIterator<Item = OsString>) -> bool {
    let command = Arguments::command().ignore_errors(true);
    let matches = command.try_get_matches_from(words).unwrap_or_default();
    match matches.subcommand() {
        Some(("run", run)) => !run.get_flag("detach"),
        Some(("exec" | "shell", _)) => true,
        Some(("session", session)) => matches!(session.subcommand_name(), Some("attach" | "wait")),
        _ => false,
    }
}

/// How a command in a guest ended: its exit status, or the signal that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub status: i32,
    pub signal: i32,
}

impl Status {
    pub fn code(self) -> u8 {
        let code = if self.signal > 0 { 128 + self.signal } else { self.status };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// Says what went wrong: one line, whatever is in it.
pub fn complain(error: &Error) {
    say(&advise(error));
}

/// The same, of what is no error of banger's.
pub fn say(what: &str) {
    tell(format_args!("banger: {}", line(what)));
}

/// The bus, whose own words these may be, does not know what to do about a service that is not
/// there.
fn advise(error: &Error) -> String {
    let message = error.message();
    if error.kind() == ErrorKind::ServiceUnavailable && !message.contains(';') {
        return format!("{message}; look at systemctl status 'banger-*'");
    }
    message.to_owned()
}

fn line(message: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let message: String = message.chars().map(printable).collect();
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn every_error_has_a_code() {
        for kind in ErrorKind::ALL {
            let error = kind.error("x");
            assert_ne!(code(&error, false), SUCCESS);
            let before = code(&error, true);
            assert!(before >= BEFORE_COMMAND, "{kind:?} would look like the command's own {before}");
        }
        for kind in ErrorKind::ALL.iter().filter(|kind| kind.name().contains(".NoSuch")) {
            assert_eq!(code(&kind.error("x"), false), 3, "{kind:?}");
        }
        assert_eq!(code(&ErrorKind::NoSuchVm.error("x"), true), 125);
    }

    #[test]
    fn words_of_no_command_line_have_codes_too() {
        for (line, code) in [
            ("banger --help", 0),
            ("banger run --help", 0),
            ("banger nonsense", 2),
            ("banger stop", 2),
            ("banger run", 125),
            ("banger --json run --cpus x img ls", 125),
            ("banger run -d --cpus x img", 2),
            ("banger exec web", 125),
            ("banger session attach web", 125),
            ("banger session logs web", 2),
        ] {
            let words = || line.split(' ').map(OsString::from);
            let said = Arguments::try_parse_from(words()).expect_err(line);
            assert_eq!(answer(&said, words()), code, "{line}");
        }
    }

    #[test]
    fn signals_are_128_and_more() {
        assert_eq!(Status { status: 7, signal: 0 }.code(), 7);
        assert_eq!(Status { status: 0, signal: 9 }.code(), 137);
        assert_eq!(Status { status: -1, signal: 0 }.code(), 255);
    }

    #[test]
    fn messages_are_one_line_without_escapes() {
        assert_eq!(line("a\nb\t\x1b[31mc "), "a b [31mc");
    }
}
