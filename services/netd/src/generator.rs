//! netd under another name: a systemd.generator(7), for the one unit that depends on our configuration.
//!
//! A socket unit names its address, and that of the gateway follows from `range` in `netd.conf`. So at boot and
//! at each `daemon-reload` systemd runs us, and gets a drop-in for `banger-netd-dns.socket` if the range is not
//! the one that the unit is written for. netd could bind the address itself; but then nothing would start it
//! for a query once it has left.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use banger_api::{Error, Result};

use crate::config::Config;
use crate::plan;

const NAME: &str = "banger-netd-generator";
const DROP_IN: &str = "banger-netd-dns.socket.d/50-banger-range.conf";

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
    let config: Config = banger_config::load("netd")?;
    let Some(text) = drop_in(&config) else { return Ok(()) };
    let path = directory.join(DROP_IN);
    let written = std::fs::create_dir_all(path.parent().unwrap_or(directory))
        .and_then(|()| std::fs::write(&path, text));
    written.map_err(|error| Error::from(error).context(path.display()))
}

/// What the unit has to be told; nothing if it says so itself.
fn drop_in(config: &Config) -> Option<String> {
    let gateway = plan::gateway(config.range);
    (gateway != plan::gateway(Config::default().range)).then(|| {
        format!(
            "# From range = \"{}\" in netd.conf.\n[Socket]\nListenDatagram=\nListenStream=\n\
             ListenDatagram={gateway}:53\nListenStream={gateway}:53\n",
            config.range
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_range_is_another_address() {
        assert_eq!(drop_in(&Config::default()), None);
        let range = "192.168.77.0/24".parse().expect("a network");
        let text = drop_in(&Config { range, ..Config::default() }).expect("a drop-in");
        assert!(text.ends_with("\nListenDatagram=192.168.77.1:53\nListenStream=192.168.77.1:53\n"), "{text}");
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
