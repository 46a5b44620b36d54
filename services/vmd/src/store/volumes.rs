//! Volumes: disks that exist by themselves, and which VMs have them.

use banger_api::{Error, ErrorKind, Result};
use banger_core::name::VmName;
use banger_core::spec::Spec;
use banger_daemon::store::db;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{VmStore, VolumeRow, list};

impl VmStore {
    /// # Errors
    /// `NameTaken`.
    pub async fn add_volume(&self, row: VolumeRow) -> Result<()> {
        self.store
            .transact(move |transaction| {
                if find(transaction, row.name.as_str())?.is_some() {
                    return Err(ErrorKind::NameTaken
                        .error(format!("there is a volume {} already: choose another name", row.name)));
                }
                transaction
                    .execute(
                        "INSERT INTO volumes (name, bytes, created_usec) VALUES (?, ?, ?)",
                        params![row.name.as_str(), row.bytes as i64, row.created_usec as i64],
                    )
                    .map(drop)
                    .map_err(db)
            })
            .await
    }

    /// All volumes by name, each with the VMs that have it.
    pub async fn volumes(&self) -> Result<Vec<(VolumeRow, Vec<VmName>)>> {
        let vms = self.list();
        let volumes: Vec<VolumeRow> = self
            .store
            .transact(|transaction| {
                let mut statement = transaction.prepare("SELECT * FROM volumes ORDER BY name").map_err(db)?;
                let rows = statement.query_map([], |row| Ok(read(row))).map_err(db)?;
                rows.map(|row| row.map_err(db)?).collect()
            })
            .await?;
        let users = |volume: &VolumeRow| -> Vec<VmName> {
            let has = |spec: &Spec| spec.volumes.iter().any(|mount| mount.volume == volume.name.as_str());
            vms.iter().filter(|vm| has(&vm.spec)).map(|vm| vm.name.clone()).collect()
        };
        Ok(volumes.into_iter().map(|volume| (volume.clone(), users(&volume))).collect())
    }

    /// # Errors
    /// `NoSuchVolume`, or `VolumeInUse` while a VM has it.
    pub async fn remove_volume(&self, name: &VmName) -> Result<()> {
        let _changing = self.changing.lock().await;
        let name = name.clone();
        self.store
            .transact(move |transaction| {
                find(transaction, name.as_str())?.ok_or_else(|| no_such_volume(name.as_str()))?;
                for vm in list(transaction)? {
                    if vm.spec.volumes.iter().any(|mount| mount.volume == name.as_str()) {
                        return Err(ErrorKind::VolumeInUse.error(format!(
                            "volume {name} belongs to {}: take it away with `banger set`, or delete the VM",
                            vm.name
                        )));
                    }
                }
                transaction
                    .execute("DELETE FROM volumes WHERE name = ?", [name.as_str()])
                    .map(drop)
                    .map_err(db)
            })
            .await
    }
}

/// Checks the volumes of a VM that is about to be written: each exists, and one that anybody may
/// write has no other user.
pub(super) fn check_attached(transaction: &Transaction<'_>, vm: &VmName, spec: &Spec) -> Result<()> {
    if spec.volumes.is_empty() {
        return Ok(());
    }
    let others = list(transaction)?;
    for mount in &spec.volumes {
        let name = &mount.volume;
        find(transaction, name)?.ok_or_else(|| no_such_volume(name))?;
        if spec.volumes.iter().filter(|other| other.volume == *name).count() > 1 {
            return Err(ErrorKind::InvalidArgs.error(format!("volume {name} is named twice")));
        }
        for other in others.iter().filter(|other| other.name != *vm) {
            let theirs = other.spec.volumes.iter().find(|theirs| theirs.volume == *name);
            if theirs.is_some_and(|theirs| !(theirs.read_only && mount.read_only)) {
                return Err(ErrorKind::VolumeInUse.error(format!(
                    "volume {name} belongs to {}: several VMs can share it only if all have it read-only",
                    other.name
                )));
            }
        }
    }
    Ok(())
}

fn find(transaction: &Transaction<'_>, name: &str) -> Result<Option<VolumeRow>> {
    transaction
        .query_row("SELECT * FROM volumes WHERE name = ?", [name], |row| Ok(read(row)))
        .optional()
        .map_err(db)?
        .transpose()
}

fn no_such_volume(name: &str) -> Error {
    ErrorKind::NoSuchVolume.error(format!(
        "there is no volume {name:?}; `banger volume ls` lists all, `banger volume create` makes one"
    ))
}

fn read(row: &Row<'_>) -> Result<VolumeRow> {
    let name = row.get::<_, String>("name").map_err(db)?;
    Ok(VolumeRow {
        name: VmName::new(&name).map_err(Error::internal)?,
        bytes: row.get::<_, i64>("bytes").map_err(db)? as u64,
        created_usec: row.get::<_, i64>("created_usec").map_err(db)? as u64,
    })
}
