//! What can be typed.

use std::path::PathBuf;

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
    /// Start VMs
    Start(Start),
    /// Stop VMs
    Stop(Stop),
    /// Delete VMs and their disks
    Rm(Rm),
    /// Pull an image from a registry
    Pull(Pull),
    /// List images
    Images,
    /// Manage VMs
    #[command(subcommand)]
    Vm(Vm),
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

/// What a VM is made of.
#[derive(Debug, Args)]
pub struct Machine {
    /// Number of virtual CPUs
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Room for the VM's own writes, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub disk: Option<u64>,
    /// Kernel of `banger kernel ls`, instead of the default one
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub kernel: Option<String>,
    /// Added to the kernel's command line
    #[arg(long, value_name = "ARGUMENTS", help_heading = "Machine")]
    pub kernel_arguments: Option<String>,
    /// Virtual machine monitor
    #[arg(long, value_enum, help_heading = "Machine")]
    pub vmm: Option<Vmm>,
    /// PID 1: the image's own, banger's agent, or the image's if it has one
    #[arg(long, value_enum, help_heading = "Machine")]
    pub init: Option<Init>,
    /// No network interface
    #[arg(long, help_heading = "Machine")]
    pub no_network: bool,
    /// Reach the host and other VMs only
    #[arg(long, conflicts_with = "no_network", help_heading = "Machine")]
    pub no_nat: bool,
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
pub struct Start {
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Kill a VM that has not stopped after this many seconds
    #[arg(short, long, value_name = "SECONDS")]
    pub timeout: Option<u32>,
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Kill the VM first if it runs, and do not complain if there is none
    #[arg(short, long)]
    pub force: bool,
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<String>,
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
    /// Delete VMs and their disks
    Rm(Rm),
    /// Show everything about a VM
    Show { vm: String },
    /// List all VMs
    Ls,
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

/// `512M`, `2G`, `1.5GiB`, `1048576`: always powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let exponent = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return Err(format!("unknown unit {unit:?}; use K, M, G or T")),
    };
    let number: f64 = number.parse().map_err(|_| "not a size such as 512M or 2G".to_owned())?;
    let bytes = number * 1024f64.powi(exponent);
    if bytes < 1.0 || bytes > 2f64.powi(60) {
        return Err("out of range".to_owned());
    }
    Ok(bytes as u64)
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
    fn sizes() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "M", "1X", "-1G", "0", "99999999T", "1..2G"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
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
