//! Where the payload of an RPM begins.
//!
//! A lead of 96 bytes, a signature header, a header, then the payload: a compressed cpio archive. Both
//! headers have the same form, and the first is padded to a multiple of eight bytes
//! (<https://rpm-software-management.github.io/rpm/manual/format_v4.html>).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

const LEAD: u64 = 96;
const MAGIC: &[u8] = b"\xed\xab\xee\xdb";
const HEADER_MAGIC: &[u8] = b"\x8e\xad\xe8\x01";
const ENTRY: u64 = 16;

/// Whether a file begins like an RPM.
pub fn is_rpm(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Offset of the payload.
pub fn find_payload(file: &mut File) -> io::Result<u64> {
    let signature_end = skip_header(file, LEAD)?;
    skip_header(file, signature_end.next_multiple_of(8))
}

/// Where a header ends that begins at `start`.
fn skip_header(file: &mut File, start: u64) -> io::Result<u64> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an RPM package: a header is damaged");
    file.seek(SeekFrom::Start(start))?;
    let mut intro = [0u8; 16];
    file.read_exact(&mut intro).map_err(|_| bad())?;
    let number =
        |at: usize| u64::from(u32::from_be_bytes([intro[at], intro[at + 1], intro[at + 2], intro[at + 3]]));
    if !intro.starts_with(HEADER_MAGIC) {
        return Err(bad());
    }
    Ok(start + intro.len() as u64 + number(8) * ENTRY + number(12))
}
