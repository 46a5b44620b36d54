//! Filesystems and disks as images: what is in a file, by its first bytes. Nothing in it is parsed beyond
//! what tells where the filesystem is; the guest's kernel reads it.
//!
//! Sources: the superblocks of squashfs, erofs and ext4 in Linux' Documentation/filesystems; UEFI 2.10, 5.3
//! (GPT); <https://uapi-group.org/specifications/specs/discoverable_partitions_specification/> (which
//! partition is the root); QEMU's docs/interop/qcow2.rst.

use std::io;
use std::os::unix::fs::FileExt;

const SECTOR: u64 = 512;
/// GPT allows more, partitioning tools make 128.
const MAX_ENTRIES: u32 = 1024;

/// A filesystem that a guest can have for its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    pub kind: &'static str,
    /// Bytes, as the superblock says.
    pub size: u64,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub start: u64,
    pub size: u64,
    /// Whether its type says that it is a root filesystem for this processor.
    pub is_root: bool,
}

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    Filesystem(Filesystem),
    Disk(Vec<Partition>),
    Qcow2,
    /// An archive, most likely.
    Other,
}

pub fn content(file: &impl FileExt) -> io::Result<Content> {
    if let Some(filesystem) = filesystem(file, 0)? {
        return Ok(Content::Filesystem(filesystem));
    }
    let mut start = [0u8; 1024];
    let got = read(file, &mut start, 0)?;
    if start[..got].starts_with(b"QFI\xfb") {
        return Ok(Content::Qcow2);
    }
    if start[512..].starts_with(b"EFI PART") {
        return Ok(Content::Disk(gpt(file, &start[512..])?));
    }
    if got >= 512 && start[510..512] == [0x55, 0xaa] {
        let partitions = mbr(&start[..512]);
        if !partitions.is_empty() {
            return Ok(Content::Disk(partitions));
        }
    }
    Ok(Content::Other)
}

/// The filesystem at an offset, if it is one of those that we know.
///
/// # Errors
/// If it was not cleanly unmounted: read-only, nobody can repair it.
pub fn filesystem(file: &impl FileExt, at: u64) -> io::Result<Option<Filesystem>> {
    let mut block = [0u8; 2048];
    let got = read(file, &mut block, at)?;
    let found = if got >= 96 && block.starts_with(b"hsqs") {
        Some(Filesystem { kind: "squashfs", size: u64_at(&block, 40) })
    } else if got >= 1024 + 128 && u32_at(&block, 1024) == 0xe0f5_e1e2 {
        let blocks = u64::from(u32_at(&block, 1024 + 36));
        let bits = u32::from(block[1024 + 12]);
        if !(9..=16).contains(&bits) {
            return Err(bad("its erofs has impossible blocks"));
        }
        Some(Filesystem { kind: "erofs", size: blocks << bits })
    } else if got >= 2048 && u16_at(&block, 1024 + 56) == 0xef53 {
        Some(ext4(&block[1024..])?)
    } else {
        None
    };
    Ok(found)
}

fn ext4(superblock: &[u8]) -> io::Result<Filesystem> {
    const NEEDS_RECOVERY: u32 = 0x4;
    const SIXTY_FOUR_BITS: u32 = 0x80;
    let incompatible = u32_at(superblock, 96);
    if incompatible & NEEDS_RECOVERY != 0 {
        return Err(bad("its ext4 was not cleanly unmounted: run `e2fsck -p` on it first"));
    }
    let bits = u32_at(superblock, 24);
    if bits > 6 {
        return Err(bad("its ext4 has impossible blocks"));
    }
    let mut blocks = u64::from(u32_at(superblock, 4));
    if incompatible & SIXTY_FOUR_BITS != 0 {
        blocks |= u64::from(u32_at(superblock, 336)) << 32;
    }
    let size = blocks.checked_mul(1024 << bits).ok_or_else(|| bad("its ext4 has an impossible size"))?;
    Ok(Filesystem { kind: "ext4", size })
}

fn gpt(file: &impl FileExt, header: &[u8]) -> io::Result<Vec<Partition>> {
    let (table, count, size) = (u64_at(header, 72), u32_at(header, 80), u64::from(u32_at(header, 84)));
    if count > MAX_ENTRIES || !(128..=4096).contains(&size) {
        return Err(bad("its partition table is damaged"));
    }
    let mut partitions = Vec::new();
    for number in 0..count {
        let at = table
            .checked_mul(SECTOR)
            .and_then(|at| at.checked_add(u64::from(number) * size))
            .ok_or_else(|| bad("its partition table is damaged"))?;
        let mut entry = [0u8; 128];
        if read(file, &mut entry, at)? < entry.len() {
            return Err(bad("its partition table is cut off"));
        }
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        if entry[..16] == [0; 16] {
            continue;
        }
        let start = first.checked_mul(SECTOR);
        let size = last.checked_sub(first).and_then(|size| (size + 1).checked_mul(SECTOR));
        let (Some(start), Some(size)) = (start, size) else {
            return Err(bad("its partition table is damaged"));
        };
        partitions.push(Partition { number: number + 1, start, size, is_root: entry[..16] == ROOT_X86_64 });
    }
    Ok(partitions)
}

/// 4f68bce3-e8cd-4db1-96e7-fbcaf984b709, as it is stored.
const ROOT_X86_64: [u8; 16] =
    [0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09];

/// The four primary partitions; logical ones are not looked for.
fn mbr(sector: &[u8]) -> Vec<Partition> {
    (0..4)
        .filter_map(|number| {
            let entry = &sector[446 + 16 * number..462 + 16 * number];
            let (start, size) = (u32_at(entry, 8), u32_at(entry, 12));
            let plausible = matches!(entry[0], 0 | 0x80) && entry[4] != 0 && start > 0 && size > 0;
            plausible.then(|| Partition {
                number: number as u32 + 1,
                start: u64::from(start) * SECTOR,
                size: u64::from(size) * SECTOR,
                is_root: false,
            })
        })
        .collect()
}

/// Which partition has the root filesystem: the one that was asked for; or the only one whose type says
/// so; or the largest that has a filesystem we know.
pub fn choose(
    file: &impl FileExt,
    partitions: &[Partition],
    wanted: Option<u32>,
) -> io::Result<Option<(Partition, Filesystem)>> {
    let mut found = Vec::new();
    for partition in
        partitions.iter().filter(|partition| wanted.is_none_or(|number| number == partition.number))
    {
        match filesystem(file, partition.start) {
            Ok(Some(filesystem)) if filesystem.size <= partition.size => {
                found.push((partition.clone(), filesystem));
            }
            Ok(_) => {}
            Err(error) if partition.is_root || wanted.is_some() => return Err(error),
            Err(_) => {}
        }
    }
    Ok(found.into_iter().max_by_key(|(partition, _)| (partition.is_root, partition.size)))
}

/// Refuses a qcow2 image that makes its reader open other files.
pub fn check_qcow2(file: &impl FileExt) -> io::Result<()> {
    const EXTERNAL_DATA: u64 = 1 << 2;
    let mut header = [0u8; 104];
    let got = read(file, &mut header, 0)?;
    let version = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let number = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap_or_default());
    if got < 72 || !matches!(version, 2 | 3) || (version == 3 && got < 104) {
        return Err(bad("it is no qcow2 of version 2 or 3"));
    }
    if number(8) != 0 {
        return Err(bad("it has a backing file: join them first, with `qemu-img convert`"));
    }
    if u32::from_be_bytes([header[32], header[33], header[34], header[35]]) != 0 {
        return Err(bad("it is encrypted"));
    }
    if version == 3 && number(72) & EXTERNAL_DATA != 0 {
        return Err(bad("its data is in another file: join them first, with `qemu-img convert`"));
    }
    Ok(())
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read(file: &impl FileExt, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64)? {
            0 => break,
            count => got += count,
        }
    }
    Ok(got)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk in memory.
    struct Bytes(Vec<u8>);

    impl FileExt for Bytes {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn squashfs(size: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[40..48].copy_from_slice(&size.to_le_bytes());
        bytes
    }

    fn ext4_with(incompatible: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[1024 + 4..1024 + 8].copy_from_slice(&8u32.to_le_bytes());
        bytes[1024 + 56..1024 + 58].copy_from_slice(&0xef53u16.to_le_bytes());
        bytes[1024 + 96..1024 + 100].copy_from_slice(&incompatible.to_le_bytes());
        bytes
    }

    #[test]
    fn filesystems_by_their_superblocks() {
        let kind = |bytes: Vec<u8>| content(&Bytes(bytes));
        let filesystem = |kind, size| Content::Filesystem(Filesystem { kind, size });
        assert_eq!(kind(squashfs(4000)).expect("reads"), filesystem("squashfs", 4000));
        assert_eq!(kind(ext4_with(0)).expect("reads"), filesystem("ext4", 8192));
        assert!(kind(ext4_with(4)).expect_err("dirty").to_string().contains("e2fsck"));
        let mut erofs = vec![0; 4096];
        erofs[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        erofs[1036] = 12;
        erofs[1060] = 5;
        assert_eq!(kind(erofs).expect("reads"), filesystem("erofs", 5 << 12));
        for other in [vec![], b"hsqs".to_vec(), vec![0; 5000], b"\x1f\x8b and more".repeat(200)] {
            assert_eq!(kind(other).expect("reads"), Content::Other);
        }
    }

    fn disk(root_type: [u8; 16]) -> Bytes {
        let mut bytes = vec![0; 100 * 512];
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes[512 + 72] = 2;
        bytes[512 + 80] = 4;
        bytes[512 + 84] = 128;
        // A small root, a larger one of no special type, one with nothing we know.
        for (entry, kind, first, last) in
            [(0, root_type, 40u64, 47u64), (1, [7; 16], 48, 63), (3, [7; 16], 64, 99)]
        {
            let at = 1024 + 128 * entry;
            bytes[at..at + 16].copy_from_slice(&kind);
            bytes[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
            bytes[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        }
        for start in [40, 48] {
            bytes[start * 512..start * 512 + 4096].copy_from_slice(&squashfs(4000));
        }
        Bytes(bytes)
    }

    fn chosen(disk: &Bytes, wanted: Option<u32>) -> Option<u32> {
        let Content::Disk(partitions) = content(disk).expect("reads") else { panic!("no disk") };
        choose(disk, &partitions, wanted).expect("reads").map(|(partition, _)| partition.number)
    }

    #[test]
    fn the_root_of_a_disk() {
        assert_eq!(chosen(&disk(ROOT_X86_64), None), Some(1));
        assert_eq!(chosen(&disk([9; 16]), None), Some(2));
        assert_eq!(chosen(&disk(ROOT_X86_64), Some(2)), Some(2));
        assert_eq!(chosen(&disk(ROOT_X86_64), Some(4)), None);
        assert_eq!(chosen(&disk(ROOT_X86_64), Some(9)), None);
        let mut damaged = disk(ROOT_X86_64);
        damaged.0[512 + 72..512 + 80].fill(0xff);
        assert!(content(&damaged).is_err());
    }

    #[test]
    fn old_partition_tables() {
        let mut bytes = vec![0; 100 * 512];
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes[446 + 4] = 0x83;
        bytes[446 + 8] = 10;
        bytes[446 + 12] = 90;
        bytes[5120..5120 + 4096].copy_from_slice(&squashfs(4000));
        assert_eq!(chosen(&Bytes(bytes.clone()), None), Some(1));
        bytes[446 + 4] = 0;
        assert_eq!(content(&Bytes(bytes)).expect("reads"), Content::Other);
    }

    #[test]
    fn a_qcow2_that_leads_elsewhere_is_refused() {
        let header = |patch: &[(usize, u8)]| {
            let mut bytes = vec![0; 512];
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            for (at, byte) in patch {
                bytes[*at] = *byte;
            }
            check_qcow2(&Bytes(bytes))
        };
        assert!(header(&[]).is_ok());
        for (patch, word) in
            [((15, 1), "backing"), ((79, 4), "another file"), ((35, 1), "encrypted"), ((7, 9), "version")]
        {
            assert!(header(&[patch]).expect_err(word).to_string().contains(word));
        }
        assert!(check_qcow2(&Bytes(b"QFI\xfb".to_vec())).is_err());
    }
}
