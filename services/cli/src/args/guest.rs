//! What runs in VMs.

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand};

use super::machine::Machine;
use crate::cmd::Place;

#[derive(Debug, Args)]
#[command(after_help = "\
Without COMMAND: a shell if this is a terminal; else the image's own command, if it names one; else as
with -d.
The image is pulled if it is not there, and the host's own kernel imported if there is none.
When COMMAND has ended the VM is stopped, or deleted with --rm.")]
pub struct Run {
    /// Name of the VM; a readable one is made up without it
    #[arg(long)]
    pub name: Option<String>,
    /// Leave the VM running and print its name
    #[arg(short, long, conflicts_with_all = ["rm", "tty", "command"])]
    pub detach: bool,
    /// Delete the VM when the command has ended
    #[arg(long)]
    pub rm: bool,
    /// Print how long each stage took, on standard error
    #[arg(long)]
    pub timings: bool,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub process: Process,
    /// Image: a name of `banger images`, or HOST[:PORT]/REPO[:TAG]
    pub image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// How a command runs in a guest.
#[derive(Debug, Args)]
pub struct Process {
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Pass standard input on, which is the default
    #[arg(short, long, conflicts_with = "no_stdin")]
    pub interactive: bool,
    /// Leave standard input alone; the command reads nothing
    #[arg(short, long, conflicts_with = "tty")]
    pub no_stdin: bool,
    #[command(flatten)]
    pub settings: Settings,
}

#[derive(Debug, Args)]
pub struct Settings {
    /// Environment variable; without VALUE that of the caller
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// User, or user:group, instead of the image's
    #[arg(short, long)]
    pub user: Option<String>,
    /// Directory to run in, instead of the image's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
}

#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    pub process: Process,
    pub vm: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Shell {
    #[command(flatten)]
    pub settings: Settings,
    pub vm: String,
    /// Instead of the user's shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
One of SRC and DEST is VM:PATH, where PATH begins at the root of the VM's files; the other is a path of the
host, or - for a tar stream on standard input or output. ./a:b is a path of the host.

If DEST is a directory SRC goes into it; else it becomes DEST, whose directory must be there. SRC/. stands for what is in
SRC. A tar stream is unpacked into DEST, a directory; it must not be compressed.

Files that were there are replaced, each when the new one is whole; directories are filled, and stay as they
are. Modes, times, symbolic and hard links, holes and attributes named user.* are kept. Without --archive files become root's in the
VM, and the caller's on the host, and lose set-user-ID and set-group-ID bits; devices are made in VMs alone, and
with --archive.

Nothing is written outside of DEST, and no symbolic link below it is followed: where one is in the way of a
directory, the copy fails. A copy that fails leaves what it had copied by then.")]
pub struct Cp {
    /// Keep owners, and with them set-user-ID bits, capabilities and access lists
    #[arg(short, long)]
    pub archive: bool,
    /// If SRC is a symbolic link, copy what it leads to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Whose files in the VM become, instead of root's; by its names or numbers
    #[arg(long, value_name = "USER[:GROUP]", conflicts_with = "archive")]
    pub chown: Option<String>,
    #[arg(value_name = "SRC", value_parser = OsStringValueParser::new().try_map(Place::parse))]
    pub source: Place,
    #[arg(value_name = "DEST", value_parser = OsStringValueParser::new().try_map(Place::parse))]
    pub destination: Place,
}

#[derive(Debug, Subcommand)]
pub enum Session {
    /// List the commands that run in VMs
    Ls,
}
