//! What runs in VMs.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand};

use super::machine::{Machine, RestartPolicy};
use super::parse::{parse_limit, parse_resource, parse_signal, parse_since};
use crate::cmd::{DEFAULT_PATH, Mode, Place};

#[derive(Debug, Args)]
#[command(after_help = "\
Without COMMAND: a shell if this is a terminal; else the image's own command, if it names one; else as \
with -d. \
The image is pulled if it is not there, and the host's own kernel imported if there is none. \
When COMMAND has ended the VM is stopped, or deleted with --rm. With --workspace it is first shown on standard error what \
COMMAND changed in the repository's files; `--patch` keeps it. What the repository needs is got before COMMAND; see \
`banger workspace prepare --help`. With --preset, COMMAND is the coding agent unless there is another.")]
pub struct Run {
    /// Name of the VM; a readable one is made up without it
    #[arg(long)]
    pub name: Option<String>,
    /// Leave the VM running and print its name; a command goes on by itself, as its session `main`
    #[arg(short, long, conflicts_with_all = ["rm", "no_stdin"])]
    pub detach: bool,
    /// Delete the VM when the command has ended
    #[arg(long)]
    pub rm: bool,
    /// Print how long each stage took, on standard error
    #[arg(long)]
    pub timings: bool,
    /// Prepare the git repository at DIR as the command's directory, and show what it changed there
    #[arg(long, value_name = "DIR", help_heading = "Workspace")]
    pub workspace: Option<PathBuf>,
    /// What of the repository the VM gets
    #[arg(long, value_enum, default_value_t, requires = "workspace", help_heading = "Workspace")]
    pub workspace_mode: Mode,
    /// Write what changed as a patch
    #[arg(
        long,
        value_name = "FILE",
        requires = "workspace",
        conflicts_with = "detach",
        help_heading = "Workspace"
    )]
    pub patch: Option<PathBuf>,
    #[command(flatten)]
    pub bootstrap: Bootstrap,
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

/// What a repository needs to be worked on.
#[derive(Debug, Default, Args)]
pub struct Bootstrap {
    /// Get the tools that the repository asks for, also those that were got before
    #[arg(long, conflicts_with = "no_bootstrap", help_heading = "Workspace")]
    pub bootstrap: bool,
    /// Get no tools
    #[arg(long, help_heading = "Workspace")]
    pub no_bootstrap: bool,
    /// Get a coding agent, and your files of it, too; `banger workspace presets` lists them
    #[arg(long, value_name = "NAME", help_heading = "Workspace")]
    pub preset: Option<String>,
}

impl Bootstrap {
    /// Whether anything of it was asked for.
    pub fn is_given(&self) -> bool {
        self.bootstrap || self.no_bootstrap || self.preset.is_some()
    }
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

#[derive(Debug, Clone, Args)]
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
    /// What a process may have at most, of as, core, data, fsize, memlock and stack (sizes), cpu (seconds), nofile
    /// and nproc (numbers); see setrlimit(2)
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = parse_resource)]
    pub limits: Vec<(String, u64)>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
COMMAND may be a program that every VM has: @sftp, a server of SFTP on standard input and output, or @connect HOST PORT (or the \
PATH of a Unix socket), which connects both to there.")]
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
One of SRC and DEST is VM:PATH, where PATH begins at the root of the VM's files; the other is a path of the \
host, or - for a tar stream on standard input or output. ./a:b is a path of the host.

If DEST is a directory SRC goes into it; else it becomes DEST, whose directory must be there. SRC/. stands for what is in \
SRC. A tar stream is unpacked into DEST, a directory; it must not be compressed.

Files that were there are replaced, each when the new one is whole; directories are filled, and stay as they \
are. Modes, times, symbolic and hard links, holes and attributes named user.* are kept. Without --archive files become root's in the \
VM, and the caller's on the host, and lose set-user-ID and set-group-ID bits; devices are made in VMs alone, and \
with --archive.

Nothing is written outside of DEST, and no symbolic link below it is followed: where one is in the way of a \
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
    /// Of a directory, leave out the files that are there already, by size, mode and time
    #[arg(long)]
    pub resume: bool,
    #[arg(value_name = "SRC", value_parser = OsStringValueParser::new().try_map(Place::parse))]
    pub source: Place,
    #[arg(value_name = "DEST", value_parser = OsStringValueParser::new().try_map(Place::parse))]
    pub destination: Place,
}

#[derive(Debug, Subcommand)]
pub enum Workspace {
    /// Make a directory of a running VM what a git repository of the host is
    Prepare(WorkspacePrepare),
    /// Get what changed in a VM since it was prepared, as a patch
    Export(WorkspaceExport),
    /// Show what prepare would get and run for a repository, without doing it
    Plan(WorkspacePlan),
    /// List the files that ask for tools
    Tools,
    /// List coding agents that VMs can get
    Presets,
    /// Forget what was prepared in a VM; its files stay
    Forget { vm: String },
}

#[derive(Debug, Args)]
#[command(after_help = "\
The VM gets the files of the repository as they are, changed and new ones, too, but none that are ignored, and a .git of its own \
by which git in the VM says of them what it says here; submodules are treated alike. The second time only what has changed since is \
sent, and what is gone is removed. git runs on the host alone; the VM needs none.

Files that were changed in the VM meanwhile are not overwritten without --force, unless they are what the host now has; \
ignored ones, such as a build's results, are left alone.

What was sent is remembered in ~/.local/state/banger/workspaces, and in the repository as the commit refs/banger/VM.

Then the VM gets what the repository asks for by its files, such as Cargo.toml or package.json: programs, as packages of the VM's \
system, and what is run in the repository, such as `npm ci`. What that will be is shown first; it runs as the session \"bootstrap\" of \
the VM, whose log is kept. Where a step fails the next prepare goes on; what is done is not done again until it \
changes. `banger workspace tools` lists what asks for what, and workspace.conf says it; `bootstrap = false` there has it left out.")]
pub struct WorkspacePrepare {
    /// What of the repository the VM gets
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// Where to, in the VM; its directories are made
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub to: String,
    /// Take ignored files, too
    #[arg(long)]
    pub ignored: bool,
    /// Have a branch of this name checked out in the VM
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,
    /// Take the files of this commit, rather than as they are
    #[arg(long, value_name = "COMMIT", conflicts_with = "ignored")]
    pub from: Option<String>,
    /// Overwrite what was changed in the VM
    #[arg(long)]
    pub force: bool,
    /// Whose files in the VM become, instead of root's; by its names or numbers
    #[arg(long, value_name = "USER[:GROUP]")]
    pub chown: Option<String>,
    #[command(flatten)]
    pub bootstrap: Bootstrap,
    pub vm: String,
    /// Where in the repository
    #[arg(default_value = ".", value_name = "DIR")]
    pub directory: PathBuf,
}

#[derive(Debug, Args)]
pub struct WorkspacePlan {
    /// Where the workspace is in the VM, or will be
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub to: String,
    /// Whose its files are, if not root's
    #[arg(long, value_name = "USER[:GROUP]")]
    pub chown: Option<String>,
    /// With what this coding agent needs
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    pub vm: String,
    /// Where in the repository
    #[arg(default_value = ".", value_name = "DIR")]
    pub directory: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The patch is what `git diff --binary` would say, on standard output; `git apply` takes it. It has all that changed: in commits made in the VM, staged, \
unstaged and new files, but none that are ignored there. It is empty if nothing changed. Neither the files and index here nor those in the \
VM are touched.")]
pub struct WorkspaceExport {
    /// Compare with this commit, rather than with what was sent
    #[arg(long, value_name = "COMMIT")]
    pub base: Option<String>,
    /// Write the patch to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Make a branch of it in the repository here, with one commit
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,
    /// Print how much changed in which file, rather than the patch
    #[arg(long)]
    pub stat: bool,
    pub vm: String,
}

#[derive(Debug, Subcommand)]
pub enum Session {
    /// Start a command in a running VM that goes on by itself
    Start(SessionStart),
    /// List the commands that run in VMs, and those that have ended: with a name until they are removed, others for a while
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this VM
        vm: Option<String>,
    },
    /// Show all about a session
    #[command(visible_alias = "inspect")]
    Show {
        #[command(flatten)]
        session: Which,
    },
    /// Show what a session has put out
    Logs(SessionLogs),
    /// See what a session puts out, and type into it
    Attach(SessionAttach),
    /// Write to a session's input
    Send(SessionSend),
    /// End a session
    Stop {
        /// Kill it if it has not ended after this many seconds
        #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
        timeout: u32,
        /// What it is told by: name or number
        #[arg(short, long, default_value = "TERM", value_parser = parse_signal)]
        signal: i32,
        #[command(flatten)]
        session: Which,
    },
    /// Send a signal to a session's command
    Kill {
        /// Name or number
        #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
        signal: i32,
        #[command(flatten)]
        session: Which,
    },
    /// Remove sessions that have ended, and their logs
    Rm {
        /// Kill them first if they run
        #[arg(short, long)]
        force: bool,
        vm: String,
        #[arg(required = true, value_name = "SESSION")]
        sessions: Vec<String>,
    },
    /// Wait for the end of a session, and exit as its command did
    Wait {
        #[command(flatten)]
        session: Which,
    },
}

#[derive(Debug, Args)]
pub struct Which {
    pub vm: String,
    #[arg(value_name = "SESSION")]
    pub name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The command goes on whatever becomes of this terminal and of banger's services; it ends with its VM. \
Its last 8 to 16 MiB of output are kept until the session is removed or the VM deleted. \
Its input stays open: `banger session send --eof` ends it.")]
pub struct SessionStart {
    /// Name of the session; a readable one is made up without it
    #[arg(long)]
    pub name: Option<String>,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Attach to it at once
    #[arg(short, long)]
    pub attach: bool,
    /// When to start the command again after it ended by itself
    #[arg(long, value_enum, value_name = "POLICY")]
    pub restart: Option<RestartPolicy>,
    #[command(flatten)]
    pub settings: Settings,
    pub vm: String,
    /// Command and arguments; with a terminal, the user's shell without it
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "tty",
        value_name = "COMMAND"
    )]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SessionLogs {
    /// Go on until the session has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Only what came later: so long ago, such as 10min, or @SECONDS since 1970
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<u64>,
    /// Only so many lines from the end
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<u64>,
    /// Put the time (UTC, by the guest's clock) in front of each line
    #[arg(short, long)]
    pub timestamps: bool,
    #[command(flatten)]
    pub session: Which,
}

#[derive(Debug, Args)]
#[command(after_help = "\
When the session ends this exits as its command did. On a terminal the keys of --detach-keys end it before that; \
without one, Ctrl-C does. The command does not notice.")]
pub struct SessionAttach {
    /// Type nothing
    #[arg(long)]
    pub read_only: bool,
    /// How much of what was before to show, such as 4K; the guest keeps 256K
    #[arg(long, value_name = "SIZE", value_parser = parse_limit, default_value = "64K")]
    pub scrollback: u64,
    /// Keys that detach, one after the other: letters, or ctrl- and one; empty: none
    #[arg(long, value_name = "KEYS", value_parser = crate::detach::parse, default_value = crate::detach::DEFAULT)]
    pub detach_keys: crate::detach::Keys,
    #[command(flatten)]
    pub session: Which,
}

#[derive(Debug, Args)]
#[command(after_help = "Without TEXT, --file and --eof: what is read from standard input.")]
pub struct SessionSend {
    /// The content of a file, or with - of standard input
    #[arg(short, long, conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// End the input after it; on a terminal, Ctrl-D
    #[arg(long)]
    pub eof: bool,
    /// Add no newline to TEXT
    #[arg(short = 'N', long, requires = "text")]
    pub no_newline: bool,
    #[command(flatten)]
    pub session: Which,
    /// What to write, with a newline
    pub text: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without --install and --uninstall: prints the configuration for ssh. It takes OpenSSH 8.5 or later.

NAME.banger leads into the running VM NAME of any image, without a network or an sshd in it: commands, shells, \
sftp, and with them scp, rsync, git and the remote modes of editors, as well as forwards with -L and -D and connections \
with -J and -W. Without USER@ they run as the image's user. scp -O, rsync and git need their programs in the image. There are no \
forwards with -R, -A and -X.

NAME.banger.internal, or what the domain of VMs is, leads to the VM's own sshd, if it has one, over the network. Its host keys are \
asked of the VM. banger's key lets you in if the VM was made with \
--ssh-key ~/.local/share/banger/ssh/id_ed25519.pub.

Keys are made in ~/.local/share/banger/ssh and belong to banger; your own are neither used nor changed.")]
pub struct SshConfig {
    /// Write it to ~/.config/banger/ssh_config, and include that in ~/.ssh/config
    #[arg(long, conflicts_with = "uninstall")]
    pub install: bool,
    /// Take both away again; the keys stay
    #[arg(long)]
    pub uninstall: bool,
}
