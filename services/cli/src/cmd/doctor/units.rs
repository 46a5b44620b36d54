//! The units of banger that every host has.

/// What a unit is to be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub name: &'static str,
    /// Services are enabled for the name that the bus starts them by.
    pub enabled: bool,
    /// The target, sockets and timers wait all the time; services come when they are called.
    pub active: bool,
}

const fn called(name: &'static str) -> Wanted {
    Wanted { name, enabled: true, active: false }
}

const fn waiting(name: &'static str) -> Wanted {
    Wanted { name, enabled: true, active: true }
}

pub const UNITS: &[Wanted] = &[
    waiting("banger.target"),
    called("banger-vmd.service"),
    called("banger-imaged.service"),
    called("banger-netd.service"),
    called("banger-sessiond.service"),
    waiting("banger-vmd.socket"),
    waiting("banger-imaged.socket"),
    waiting("banger-netd.socket"),
    waiting("banger-sessiond.socket"),
    waiting("banger-launch.socket"),
    waiting("banger-netd-dns.socket"),
    waiting("banger-reap.timer"),
    called("banger-autostart.service"),
    called("banger-resolved.service"),
    Wanted { name: A_VM, enabled: false, active: false },
];

/// No VM, but an instance like all: it shows what the template and its drop-ins are.
pub const A_VM: &str = "banger-vm@doctor.service";

/// An admin who masks these does without what they are for.
pub const OPTIONAL: &[&str] =
    &["banger-netd-dns.socket", "banger-reap.timer", "banger-autostart.service", "banger-resolved.service"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_installed_is_looked_at() {
        const PRESET: &str = include_str!("../../../../../units/system-preset/80-banger.preset");
        let installed: BTreeSet<_> = PRESET.lines().filter_map(|line| line.strip_prefix("enable ")).collect();
        let wanted: BTreeSet<_> = UNITS.iter().filter(|unit| unit.enabled).map(|unit| unit.name).collect();
        assert_eq!(wanted, installed);
        assert!(OPTIONAL.iter().all(|name| wanted.contains(name)));
    }
}
