//! A root filesystem as a value: directories, inodes and where each file's content is to be found.

use std::collections::BTreeMap;

use crate::tar::{Header, Kind};

pub type DirId = u32;
pub type InodeId = u32;

/// The root is directory 0 and inode 0.
pub const ROOT: DirId = 0;

pub type Name = Box<[u8]>;
pub type Xattrs = Vec<(Box<[u8]>, Box<[u8]>)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(Content),
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Where a file's bytes are: the entry at `ordinal` of layer `layer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    pub layer: u32,
    pub ordinal: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub node: Node,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
    pub xattrs: Option<Box<Xattrs>>,
    /// Names that lead here; for a directory 2 + the number of its subdirectories.
    pub links: u32,
}

#[derive(Debug, Default)]
pub struct Dir {
    pub inode: InodeId,
    pub parent: DirId,
    pub entries: BTreeMap<Name, Child>,
    /// Layer (from 1) that last wrote to the directory or to something below it; 0 for none.
    pub touched: u32,
    pub depth: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct Child {
    pub inode: InodeId,
    /// Set for a directory.
    pub dir: Option<DirId>,
    /// As [`Dir::touched`]; for a directory, that one counts.
    pub touched: u32,
}

#[derive(Debug)]
pub struct Tree {
    pub dirs: Vec<Dir>,
    pub inodes: Vec<Inode>,
}

impl Inode {
    pub fn directory(mode: u16) -> Self {
        Self { node: Node::Directory, mode, uid: 0, gid: 0, mtime: 0, xattrs: None, links: 0 }
    }

    /// The inode an archive entry describes. Not for hard links, which describe none.
    pub fn from_header(header: &Header, content: Content) -> Self {
        let mode = if header.kind == Kind::Symlink { 0o777 } else { header.mode };
        let node = match header.kind {
            Kind::Directory => Node::Directory,
            Kind::Symlink => Node::Symlink(header.link.clone().into()),
            Kind::CharDevice => Node::CharDevice(header.major, header.minor),
            Kind::BlockDevice => Node::BlockDevice(header.major, header.minor),
            Kind::Fifo => Node::Fifo,
            Kind::File | Kind::HardLink => Node::File(content),
        };
        Self {
            node,
            mode,
            uid: header.uid,
            gid: header.gid,
            // What a squashfs has room for.
            mtime: header.mtime.clamp(0, i64::from(u32::MAX)) as u32,
            xattrs: keep_xattrs(&header.xattrs),
            links: 0,
        }
    }
}

impl Inode {
    /// Bytes in memory that the inode leads to. Attributes are there three times in the end, as
    /// such, in their table, and to find equal ones.
    pub fn extent(&self) -> u64 {
        let target = match &self.node {
            Node::Symlink(target) => target.len(),
            _ => 0,
        };
        let attribute = |(name, value): &(Box<[u8]>, Box<[u8]>)| 100 + 3 * (name.len() + value.len());
        let xattrs: usize = self.xattrs.iter().flat_map(|xattrs| xattrs.iter()).map(attribute).sum();
        (target + xattrs) as u64
    }
}

/// What a read-only lower layer of an overlay can and may carry. `trusted.overlay.*` would be read
/// by the guest's overlay as its own notes; access lists have no place in squashfs.
fn keep_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<Box<Xattrs>> {
    let mut kept: Xattrs = xattrs
        .iter()
        .filter(|(name, _)| {
            ["user.", "trusted.", "security."].iter().any(|prefix| name.starts_with(prefix.as_bytes()))
                && !name.starts_with(b"trusted.overlay.")
        })
        .map(|(name, value)| (name.clone().into(), value.clone().into()))
        .collect();
    kept.sort();
    if kept.is_empty() { None } else { Some(Box::new(kept)) }
}

impl Tree {
    /// Directories that can be reached, each before those below it, in the order of their names.
    pub fn preorder(&self) -> Vec<DirId> {
        let mut order = Vec::new();
        let mut stack = vec![ROOT];
        while let Some(dir) = stack.pop() {
            order.push(dir);
            stack.extend(self.dirs[dir as usize].entries.values().rev().filter_map(|child| child.dir));
        }
        order
    }

    /// For each layer, the files whose content is wanted: ordinal of the entry and inode, in order.
    pub fn wanted(&self, layers: usize) -> Vec<Vec<(u32, InodeId)>> {
        let mut wanted = vec![Vec::new(); layers];
        for (id, inode) in self.inodes.iter().enumerate() {
            if let (Node::File(content), true) = (&inode.node, inode.links > 0) {
                wanted[content.layer as usize].push((content.ordinal, id as InodeId));
            }
        }
        for list in &mut wanted {
            list.sort_unstable();
        }
        wanted
    }

    /// Counts the names of every inode anew.
    pub fn count_links(&mut self) {
        for inode in &mut self.inodes {
            inode.links = 0;
        }
        for dir in self.preorder() {
            let mut subdirectories = 0;
            for child in self.dirs[dir as usize].entries.values() {
                match child.dir {
                    Some(_) => subdirectories += 1,
                    None => self.inodes[child.inode as usize].links += 1,
                }
            }
            let inode = self.dirs[dir as usize].inode;
            self.inodes[inode as usize].links = 2 + subdirectories;
        }
    }
}
