//! A service's durable state: one SQLite file, used from one thread of its own.
//!
//! What is in it says what is wanted; what is running is asked of systemd, the kernel and the
//! agents. A transaction that returned `Ok` survives SIGKILL and power loss (WAL, `synchronous=FULL`).
//!
//! On a disk that is full, whatever adds no page goes on working: deletions above all, and giving
//! back. That takes three things, none of which ever gives room back to whatever fills the disk:
//! - [`LOG_ROOM`]: the log has its blocks in advance, keeps them when the service leaves, and is written
//!   over from its beginning once its pages are in the database.
//! - [`place_pages`]: those always can be, since what has no place in the file is not committed.
//! - One process has the database, so that the log's index is in its memory and needs no file.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use banger_api::{Error, ErrorKind, Result};
use rusqlite::{Connection, FileControl, MAIN_DB, Transaction, TransactionBehavior};
use rustix::fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags, ioctl_setflags};
use tokio::sync::oneshot;

/// Bytes of a page: SQLite's default.
const PAGE: i32 = 4096;

/// Bytes that the log has for itself.
const LOG_ROOM: u64 = 1 << 20;

/// With this many pages in the log, they go to the database. The other three quarters of [`LOG_ROOM`]
/// are for the transaction that gets there.
const LOG_PAGES: i32 = 64;

type Task = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the database thread. Cheap to clone; the thread ends with the last one.
#[derive(Debug, Clone)]
pub struct Store(mpsc::Sender<Task>);

impl Store {
    /// Opens the file, creating it if needed, and brings it up to date. `migrations[n]` takes the
    /// schema from version `n` to `n + 1`; what has shipped is never changed, only added to.
    ///
    /// # Errors
    /// `Internal` if the file cannot be opened, is damaged, or was written by a newer version.
    pub fn open(path: &Path, migrations: &'static [&'static str]) -> Result<Self> {
        let mut connection = connect(path, migrations)?;
        let (sender, tasks) = mpsc::channel::<Task>();
        std::thread::Builder::new().name("store".into()).spawn(move || {
            for task in tasks {
                task(&mut connection);
            }
        })?;
        Ok(Self(sender))
    }

    /// Runs `work` in one transaction, which is rolled back if it fails. The write lock is taken
    /// at its start, so what `work` reads stays true until it commits.
    ///
    /// # Errors
    /// What `work` returns, or `Internal`/`NoSpace` for a fault of the database.
    pub async fn transact<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |connection| {
            let outcome = transaction(connection, work);
            let _ = reply.send(outcome);
        });
        let gone = || Error::internal("the database thread has ended");
        self.0.send(task).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn connect(path: &Path, migrations: &[&str]) -> Result<Connection> {
    let mut connection = Connection::open(path).map_err(|error| explain(path, &error))?;
    configure(&connection).map_err(|error| explain(path, &error))?;
    reserve(path);
    migrate(&mut connection, migrations).map_err(|error| error.context(path.display()))?;
    Ok(connection)
}

fn transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(db)?;
    let value = work(&transaction)?;
    place_pages(&transaction)?;
    transaction.commit().map_err(db)?;
    Ok(value)
}

/// Has the file take the room of all pages, those that the transaction adds among them. A commit alone
/// would have them in the log, which could not be emptied any more if the disk were full by then.
fn place_pages(transaction: &Transaction<'_>) -> Result<()> {
    let pages: i64 = transaction.pragma_query_value(None, "page_count", |row| row.get(0)).map_err(db)?;
    let mut size = pages * i64::from(PAGE);
    // SQLite does not say what kept it from growing the file.
    transaction.file_control(Some(MAIN_DB), FileControl::SizeHint(&mut size)).map_err(|_| no_space())
}

fn no_space() -> Error {
    ErrorKind::NoSpace.error("the disk is full; free some space and try again")
}

/// A database error as the caller of a service sees it.
pub fn db(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => no_space(),
        _ => Error::internal(format!("database: {error}")),
    }
}

fn explain(path: &Path, error: &rusqlite::Error) -> Error {
    Error::internal(format!("cannot open {}: {error}", path.display()))
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "page_size", PAGE)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut 1))?;
    // The unit in which the file grows, without which hints of its size are not heard.
    let mut unit = PAGE;
    connection.file_control(Some(MAIN_DB), FileControl::ChunkSize(&mut unit))
}

/// Has the log take its room. Each start looks, since there may have been none, or somebody may have
/// removed the file.
fn reserve(path: &Path) {
    let log = log_of(path);
    if let Err(error) = allocate(&log) {
        tracing::warn!(
            "no room could be kept for {}: while the disk is full, nothing can be removed either: {error}",
            log.display()
        );
    }
}

fn allocate(log: &Path) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(log)?;
    let metadata = file.metadata()?;
    // What has its blocks is not asked for them again: btrfs would want as many more.
    if metadata.len() >= LOG_ROOM && metadata.blocks() * 512 >= LOG_ROOM {
        return Ok(());
    }
    if metadata.len() == 0 {
        // btrfs puts what is written over somewhere else, unless it is told before the first byte. Others
        // do not know the flag.
        let _ = ioctl_getflags(&file).and_then(|flags| ioctl_setflags(&file, flags | IFlags::NOCOW));
    }
    Ok(fallocate(&file, FallocateFlags::empty(), 0, LOG_ROOM)?)
}

fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<()> {
    let version: usize =
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0)).map_err(db)? as usize;
    if version > migrations.len() {
        return Err(Error::internal(format!(
            "its schema has version {version}, this program knows {}; upgrade banger",
            migrations.len()
        )));
    }
    for (index, migration) in migrations.iter().enumerate().skip(version) {
        transaction(connection, |transaction| {
            transaction.execute_batch(migration).map_err(db)?;
            transaction.pragma_update(None, "user_version", index as u32 + 1).map_err(db)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[&str] = &["CREATE TABLE t (a INTEGER)"];
    const TWO: &[&str] = &["CREATE TABLE t (a INTEGER)", "ALTER TABLE t ADD COLUMN b TEXT"];

    async fn count(store: &Store) -> i64 {
        store
            .transact(|t| t.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).map_err(db))
            .await
            .expect("counts")
    }

    #[tokio::test]
    async fn migrates_step_by_step_and_refuses_the_future() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("x.db");
        let store = Store::open(&path, ONE).expect("opens");
        store.transact(|t| t.execute("INSERT INTO t VALUES (1)", []).map_err(db)).await.expect("inserts");
        drop(store);
        let store = Store::open(&path, TWO).expect("upgrades");
        assert_eq!(count(&store).await, 1);
        drop(store);
        let error = Store::open(&path, ONE).expect_err("too new");
        assert!(error.message().contains("upgrade banger"), "{error}");
    }

    #[tokio::test]
    async fn a_failed_transaction_leaves_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::open(&dir.path().join("x.db"), ONE).expect("opens");
        let outcome: Result<()> = store
            .transact(|t| {
                t.execute("INSERT INTO t VALUES (1)", []).map_err(db)?;
                Err(ErrorKind::NameTaken.error("no"))
            })
            .await;
        assert_eq!(outcome.expect_err("fails").kind(), ErrorKind::NameTaken);
        assert_eq!(count(&store).await, 0);
    }

    /// Bytes that the file says it has, and that it takes of the disk.
    fn size(path: &Path) -> (u64, u64) {
        let metadata = std::fs::metadata(path).expect("it is there");
        (metadata.len(), metadata.blocks() * 512)
    }

    #[tokio::test]
    async fn what_a_full_disk_is_met_with_is_there_in_advance() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("x.db");
        let log = log_of(&path);
        // A log that somebody removed is made again.
        for lost in [false, true] {
            let mut connection = connect(&path, ONE).expect("opens");
            for _ in 0..300 {
                transaction(&mut connection, |t| {
                    t.execute("INSERT INTO t VALUES (zeroblob(9000))", []).map_err(db)
                })
                .expect("inserts");
                let pages: u32 =
                    connection.pragma_query_value(None, "page_count", |row| row.get(0)).expect("counts");
                let (length, taken) = size(&path);
                assert!(
                    length >= u64::from(pages) * PAGE as u64 && taken >= length,
                    "{pages} {length} {taken}"
                );
                let (length, taken) = size(&log);
                assert!(length == LOG_ROOM && taken >= LOG_ROOM, "{length} {taken}");
            }
            drop(connection);
            assert_eq!(size(&log).0, LOG_ROOM);
            assert!(!dir.path().join("x.db-shm").exists());
            if lost {
                break;
            }
            std::fs::remove_file(&log).expect("removes");
        }
        assert_eq!(count(&Store::open(&path, ONE).expect("opens")).await, 600);
    }
}
