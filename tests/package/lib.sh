# Shared by the tests of the packages: they say what they expect of the lab, and go on when it is not so.
# shellcheck shell=bash

repo=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
target=${CARGO_TARGET_DIR:-$repo/target}
failed=0

lab() { "$repo/tests/lab/sh" "$@"; }

expect() { # expect WHAT EXPECTED COMMAND…: what a command prints in the lab
    local what=$1 expected=$2 found
    shift 2
    found=$(lab sh -c "$*" 2>&1) || true
    if [ "$found" = "$expected" ]; then
        echo "ok: $what"
    else
        printf 'FAILED: %s\n%s\n' "$what" "$found"
        failed=1
    fi
}

# expect_removed HOST-STATE: nothing of banger runs, and the host's network is as it was in this file.
expect_removed() {
    expect 'no unit of banger runs' '' \
        'systemctl list-units --all --no-legend --plain "banger*" "dbus-org.banger*" | grep -v not-found'
    expect 'no process is left' '' 'ps -eo comm= | grep -E "^(banger|qemu-sys|vhost-dev)"'
    expect 'no link is left' '' 'ip -o link | grep -E "banger|bg-"'
    expect 'the resolver is told of no names' '' 'resolvectl domain | grep banger'
    expect 'no firewall table is left' '' 'nft list tables | grep banger'
    expect "the host's network is as it was" '' "$repo/tests/package/host-state | diff $1 -"
    expect 'state is kept' yes 'test -e /var/lib/banger/vmd/vmd.db && echo yes'
}

expect_purged() {
    expect 'no file is left' '' \
        'find /etc /run /usr /var -name "*banger*" |
            grep -vE "^/var/(log|cache|lib/(dpkg|apt|systemd/deb|docker))|^/run/systemd/(propagate|unit-root|units)"'
    expect 'no user or group is left' '' \
        'getent passwd | grep -E "^(banger|bvm-)"; getent group | grep -E "^banger"'
    expect 'the system is well' running 'systemctl is-system-running'
}
