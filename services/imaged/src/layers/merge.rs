//! Applying layers to a tree, as extracting them one after the other into a directory would, but
//! with names and numbers only. Pure.
//!
//! - Parents that are symbolic links are followed within the root, as in a chroot; parents that are
//!   missing, or are no directories, are made.
//! - A whiteout hides what lower layers put there, never what its own layer does, wherever in the
//!   layer it stands.
//! - A hard link means the file its target names at that moment, whichever layer that is from, and
//!   keeps it when the target is replaced later.
//! - Of several entries of one name the last counts.

use std::collections::VecDeque;

use crate::limits::{self, Limits};
use crate::tar::{Header, Kind, lossy};
use crate::tree::{Child, Content, Dir, DirId, Inode, Name, Node, ROOT, Tree};

/// As many symbolic links as Linux follows in one name.
const MAX_SYMLINKS: u32 = 40;

/// As many steps as one name may take, through all links: more is an attempt to keep us busy.
const MAX_STEPS: u32 = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Notes of the aufs storage driver, which some old images still carry.
const AUFS: &[u8] = b".wh..wh.";

#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    pub entry: String,
    pub reason: String,
}

/// A tree that layers are applied to, from the lowest to the topmost.
#[derive(Debug)]
pub struct Merge {
    tree: Tree,
    layer: u32,
    /// Of the next entry in its layer.
    ordinal: u32,
    max_depth: usize,
    /// Bytes that the tree takes, or took before something was replaced.
    memory: u64,
    max_memory: u64,
}

/// What a name and its inode take in memory at most, from here to the finished filesystem, beside
/// the bytes of the name itself; measured.
const ENTRY: u64 = 240;
/// What a directory takes on top of that.
const DIRECTORY: u64 = 400;

impl Merge {
    pub fn new(limits: &Limits) -> Self {
        Self {
            tree: Tree { dirs: vec![Dir::default()], inodes: vec![Inode::directory(0o755)] },
            layer: 0,
            ordinal: 0,
            max_depth: limits.depth,
            memory: 0,
            max_memory: limits.memory,
        }
    }

    /// Applies the next entry of the present layer.
    pub fn entry(&mut self, header: &Header) -> Result<(), Invalid> {
        let ordinal = self.ordinal;
        self.ordinal += 1;
        self.apply(ordinal, header).map_err(|reason| Invalid { entry: lossy(&header.path), reason })
    }

    /// What follows is the layer above.
    pub fn end_layer(&mut self) {
        self.layer += 1;
        self.ordinal = 0;
    }

    /// Accounts for what the tree is going to hold.
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        self.memory += bytes;
        if self.memory <= self.max_memory {
            return Ok(());
        }
        Err(format!("is one too many: names and attributes of all take more than {} bytes", self.max_memory))
    }

    pub fn finish(mut self) -> Tree {
        self.tree.count_links();
        self.tree
    }

    /// What `touched` is for the present layer.
    fn mark(&self) -> u32 {
        self.layer + 1
    }

    fn apply(&mut self, ordinal: u32, header: &Header) -> Result<(), String> {
        let mut parents = components(&header.path)?;
        let Some(name) = parents.pop() else {
            if header.kind != Kind::Directory {
                return Err("the root must be a directory".into());
            }
            self.tree.inodes[0] = Inode::from_header(header, NO_CONTENT);
            return Ok(());
        };
        if parents.iter().any(|parent| parent.starts_with(AUFS)) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&parents, name, hidden);
        }
        if matches!(header.kind, Kind::Symlink) && header.link.is_empty() {
            return Err("is a symbolic link to nothing".into());
        }
        // The target is looked up first: making the parents could change what it means.
        let linked = match header.kind {
            Kind::HardLink => Some(self.link_target(&header.link)?),
            _ => None,
        };
        let dir = self.walk(&parents, true)?.expect("parents are made");
        let child = self.tree.dirs[dir as usize].entries.get(name).copied();
        if let Some(inode) = linked {
            if child.is_none_or(|child| child.inode != inode) {
                self.take(ENTRY + name.len() as u64)?;
                self.put(dir, name, inode);
            }
            return Ok(());
        }
        let content = Content { layer: self.layer, ordinal };
        let inode = Inode::from_header(header, content);
        self.take(inode.extent())?;
        match child {
            Some(Child { inode: known, dir: Some(known_dir), .. }) if header.kind == Kind::Directory => {
                self.tree.inodes[known as usize] = inode;
                self.tree.dirs[known_dir as usize].touched = self.mark();
            }
            _ if header.kind == Kind::Directory => {
                self.make_dir(dir, name, inode)?;
            }
            _ => {
                self.take(ENTRY + name.len() as u64)?;
                let id = self.tree.inodes.len() as u32;
                self.tree.inodes.push(inode);
                self.put(dir, name, id);
            }
        }
        Ok(())
    }

    fn link_target(&mut self, target: &[u8]) -> Result<u32, String> {
        let missing = || format!("is a hard link to {:?}, which does not exist", lossy(target));
        let mut parents = components(target)?;
        let name = parents.pop().ok_or_else(missing)?;
        let dir = self.walk(&parents, false)?.ok_or_else(missing)?;
        match self.tree.dirs[dir as usize].entries.get(name) {
            Some(Child { dir: Some(_), .. }) => {
                Err(format!("is a hard link to the directory {:?}", lossy(target)))
            }
            Some(child) => Ok(child.inode),
            None => Err(missing()),
        }
    }

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<(), String> {
        if name != OPAQUE && name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("is a whiteout of no name".into());
        }
        let Some(dir) = self.walk(parents, false)? else { return Ok(()) };
        if name == OPAQUE {
            self.hide_below(dir);
            return Ok(());
        }
        if let Some(child) = self.tree.dirs[dir as usize].entries.get(hidden).copied() {
            self.hide(dir, hidden, child);
        }
        Ok(())
    }

    /// Takes away what lower layers put at a name.
    fn hide(&mut self, dir: DirId, name: &[u8], child: Child) {
        let touched = child.dir.map_or(child.touched, |dir| self.tree.dirs[dir as usize].touched);
        if touched < self.mark() {
            self.remove(dir, name);
        } else if let Some(dir) = child.dir {
            self.hide_below(dir);
        }
    }

    fn hide_below(&mut self, dir: DirId) {
        let mut stack = vec![dir];
        let mark = self.mark();
        while let Some(dir) = stack.pop() {
            let mut entries = std::mem::take(&mut self.tree.dirs[dir as usize].entries);
            entries.retain(|_, child| {
                let touched = child.dir.map_or(child.touched, |dir| self.tree.dirs[dir as usize].touched);
                let keep = touched >= mark;
                match child.dir {
                    Some(below) if keep => stack.push(below),
                    Some(below) => self.drop_dir(below),
                    None => {}
                }
                keep
            });
            self.tree.dirs[dir as usize].entries = entries;
        }
    }

    fn remove(&mut self, dir: DirId, name: &[u8]) {
        if let Some(Child { dir: Some(gone), .. }) = self.tree.dirs[dir as usize].entries.remove(name) {
            self.drop_dir(gone);
        }
    }

    /// Frees what is below a directory that nothing leads to any more.
    fn drop_dir(&mut self, dir: DirId) {
        let mut stack = vec![dir];
        while let Some(dir) = stack.pop() {
            let entries = std::mem::take(&mut self.tree.dirs[dir as usize].entries);
            stack.extend(entries.into_values().filter_map(|child| child.dir));
        }
    }

    fn put(&mut self, dir: DirId, name: &[u8], inode: u32) {
        self.remove(dir, name);
        let child = Child { inode, dir: None, touched: self.mark() };
        self.tree.dirs[dir as usize].entries.insert(name.into(), child);
    }

    fn make_dir(&mut self, parent: DirId, name: &[u8], inode: Inode) -> Result<DirId, String> {
        let depth = self.tree.dirs[parent as usize].depth + 1;
        if depth as usize > self.max_depth {
            return Err(format!("lies more than {} directories deep", self.max_depth));
        }
        self.take(ENTRY + DIRECTORY + name.len() as u64)?;
        self.remove(parent, name);
        let id = self.tree.dirs.len() as DirId;
        let inode_id = self.tree.inodes.len() as u32;
        self.tree.inodes.push(inode);
        self.tree.dirs.push(Dir { inode: inode_id, parent, touched: self.mark(), depth, ..Dir::default() });
        let child = Child { inode: inode_id, dir: Some(id), touched: self.mark() };
        self.tree.dirs[parent as usize].entries.insert(name.into(), child);
        Ok(id)
    }

    /// Walks down directories from the root, through symbolic links. With `make`, what is missing
    /// or in the way becomes a directory, and all on the way count as written to by this layer.
    fn walk(&mut self, path: &[&[u8]], make: bool) -> Result<Option<DirId>, String> {
        let mut todo: VecDeque<Name> = path.iter().map(|name| Name::from(*name)).collect();
        let mut dir = ROOT;
        let mut links = 0;
        let mut steps = 0;
        while let Some(name) = todo.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err("leads through too many directories".into());
            }
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    dir = self.tree.dirs[dir as usize].parent;
                    continue;
                }
                _ => {}
            }
            let child = self.tree.dirs[dir as usize].entries.get(&name).copied();
            if let Some(Child { dir: Some(below), .. }) = child {
                dir = below;
                continue;
            }
            if let Some(Node::Symlink(target)) = child.map(|c| &self.tree.inodes[c.inode as usize].node) {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err("leads through too many symbolic links".into());
                }
                if target.starts_with(b"/") {
                    dir = ROOT;
                }
                for part in target.split(|byte| *byte == b'/').rev() {
                    todo.push_front(part.into());
                }
                continue;
            }
            if !make {
                return Ok(None);
            }
            if name.len() > limits::NAME {
                return Err(format!("has a name of more than {} bytes in it", limits::NAME));
            }
            dir = self.make_dir(dir, &name, Inode::directory(0o755))?;
        }
        if make {
            let mark = self.mark();
            let mut up = dir;
            loop {
                self.tree.dirs[up as usize].touched = mark;
                if up == ROOT {
                    break;
                }
                up = self.tree.dirs[up as usize].parent;
            }
        }
        Ok(Some(dir))
    }
}

const NO_CONTENT: Content = Content { layer: 0, ordinal: 0 };

/// The parts of an entry's name. Leading slashes, empty parts and `.` mean nothing; `..` is refused.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("has \"..\" in its name".into()),
            part if part.len() > limits::NAME => {
                return Err(format!("has a name of more than {} bytes in it", limits::NAME));
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn header(kind: Kind, path: &str, link: &str) -> Header {
        Header {
            path: path.into(),
            link: link.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            size: 0,
            major: 0,
            minor: 0,
            xattrs: Vec::new(),
        }
    }

    fn dir(path: &str) -> Header {
        header(Kind::Directory, path, "")
    }

    fn file(path: &str) -> Header {
        header(Kind::File, path, "")
    }

    fn symlink(path: &str, target: &str) -> Header {
        header(Kind::Symlink, path, target)
    }

    fn hard_link(path: &str, target: &str) -> Header {
        header(Kind::HardLink, path, target)
    }

    fn merge(layers: Vec<Vec<Header>>) -> Result<Tree, Invalid> {
        merge_within(&Limits { depth: 64, ..Limits::default() }, layers)
    }

    fn merge_within(limits: &Limits, layers: Vec<Vec<Header>>) -> Result<Tree, Invalid> {
        let mut merge = Merge::new(limits);
        for layer in layers {
            layer.iter().try_for_each(|header| merge.entry(header))?;
            merge.end_layer();
        }
        Ok(merge.finish())
    }

    /// Every path with what is there: `d`, `f<layer>.<ordinal>`, `l<target>`.
    fn show(tree: &Tree) -> BTreeMap<String, String> {
        let mut shown = BTreeMap::new();
        let mut stack = vec![(ROOT, String::new())];
        while let Some((dir, prefix)) = stack.pop() {
            for (name, child) in &tree.dirs[dir as usize].entries {
                let path = format!("{prefix}{}", String::from_utf8_lossy(name));
                if let Some(below) = child.dir {
                    stack.push((below, format!("{path}/")));
                }
                let what = match &tree.inodes[child.inode as usize].node {
                    Node::Directory => "d".to_owned(),
                    Node::File(content) => format!("f{}.{}", content.layer, content.ordinal),
                    Node::Symlink(target) => format!("l{}", String::from_utf8_lossy(target)),
                    other => format!("{other:?}"),
                };
                shown.insert(path, what);
            }
        }
        shown
    }

    fn shown(layers: Vec<Vec<Header>>) -> Vec<String> {
        let tree = merge(layers).expect("merges");
        show(&tree).into_iter().map(|(path, what)| format!("{path} {what}")).collect()
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        let lower = vec![file("a"), dir("b"), file("b/x"), file("b/y"), dir("c"), file("c/old")];
        let upper = vec![file("c/new"), file(".wh.a"), file("b/.wh.x"), file("b/z"), file("c/.wh..wh..opq")];
        assert_eq!(shown(vec![lower, upper]), ["b d", "b/y f0.3", "b/z f1.3", "c d", "c/new f1.0"]);
        // A whiteout of a name that its own layer makes anew.
        let lower = vec![dir("d"), file("d/old")];
        let upper = vec![dir("d"), file("d/new"), file(".wh.d")];
        assert_eq!(shown(vec![lower, upper]), ["d d", "d/new f1.1"]);
        // Of nothing, and below nothing.
        assert_eq!(shown(vec![vec![file(".wh.x"), file("q/.wh.y"), file("q/.wh..wh..opq")]]), [""; 0]);
    }

    #[test]
    fn kinds_replace_each_other() {
        let lower = vec![dir("a"), file("a/x"), file("b"), file("c")];
        let upper = vec![file("a"), dir("b"), file("b/y"), file("c"), file("c")];
        assert_eq!(shown(vec![lower, upper]), ["a f1.0", "b d", "b/y f1.2", "c f1.4"]);
        // A file in the way of a parent.
        assert_eq!(shown(vec![vec![file("a"), file("a/b/c")]]), ["a d", "a/b d", "a/b/c f0.1"]);
    }

    #[test]
    fn hard_links_keep_what_they_meant() {
        let lower = vec![file("a"), hard_link("b", "a")];
        let upper = vec![hard_link("c", "./b"), file("a"), hard_link("d", "/a"), hard_link("d", "d")];
        let tree = merge(vec![lower, upper]).expect("merges");
        assert_eq!(
            show(&tree).into_iter().map(|(p, w)| p + " " + &w).collect::<Vec<_>>(),
            ["a f1.1", "b f0.0", "c f0.0", "d f1.1"]
        );
        let links: Vec<u32> = tree.inodes.iter().map(|inode| inode.links).collect();
        assert_eq!(links, [2, 2, 2]);
        for bad in [
            vec![hard_link("a", "b"), hard_link("b", "a")],
            vec![hard_link("a", "a")],
            vec![dir("d"), hard_link("x", "d")],
            vec![hard_link("x", "../x")],
        ] {
            assert!(merge(vec![bad]).is_err());
        }
    }

    #[test]
    fn links_on_the_way_are_followed_within_the_root() {
        let lower = vec![
            dir("usr/lib"),
            symlink("lib", "usr/lib"),
            symlink("up", "../../../usr"),
            symlink("abs", "/usr/lib/.."),
        ];
        let upper = vec![
            file("lib/x"),
            file("up/y"),
            file("abs/z"),
            hard_link("w", "lib/x"),
            file("lib/.wh.nothing"),
        ];
        assert_eq!(
            shown(vec![lower, upper]),
            [
                "abs l/usr/lib/..",
                "lib lusr/lib",
                "up l../../../usr",
                "usr d",
                "usr/lib d",
                "usr/lib/x f1.0",
                "usr/y f1.1",
                "usr/z f1.2",
                "w f1.0"
            ]
        );
        // The entry of a directory itself replaces the link.
        assert_eq!(shown(vec![vec![symlink("l", "x")], vec![dir("l"), file("l/a")]]), ["l d", "l/a f1.1"]);
        let circle =
            merge(vec![vec![symlink("a", "b"), symlink("b", "a"), file("a/x")]]).expect_err("a circle");
        assert!(circle.reason.contains("too many symbolic links"), "{circle:?}");
        let long = vec![symlink("a", &"./".repeat(2000)), symlink("b", "a/a/a/a"), file("b/b/b/b/x")];
        assert!(merge(vec![long]).is_err());
    }

    #[test]
    fn refuses_what_no_root_can_hold() {
        for bad in
            ["../x", "a/../../x", "/..", "a/.wh...", ".wh.", "a/.wh..", &"n".repeat(256), &"d/".repeat(70)]
        {
            assert!(merge(vec![vec![dir(bad)]]).is_err(), "{bad:?} passed");
        }
        assert!(merge(vec![vec![file("/")]]).is_err());
        assert_eq!(
            shown(vec![vec![file("//a"), file("./b"), file("c/./d"), dir("./")]]),
            ["a f0.0", "b f0.1", "c d", "c/d f0.2"]
        );
    }

    #[test]
    fn memory_has_an_end() {
        let limits = Limits { memory: 10_000, ..Limits::default() };
        let mut attributed = file("x");
        attributed.xattrs = vec![(b"user.x".to_vec(), vec![0; 5000])];
        for many in [
            (0..50).map(|n| file(&n.to_string())).collect(),
            (0..20).map(|n| dir(&n.to_string())).collect(),
            // One entry, many directories that it needs.
            vec![file(&"d/".repeat(20))],
            (0..50).map(|n| hard_link(&n.to_string(), "0")).collect::<Vec<_>>(),
            vec![
                symlink("l", &"x".repeat(4000)),
                symlink("m", &"x".repeat(4000)),
                symlink("n", &"x".repeat(4000)),
            ],
            vec![attributed],
        ] {
            let first = file("0");
            let error = merge_within(&limits, vec![vec![first], many]).expect_err("too many");
            assert!(error.reason.contains("more than 10000 bytes"), "{error:?}");
        }
        assert!(merge_within(&limits, vec![(0..10).map(|n| dir(&n.to_string())).collect()]).is_ok());
    }

    #[test]
    fn the_root_has_metadata_too() {
        let mut root = dir("./");
        (root.mode, root.uid) = (0o711, 7);
        let tree = merge(vec![vec![root]]).expect("merges");
        assert_eq!((tree.inodes[0].mode, tree.inodes[0].uid), (0o711, 7));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Dir(String),
        File(String),
        Whiteout(String),
        Opaque(String),
    }

    fn op() -> impl Strategy<Value = Op> {
        let path = prop::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"));
        (path, 0..8).prop_map(|(path, kind)| match kind {
            0..=2 => Op::Dir(path),
            3..=5 => Op::File(path),
            6 => Op::Whiteout(path),
            _ => Op::Opaque(path),
        })
    }

    fn parents(path: &str) -> Vec<String> {
        path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect()
    }

    /// The same rules on a plain map of paths, whiteouts first, each layer in two steps.
    fn model(layers: &[Vec<Op>]) -> BTreeMap<String, String> {
        let mut map: BTreeMap<String, String> = BTreeMap::new();
        for (layer, ops) in layers.iter().enumerate() {
            let mut own: BTreeSet<String> = BTreeSet::new();
            for (ordinal, op) in ops.iter().enumerate() {
                let inside = |path: &str, dir: &str| path.starts_with(&format!("{dir}/"));
                let (path, what) = match op {
                    Op::Dir(path) => (path, "d".to_owned()),
                    Op::File(path) => (path, format!("f{layer}.{ordinal}")),
                    Op::Whiteout(path) | Op::Opaque(path) => {
                        let itself = matches!(op, Op::Whiteout(_));
                        // Whoever looks for a name finds it only through directories.
                        if parents(path).iter().all(|parent| map.get(parent).is_some_and(|what| what == "d"))
                        {
                            map.retain(|p, _| own.contains(p) || !(inside(p, path) || (itself && p == path)));
                        }
                        continue;
                    }
                };
                for parent in parents(path) {
                    if map.get(&parent).is_none_or(|what| what != "d") {
                        map.insert(parent.clone(), "d".into());
                    }
                    own.insert(parent);
                }
                if what != "d" {
                    map.retain(|p, _| !inside(p, path));
                    own.retain(|p| !inside(p, path));
                }
                map.insert(path.clone(), what);
                own.insert(path.clone());
            }
        }
        map
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(layers in prop::collection::vec(prop::collection::vec(op(), 0..12), 1..4)) {
            let entries = layers
                .iter()
                .map(|ops| {
                    ops.iter()
                        .map(|op| match op {
                            Op::Dir(path) => dir(path),
                            Op::File(path) => file(path),
                            Op::Opaque(path) => file(&format!("{path}/.wh..wh..opq")),
                            Op::Whiteout(path) => match path.rsplit_once('/') {
                                Some((parent, name)) => file(&format!("{parent}/.wh.{name}")),
                                None => file(&format!(".wh.{path}")),
                            },
                        })
                        .collect()
                })
                .collect();
            prop_assert_eq!(show(&merge(entries).expect("merges")), model(&layers));
        }
    }
}
