//! The database: who holds which address, and which sysctls we changed.

use std::net::{Ipv4Addr, Ipv6Addr};

use banger_api::{Error, ErrorKind, Result};
use banger_core::network::Policy;
use banger_daemon::store::db;
use ipnet::Ipv6Net;
use rusqlite::{OptionalExtension, Row as SqlRow, Transaction, params};

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
    transaction.execute("DELETE FROM lease WHERE holder = ?1", [holder]).map(drop).map_err(db)
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
