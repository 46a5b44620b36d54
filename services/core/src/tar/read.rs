//! Reading tar streams: ustar, PAX and GNU, with extended attributes and sparse files.
//!
//! Our own, because the stream comes from strangers: every header extension is bounded, names stay
//! bytes, and nothing is ever unpacked to a path. Of an archive only one header and one buffer
//! are in memory.

use std::io::{self, Read};

use super::{BLOCK, Segment};

/// What one entry may ask of us.
mod limits {
    /// The largest header extension (PAX records, long names) of one entry.
    pub const TAR_EXTENSION: u64 = 1 << 20;
    /// Records of one PAX header.
    pub const TAR_RECORDS: usize = 1 << 16;
    /// Extended attributes of one entry.
    pub const XATTRS: usize = 256;
    /// PATH_MAX of Linux, its last byte being the terminator.
    pub const PATH: usize = 4095;
    /// NAME_MAX of Linux.
    pub const NAME: usize = 255;
    /// XATTR_SIZE_MAX of Linux.
    pub const XATTR: usize = 65536;
}

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{reason}")]
    Invalid { entry: String, reason: String },
    #[error("the archive ends within an entry")]
    Truncated { entry: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

type Result<T> = std::result::Result<T, TarError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub path: Vec<u8>,
    /// Target of a link, else empty.
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds after that.
    pub mtime: i64,
    pub mtime_nsec: u32,
    /// Bytes of the content, holes included.
    pub size: u64,
    pub major: u32,
    pub minor: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The content of the present entry as far as it is not read yet.
#[derive(Debug, Default)]
struct Body {
    /// Bytes left in the stream, without padding.
    stored: u64,
    padding: u64,
    position: u64,
    size: u64,
    /// Empty for a file without holes.
    map: Vec<Segment>,
    next_segment: usize,
}

pub struct TarReader<R> {
    inner: R,
    body: Body,
    global: Vec<(Vec<u8>, Vec<u8>)>,
    /// For error messages.
    current: String,
    /// A block of zeros came, which is the end that an archive gives itself.
    ended: bool,
}

/// What PAX and GNU extension headers said about the next entry.
#[derive(Default)]
struct Extension {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
    used: u64,
}

/// Sparse description in PAX records.
#[derive(Default)]
struct Sparse {
    major: Option<u64>,
    minor: Option<u64>,
    real_size: Option<u64>,
    map: Vec<u64>,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, body: Body::default(), global: Vec::new(), current: String::new(), ended: false }
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Whether the archive came to the end that it gives itself, and did not just stop.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The next entry, or `None` at the end of the archive. What was not read of the last entry's
    /// content is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Header>> {
        self.finish_body()?;
        let mut extension = Extension::default();
        loop {
            let mut block = [0u8; BLOCK];
            if !self.read_header(&mut block)? {
                return match extension.used {
                    0 => Ok(None),
                    _ => Err(self.truncated()),
                };
            }
            if block.iter().all(|byte| *byte == 0) {
                self.ended = true;
                return Ok(None);
            }
            self.check(&block)?;
            let size = self.number(&block[124..136], "size")?;
            match block[156] {
                b'x' => {
                    let data = self.read_extension(size, &mut extension)?;
                    extension.pax.extend(self.records(&data)?);
                }
                b'g' => {
                    let data = self.read_extension(size, &mut extension)?;
                    self.global = self.records(&data)?;
                    extension.used = 0;
                }
                b'L' => extension.long_path = Some(until_nul(self.read_extension(size, &mut extension)?)),
                b'K' => extension.long_link = Some(until_nul(self.read_extension(size, &mut extension)?)),
                _ => return self.entry(&block, size, extension).map(Some),
            }
        }
    }

    /// Reads on in the content of the present entry; 0 at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.body.size - self.body.position;
        let want = left.min(buffer.len() as u64);
        if want == 0 {
            return Ok(0);
        }
        if self.body.map.is_empty() {
            let got = self.read_stored(&mut buffer[..want as usize])?;
            self.body.position += got as u64;
            return Ok(got);
        }
        while let Some(segment) = self.body.map.get(self.body.next_segment).copied() {
            let end = segment.offset + segment.length;
            if self.body.position >= end {
                self.body.next_segment += 1;
                continue;
            }
            if self.body.position < segment.offset {
                let hole = want.min(segment.offset - self.body.position) as usize;
                buffer[..hole].fill(0);
                self.body.position += hole as u64;
                return Ok(hole);
            }
            let want = want.min(end - self.body.position);
            let got = self.read_stored(&mut buffer[..want as usize])?;
            self.body.position += got as u64;
            return Ok(got);
        }
        buffer[..want as usize].fill(0);
        self.body.position += want;
        Ok(want as usize)
    }

    /// Skips a hole that the content goes on with here, which [`TarReader::read`] would give as zeros.
    /// Returns its length; 0 if there is none, or none left.
    pub fn skip_hole(&mut self) -> u64 {
        let Body { position, size, map, next_segment, .. } = &mut self.body;
        if map.is_empty() {
            return 0;
        }
        while map.get(*next_segment).is_some_and(|segment| *position >= segment.offset + segment.length) {
            *next_segment += 1;
        }
        let data = map.get(*next_segment).map_or(*size, |segment| segment.offset);
        let hole = data.saturating_sub(*position);
        *position += hole;
        hole
    }

    /// Reads a whole content of at most `limit` bytes.
    pub fn read_all(&mut self, limit: u64) -> Result<Vec<u8>> {
        let left = self.body.size - self.body.position;
        if left > limit {
            return Err(self.invalid(format!("is {left} bytes long, more than {limit}")));
        }
        let mut content = vec![0; left as usize];
        let mut filled = 0;
        while filled < content.len() {
            filled += self.read(&mut content[filled..])?;
        }
        Ok(content)
    }

    /// Reads from the stream into `buffer`, not past what is stored for the entry.
    fn read_stored(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let want = self.body.stored.min(buffer.len() as u64) as usize;
        let got = read_some(&mut self.inner, &mut buffer[..want])?;
        if got == 0 {
            return Err(self.truncated());
        }
        self.body.stored -= got as u64;
        Ok(got)
    }

    fn finish_body(&mut self) -> Result<()> {
        let rest = self.body.stored + self.body.padding;
        self.body = Body::default();
        self.skip(rest)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<()> {
        let mut scratch = [0u8; 16384];
        while bytes > 0 {
            let want = bytes.min(scratch.len() as u64) as usize;
            match read_some(&mut self.inner, &mut scratch[..want])? {
                0 => return Err(self.truncated()),
                got => bytes -= got as u64,
            }
        }
        Ok(())
    }

    /// Fills a block; `false` at a clean end of the stream.
    fn read_header(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.inner, &mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(self.truncated()),
                got => filled += got,
            }
        }
        Ok(true)
    }

    fn read_extension(&mut self, size: u64, extension: &mut Extension) -> Result<Vec<u8>> {
        extension.used += size.max(1);
        if extension.used > limits::TAR_EXTENSION {
            return Err(
                self.invalid(format!("has header extensions of more than {} bytes", limits::TAR_EXTENSION))
            );
        }
        let mut data = vec![0; size as usize];
        self.inner.read_exact(&mut data).map_err(|error| self.ended(error))?;
        self.skip(padding(size))?;
        Ok(data)
    }

    fn entry(&mut self, block: &[u8; BLOCK], size: u64, extension: Extension) -> Result<Header> {
        let mut path = extension.long_path.unwrap_or_else(|| header_path(block));
        let mut link = extension.long_link.unwrap_or_else(|| field(&block[157..257]));
        self.current = lossy(&path);
        let mut stored = size;
        let mut uid = self.number(&block[108..116], "owner")?;
        let mut gid = self.number(&block[116..124], "group")?;
        let mut mtime = (self.signed(&block[136..148], "time")?, 0);
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut sparse = Sparse::default();
        let mut sparse_path = None;

        for (key, value) in self.global.iter().chain(&extension.pax) {
            match key.as_slice() {
                b"path" => path = value.clone(),
                b"linkpath" => link = value.clone(),
                b"size" => stored = decimal(value).ok_or_else(|| self.invalid("has a bad size record"))?,
                b"uid" => uid = decimal(value).ok_or_else(|| self.invalid("has a bad owner record"))?,
                b"gid" => gid = decimal(value).ok_or_else(|| self.invalid("has a bad group record"))?,
                b"mtime" => mtime = pax_time(value).ok_or_else(|| self.invalid("has a bad time record"))?,
                b"GNU.sparse.name" => sparse_path = Some(value.clone()),
                b"GNU.sparse.major" => sparse.major = decimal(value),
                b"GNU.sparse.minor" => sparse.minor = decimal(value),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.real_size = decimal(value),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    sparse.map.push(decimal(value).ok_or_else(|| self.invalid("has a bad sparse record"))?);
                }
                b"GNU.sparse.map" => {
                    sparse.map = value
                        .split(|byte| *byte == b',')
                        .map(|number| decimal(number).ok_or_else(|| self.invalid("has a bad sparse map")))
                        .collect::<Result<_>>()?;
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        if value.len() > limits::XATTR || name.len() > limits::NAME {
                            return Err(self.invalid("has an extended attribute that is too long"));
                        }
                        xattrs.retain(|(known, _)| known != name);
                        if xattrs.len() == limits::XATTRS {
                            let most = limits::XATTRS;
                            return Err(self.invalid(format!("has more than {most} extended attributes")));
                        }
                        xattrs.push((name.to_vec(), value.clone()));
                    }
                }
            }
        }
        if let Some(name) = sparse_path {
            path = name;
        }
        self.current = lossy(&path);
        if path.len() > limits::PATH || link.len() > limits::PATH {
            return Err(self.invalid(format!("has a name of more than {} bytes", limits::PATH)));
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(self.invalid("has a zero byte in a name"));
        }

        let kind = match block[156] {
            b'0' | b'7' | b'S' => Kind::File,
            // Before ustar, a directory was a file with a slash at the end.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(self.invalid(format!("has the unknown type {:?}", other as char))),
        };
        // Some archivers give links and directories the size of what they stand for, and no content.
        if kind != Kind::File {
            stored = match kind {
                Kind::HardLink | Kind::Symlink | Kind::Directory => 0,
                _ => stored,
            };
        }

        let padding = padding(stored);
        let mut map = Vec::new();
        let mut real = stored;
        if kind == Kind::File {
            if block[156] == b'S' {
                (map, real) = self.gnu_sparse(block)?;
            } else if sparse.major == Some(1) && sparse.minor == Some(0) {
                (map, stored) = self.pax_sparse(stored)?;
                real = sparse.real_size.ok_or_else(|| self.invalid("is sparse without a size"))?;
            } else if !sparse.map.is_empty() || sparse.real_size.is_some() {
                map = segments(&sparse.map).ok_or_else(|| self.invalid("has a bad sparse map"))?;
                real = sparse.real_size.ok_or_else(|| self.invalid("is sparse without a size"))?;
            }
            if block[156] == b'S' || sparse.real_size.is_some() {
                self.check_map(&map, stored, real)?;
                if map.is_empty() {
                    map.push(Segment { offset: 0, length: 0 });
                }
            }
        }
        self.body = Body { stored, padding, position: 0, size: real, map, next_segment: 0 };

        let id = |number: u64, what: &str| {
            u32::try_from(number).map_err(|_| self.invalid(format!("has the impossible {what} {number}")))
        };
        Ok(Header {
            mode: (self.number(&block[100..108], "mode")? & 0o7777) as u16,
            uid: id(uid, "owner")?,
            gid: id(gid, "group")?,
            mtime: mtime.0,
            mtime_nsec: mtime.1,
            size: if kind == Kind::File { real } else { 0 },
            major: id(self.number(&block[329..337], "device")?, "device")?,
            minor: id(self.number(&block[337..345], "device")?, "device")?,
            path,
            link,
            kind,
            xattrs,
        })
    }

    /// The old GNU form: four segments in the header, more in blocks behind it.
    fn gnu_sparse(&mut self, block: &[u8; BLOCK]) -> Result<(Vec<Segment>, u64)> {
        let mut numbers = Vec::new();
        self.gnu_segments(&block[386..482], &mut numbers)?;
        let mut more = block[482] != 0;
        while more {
            if numbers.len() as u64 * 8 > limits::TAR_EXTENSION {
                return Err(self.invalid("has too many sparse segments"));
            }
            let mut next = [0u8; BLOCK];
            self.inner.read_exact(&mut next).map_err(|error| self.ended(error))?;
            self.gnu_segments(&next[..504], &mut numbers)?;
            more = next[504] != 0;
        }
        let map = segments(&numbers).ok_or_else(|| self.invalid("has a bad sparse map"))?;
        Ok((map, self.number(&block[483..495], "size")?))
    }

    fn gnu_segments(&self, fields: &[u8], numbers: &mut Vec<u64>) -> Result<()> {
        for pair in fields.chunks_exact(24) {
            if pair[12] == 0 {
                break;
            }
            numbers.push(self.number(&pair[..12], "sparse map")?);
            numbers.push(self.number(&pair[12..], "sparse map")?);
        }
        Ok(())
    }

    /// PAX form 1.0: the map is decimal lines at the beginning of the content, padded to a block.
    fn pax_sparse(&mut self, stored: u64) -> Result<(Vec<Segment>, u64)> {
        let mut left = stored;
        let mut numbers = Vec::new();
        let mut number: Option<u64> = None;
        let mut wanted: Option<usize> = None;
        loop {
            let mut block = [0u8; BLOCK];
            left = left.checked_sub(BLOCK as u64).ok_or_else(|| self.invalid("has a bad sparse map"))?;
            self.inner.read_exact(&mut block).map_err(|error| self.ended(error))?;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        number = number
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|n| n.checked_add(u64::from(byte - b'0')));
                        if number.is_none() {
                            return Err(self.invalid("has a bad sparse map"));
                        }
                    }
                    b'\n' => {
                        let value = number.take().ok_or_else(|| self.invalid("has a bad sparse map"))?;
                        match wanted {
                            None if value > limits::TAR_EXTENSION / 16 => {
                                return Err(self.invalid("has too many sparse segments"));
                            }
                            None => wanted = Some(value as usize * 2),
                            Some(_) => numbers.push(value),
                        }
                    }
                    _ => return Err(self.invalid("has a bad sparse map")),
                }
                if wanted == Some(numbers.len()) {
                    let map = segments(&numbers).ok_or_else(|| self.invalid("has a bad sparse map"))?;
                    return Ok((map, left));
                }
            }
        }
    }

    /// Segments must lie in order within the file, and hold exactly what is stored.
    fn check_map(&self, map: &[Segment], stored: u64, real: u64) -> Result<()> {
        let mut end = 0u64;
        let mut total = 0u64;
        for segment in map {
            let next = segment.offset.checked_add(segment.length).filter(|next| *next <= real);
            match next {
                Some(next) if segment.offset >= end => end = next,
                _ => return Err(self.invalid("has a bad sparse map")),
            }
            total += segment.length;
        }
        if total == stored {
            Ok(())
        } else {
            Err(self.invalid("has a sparse map that does not fit its content"))
        }
    }

    fn check(&mut self, block: &[u8; BLOCK]) -> Result<()> {
        let wanted = octal(&block[148..156]);
        let sum = |signed: bool| -> i64 {
            block
                .iter()
                .enumerate()
                .map(|(at, byte)| match at {
                    148..156 => 32,
                    _ if signed => i64::from(*byte as i8),
                    _ => i64::from(*byte),
                })
                .sum()
        };
        if wanted.is_some_and(|wanted| wanted as i64 == sum(false) || wanted as i64 == sum(true)) {
            return Ok(());
        }
        Err(self.invalid("the header behind it has a wrong checksum: not a tar archive, or damaged"))
    }

    /// A numeric field that cannot be negative.
    fn number(&self, field: &[u8], what: &str) -> Result<u64> {
        u64::try_from(self.signed(field, what)?).map_err(|_| self.invalid(format!("has a negative {what}")))
    }

    /// A numeric field: octal digits, or big-endian binary marked by its top bit.
    fn signed(&self, field: &[u8], what: &str) -> Result<i64> {
        let bad = || self.invalid(format!("has a bad {what}"));
        if field[0] & 0x80 == 0 {
            return octal(field).and_then(|n| i64::try_from(n).ok()).ok_or_else(bad);
        }
        // Bit 6 of the first byte is the sign; bit 7 only marks the form.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] | 0x80 } else { field[0] & 0x7f };
        let mut value: i128 = i128::from(first as i8);
        for byte in &field[1..] {
            value = value << 8 | i128::from(*byte);
        }
        i64::try_from(value).map_err(|_| bad())
    }

    fn records(&self, mut data: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut records = Vec::new();
        let bad = || self.invalid("the PAX header behind it is malformed");
        while !data.is_empty() && data[0] != 0 {
            let space = data.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = decimal(&data[..space]).ok_or_else(bad)?;
            let length = usize::try_from(length).ok().filter(|n| *n <= data.len() && *n > space + 1);
            let (record, rest) = data.split_at(length.ok_or_else(bad)?);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            if records.len() == limits::TAR_RECORDS {
                return Err(self.invalid(format!("has more than {} PAX records", limits::TAR_RECORDS)));
            }
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            data = rest;
        }
        Ok(records)
    }

    fn invalid(&self, reason: impl Into<String>) -> TarError {
        TarError::Invalid { entry: self.current.clone(), reason: reason.into() }
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated { entry: self.current.clone() }
    }

    fn ended(&self, error: io::Error) -> TarError {
        if error.kind() == io::ErrorKind::UnexpectedEof { self.truncated() } else { error.into() }
    }
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn field(bytes: &[u8]) -> Vec<u8> {
    until_nul(bytes.to_vec())
}

fn header_path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = field(&block[..100]);
    // GNU tar uses the place of the prefix for other things.
    if &block[257..263] != b"ustar\0" || block[345] == 0 {
        return name;
    }
    let mut path = field(&block[345..500]);
    path.push(b'/');
    path.extend(name);
    path
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c| c == ' ' || c == '\0');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Seconds with an optional fraction and sign, as seconds and the nanoseconds after them; of the
/// fraction what is below a nanosecond is dropped.
fn pax_time(bytes: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

fn segments(numbers: &[u64]) -> Option<Vec<Segment>> {
    if !numbers.len().is_multiple_of(2) {
        return None;
    }
    Some(numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
}

/// The name of an entry, which archives also write with `./` before it.
pub fn without_dot(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"./").unwrap_or(path)
}

/// A name for messages: cut, and only what can be shown.
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar as write;

    #[test]
    fn times_with_fractions() {
        for (text, time) in [
            ("0", Some((0, 0))),
            ("1700000000.25", Some((1_700_000_000, 250_000_000))),
            ("5.1234567899", Some((5, 123_456_789))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("1.", Some((1, 0))),
            ("1.-5", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(pax_time(text.as_bytes()), time, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let xattrs = [(b"user.a".to_vec(), b"=\n\0".to_vec())];
        let path = [b'n'; 300];
        let header = write::Header {
            path: &path,
            link: b"",
            kind: write::Kind::File,
            mode: 0o4755,
            uid: 4_000_000_000,
            gid: 7,
            mtime: -2,
            mtime_nsec: 500_000_000,
            xattrs: &xattrs,
        };
        let map = [Segment { offset: 1 << 20, length: 3 }];
        let (mut archive, data) = write::sparse_head(&header, 2 << 20, &map).expect("fits");
        archive.extend(b"abc");
        archive.extend(write::padding(data));
        archive.extend(write::END);
        let mut reader = TarReader::new(archive.as_slice());
        let read = reader.next_entry().expect("reads").expect("an entry");
        assert_eq!((read.path.as_slice(), read.kind, read.mode), (&path[..], Kind::File, 0o4755));
        assert_eq!((read.uid, read.gid, read.mtime, read.mtime_nsec), (4_000_000_000, 7, -2, 500_000_000));
        assert_eq!((read.size, read.xattrs.as_slice()), (2 << 20, &xattrs[..]));
        assert_eq!(reader.skip_hole(), 1 << 20);
        let mut content = [0; 8];
        assert_eq!(reader.read(&mut content).expect("reads"), 3);
        assert_eq!(&content[..3], b"abc");
        assert_eq!(reader.skip_hole(), (1 << 20) - 3);
        assert!(reader.next_entry().expect("reads").is_none() && reader.is_ended());
    }
}
