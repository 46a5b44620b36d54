//! Programs that the agent brings along, as images need not have them. They run as commands do: as the caller's
//! user, with streams, an end and limits like any other. So they can do nothing that the user could not.
//!
//! They are this binary under other names.

mod connect;
mod sftp;

use std::io::{self, Write};

/// Where a child of the agent finds the binary: the initramfs it came from is not to be seen any more.
pub const BINARY: &str = "/proc/self/exe";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `@sftp`: a server of SFTP on standard input and output.
    Sftp,
    /// `@connect HOST PORT`, `@connect PATH`: standard input and output are connected to there.
    Connect,
}

/// What a caller writes, what processes are called, what it is.
const ALL: [(&str, &str, Program); 2] =
    [("@sftp", "banger-sftp", Program::Sftp), ("@connect", "banger-connect", Program::Connect)];

impl Program {
    /// The one that a caller means.
    pub fn of_command(command: &str) -> Option<Self> {
        ALL.iter().find(|(name, ..)| *name == command).map(|(.., program)| *program)
    }

    /// The one that this process is.
    pub fn of_process(name: &[u8]) -> Option<Self> {
        ALL.iter().find(|(_, process, _)| process.as_bytes() == name).map(|(.., program)| *program)
    }

    pub fn process(self) -> &'static str {
        ALL.iter().find(|(.., program)| *program == self).map_or("", |(_, process, _)| process)
    }

    /// Runs it in this process; returns its exit status.
    pub fn run(self) -> i32 {
        let outcome = match self {
            Self::Sftp => sftp::run(),
            Self::Connect => connect::run(&std::env::args().skip(1).collect::<Vec<_>>()),
        };
        match outcome {
            Ok(()) => 0,
            // As it is for a program that SIGPIPE ends.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 1,
            Err(error) => {
                // In one piece, as whoever reads it may show each as it comes.
                let line = format!("{}: {error}\n", self.process());
                let _ = io::stderr().write_all(line.as_bytes());
                1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (command, process, program) in ALL {
            assert_eq!(Program::of_command(command), Some(program));
            assert_eq!(Program::of_process(process.as_bytes()), Some(program));
            assert_eq!(program.process(), process);
        }
        assert_eq!(Program::of_command("sftp"), None);
        assert_eq!(Program::of_process(b"@banger-agent"), None);
    }
}
