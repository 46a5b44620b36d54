//! Packages in guests, by whatever a guest has for that.

/// What can install packages, in the order in which it is looked for. [`INSTALL`] has all of them.
pub const MANAGERS: [&str; 4] = ["apt-get", "apk", "dnf", "xbps-install"];

/// A script that installs the packages that are its arguments, and leaves nothing of the installation behind. As root.
pub const INSTALL: &str = r#"set -e
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends -- "$@"
    apt-get clean
    rm -rf /var/lib/apt/lists/*
elif command -v apk >/dev/null; then
    apk add --no-cache -- "$@"
elif command -v dnf >/dev/null; then
    dnf install -y --setopt=install_weak_deps=False -- "$@"
    dnf clean all
elif command -v xbps-install >/dev/null; then
    xbps-install -Suy xbps
    xbps-install -Sy -- "$@"
    rm -rf /var/cache/xbps/*
else
    echo "the image has no package manager that banger knows: apt-get, apk, dnf or xbps-install" >&2
    exit 127
fi"#;

/// Whether it can be the name of a package. What begins with a dash would be an option of the package manager.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_are_those_of_the_script_in_its_order() {
        let asked = INSTALL.lines().filter_map(|line| line.split("command -v ").nth(1)?.split(' ').next());
        assert_eq!(asked.collect::<Vec<_>>(), MANAGERS);
    }
}
