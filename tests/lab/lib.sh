# Shared by up, sh and down: where things are, and how to talk about them.
# shellcheck shell=bash

LAB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
REPO=$(cd "$LAB/../.." && pwd -P)

# Everything the lab makes lives here and nowhere else on the host: not in a crate's directory, which cargo
# walks through, and stumbles over the /proc of a machine in the making. LAB_STATE moves it, for a
# second lab beside the first, or onto a bigger disk.
STATE=${LAB_STATE:-$REPO/.lab}
ROOT=$STATE/root      # the running machine's root filesystem: thrown away by `down`
LEADER=$STATE/leader  # PID (on the host) of the lab's PID 1, and its start time

# Unique to this lab, so that labs of two clones do not meet: the machine's name outside, and the
# control group that it runs in.
NAME=banger-lab-$(printf %s "$STATE" | cksum | cut -d' ' -f1)

# Control group hierarchies that nspawn uses: the unified one and, on hybrid hosts, systemd's own.
cgroup_mounts() {
    local mount
    for mount in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
        [ ! -e "$mount/cgroup.procs" ] || echo "$mount"
    done
}

# Under sudo, the Rust of whoever called it serves.
if ! command -v cargo >/dev/null && [ -n "${SUDO_USER:-}" ]; then
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    export PATH=$PATH:$home/.cargo/bin RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
fi

TARGET_DIR=${CARGO_TARGET_DIR:-$REPO/target}

step_started=
step() { # step TEXT…: begin a step, and say how long the one before it took
    local now=${EPOCHREALTIME/./}
    [ -z "$step_started" ] || printf ' %d.%01d s\n' \
        $(((now - step_started) / 1000000)) $(((now - step_started) / 100000 % 10)) >&2
    step_started=$now
    [ $# -eq 0 ] && step_started= || printf 'lab: %s …' "$*" >&2
}

die() {
    [ -z "$step_started" ] || printf ' failed\n' >&2
    printf 'lab: error: %s\n' "$*" >&2
    exit 1
}

# A PID alone may have been reused since; the start time (field 22 of stat) makes it unambiguous.
start_time() { local s; s=$(<"/proc/$1/stat") 2>/dev/null && s=${s##*) } && set -- $s && echo "${20}"; }

leader() { # print the PID of the lab's PID 1, or fail if no lab runs
    local pid start
    [ -r "$LEADER" ] && read -r pid start <"$LEADER" && [ "$(start_time "$pid")" = "$start" ] &&
        echo "$pid"
}

require_root() { [ "$(id -u)" -eq 0 ] || die "the lab needs root: try sudo $0"; }

# Debian packages, and what they depend on as far as the lab has not got it, into /root/packages of the lab.
download() {
    local cache=$STATE/packages
    mkdir -p "$cache/partial"
    # What is missing follows from what the lab has, not the host.
    apt-get install --quiet=2 --yes --no-install-recommends --download-only \
        -o Dir::State::status="$ROOT/var/lib/dpkg/status" -o Dir::Cache::archives="$cache" "$@"
    [ -n "$(find "$cache" -maxdepth 1 -name '*.deb')" ] || return 0
    mkdir -p "$ROOT/root/packages"
    mv "$cache"/*.deb "$ROOT/root/packages"
}
