//! From a guest to a patch, or a branch.
//!
//! What the guest has is files, and nothing else of it is believed: its `.git` is not looked at. Those that have
//! changed are put into an index beside the one that was sent, with the host's git, and the two are compared. Neither
//! the host's files and index nor the guest's are touched.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use banger_api::{ErrorKind, Result};
use banger_files::listing::{Kind, Listing};
use serde::Serialize;
use tempfile::TempDir;

use super::git::{Git, join, split};
use super::guest::Guest;
use super::plan::{changed, describe, has_rules, is_git, visible};
use super::record::{Part, Record};
use super::source::{collect, commit_tree, signed};

/// What is wanted of the changes.
#[derive(Debug, Default)]
pub struct Aim<'a> {
    /// A commit to compare with, instead of what was sent.
    pub base: Option<&'a str>,
    /// A branch to be made of it.
    pub branch: Option<&'a str>,
}

#[derive(Debug, Default)]
pub struct Exported {
    /// Empty if nothing changed.
    pub patch: Vec<u8>,
    /// For people.
    pub stat: String,
    pub changes: Vec<Change>,
    /// The commit of the branch that was made.
    pub commit: Option<String>,
    pub remarks: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// As git has it: `A` new, `D` gone, `M` other, `T` of another kind, `R` and a percentage for another name.
    pub status: String,
    pub path: String,
}

/// What changed in the guest.
///
/// # Errors
/// `NoSuchWorkspace`; `RepositoryUnusable`; `NameTaken` for a branch; those of the guest.
pub async fn export(guest: &impl Guest, record: &Record, aim: &Aim<'_>) -> Result<Exported> {
    let now = guest.list().await?.ok_or_else(|| {
        ErrorKind::NoSuchWorkspace.error(format!(
            "{} is not in the VM any more; `banger workspace prepare` makes it again",
            record.path
        ))
    })?;
    let mut rest: BTreeSet<PathBuf> = changed(&record.landed, &now);
    let mut exported = Exported::default();
    let mut parts: Vec<_> = record.parts.iter().collect();
    // A file belongs to the innermost repository.
    parts.sort_by_key(|part| std::cmp::Reverse(part.prefix.as_os_str().len()));
    let mut divided = Vec::new();
    for part in parts {
        let (inside, outside): (BTreeSet<_>, _) =
            rest.into_iter().partition(|path| path.starts_with(&part.prefix));
        rest = outside;
        divided.push((part, inside));
    }
    divided.reverse();
    for (part, paths) in divided {
        let scratch = TempDir::new()?;
        let work = Work::new(record, part, scratch.path(), aim)?;
        let tree = work.tree(guest, &now, paths, &mut exported.remarks).await?;
        work.compare(&tree, &mut exported)?;
    }
    Ok(exported)
}

/// The making of one repository's tree.
struct Work<'a> {
    part: &'a Part,
    aim: &'a Aim<'a>,
    /// The files of the guest that are needed, under the names that they have there.
    files: PathBuf,
    /// git with an index, and where objects are written, of its own.
    git: Git,
    /// git at the host's files, with the same objects.
    host: Git,
}

impl<'a> Work<'a> {
    fn new(record: &Record, part: &'a Part, scratch: &Path, aim: &'a Aim<'a>) -> Result<Self> {
        let top = record.repository.join(&part.prefix);
        let mut host = Git::at(&top);
        let lost = |_| {
            ErrorKind::NoSuchWorkspace.error(format!(
                "{} does not have what was sent from it any more; prepare the workspace again",
                top.display()
            ))
        };
        host.run(&["cat-file", "-e", &format!("{}^{{tree}}", part.commit)]).map_err(lost)?;
        let git_dir = host.line(&["rev-parse", "--absolute-git-dir"])?;
        for driver in filters(&host)? {
            host = host.set(format!("{driver}.clean=")).set(format!("{driver}.smudge="));
            host = host.set(format!("{driver}.process=")).set(format!("{driver}.required=false"));
        }
        // Of a branch the objects are to stay.
        if aim.branch.is_none() || !part.prefix.as_os_str().is_empty() {
            host = host.with_objects(&scratch.join("objects"))?;
        }
        let files = scratch.join("files");
        let tree = files.join(&part.prefix);
        fs::create_dir_all(&tree)?;
        let git = host
            .clone()
            .within(&tree)
            .with("GIT_DIR", git_dir)
            .with("GIT_WORK_TREE", &tree)
            .with("GIT_INDEX_FILE", scratch.join("index"))
            .set("core.fileMode=true".to_owned())
            .set("core.symlinks=true".to_owned())
            .set("core.ignoreCase=false".to_owned())
            .set("core.protectNTFS=false".to_owned())
            .set("core.sparseCheckout=false".to_owned());
        Ok(Self { part, aim, files, git, host })
    }

    /// Writes the tree that the guest's files are; `paths` are those that are not what was sent.
    async fn tree(
        &self,
        guest: &impl Guest,
        now: &Listing,
        paths: BTreeSet<PathBuf>,
        remarks: &mut Vec<String>,
    ) -> Result<OsString> {
        self.git.run(&["read-tree", &self.part.commit])?;
        let index = self.git.run(&["ls-files", "-s", "-z"])?;
        let (links, tracked) = index_paths(&index);
        let inner = paths.iter().filter_map(|path| path.strip_prefix(&self.part.prefix).ok());
        let (foreign, paths): (Vec<_>, Vec<_>) =
            inner.map(Path::to_owned).partition(|path| path.ancestors().any(|above| links.contains(above)));
        if !foreign.is_empty() {
            remarks.push(format!("left out, because it is another repository's: {}", describe(&foreign)));
        }

        // Rules first: by them is told what of the rest counts.
        let (rules, others): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| has_rules(path));
        self.read(guest, now, &rules).await?;
        let unchanged: Vec<_> =
            tracked.iter().filter(|path| has_rules(path) && !rules.contains(path)).collect();
        self.git.feed(&["checkout-index", "-f", "-z", "--stdin"], &join(&unchanged))?;
        let new: Vec<_> = rules
            .iter()
            .chain(&others)
            .filter(|path| !tracked.contains(*path))
            .map(PathBuf::as_path)
            .collect();
        let ignored: BTreeSet<_> = self.git.ignored(&new)?.into_iter().collect();
        let others: Vec<_> = others.into_iter().filter(|path| !ignored.contains(path)).collect();
        self.read(guest, now, &others).await?;

        let paths = rules.into_iter().filter(|path| !ignored.contains(path)).chain(others);
        let (there, gone): (Vec<_>, Vec<_>) =
            paths.partition(|path| is_there(now, &self.part.prefix.join(path)));
        self.git.feed(&["update-index", "-z", "--force-remove", "--stdin"], &join(&gone))?;
        self.git.feed(&["update-index", "-z", "--add", "--remove", "--replace", "--stdin"], &join(&there))?;
        self.git.line(&["write-tree"])
    }

    /// Reads those of the files that are there.
    async fn read(&self, guest: &impl Guest, now: &Listing, paths: &[PathBuf]) -> Result<()> {
        let paths = paths.iter().map(|path| self.part.prefix.join(path));
        let paths: Vec<_> = paths.filter(|path| is_there(now, path)).collect();
        if paths.is_empty() {
            return Ok(());
        }
        guest.read(&paths, &self.files).await?;
        // A guest may send what it was not asked for, and files become directories.
        for (path, entry) in &collect(&self.files)? {
            let expected = match entry.kind {
                Kind::Directory => !now.contains_key(path) || now[path].kind == Kind::Directory,
                Kind::File | Kind::Symlink => now.get(path).is_some_and(|listed| listed.kind == entry.kind),
                Kind::Other => false,
            };
            if !expected || is_git(path) {
                return Err(ErrorKind::NotReady.error(format!(
                    "{} in the VM changes while it is read; try again",
                    describe(std::slice::from_ref(path))
                )));
            }
            if entry.kind == Kind::File {
                // Who reads it here is not who could there.
                fs::set_permissions(
                    self.files.join(path),
                    fs::Permissions::from_mode(entry.mode & 0o777 | 0o600),
                )?;
            }
        }
        Ok(())
    }

    /// Adds what is other in the tree.
    fn compare(&self, tree: &OsString, exported: &mut Exported) -> Result<()> {
        let is_first = self.part.prefix.as_os_str().is_empty();
        let base = match self.aim.base.filter(|_| is_first) {
            None => self.part.commit.clone(),
            Some(base) => {
                let named = format!("{base}^{{commit}}");
                self.host.ask(&["rev-parse", "--verify", "-q", "--end-of-options", &named]).ok_or_else(
                    || ErrorKind::InvalidArgs.error(format!("{base:?} is no commit of the repository")),
                )?
            }
        };
        let tree_name = tree.to_string_lossy();
        let prefix = |side: &str| -> Result<String> {
            let path = if is_first { String::new() } else { format!("{}/", self.part.prefix.display()) };
            Ok(format!("--{}-prefix={}/{path}", if side == "a" { "src" } else { "dst" }, side))
        };
        let (source, destination) = (prefix("a")?, prefix("b")?);
        let differ = |how: &[&str]| {
            let common = [
                "diff-tree",
                "-r",
                "-M",
                "--no-color",
                "--no-ext-diff",
                "--no-textconv",
                "--ignore-submodules=all",
            ];
            self.host.run(&[&common, how, &[&source, &destination, &base, &tree_name]].concat())
        };
        exported.patch.extend(differ(&["-p", "--binary", "--full-index"])?);
        for line in String::from_utf8_lossy(&differ(&["--stat=100", "--summary"])?).lines() {
            exported.stat += &format!("{}\n", visible(line));
        }
        exported.changes.extend(self.changes(&differ(&["--name-status", "-z"])?));
        if let Some(branch) = self.aim.branch {
            if is_first {
                exported.commit = Some(self.make_branch(branch, tree, &base)?);
            } else if tree_of(&self.host, &base)? != *tree {
                let prefix = self.part.prefix.display();
                exported
                    .remarks
                    .push(format!("changes in the submodule {prefix} are in the patch, not in the branch"));
            }
        }
        Ok(())
    }

    fn changes(&self, rows: &[u8]) -> Vec<Change> {
        let mut fields = split(rows);
        let mut changes = Vec::new();
        while let (Some(status), Some(mut path)) = (fields.next(), fields.next()) {
            let status = status.to_string_lossy().into_owned();
            if status.starts_with(['R', 'C']) {
                let Some(new) = fields.next() else { break };
                path = new;
            }
            changes.push(Change { status, path: self.part.prefix.join(path).to_string_lossy().into_owned() });
        }
        changes
    }

    /// A branch with one commit on what the guest was given, or on the base.
    fn make_branch(&self, branch: &str, tree: &OsString, base: &str) -> Result<String> {
        let name = format!("refs/heads/{branch}");
        if self.host.run(&["check-ref-format", &name]).is_err() {
            return Err(ErrorKind::InvalidArgs.error(format!("{branch:?} cannot be the name of a branch")));
        }
        // What was sent without a change of its own is not worth a commit.
        let parent = if self.aim.base.is_none()
            && tree_of(&self.host, base)? == tree_of(&self.host, &self.part.head)?
        {
            &self.part.head
        } else {
            base
        };
        let commit = commit_tree(&signed(self.host.clone()), tree, parent, "Changes made in a VM\n")?;
        let taken = |_| {
            ErrorKind::NameTaken.error(format!("there is a branch {branch} already; choose another name"))
        };
        self.host.run(&["update-ref", &name, &commit, &"0".repeat(commit.len())]).map_err(taken)?;
        Ok(commit)
    }
}

/// Whether there is something of this path that git keeps.
fn is_there(now: &Listing, path: &Path) -> bool {
    now.get(path).is_some_and(|entry| matches!(entry.kind, Kind::File | Kind::Symlink))
}

fn tree_of(git: &Git, commit: &str) -> Result<OsString> {
    git.line(&["rev-parse", &format!("{commit}^{{tree}}")])
}

/// The programs that git passes contents through, as `filter.NAME`. Which is used where, a guest's .gitattributes say, so
/// none is.
fn filters(git: &Git) -> Result<BTreeSet<String>> {
    let keys = git.ask(&["config", "-z", "--name-only", "--get-regexp", r"^filter\."]).unwrap_or_default();
    let drivers =
        keys.split('\0').filter_map(|key| key.rsplit_once('.')).map(|(driver, _)| driver.to_owned());
    let drivers: BTreeSet<_> = drivers.collect();
    match drivers.iter().find(|driver| driver.contains('=')) {
        Some(driver) => Err(ErrorKind::RepositoryUnusable
            .error(format!("the name {driver} in git's configuration has a \"=\""))),
        None => Ok(drivers),
    }
}

/// Of an index, what other repositories are at, and the files.
fn index_paths(index: &[u8]) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let (mut links, mut files) = (BTreeSet::new(), BTreeSet::new());
    for row in split(index) {
        let mut halves = row.as_bytes().splitn(2, |&byte| byte == b'\t');
        let (Some(head), Some(path)) = (halves.next(), halves.next()) else { continue };
        let set = if head.starts_with(b"160000 ") { &mut links } else { &mut files };
        set.insert(PathBuf::from(OsStr::from_bytes(path)));
    }
    (links, files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_files_and_links() {
        let (links, files) = index_paths(b"100644 aa 0\tx\ty\x00160000 bb 0\tsub\0");
        assert_eq!(Vec::from_iter(links), [Path::new("sub")]);
        assert_eq!(Vec::from_iter(files), [Path::new("x\ty")]);
    }
}
