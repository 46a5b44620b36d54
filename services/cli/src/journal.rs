//! The journal, by journalctl(1): it has no interface on the bus.

use banger_api::ErrorKind;
use tokio::process::Command;

/// Whether there is a journal of the system, and it can be read.
pub fn is_readable() -> bool {
    ["/var/log/journal", "/run/log/journal"].into_iter().any(|root| {
        let machines = std::fs::read_dir(root).into_iter().flatten().flatten();
        machines.into_iter().any(|machine| std::fs::File::open(machine.path().join("system.journal")).is_ok())
    })
}

/// journalctl(1), giving entries as JSON without remarks on standard error, each with these fields.
pub fn reader(fields: &str) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--all", "--output=json", "--output-fields", fields]);
    command
}

pub fn unreadable() -> banger_api::Error {
    ErrorKind::AccessDenied.error(
        "only root and the groups systemd-journal and adm read the journal of the system: use sudo, or let an admin \
         add you to one of them (usermod -aG systemd-journal)",
    )
}
