//! How much one guest may ask, so that none takes the name service from the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Queries a second of one guest that are answered, over time.
const RATE: f64 = 500.0;

/// Queries of one guest that are answered at once.
const BURST: f64 = 1000.0;

/// Queries that wait for the host's resolver, each with a socket: of one guest, and of all.
const FORWARDS: usize = 64;
const ALL_FORWARDS: usize = 256;

/// TCP connections of one guest, and of all.
const CONNECTIONS: usize = 8;
const ALL_CONNECTIONS: usize = 64;

/// As many guests may have been heard of before those that were silent for long are forgotten.
const REMEMBERED: usize = 1024;

#[derive(Debug)]
pub struct Limits {
    guests: HashMap<IpAddr, Guest>,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

#[derive(Debug)]
struct Guest {
    /// Queries that are left.
    tokens: f64,
    counted: Instant,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// One of a limited number, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Limits {
    pub fn new() -> Self {
        Self {
            guests: HashMap::new(),
            forwards: Arc::new(Semaphore::new(ALL_FORWARDS)),
            connections: Arc::new(Semaphore::new(ALL_CONNECTIONS)),
        }
    }

    /// Whether a query of a guest is answered.
    pub fn admit(&mut self, guest: IpAddr, now: Instant) -> bool {
        let guest = self.guest(guest, now);
        let earned = now.saturating_duration_since(guest.counted).as_secs_f64() * RATE;
        guest.tokens = (guest.tokens + earned).min(BURST);
        guest.counted = now;
        if guest.tokens < 1.0 {
            return false;
        }
        guest.tokens -= 1.0;
        true
    }

    /// Room to ask the host's resolver for a guest.
    pub fn forward(&mut self, guest: IpAddr, now: Instant) -> Option<Permit> {
        let own = self.guest(guest, now).forwards.clone();
        permit(own, self.forwards.clone())
    }

    /// Room for a TCP connection of a guest.
    pub fn connect(&mut self, guest: IpAddr, now: Instant) -> Option<Permit> {
        let own = self.guest(guest, now).connections.clone();
        permit(own, self.connections.clone())
    }

    fn guest(&mut self, address: IpAddr, now: Instant) -> &mut Guest {
        if self.guests.len() >= REMEMBERED && !self.guests.contains_key(&address) {
            self.guests.retain(|_, guest| !guest.is_silent(now));
        }
        self.guests.entry(address).or_insert_with(|| Guest {
            tokens: BURST,
            counted: now,
            forwards: Arc::new(Semaphore::new(FORWARDS)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }
}

impl Guest {
    /// Nothing of it is under way, and it may ask as much again as one that is new.
    fn is_silent(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.counted).as_secs_f64();
        self.forwards.available_permits() == FORWARDS
            && self.connections.available_permits() == CONNECTIONS
            && self.tokens + idle * RATE >= BURST
    }
}

fn permit(own: Arc<Semaphore>, all: Arc<Semaphore>) -> Option<Permit> {
    let own = own.try_acquire_owned().ok()?;
    let all = all.try_acquire_owned().ok()?;
    Some(Permit { _own: own, _all: all })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn guest(last: u8) -> IpAddr {
        [10, 209, 0, last].into()
    }

    #[test]
    fn a_burst_then_the_rate_and_nobody_else_notices() {
        let (mut limits, start) = (Limits::new(), Instant::now());
        let asked = |limits: &mut Limits, now| (0..5000).filter(|_| limits.admit(guest(2), now)).count();
        assert_eq!(asked(&mut limits, start), BURST as usize);
        assert!(limits.admit(guest(3), start));
        assert_eq!(asked(&mut limits, start + Duration::from_secs(1)), RATE as usize);
        assert_eq!(asked(&mut limits, start + Duration::from_secs(60)), BURST as usize);
    }

    #[test]
    fn permits_come_back() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        let held: Vec<_> = (0..FORWARDS).map(|_| limits.forward(guest(2), now).expect("room")).collect();
        assert!(limits.forward(guest(2), now).is_none());
        assert!(limits.forward(guest(3), now).is_some());
        drop(held);
        assert!(limits.forward(guest(2), now).is_some());
        let connections = (2..=255).filter_map(|last| limits.connect(guest(last), now)).collect::<Vec<_>>();
        assert_eq!(connections.len(), ALL_CONNECTIONS);
    }

    #[test]
    fn only_silent_guests_are_forgotten() {
        let (mut limits, start) = (Limits::new(), Instant::now());
        let held = limits.forward(guest(1), start);
        for low in 0..=255 {
            for high in 1..=8 {
                let now = start + Duration::from_secs(u64::from(low));
                assert!(limits.admit([10, 209, high, low].into(), now));
            }
        }
        assert!(limits.guests.len() <= REMEMBERED, "{}", limits.guests.len());
        assert!(limits.guests.contains_key(&guest(1)));
        drop(held);
    }
}
