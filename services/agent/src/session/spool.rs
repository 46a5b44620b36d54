//! What a session has put out and nobody can do without yet: a bounded ring of records.
//!
//! Those who can hold records back are the drainer, who keeps them on the host, and the readers who
//! are attached. While one of them is behind, a full ring refuses more, and the command has to
//! wait. Whoever has taken nothing for [`PATIENCE`] holds nothing back any more: the oldest records
//! go, and the gap in the offsets tells the reader what it missed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use banger_core::spool::Header;
use tokio::time::Instant;

/// How long a reader who takes nothing, or a drainer who is not there, holds the command up.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// What is kept of that which everybody has, for those who attach later, in bytes.
pub const SCROLLBACK: usize = 256 * 1024;
/// What a record takes besides its data, about.
const OVERHEAD: usize = 64;

#[derive(Debug, Clone)]
pub struct Record {
    pub offset: u64,
    pub time_usec: u64,
    pub stream: u8,
    pub data: Arc<[u8]>,
}

impl Record {
    pub fn header(&self) -> Header {
        let Self { offset, time_usec, stream, .. } = *self;
        Header { offset, time_usec, stream, length: self.data.len() }
    }

    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn size(&self) -> usize {
        self.data.len() + OVERHEAD
    }
}

/// How far somebody is.
#[derive(Debug)]
struct Place {
    /// The first offset it has not taken.
    next: u64,
    /// When it last took something, or had everything.
    moved: Instant,
}

#[derive(Debug)]
pub struct Spool {
    records: VecDeque<Record>,
    size: usize,
    capacity: usize,
    end: u64,
    /// How far any drainer may have got it: up to here it was sent to one, or is being sent.
    sent: u64,
    drainer: Place,
    /// Connections of drainers so far; only the last one counts.
    drainers: u64,
    draining: bool,
    readers: HashMap<u64, Place>,
    next_reader: u64,
}

impl Spool {
    /// A ring of at most `capacity` bytes, and at least one record.
    pub fn new(capacity: usize, now: Instant) -> Self {
        Self {
            records: VecDeque::new(),
            size: 0,
            capacity,
            end: 0,
            sent: 0,
            drainer: Place { next: 0, moved: now },
            drainers: 0,
            draining: false,
            readers: HashMap::new(),
            next_reader: 0,
        }
    }

    /// The offset of what comes next.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Up to where all is kept elsewhere.
    pub fn kept(&self) -> u64 {
        self.drainer.next
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// A drainer is about to be sent what is before `next`.
    pub fn sending(&mut self, next: u64) {
        self.sent = self.sent.max(next);
    }

    /// Adds a record, unless there is no room that anybody would make.
    pub fn push(&mut self, stream: u8, data: &[u8], time_usec: u64, now: Instant) -> bool {
        let size = data.len() + OVERHEAD;
        while self.size + size > self.capacity {
            let Some(oldest) = self.records.front() else { break };
            if self.is_held(oldest.end(), now) {
                return false;
            }
            self.drop_oldest();
        }
        // The patience with those who have everything begins now.
        if self.draining && self.drainer.next == self.end {
            self.drainer.moved = now;
        }
        for place in self.readers.values_mut().filter(|place| place.next == self.end) {
            place.moved = now;
        }
        self.records.push_back(Record { offset: self.end, time_usec, stream, data: data.into() });
        self.size += size;
        self.end += data.len() as u64;
        true
    }

    fn is_held(&self, end: u64, now: Instant) -> bool {
        self.places().any(|place| place.next < end && now - place.moved < PATIENCE)
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.drainer).chain(self.readers.values())
    }

    fn drop_oldest(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.size -= record.size();
        }
    }

    /// Drops what everybody has, except the scroll-back.
    fn trim(&mut self) {
        let taken = self.places().map(|place| place.next).min().unwrap_or(0);
        while let Some(oldest) = self.records.front()
            && oldest.end() <= taken
            && self.size - oldest.size() >= SCROLLBACK
        {
            self.drop_oldest();
        }
    }

    /// The first record at `from` or after it; without the bytes before `from`.
    pub fn at(&self, from: u64) -> Option<Record> {
        let index = self.records.partition_point(|record| record.end() <= from);
        let record = self.records.get(index)?.clone();
        if record.offset >= from {
            return Some(record);
        }
        let data = record.data[(from - record.offset) as usize..].into();
        Some(Record { offset: from, data, ..record })
    }

    /// Where somebody begins who wants to see the last `bytes` bytes, from a record's beginning if
    /// they are not all there is.
    pub fn last(&self, bytes: u64) -> u64 {
        let wanted = self.end.saturating_sub(bytes);
        let index = self.records.partition_point(|record| record.offset < wanted);
        self.records.get(index).map_or(self.end, |record| record.offset)
    }

    /// Somebody on the host keeps what comes from `from` on and has all before it. Returns the
    /// number of this connection, or nothing if there is no such offset.
    pub fn start_draining(&mut self, from: u64, now: Instant) -> Option<u64> {
        if from > self.end {
            return None;
        }
        self.drainers += 1;
        self.draining = true;
        self.drained(self.drainers, from, now);
        Some(self.drainers)
    }

    pub fn is_drainer(&self, drainer: u64) -> bool {
        self.draining && self.drainers == drainer
    }

    /// Everything before `next` is kept elsewhere.
    pub fn drained(&mut self, drainer: u64, next: u64, now: Instant) {
        if self.is_drainer(drainer) {
            self.drainer = Place { next: next.clamp(self.drainer.next, self.end), moved: now };
            self.trim();
        }
    }

    pub fn stop_draining(&mut self, drainer: u64, now: Instant) {
        if self.is_drainer(drainer) {
            self.draining = false;
            self.drainer.moved = now;
        }
    }

    /// Somebody reads from `from` on; returns its number.
    pub fn attach(&mut self, from: u64, now: Instant) -> u64 {
        self.next_reader += 1;
        self.readers.insert(self.next_reader, Place { next: from.min(self.end), moved: now });
        self.next_reader
    }

    /// An attached reader has taken everything before `next`.
    pub fn taken(&mut self, reader: u64, next: u64, now: Instant) {
        if let Some(place) = self.readers.get_mut(&reader) {
            *place = Place { next, moved: now };
            self.trim();
        }
    }

    pub fn detach(&mut self, reader: u64) {
        self.readers.remove(&reader);
        self.trim();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_core::spool::STDOUT;

    const DATA: &[u8] = &[b'x'; 1000];
    /// Room for ten records of [`DATA`].
    const CAPACITY: usize = 10 * (DATA.len() + OVERHEAD);

    fn filled(now: Instant) -> Spool {
        let mut spool = Spool::new(CAPACITY, now);
        for _ in 0..10 {
            assert!(spool.push(STDOUT, DATA, 0, now));
        }
        spool
    }

    #[test]
    fn a_full_ring_waits_for_the_drainer() {
        let now = Instant::now();
        let mut spool = filled(now);
        assert!(!spool.push(STDOUT, DATA, 0, now));
        let drainer = spool.start_draining(0, now).unwrap();
        spool.drained(drainer, 999, now);
        assert!(!spool.push(STDOUT, DATA, 0, now), "not the whole record");
        spool.drained(drainer, 1000, now);
        assert!(spool.push(STDOUT, DATA, 0, now));
        assert_eq!((spool.at(0).unwrap().offset, spool.end()), (1000, 11_000));
    }

    #[test]
    fn nobody_is_waited_for_for_ever() {
        let now = Instant::now();
        let mut spool = filled(now);
        let drainer = spool.start_draining(0, now).unwrap();
        let late = now + PATIENCE;
        assert!(spool.push(STDOUT, DATA, 0, late), "the drainer took nothing");
        assert_eq!(spool.at(0).unwrap().offset, 1000, "the gap shows");
        spool.drained(drainer, 2000, late);
        assert!(spool.push(STDOUT, DATA, 0, late) && !spool.push(STDOUT, DATA, 0, late), "it is back");
        spool.stop_draining(drainer, late);
        assert!(!spool.push(STDOUT, DATA, 0, late), "it may come back");
        assert!(spool.push(STDOUT, DATA, 0, late + PATIENCE));
    }

    #[test]
    fn having_everything_is_no_idleness() {
        let now = Instant::now();
        let mut spool = Spool::new(CAPACITY, now);
        spool.start_draining(0, now).unwrap();
        let late = now + PATIENCE * 10;
        for _ in 0..10 {
            assert!(spool.push(STDOUT, DATA, 0, late));
        }
        assert!(!spool.push(STDOUT, DATA, 0, late));
    }

    #[test]
    fn readers_hold_back_until_they_leave() {
        let now = Instant::now();
        let mut spool = filled(now);
        let drainer = spool.start_draining(10_000, now).unwrap();
        let reader = spool.attach(0, now);
        assert!(!spool.push(STDOUT, DATA, 0, now));
        spool.taken(reader, 1000, now);
        assert!(spool.push(STDOUT, DATA, 0, now) && !spool.push(STDOUT, DATA, 0, now));
        spool.detach(reader);
        assert!(spool.push(STDOUT, DATA, 0, now));
        assert!(spool.is_drainer(drainer));
    }

    #[test]
    fn only_the_last_drainer_counts() {
        let now = Instant::now();
        let mut spool = filled(now);
        let old = spool.start_draining(0, now).unwrap();
        let new = spool.start_draining(3000, now).unwrap();
        spool.drained(old, 10_000, now);
        spool.stop_draining(old, now);
        assert!(!spool.is_drainer(old) && spool.is_drainer(new));
        for _ in 0..3 {
            assert!(spool.push(STDOUT, DATA, 0, now));
        }
        assert!(!spool.push(STDOUT, DATA, 0, now));
        assert_eq!(spool.start_draining(13_001, now), None, "there is no such offset");
    }

    #[test]
    fn what_was_kept_and_sent_is_known() {
        let now = Instant::now();
        let mut spool = filled(now);
        assert_eq!((spool.kept(), spool.sent()), (0, 0));
        let drainer = spool.start_draining(0, now).unwrap();
        spool.sending(3000);
        spool.drained(drainer, 2000, now);
        assert_eq!((spool.kept(), spool.sent()), (2000, 3000));
        // Another one begins where it likes.
        spool.start_draining(1000, now).unwrap();
        spool.sending(2000);
        assert_eq!((spool.kept(), spool.sent()), (2000, 3000));
    }

    #[test]
    fn what_everybody_has_stays_as_scroll_back() {
        let now = Instant::now();
        let mut spool = Spool::new(4 << 20, now);
        let drainer = spool.start_draining(0, now).unwrap();
        for n in 1..=1000 {
            assert!(spool.push(STDOUT, DATA, 0, now));
            spool.drained(drainer, n * 1000, now);
        }
        assert!((SCROLLBACK..SCROLLBACK + 2000).contains(&spool.size), "{}", spool.size);
        assert_eq!(spool.last(2500), 998_000);
        assert_eq!(spool.last(0), 1_000_000);
        assert_eq!(spool.at(999_990).unwrap().data.len(), 10);
        assert!(spool.at(1_000_000).is_none());
    }
}
