//! What can be typed.

use std::path::PathBuf;

use banger_core::units::{parse_seconds, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum};

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
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and start a VM and run a command in it
    Run(Run),
    /// Run a command in a running VM
    Exec(Exec),
    /// Open a shell in a running VM
    Shell(Shell),
    /// List VMs
    Ps(Ps),
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
    Rm(Rm),
    /// Pull an image from a registry
    Pull(Pull),
    /// List images
    Images,
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
    /// Look at the commands that run in VMs
    #[command(subcommand)]
    Session(Session),
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
            _ => false,
        }
    }
}

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
    #[arg(long, value_name = "N", help_heading = "Machine")]
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
    /// Reach the host and other VMs only
    #[arg(long, help_heading = "Network")]
    pub no_nat: bool,
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
}

/// A volume in a guest: its name, the path there, whether it is read-only.
pub type Attachment = (String, String, bool);

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RestartPolicy {
    No,
    OnFailure,
    Always,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Expiry {
    Stop,
    Delete,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Says which changes are in effect now, and which from the VM's next start. Disks only grow. For limits, 0
means none.")]
pub struct Set {
    pub vm: String,
    #[command(flatten)]
    pub spec: Spec,
    /// Remove a variable
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub unsetenv: Vec<String>,
    /// Take the VM's own SSH keys away
    #[arg(long, conflicts_with = "ssh_keys", help_heading = "Machine")]
    pub no_ssh_keys: bool,
    /// Remove a label
    #[arg(long, value_name = "NAME", help_heading = "Life")]
    pub remove_label: Vec<String>,
    /// Take all volumes away
    #[arg(long, conflicts_with = "volumes", help_heading = "Machine")]
    pub no_volumes: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Vmm {
    Auto,
    Qemu,
    Firecracker,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Init {
    Auto,
    Agent,
    Image,
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
pub struct Ps {
    /// VMs that do not run, too
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Goes on until Ctrl-C on a terminal; elsewhere, and with --json, figures are printed once. CPU is in percent
of one CPU of the host, MEMORY what the guest uses of what it has, DISK what the VM's disks take on the host.")]
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

#[derive(Debug, Args)]
pub struct Pull {
    /// HOST[:PORT]/REPO[:TAG|@DIGEST], or a short name of docker.io
    pub reference: String,
    /// Name of the image, instead of the reference
    #[arg(long)]
    pub name: Option<String>,
    /// Platform, such as linux/arm64, instead of the host's
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Allow plain HTTP
    #[arg(long)]
    pub insecure: bool,
}

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
    Rm(Rm),
    /// Show everything about a VM
    Show { vm: String },
    /// Say what keeps a VM from starting
    Check { vm: String },
    /// List all VMs
    Ls,
    /// Remove what belongs to no VM, such as what a crash left, and say what it was
    Reconcile,
}

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

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Keep what a running VM is: memory, devices, disks
    Create {
        vm: String,
        /// Name of the snapshot; a readable one is made up without it
        snapshot: Option<String>,
    },
    /// List the snapshots of a VM
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
    Ls,
    /// Delete volumes and what is in them
    Rm {
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Pull an image from a registry
    Pull(Pull),
    /// Import the archive of a root filesystem, or an OCI layout
    Import {
        /// Name of the image; that of the file without it
        #[arg(long)]
        name: Option<String>,
        /// File, directory, or - for standard input
        path: PathBuf,
    },
    /// List images
    Ls,
    /// Show everything about an image
    Show { image: String },
    /// Remove images
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Kernel {
    /// Import a kernel
    Import {
        /// `host` for the kernel that runs here, a linux-image .deb, or a vmlinuz with --modules
        #[arg(default_value = "host")]
        source: String,
        /// Name of the kernel, instead of its version
        #[arg(long)]
        name: Option<String>,
        /// Directory with the modules of a vmlinuz, such as /lib/modules/VERSION
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Make it the default, too
        #[arg(long)]
        default: bool,
    },
    /// List kernels
    Ls,
    /// Show everything about a kernel; without a name, the default one
    Show { kernel: Option<String> },
    /// Remove kernels
    Rm {
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
    },
    /// Choose the kernel of VMs that name none
    Default { kernel: String },
}

#[derive(Debug, Subcommand)]
pub enum Net {
    /// Show the guests' network
    Status,
    /// List who has which address
    Leases,
}

#[derive(Debug, Subcommand)]
pub enum Session {
    /// List the commands that run in VMs
    Ls,
}

fn parse_volume(text: &str) -> Result<Attachment, String> {
    let wrong = || format!("{text:?} is not VOLUME:PATH or VOLUME:PATH:ro");
    let (volume, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (path, read_only) = match rest.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (rest, false),
    };
    if volume.is_empty() || !path.starts_with('/') || path.contains(':') {
        return Err(wrong());
    }
    Ok((volume.to_owned(), path.to_owned(), read_only))
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// As a size, but 0 is no limit.
fn parse_limit(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// `150` or `150%`.
fn parse_percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    number.parse().map_err(|_| format!("{text:?} is not a percentage such as 150%"))
}

/// `KILL`, `SIGKILL`, `9`.
fn parse_signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| format!("{text:?} is not a signal such as TERM or 15"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_agrees() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn volumes_and_signals() {
        assert_eq!(parse_volume("data:/srv"), Ok(("data".into(), "/srv".into(), false)));
        assert_eq!(parse_volume("data:/srv:ro"), Ok(("data".into(), "/srv".into(), true)));
        for bad in ["data", "data:srv", ":/srv", "data:/srv:rw", ""] {
            assert!(parse_volume(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_signal("term"), Ok(15));
        assert_eq!(parse_signal("SIGKILL"), Ok(9));
        assert!(parse_signal("NEVER").is_err());
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
        assert!(Arguments::try_parse_from(["banger", "run", "-d", "img", "sh"]).is_err());
        assert!(Arguments::try_parse_from(["banger", "ps", "--json", "-q", "--peer"]).is_ok());
    }
}
