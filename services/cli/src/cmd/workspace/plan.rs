//! What to send and what to remove, by lists of what there was and is.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use banger_files::listing::{Kind, Listing};

/// Whether a path belongs to git rather than to its user.
pub fn is_git(path: &Path) -> bool {
    inside_git(path).is_some()
}

/// Whether a path says what is checked out.
pub fn is_head(path: &Path) -> bool {
    inside_git(path).is_some_and(|path| path == Path::new("HEAD") || path.starts_with("refs/heads"))
}

/// Whether a path is what keeps the commits of [`super::source`].
pub fn is_ours(path: &Path) -> bool {
    inside_git(path).is_some_and(|path| path.starts_with("refs/banger"))
}

/// Whether a path is named after its content.
pub fn is_object(path: &Path) -> bool {
    let object = inside_git(path).and_then(|path| path.strip_prefix("objects").ok());
    object.is_some_and(|path| !path.starts_with("info") && path.components().count() == 2)
}

/// Where in a `.git` a path is. Some file systems know no case.
fn inside_git(path: &Path) -> Option<&Path> {
    let mut rest = path.components();
    loop {
        match rest.next()? {
            Component::Normal(name) if name.eq_ignore_ascii_case(".git") => return Some(rest.as_path()),
            _ => {}
        }
    }
}

/// What a guest did to a workspace since it was prepared: files that are other or gone, and new ones.
pub fn changed(landed: &Listing, now: &Listing) -> BTreeSet<PathBuf> {
    let other = landed.iter().filter(|&(path, entry)| now.get(path) != Some(entry)).map(|(path, _)| path);
    let new = now.iter().filter(|(_, entry)| entry.kind != Kind::Directory).map(|(path, _)| path);
    let new = new.filter(|path| !landed.contains_key(*path));
    let user = |path: &&PathBuf| {
        !is_git(path) && landed.get(*path).is_none_or(|entry| entry.kind != Kind::Directory)
    };
    other.chain(new).filter(user).cloned().collect()
}

/// What a guest checked out, or committed, since.
pub fn heads_changed(landed: &Listing, now: &Listing) -> Vec<PathBuf> {
    let paths: BTreeSet<_> = landed.keys().chain(now.keys()).filter(|path| is_head(path)).collect();
    paths
        .into_iter()
        .filter(|path| landed.get(*path) != now.get(*path))
        .filter(|path| is_file(landed, path) || is_file(now, path))
        .cloned()
        .collect()
}

fn is_file(listing: &Listing, path: &Path) -> bool {
    listing.get(path).is_some_and(|entry| entry.kind == Kind::File)
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub send: Vec<PathBuf>,
    pub remove: Vec<PathBuf>,
}

/// What makes the guest's files those of the host. `sent` and `landed` are those of the host and of the guest of last time.
pub fn plan(wanted: &Listing, sent: &Listing, landed: &Listing, now: &Listing) -> Plan {
    // Of git's own files the guest may have changed any, and what matters of that was asked before.
    let touched = |path: &PathBuf| match landed.get(path) {
        Some(entry) => now.get(path) != Some(entry),
        None => !now.contains_key(path),
    };
    let remove = sent.keys().filter(|path| !wanted.contains_key(*path) && now.contains_key(*path));
    // From the inside out.
    let remove: Vec<_> = remove.rev().cloned().collect();
    // A directory goes with the last file in it.
    let emptied: BTreeSet<&Path> = remove.iter().flat_map(|path| path.ancestors().skip(1)).collect();
    let send = wanted.iter().filter(|&(path, entry)| {
        sent.get(path) != Some(entry) || touched(path) || emptied.contains(path.as_path())
    });
    Plan { send: send.map(|(path, _)| path.clone()).collect(), remove }
}

/// Paths for people: the first ones.
pub fn describe(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<_> = paths.iter().take(SHOWN).map(|path| shown(path)).collect();
    if paths.len() > SHOWN {
        names.push(format!("and {} more", paths.len() - SHOWN));
    }
    names.join(", ")
}

fn shown(path: &Path) -> String {
    visible(&path.to_string_lossy())
}

/// A line with names that a guest may have given to files: nothing in it controls a terminal.
pub fn visible(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Whether git reads rules from a file.
pub fn has_rules(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::as_bytes);
    matches!(name, Some(b".gitignore" | b".gitattributes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_files::listing::Entry;

    fn listing(files: &[(&str, i64)]) -> Listing {
        let entry = |&(path, time): &(&str, i64)| {
            let kind = if path.ends_with('/') { Kind::Directory } else { Kind::File };
            let entry =
                Entry { kind, mode: 0o644, size: 1, mtime: time, ctime: time, target: PathBuf::new() };
            (PathBuf::from(path.trim_end_matches('/')), entry)
        };
        files.iter().map(entry).collect()
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn paths_of_git() {
        for path in [".git", ".git/HEAD", "sub/.git/config", "a/.GIT/x", ".git/refs/heads/main"] {
            assert!(is_git(Path::new(path)), "{path}");
        }
        assert!(
            is_object(Path::new(".git/objects/ab/cd")) && is_object(Path::new("a/.git/objects/pack/x.idx"))
        );
        assert!(!is_object(Path::new(".git/objects/info/packs")) && !is_object(Path::new("objects/ab/cd")));
        for path in [".gitignore", "a.git/HEAD", "git/refs", "HEAD"] {
            assert!(!is_git(Path::new(path)) && !is_head(Path::new(path)), "{path}");
        }
        assert!(is_head(Path::new(".git/HEAD")) && is_head(Path::new("sub/.git/refs/heads/a/b")));
        assert!(!is_head(Path::new(".git/index")) && !is_head(Path::new(".git/refs/stash")));
    }

    #[test]
    fn only_differences_are_sent() {
        let old = listing(&[("same", 1), ("changed", 1), ("gone", 1), ("dir/gone", 1), ("guest", 1)]);
        let landed = listing(&[("same", 5), ("changed", 5), ("gone", 5), ("dir/gone", 5), ("guest", 5)]);
        let host = listing(&[("same", 1), ("changed", 2), ("guest", 1), ("new", 1)]);
        assert_eq!(plan(&old, &old, &landed, &landed), Plan::default(), "nothing the second time");
        let expected = Plan { send: paths(&["changed", "new"]), remove: paths(&["gone", "dir/gone"]) };
        assert_eq!(plan(&host, &old, &landed, &landed), expected);

        // What the guest touched is sent again, and what is gone need not be removed.
        let now = listing(&[("same", 5), ("changed", 5), ("guest", 6), ("dir/gone", 5), ("dir/", 0)]);
        let expected = Plan { send: paths(&["changed", "guest", "new"]), remove: paths(&["dir/gone"]) };
        assert_eq!(plan(&host, &old, &landed, &now), expected);
        let (old, kept) = (listing(&[("dir/", 0), ("dir/gone", 1)]), listing(&[("dir/", 0)]));
        let expected = Plan { send: paths(&["dir"]), remove: paths(&["dir/gone"]) };
        assert_eq!(plan(&kept, &old, &old, &old), expected, "a directory that is wanted stays");
        let everything = plan(&host, &Listing::new(), &Listing::new(), &Listing::new());
        assert_eq!(
            everything,
            Plan { send: paths(&["changed", "guest", "new", "same"]), remove: Vec::new() }
        );
    }

    #[test]
    fn what_the_guest_changed() {
        let landed =
            listing(&[("dir/", 0), ("dir/a", 1), ("b", 1), (".git/HEAD", 1), (".git/refs/heads/x", 1)]);
        assert!(changed(&landed, &landed).is_empty());
        let now = listing(&[
            ("b", 2),
            ("new", 1),
            ("deep/", 0),
            (".git/HEAD", 1),
            (".git/index", 3),
            (".git/refs/heads/x", 2),
        ]);
        assert_eq!(Vec::from_iter(changed(&landed, &now)), paths(&["b", "dir/a", "new"]));
        assert_eq!(heads_changed(&landed, &now), paths(&[".git/refs/heads/x"]));
    }

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<_> = (0..12).map(|n| PathBuf::from(format!("f{n}\n"))).collect();
        let text = describe(&many);
        assert!(text.starts_with("f0\u{fffd}, f1") && text.ends_with(", and 2 more"), "{text}");
    }
}
