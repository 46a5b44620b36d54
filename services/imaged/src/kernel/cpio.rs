//! cpio archives in the form the kernel unpacks (newc): writing the initramfs, where the same entries
//! give the same bytes, and reading what RPM packages hold.

use std::io::{self, Read};

const TRAILER: &str = "TRAILER!!!";
const HEADER: usize = 110;

#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    pub fn directory(&mut self, path: &str) {
        self.entry(path, 0o040_755, 2, (0, 0), &[]);
    }

    pub fn file(&mut self, path: &str, executable: bool, content: &[u8]) {
        self.entry(path, if executable { 0o100_755 } else { 0o100_644 }, 1, (0, 0), content);
    }

    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, 0o020_000 | mode, 1, (major, minor), &[]);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.header(TRAILER, 0, 0, 1, (0, 0), 0);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        self.header(path, self.entries, mode, links, device, content.len() as u32);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn header(&mut self, path: &str, inode: u32, mode: u32, links: u32, device: (u32, u32), size: u32) {
        let name = path.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        let length = self.bytes.len().next_multiple_of(to);
        self.bytes.resize(length, 0);
    }
}

/// Reads archives as RPM packages have them (newc, with or without checksums). The content of an entry
/// is read from the reader itself, and what is not read of it is skipped.
pub struct CpioReader<R> {
    inner: R,
    left: u64,
    padding: u64,
}

/// No path is longer.
const MAX_PATH: u64 = 4096;

impl<R: Read> CpioReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// The path and the mode of the next entry, or `None` at the end.
    pub fn next_entry(&mut self) -> io::Result<Option<(String, u32)>> {
        self.skip(self.left + self.padding)?;
        let mut header = [0u8; HEADER];
        self.inner.read_exact(&mut header)?;
        if !header.starts_with(b"07070") || !matches!(header[5], b'1' | b'2') {
            return Err(bad("an entry is damaged"));
        }
        let field = |number: usize| {
            let text = std::str::from_utf8(&header[6 + 8 * number..14 + 8 * number]).unwrap_or_default();
            u32::from_str_radix(text, 16).map_err(|_| bad("an entry is damaged"))
        };
        let (mode, size, length) = (field(1)?, u64::from(field(6)?), u64::from(field(11)?));
        if !(1..=MAX_PATH).contains(&length) {
            return Err(bad("an entry has an impossible name"));
        }
        let mut path = vec![0; length as usize];
        self.inner.read_exact(&mut path)?;
        path.pop();
        self.skip(padding(HEADER as u64 + length))?;
        let path = String::from_utf8_lossy(&path).into_owned();
        if path == TRAILER {
            return Ok(None);
        }
        (self.left, self.padding) = (size, padding(size));
        Ok(Some((path, mode)))
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.inner.by_ref().take(count), &mut io::sink())?;
        if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl<R: Read> Read for CpioReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        let got = self.inner.read(&mut buffer[..want])?;
        if want > 0 && got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= got as u64;
        Ok(got)
    }
}

fn padding(length: u64) -> u64 {
    length.next_multiple_of(4) - length
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_cpio_reads() {
        let mut cpio = Cpio::default();
        cpio.directory("dev");
        cpio.char_device("dev/console", 0o600, 5, 1);
        cpio.file("init", true, b"hello");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701000000010000"), "{text}");
        assert_eq!(text.matches("070701").count(), 4);
        // The content of the only file begins at a multiple of four.
        assert_eq!(text.find("hello").expect("content") % 4, 0);
    }

    #[test]
    fn reads_what_it_wrote() {
        let mut cpio = Cpio::default();
        cpio.directory("lib");
        cpio.file("lib/one", false, b"one");
        cpio.file("lib/two", false, b"twotwo");
        let bytes = cpio.finish();
        let mut reader = CpioReader::new(bytes.as_slice());
        assert_eq!(reader.next_entry().expect("reads"), Some(("lib".into(), 0o040_755)));
        assert_eq!(reader.next_entry().expect("reads"), Some(("lib/one".into(), 0o100_644)));
        assert!(reader.next_entry().expect("reads").is_some());
        let mut content = String::new();
        reader.read_to_string(&mut content).expect("reads");
        assert_eq!(content, "twotwo");
        assert_eq!(reader.next_entry().expect("reads"), None);
        for cut in [0, 50, 112, 130, 300] {
            let mut reader = CpioReader::new(&bytes[..cut]);
            while let Ok(Some(_)) = reader.next_entry() {}
            assert!(reader.next_entry().is_err(), "{cut}");
        }
        assert!(CpioReader::new([b'x'; 200].as_slice()).next_entry().is_err());
    }
}
