//! What sessions put out, as it is kept and as it travels: records one after the other.
//!
//! A record is a header of [`HEADER`] bytes and its data. All numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | offset: how many bytes the session had put out before, on all streams together |
//! | 8 | time when it was read from the command, microseconds since 1970, by the guest's clock |
//! | 1 | stream: [`STDOUT`], which a terminal's output is, too, or [`STDERR`] |
//! | 4 | length of the data, 1 to [`MAX_DATA`] |
//!
//! Offsets never go back. One that is higher than the end of the record before says that the bytes
//! between are lost.

use std::fmt;

pub const HEADER: usize = 21;
/// The most data in one record.
pub const MAX_DATA: usize = 64 * 1024;

pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;

/// What stands before the data of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub offset: u64,
    pub time_usec: u64,
    pub stream: u8,
    pub length: usize,
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a record of a session's output has {}", self.0)
    }
}

impl std::error::Error for Malformed {}

impl Header {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.time_usec.to_le_bytes());
        bytes[16] = self.stream;
        bytes[17..].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes
    }

    /// # Errors
    /// If no agent would have written it.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let length = u32::from_le_bytes([bytes[17], bytes[18], bytes[19], bytes[20]]) as usize;
        let header = Self { offset: number(0), time_usec: number(8), stream: bytes[16], length };
        if !(1..=MAX_DATA).contains(&length) {
            return Err(Malformed("no possible length"));
        }
        if ![STDOUT, STDERR].contains(&header.stream) {
            return Err(Malformed("no known stream"));
        }
        if header.offset.checked_add(length as u64).is_none() {
            return Err(Malformed("no possible offset"));
        }
        Ok(header)
    }

    /// The offset of what comes next.
    pub fn end(&self) -> u64 {
        self.offset + self.length as u64
    }
}

/// Takes bytes as they come and gives whole records, whose offsets only go up. It holds no more
/// than one record and what was pushed last.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    at: usize,
    next: u64,
}

impl Parser {
    /// For records from this offset on.
    pub fn starting_at(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record that is whole.
    ///
    /// # Errors
    /// If what comes next is none, or goes back.
    pub fn record(&mut self) -> Result<Option<(Header, &[u8])>, Malformed> {
        let rest = &self.buffer[self.at..];
        let Some((header, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let header = Header::decode(header)?;
        if header.offset < self.next {
            return Err(Malformed("an offset that goes back"));
        }
        if rest.len() < header.length {
            return Ok(None);
        }
        let data = self.at + HEADER;
        self.at = data + header.length;
        self.next = header.end();
        Ok(Some((header, &self.buffer[data..self.at])))
    }

    /// The offset after the last record given.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes pushed that have not been given.
    pub fn rest(&self) -> usize {
        self.buffer.len() - self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(offset: u64, stream: u8, data: &[u8]) -> Vec<u8> {
        let header = Header { offset, time_usec: offset * 2, stream, length: data.len() };
        [&header.encode()[..], data].concat()
    }

    fn all(parser: &mut Parser) -> Vec<(u64, u8, Vec<u8>)> {
        let mut records = Vec::new();
        while let Some((header, data)) = parser.record().unwrap() {
            records.push((header.offset, header.stream, data.to_vec()));
        }
        records
    }

    #[test]
    fn records_come_out_of_any_pieces() {
        let bytes =
            [record(0, STDOUT, b"hello"), record(5, STDERR, b"x"), record(100, STDOUT, b"gap")].concat();
        for piece in 1..=bytes.len() {
            let mut parser = Parser::default();
            let mut records = Vec::new();
            for chunk in bytes.chunks(piece) {
                parser.push(chunk);
                records.extend(all(&mut parser));
            }
            let expected: [(u64, u8, &[u8]); 3] = [(0, 1, b"hello"), (5, 2, b"x"), (100, 1, b"gap")];
            assert_eq!(records, expected.map(|(offset, stream, data)| (offset, stream, data.to_vec())));
            assert_eq!((parser.next(), parser.rest()), (103, 0));
        }
    }

    #[test]
    fn what_no_agent_writes_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut parser = Parser::starting_at(10);
            parser.push(bytes);
            parser.record().is_err()
        };
        assert!(!refused(&record(10, STDOUT, b"x")));
        assert!(refused(&record(9, STDOUT, b"x")), "goes back");
        assert!(refused(&record(10, 3, b"x")), "no such stream");
        assert!(refused(&record(10, STDOUT, b"")), "empty");
        let header = |offset, length| Header { offset, time_usec: 0, stream: STDOUT, length }.encode();
        assert!(refused(&header(10, MAX_DATA + 1)), "too long");
        assert!(!refused(&header(10, MAX_DATA)), "not whole yet");
        assert!(refused(&header(u64::MAX, 1)), "overflow");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall_over(bytes: Vec<u8>) {
            let mut parser = Parser::default();
            parser.push(&bytes);
            while let Ok(Some(_)) = parser.record() {}
            prop_assert!(parser.rest() <= bytes.len());
        }
    }
}
