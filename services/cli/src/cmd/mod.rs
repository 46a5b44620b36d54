//! The commands, one file per noun.

mod analyze;
mod build;
mod copy;
mod doctor;
mod events;
mod image;
mod kernel;
mod logs;
mod metrics;
mod named;
mod network;
mod packages;
mod plot;
mod run;
mod session;
mod snapshot;
mod ssh;
pub mod states;
mod stats;
mod top;
mod vm;
mod volume;
mod workspace;

use banger_api::{ErrorKind, Result};
use clap::{CommandFactory, Parser};
use futures_util::{StreamExt, stream};

use crate::Context;
use crate::args::{Arguments, Command};
use crate::exit::SUCCESS;

pub use copy::Place;
pub use kernel::HOST as HOST_KERNEL;
pub use workspace::{DEFAULT_PATH, Mode, agents};

/// Does what was asked for, and says the exit code.
pub async fn dispatch(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Run(arguments) => return run::run(context, arguments).await,
        Command::Exec(arguments) => return session::exec(context, arguments).await,
        Command::Shell(arguments) => return session::shell(context, arguments).await,
        Command::Cp(arguments) => copy::copy(context, arguments).await?,
        Command::Workspace(command) => workspace::dispatch(context, command).await?,
        Command::Ps(arguments) => vm::list(context, &arguments).await?,
        Command::Show { vm } => vm::show(context, &vm).await?,
        Command::Logs(arguments) => logs::logs(context, arguments).await?,
        Command::Stats(arguments) => stats::stats(context, arguments).await?,
        Command::Top { interval } => top::top(context, interval).await?,
        Command::Ping { vm } => stats::ping(context, &vm).await?,
        Command::Ports { vm } => stats::ports(context, &vm).await?,
        Command::Analyze(command) => analyze::dispatch(context, command).await?,
        Command::Create(arguments) => vm::create_command(context, arguments).await?,
        Command::Start(arguments) => return vm::start(context, arguments).await,
        Command::Stop(arguments) => return vm::stop(context, arguments).await,
        Command::Restart(arguments) => return vm::restart(context, arguments).await,
        Command::Kill(arguments) => return vm::kill(context, arguments).await,
        Command::Pause(arguments) => return vm::pause(context, arguments).await,
        Command::Resume(arguments) => return vm::resume(context, arguments).await,
        Command::Reset(arguments) => return vm::reset(context, arguments).await,
        Command::Set(arguments) => vm::set(context, arguments).await?,
        Command::Snapshot(command) => return snapshot::dispatch(context, command).await,
        Command::Restore { vm, snapshot } => snapshot::restore(context, &vm, &snapshot).await?,
        Command::Fork { vm, names } => snapshot::fork(context, &vm, &names).await?,
        Command::Volume(command) => return volume::dispatch(context, command).await,
        Command::Rm(arguments) => return vm::remove(context, arguments).await,
        Command::Pull(arguments) => image::pull(context, arguments).await?,
        Command::Images(wanted) => image::list(context, wanted).await?,
        Command::Vm(command) => return vm::dispatch(context, command).await,
        Command::Image(command) => return image::dispatch(context, command).await,
        Command::Kernel(command) => return kernel::dispatch(context, command).await,
        Command::Net(command) => network::dispatch(context, command).await?,
        Command::Session(command) => return named::dispatch(context, command).await,
        Command::Events(arguments) => events::events(context, arguments).await?,
        Command::Metrics { http } => metrics::metrics(context, http).await?,
        Command::Doctor(arguments) => return doctor::doctor(context, arguments).await,
        Command::SshConfig(arguments) => ssh::config::configure(context, &arguments).await?,
        Command::SshProxy { destination } => ssh::proxy::proxy(context, &destination).await?,
        Command::SshKnownHosts { destination } => ssh::known_hosts(context, &destination).await?,
        Command::Help { words } => return help(&words),
        Command::Completion { shell } => {
            crate::output::print(&crate::complete::script(shell)?);
        }
        Command::Man { directory } => {
            std::fs::create_dir_all(&directory)?;
            clap_mangen::generate_to(Arguments::command(), directory)?;
        }
    }
    Ok(SUCCESS)
}

/// What `--help` of the command that these words are says.
fn help(words: &[String]) -> Result<u8> {
    let mut command = &Arguments::command();
    for word in words {
        command = command.find_subcommand(word).ok_or_else(|| {
            ErrorKind::InvalidArgs
                .error(format!("there is no command {}; see `banger help`", words.join(" ")))
        })?;
    }
    let line = ["banger"].into_iter().chain(words.iter().map(String::as_str)).chain(["--help"]);
    Ok(Arguments::try_parse_from(line).map_or_else(|said| crate::exit::answer(&said, []), |_| SUCCESS))
}

/// Bytes as text, such as those of a digest.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many calls are under way at a time. The bus refuses a client the 129th.
const AT_ONCE: usize = 64;

/// Does the same to several things at once. Says which failed and why; the exit code is that of
/// the first failure.
async fn each<F, Fut>(names: Vec<String>, work: F) -> Result<u8>
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let outcomes: Vec<Result<()>> =
        stream::iter(names.into_iter().map(work)).buffered(AT_ONCE).collect().await;
    let mut code = SUCCESS;
    for error in outcomes.into_iter().filter_map(Result::err) {
        crate::exit::complain(&error);
        if code == SUCCESS {
            code = crate::exit::code(&error, false);
        }
    }
    Ok(code)
}
