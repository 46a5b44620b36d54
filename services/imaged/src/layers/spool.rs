//! The headers of a layer's entries, kept in a file: an image may have very many of them, and they
//! are read but once more, from the first to the last.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use crate::tar::{Header, Kind};

/// What is written down. The form is nobody else's business, and may be another one tomorrow.
#[derive(Debug)]
pub struct Spool {
    out: BufWriter<File>,
    count: u64,
}

/// What was written down, to be read back.
#[derive(Debug)]
pub struct Headers {
    file: BufReader<File>,
    left: u64,
}

impl Spool {
    /// `file` is empty, open for reading and writing, and ours.
    pub fn new(file: File) -> Self {
        Self { out: BufWriter::new(file), count: 0 }
    }

    pub fn add(&mut self, header: &Header) -> io::Result<()> {
        self.count += 1;
        let Header { path, link, kind, mode, uid, gid, mtime, mtime_nsec, size, major, minor, xattrs } =
            header;
        self.out.write_all(&[*kind as u8])?;
        for number in [u32::from(*mode), *uid, *gid, *mtime_nsec, *major, *minor, xattrs.len() as u32] {
            self.out.write_all(&number.to_le_bytes())?;
        }
        self.out.write_all(&mtime.to_le_bytes())?;
        self.out.write_all(&size.to_le_bytes())?;
        self.bytes(path)?;
        self.bytes(link)?;
        for (name, value) in xattrs {
            self.bytes(name)?;
            self.bytes(value)?;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.out.write_all(bytes)
    }

    pub fn finish(self) -> io::Result<Headers> {
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Headers { file: BufReader::new(file), left: self.count })
    }
}

impl Headers {
    fn header(&mut self) -> io::Result<Header> {
        let kind = match self.array::<1>()?[0] {
            0 => Kind::File,
            1 => Kind::HardLink,
            2 => Kind::Symlink,
            3 => Kind::CharDevice,
            4 => Kind::BlockDevice,
            5 => Kind::Directory,
            6 => Kind::Fifo,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let mode = self.number()? as u16;
        let (uid, gid, mtime_nsec) = (self.number()?, self.number()?, self.number()?);
        let (major, minor, attributes) = (self.number()?, self.number()?, self.number()?);
        let mtime = i64::from_le_bytes(self.array()?);
        let size = u64::from_le_bytes(self.array()?);
        let (path, link) = (self.bytes()?, self.bytes()?);
        let xattrs =
            (0..attributes).map(|_| Ok((self.bytes()?, self.bytes()?))).collect::<io::Result<_>>()?;
        Ok(Header { path, link, kind, mode, uid, gid, mtime, mtime_nsec, size, major, minor, xattrs })
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.number()? as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Iterator for Headers {
    type Item = io::Result<Header>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(self.header())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = Kind> {
        use Kind::*;
        prop::sample::select(vec![File, HardLink, Symlink, CharDevice, BlockDevice, Directory, Fifo])
    }

    fn header() -> impl Strategy<Value = Header> {
        let names = (prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(any::<u8>(), 0..9));
        let numbers = (0..0o10000u16, any::<[u32; 5]>(), any::<(i64, u64)>());
        let xattrs = prop::collection::vec(any::<(Vec<u8>, Vec<u8>)>(), 0..3);
        (names, kind(), numbers, xattrs).prop_map(
            |((path, link), kind, (mode, numbers, (mtime, size)), xattrs)| {
                let [uid, gid, mtime_nsec, major, minor] = numbers;
                Header { path, link, kind, mode, uid, gid, mtime, mtime_nsec, size, major, minor, xattrs }
            },
        )
    }

    proptest! {
        #[test]
        fn gives_back_what_it_got(headers in prop::collection::vec(header(), 0..20)) {
            let mut spool = Spool::new(tempfile::tempfile().expect("tempfile"));
            for header in &headers {
                spool.add(header).expect("writes");
            }
            let back: Vec<Header> =
                spool.finish().expect("rewinds").collect::<io::Result<_>>().expect("reads");
            prop_assert_eq!(back, headers);
        }
    }
}
