//! What kernels can do, as far as guests need it: names of features, where a kernel's configuration
//! says so, and which of them a machine cannot do without.

use std::collections::BTreeSet;

/// Name of a feature, the configuration symbol behind it, and the module that has it if the symbol
/// is `m`. A feature that cannot be a module has no name there.
const FEATURES: &[(&str, &str, &str)] = &[
    ("acpi", "ACPI", ""),
    ("balloon", "VIRTIO_BALLOON", "virtio_balloon"),
    ("devtmpfs", "DEVTMPFS", ""),
    ("entropy", "HW_RANDOM_VIRTIO", "virtio_rng"),
    ("erofs", "EROFS_FS", "erofs"),
    ("ext4", "EXT4_FS", "ext4"),
    ("initrd", "BLK_DEV_INITRD", ""),
    ("overlay", "OVERLAY_FS", "overlay"),
    ("pci-hotplug", "HOTPLUG_PCI_PCIE", ""),
    ("pvh", "PVH", ""),
    ("serial-console", "SERIAL_8250_CONSOLE", ""),
    ("squashfs", "SQUASHFS", "squashfs"),
    ("squashfs-zstd", "SQUASHFS_ZSTD", ""),
    ("virtio-blk", "VIRTIO_BLK", "virtio_blk"),
    ("virtio-mmio", "VIRTIO_MMIO", "virtio_mmio"),
    ("virtio-mmio-cmdline", "VIRTIO_MMIO_CMDLINE_DEVICES", ""),
    ("virtio-net", "VIRTIO_NET", "virtio_net"),
    ("virtio-pci", "VIRTIO_PCI", "virtio_pci"),
    ("vsock", "VIRTIO_VSOCKETS", "vmw_vsock_virtio_transport"),
];

/// The features of a kernel by its configuration (`/boot/config-VERSION`), sorted. What is a module
/// counts only if the guest gets that module.
pub fn features(config: &str, modules: &BTreeSet<String>) -> Vec<String> {
    let mut built_in = BTreeSet::new();
    let mut modular = BTreeSet::new();
    for line in config.lines() {
        match line.strip_prefix("CONFIG_").and_then(|line| line.split_once('=')) {
            Some((symbol, "y")) => built_in.insert(symbol),
            Some((symbol, "m")) => modular.insert(symbol),
            _ => continue,
        };
    }
    FEATURES
        .iter()
        .filter(|(_, symbol, module)| {
            built_in.contains(symbol) || (modular.contains(symbol) && modules.contains(*module))
        })
        .map(|(name, ..)| (*name).to_owned())
        .collect()
}

/// What about a machine decides what its kernel must be able to do.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    pub vmm: &'a str,
    pub network: bool,
    /// Filesystem of the image.
    pub rootfs: &'a str,
}

/// What a machine needs and a kernel of these features has not, as text for people. Of a feature
/// that stands for another, either does.
pub fn missing(features: &[String], needs: Needs<'_>) -> Vec<String> {
    // Of both VMMs the devices are found by ACPI; Firecracker names them on the command line as well.
    let (devices, vsock): (&[&str], &[&str]) = match needs.vmm {
        "firecracker" => (&["acpi", "virtio-mmio-cmdline"], &["virtio-mmio"]),
        _ => (&["acpi"], &["virtio-pci"]),
    };
    let mut wanted: Vec<&[&str]> = vec![
        &["initrd"],
        &["devtmpfs"],
        &["virtio-mmio"],
        &["virtio-blk"],
        &["vsock"],
        &["overlay"],
        &["ext4"],
    ];
    wanted.extend([devices, vsock]);
    let rootfs: &[&str] = match needs.rootfs {
        "squashfs" => &["squashfs"],
        "erofs" => &["erofs"],
        _ => &["ext4"],
    };
    wanted.push(rootfs);
    if needs.network {
        wanted.push(&["virtio-net"]);
    }
    let has = |feature: &&str| features.iter().any(|has| has == feature);
    let mut missing: Vec<String> = wanted
        .into_iter()
        .filter(|any_of| !any_of.iter().any(has))
        .map(|any_of| any_of.join(" or "))
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUD: &str = "# comment\nCONFIG_ACPI=y\nCONFIG_DEVTMPFS=y\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_VIRTIO_MMIO=m\n\
        CONFIG_VIRTIO_PCI=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_VIRTIO_NET=m\nCONFIG_VIRTIO_VSOCKETS=m\n\
        CONFIG_OVERLAY_FS=m\nCONFIG_EXT4_FS=y\nCONFIG_SQUASHFS=m\n# CONFIG_EROFS_FS is not set\n";

    fn modules() -> BTreeSet<String> {
        [
            "virtio_mmio",
            "virtio_pci",
            "virtio_blk",
            "virtio_net",
            "vmw_vsock_virtio_transport",
            "overlay",
            "squashfs",
        ]
        .map(str::to_owned)
        .into()
    }

    const QEMU: Needs<'_> = Needs { vmm: "qemu", network: true, rootfs: "squashfs" };

    #[test]
    fn modules_count_if_the_guest_gets_them() {
        assert!(missing(&features(CLOUD, &modules()), QEMU).is_empty());
        let mut fewer = modules();
        fewer.remove("overlay");
        fewer.remove("virtio_net");
        let features = features(CLOUD, &fewer);
        assert_eq!(missing(&features, QEMU), ["overlay", "virtio-net"]);
        assert_eq!(missing(&features, Needs { network: false, ..QEMU }), ["overlay"]);
        assert_eq!(missing(&features, Needs { rootfs: "erofs", ..QEMU }), ["erofs", "overlay", "virtio-net"]);
    }

    #[test]
    fn devices_are_found_one_way_or_the_other() {
        let no_acpi = features(&CLOUD.replace("ACPI=y", "VIRTIO_MMIO_CMDLINE_DEVICES=y"), &modules());
        assert_eq!(missing(&no_acpi, QEMU), ["acpi"]);
        let firecracker = Needs { vmm: "firecracker", ..QEMU };
        assert!(missing(&no_acpi, firecracker).is_empty());
        let neither = features(&CLOUD.replace("CONFIG_ACPI=y", ""), &modules());
        assert_eq!(missing(&neither, firecracker), ["acpi or virtio-mmio-cmdline"]);
    }

    #[test]
    fn names_are_sorted() {
        assert!(FEATURES.is_sorted_by_key(|(name, ..)| *name));
        assert!(features("", &BTreeSet::new()).is_empty());
    }
}
