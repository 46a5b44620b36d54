# The recipe of the lab's root filesystem: sourced by `up`, and hashed by it, so that any change
# here leads to a new base at the next `up`. What can be done in a second is not here but in
# `customize`, which finishes each copy of the base.
# shellcheck shell=bash

# The Debian release in the lab. Binaries built on the host run in it, so its C library must not
# be older than the host's. LAB_SUITE=sid has the newest systemd.
SUITE=${LAB_SUITE:-bookworm}

# What an ordinary server has, what banger depends on, and what the tests use.
PACKAGES=(
    # the system under test stands on these
    systemd systemd-sysv systemd-resolved systemd-container dbus polkitd libnss-resolve
    libnss-systemd libpam-systemd nftables qemu-system-x86 e2fsprogs squashfs-tools zstd xz-utils
    # as on a real host, so that `banger kernel import` finds /boot and /lib/modules
    linux-image-cloud-amd64
    # the registry and the tools that fill it
    docker-registry skopeo umoci
    # used by tests, fixtures and people; rpm makes packages to import, minisign signs bundles
    acl attr bash-completion busybox-static ca-certificates curl dropbear-bin erofs-utils git iproute2
    iputils-ping jq kmod less libcap2-bin libglib2.0-bin minisign openssh-client procps python3
    python3-dbus-fast qemu-utils rpm rsync socat squashfs-tools-ng strace vim-tiny
    # other shells, for what is completed in them
    fish zsh
)
# A browser of the bus, and a screen for it. Debian has it no more after 13.
[ "$SUITE" = sid ] || PACKAGES+=(d-feet xauth xvfb)

# Nobody reads manuals or translations in there; without them the base is half as big.
SLIM=(--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*')

# apt_sources: one-line sources for $SUITE from wherever the host itself gets Debian. Nothing is
# assumed about mirrors: LAB_APT_SOURCES names a file with other sources.
apt_sources() {
    if [ -n "${LAB_APT_SOURCES:-}" ]; then
        cat "$LAB_APT_SOURCES"
        return
    fi
    local key=/usr/share/keyrings/debian-archive-keyring.gpg
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | sort -u |
        while read -r label uri; do
            case $label in
            Debian) echo "deb [signed-by=$key] $uri $SUITE main" ;;
            # What is not released is mended in place.
            Debian-Security) [ "$SUITE" = sid ] || echo "deb [signed-by=$key] $uri $SUITE-security main" ;;
            esac
        done
}

# build_base DIR
build_base() {
    local packages
    packages=$(IFS=,; echo "${PACKAGES[*]}")
    apt_sources | mmdebstrap --quiet --variant=minbase --format=directory \
        --include="$packages" "${SLIM[@]}" "$SUITE" "$1" -
}

# build_debian_tar FILE: what the image debian:12 is made of; like the official one, the smallest
# Debian with apt, and no init.
build_debian_tar() {
    apt_sources | mmdebstrap --quiet --variant=minbase --format=tar "${SLIM[@]}" \
        --dpkgopt='path-exclude=/usr/share/man/*' "$SUITE" "$1" -
}
