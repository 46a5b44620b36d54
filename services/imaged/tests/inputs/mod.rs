//! Small inputs of each kind that strangers give us, to be spoilt by tests and by the fuzzer (tests/fuzz).

use std::fs::File;
use std::io::Cursor;

use banger_imaged::kernel::cpio::Cpio;
use banger_imaged::layers::merge::Merge;
use banger_imaged::layers::stream::decompress;
use banger_imaged::layers::{Budget, index};
use banger_imaged::limits::Limits;
use banger_imaged::rootfs;

#[path = "../../../../tests/support/tar.rs"]
#[allow(dead_code)]
mod tar;

use tar::Tar;

const BLOCK: usize = 512;

/// Makes the checksums of all headers right, or no change would come further than that.
pub fn summed(mut archive: Vec<u8>) -> Vec<u8> {
    for block in archive.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

/// A bit of everything that the reader knows.
pub fn archive() -> Vec<u8> {
    let sparse: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10000")];
    let mut map = b"1\n100\n5\n".to_vec();
    map.resize(BLOCK, 0);
    map.extend(b"12345");
    Tar::default()
        .dir("d/")
        .file("d/file", &[7; 700])
        .pax(&[("path", b"d/x"), ("uid", b"70000"), ("SCHILY.xattr.user.a", b"value")])
        .file("cut", b"content")
        .pax(&[("GNU.sparse.realsize", b"4096"), ("GNU.sparse.map", b"0,4,9,3")])
        .file("holes", b"sparse!")
        .pax(&sparse)
        .file("more-holes", &map)
        .gnu_long(b'L', b"d/long")
        .link(b'2', "cut", "d/file")
        .link(b'1', "hard", "d/file")
        .link(b'3', "device", "")
        .file("d/.wh..wh..opq", b"")
        .file(".wh.hard", b"")
        .finish()
}

/// From layers to a root filesystem, as a pull does it.
pub fn build(layers: &[Vec<u8>]) -> Result<u64, String> {
    let limits = Limits { unpacked: 1 << 20, memory: 1 << 20, ..Limits::default() };
    let budget = Budget::new(limits.clone());
    let mut merge = Merge::new(&limits);
    let open = |layer: usize| decompress(Cursor::new(layers[layer].clone())).map_err(|e| e.to_string());
    let file = || tempfile::tempfile().expect("tempfile");
    for layer in 0..layers.len() {
        let index = index::index(open(layer)?, layer, &budget, file()).map_err(|e| e.to_string())?;
        for header in index.headers {
            merge.entry(&header.expect("reads back")).map_err(|invalid| invalid.reason)?;
        }
        merge.end_layer();
    }
    // What has been read and merged can be written.
    let written: (File, u64) =
        rootfs::write(file(), &merge.finish(), layers.len(), |layer| Ok(open(layer).expect("as before")))
            .expect("writes");
    Ok(written.1)
}

pub const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":7,
"digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":9,
"digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}]}"#;
pub const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":["sh"],"Labels":{"a":"b"}},
"rootfs":{"type":"layers","diff_ids":["sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"]}}"#;

/// The header of a bzImage, with a gzip stream where it says.
pub fn bzimage(protocol: u16) -> Vec<u8> {
    let mut image = vec![0u8; 8192];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&protocol.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&4096u32.to_le_bytes());
    image[1024 + 64..1024 + 67].copy_from_slice(&[0x1f, 0x8b, 8]);
    image
}

pub fn initramfs() -> Vec<u8> {
    let mut cpio = Cpio::default();
    cpio.directory("dev");
    cpio.file("init", true, &[1; 300]);
    cpio.finish()
}
