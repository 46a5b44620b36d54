//! A service's durable state: one SQLite file, used from one thread of its own.
//!
//! What is in it says what is wanted; what is running is asked of systemd, the kernel and the
//! agents. A transaction that returned `Ok` survives SIGKILL and power loss (WAL, `synchronous=FULL`).

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use banger_api::{Error, ErrorKind, Result};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

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
        let mut connection = Connection::open(path).map_err(|error| explain(path, &error))?;
        configure(&connection).map_err(|error| explain(path, &error))?;
        migrate(&mut connection, migrations).map_err(|error| error.context(path.display()))?;
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

fn transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(db)?;
    let value = work(&transaction)?;
    transaction.commit().map_err(db)?;
    Ok(value)
}

/// A database error as the caller of a service sees it.
pub fn db(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            ErrorKind::NoSpace.error("the disk is full; free some space and try again")
        }
        _ => Error::internal(format!("database: {error}")),
    }
}

fn explain(path: &Path, error: &rusqlite::Error) -> Error {
    Error::internal(format!("cannot open {}: {error}", path.display()))
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")
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
}
