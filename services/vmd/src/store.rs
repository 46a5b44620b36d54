//! The rows of vmd, and the reservation: the one transaction that gives a VM its name and address.
//!
//! vmd alone writes this file, so [`VmStore`] keeps a copy of all rows in memory, for whoever only
//! wants to look.

mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::{Error, ErrorKind, Result};
use banger_core::address;
use banger_core::forward::Forward;
use banger_core::name::VmName;
use banger_core::spec::{Spec, VmmChoice};
use banger_daemon::store::db;
use banger_daemon::{Store, failpoint};
use ipnet::Ipv4Net;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

const MIGRATIONS: &[&str] = &[
    "
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
",
    "
    ALTER TABLE vms ADD COLUMN ended TEXT;
    ALTER TABLE vms ADD COLUMN machine_id TEXT NOT NULL DEFAULT '';
    CREATE TABLE volumes (
        name         TEXT    PRIMARY KEY,
        bytes        INTEGER NOT NULL,
        created_usec INTEGER NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE vms ADD COLUMN whole INTEGER NOT NULL DEFAULT 1;
",
    "
    ALTER TABLE vms ADD COLUMN run TEXT;
",
];

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
    /// What the guest's `/etc/machine-id` says; empty leaves the image's.
    pub machine_id: String,
    /// Microseconds since 1970.
    pub created_usec: u64,
    /// When it was last started, if ever.
    pub started_usec: Option<u64>,
    /// What it was made of then. Versions before this was kept started VMs, too.
    pub run: Option<Run>,
    /// How its last run ended, if it has.
    pub ended: Option<Ended>,
    /// Not while the VM is being created or deleted: then it does not start, and if vmd ends
    /// meanwhile, the next instance removes it.
    pub whole: bool,
}

/// What a VM is made of while it runs, whatever it is to be from the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What was chosen where the specification leaves the choice.
    pub vmm: VmmChoice,
    pub spec: Spec,
    /// Whether it did not boot, but went on from a snapshot.
    pub restored: bool,
    /// The IPv6 address that its network came with.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
}

/// How a run of a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Microseconds since 1970.
    pub usec: u64,
    /// For people.
    pub reason: String,
}

/// A disk that exists by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    pub name: VmName,
    pub bytes: u64,
    /// Microseconds since 1970.
    pub created_usec: u64,
}

impl VmRow {
    /// The address as clients see it: empty for a VM without network.
    pub fn shown_address(&self) -> String {
        if self.spec.network { self.address.to_string() } else { String::new() }
    }

    /// The guest's IPv6 address since its last start, empty without one.
    pub fn shown_address6(&self) -> String {
        let address = self.run.as_ref().and_then(|run| run.address6);
        address.map(|address| address.to_string()).unwrap_or_default()
    }

    /// The specification by which it runs, or else will.
    pub fn running_spec(&self) -> &Spec {
        let ended = self.ended.as_ref().map_or(0, |ended| ended.usec);
        if self.started_usec.is_some_and(|started| started > ended) {
            self.started_spec()
        } else {
            &self.spec
        }
    }

    /// The specification by which it was started last.
    pub fn started_spec(&self) -> &Spec {
        self.run.as_ref().map_or(&self.spec, |run| &run.spec)
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
    pub machine_id: String,
    pub created_usec: u64,
}

#[derive(Debug, Clone)]
pub struct VmStore {
    store: Store,
    rows: Arc<Mutex<BTreeMap<VmName, VmRow>>>,
    /// Held from a change to its being in `rows`, so that these never go back in time.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl VmStore {
    pub async fn open(path: &Path) -> Result<Self> {
        let store = Store::open(path, MIGRATIONS)?;
        let rows = store.transact(list).await?;
        let rows = rows.into_iter().map(|row| (row.name.clone(), row)).collect();
        Ok(Self { store, rows: Arc::new(Mutex::new(rows)), changing: Arc::default() })
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<VmName, VmRow>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reservation: checks the name, takes the next free address and inserts the row, all in
    /// one transaction that holds the write lock from its start. Two callers of one name meet
    /// here, and exactly one gets it.
    ///
    /// # Errors
    /// `NameTaken`, `NoFreeAddress`, `NoSuchVolume`, `VolumeInUse`.
    pub async fn reserve(&self, draft: Draft) -> Result<VmRow> {
        let _changing = self.changing.lock().await;
        let row = self.store.transact(move |transaction| reserve(transaction, draft)).await?;
        failpoint!("create.reserved");
        self.rows().insert(row.name.clone(), row.clone());
        Ok(row)
    }

    /// Fails with `NameTaken` if there is a VM of this name. Only a courtesy before long work:
    /// [`VmStore::reserve`] decides.
    pub fn check_free(&self, name: &VmName) -> Result<()> {
        if self.contains(name) { Err(taken(name)) } else { Ok(()) }
    }

    pub fn contains(&self, name: &VmName) -> bool {
        self.rows().contains_key(name)
    }

    /// # Errors
    /// `NoSuchVm`.
    pub fn get(&self, name: &VmName) -> Result<VmRow> {
        self.rows().get(name).cloned().ok_or_else(|| no_such_vm(name.as_str()))
    }

    /// All VMs, by name.
    pub fn list(&self) -> Vec<VmRow> {
        self.rows().values().cloned().collect()
    }

    pub async fn mark_started(&self, name: &VmName, usec: u64, run: Run) -> Result<VmRow> {
        self.change(name, move |_, row| {
            row.started_usec = Some(usec);
            row.run = Some(run);
            Ok(())
        })
        .await
    }

    pub async fn mark_ended(&self, name: &VmName, ended: Ended) -> Result<VmRow> {
        self.change(name, move |_, row| {
            row.ended = Some(ended);
            Ok(())
        })
        .await
    }

    pub async fn set_whole(&self, name: &VmName, whole: bool) -> Result<VmRow> {
        self.change(name, move |_, row| {
            row.whole = whole;
            Ok(())
        })
        .await
    }

    /// Changes what a VM is to be.
    ///
    /// # Errors
    /// What `change` returns, `NoSuchVolume`, `VolumeInUse`.
    pub async fn set_spec(
        &self,
        name: &VmName,
        change: impl FnOnce(&mut Spec) -> Result<()> + Send + 'static,
    ) -> Result<VmRow> {
        self.change(name, |transaction, row| {
            change(&mut row.spec)?;
            volumes::check_attached(transaction, &row.name, &row.spec)?;
            check_ports(transaction, &row.name, &row.spec)
        })
        .await
    }

    /// Changes a row, in the file and then in memory.
    async fn change(
        &self,
        name: &VmName,
        change: impl FnOnce(&Transaction<'_>, &mut VmRow) -> Result<()> + Send + 'static,
    ) -> Result<VmRow> {
        let _changing = self.changing.lock().await;
        let mut row = self.get(name)?;
        let row = self
            .store
            .transact(move |transaction| {
                change(transaction, &mut row)?;
                update(transaction, &row)?;
                Ok(row)
            })
            .await?;
        self.rows().insert(row.name.clone(), row.clone());
        Ok(row)
    }

    /// Frees name and address.
    pub async fn remove(&self, name: &VmName) -> Result<()> {
        let _changing = self.changing.lock().await;
        let gone = name.clone();
        self.store
            .transact(move |transaction| {
                transaction.execute("DELETE FROM vms WHERE name = ?", [gone.as_str()]).map(drop).map_err(db)
            })
            .await?;
        self.rows().remove(name);
        Ok(())
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
    volumes::check_attached(transaction, &name, &draft.spec)?;
    check_ports(transaction, &name, &draft.spec)?;
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
        machine_id: draft.machine_id,
        created_usec: draft.created_usec,
        started_usec: None,
        run: None,
        ended: None,
        whole: false,
    };
    insert(transaction, &row)?;
    Ok(row)
}

fn check_free(transaction: &Transaction<'_>, name: &VmName) -> Result<()> {
    let found = transaction
        .query_row("SELECT 1 FROM vms WHERE name = ?", [name.as_str()], |_| Ok(()))
        .optional()
        .map_err(db)?;
    found.map_or(Ok(()), |()| Err(taken(name)))
}

/// Checks the forwards of a VM that is about to be written: no other VM has the port.
fn check_ports(transaction: &Transaction<'_>, vm: &VmName, spec: &Spec) -> Result<()> {
    if spec.forwards.is_empty() {
        return Ok(());
    }
    for other in list(transaction)?.iter().filter(|other| other.name != *vm) {
        for Forward { listen, .. } in &other.spec.forwards {
            if spec.forwards.iter().any(|forward| forward.listen == *listen) {
                return Err(ErrorKind::PortInUse.error(format!(
                    "{listen} is forwarded to {} already: choose another port, or take it away with \
                     `banger net forward rm`",
                    other.name
                )));
            }
        }
    }
    Ok(())
}

fn taken(name: &VmName) -> Error {
    ErrorKind::NameTaken.error(format!(
        "there is a VM {name} already: choose another name, or delete it with `banger rm {name}`"
    ))
}

fn list(transaction: &Transaction<'_>) -> Result<Vec<VmRow>> {
    let mut statement = transaction.prepare("SELECT * FROM vms ORDER BY name").map_err(db)?;
    let rows = statement.query_map([], |row| Ok(read(row))).map_err(db)?;
    rows.map(|row| row.map_err(db)?).collect()
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
            "INSERT INTO vms (name, address, image, image_id, kernel, spec, machine_id, created_usec, whole)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                row.name.as_str(),
                u32::from(row.address),
                row.image,
                row.image_id,
                row.kernel,
                spec,
                row.machine_id,
                row.created_usec as i64,
                row.whole
            ],
        )
        .map(drop)
        .map_err(db)
}

fn update(transaction: &Transaction<'_>, row: &VmRow) -> Result<()> {
    let spec = serde_json::to_string(&row.spec).map_err(Error::internal)?;
    let run = row.run.as_ref().map(serde_json::to_string).transpose().map_err(Error::internal)?;
    let ended = row.ended.as_ref().map(serde_json::to_string).transpose().map_err(Error::internal)?;
    transaction
        .execute(
            "UPDATE vms SET spec = ?, started_usec = ?, run = ?, ended = ?, whole = ? WHERE name = ?",
            params![spec, row.started_usec.map(|usec| usec as i64), run, ended, row.whole, row.name.as_str()],
        )
        .map(drop)
        .map_err(db)
}

fn read(row: &Row<'_>) -> Result<VmRow> {
    let text = |column: &str| row.get::<_, String>(column).map_err(db);
    let name = VmName::new(&text("name")?).map_err(Error::internal)?;
    let malformed = |error: serde_json::Error| Error::internal(format!("row of {name}: {error}"));
    let spec = serde_json::from_str(&text("spec")?).map_err(malformed)?;
    let run = row.get::<_, Option<String>>("run").map_err(db)?;
    let run = run.map(|text| serde_json::from_str(&text).map_err(malformed)).transpose()?;
    let ended = row.get::<_, Option<String>>("ended").map_err(db)?;
    let ended = ended.map(|text| serde_json::from_str(&text).map_err(malformed)).transpose()?;
    Ok(VmRow {
        name,
        address: Ipv4Addr::from(row.get::<_, u32>("address").map_err(db)?),
        image: text("image")?,
        image_id: text("image_id")?,
        kernel: text("kernel")?,
        spec,
        machine_id: text("machine_id")?,
        created_usec: row.get::<_, i64>("created_usec").map_err(db)? as u64,
        started_usec: row.get::<_, Option<i64>>("started_usec").map_err(db)?.map(|usec| usec as u64),
        run,
        ended,
        whole: row.get("whole").map_err(db)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, VmStore) {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = VmStore::open(&dir.path().join("vmd.db")).await.expect("opens");
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
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            created_usec: 1,
        }
    }

    #[tokio::test]
    async fn a_name_has_one_winner() {
        let (_dir, store) = store().await;
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
        let (_dir, store) = store().await;
        let mut addresses = BTreeSet::new();
        for index in 0..5 {
            let row = store.reserve(draft(&[&format!("vm{index}")])).await.expect("reserves");
            assert!(addresses.insert(row.address));
        }
        let error = store.reserve(draft(&["vm5"])).await.expect_err("full");
        assert_eq!(error.kind(), ErrorKind::NoFreeAddress);
        // A failed reservation takes nothing, not even the name.
        store.check_free(&VmName::new("vm5").expect("valid")).expect("free");
        store.remove(&VmName::new("vm3").expect("valid")).await.expect("removes");
        let row = store.reserve(draft(&["vm5"])).await.expect("reserves");
        assert!(addresses.contains(&row.address), "the address of the removed VM is free again");
    }

    #[tokio::test]
    async fn falls_back_to_the_next_name() {
        let (_dir, store) = store().await;
        store.reserve(draft(&["a"])).await.expect("reserves");
        let row = store.reserve(draft(&["a", "b"])).await.expect("reserves");
        assert_eq!(row.name.as_str(), "b");
    }

    #[tokio::test]
    async fn rows_come_back() {
        let (dir, store) = store().await;
        let path = dir.path().join("vmd.db");
        let row = store.reserve(draft(&["web"])).await.expect("reserves");
        assert_eq!(store.get(&row.name).expect("there"), row);
        let run = Run { vmm: VmmChoice::Qemu, spec: row.spec.clone(), restored: true, address6: None };
        store.mark_started(&row.name, 7, run.clone()).await.expect("marks");
        let ended = Ended { usec: 8, reason: "it was time".into() };
        store.mark_ended(&row.name, ended.clone()).await.expect("marks");
        let wanted = |spec: &mut Spec| {
            spec.cpus = 3;
            Ok(())
        };
        store.set_spec(&row.name, wanted).await.expect("sets");
        store.set_whole(&row.name, true).await.expect("sets");
        let mut now = VmRow { started_usec: Some(7), run: Some(run), ended: Some(ended), whole: true, ..row };
        now.spec.cpus = 3;
        assert_eq!((now.spec.cpus, now.started_spec().cpus), (3, 1));
        // Its run is over; in the next one it is what it was started with.
        assert_eq!(now.running_spec().cpus, 3);
        assert_eq!(VmRow { started_usec: Some(9), ..now.clone() }.running_spec().cpus, 1);
        assert_eq!(store.list(), [now.clone()]);
        drop(store);
        let store = VmStore::open(&path).await.expect("opens");
        assert_eq!(store.list(), [now]);
        let error = store.get(&VmName::new("x").expect("valid")).expect_err("none");
        assert_eq!(error.kind(), ErrorKind::NoSuchVm);
    }

    #[tokio::test]
    async fn a_change_that_fails_changes_nothing() {
        let (_dir, store) = store().await;
        let row = store.reserve(draft(&["web"])).await.expect("reserves");
        let refused = |spec: &mut Spec| {
            spec.cpus = 9;
            Err(ErrorKind::InvalidArgs.error("no"))
        };
        assert!(store.set_spec(&row.name, refused).await.is_err());
        assert_eq!(store.get(&row.name).expect("there"), row);
    }

    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Reserve(Vec<u8>),
        Remove(u8),
        Set(u8, u32),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = 0u8..8;
        prop_oneof![
            4 => proptest::collection::vec(name.clone(), 1..3).prop_map(Step::Reserve),
            2 => name.clone().prop_map(Step::Remove),
            1 => (name, 1u32..64).prop_map(|(name, cpus)| Step::Set(name, cpus)),
            1 => Just(Step::Reopen),
        ]
    }

    /// The names of the model: more than the range of [`draft`] has addresses for.
    fn vm(number: u8) -> VmName {
        VmName::new(&format!("vm{number}")).expect("valid")
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// The store does what a plain map would, and at no time do two VMs share an address.
        #[test]
        fn the_store_is_a_map_with_unique_addresses(steps in proptest::collection::vec(step(), 1..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (dir, mut store) = store().await;
                let mut model: BTreeMap<VmName, (Ipv4Addr, u32)> = BTreeMap::new();
                for step in steps {
                    match step {
                        Step::Reserve(numbers) => {
                            let names: Vec<VmName> = numbers.into_iter().map(vm).collect();
                            let free = names.iter().find(|name| !model.contains_key(*name)).cloned();
                            let taken: BTreeSet<Ipv4Addr> = model.values().map(|(address, _)| *address).collect();
                            let reserved = store.reserve(Draft { names, ..draft(&["x"]) }).await;
                            match (free, address::next_free(draft(&["x"]).range, &taken)) {
                                (None, _) => {
                                    let error = reserved.expect_err("no name is free");
                                    prop_assert_eq!(error.kind(), ErrorKind::NameTaken);
                                }
                                (Some(_), None) => {
                                    let error = reserved.expect_err("no address is free");
                                    prop_assert_eq!(error.kind(), ErrorKind::NoFreeAddress);
                                }
                                (Some(name), Some(address)) => {
                                    let row = reserved.expect("reserves");
                                    prop_assert_eq!((&row.name, row.address), (&name, address));
                                    model.insert(name, (address, row.spec.cpus));
                                }
                            }
                        }
                        Step::Remove(number) => {
                            store.remove(&vm(number)).await.expect("removes");
                            model.remove(&vm(number));
                        }
                        Step::Set(number, cpus) => {
                            let change = move |spec: &mut Spec| {
                                spec.cpus = cpus;
                                Ok(())
                            };
                            let set = store.set_spec(&vm(number), change).await;
                            prop_assert_eq!(set.is_ok(), model.contains_key(&vm(number)));
                            model.entry(vm(number)).and_modify(|(_, set)| *set = cpus);
                        }
                        Step::Reopen => {
                            drop(store);
                            store = VmStore::open(&dir.path().join("vmd.db")).await.expect("opens");
                        }
                    }
                    let rows: BTreeMap<VmName, (Ipv4Addr, u32)> =
                        store.list().into_iter().map(|row| (row.name, (row.address, row.spec.cpus))).collect();
                    prop_assert_eq!(&rows, &model);
                    let addresses: BTreeSet<Ipv4Addr> = rows.values().map(|(address, _)| *address).collect();
                    prop_assert_eq!(addresses.len(), rows.len());
                }
                Ok(())
            })?;
        }
    }
}
