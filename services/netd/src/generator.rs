//! netd under another name: a systemd.generator(7), for what units cannot say by themselves.
//!
//! A socket unit names its address, and that of the gateway follows from `range` in `netd.conf`. So at boot and
//! at each `daemon-reload` systemd runs us, and gets a drop-in for `banger-netd-dns.socket` if the range is not
//! the one that the unit is written for. netd could bind the address itself; but then nothing would start it
//! for a query once it has left.
//!
//! And a systemd that is new enough for [`hook`](crate::dns::hook)s is told to open the socket for them, and
//! to keep resolved's connection while netd is not there. An older one knows no such setting.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use banger_api::{Error, Result};

use crate::config::Config;
use crate::plan;

const NAME: &str = "banger-netd-generator";

/// The first systemd whose resolved has hooks.
const HOOKS: u32 = 259;

/// The directory for units of ordinary priority, if it is systemd that runs us for units.
pub fn called() -> Option<PathBuf> {
    let mut arguments = std::env::args_os();
    let called = arguments.next().is_some_and(|name| Path::new(&name).file_name().is_some_and(|n| n == NAME));
    if called { arguments.next().map(PathBuf::from) } else { None }
}

pub fn run(directory: &Path) -> ExitCode {
    match generate(directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn generate(directory: &Path) -> Result<()> {
    // A configuration that is wrong is no reason to leave the rest out.
    let config = banger_config::load::<Config>("netd");
    let drop_ins = config.as_ref().ok().and_then(range).into_iter().chain(hook(&systemd_version()));
    for (path, text) in drop_ins {
        let path = directory.join(path);
        let written = std::fs::create_dir_all(path.parent().unwrap_or(directory))
            .and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| Error::from(error).context(path.display()))?;
    }
    config.map(drop)
}

/// As systemctl says it. Nothing if that cannot be asked, as if it were old.
fn systemd_version() -> String {
    let said = Command::new("systemctl").arg("--version").output();
    said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

type DropIn = (&'static str, String);

/// What the socket on port 53 has to be told; nothing if its unit says so itself.
fn range(config: &Config) -> Option<DropIn> {
    let gateway = plan::gateway(config.range);
    (gateway != plan::gateway(Config::default().range)).then(|| {
        let text = format!(
            "# From range = \"{}\" in netd.conf.\n[Socket]\nListenDatagram=\nListenStream=\n\
             ListenDatagram={gateway}:53\nListenStream={gateway}:53\n",
            config.range
        );
        ("banger-netd-dns.socket.d/50-banger-range.conf", text)
    })
}

/// What makes netd a hook of resolved, if this systemd has such.
fn hook(version: &str) -> Vec<DropIn> {
    // "systemd 262 (262.1-1)", "systemd 260~rc2 (…)", then its features.
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let number = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    if number.parse::<u32>().is_ok_and(|version| version >= HOOKS) {
        let socket = "# This systemd-resolved has hooks.\n[Unit]\nWants=banger-netd-hook.socket\n";
        let service =
            "# For resolved's connection to its hook.\n[Service]\nFileDescriptorStorePreserve=yes\n";
        vec![
            ("banger-netd.socket.d/50-banger-hook.conf", socket.into()),
            ("banger-netd.service.d/50-banger-hook.conf", service.into()),
        ]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_range_is_another_address() {
        assert_eq!(range(&Config::default()), None);
        let other = "192.168.77.0/24".parse().expect("a network");
        let (_, text) = range(&Config { range: other, ..Config::default() }).expect("a drop-in");
        assert!(text.ends_with("\nListenDatagram=192.168.77.1:53\nListenStream=192.168.77.1:53\n"), "{text}");
    }

    #[test]
    fn only_a_systemd_with_hooks_is_told_of_ours() {
        for old in ["", "systemd", "systemd 252 (252.39-1~deb12u1)\n+PAM", "systemd 258.2", "systemd ~260"] {
            assert_eq!(hook(old), [], "{old}");
        }
        for new in ["systemd 259 (259-1)\n+PAM +AUDIT", "systemd 260~rc2", "systemd 262.1"] {
            assert_eq!(hook(new).len(), 2, "{new}");
        }
    }

    #[test]
    fn the_unit_is_written_for_the_default_range() {
        let unit = include_str!("../../../units/banger-netd-dns.socket");
        let gateway = plan::gateway(Config::default().range);
        for listen in ["ListenDatagram", "ListenStream"] {
            assert!(unit.contains(&format!("\n{listen}={gateway}:53\n")), "{listen}");
        }
    }
}
