//! The database: who holds which address, and which sysctls we changed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_api::{Error, ErrorKind, Result};
use banger_core::network::Policy;
use banger_daemon::store::db;
use ipnet::Ipv6Net;
use rusqlite::{OptionalExtension, Row as SqlRow, Transaction, params};

use crate::firewall::{HELD, Way};

pub const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE lease (
        holder  TEXT PRIMARY KEY,
        address TEXT NOT NULL UNIQUE,
        uid     INTEGER NOT NULL,
        nat     INTEGER NOT NULL
    ) STRICT;
    -- What a sysctl was before we changed it.
    CREATE TABLE sysctl (
        path  TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
",
    "
    -- What the guest reaches, as JSON.
    ALTER TABLE lease ADD COLUMN policy TEXT NOT NULL DEFAULT '{}';
    UPDATE lease SET policy = json_object('nat', json(iif(nat, 'true', 'false')));
    ALTER TABLE lease DROP COLUMN nat;
",
    "
    -- The global id of this host's unique local addresses (RFC 4193): 40 random bits, for ever.
    CREATE TABLE host (global_id BLOB NOT NULL) STRICT;
    INSERT INTO host VALUES (randomblob(5));
",
    "
    -- What names that a guest may reach were found to stand for, and until when that counts, in seconds
    -- since 1970.
    CREATE TABLE way (
        holder  TEXT NOT NULL,
        name    TEXT NOT NULL,
        address TEXT NOT NULL,
        until   INTEGER NOT NULL,
        PRIMARY KEY (holder, name, address)
    ) STRICT;
",
];

/// A lease as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub holder: String,
    pub address: Ipv4Addr,
    /// Who may open the TAP.
    pub uid: u32,
    pub policy: Policy,
}

const COLUMNS: &str = "holder, address, uid, policy";

fn read(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let (address, policy): (String, String) = (row.get(1)?, row.get(3)?);
    let address = address.parse().map_err(|error| unreadable(1, error))?;
    let policy = serde_json::from_str(&policy).map_err(|error| unreadable(3, error))?;
    Ok(Row { holder: row.get(0)?, address, uid: row.get(2)?, policy })
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

pub fn get(transaction: &Transaction<'_>, holder: &str) -> Result<Option<Row>> {
    let query = format!("SELECT {COLUMNS} FROM lease WHERE holder = ?1");
    transaction.query_row(&query, [holder], read).optional().map_err(db)
}

/// All leases, by holder.
pub fn all(transaction: &Transaction<'_>) -> Result<Vec<Row>> {
    let mut statement =
        transaction.prepare(&format!("SELECT {COLUMNS} FROM lease ORDER BY holder")).map_err(db)?;
    let rows = statement.query_map([], read).map_err(db)?;
    rows.collect::<rusqlite::Result<_>>().map_err(db)
}

/// Writes a lease down, or its new uid and policy. Returns what was there before.
///
/// # Errors
/// `AddressInUse` if another holder has the address, or this one has another address.
pub fn claim(transaction: &Transaction<'_>, wanted: &Row) -> Result<Option<Row>> {
    let taken: Option<String> = transaction
        .query_row(
            "SELECT holder FROM lease WHERE address = ?1 AND holder <> ?2",
            params![wanted.address.to_string(), wanted.holder],
            |row| row.get(0),
        )
        .optional()
        .map_err(db)?;
    if let Some(other) = taken {
        return Err(ErrorKind::AddressInUse
            .error(format!("{} belongs to the lease of {other}; choose another address", wanted.address)));
    }
    let before = get(transaction, &wanted.holder)?;
    if let Some(before) = &before
        && before.address != wanted.address
    {
        return Err(ErrorKind::AddressInUse.error(format!(
            "{} already has a lease on {}; release it before acquiring {}",
            wanted.holder, before.address, wanted.address
        )));
    }
    put(transaction, wanted)?;
    Ok(before)
}

pub fn put(transaction: &Transaction<'_>, row: &Row) -> Result<()> {
    let policy = serde_json::to_string(&row.policy).map_err(Error::internal)?;
    transaction
        .execute(
            "INSERT INTO lease (holder, address, uid, policy) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (holder) DO UPDATE SET uid = excluded.uid, policy = excluded.policy",
            params![row.holder, row.address.to_string(), row.uid, policy],
        )
        .map(drop)
        .map_err(db)
}

pub fn delete(transaction: &Transaction<'_>, holder: &str) -> Result<()> {
    transaction.execute("DELETE FROM way WHERE holder = ?1", [holder]).map_err(db)?;
    transaction.execute("DELETE FROM lease WHERE holder = ?1", [holder]).map(drop).map_err(db)
}

/// An address counts for as long as it was said to be good, but at least and at most so many seconds: programs
/// ask again later than they should.
const LEAST: i64 = 300;
const MOST: i64 = 24 * 3600;

/// What is written down is good for so many seconds more, so that not every answer is.
const SPARE: i64 = 300;

/// As many addresses a guest may have found out at a time.
const MAX_WAYS: u32 = 256;

/// Writes down what a name stands for, each address with the seconds for which that is good. Returns whether
/// there is anything new to it.
pub fn add_ways(
    transaction: &Transaction<'_>,
    holder: &str,
    name: &str,
    addresses: &[(IpAddr, u32)],
    now: i64,
) -> Result<bool> {
    let mut statement = transaction
        .prepare(
            "INSERT INTO way (holder, name, address, until) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (holder, name, address) DO UPDATE SET until = excluded.until WHERE until < ?5",
        )
        .map_err(db)?;
    let mut changed = 0;
    for (address, seconds) in addresses {
        let enough = now + i64::from(*seconds).clamp(LEAST, MOST);
        let row = params![holder, name, address.to_string(), enough + SPARE, enough];
        changed += statement.execute(row).map_err(db)?;
    }
    // Those that go first anyway make room, and never for the name that was asked for just now.
    transaction
        .execute(
            "DELETE FROM way WHERE rowid IN
             (SELECT rowid FROM way WHERE holder = ?1 ORDER BY name = ?3 DESC, until DESC
              LIMIT -1 OFFSET ?2)",
            params![holder, MAX_WAYS, name],
        )
        .map_err(db)?;
    Ok(changed > 0)
}

/// What names stand for, by holder. What is over is forgotten.
pub fn ways(transaction: &Transaction<'_>, now: i64) -> Result<BTreeMap<String, Vec<Way>>> {
    transaction.execute("DELETE FROM way WHERE until <= ?1", [now - HELD]).map_err(db)?;
    let mut statement = transaction.prepare("SELECT holder, name, address, until FROM way").map_err(db)?;
    let rows = statement.query_map([], |row| {
        let address: String = row.get(2)?;
        let address = address.parse().map_err(|error| unreadable(2, error))?;
        Ok((row.get(0)?, Way { name: row.get(1)?, address, until: row.get(3)? }))
    });
    let mut ways: BTreeMap<String, Vec<Way>> = BTreeMap::new();
    for row in rows.map_err(db)? {
        let (holder, way) = row.map_err(db)?;
        ways.entry(holder).or_default().push(way);
    }
    Ok(ways)
}

/// This host's own network of IPv6 addresses for guests: `fd`, its global id, and subnet 0.
pub fn prefix6(transaction: &Transaction<'_>) -> Result<Ipv6Net> {
    let id: [u8; 5] =
        transaction.query_row("SELECT global_id FROM host", [], |row| row.get(0)).map_err(db)?;
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&id);
    Ipv6Net::new(Ipv6Addr::from(octets), 64).map_err(Error::internal)
}

/// Remembers what a sysctl was, unless that is remembered already.
pub fn remember_sysctl(transaction: &Transaction<'_>, path: &str, value: &str) -> Result<()> {
    transaction
        .execute("INSERT OR IGNORE INTO sysctl (path, value) VALUES (?1, ?2)", [path, value])
        .map(drop)
        .map_err(db)
}

/// Takes out what was remembered: path and value. What stands for all interfaces comes first, as
/// setting it sets them all.
pub fn take_sysctls(transaction: &Transaction<'_>) -> Result<Vec<(String, String)>> {
    let mut statement = transaction.prepare("DELETE FROM sysctl RETURNING path, value").map_err(db)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(db)?;
    let mut rows: Vec<(String, String)> = rows.collect::<rusqlite::Result<_>>().map_err(db)?;
    rows.sort_by_key(|(path, _)| !path.contains("/conf/all/"));
    Ok(rows)
}

/// The lease of this holder.
///
/// # Errors
/// `NoSuchLease`.
pub fn find(transaction: &Transaction<'_>, holder: &str) -> Result<Row> {
    get(transaction, holder)?.ok_or_else(|| no_such(holder))
}

pub fn no_such(holder: &str) -> Error {
    ErrorKind::NoSuchLease.error(format!("{holder} has no lease"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_good_for_a_while_and_not_too_many() {
        let mut database = rusqlite::Connection::open_in_memory().expect("opens");
        database.execute_batch(&MIGRATIONS.concat()).expect("migrates");
        let transaction = database.transaction().expect("begins");
        let t = &transaction;
        let address: IpAddr = [192, 0, 2, 1].into();
        let add =
            |name: &str, seconds, now| add_ways(t, "web", name, &[(address, seconds)], now).expect("adds");
        assert!(add("a.example", 60, 1000));
        assert!(!add("a.example", 60, 1300) && add("a.example", 60, 1301));
        assert!(!add("a.example", 60, 1000), "never for less long");
        assert!(add("b.example", u32::MAX, 1000));
        let found = |now| {
            let ways = ways(t, now).expect("reads").remove("web").unwrap_or_default();
            ways.into_iter().map(|way| (way.name, way.until)).collect::<Vec<_>>()
        };
        assert_eq!(found(1901 + HELD - 1), [("a.example".into(), 1901), ("b.example".into(), 87700)]);
        assert_eq!(found(1901 + HELD), [("b.example".into(), 87700)]);
        for last in 0..=255 {
            let many = [([198, 51, 100, last].into(), 600), ([198, 51, 101, last].into(), 900)];
            add_ways(t, "web", "c.example", &many, 100_000).expect("adds");
        }
        assert!(found(100_000).iter().all(|(_, until)| *until == 101_200) && found(100_000).len() == 256);
        assert!(add("d.example", 60, 100_000));
        assert!(found(100_000).iter().any(|(name, _)| name == "d.example") && found(100_000).len() == 256);
        put(
            t,
            &Row { holder: "web".into(), address: [10, 0, 0, 2].into(), uid: 0, policy: Policy::default() },
        )
        .expect("puts");
        delete(t, "web").expect("deletes");
        assert_eq!(found(100_000), []);
    }
}
