//! What a command needs to be done on another host.

use super::{Command, Image, Kernel, Run, Session, Settings, Spec, Workspace};
use crate::away::Reach;
use crate::cmd::{HOST_KERNEL, Place};

const FILES: Reach = Reach::Files("files");
const VARIABLES: Reach = Reach::Files("environment variables");

impl Command {
    pub fn reach(&self) -> Reach {
        match self {
            Self::Run(run) => of_run(run),
            Self::Exec(exec) => streams(&exec.process.settings, exec.process.tty),
            Self::Shell(shell) => streams(&shell.settings, true),
            Self::Cp(cp) if cp.source == Place::Stream || cp.destination == Place::Stream => {
                Reach::Streams { terminal: false }
            }
            Self::Cp(_) => FILES,
            Self::Workspace(Workspace::Tools | Workspace::Presets) => Reach::Bus,
            Self::Workspace(_) => Reach::Repository,
            Self::Session(Session::Attach(_)) => Reach::Streams { terminal: true },
            Self::Session(Session::Start(start)) if start.attach => streams(&start.settings, start.tty),
            Self::Image(image) => of_image(image),
            Self::Kernel(Kernel::Import { sources, modules, .. })
                if modules.is_some() || sources.iter().any(|source| source != HOST_KERNEL) =>
            {
                FILES
            }
            Self::SshProxy { .. } | Self::SshKnownHosts { .. } => Reach::Streams { terminal: false },
            // The journal is read here.
            Self::Doctor(_)
            | Self::SshConfig(_)
            | Self::Events(_)
            | Self::Logs(_)
            | Self::Metrics { http: true } => Reach::Host,
            Self::Session(_)
            | Self::Kernel(_)
            | Self::Ps(_)
            | Self::Stats(_)
            | Self::Top { .. }
            | Self::Ping { .. }
            | Self::Ports { .. }
            | Self::Analyze(_)
            | Self::Show { .. }
            | Self::Create(_)
            | Self::Start(_)
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Kill(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Reset(_)
            | Self::Set(_)
            | Self::Rm(_)
            | Self::Pull(_)
            | Self::Images(_)
            | Self::Vm(_)
            | Self::Snapshot(_)
            | Self::Restore { .. }
            | Self::Fork { .. }
            | Self::Volume(_)
            | Self::Net(_)
            | Self::Metrics { http: false }
            | Self::Help { .. }
            | Self::Completion { .. }
            | Self::Man { .. } => Reach::Bus,
        }
    }
}

/// What starts a command in a guest and stays with it.
fn streams(settings: &Settings, terminal: bool) -> Reach {
    if stands_for_value(&settings.env) { VARIABLES } else { Reach::Streams { terminal } }
}

/// `NAME` without `=VALUE` is the variable of whoever types it.
fn stands_for_value(settings: &[String]) -> bool {
    settings.iter().any(|setting| !setting.contains('='))
}

fn of_run(run: &Run) -> Reach {
    let Spec { ssh_keys, environment, .. } = &run.machine.spec;
    if run.workspace.is_some() {
        Reach::Repository
    } else if run.detach {
        Reach::Bus
    } else if !ssh_keys.is_empty() {
        FILES
    } else if stands_for_value(environment) {
        VARIABLES
    } else {
        streams(&run.process.settings, run.process.tty || run.command.is_empty())
    }
}

fn of_image(image: &Image) -> Reach {
    let stream = |path: &std::path::Path| match path.to_str() {
        Some("-") => Reach::Streams { terminal: false },
        _ => FILES,
    };
    match image {
        Image::Import(import) if import.signature.is_some() => FILES,
        Image::Import(import) => stream(&import.path),
        Image::Export { path, .. } => stream(path),
        Image::Register(_) | Image::Build(_) => FILES,
        Image::Pull(_)
        | Image::Promote { .. }
        | Image::Ls(_)
        | Image::Presets
        | Image::Tag { .. }
        | Image::Derive { .. }
        | Image::Prune(_)
        | Image::Df
        | Image::Show { .. }
        | Image::Set { .. }
        | Image::Verify { .. }
        | Image::Rm { .. } => Reach::Bus,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Arguments;

    #[test]
    fn only_what_needs_more_than_messages_goes_there() {
        let bus = Reach::Bus;
        let streams = |terminal| Reach::Streams { terminal };
        for (line, reach) in [
            ("ps", bus),
            ("vm create --ssh-key k img", bus),
            ("run -d --ssh-key k img", bus),
            ("run img ls", streams(false)),
            ("run img", streams(true)),
            ("run -t img sh", streams(true)),
            ("run --ssh-key k img ls", FILES),
            ("run --setenv A img ls", VARIABLES),
            ("run --workspace . img ls", Reach::Repository),
            ("exec -e A=1 web ls", streams(false)),
            ("exec -e A web ls", VARIABLES),
            ("shell web", streams(true)),
            ("cp - web:/srv", streams(false)),
            ("cp web:/srv -", streams(false)),
            ("cp site web:/srv", FILES),
            ("session logs -f web a", bus),
            ("session start web ls", bus),
            ("session start --attach -t web ls", streams(true)),
            ("session attach web a", streams(true)),
            ("image import -", streams(false)),
            ("image import x.tar", FILES),
            ("image export x -", streams(false)),
            ("image build", FILES),
            ("kernel import", bus),
            ("kernel import vmlinuz", FILES),
            ("workspace presets", bus),
            ("workspace export web", Reach::Repository),
            ("doctor", Reach::Host),
            ("events -f", Reach::Host),
            ("logs -f web", Reach::Host),
            ("metrics", bus),
        ] {
            let arguments =
                Arguments::try_parse_from(["banger"].into_iter().chain(line.split(' '))).expect(line);
            assert_eq!(arguments.command.reach(), reach, "{line}");
        }
    }
}
