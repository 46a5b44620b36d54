//! What can be typed.
// What is said of arguments is help, where brackets are no links.
#![allow(rustdoc::broken_intra_doc_links)]

mod guest;
mod image;
mod machine;
mod parse;
mod reach;
mod vm;

use std::path::PathBuf;

use banger_core::forward::{Forward, Listen};
use clap::{Args, Parser, Subcommand};

pub use guest::{
    Bootstrap, Cp, Exec, Process, Run, Session, SessionAttach, SessionLogs, SessionSend, SessionStart,
    Settings, Shell, SshConfig, Which, Workspace, WorkspaceExport, WorkspacePlan, WorkspacePrepare,
};
pub use image::{Build, Format, Image, ImageSettings, Images, Import, Kernel, Prune, Pull, Register};
pub use machine::{Create, Egress, Expiry, Init, Machine, RestartPolicy, Set, Spec, Vmm};
pub use parse::Attachment;
use parse::{parse_event, parse_listen};
pub use vm::{Analyze, Kill, Ps, Restart, Rm, Several, Snapshot, Start, Stats, Stop, Vm, Vms, Volume};

use crate::away::Host;

/// microVMs on this host
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    after_help = crate::exit::HELP,
    disable_help_subcommand = true,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Print results as JSON, and progress as JSON lines on standard error
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print only results; of tables, only names
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Use the services' sockets in /run/banger instead of the system bus
    #[arg(
        long,
        global = true,
        env = "BANGER_PEER",
        hide_env = true,
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "Global options"
    )]
    pub peer: bool,
    /// Work on another host, by ssh
    #[arg(
        short = 'H',
        long,
        global = true,
        value_name = "[USER@]HOST[:PORT]",
        help_heading = "Global options"
    )]
    pub host: Option<Host>,
    /// Work in a container of this host, or of the one of -H
    #[arg(
        short = 'M',
        long,
        global = true,
        value_name = "[USER@]CONTAINER",
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
        help_heading = "Global options"
    )]
    pub machine: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and start a VM and run a command in it
    Run(Run),
    /// Run a command in a running VM
    Exec(Exec),
    /// Open a shell in a running VM
    Shell(Shell),
    /// Copy files into a running VM, or out of one
    Cp(Cp),
    /// Work on git repositories in VMs
    #[command(subcommand)]
    Workspace(Workspace),
    /// List VMs
    #[command(visible_alias = "ls", alias = "list")]
    Ps(Ps),
    /// Show everything about a VM
    #[command(visible_alias = "inspect")]
    Show { vm: String },
    /// Show what a VM's console and its VMM have said
    Logs(Logs),
    /// Show what VMs take of the host, and what goes on in them
    Stats(Stats),
    /// Show what running VMs take, with the past, until q is pressed
    Top {
        /// Seconds between two samples
        #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
        interval: u64,
    },
    /// Ask the agent in a VM for a sign of life
    Ping { vm: String },
    /// List the ports that something in a VM listens on
    Ports { vm: String },
    /// Show where the time of a VM's last start went
    #[command(subcommand)]
    Analyze(Analyze),
    /// Create a VM
    Create(Create),
    /// Start VMs
    Start(Start),
    /// Stop VMs
    Stop(Stop),
    /// Stop VMs and start them again
    Restart(Restart),
    /// Send a signal to the VMMs of VMs
    Kill(Kill),
    /// Make VMs stand still
    Pause(Several),
    /// Let paused VMs go on
    Resume(Several),
    /// Throw away what VMs wrote to their disks
    Reset(Several),
    /// Change what a VM is to be
    Set(Set),
    /// Delete VMs and their disks
    #[command(alias = "remove", alias = "delete")]
    Rm(Rm),
    /// Pull an image from a registry
    Pull(Pull),
    /// List images
    Images(Images),
    /// Manage VMs
    #[command(subcommand)]
    Vm(Vm),
    /// Manage snapshots of running VMs
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Have a stopped VM go on from a snapshot of it
    Restore { vm: String, snapshot: String },
    /// Make VMs that go on from where a running one is now
    Fork {
        vm: String,
        /// Names of the new VMs
        #[arg(required = true, value_name = "NEW")]
        names: Vec<String>,
    },
    /// Manage volumes: disks that exist by themselves
    #[command(subcommand)]
    Volume(Volume),
    /// Manage images
    #[command(subcommand)]
    Image(Image),
    /// Manage kernels
    #[command(subcommand)]
    Kernel(Kernel),
    /// Look at the network
    #[command(subcommand)]
    Net(Net),
    /// Manage the commands that run in VMs
    #[command(subcommand)]
    Session(Session),
    /// Show what has happened to VMs, images, sessions and jobs
    Events(Events),
    /// Print what there is and what it takes, in the text format of OpenMetrics
    Metrics {
        /// Answer a request of HTTP on standard input, a socket, instead
        #[arg(long, hide = true)]
        http: bool,
    },
    /// Look for what is wrong on this host, and say what to do about it
    Doctor(Doctor),
    /// Have ssh, scp, sftp, rsync, git and editors reach VMs as NAME.banger
    SshConfig(SshConfig),
    /// Be the server that ssh finds as NAME.banger
    #[command(hide = true)]
    SshProxy { destination: String },
    /// Tell ssh the host keys of a VM's own sshd
    #[command(hide = true)]
    SshKnownHosts { destination: String },
    /// Print the help of a command, as COMMAND --help does
    Help {
        /// Such as `image build`
        #[arg(value_name = "COMMAND")]
        words: Vec<String>,
    },
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Where to
        directory: PathBuf,
    },
}

impl Command {
    /// Whether the exit code may be that of a command in a guest.
    pub fn runs_guest_command(&self) -> bool {
        match self {
            Command::Run(run) => !run.detach,
            Command::Exec(_) | Command::Shell(_) => true,
            Command::Session(Session::Attach(_) | Session::Wait { .. }) => true,
            Command::Session(Session::Start(start)) => start.attach,
            _ => false,
        }
    }
}

/// What of the journal is shown.
#[derive(Debug, Default, Args)]
pub struct Range {
    /// Go on with what comes from now on
    #[arg(short, long)]
    pub follow: bool,
    /// From this time on
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub until: Option<String>,
    /// Only so many from the end; with --follow and without --since 10, else all
    #[arg(short = 'n', long, visible_alias = "tail", value_name = "COUNT")]
    pub lines: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
It is read from the journal of the system, which takes root or membership of the group systemd-journal or adm. What the VMM \
says begins with \"vmm:\". Control characters of the guest's become spaces. With --json each line is an object: time, \
time_usec (microseconds since 1970), message. `journalctl -u banger-vm@VM` shows the same with what systemd says of the VM.

TIME is as in journalctl(1): 2026-01-31 12:00, yesterday, today, -1h.")]
pub struct Logs {
    #[command(flatten)]
    pub range: Range,
    /// Put the time (UTC, by the host's clock) in front of each line
    #[arg(short, long)]
    pub timestamps: bool,
    pub vm: String,
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
Events are read from the journal of the system, which takes root or membership of the group systemd-journal or adm. \
Each is a line: the time in UTC, what has happened, to whom, and what else is known. With --json it is an object on a \
line by itself: time, time_usec (microseconds since 1970), boot (of the host), event, message, and the event's fields, \
as banger-events(7) lists them.

TIME is as in journalctl(1): 2026-01-31 12:00, yesterday, today, -1h.")]
pub struct Events {
    #[command(flatten)]
    pub range: Range,
    /// Only those of this VM; more than once for several
    #[arg(long = "vm", value_name = "VM")]
    pub vms: Vec<String>,
    /// Only these, such as vm-failed, or all of vm, image, session, job, …
    #[arg(value_name = "EVENT", value_parser = parse_event)]
    pub events: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line is ok, warn (it works, but slower, or with less, or perhaps not for long), fail (something of banger does not \
work) or unknown (it could not be seen, mostly for want of privileges). What is not ok is told with the reason why it \
matters and with what to do about it; with --quiet only that is listed, without reasons. The exit status is 7 if \
something fails, and else 0.

--fix does, and tells: users, groups and directories of banger are made (systemd-sysusers, systemd-tmpfiles), systemd \
reads changed units again, units of banger that failed are forgotten, sockets are enabled and started, banger's own \
firewall rules and links are made again, and leftovers of VMs removed (`banger vm reconcile`). It touches no VM that \
runs and nothing that is not banger's, such as the rules of other firewalls. It takes root, but for the leftovers. What \
is told then is how things are afterwards.

Anybody may ask. The services that are asked are started by it.")]
pub struct Doctor {
    /// Do what is safe to be done, and look again
    #[arg(long)]
    pub fix: bool,
    /// Say of everything why it matters
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub enum Net {
    /// Show the guests' network
    Status,
    /// List who has which address
    #[command(visible_alias = "ls")]
    Leases,
    /// Lead ports of the host to guests
    #[command(subcommand)]
    Forward(ForwardCommand),
}

#[derive(Debug, Subcommand)]
pub enum ForwardCommand {
    /// Lead a port of the host to one of a VM
    #[command(after_help = "\
It listens while the VM runs. With on-demand it listens as long as there is the VM, which the first connection \
starts. Without ADDRESS it is for this host alone; 0.0.0.0 is for everybody.")]
    Add {
        vm: String,
        #[arg(required = true, value_name = "[ADDRESS:]PORT:GUEST-PORT[/udp][,on-demand]")]
        forwards: Vec<Forward>,
    },
    /// List what leads where
    #[command(visible_alias = "list")]
    Ls,
    /// Take forwards away
    Rm {
        #[arg(required = true, value_name = "[ADDRESS:]PORT[/udp]", value_parser = parse_listen)]
        listens: Vec<Listen>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_agrees() {
        Arguments::command().debug_assert();
    }

    /// Two arguments of one id are one for clap, and it panics if their types differ.
    #[test]
    fn no_command_has_an_argument_of_all_commands() {
        fn ids(command: &clap::Command, global: &[String], found: &mut Vec<String>) {
            for command in command.get_subcommands() {
                let own = command.get_arguments().map(|arg| arg.get_id().to_string());
                let taken =
                    own.filter(|id| global.contains(id)).map(|id| format!("{}: {id}", command.get_name()));
                found.extend(taken);
                ids(command, global, found);
            }
        }
        let command = Arguments::command();
        let global: Vec<_> = command
            .get_arguments()
            .filter(|arg| arg.is_global_set())
            .map(|arg| arg.get_id().to_string())
            .collect();
        assert!(global.len() >= 5, "{global:?}");
        let mut found = Vec::new();
        ids(&command, &global, &mut found);
        assert_eq!(found, [] as [String; 0]);
    }

    #[test]
    fn names_or_all() {
        let parses = |line: &str| Arguments::try_parse_from(line.split(' ')).is_ok();
        assert!(parses("banger stop -a") && parses("banger stop a b"));
        assert!(!parses("banger stop") && !parses("banger stop -a b"));
        assert!(parses("banger set web --no-nat --cpus 2 --autostart=false"));
    }

    #[test]
    fn commands_need_no_dashes_but_may_have_them() {
        for line in [
            "banger run --rm -it -e A=1 -u root img -- sh -c x",
            "banger run --rm -it -e A=1 -u root img sh -c x",
        ] {
            let arguments = Arguments::try_parse_from(line.split(' ')).expect("parses");
            let Command::Run(run) = arguments.command else { panic!("not run") };
            assert_eq!((run.image.as_str(), run.command.join(" ").as_str()), ("img", "sh -c x"));
            assert!(run.rm && run.process.tty && run.process.interactive);
        }
        assert!(Arguments::try_parse_from(["banger", "exec", "web"]).is_err());
        assert!(Arguments::try_parse_from(["banger", "run", "-d", "--rm", "img", "sh"]).is_err());
        assert!(Arguments::try_parse_from(["banger", "ps", "--json", "-q", "--peer"]).is_ok());
    }
}
