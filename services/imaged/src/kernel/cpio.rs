//! Writing cpio archives in the form the kernel unpacks (newc). The same entries give the same bytes.

const TRAILER: &str = "TRAILER!!!";

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
}
