//! What is done with VMs, their snapshots and volumes.

use banger_core::units::parse_size;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use super::machine::{Create, Set};
use super::parse::parse_signal;
use crate::cmd::states;

#[derive(Debug, Subcommand)]
pub enum Vm {
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
    /// Show everything about a VM
    #[command(visible_alias = "inspect")]
    Show { vm: String },
    /// Say what keeps a VM from starting
    Check { vm: String },
    /// List all VMs
    #[command(visible_alias = "list")]
    Ls,
    /// Remove what belongs to no VM, such as what a crash left, and say what it was
    Reconcile,
}

/// Which VMs a command is about.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Vms {
    /// All VMs that the command makes sense for
    #[arg(short, long)]
    pub all: bool,
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Several {
    #[command(flatten)]
    pub vms: Vms,
}

#[derive(Debug, Args)]
pub struct Start {
    #[command(flatten)]
    pub vms: Vms,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Kill a VM that has not stopped after this many seconds
    #[arg(short, long, value_name = "SECONDS")]
    pub timeout: Option<u32>,
    #[command(flatten)]
    pub vms: Vms,
}

#[derive(Debug, Args)]
pub struct Restart {
    /// Kill a VM that has not stopped after this many seconds
    #[arg(short, long, value_name = "SECONDS")]
    pub timeout: Option<u32>,
    #[command(flatten)]
    pub vms: Vms,
}

#[derive(Debug, Args)]
pub struct Kill {
    /// Name or number
    #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
    pub signal: i32,
    #[command(flatten)]
    pub vms: Vms,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Kill the VM first if it runs, and do not complain if there is none
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub vms: Vms,
}

#[derive(Debug, Default, Args)]
pub struct Ps {
    /// VMs that do not run, too
    #[arg(short, long)]
    pub all: bool,
    /// Only those with a label; may be repeated
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Only those in a state; may be repeated
    #[arg(long = "state", value_name = "STATE", value_parser = PossibleValuesParser::new(states::ANY))]
    pub states: Vec<String>,
    /// Only names like this, with * and ?
    pub pattern: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Goes on until Ctrl-C on a terminal; elsewhere, and with --json, figures are printed once. CPU is in percent \
of one CPU of the host, MEMORY what the guest uses of what it has, ON HOST what the VM takes of the host's, DISK what the VM's disks take on the host.")]
pub struct Stats {
    /// Go on, wherever it is printed
    #[arg(short, long)]
    pub watch: bool,
    /// Print figures once, also on a terminal
    #[arg(long, conflicts_with = "watch")]
    pub no_stream: bool,
    /// Seconds between two samples, where it goes on
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub interval: u64,
    /// Instead of all that run
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Analyze {
    /// List the stages, the longest first
    Blame { vm: String },
    /// Draw the stages as SVG
    Plot { vm: String },
    /// Print the times of host, kernel and agent
    Time { vm: String },
}

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Keep what a running VM is: memory, devices, disks
    Create {
        vm: String,
        /// Name of the snapshot; a readable one is made up without it
        snapshot: Option<String>,
    },
    /// List the snapshots of a VM
    #[command(visible_alias = "list")]
    Ls { vm: String },
    /// Delete snapshots of a VM
    Rm {
        vm: String,
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Create a volume with an empty filesystem
    Create {
        /// Its size, such as 10G
        #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "8G")]
        size: u64,
        volume: String,
    },
    /// List volumes, and who has them
    #[command(visible_alias = "list")]
    Ls,
    /// Delete volumes and what is in them
    Rm {
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
}
