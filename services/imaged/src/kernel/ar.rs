//! The outer archive of a .deb: which part of the file is `data.tar`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: usize = 60;

/// Whether a file begins like a .deb.
pub fn is_ar(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Offset and length of the member `data.tar.*`, whatever it is compressed with.
pub fn find_data(file: &mut File) -> io::Result<(u64, u64)> {
    let bad =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("not a Debian package: {what}"));
    let mut position = MAGIC.len() as u64;
    for _ in 0..16 {
        file.seek(SeekFrom::Start(position))?;
        let mut header = [0u8; HEADER];
        file.read_exact(&mut header).map_err(|_| bad("it has no data.tar"))?;
        let field =
            |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).unwrap_or_default().trim();
        if &header[58..] != b"`\n" {
            return Err(bad("a member's header is damaged"));
        }
        let size: u64 = field(48..58).parse().map_err(|_| bad("a member has no size"))?;
        let start = position + HEADER as u64;
        if field(0..16).starts_with("data.tar") {
            return Ok((start, size));
        }
        position = start + size + size % 2;
    }
    Err(bad("it has no data.tar"))
}
