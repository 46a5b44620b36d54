//! Tar archives entry by entry, also those that tar(1) would refuse to write.

/// An archive in the making.
#[derive(Debug, Default, Clone)]
pub struct Tar(Vec<u8>);

/// What a header says, but for the name and the size.
#[derive(Debug, Clone)]
pub struct Entry {
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
    pub link: Vec<u8>,
    pub device: (u32, u32),
}

impl Entry {
    pub fn new(kind: u8) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Self { kind, mode, uid: 0, gid: 0, mtime: 0, link: Vec::new(), device: (0, 0) }
    }
}

impl Tar {
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name.as_bytes(), &Entry::new(b'0'), content)
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(name.as_bytes(), &Entry::new(b'5'), b"")
    }

    /// A symbolic link (`2`) or a hard link (`1`).
    pub fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.entry(name.as_bytes(), &Entry { link: target.into(), ..Entry::new(kind) }, b"")
    }

    pub fn entry(mut self, name: &[u8], entry: &Entry, content: &[u8]) -> Self {
        self.header(name, entry, content.len() as u64);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A header alone. Numbers that are too large for octal digits get GNU's binary form; names that
    /// are too long are cut: say them in a PAX or GNU header before.
    pub fn header(&mut self, name: &[u8], entry: &Entry, size: u64) {
        let mut block = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, &number(entry.mode.into(), 8));
        put(108, &number(entry.uid.into(), 8));
        put(116, &number(entry.gid.into(), 8));
        put(124, &number(size, 12));
        put(136, &number(entry.mtime.into(), 12));
        put(148, b"        ");
        put(156, &[entry.kind]);
        put(157, &entry.link[..entry.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, &number(entry.device.0.into(), 8));
        put(337, &number(entry.device.1.into(), 8));
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(b"pax", &Entry::new(b'x'), &data)
    }

    /// GNU's long name (`L`) or long link target (`K`) for the next entry.
    pub fn gnu_long(self, kind: u8, name: &[u8]) -> Self {
        self.entry(b"././@LongLink", &Entry::new(kind), &[name, b"\0"].concat())
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// Without the end that an archive has.
    pub fn cut(self) -> Vec<u8> {
        self.0
    }
}

fn number(number: u64, width: usize) -> Vec<u8> {
    let digits = format!("{number:0digits$o}\0", digits = width - 1);
    if digits.len() == width {
        return digits.into_bytes();
    }
    let mut binary = [&[0; 8], number.to_be_bytes().as_slice()].concat().split_off(16 - width);
    binary[0] |= 0x80;
    binary
}
