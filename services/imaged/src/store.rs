//! The database: images, their names, kernels, leases. Plain functions on a transaction, so that the
//! rules that need several of them are one transaction.

use banger_api::Result;
use banger_api::image::BUILD_PREFIX;
use banger_daemon::store::db;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::registry::manifest::Process;

/// What has shipped is never changed, only added to.
pub const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE images (
        id TEXT PRIMARY KEY,                -- 64 hexadecimal digits of the manifest's digest
        architecture TEXT NOT NULL,
        size INTEGER NOT NULL,              -- bytes of the root filesystem
        rootfs_digest TEXT NOT NULL,        -- sha256:…
        fstype TEXT NOT NULL,
        created_usec INTEGER NOT NULL,      -- when it was pulled or imported
        process TEXT NOT NULL               -- JSON of what the image says about processes
    ) STRICT;
    CREATE TABLE names (
        name TEXT PRIMARY KEY,
        image TEXT NOT NULL REFERENCES images(id),
        reference TEXT NOT NULL             -- where it was pulled from; empty if it was imported
    ) STRICT;
    CREATE INDEX names_by_image ON names(image);
    CREATE TABLE image_blobs (
        image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        PRIMARY KEY (image, digest)
    ) STRICT;
    CREATE INDEX image_blobs_by_digest ON image_blobs(digest);
    CREATE TABLE kernels (
        name TEXT PRIMARY KEY,
        version TEXT NOT NULL,
        architecture TEXT NOT NULL,
        is_default INTEGER NOT NULL,
        created_usec INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX one_default_kernel ON kernels(is_default) WHERE is_default = 1;
    CREATE TABLE leases (
        holder TEXT PRIMARY KEY,
        image TEXT NOT NULL REFERENCES images(id),
        kernel TEXT NOT NULL REFERENCES kernels(name),
        acquired_usec INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX leases_by_image ON leases(image);
    CREATE INDEX leases_by_kernel ON leases(kernel);
",
    "
    ALTER TABLE kernels ADD COLUMN description TEXT NOT NULL DEFAULT '';
    ALTER TABLE kernels ADD COLUMN features TEXT;       -- with spaces between; NULL if nobody knows
    -- What VMs of an image get that name no kernel.
    ALTER TABLE images ADD COLUMN kernel TEXT REFERENCES kernels(name);
    CREATE INDEX images_by_kernel ON images(kernel);
",
    "
    -- When it came or was last leased or given back.
    ALTER TABLE images ADD COLUMN used_usec INTEGER NOT NULL DEFAULT 0;
    UPDATE images SET used_usec = created_usec;
",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    pub id: String,
    /// Sorted; empty for an image that only leases keep.
    pub names: Vec<String>,
    pub architecture: String,
    pub size: u64,
    pub rootfs_digest: String,
    pub fstype: String,
    /// Of VMs that name none; empty for the default.
    pub kernel: String,
    pub created_usec: u64,
    /// When it came, or was last leased or given back.
    pub used_usec: u64,
    pub process: Process,
    /// VMs that use it, sorted.
    pub holders: Vec<String>,
}

impl ImageRow {
    pub fn name(&self) -> &str {
        self.names.first().map_or("<none>", String::as_str)
    }

    /// Whether only builds know it, which keep it to be faster the next time.
    pub fn is_build_cache(&self) -> bool {
        !self.names.is_empty() && self.names.iter().all(|name| name.starts_with(BUILD_PREFIX))
    }

    /// Twelve digits, as everybody shows them.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRow {
    pub name: String,
    pub version: String,
    pub architecture: String,
    pub description: String,
    /// Names of [`banger_core::kernel`]; `None` if its configuration is not known.
    pub features: Option<Vec<String>>,
    pub is_default: bool,
    pub created_usec: u64,
    pub holders: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRow {
    pub image: String,
    pub reference: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    pub holder: String,
    pub image: String,
    pub kernel: String,
}

fn strings(t: &Transaction<'_>, sql: &str, parameter: &str) -> Result<Vec<String>> {
    let mut statement = t.prepare_cached(sql).map_err(db)?;
    let rows = statement.query_map([parameter], |row| row.get(0)).map_err(db)?;
    rows.collect::<rusqlite::Result<_>>().map_err(db)
}

const IMAGE: &str = "SELECT id, architecture, size, rootfs_digest, fstype, created_usec, process, kernel, used_usec FROM images";

fn image_row(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    let process: String = row.get(6)?;
    Ok(ImageRow {
        id: row.get(0)?,
        names: Vec::new(),
        architecture: row.get(1)?,
        size: row.get::<_, i64>(2)? as u64,
        rootfs_digest: row.get(3)?,
        fstype: row.get(4)?,
        kernel: row.get::<_, Option<String>>(7)?.unwrap_or_default(),
        created_usec: row.get::<_, i64>(5)? as u64,
        used_usec: row.get::<_, i64>(8)? as u64,
        process: serde_json::from_str(&process).unwrap_or_default(),
        holders: Vec::new(),
    })
}

fn complete(t: &Transaction<'_>, mut image: ImageRow) -> Result<ImageRow> {
    image.names = strings(t, "SELECT name FROM names WHERE image = ? ORDER BY name", &image.id)?;
    image.holders = image_holders(t, &image.id)?;
    Ok(image)
}

pub fn image(t: &Transaction<'_>, id: &str) -> Result<Option<ImageRow>> {
    let found = t.query_row(&format!("{IMAGE} WHERE id = ?"), [id], image_row).optional().map_err(db)?;
    found.map(|image| complete(t, image)).transpose()
}

pub fn images(t: &Transaction<'_>) -> Result<Vec<ImageRow>> {
    let mut statement = t.prepare(&format!("{IMAGE} ORDER BY created_usec DESC, id")).map_err(db)?;
    let rows: Vec<ImageRow> =
        statement.query_map([], image_row).map_err(db)?.collect::<rusqlite::Result<_>>().map_err(db)?;
    rows.into_iter().map(|image| complete(t, image)).collect()
}

/// At most two ids that begin so: enough to know whether it is one.
pub fn image_ids_by_prefix(t: &Transaction<'_>, prefix: &str) -> Result<Vec<String>> {
    strings(t, "SELECT id FROM images WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", prefix)
}

pub fn insert_image(t: &Transaction<'_>, image: &ImageRow, blobs: &[String]) -> Result<()> {
    let process = serde_json::to_string(&image.process).map_err(banger_api::Error::internal)?;
    t.execute(
        "INSERT INTO images (id, architecture, size, rootfs_digest, fstype, created_usec, process, used_usec)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            image.id,
            image.architecture,
            image.size as i64,
            image.rootfs_digest,
            image.fstype,
            image.created_usec as i64,
            process,
            image.used_usec as i64,
        ],
    )
    .map_err(db)?;
    set_image_kernel(t, &image.id, &image.kernel)?;
    for blob in blobs {
        t.execute("INSERT OR IGNORE INTO image_blobs VALUES (?, ?)", [&image.id, blob]).map_err(db)?;
    }
    Ok(())
}

pub fn delete_image(t: &Transaction<'_>, id: &str) -> Result<()> {
    t.execute("DELETE FROM images WHERE id = ?", [id]).map_err(db).map(drop)
}

pub fn mark_image_used(t: &Transaction<'_>, id: &str, now_usec: u64) -> Result<()> {
    t.execute("UPDATE images SET used_usec = ? WHERE id = ?", params![now_usec as i64, id])
        .map_err(db)
        .map(drop)
}

/// The empty name is none of its own.
pub fn set_image_kernel(t: &Transaction<'_>, id: &str, kernel: &str) -> Result<()> {
    let kernel = Some(kernel).filter(|kernel| !kernel.is_empty());
    t.execute("UPDATE images SET kernel = ? WHERE id = ?", params![kernel, id]).map_err(db).map(drop)
}

/// Ids of the images whose VMs get a kernel.
pub fn images_of_kernel(t: &Transaction<'_>, kernel: &str) -> Result<Vec<String>> {
    strings(t, "SELECT id FROM images WHERE kernel = ? ORDER BY id", kernel)
}

pub fn is_blob_used(t: &Transaction<'_>, digest: &str) -> Result<bool> {
    t.query_row("SELECT EXISTS (SELECT 1 FROM image_blobs WHERE digest = ?)", [digest], |row| row.get(0))
        .map_err(db)
}

pub fn used_blobs(t: &Transaction<'_>) -> Result<std::collections::HashSet<String>> {
    let mut statement = t.prepare("SELECT DISTINCT digest FROM image_blobs").map_err(db)?;
    let rows = statement.query_map([], |row| row.get(0)).map_err(db)?;
    rows.collect::<rusqlite::Result<_>>().map_err(db)
}

pub fn image_blobs(t: &Transaction<'_>, id: &str) -> Result<Vec<String>> {
    strings(t, "SELECT digest FROM image_blobs WHERE image = ?", id)
}

pub fn name(t: &Transaction<'_>, name: &str) -> Result<Option<NameRow>> {
    t.query_row("SELECT image, reference FROM names WHERE name = ?", [name], |row| {
        Ok(NameRow { image: row.get(0)?, reference: row.get(1)? })
    })
    .optional()
    .map_err(db)
}

pub fn put_name(t: &Transaction<'_>, name: &str, row: &NameRow) -> Result<()> {
    t.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", [name, &row.image, &row.reference])
        .map_err(db)
        .map(drop)
}

pub fn delete_name(t: &Transaction<'_>, name: &str) -> Result<()> {
    t.execute("DELETE FROM names WHERE name = ?", [name]).map_err(db).map(drop)
}

pub fn delete_names_of(t: &Transaction<'_>, image: &str) -> Result<()> {
    t.execute("DELETE FROM names WHERE image = ?", [image]).map_err(db).map(drop)
}

pub fn image_holders(t: &Transaction<'_>, id: &str) -> Result<Vec<String>> {
    strings(t, "SELECT holder FROM leases WHERE image = ? ORDER BY holder", id)
}

pub fn kernel_holders(t: &Transaction<'_>, name: &str) -> Result<Vec<String>> {
    strings(t, "SELECT holder FROM leases WHERE kernel = ? ORDER BY holder", name)
}

const KERNEL: &str =
    "SELECT name, version, architecture, is_default, created_usec, description, features FROM kernels";

fn kernel_row(row: &Row<'_>) -> rusqlite::Result<KernelRow> {
    let features: Option<String> = row.get(6)?;
    Ok(KernelRow {
        name: row.get(0)?,
        version: row.get(1)?,
        architecture: row.get(2)?,
        description: row.get(5)?,
        features: features.map(|features| features.split_whitespace().map(str::to_owned).collect()),
        is_default: row.get(3)?,
        created_usec: row.get::<_, i64>(4)? as u64,
        holders: Vec::new(),
    })
}

/// The kernel of a name; the empty name is the default.
pub fn kernel(t: &Transaction<'_>, name: &str) -> Result<Option<KernelRow>> {
    let sql = format!("{KERNEL} WHERE CASE ?1 WHEN '' THEN is_default ELSE name = ?1 END");
    let found = t.query_row(&sql, [name], kernel_row).optional().map_err(db)?;
    let Some(mut kernel) = found else { return Ok(None) };
    kernel.holders = kernel_holders(t, &kernel.name)?;
    Ok(Some(kernel))
}

pub fn kernels(t: &Transaction<'_>) -> Result<Vec<KernelRow>> {
    let mut statement = t.prepare(&format!("{KERNEL} ORDER BY created_usec DESC, name")).map_err(db)?;
    let mut rows: Vec<KernelRow> =
        statement.query_map([], kernel_row).map_err(db)?.collect::<rusqlite::Result<_>>().map_err(db)?;
    for row in &mut rows {
        row.holders = kernel_holders(t, &row.name)?;
    }
    Ok(rows)
}

pub fn insert_kernel(t: &Transaction<'_>, kernel: &KernelRow) -> Result<()> {
    t.execute(
        "INSERT INTO kernels (name, version, architecture, is_default, created_usec, description, features)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![
            kernel.name,
            kernel.version,
            kernel.architecture,
            kernel.is_default,
            kernel.created_usec as i64,
            kernel.description,
            kernel.features.as_ref().map(|features| features.join(" ")),
        ],
    )
    .map_err(db)
    .map(drop)
}

pub fn set_default_kernel(t: &Transaction<'_>, name: &str) -> Result<()> {
    t.execute("UPDATE kernels SET is_default = 0 WHERE is_default = 1", []).map_err(db)?;
    t.execute("UPDATE kernels SET is_default = 1 WHERE name = ?", [name]).map_err(db).map(drop)
}

pub fn delete_kernel(t: &Transaction<'_>, name: &str) -> Result<()> {
    t.execute("DELETE FROM kernels WHERE name = ?", [name]).map_err(db).map(drop)
}

pub fn lease(t: &Transaction<'_>, holder: &str) -> Result<Option<LeaseRow>> {
    t.query_row("SELECT holder, image, kernel FROM leases WHERE holder = ?", [holder], lease_row)
        .optional()
        .map_err(db)
}

pub fn leases(t: &Transaction<'_>) -> Result<Vec<LeaseRow>> {
    let mut statement = t.prepare("SELECT holder, image, kernel FROM leases ORDER BY holder").map_err(db)?;
    let rows = statement.query_map([], lease_row).map_err(db)?;
    rows.collect::<rusqlite::Result<_>>().map_err(db)
}

fn lease_row(row: &Row<'_>) -> rusqlite::Result<LeaseRow> {
    Ok(LeaseRow { holder: row.get(0)?, image: row.get(1)?, kernel: row.get(2)? })
}

pub fn put_lease(t: &Transaction<'_>, lease: &LeaseRow, now_usec: u64) -> Result<()> {
    t.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)",
        params![lease.holder, lease.image, lease.kernel, now_usec as i64],
    )
    .map_err(db)
    .map(drop)
}

pub fn delete_lease(t: &Transaction<'_>, holder: &str) -> Result<()> {
    t.execute("DELETE FROM leases WHERE holder = ?", [holder]).map_err(db).map(drop)
}
