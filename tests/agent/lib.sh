# A guest with nothing of banger but its agent: a kernel, an initramfs, QEMU and
# vhost-device-vsock. Sourced by `boot` and `test`.
# shellcheck shell=bash
#
# What is needed and not found is taken from where these name it:
#   AGENT        the static banger-agent
#   GUEST        the example program `guest` of services/sessiond
#   KERNEL       a bzImage, with its modules in MODULES (a directory with modules.dep, or .ko files)
#   QEMU         qemu-system-x86_64, perhaps a wrapper that sets its library path
#   VSOCK_DEVICE vhost-device-vsock
#   BUSYBOX      a static busybox
#   WORK         where everything is put

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
REPO=$(cd "$HERE/../.." && pwd -P)
TARGET_DIR=${CARGO_TARGET_DIR:-$REPO/target}
AGENT=${AGENT:-$TARGET_DIR/x86_64-unknown-linux-gnu/agent/banger-agent}
GUEST=${GUEST:-$TARGET_DIR/debug/examples/guest}
QEMU=${QEMU:-qemu-system-x86_64}
VSOCK_DEVICE=${VSOCK_DEVICE:-vhost-device-vsock}
BUSYBOX=${BUSYBOX:-/bin/busybox}
KERNEL=${KERNEL:-$(ls -1 /boot/vmlinuz-*-cloud-amd64 2>/dev/null | tail -1)}
MODULES=${MODULES:-/lib/modules/${KERNEL#*vmlinuz-}}
WORK=${WORK:-${TMPDIR:-/tmp}/banger-agent-test}

# In the order of their dependencies for 6.1; a built-in one is not there and not missed.
LOAD=(virtio_ring virtio virtio_mmio virtio_blk failover net_failover virtio_net vsock
    vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport rng-core virtio-rng overlay squashfs)

make_initramfs() { # FILE
    local tree module from
    tree=$(mktemp -d)
    install -m 755 "$AGENT" "$tree/init"
    mkdir -p "$tree/lib/modules" "$tree/dev"
    for module in "${LOAD[@]}"; do
        from=$(find "$MODULES" -name "$module.ko" -print -quit)
        [ -n "$from" ] || continue
        cp "$from" "$tree/lib/modules/"
        echo "/lib/modules/$module.ko" >>"$tree/modules.load"
    done
    (cd "$tree" && find . | "$BUSYBOX" cpio -o -H newc -R 0:0 2>/dev/null) >"$1"
    rm -rf "$tree"
}

make_rootfs() { # FILE [init]: busybox, perhaps as init, and users to try
    local tree applet
    tree=$(mktemp -d)
    chmod 755 "$tree"
    mkdir -p "$tree"/{bin,etc,root,home/web,tmp}
    chmod 1777 "$tree/tmp"
    cp "$BUSYBOX" "$tree/bin/busybox"
    for applet in $("$BUSYBOX" --list); do ln -s busybox "$tree/bin/$applet" 2>/dev/null || true; done
    printf 'root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/home/web:/bin/sh\n' >"$tree/etc/passwd"
    printf 'root:x:0:\nweb:x:33:\nextra:x:44:web\ntty:x:5:\n' >"$tree/etc/group"
    mkdir "$tree/root/closed" && chmod 700 "$tree/root/closed"
    printf '#!/no/such\n' >"$tree/root/script" && chmod 755 "$tree/root/script"
    chown 33:33 "$tree/home/web"
    if [ "${2:-}" = init ]; then
        mkdir "$tree/sbin"
        ln -s ../bin/busybox "$tree/sbin/init"
        echo '::sysinit:/bin/true' >"$tree/etc/inittab"
    fi
    rm -f "$1"
    mksquashfs "$tree" "$1" -quiet -no-progress -noappend -comp zstd
    rm -rf "$tree"
}

# The TSC's rate, for kernels that cannot measure it under emulation on a busy host.
tsc_khz() {
    local rate
    rate=$(dmesg 2>/dev/null | sed -n 's/.*tsc: Detected \([0-9]*\)\.\([0-9]\{3\}\) MHz.*/\1\2/p' | tail -1)
    echo "${rate:-$(awk -F': ' '/cpu MHz/ { printf "%d", $2 * 1000; exit }' /proc/cpuinfo)}"
}

PIDS=()
# Files that are disks of the next guests, from /dev/vdc on.
DISKS=()
start_guest() { # NAME ROOTFS CONFIG-FIELDS
    local dir=$WORK/$1 rootfs=$2 fields=${3:-}
    rm -rf "$dir" && mkdir -p "$dir"
    truncate -s 1G "$dir/overlay" && mkfs.ext4 -q -F "$dir/overlay"
    boot_guest "$dir" "$rootfs" "$fields"
}

boot_guest() { # DIR ROOTFS CONFIG-FIELDS: with the overlay that is in DIR already
    local dir=$1 rootfs=$2 fields=$3 disk disks=()
    VSOCK=$dir/vsock.sock
    rm -f "$dir"/{vsock,vhost}.sock "$dir/status"
    cat >"$dir/config.json" <<EOF
{"protocol": 3, "hostname": "web", "realtime_usec": "NOW", "seed": "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')",
 "rootfs": {"image": "/dev/vda", "fstype": "squashfs", "overlay": "/dev/vdb"},
 "process": {"env": {"LANG": "C.UTF-8", "A": "image"}} ${fields:+, $fields}}
EOF
    "$VSOCK_DEVICE" --vm "guest-cid=3,socket=$dir/vhost.sock,uds-path=$VSOCK" >"$dir/vsock.log" 2>&1 &
    PIDS+=($!)
    "$GUEST" serve "$VSOCK" "$dir/config.json" >"$dir/status" &
    PIDS+=($!)
    while [ ! -S "$dir/vhost.sock" ]; do sleep 0.05; done
    for disk in ${DISKS[@]+"${DISKS[@]}"}; do
        disks+=(-drive "id=disk$((${#disks[@]} / 4)),file=$disk,format=raw,if=none,discard=unmap"
            -device "virtio-blk-device,drive=disk$((${#disks[@]} / 4))")
    done
    # microvm's virtio-mmio buses fill up from the top, the kernel counts from there: the last
    # device given is the first disk.
    "$QEMU" -M microvm,acpi=on,memory-backend=mem -accel tcg -cpu max -m 512 -smp "${CPUS:-1}" \
        -object memory-backend-memfd,id=mem,size=512M,share=on \
        -kernel "$KERNEL" -initrd "$WORK/initramfs" \
        -append "console=ttyS0 panic=-1 tsc_early_khz=$(tsc_khz) no_timer_check ${KERNEL_ARGS:-quiet}" \
        -nodefaults -no-user-config -no-reboot -display none -serial "file:$dir/console" \
        -chardev "socket,id=vs,path=$dir/vhost.sock" -device vhost-user-vsock-device,chardev=vs \
        -drive "id=root,file=$rootfs,format=raw,if=none,readonly=on" -device virtio-blk-device,drive=root \
        -drive "id=overlay,file=$dir/overlay,format=raw,if=none,discard=unmap" -device virtio-blk-device,drive=overlay \
        ${disks[@]+"${disks[@]}"} -qmp "unix:$dir/qmp,server=on,wait=off" \
        -netdev user,id=net -device virtio-net-device,netdev=net \
        -device virtio-rng-device >"$dir/qemu.log" 2>&1 &
    QEMU_PID=$!
    PIDS+=($!)
}

wait_ready() { # DIR
    local i
    for ((i = 0; i < 600; i++)); do
        grep -q READY=1 "$1/status" && return
        kill -0 "$QEMU_PID" 2>/dev/null || break
        sleep 0.1
    done
    echo "the guest did not get ready:" >&2
    cat "$1/status" "$1/console" "$1/qemu.log" >&2
    return 1
}

wait_off() { # SECONDS
    local i
    for ((i = 0; i < $1 * 10; i++)); do
        kill -0 "$QEMU_PID" 2>/dev/null || return 0
        sleep 0.1
    done
    return 1
}

goodbye() { # DIR
    sed -n 's/.*X_BANGER_GOODBYE=//p' "$1/status"
}

stop_all() {
    local pid
    for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null; done
    PIDS=()
}
