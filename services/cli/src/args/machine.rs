//! What VMs are to be.

use std::path::PathBuf;

use banger_core::forward::Forward;
use banger_core::network::Rule;
use banger_core::units::{parse_seconds, parse_size};
use clap::{Args, ValueEnum};

use super::parse::{Attachment, parse_cpus, parse_limit, parse_pair, parse_percent, parse_volume};

#[derive(Debug, Args)]
pub struct Create {
    /// Name of the VM; a readable one is made up without it
    #[arg(long)]
    pub name: Option<String>,
    /// Start it, too
    #[arg(long)]
    pub start: bool,
    #[command(flatten)]
    pub machine: Machine,
    /// Image: a name of `banger images`, or HOST[:PORT]/REPO[:TAG]
    pub image: String,
}

/// What a VM is made of when it is created.
#[derive(Debug, Args)]
pub struct Machine {
    /// Kernel of `banger kernel ls`, instead of the default one
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub kernel: Option<String>,
    #[command(flatten)]
    pub spec: Spec,
}

/// What a VM is to be; all of it can be changed later.
#[derive(Debug, Args)]
pub struct Spec {
    /// Number of virtual CPUs
    #[arg(long, value_name = "N", value_parser = parse_cpus, help_heading = "Machine")]
    pub cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Room for the VM's own writes, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub disk: Option<u64>,
    /// A disk at /work that a reset keeps, such as 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub work: Option<u64>,
    /// Volume of `banger volume ls` to mount at PATH; with :ro nobody writes it
    #[arg(
        long = "volume",
        value_name = "VOLUME:PATH[:ro]",
        value_parser = parse_volume,
        help_heading = "Machine"
    )]
    pub volumes: Vec<Attachment>,
    /// Added to the kernel's command line
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true, help_heading = "Machine")]
    pub kernel_arguments: Option<String>,
    /// Virtual machine monitor
    #[arg(long, value_enum, help_heading = "Machine")]
    pub vmm: Option<Vmm>,
    /// PID 1: the image's own, banger's agent, or the image's if it has one
    #[arg(long, value_enum, help_heading = "Machine")]
    pub init: Option<Init>,
    /// Network interface
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        overrides_with = "no_network",
        help_heading = "Network"
    )]
    pub network: Option<bool>,
    /// No network interface
    #[arg(long, help_heading = "Network")]
    pub no_network: bool,
    /// Reach addresses beyond the host
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        overrides_with = "no_nat",
        help_heading = "Network"
    )]
    pub nat: Option<bool>,
    /// Reach nothing beyond the host
    #[arg(long, help_heading = "Network")]
    pub no_nat: bool,
    /// Lead a port of the host to one of the guest while it runs; without ADDRESS for the host alone
    #[arg(
        short = 'p',
        long = "publish",
        value_name = "[ADDRESS:]PORT:GUEST-PORT[/udp][,on-demand]",
        help_heading = "Network"
    )]
    pub forwards: Vec<Forward>,
    /// Reach the VMs of this group, too, and be reached by them; may be repeated
    #[arg(long = "group", value_name = "NAME", help_heading = "Network")]
    pub groups: Vec<String>,
    /// Where beyond the host it gets: everywhere, nowhere, or only to the internet
    #[arg(long, value_enum, help_heading = "Network")]
    pub egress: Option<Egress>,
    /// What it reaches besides, by network, address or name; may be repeated
    #[arg(long, value_name = "TO[:PORT[-PORT]][/tcp|/udp]", help_heading = "Network")]
    pub egress_allow: Vec<Rule>,
    /// Environment variable for everything that runs in the VM; without VALUE that of the caller
    #[arg(long = "setenv", value_name = "NAME[=VALUE]", help_heading = "Machine")]
    pub environment: Vec<String>,
    /// File with public keys that may log in over SSH as the image's user
    #[arg(long = "ssh-key", value_name = "FILE", help_heading = "Machine")]
    pub ssh_keys: Vec<PathBuf>,
    /// Label, for people and programs
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = parse_pair, help_heading = "Life")]
    pub labels: Vec<(String, String)>,
    /// When to start it again after it ended by itself
    #[arg(long, value_enum, value_name = "POLICY", help_heading = "Life")]
    pub restart: Option<RestartPolicy>,
    /// Start it with the host
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Life"
    )]
    pub autostart: Option<bool>,
    /// Stop it this long after its start, such as 90s, 15min or 2h; 0: never
    #[arg(long, value_name = "SPAN", value_parser = parse_seconds, help_heading = "Life")]
    pub ttl: Option<u64>,
    /// What happens when its time is up
    #[arg(long, value_enum, help_heading = "Life")]
    pub expiry: Option<Expiry>,
    /// Limit of the host's memory it takes, VMM and all
    #[arg(long, value_name = "SIZE", value_parser = parse_limit, help_heading = "Limits")]
    pub memory_max: Option<u64>,
    /// Limit of CPU time, in percent of one CPU
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, help_heading = "Limits")]
    pub cpu_quota: Option<u32>,
    /// Share of the host's I/O, 1 to 10000
    #[arg(long, value_name = "WEIGHT", help_heading = "Limits")]
    pub io_weight: Option<u32>,
    /// Limit of processes and threads of its VMM
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub tasks_max: Option<u64>,
    /// Bytes that each of its disks may read and write a second, such as 50M
    #[arg(long, value_name = "SIZE", value_parser = parse_limit, help_heading = "Limits")]
    pub disk_bandwidth: Option<u64>,
    /// Operations that each of its disks may do a second
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub disk_iops: Option<u64>,
    /// Bytes that it may receive, and send, a second; what is more is dropped
    #[arg(long, value_name = "SIZE", value_parser = parse_limit, help_heading = "Limits")]
    pub network_bandwidth: Option<u64>,
    /// Packets that it may receive, and send, a second
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub network_packets: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Vmm {
    Auto,
    Qemu,
    Firecracker,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Egress {
    Open,
    Closed,
    NoLan,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Init {
    Auto,
    Agent,
    Image,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RestartPolicy {
    No,
    OnFailure,
    Always,
}

impl RestartPolicy {
    /// As the services call it.
    pub fn word(self) -> &'static str {
        match self {
            RestartPolicy::No => "no",
            RestartPolicy::OnFailure => "on-failure",
            RestartPolicy::Always => "always",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Expiry {
    Stop,
    Delete,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Says which changes are in effect now, and which from the VM's next start. Disks only grow. For limits, 0 \
means none.")]
pub struct Set {
    pub vm: String,
    #[command(flatten)]
    pub spec: Spec,
    /// Remove a variable
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub unsetenv: Vec<String>,
    /// Leave all groups
    #[arg(long, conflicts_with = "groups", help_heading = "Network")]
    pub no_groups: bool,
    /// Take away all that it reaches besides
    #[arg(long, conflicts_with = "egress_allow", help_heading = "Network")]
    pub no_egress_allow: bool,
    /// Take the VM's own SSH keys away
    #[arg(long, conflicts_with = "ssh_keys", help_heading = "Machine")]
    pub no_ssh_keys: bool,
    /// Remove a label
    #[arg(long, value_name = "NAME", help_heading = "Life")]
    pub remove_label: Vec<String>,
    /// Take all forwards away
    #[arg(long, conflicts_with = "forwards", help_heading = "Network")]
    pub no_publish: bool,
    /// Take all volumes away
    #[arg(long, conflicts_with = "volumes", help_heading = "Machine")]
    pub no_volumes: bool,
}
