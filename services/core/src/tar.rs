//! Writing tar streams in the PAX format (POSIX.1-2001, pax(1)), with extended attributes as star
//! has them (`SCHILY.xattr.NAME`) and sparse files as GNU tar has them (PAX form 1.0).
//!
//! A number or name that the old header has no room for goes to an extension header before it;
//! names are bytes throughout. For guests whose tar knows no PAX, such as busybox's, there is GNU tar's own
//! form of long names.

pub mod read;

use std::io;

const BLOCK: usize = 512;

/// Room for a name, and for the target of a link, in the header itself.
const NAME: usize = 100;
/// The same, with a slash after it.
const GNU_NAME: usize = NAME - 1;
/// The largest numbers that fields of 8 and 12 octal digits hold, one of them a terminator.
const MAX_SHORT: u64 = 0o7_777_777;
const MAX_LONG: u64 = 0o77_777_777_777;

/// The name of a header whose entry's own is in an extension.
const ELSEWHERE: &[u8] = b"././@LongName";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    /// Major and minor number.
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Directory,
    Fifo,
}

/// What an entry is, apart from its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// Without a slash at the beginning or the end.
    pub path: &'a [u8],
    /// Target of a link, else empty.
    pub link: &'a [u8],
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds after that.
    pub mtime_nsec: u32,
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Where the data of a file with holes is: `length` bytes at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// The head of an entry without holes, of which `size` bytes of content and [`padding`] follow.
pub fn head(header: &Header<'_>, size: u64) -> io::Result<Vec<u8>> {
    entry(header, header.path, size, Vec::new())
}

/// The head of a file of `size` bytes of which only the segments are stored: their bytes follow
/// one after the other, and [`padding`]. Returns with it how many bytes that are.
pub fn sparse_head(header: &Header<'_>, size: u64, map: &[Segment]) -> io::Result<(Vec<u8>, u64)> {
    let mut lines = format!("{}\n", map.len());
    for Segment { offset, length } in map {
        lines.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut lines = lines.into_bytes();
    lines.resize(lines.len().next_multiple_of(BLOCK), 0);
    let data: u64 = map.iter().map(|segment| segment.length).sum();
    let mut records = Vec::new();
    record(&mut records, b"GNU.sparse.major", b"1");
    record(&mut records, b"GNU.sparse.minor", b"0");
    record(&mut records, b"GNU.sparse.name", header.path);
    record(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
    let mut head = entry(header, b"GNUSparseFile.0/file", lines.len() as u64 + data, records)?;
    head.extend(lines);
    Ok((head, data))
}

/// What follows a content of so many bytes.
pub fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    &ZEROS[..(size.next_multiple_of(BLOCK as u64) - size) as usize]
}

/// What tells that the archive is whole.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The head of an entry in the old format of GNU tar, which every tar reads (see `tar.5` of libarchive):
/// names that are too long come before it, in entries of their own. It has no extended attributes.
pub fn gnu_head(header: &Header<'_>, size: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for (kind, name) in [(b'K', header.link), (b'L', header.path)] {
        if name.len() > GNU_NAME {
            let length = name.len() as u64 + 1;
            let mut block = Block::new(b"././@LongLink", kind);
            block.number(124, 12, length);
            out.extend(block.finish());
            out.extend(name);
            out.push(0);
            out.extend(padding(length));
        }
    }
    let short = |name: u64| if name > MAX_SHORT { Err("an owner") } else { Ok(name) };
    let fits = short(header.uid.into()).and(short(header.gid.into()));
    let fits = fits.and(if size > MAX_LONG { Err("the size of a file") } else { Ok(size) });
    fits.map_err(|what| io::Error::other(format!("{what} does not fit into an archive")))?;
    let header = Header {
        path: &header.path[..header.path.len().min(GNU_NAME)],
        link: &header.link[..header.link.len().min(GNU_NAME)],
        mtime_nsec: 0,
        xattrs: &[],
        ..header.clone()
    };
    out.extend(entry(&header, header.path, size, Vec::new())?);
    Ok(out)
}

fn entry(header: &Header<'_>, path: &[u8], size: u64, mut records: Vec<u8>) -> io::Result<Vec<u8>> {
    let path = match header.kind {
        Kind::Directory => [path, b"/"].concat(),
        _ => path.to_vec(),
    };
    let mut long = |key: &str, value: u64, max: u64| {
        if value > max {
            record(&mut records, key.as_bytes(), value.to_string().as_bytes());
        }
        value.min(max)
    };
    let uid = long("uid", header.uid.into(), MAX_SHORT);
    let gid = long("gid", header.gid.into(), MAX_SHORT);
    let stored = long("size", size, MAX_LONG);
    let mtime = match u64::try_from(header.mtime) {
        Ok(mtime) if header.mtime_nsec == 0 => long("mtime", mtime, MAX_LONG),
        mtime => {
            record(&mut records, b"mtime", time(header.mtime, header.mtime_nsec).as_bytes());
            mtime.unwrap_or(0).min(MAX_LONG)
        }
    };
    if path.len() > NAME {
        record(&mut records, b"path", &path);
    }
    if header.link.len() > NAME {
        record(&mut records, b"linkpath", header.link);
    }
    for (name, value) in header.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }

    let mut out = Vec::new();
    if !records.is_empty() {
        let mut block = Block::new(b"././@PaxHeader", b'x');
        block.number(124, 12, records.len() as u64);
        out.extend(block.finish());
        out.extend(&records);
        out.extend(padding(records.len() as u64));
    }
    let (kind, major, minor) = match header.kind {
        Kind::File => (b'0', 0, 0),
        Kind::HardLink => (b'1', 0, 0),
        Kind::Symlink => (b'2', 0, 0),
        Kind::CharDevice(major, minor) => (b'3', major, minor),
        Kind::BlockDevice(major, minor) => (b'4', major, minor),
        Kind::Directory => (b'5', 0, 0),
        Kind::Fifo => (b'6', 0, 0),
    };
    let mut block = Block::new(if path.len() > NAME { ELSEWHERE } else { &path }, kind);
    block.number(100, 8, (header.mode & 0o7777).into());
    block.number(108, 8, uid);
    block.number(116, 8, gid);
    block.number(124, 12, stored);
    block.number(136, 12, mtime);
    if header.link.len() <= NAME {
        block.bytes(157, header.link);
    }
    for (at, number) in [(329, major), (337, minor)] {
        if u64::from(number) > MAX_SHORT {
            return Err(io::Error::other(format!("device number {number} does not fit into an archive")));
        }
        block.number(at, 8, number.into());
    }
    out.extend(block.finish());
    Ok(out)
}

/// Seconds with a fraction, which has the sign of the whole.
fn time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (..0, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// A header block of ustar.
struct Block([u8; BLOCK]);

impl Block {
    fn new(path: &[u8], kind: u8) -> Self {
        let mut block = Self([0; BLOCK]);
        block.bytes(0, path);
        block.0[156] = kind;
        block.bytes(257, b"ustar\x0000");
        for (at, width) in [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8)] {
            block.number(at, width, 0);
        }
        block
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Octal digits and a zero byte, `width` in all.
    fn number(&mut self, at: usize, width: usize, number: u64) {
        self.bytes(at, format!("{number:0digits$o}\0", digits = width - 1).as_bytes());
    }

    /// With the sum of all bytes, itself counted as spaces.
    fn finish(mut self) -> [u8; BLOCK] {
        self.bytes(148, b"        ");
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.bytes(148, format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

/// Adds a record of an extension header: its length, which counts itself, key and value.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() > length {
        length = rest + length.to_string().len();
    }
    records.extend(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file<'a>(path: &'a [u8]) -> Header<'a> {
        Header {
            path,
            link: b"",
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: &[],
        }
    }

    fn records(head: &[u8]) -> String {
        assert_eq!(head[156], b'x');
        let size = std::str::from_utf8(&head[124..135]).expect("digits");
        let size = usize::from_str_radix(size, 8).expect("octal");
        String::from_utf8_lossy(&head[BLOCK..BLOCK + size]).into_owned()
    }

    #[test]
    fn lengths_of_records_count_themselves() {
        for (value, length) in [(1, 6), (4, 9), (5, 11), (93, 99), (94, 101), (992, 999), (993, 1001)] {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; value]);
            assert_eq!(out.len(), length, "{value}");
            assert!(out.starts_with(format!("{length} k=v").as_bytes()));
        }
    }

    #[test]
    fn what_fits_has_no_extension() {
        let header = Header { mode: 0o104_755, uid: 7, ..file(b"bin/su") };
        let head = head(&header, 3).expect("fits");
        assert_eq!(head.len(), BLOCK);
        assert!(head.starts_with(b"bin/su\0"));
        assert_eq!(&head[100..116], b"0004755\x000000007\0");
        assert_eq!(&head[124..136], b"00000000003\0");
        assert_eq!(&head[156..158], b"0\0");
        assert_eq!(&head[257..265], b"ustar\x0000");
        let sum: u32 = head.iter().map(|&byte| u32::from(byte)).sum();
        let sum = sum - head[148..156].iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
        assert_eq!(&head[148..155], format!("{sum:06o}\0").as_bytes());
        assert_eq!(padding(3).len(), 509);
        assert_eq!(padding(512).len(), 0);
    }

    #[test]
    fn what_does_not_fit_is_in_the_extension() {
        let name = [b'n'; 101];
        let link = [b'\xff'; 200];
        let xattrs = [(b"user.a".to_vec(), b"1\n\x00".to_vec())];
        let header = Header {
            link: &link,
            kind: Kind::Symlink,
            uid: 4_000_000_000,
            mtime: -5,
            xattrs: &xattrs,
            ..file(&name)
        };
        let head = head(&header, 0).expect("fits");
        let records = records(&head);
        for part in [
            " uid=4000000000\n",
            " mtime=-5\n",
            &format!(" path={}\n", "n".repeat(101)),
            " linkpath=\u{fffd}",
            " SCHILY.xattr.user.a=1\n\0\n",
        ] {
            assert!(records.contains(part), "{part}: {records}");
        }
        let big = super::head(&file(b"big"), 9 << 30).expect("fits");
        assert!(self::records(&big).contains(" size=9663676416\n"));
        let small = super::head(&file(b"most"), MAX_LONG).expect("fits");
        assert_eq!(small.len(), BLOCK);
    }

    #[test]
    fn fractions_of_times() {
        for (seconds, nanoseconds, text) in [
            (5, 0, "5"),
            (-5, 0, "-5"),
            (5, 20, "5.000000020"),
            (-2, 500_000_000, "-1.500000000"),
            (-1, 1, "-0.999999999"),
            (0, 7, "0.000000007"),
        ] {
            assert_eq!(time(seconds, nanoseconds), text);
        }
    }

    #[test]
    fn long_names_without_extensions() {
        let (path, link) = ([b'n'; 150], [b'l'; 99]);
        let header = Header { link: &link, kind: Kind::Symlink, mtime: 7, ..file(&path) };
        let head = gnu_head(&header, 0).expect("fits");
        assert_eq!(head.len(), 3 * BLOCK);
        assert!(head.starts_with(b"././@LongLink\0") && head[156] == b'L');
        assert_eq!(&head[124..136], b"00000000227\0");
        assert_eq!(&head[BLOCK..BLOCK + 151], [&path[..], b"\0"].concat());
        assert_eq!(&head[2 * BLOCK..][..100], [&path[..99], b"\0"].concat());
        assert_eq!((head[2 * BLOCK + 156], &head[2 * BLOCK + 157..][..99]), (b'2', &link[..]));
        assert!(gnu_head(&file(b"big"), MAX_LONG + 1).is_err());
        assert!(gnu_head(&Header { uid: 1 << 21, ..file(b"far") }, 0).is_err());
    }

    #[test]
    fn holes_are_told_and_not_stored() {
        let map = [Segment { offset: 4096, length: 10 }, Segment { offset: 1 << 20, length: 0 }];
        let (head, data) = sparse_head(&file(b"sparse"), 1 << 20, &map).expect("fits");
        assert_eq!(data, 10);
        assert!(records(&head).contains(" GNU.sparse.name=sparse\n"));
        assert!(records(&head).contains(" GNU.sparse.realsize=1048576\n"));
        let lines = &head[head.len() - BLOCK..];
        assert!(lines.starts_with(b"2\n4096\n10\n1048576\n0\n\0"));
        assert_eq!(&head[head.len() - 2 * BLOCK + 124..][..12], b"00000001012\0");
    }
}
