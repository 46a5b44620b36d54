//! What is sent of a repository: its files, those of its submodules, and a `.git` for each.
//!
//! Nothing here writes to the user's index or files. Objects are written: the files as they are sent
//! are a commit, by which later is told what the guest changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_api::{ErrorKind, Result};
use banger_files::listing::{self, Entry, Kind, Listing};
use banger_files::{beneath, unpack};
use sha2::{Digest, Sha256};

use super::git::{Git, join, split};
use super::plan::{is_git, is_object, is_ours};
use super::record::{Mode, Part, Record};

/// The mode of what is another repository, in an index.
const GITLINK: &str = "160000";

/// What of a repository is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub directory: PathBuf,
    pub mode: Mode,
    /// Ignored files, too.
    pub ignored: bool,
    /// Name of a branch to be checked out in the guest, at what is checked out here.
    pub branch: Option<String>,
    /// A commit to be sent instead of the files as they are.
    pub from: Option<String>,
}

/// A repository with files, or a submodule in it.
#[derive(Debug)]
pub struct Repository {
    /// Where it is below the first.
    pub prefix: PathBuf,
    /// Its files.
    pub top: PathBuf,
    /// Its own index and HEAD.
    pub git_dir: PathBuf,
    /// What it shares with other worktrees.
    pub common_dir: PathBuf,
    pub head: String,
    pub branch: Option<String>,
}

/// All that is to be in a guest.
#[derive(Debug, Default)]
pub struct Source {
    pub parts: Vec<Part>,
    pub wanted: Listing,
    /// Where files are that are not where they will be.
    places: BTreeMap<PathBuf, PathBuf>,
    top: PathBuf,
    /// Files of a `.git` that is made for the guest, if it is not the one the guest has: path there, path here.
    pub history: Vec<(PathBuf, PathBuf)>,
    pub remarks: Vec<String>,
}

impl Source {
    /// Where a wanted file is on the host.
    pub fn place(&self, path: &Path) -> PathBuf {
        self.places.get(path).cloned().unwrap_or_else(|| self.top.join(path))
    }
}

impl Repository {
    /// # Errors
    /// `RepositoryUnusable`, saying why.
    pub fn open(directory: &Path, prefix: PathBuf) -> Result<Self> {
        let shown = directory.display();
        let unusable = |why: &str| ErrorKind::RepositoryUnusable.error(format!("{shown} {why}"));
        let git = Git::at(directory);
        // What git says of one it does not trust is more than that.
        match git.run(&["rev-parse", "--is-inside-work-tree"]) {
            Ok(inside) if inside.starts_with(b"true") => {}
            Ok(_) => {
                return Err(unusable(
                    "has no files of a git repository: it is a bare one, or the inside of a .git",
                ));
            }
            Err(error) if error.message().contains("not a git repository") => {
                return Err(unusable("is no git repository; `git init` and a commit make it one"));
            }
            Err(error) => return Err(error),
        }
        let top = PathBuf::from(git.line(&["rev-parse", "--show-toplevel"])?);
        let git = Git::at(&top);
        let head = git
            .ask(&["rev-parse", "--verify", "-q", "HEAD^{commit}"])
            .ok_or_else(|| unusable("has no commit yet; commit something first"))?;
        let branch = git.ask(&["symbolic-ref", "-q", "HEAD"]);
        Ok(Self {
            prefix,
            git_dir: git.line(&["rev-parse", "--absolute-git-dir"])?.into(),
            common_dir: git.line(&["rev-parse", "--path-format=absolute", "--git-common-dir"])?.into(),
            branch: branch.and_then(|name| Some(name.strip_prefix("refs/heads/")?.to_owned())),
            head,
            top,
        })
    }

    pub fn git(&self) -> Git {
        Git::at(&self.top)
    }

    /// Submodules that are there, by their paths.
    fn submodules(&self) -> Result<Vec<PathBuf>> {
        let staged = self.git().run(&["ls-files", "-s", "-z"])?;
        let links = split(&staged).filter_map(|row| Staged::parse(row.as_bytes()));
        let links = links.filter(|row| row.mode == GITLINK).map(|row| row.path);
        Ok(links.filter(|path| self.top.join(path).join(".git").exists()).collect())
    }

    /// The files that a workspace has: tracked and untracked ones, and ignored ones if they are wanted.
    fn files(&self, ignored: bool) -> Result<Listing> {
        let mut arguments = vec!["ls-files", "-z", "--cached", "--others"];
        if !ignored {
            arguments.push("--exclude-standard");
        }
        let mut paths = self.git().paths(&arguments, &[])?;
        paths.sort_unstable();
        look(&self.top, &paths)
    }

    /// A commit of the files as they are, without ignored ones.
    fn commit(&self, vm: &str, known: Option<&Part>, scratch: &Path) -> Result<String> {
        let (git, tree) = self.tree(self.git(), scratch)?;
        if let Some(known) = known.filter(|known| known.head == self.head)
            && git.line(&["rev-parse", &format!("{}^{{tree}}", known.commit)]).is_ok_and(|same| same == tree)
        {
            return Ok(known.commit.clone());
        }
        let message =
            format!("Workspace of VM {vm}\n\nThe files of {} as they were sent.\n", self.top.display());
        commit_tree(&ours(git), &tree, &self.head, &message)
    }

    /// A tree of the files as they are, without ignored ones, and git with the index that it was made by.
    fn tree(&self, git: Git, scratch: &Path) -> Result<(Git, OsString)> {
        let index = scratch.join("index");
        // What is known of unchanged files saves reading them. As young as it was, for git reads those that may have changed right after.
        match fs::copy(self.git_dir.join("index"), &index) {
            Ok(_) => {
                let written = fs::metadata(self.git_dir.join("index"))?.modified()?;
                fs::File::options().write(true).open(&index)?.set_modified(written)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(fs::remove_file(&index)),
            Err(error) => return Err(banger_files::failure(&self.git_dir, &error)),
        }
        let git = git.with("GIT_INDEX_FILE", index);
        git.run(&["add", "-A"])?;
        let tree = git.line(&["write-tree"])?;
        Ok((git, tree))
    }
}

/// Makes commits in banger's name.
fn ours(git: Git) -> Git {
    ["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].into_iter().fold(
        git.with("GIT_AUTHOR_EMAIL", "banger@localhost").with("GIT_COMMITTER_EMAIL", "banger@localhost"),
        |git, variable| git.with(variable, "banger"),
    )
}

/// Makes commits in the caller's name, if git knows one.
pub fn signed(git: Git) -> Git {
    if git.ask(&["var", "GIT_COMMITTER_IDENT"]).is_some() && git.ask(&["var", "GIT_AUTHOR_IDENT"]).is_some() {
        return git;
    }
    ours(git)
}

pub fn commit_tree(git: &Git, tree: &OsString, parent: &str, message: &str) -> Result<String> {
    let tree = tree.to_string_lossy();
    let commit = git.feed(&["commit-tree", &tree, "-p", parent], message.as_bytes())?;
    Ok(String::from_utf8_lossy(&commit).trim().to_owned())
}

/// A row of `git ls-files -s` or `git ls-tree -r`.
struct Staged<'a> {
    mode: &'a str,
    object: &'a str,
    path: PathBuf,
}

impl<'a> Staged<'a> {
    fn parse(row: &'a [u8]) -> Option<Self> {
        let tab = row.iter().position(|&byte| byte == b'\t')?;
        let words: Vec<_> = std::str::from_utf8(&row[..tab]).ok()?.split(' ').collect();
        let [mode, .., last] = words.as_slice() else { return None };
        // Before a path there is either a stage of one digit, or a type before the object.
        let object = if last.len() == 1 { words.get(1)? } else { last };
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&row[tab + 1..]));
        Some(Self { mode, object, path })
    }
}

/// The repository that a directory is in, and its submodules, outer ones first.
pub fn repositories(directory: &Path) -> Result<Vec<Repository>> {
    let mut found = vec![Repository::open(directory, PathBuf::new())?];
    let mut next = 0;
    while let Some(outer) = found.get(next) {
        let (top, prefix) = (outer.top.clone(), outer.prefix.clone());
        for path in outer.submodules()? {
            match Repository::open(&top.join(&path), prefix.join(&path)) {
                Ok(inner) if inner.top != top => found.push(inner),
                // One without a commit, or that is not one of its own.
                _ => {}
            }
        }
        next += 1;
    }
    Ok(found)
}

/// What these paths below a directory are. Those that are not there, or behind a link, are left out.
/// A directory is what another repository is in, which git wants to be there even if it is not.
pub fn look(top: &Path, paths: &[PathBuf]) -> Result<Listing> {
    let root = unpack::target(top)?;
    let mut listing = Listing::new();
    let mut parent: Option<(&Path, nix::Result<OwnedFd>)> = None;
    for path in paths {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { continue };
        if parent.as_ref().is_none_or(|(known, _)| *known != above) {
            parent = Some((above, beneath(&root, above)));
        }
        let Some((_, Ok(directory))) = &parent else { continue };
        match Entry::of(directory, name) {
            Ok(entry) if entry.kind != Kind::Other => drop(listing.insert(path.clone(), entry)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(banger_files::failure(&top.join(path), &error)),
        }
    }
    Ok(listing)
}

/// The files that a workspace's repository was sent with, without ignored ones, by their paths, and the objects that they
/// are.
///
/// # Errors
/// `RepositoryUnusable`.
pub fn committed(record: &Record) -> Result<BTreeMap<String, String>> {
    let Some(part) = record.parts.first() else { return Ok(BTreeMap::new()) };
    objects(&Git::at(&record.repository), &part.commit)
}

/// The same of a repository as it is now. Nothing is written to it.
///
/// # Errors
/// `RepositoryUnusable`.
pub fn current(directory: &Path) -> Result<BTreeMap<String, String>> {
    let repository = Repository::open(directory, PathBuf::new())?;
    let scratch = tempfile::tempdir()?;
    let git = repository.git().with_objects(&scratch.path().join("objects"))?;
    let (git, tree) = repository.tree(git, scratch.path())?;
    objects(&git, &tree.to_string_lossy())
}

/// The regular files of a tree.
fn objects(git: &Git, tree: &str) -> Result<BTreeMap<String, String>> {
    let rows = git.run(&["ls-tree", "-r", "-z", "--full-tree", tree])?;
    let rows = split(&rows).filter_map(|row| {
        let Staged { mode, object, path } = Staged::parse(row.as_bytes())?;
        mode.starts_with("100")
            .then(|| Some((path.into_os_string().into_string().ok()?, object.to_owned())))?
    });
    Ok(rows.collect())
}

/// All that is in a directory.
pub fn collect(directory: &Path) -> Result<Listing> {
    listing::collect(&unpack::target(directory)?)
        .map_err(|error| ErrorKind::FileFailed.error(error.to_string()))
}

/// The files of repositories as they are now, and of a full copy all else that is with them.
pub fn files(wish: &Wish, repositories: &[Repository]) -> Result<Listing> {
    let mut listing = Listing::new();
    if wish.mode == Mode::FullCopy {
        listing = collect(&repositories[0].top)?;
        listing.retain(|_, entry| entry.kind != Kind::Other);
        return Ok(listing);
    }
    for repository in repositories {
        let files = repository.files(wish.ignored)?;
        listing.extend(files.into_iter().map(|(path, entry)| (repository.prefix.join(path), entry)));
    }
    // What is in a .git is made for the guest.
    listing.retain(|path, _| !is_git(path));
    Ok(listing)
}

/// Gathers what is to be in the guest. `previous` is what it has; without it the guest gets all of the history.
pub fn gather(wish: &Wish, vm: &str, previous: Option<&Record>, scratch: &Path) -> Result<Source> {
    let mut repositories = repositories(&wish.directory)?;
    let mut source = Source { top: repositories[0].top.clone(), ..Source::default() };
    if let Some(revision) = &wish.from {
        let submodules = repositories.split_off(1).len();
        if submodules > 0 {
            source.remarks.push(format!("submodules are left out with --from: {submodules}"));
        }
        source.check_out(&mut repositories[0], revision, scratch)?;
    }
    for (number, repository) in repositories.iter().enumerate() {
        let scratch = scratch.join(number.to_string());
        fs::create_dir(&scratch)?;
        let known =
            previous.and_then(|record| record.parts.iter().find(|part| part.prefix == repository.prefix));
        let mut part =
            Part { prefix: repository.prefix.clone(), head: repository.head.clone(), ..Part::default() };
        part.commit = match wish.from {
            Some(_) => repository.head.clone(),
            None => repository.commit(vm, known, &scratch)?,
        };
        if wish.mode != Mode::FullCopy {
            source.make_history(repository, wish, &mut part, known, &scratch)?;
        }
        source.parts.push(part);
    }
    if wish.from.is_none() {
        source.wanted = files(wish, &repositories)?;
    }
    if wish.mode == Mode::FullCopy {
        repositories.iter().try_for_each(|repository| source.embed(repository, scratch))?;
        // Which VMs have it is nothing of theirs.
        source.wanted.retain(|path, _| !is_ours(path));
        // What an object is called says what is in it, and git makes it younger each time that it comes across it.
        let objects = source.wanted.iter_mut().filter(|(path, _)| is_object(path));
        objects.for_each(|(_, entry)| (entry.mtime, entry.ctime) = (0, 0));
    }
    Ok(source)
}

/// Lets the commits that were sent stay as long as the VM's workspace is known.
pub fn keep(repository: &Path, vm: &str, parts: &[Part]) -> Result<()> {
    parts.iter().try_for_each(|part| {
        let git = Git::at(&repository.join(&part.prefix));
        git.run(&["update-ref", &reference(vm), &part.commit]).map(drop)
    })
}

pub fn let_go(repository: &Path, vm: &str, parts: &[Part]) {
    for part in parts {
        let _ = Git::at(&repository.join(&part.prefix)).run(&["update-ref", "-d", &reference(vm)]);
    }
}

fn reference(vm: &str) -> String {
    format!("refs/banger/{vm}")
}

impl Source {
    /// A commit's files, written where nobody works on them.
    fn check_out(&mut self, repository: &mut Repository, revision: &str, scratch: &Path) -> Result<()> {
        let git = repository.git();
        let commit =
            git.ask(&["rev-parse", "--verify", "-q", "--end-of-options", &format!("{revision}^{{commit}}")]);
        repository.head = commit.ok_or_else(|| {
            ErrorKind::InvalidArgs.error(format!("{revision:?} is no commit of this repository"))
        })?;
        let tree = scratch.join("tree");
        fs::create_dir(&tree)?;
        let git = git
            .with("GIT_INDEX_FILE", scratch.join("from"))
            .with("GIT_DIR", &repository.git_dir)
            .with("GIT_WORK_TREE", &tree);
        git.run(&["read-tree", &repository.head])?;
        git.run(&["checkout-index", "-a", "-f"])?;
        for row in split(&git.run(&["ls-files", "-s", "-z"])?) {
            let Some(row) = Staged::parse(row.as_bytes()) else { continue };
            let place = tree.join(&row.path);
            let Some(mut entry) = look(&tree, std::slice::from_ref(&row.path))?.remove(&row.path) else {
                continue;
            };
            // It was written a moment ago: what tells whether it is the same is the content's own name.
            entry.mtime = 0;
            entry.ctime =
                i64::from_str_radix(row.object.get(..15).unwrap_or_default(), 16).unwrap_or_default();
            self.wanted.insert(row.path.clone(), entry);
            self.places.insert(row.path, place);
        }
        Ok(())
    }

    /// Puts a git directory that is elsewhere where the guest looks for it: that of another worktree, or of a submodule.
    fn embed(&mut self, repository: &Repository, scratch: &Path) -> Result<()> {
        let dot_git = repository.prefix.join(".git");
        if repository.common_dir.join("objects/info/alternates").exists() {
            return Err(ErrorKind::RepositoryUnusable.error(format!(
                "{} borrows its history from another repository, so a copy would lack it; use --mode clone",
                repository.top.display()
            )));
        }
        if self.wanted.get(&dot_git).is_none_or(|entry| entry.kind == Kind::Directory) {
            return Ok(());
        }
        self.wanted.remove(&dot_git);
        let of_others =
            ["worktrees", "modules", "config", "index", "HEAD", "logs/HEAD", "ORIG_HEAD", "FETCH_HEAD"];
        self.add_directory(&repository.common_dir, &dot_git, &of_others)?;
        if repository.git_dir != repository.common_dir {
            self.add_directory(&repository.git_dir, &dot_git, &["commondir", "gitdir", "locked"])?;
        } else {
            for name in
                of_others.into_iter().filter(|name| !matches!(*name, "worktrees" | "modules" | "config"))
            {
                self.add_file(&repository.git_dir.join(name), dot_git.join(name))?;
            }
        }
        let config = scratch.join(format!("config-{}", self.places.len()));
        fs::copy(repository.common_dir.join("config"), &config)?;
        // Where the files are is now right beside it.
        let _ =
            repository.git().run(&["config", "-f", &config.to_string_lossy(), "--unset", "core.worktree"]);
        let original = look(&repository.common_dir, &["config".into()])?;
        self.wanted.extend(original.into_values().map(|entry| (dot_git.join("config"), entry)));
        self.places.insert(dot_git.join("config"), config);
        Ok(())
    }

    fn add_directory(&mut self, from: &Path, to: &Path, except: &[&str]) -> Result<()> {
        for (path, entry) in collect(from)? {
            if except.iter().any(|name| path.starts_with(name)) {
                continue;
            }
            self.places.insert(to.join(&path), from.join(&path));
            self.wanted.insert(to.join(path), entry);
        }
        Ok(())
    }

    fn add_file(&mut self, from: &Path, to: PathBuf) -> Result<()> {
        let (Some(directory), Some(name)) = (from.parent(), from.file_name()) else { return Ok(()) };
        if let Some(entry) = look(directory, &[name.into()])?.into_values().next() {
            self.places.insert(to.clone(), from.to_owned());
            self.wanted.insert(to, entry);
        }
        Ok(())
    }

    /// Makes a `.git` with what is checked out, the index as it is, and of the history what the guest does not have.
    fn make_history(
        &mut self,
        repository: &Repository,
        wish: &Wish,
        part: &mut Part,
        known: Option<&Part>,
        scratch: &Path,
    ) -> Result<()> {
        let made = scratch.join("git");
        fs::create_dir_all(made.join("objects/pack"))?;
        let shallow = wish.mode == Mode::Shallow;
        let tags = if shallow { Vec::new() } else { tags(repository)? };
        part.shallow = known.map(|part| part.shallow.clone()).unwrap_or_default();
        if shallow {
            part.shallow.push(repository.head.clone());
        } else if let Ok(lines) = fs::read_to_string(repository.common_dir.join("shallow")) {
            part.shallow.extend(lines.lines().map(str::to_owned));
        }
        part.shallow.sort_unstable();
        part.shallow.dedup();

        // With --from the caller's branch is not what is sent.
        let branch = wish.branch.as_ref().or(repository.branch.as_ref().filter(|_| wish.from.is_none()));
        let branch = branch.filter(|_| repository.prefix.as_os_str().is_empty() || wish.branch.is_none());
        let head = &repository.head;
        let mut files = vec![
            ("refs/banger/base".to_owned(), format!("{head}\n")),
            ("config".to_owned(), config(repository)),
        ];
        match branch {
            Some(branch) => {
                files.push(("HEAD".to_owned(), format!("ref: refs/heads/{branch}\n")));
                files.push((format!("refs/heads/{branch}"), format!("{head}\n")));
            }
            None => files.push(("HEAD".to_owned(), format!("{head}\n"))),
        }
        files.extend(tags.iter().map(|(object, name)| (name.clone(), format!("{object}\n"))));
        if !part.shallow.is_empty() {
            files.push((
                "shallow".to_owned(),
                part.shallow.iter().map(|commit| format!("{commit}\n")).collect(),
            ));
        }
        for (name, content) in &files {
            let path = made.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&made))?;
            fs::write(path, content)?;
        }
        let staged = make_index(repository, wish, &made.join("index"))?;
        part.history = digest(&made, &files)?;
        if known.is_some_and(|known| known.history == part.history) {
            return Ok(());
        }
        make_pack(repository, &tags, &staged, shallow, known, &made)?;
        for (path, entry) in collect(&made)? {
            if entry.kind == Kind::File {
                let place = made.join(&path);
                self.history.push((repository.prefix.join(".git").join(path), place));
            }
        }
        Ok(())
    }
}

/// Tags of what is checked out: object, name.
fn tags(repository: &Repository) -> Result<Vec<(String, String)>> {
    let merged = format!("--merged={}", repository.head);
    let rows =
        repository.git().run(&["for-each-ref", &merged, "--format=%(objectname) %(refname)", "refs/tags"])?;
    let rows = String::from_utf8_lossy(&rows).into_owned();
    Ok(rows
        .lines()
        .filter_map(|row| row.split_once(' '))
        .map(|(object, name)| (object.to_owned(), name.to_owned()))
        .collect())
}

/// The settings of a guest's repository: its form, and who commits.
fn config(repository: &Repository) -> String {
    let git = repository.git();
    let format = git.ask(&["rev-parse", "--show-object-format"]).unwrap_or_default();
    let version = u8::from(format == "sha256");
    let mut text = format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n"
    );
    if version == 1 {
        text += "[extensions]\n\tobjectFormat = sha256\n";
    }
    let quoted = |value: String| {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    };
    for key in ["name", "email"] {
        if let Some(value) = git.ask(&["config", "--get", &format!("user.{key}")]) {
            text += &format!("[user]\n\t{key} = {}\n", quoted(value));
        }
    }
    text
}

/// Writes an index with what is staged, and nothing of how the files look here. Returns the objects in it.
fn make_index(repository: &Repository, wish: &Wish, index: &Path) -> Result<BTreeSet<String>> {
    let git = repository.git();
    let made = repository.git().with("GIT_INDEX_FILE", index);
    if wish.from.is_some() {
        made.run(&["read-tree", &repository.head])?;
        return Ok(BTreeSet::new());
    }
    let staged = git.run(&["ls-files", "-s", "-z"])?;
    made.run(&["read-tree", "--empty"])?;
    made.feed(&["update-index", "-z", "--index-info"], &staged)?;
    let flags = git.run(&["ls-files", "-t", "-z"])?;
    let sparse: Vec<_> = split(&flags).filter_map(|row| row.as_bytes().strip_prefix(b"S ")).collect();
    if !sparse.is_empty() {
        let paths: Vec<_> = sparse.into_iter().map(std::ffi::OsStr::from_bytes).collect();
        made.feed(&["update-index", "--skip-worktree", "-z", "--stdin"], &join(&paths))?;
    }
    let rows = split(&staged).filter_map(|row| Staged::parse(row.as_bytes()));
    Ok(rows.filter(|row| row.mode != GITLINK).map(|row| row.object.to_owned()).collect())
}

/// What tells one history from another: all but the objects, which follow from it.
fn digest(made: &Path, files: &[(String, String)]) -> Result<String> {
    let mut digest = Sha256::new();
    for (name, content) in files {
        digest.update(format!("{name}\0{content}\0"));
    }
    digest.update(fs::read(made.join("index"))?);
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Packs the objects that the guest does not have.
fn make_pack(
    repository: &Repository,
    tags: &[(String, String)],
    staged: &BTreeSet<String>,
    shallow: bool,
    known: Option<&Part>,
    made: &Path,
) -> Result<()> {
    let git = repository.git();
    let head = repository.head.as_str();
    // One that was rewritten may be gone here.
    let known = known.map(|part| part.head.as_str());
    let known = known.filter(|head| git.run(&["cat-file", "-e", &format!("{head}^{{commit}}")]).is_ok());
    let mut objects = if shallow {
        let of = |commit: &str| git.run(&["rev-list", "--objects", "--no-walk", commit]);
        let have = known.map(of).transpose()?.unwrap_or_default();
        let have: BTreeSet<&[u8]> = have.split(|&byte| byte == b'\n').collect();
        let all = of(head)?;
        all.split(|&byte| byte == b'\n').filter(|line| !have.contains(line)).collect::<Vec<_>>().join(&b'\n')
    } else {
        let mut wanted = format!("{head}\n");
        tags.iter().for_each(|(object, _)| wanted += &format!("{object}\n"));
        known.iter().for_each(|known| wanted += &format!("^{known}\n"));
        git.feed(&["rev-list", "--objects", "--stdin"], wanted.as_bytes())?
    };
    let committed = git.run(&["ls-tree", "-r", "-z", head])?;
    let committed: BTreeSet<_> =
        split(&committed).filter_map(|row| Some(Staged::parse(row.as_bytes())?.object.to_owned())).collect();
    objects.push(b'\n');
    staged.difference(&committed).for_each(|object| objects.extend(format!("{object}\n").bytes()));
    let objects: Vec<u8> = objects
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .flat_map(|line| [line, b"\n"].concat())
        .collect();
    if objects.is_empty() {
        return Ok(());
    }
    let pack = made.join("objects/pack/pack");
    let pack =
        pack.to_str().ok_or_else(|| ErrorKind::NotReady.error("the path of temporary files is no text"))?;
    // It is moved to its place from among the objects, which must not be on another disk.
    git.with_objects(&made.join("objects"))?.feed(&["pack-objects", "-q", pack], &objects).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_indexes_and_trees() {
        let row = Staged::parse(b"100644 0123 0\ta b\tc").expect("parses");
        assert_eq!((row.mode, row.object, row.path.as_path()), ("100644", "0123", Path::new("a b\tc")));
        let row = Staged::parse(b"160000 commit 4567\tsub").expect("parses");
        assert_eq!((row.mode, row.object), (GITLINK, "4567"));
        assert!(Staged::parse(b"100644").is_none());
    }
}
