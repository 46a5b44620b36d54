//! From a repository to a guest: all the first time, and what has changed after that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::{ErrorKind, Result};
use banger_files::listing::{Entry, Kind, Listing};
use tempfile::TempDir;

use super::guest::Guest;
use super::plan::{self, Plan, changed, describe, heads_changed, plan};
use super::record::{Mode, Record};
use super::source::{self, Source, Wish};

/// How often it is tried to send files that stay the same meanwhile.
const ATTEMPTS: u32 = 3;
/// Longer than the time of a file stands still under a kernel of 100 Hz: what is changed after this has another one.
const TICK: Duration = Duration::from_millis(20);

/// What was done.
#[derive(Debug, Default)]
pub struct Prepared {
    pub record: Record,
    pub sent: u64,
    pub removed: u64,
    pub bytes: u64,
    pub remarks: Vec<String>,
}

/// A workspace that is prepared.
#[derive(Debug)]
pub struct Target<'a> {
    pub vm: &'a str,
    pub path: &'a str,
    /// Where its record is.
    pub record: &'a Path,
    /// What the guest changed is overwritten.
    pub force: bool,
}

/// Makes the guest's directory what the repository is.
///
/// # Errors
/// `RepositoryUnusable`; `WorkspaceChanged` and `FileInTheWay` without `force`; those of the guest.
pub async fn prepare(guest: &impl Guest, wish: &Wish, target: &Target<'_>) -> Result<Prepared> {
    let mut prepared = Prepared::default();
    for attempt in 1..=ATTEMPTS {
        if once(guest, wish, target, attempt > 1, &mut prepared).await? {
            source::keep(&prepared.record.repository, target.vm, &prepared.record.parts)?;
            return Ok(prepared);
        }
    }
    Err(ErrorKind::NotReady.error(format!(
        "files of {} change all the time while they are sent; prepare the workspace again when they do not",
        wish.directory.display()
    )))
}

/// Says whether the files stayed the same meanwhile.
async fn once(
    guest: &impl Guest,
    wish: &Wish,
    target: &Target<'_>,
    again: bool,
    prepared: &mut Prepared,
) -> Result<bool> {
    let scratch = TempDir::new()?;
    let now = guest.list().await?;
    let first = source::repositories(&wish.directory)?.swap_remove(0);
    let old =
        Record::load(target.record)?.filter(|old| old.path == target.path && old.repository == first.top);
    // Where nothing is, nothing was prepared.
    let old = old.filter(|_| now.is_some());
    let now = now.unwrap_or_default();
    if old.is_none() && !now.is_empty() && !target.force {
        return Err(ErrorKind::FileInTheWay.error(format!(
            "{} in the VM has files that were not prepared from {}; --force leaves them and prepares around them",
            target.path,
            first.top.display()
        )));
    }
    let whole = old.as_ref().filter(|old| old.whole);
    let unknown = Listing::new();
    let (sent, landed) = whole.map_or((&unknown, &unknown), |old| (&old.sent, &old.landed));
    let heads = whole.map(|old| heads_changed(&old.landed, &now)).unwrap_or_default();
    // A .git that the guest changed is sent anew.
    let history = whole
        .filter(|old| old.mode == wish.mode && (heads.is_empty() || !target.force) && has_git(old, &now));
    let source = source::gather(wish, target.vm, history, scratch.path())?;

    let touched: Vec<_> = match whole {
        Some(old) if !again => protected(&source, changed(&old.landed, &now).into_iter().collect())?,
        _ => Vec::new(),
    };
    let touched = differing(guest, &source, touched, &now, scratch.path()).await?;
    let git_is_sent = !source.history.is_empty() || wish.mode == Mode::FullCopy;
    let conflicts: Vec<_> =
        heads.into_iter().filter(|_| git_is_sent && !again).chain(touched.clone()).collect();
    if !target.force && !conflicts.is_empty() {
        return Err(ErrorKind::WorkspaceChanged.error(format!(
            "{} was changed in the VM since it was prepared: {}; `banger workspace export {}` gets that, --force \
             overwrites it",
            target.path,
            describe(&conflicts),
            target.vm
        )));
    }

    let sent_before = old.as_ref().map_or(&unknown, |old| &old.sent);
    let Plan { send, mut remove } = plan(&source.wanted, sent, landed, &now);
    remove.extend(
        sent_before
            .keys()
            .rev()
            .filter(|path| !sent.contains_key(*path) && !source.wanted.contains_key(*path))
            .cloned(),
    );
    remove.extend(
        touched.into_iter().filter(|path| !landed.contains_key(path) && !source.wanted.contains_key(path)),
    );
    let mut record = Record {
        repository: first.top,
        path: target.path.to_owned(),
        mode: wish.mode,
        whole: false,
        parts: source.parts.clone(),
        tools: old.as_ref().map(|old| old.tools.clone()).unwrap_or_default(),
        sent: source.wanted.clone(),
        landed: Listing::new(),
    };
    let mut begun = record.clone();
    begun.sent.extend(sent_before.clone());
    begun.save(target.record)?;

    prepared.removed += remove.len() as u64;
    if !remove.is_empty() {
        guest.remove(&remove).await?;
    }
    let files: Vec<_> = send.iter().map(|path| (path.clone(), source.place(path))).collect();
    let files: Vec<_> = files.into_iter().chain(source.history.clone()).collect();
    if !files.is_empty() {
        prepared.bytes += guest.write(files).await?;
    }
    prepared.sent += send.len() as u64;
    prepared.remarks.clone_from(&source.remarks);

    tokio::time::sleep(TICK).await;
    let now = guest.list().await?.unwrap_or_default();
    record.landed = landed_of(&source.wanted, now);
    let same = wish.from.is_some() || unchanged(wish, &source)?;
    record.whole = true;
    // What the guest's files are is known; that some are older than the host's, the lists tell the next time.
    record.save(target.record)?;
    prepared.record = record;
    Ok(same)
}

/// Whether all repositories of a record have their `.git` in the guest.
fn has_git(old: &Record, now: &Listing) -> bool {
    old.parts.iter().all(|part| now.contains_key(&part.prefix.join(".git/HEAD")))
}

/// Of files that a guest changed, those that are not ignored: nobody asks for a build's results.
fn protected(source: &Source, mut changed: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut parts: Vec<_> = source.parts.iter().collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.prefix.as_os_str().len()));
    let mut protected = Vec::new();
    for part in parts {
        let (inside, outside): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|path| path.starts_with(&part.prefix));
        changed = outside;
        let inner: Vec<_> = inside.iter().filter_map(|path| path.strip_prefix(&part.prefix).ok()).collect();
        let git = super::git::Git::at(&source.place(&part.prefix));
        let ignored = git.ignored(&inner)?;
        protected.extend(
            inner
                .iter()
                .filter(|path| !ignored.contains(&path.to_path_buf()))
                .map(|path| part.prefix.join(path)),
        );
    }
    protected.sort_unstable();
    Ok(protected)
}

/// Of files that a guest changed, those that are other than what the host has now: what came from there and was
/// applied here is no loss.
async fn differing(
    guest: &impl Guest,
    source: &Source,
    changed: Vec<PathBuf>,
    now: &Listing,
    scratch: &Path,
) -> Result<Vec<PathBuf>> {
    let comparable = |path: &PathBuf| match (now.get(path), source.wanted.get(path)) {
        (None, None) => Some(true),
        (Some(guest), Some(host)) if alike(guest, host) => Some(guest.kind == Kind::Symlink),
        _ => None,
    };
    let look_at: Vec<_> = changed.iter().filter(|path| comparable(path) == Some(false)).cloned().collect();
    let copies = scratch.join("guest");
    std::fs::create_dir(&copies)?;
    if !look_at.is_empty() {
        guest.read(&look_at, &copies).await?;
    }
    // A guest may send other than it listed: what a link leads to is not its own, and a FIFO never ends.
    let arrived = source::collect(&copies)?;
    let is_as_listed = |path: &PathBuf| match (arrived.get(path), now.get(path)) {
        (Some(copy), Some(listed)) => copy.kind == Kind::File && copy.size == listed.size,
        _ => false,
    };
    let same = |path: &PathBuf| match comparable(path) {
        Some(false) if is_as_listed(path) => {
            match (std::fs::read(copies.join(path)), std::fs::read(source.place(path))) {
                (Ok(guest), Ok(host)) => guest == host,
                _ => false,
            }
        }
        known => known == Some(true),
    };
    Ok(changed.into_iter().filter(|path| !same(path)).collect())
}

/// Whether two files may be the same, by all but their content. Of the mode git knows one bit.
fn alike(guest: &Entry, host: &Entry) -> bool {
    (guest.kind, guest.size, guest.mode & 0o100, &guest.target)
        == (host.kind, host.size, host.mode & 0o100, &host.target)
}

/// What is remembered of the guest's files: those that were sent and arrived, and what is checked out.
fn landed_of(wanted: &Listing, now: Listing) -> Listing {
    let arrived = |path: &PathBuf, entry: &Entry| wanted.get(path).is_some_and(|sent| alike(entry, sent));
    now.into_iter()
        .filter(|(path, entry)| if plan::is_git(path) { plan::is_head(path) } else { arrived(path, entry) })
        .collect()
}

/// Whether the host's files are still what was sent. git itself writes to its own at any time.
fn unchanged(wish: &Wish, source: &Source) -> Result<bool> {
    let now = source::files(wish, &source::repositories(&wish.directory)?)?;
    let user = |listing: &Listing| -> Vec<(PathBuf, Entry)> {
        listing
            .iter()
            .filter(|(path, _)| !plan::is_git(path))
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect()
    };
    Ok(user(&now) == user(&source.wanted))
}
