//! What runs in VMs.

use clap::{Args, Subcommand};

use super::machine::Machine;

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

#[derive(Debug, Subcommand)]
pub enum Session {
    /// List the commands that run in VMs
    Ls,
}
