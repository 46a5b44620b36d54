//! Which modules a guest needs, and in which order they are loaded. Pure.
//!
//! Dependencies come from the modules themselves (`depends=` in their `.modinfo` section) and not from
//! `modules.dep`, which a kernel package does not have: depmod writes it where it is installed.

use std::collections::{BTreeMap, BTreeSet};

/// A guest cannot start without these.
pub const ESSENTIAL: &[&str] =
    &["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "overlay", "squashfs", "ext4"];

/// Good to have; erofs for images that are one, pvpanic for QEMU to see panics. `crc32c_generic` is what ext4 as a module asks the crypto layer for by another name.
pub const OPTIONAL: &[&str] =
    &["erofs", "virtio_pci", "virtio_rng", "virtio_balloon", "pvpanic_pci", "crc32c_generic"];

/// What those usually depend on: read in the same pass, so that a package is mostly read once.
pub const USUAL: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "net_failover",
    "failover",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "mbcache",
    "jbd2",
    "crc16",
    "crc32c",
    "rng_core",
    "balloon",
    "pvpanic",
    "libcrc32c",
    "lz4_decompress",
];

/// What is known of a kernel's modules so far.
#[derive(Debug, Default)]
pub struct Known {
    /// Names of all modules that are files.
    pub files: BTreeSet<String>,
    /// Names of all that are built in.
    pub builtin: BTreeSet<String>,
    /// Dependencies of the modules that were read.
    pub depends: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// Load these in this order.
    Load(Vec<String>),
    /// Read these and ask again.
    Read(BTreeSet<String>),
}

/// The order of loading, or the module that is missing.
pub fn plan(known: &Known) -> Result<Plan, String> {
    let mut order = Vec::new();
    let mut placed = BTreeSet::new();
    let mut unread = BTreeSet::new();
    let roots = ESSENTIAL.iter().map(|name| (*name, true)).chain(OPTIONAL.iter().map(|name| (*name, false)));
    for (root, essential) in roots {
        // Depth first; a module is placed when it is met the second time, after what it needs.
        let mut stack = vec![(root.to_owned(), false)];
        while let Some((name, needs_done)) = stack.pop() {
            if needs_done {
                order.push(name);
                continue;
            }
            if known.builtin.contains(&name) || placed.contains(&name) {
                continue;
            }
            if !known.files.contains(&name) {
                if essential {
                    return Err(name);
                }
                continue;
            }
            placed.insert(name.clone());
            let Some(depends) = known.depends.get(&name) else {
                unread.insert(name);
                continue;
            };
            let depends: Vec<_> = depends.iter().rev().map(|need| (need.clone(), false)).collect();
            stack.push((name, true));
            stack.extend(depends);
        }
    }
    Ok(if unread.is_empty() { Plan::Load(order) } else { Plan::Read(unread) })
}

/// `virtio_mmio` for `kernel/drivers/virtio/virtio-mmio.ko.xz`; `None` for what is no module.
pub fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| file.strip_suffix(end))?;
    Some(stem.replace('-', "_"))
}

/// The dependencies a module's own file names.
pub fn depends(module: &[u8]) -> Result<Vec<String>, &'static str> {
    let info = section(module, b".modinfo").ok_or("it is no kernel module")?;
    let mut names = Vec::new();
    for field in info.split(|byte| *byte == 0) {
        let Ok(field) = std::str::from_utf8(field) else { continue };
        if let Some(list) = field.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")));
        }
    }
    Ok(names)
}

/// A section of a 64 bit little-endian ELF file.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, size, count, names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let content = |index: usize| -> Option<&'a [u8]> {
        let at = header(index)?;
        let (start, length) = (number(at.checked_add(0x18)?, 8)?, number(at.checked_add(0x20)?, 8)?);
        elf.get(start..start.checked_add(length)?)
    };
    let strings = content(names)?;
    (0..count).find_map(|index| {
        let name = strings.get(number(header(index)?, 4)?..)?;
        (name.starts_with(wanted) && name.get(wanted.len()) == Some(&0)).then(|| content(index))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(files: &[(&str, &[&str])], builtin: &[&str]) -> Known {
        Known {
            files: files.iter().map(|(name, _)| (*name).to_owned()).collect(),
            builtin: builtin.iter().map(|name| (*name).to_owned()).collect(),
            depends: files
                .iter()
                .map(|(name, needs)| {
                    ((*name).to_owned(), needs.iter().map(|need| (*need).to_owned()).collect())
                })
                .collect(),
        }
    }

    #[test]
    fn needs_come_first_and_builtin_ones_not_at_all() {
        let mut known = known(
            &[
                ("virtio_mmio", &["virtio", "virtio_ring"]),
                ("virtio", &["virtio_ring"]),
                ("virtio_ring", &[]),
                ("virtio_blk", &["virtio", "virtio_ring"]),
                ("squashfs", &[]),
                ("overlay", &[]),
            ],
            &["virtio_net", "vmw_vsock_virtio_transport", "ext4"],
        );
        let order = ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "overlay", "squashfs"];
        assert_eq!(plan(&known), Ok(Plan::Load(order.map(str::to_owned).to_vec())));
        known.depends.remove("virtio");
        assert_eq!(plan(&known), Ok(Plan::Read(BTreeSet::from(["virtio".to_owned()]))));
        known.files.remove("overlay");
        assert_eq!(plan(&known), Err("overlay".to_owned()));
    }

    #[test]
    fn a_circle_of_needs_ends() {
        let known = known(&[("virtio_mmio", &["a"]), ("a", &["virtio_mmio"])], &ESSENTIAL[1..]);
        assert_eq!(plan(&known), Ok(Plan::Load(vec!["a".into(), "virtio_mmio".into()])));
    }

    #[test]
    fn names() {
        assert_eq!(name_of("kernel/a/virtio-mmio.ko.xz").as_deref(), Some("virtio_mmio"));
        assert_eq!(name_of("modules.dep"), None);
        assert!(depends(b"\x7fELF\x02\x01").is_err());
    }
}
