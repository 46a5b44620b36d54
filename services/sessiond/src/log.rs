//! The files in which a session's output is kept: records of [`banger_core::spool`], as the guest
//! sent them.
//!
//! A file is named after the offset it begins at, `log-00000000000000000000`. When one has
//! [`FILE_SIZE`] bytes the next is begun, and [`FILES`] of them are kept. A service that was killed
//! while it wrote leaves part of a record at the end, which [`Log::open`] cuts off: the guest
//! was not told that it is here, and sends it again.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use banger_core::spool::{HEADER, Header, MAX_DATA};

const FILE_SIZE: u64 = 8 << 20;
const FILES: usize = 2;
const PREFIX: &str = "log-";

/// The end of the log, for the one who writes it.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    file: File,
    /// Bytes of whole records in the file.
    length: u64,
    next: u64,
}

/// A record as it is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub header: Header,
    pub data: Vec<u8>,
}

/// What is asked of a log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Records from this time on, microseconds since 1970.
    pub since_usec: Option<u64>,
    /// This many lines from the end.
    pub tail: Option<u64>,
}

impl Log {
    /// Opens the log in a directory, or begins one.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let last = files(directory)?.pop();
        let (base, path) = last.unwrap_or_else(|| (0, path(directory, 0)));
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut reader = Reader::new(&mut file, base);
        while reader.skip()?.is_some() {}
        let (length, next) = (reader.length, reader.next);
        file.set_len(length)?;
        Ok(Self { directory: directory.to_owned(), file, length, next })
    }

    /// The offset that comes next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Adds whole records, of which the last ends at `next`.
    pub fn append(&mut self, records: &[u8], next: u64) -> io::Result<()> {
        if self.length >= FILE_SIZE {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(records) {
            // A disk that is full takes part of it.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += records.len() as u64;
        self.next = next;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = path(&self.directory, self.next);
        self.file = OpenOptions::new().append(true).create(true).open(path)?;
        self.length = self.file.metadata()?.len();
        let mut files = files(&self.directory)?;
        files.truncate(files.len().saturating_sub(FILES));
        files.into_iter().try_for_each(|(_, path)| std::fs::remove_file(path))
    }
}

/// Cuts off what ends after the offset `end`. Nobody may be writing.
pub fn cut_off(directory: &Path, end: u64) -> io::Result<()> {
    // The last first: whatever this is cut off by, what is left is a log.
    for (base, path) in files(directory)?.into_iter().rev() {
        if base > end {
            std::fs::remove_file(path)?;
            continue;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut reader = Reader::new(&mut file, base);
        let mut length = 0;
        while let Some((header, _)) = reader.skip()?
            && header.end() <= end
        {
            length = reader.length;
        }
        file.set_len(length)?;
    }
    Ok(())
}

/// Where to begin to read, for what is wanted.
pub fn begin(directory: &Path, wanted: Wanted) -> io::Result<u64> {
    let mut starts = Starts::default();
    let mut end = 0;
    let mut begin = None;
    for_each(directory, 0, |record| {
        if wanted.since_usec.is_none_or(|since| record.header.time_usec >= since) || begin.is_some() {
            begin.get_or_insert(record.header.offset);
            starts.count(&record, |_| {});
        }
        end = record.header.end();
        true
    })?;
    let Some(begin) = begin else { return Ok(end) };
    let Some(tail) = wanted.tail else { return Ok(begin) };
    // Counted twice, so that no number of lines takes memory.
    let skipped = starts.seen.saturating_sub(tail);
    let mut starts = Starts::default();
    let mut found = None;
    for_each(directory, begin, |record| {
        let mut number = starts.seen;
        starts.count(&record, |offset| {
            number += 1;
            found = found.or((number > skipped).then_some(offset));
        });
        found.is_none()
    })?;
    Ok(found.unwrap_or(end))
}

/// Counts the beginnings of lines.
#[derive(Debug)]
struct Starts {
    seen: u64,
    at_start: bool,
}

impl Default for Starts {
    fn default() -> Self {
        Self { seen: 0, at_start: true }
    }
}

impl Starts {
    fn count(&mut self, record: &Record, mut found: impl FnMut(u64)) {
        for (offset, &byte) in (record.header.offset..).zip(&record.data) {
            if self.at_start {
                self.seen += 1;
                found(offset);
            }
            self.at_start = byte == b'\n';
        }
    }
}

/// Records from an offset on, the first without the bytes before it, until they hold more than
/// `limit` bytes.
pub fn read(directory: &Path, from: u64, limit: usize) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut size = 0;
    for_each(directory, from, |record| {
        size += record.data.len() + HEADER;
        records.push(record);
        size < limit
    })?;
    Ok(records)
}

/// Visits records from an offset on, until one says that it is enough.
fn for_each(directory: &Path, from: u64, mut visit: impl FnMut(Record) -> bool) -> io::Result<()> {
    let files = files(directory)?;
    let first = files.partition_point(|(base, _)| *base <= from).saturating_sub(1);
    for (base, path) in &files[first..] {
        let mut file = match File::open(path) {
            Ok(file) => BufReader::new(file),
            // The writer has just gone on to another.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut reader = Reader::new(&mut file, *base);
        while let Some((header, data)) = reader.skip()? {
            if header.end() > from && !visit(cut(header, data, from)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A record without what is before `from`.
fn cut(header: Header, data: &[u8], from: u64) -> Record {
    let before = from.saturating_sub(header.offset) as usize;
    let data = data[before..].to_vec();
    Record { header: Header { offset: header.offset + before as u64, length: data.len(), ..header }, data }
}

/// The files of a log by the offsets they begin at, in order.
fn files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let base = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        files.extend(base.map(|base| (base, entry.path())));
    }
    files.sort();
    Ok(files)
}

fn path(directory: &Path, base: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{base:020}"))
}

/// Reads whole records that go on from each other.
struct Reader<'a, R> {
    from: &'a mut R,
    data: Vec<u8>,
    /// Bytes of whole records so far.
    length: u64,
    next: u64,
}

impl<'a, R: Read> Reader<'a, R> {
    fn new(from: &'a mut R, base: u64) -> Self {
        Self { from, data: vec![0; MAX_DATA], length: 0, next: base }
    }

    /// The next record, or `None` where nothing whole follows.
    fn skip(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        let mut header = [0; HEADER];
        if !fill(self.from, &mut header)? {
            return Ok(None);
        }
        let Some(header) = Header::decode(&header).ok().filter(|header| header.offset >= self.next) else {
            return Ok(None);
        };
        let data = &mut self.data[..header.length];
        if !fill(self.from, data)? {
            return Ok(None);
        }
        self.length += (HEADER + header.length) as u64;
        self.next = header.end();
        Ok(Some((header, data)))
    }
}

/// Whether there was enough.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_core::spool::{STDERR, STDOUT};
    use proptest::prelude::*;

    fn record(offset: u64, time_usec: u64, stream: u8, data: &[u8]) -> Vec<u8> {
        let header = Header { offset, time_usec, stream, length: data.len() };
        [&header.encode()[..], data].concat()
    }

    fn append(log: &mut Log, time_usec: u64, data: &[u8]) {
        let offset = log.next();
        log.append(&record(offset, time_usec, STDOUT, data), offset + data.len() as u64).unwrap();
    }

    fn text(directory: &Path, from: u64) -> String {
        let records = read(directory, from, usize::MAX).unwrap();
        records.into_iter().map(|record| String::from_utf8(record.data).unwrap()).collect()
    }

    #[test]
    fn what_was_appended_is_read_from_anywhere() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path()).unwrap();
        append(&mut log, 1, b"hello ");
        append(&mut log, 2, b"world");
        assert_eq!(text(directory.path(), 0), "hello world");
        assert_eq!(text(directory.path(), 3), "lo world");
        assert_eq!(text(directory.path(), 11), "");
        let record = &read(directory.path(), 8, 1).unwrap()[0];
        assert_eq!((record.header.offset, record.header.length, record.header.time_usec), (8, 3, 2));
    }

    #[test]
    fn a_record_that_was_cut_off_comes_again() {
        let whole = record(5, 1, STDERR, b"again");
        for kept in 0..whole.len() {
            let directory = tempfile::tempdir().unwrap();
            let mut log = Log::open(directory.path()).unwrap();
            append(&mut log, 1, b"first");
            log.append(&whole[..kept], 10).unwrap();
            let mut log = Log::open(directory.path()).unwrap();
            assert_eq!(log.next(), 5, "{kept} bytes were left");
            log.append(&whole, 10).unwrap();
            assert_eq!(text(directory.path(), 0), "firstagain");
        }
    }

    #[test]
    fn it_is_bounded_and_says_what_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path()).unwrap();
        for _ in 0..600 {
            append(&mut log, 1, &[b'x'; MAX_DATA]);
        }
        let size: u64 = files(directory.path())
            .unwrap()
            .iter()
            .map(|(_, path)| std::fs::metadata(path).unwrap().len())
            .sum();
        assert!(size <= 2 * (FILE_SIZE + (HEADER + MAX_DATA) as u64), "{size}");
        let first = &read(directory.path(), 0, 1).unwrap()[0];
        assert!(first.header.offset > 0, "the gap shows");
        let next = log.next();
        assert_eq!(Log::open(directory.path()).unwrap().next(), next);
    }

    #[test]
    fn an_empty_file_after_a_rotation_keeps_the_offset() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path()).unwrap();
        append(&mut log, 1, b"hello");
        log.rotate().unwrap();
        assert_eq!(Log::open(directory.path()).unwrap().next(), 5);
    }

    #[test]
    fn it_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path()).unwrap();
        append(&mut log, 1, b"one ");
        append(&mut log, 2, b"two ");
        log.rotate().unwrap();
        append(&mut log, 3, b"three ");
        append(&mut log, 4, b"four");
        // Further than it is, and then back, also over what is in another file.
        for (end, left) in
            [(99, "one two three four"), (14, "one two three "), (13, "one two "), (4, "one "), (0, "")]
        {
            cut_off(directory.path(), end).unwrap();
            assert_eq!(text(directory.path(), 0), left, "{end}");
            assert_eq!(Log::open(directory.path()).unwrap().next(), left.len() as u64, "{end}");
        }
        // What comes then goes on from there.
        append(&mut Log::open(directory.path()).unwrap(), 5, b"again");
        assert_eq!(text(directory.path(), 0), "again");
    }

    #[test]
    fn times_and_lines() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path()).unwrap();
        for (time, text) in [(10, "one\ntw"), (20, "o\nthree\nfour\n"), (30, "five")] {
            append(&mut log, time, text.as_bytes());
        }
        let from = |since_usec, tail| {
            let from = begin(directory.path(), Wanted { since_usec, tail }).unwrap();
            text(directory.path(), from)
        };
        assert_eq!(from(None, None), "one\ntwo\nthree\nfour\nfive");
        assert_eq!(from(None, Some(1)), "five");
        assert_eq!(from(None, Some(2)), "four\nfive");
        assert_eq!(from(None, Some(4)), "two\nthree\nfour\nfive");
        assert_eq!(from(None, Some(99)), "one\ntwo\nthree\nfour\nfive");
        assert_eq!(from(None, Some(0)), "");
        assert_eq!(from(Some(20), None), "o\nthree\nfour\nfive");
        assert_eq!(from(Some(20), Some(2)), "four\nfive");
        assert_eq!(from(Some(31), None), "");
    }

    proptest! {
        #[test]
        fn files_of_nonsense_are_no_records(bytes: Vec<u8>) {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(path(directory.path(), 0), &bytes).unwrap();
            let log = Log::open(directory.path()).unwrap();
            prop_assert!(log.length <= bytes.len() as u64);
            prop_assert_eq!(std::fs::metadata(path(directory.path(), 0)).unwrap().len(), log.length);
        }
    }
}
