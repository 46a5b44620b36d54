//! The rows of vmd, and the reservation: the one transaction that gives a VM its name and address.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use banger_api::{Error, ErrorKind, Result};
use banger_core::address;
use banger_core::name::VmName;
use banger_core::vm::Spec;
use banger_daemon::Store;
use banger_daemon::store::db;
use ipnet::Ipv4Net;
use rusqlite::{OptionalExtension, Row, Transaction, params};

const MIGRATIONS: &[&str] = &["
    CREATE TABLE vms (
        name         TEXT    PRIMARY KEY,
        address      INTEGER NOT NULL UNIQUE,
        image        TEXT    NOT NULL,
        image_id     TEXT    NOT NULL,
        kernel       TEXT    NOT NULL,
        spec         TEXT    NOT NULL,
        created_usec INTEGER NOT NULL,
        started_usec INTEGER
    ) STRICT;
"];

/// One VM as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    pub name: VmName,
    /// Every VM has an address, from which its other identifiers follow; one without network just
    /// does not use it.
    pub address: Ipv4Addr,
    /// The image's name when the VM was created.
    pub image: String,
    pub image_id: String,
    pub kernel: String,
    pub spec: Spec,
    /// Microseconds since 1970.
    pub created_usec: u64,
    /// When it was last started, if ever.
    pub started_usec: Option<u64>,
}

impl VmRow {
    /// The address as clients see it: empty for a VM without network.
    pub fn shown_address(&self) -> String {
        if self.spec.network { self.address.to_string() } else { String::new() }
    }
}

/// What is reserved.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Tried in their order; the last one's being taken is the error.
    pub names: Vec<VmName>,
    pub range: Ipv4Net,
    pub image: String,
    pub image_id: String,
    pub kernel: String,
    pub spec: Spec,
    pub created_usec: u64,
}

#[derive(Debug, Clone)]
pub struct VmStore(Store);

impl VmStore {
    pub fn open(path: &Path) -> Result<Self> {
        Store::open(path, MIGRATIONS).map(Self)
    }

    /// The reservation: checks the name, takes the next free address and inserts the row, all in
    /// one transaction that holds the write lock from its start. Two callers of one name meet
    /// here, and exactly one gets it.
    ///
    /// # Errors
    /// `NameTaken`, `NoFreeAddress`.
    pub async fn reserve(&self, draft: Draft) -> Result<VmRow> {
        self.0.transact(move |transaction| reserve(transaction, draft)).await
    }

    /// Fails with `NameTaken` if there is a VM of this name. Only a courtesy before long work:
    /// [`VmStore::reserve`] decides.
    pub async fn check_free(&self, name: VmName) -> Result<()> {
        self.0.transact(move |transaction| check_free(transaction, &name)).await
    }

    pub async fn get(&self, name: VmName) -> Result<VmRow> {
        self.0
            .transact(move |transaction| {
                let row = transaction
                    .query_row("SELECT * FROM vms WHERE name = ?", [name.as_str()], |row| Ok(read(row)))
                    .optional()
                    .map_err(db)?;
                row.unwrap_or_else(|| Err(no_such_vm(name.as_str())))
            })
            .await
    }

    pub async fn list(&self) -> Result<Vec<VmRow>> {
        self.0
            .transact(|transaction| {
                let mut statement = transaction.prepare("SELECT * FROM vms ORDER BY name").map_err(db)?;
                let rows = statement.query_map([], |row| Ok(read(row))).map_err(db)?;
                rows.map(|row| row.map_err(db)?).collect()
            })
            .await
    }

    pub async fn mark_started(&self, name: VmName, usec: u64) -> Result<()> {
        self.0
            .transact(move |transaction| {
                transaction
                    .execute(
                        "UPDATE vms SET started_usec = ? WHERE name = ?",
                        params![usec as i64, name.as_str()],
                    )
                    .map(drop)
                    .map_err(db)
            })
            .await
    }

    /// Frees name and address.
    pub async fn remove(&self, name: VmName) -> Result<()> {
        self.0
            .transact(move |transaction| {
                transaction.execute("DELETE FROM vms WHERE name = ?", [name.as_str()]).map(drop).map_err(db)
            })
            .await
    }
}

/// The error for a name that is no VM's.
pub fn no_such_vm(name: &str) -> Error {
    ErrorKind::NoSuchVm.error(format!("there is no VM {name:?}; `banger ps -a` lists all"))
}

fn reserve(transaction: &Transaction<'_>, draft: Draft) -> Result<VmRow> {
    let mut outcome = Err(Error::internal("no name to reserve"));
    for name in draft.names {
        outcome = check_free(transaction, &name).map(|()| name);
        if outcome.is_ok() {
            break;
        }
    }
    let name = outcome?;
    let address = address::next_free(draft.range, &addresses(transaction)?).ok_or_else(|| {
        ErrorKind::NoFreeAddress.error(format!(
            "all {} addresses of {} are taken: delete VMs, or configure a larger range in /etc/banger/netd.conf",
            address::capacity(draft.range),
            draft.range
        ))
    })?;
    let row = VmRow {
        name,
        address,
        image: draft.image,
        image_id: draft.image_id,
        kernel: draft.kernel,
        spec: draft.spec,
        created_usec: draft.created_usec,
        started_usec: None,
    };
    insert(transaction, &row)?;
    Ok(row)
}

fn check_free(transaction: &Transaction<'_>, name: &VmName) -> Result<()> {
    let taken = transaction
        .query_row("SELECT 1 FROM vms WHERE name = ?", [name.as_str()], |_| Ok(()))
        .optional()
        .map_err(db)?;
    match taken {
        None => Ok(()),
        Some(()) => Err(ErrorKind::NameTaken.error(format!(
            "there is a VM {name} already: choose another name, or delete it with `banger rm {name}`"
        ))),
    }
}

fn addresses(transaction: &Transaction<'_>) -> Result<BTreeSet<Ipv4Addr>> {
    let mut statement = transaction.prepare("SELECT address FROM vms").map_err(db)?;
    let rows = statement.query_map([], |row| row.get::<_, u32>(0)).map_err(db)?;
    rows.map(|address| address.map(Ipv4Addr::from).map_err(db)).collect()
}

fn insert(transaction: &Transaction<'_>, row: &VmRow) -> Result<()> {
    let spec = serde_json::to_string(&row.spec).map_err(Error::internal)?;
    transaction
        .execute(
            "INSERT INTO vms (name, address, image, image_id, kernel, spec, created_usec) VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![
                row.name.as_str(),
                u32::from(row.address),
                row.image,
                row.image_id,
                row.kernel,
                spec,
                row.created_usec as i64
            ],
        )
        .map(drop)
        .map_err(db)
}

fn read(row: &Row<'_>) -> Result<VmRow> {
    let text = |column: &str| row.get::<_, String>(column).map_err(db);
    let name = VmName::new(&text("name")?).map_err(Error::internal)?;
    let spec = serde_json::from_str(&text("spec")?)
        .map_err(|error| Error::internal(format!("row of {name}: {error}")))?;
    Ok(VmRow {
        name,
        address: Ipv4Addr::from(row.get::<_, u32>("address").map_err(db)?),
        image: text("image")?,
        image_id: text("image_id")?,
        kernel: text("kernel")?,
        spec,
        created_usec: row.get::<_, i64>("created_usec").map_err(db)? as u64,
        started_usec: row.get::<_, Option<i64>>("started_usec").map_err(db)?.map(|usec| usec as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, VmStore) {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = VmStore::open(&dir.path().join("vmd.db")).expect("opens");
        (dir, store)
    }

    fn draft(names: &[&str]) -> Draft {
        Draft {
            names: names.iter().map(|name| VmName::new(name).expect("valid")).collect(),
            range: "10.1.0.0/29".parse().expect("valid"),
            image: "debian:12".into(),
            image_id: "abc".into(),
            kernel: "6.1".into(),
            spec: Spec::default(),
            created_usec: 1,
        }
    }

    #[tokio::test]
    async fn a_name_has_one_winner() {
        let (_dir, store) = store();
        let tries: Vec<_> = (0..20)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.reserve(draft(&["web"])).await })
            })
            .collect();
        let mut won = 0;
        for outcome in tries {
            match outcome.await.expect("joins") {
                Ok(_) => won += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::NameTaken),
            }
        }
        assert_eq!(won, 1);
    }

    #[tokio::test]
    async fn addresses_are_unique_and_end() {
        let (_dir, store) = store();
        let mut addresses = BTreeSet::new();
        for index in 0..5 {
            let row = store.reserve(draft(&[&format!("vm{index}")])).await.expect("reserves");
            assert!(addresses.insert(row.address));
        }
        let error = store.reserve(draft(&["vm5"])).await.expect_err("full");
        assert_eq!(error.kind(), ErrorKind::NoFreeAddress);
        // A failed reservation takes nothing, not even the name.
        store.check_free(VmName::new("vm5").expect("valid")).await.expect("free");
        store.remove(VmName::new("vm3").expect("valid")).await.expect("removes");
        let row = store.reserve(draft(&["vm5"])).await.expect("reserves");
        assert!(addresses.contains(&row.address), "the address of the removed VM is free again");
    }

    #[tokio::test]
    async fn falls_back_to_the_next_name() {
        let (_dir, store) = store();
        store.reserve(draft(&["a"])).await.expect("reserves");
        let row = store.reserve(draft(&["a", "b"])).await.expect("reserves");
        assert_eq!(row.name.as_str(), "b");
    }

    #[tokio::test]
    async fn rows_come_back() {
        let (_dir, store) = store();
        let row = store.reserve(draft(&["web"])).await.expect("reserves");
        assert_eq!(store.get(row.name.clone()).await.expect("there"), row);
        store.mark_started(row.name.clone(), 7).await.expect("marks");
        assert_eq!(store.list().await.expect("lists"), [VmRow { started_usec: Some(7), ..row }]);
        let error = store.get(VmName::new("x").expect("valid")).await.expect_err("none");
        assert_eq!(error.kind(), ErrorKind::NoSuchVm);
    }
}
