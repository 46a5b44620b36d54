//! Writing squashfs 4.0, uncompressed.
//!
//! Every kernel that has squashfs can read the result, Firecracker's own guest kernel included, which
//! knows zlib and nothing else; the bytes depend on no compression library, so the same tree is the
//! same file everywhere; and guests read files at the speed of the host's page cache. sqfstar of
//! squashfs-tools 4.5 was tried first: it ignores what a tar says about the root directory (owner
//! is the caller, time is now), so its output differs from run to run.
//!
//! Layout: superblock, file data, inodes, directories, ids, extended attributes. File data and
//! inodes are streamed to the file; the other tables wait for their place in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use crate::tree::{DirId, InodeId, Node, ROOT, Tree, Xattrs};

const MAGIC: u32 = 0x7371_7368;
const BLOCK_LOG: u16 = 17;
const BLOCK: usize = 1 << BLOCK_LOG;
/// Marks a data block that is stored as it is.
const STORED: u32 = 1 << 24;
const METADATA: usize = 8192;
const METADATA_STORED: u16 = 1 << 15;
const NONE32: u32 = u32::MAX;
const NONE64: u64 = u64::MAX;
const SUPERBLOCK: u64 = 96;

/// Inodes, data, fragments, attributes and ids are not compressed; there are no fragments.
const FLAGS: u16 = 0x0001 | 0x0002 | 0x0008 | 0x0010 | 0x0100 | 0x0800;
const FLAG_NO_XATTRS: u16 = 0x0200;
/// zlib: every kernel has it, though nothing here needs it.
const COMPRESSION: u16 = 1;

/// Where a file's content went.
#[derive(Debug, Default)]
struct Stored {
    inode: InodeId,
    /// Of its blocks among those of all files.
    first_block: u32,
    start: u64,
    size: u64,
    /// Bytes in blocks of nothing but zeros, which take no space.
    sparse: u64,
}

/// The content of all files.
#[derive(Debug, Default)]
struct Contents {
    files: Vec<Stored>,
    blocks: Vec<u32>,
}

impl Contents {
    fn sort(&mut self) {
        self.files.sort_unstable_by_key(|stored| stored.inode);
    }

    /// A file's content and the lengths of its blocks.
    fn get(&self, inode: InodeId) -> Option<(&Stored, &[u32])> {
        let at = self.files.binary_search_by_key(&inode, |stored| stored.inode).ok()?;
        let stored = &self.files[at];
        let first = stored.first_block as usize;
        let count = stored.size.div_ceil(BLOCK as u64) as usize;
        Some((stored, &self.blocks[first..first + count]))
    }
}

/// First [`Writer::begin`], [`Writer::write`], [`Writer::hole`] and [`Writer::end`] for every file, then [`Writer::finish`].
pub struct Writer {
    out: BufWriter<File>,
    position: u64,
    contents: Contents,
    present: Stored,
    block: Vec<u8>,
}

impl Writer {
    pub fn new(mut file: File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(SUPERBLOCK))?;
        Ok(Self {
            out: BufWriter::with_capacity(1 << 20, file),
            position: SUPERBLOCK,
            contents: Contents::default(),
            present: Stored::default(),
            block: Vec::with_capacity(BLOCK),
        })
    }

    pub fn begin(&mut self) {
        let first_block = self.contents.blocks.len() as u32;
        self.present = Stored { start: self.position, first_block, ..Stored::default() };
    }

    pub fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.flush_block()?;
            }
            data = rest;
        }
        Ok(())
    }

    /// As so many zeros, but none of them is looked at that makes up a whole block.
    pub fn hole(&mut self, length: u64) -> io::Result<()> {
        let to_boundary = (BLOCK - self.block.len()) as u64 % BLOCK as u64;
        let first = length.min(to_boundary);
        let whole = (length - first) / BLOCK as u64;
        self.write(&vec![0; first as usize])?;
        self.contents.blocks.extend(std::iter::repeat_n(0, whole as usize));
        self.present.size += whole * BLOCK as u64;
        self.present.sparse += whole * BLOCK as u64;
        self.write(&vec![0; (length - first) as usize % BLOCK])
    }

    pub fn end(&mut self, inode: InodeId) -> io::Result<()> {
        if !self.block.is_empty() {
            self.flush_block()?;
        }
        self.contents.files.push(Stored { inode, ..std::mem::take(&mut self.present) });
        Ok(())
    }

    fn flush_block(&mut self) -> io::Result<()> {
        let length = self.block.len();
        self.present.size += length as u64;
        if self.block.iter().all(|byte| *byte == 0) {
            self.contents.blocks.push(0);
            self.present.sparse += length as u64;
        } else {
            self.out.write_all(&self.block)?;
            self.contents.blocks.push(length as u32 | STORED);
            self.position += length as u64;
        }
        self.block.clear();
        Ok(())
    }

    /// Writes the tables. Returns the file and its length.
    pub fn finish(mut self, tree: &Tree) -> io::Result<(File, u64)> {
        let mut contents = std::mem::take(&mut self.contents);
        contents.sort();
        let inode_table = self.position;
        let tables = Tables::build(tree, contents, &mut self)?;
        let directory_table = self.position;
        self.put_table(&tables.directories)?;
        let fragment_table = self.position;

        let id_blocks = self.position;
        let ids: Vec<u8> = tables.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let ids = Metadata { bytes: ids, gone: 0 };
        self.put_table(&ids)?;
        let id_table = self.position;
        self.put(&ids.index(id_blocks))?;

        let mut flags = FLAGS;
        let mut xattr_table = NONE64;
        if tables.xattrs.sets.is_empty() {
            flags |= FLAG_NO_XATTRS;
        } else {
            let start = self.position;
            self.put_table(&tables.xattrs.pairs)?;
            let list_blocks = self.position;
            self.put_table(&tables.xattrs.list)?;
            xattr_table = self.position;
            let mut header = Vec::new();
            header.extend(start.to_le_bytes());
            header.extend((tables.xattrs.sets.len() as u32).to_le_bytes());
            header.extend(0u32.to_le_bytes());
            header.extend(tables.xattrs.list.index(list_blocks));
            self.put(&header)?;
        }
        let used = self.position;
        let padding = used.wrapping_neg() % 4096;
        self.put(&vec![0; padding as usize])?;

        let mut superblock = Vec::with_capacity(SUPERBLOCK as usize);
        for number in [MAGIC, tables.count, 0, BLOCK as u32, 0] {
            superblock.extend(number.to_le_bytes());
        }
        for number in [COMPRESSION, BLOCK_LOG, flags, tables.ids.len() as u16, 4, 0] {
            superblock.extend(number.to_le_bytes());
        }
        for number in
            [tables.root, used, id_table, xattr_table, inode_table, directory_table, fragment_table, NONE64]
        {
            superblock.extend(number.to_le_bytes());
        }
        let length = self.position;
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&superblock)?;
        Ok((file, length))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Writes what a table holds: stored metadata blocks, each behind a length of two bytes.
    fn put_table(&mut self, table: &Metadata) -> io::Result<()> {
        for block in table.bytes.chunks(METADATA) {
            self.put(&(block.len() as u16 | METADATA_STORED).to_le_bytes())?;
            self.put(block)?;
        }
        Ok(())
    }

    /// Writes the whole blocks that a table holds, which then holds them no longer.
    fn put_blocks(&mut self, table: &mut Metadata) -> io::Result<()> {
        let whole = table.bytes.len() / METADATA * METADATA;
        let rest = table.bytes.split_off(whole);
        self.put_table(table)?;
        table.gone += whole;
        table.bytes = rest;
        Ok(())
    }
}

/// A table of metadata blocks: 8 KiB each, but the last.
#[derive(Default)]
struct Metadata {
    bytes: Vec<u8>,
    /// Bytes before these that have been written already.
    gone: usize,
}

impl Metadata {
    /// Offset of the present block from the table's start, and offset within it.
    fn position(&self) -> (u32, u16) {
        let position = self.gone + self.bytes.len();
        let block = position / METADATA * (METADATA + 2);
        (block as u32, (position % METADATA) as u16)
    }

    fn reference(&self) -> u64 {
        let (block, offset) = self.position();
        u64::from(block) << 16 | u64::from(offset)
    }

    /// Positions of the blocks in the file, if the first is at `start`.
    fn index(&self, start: u64) -> Vec<u8> {
        let blocks = self.bytes.len().div_ceil(METADATA) as u64;
        (0..blocks).flat_map(|block| (start + block * (METADATA as u64 + 2)).to_le_bytes()).collect()
    }

    fn u16(&mut self, number: u16) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }
}

#[derive(Default)]
struct XattrTable {
    pairs: Metadata,
    list: Metadata,
    sets: HashMap<Vec<u8>, u32>,
}

impl XattrTable {
    fn add(&mut self, xattrs: Option<&Xattrs>) -> u32 {
        let Some(xattrs) = xattrs else { return NONE32 };
        let mut pairs = Metadata::default();
        let mut names = 0;
        for (name, value) in xattrs {
            let (kind, rest) = match &**name {
                [b'u', b's', b'e', b'r', b'.', rest @ ..] => (0u16, rest),
                [b't', b'r', b'u', b's', b't', b'e', b'd', b'.', rest @ ..] => (1, rest),
                [b's', b'e', b'c', b'u', b'r', b'i', b't', b'y', b'.', rest @ ..] => (2, rest),
                _ => continue,
            };
            pairs.u16(kind);
            pairs.u16(rest.len() as u16);
            pairs.bytes.extend_from_slice(rest);
            pairs.u32(value.len() as u32);
            pairs.bytes.extend_from_slice(value);
            names += name.len() as u32 + 1;
        }
        let next = self.sets.len() as u32;
        if let Some(known) = self.sets.get(&pairs.bytes) {
            return *known;
        }
        self.list.u64(self.pairs.reference());
        self.list.u32(xattrs.len() as u32);
        self.list.u32(names);
        self.pairs.bytes.extend_from_slice(&pairs.bytes);
        self.sets.insert(pairs.bytes, next);
        next
    }
}

/// Where an inode was put.
#[derive(Clone, Copy, Default)]
struct Place {
    block: u32,
    offset: u16,
    /// From 1; 0 for one that has no place yet.
    number: u32,
}

/// As many bytes of inodes are kept before they are written.
const INODES: usize = 1 << 20;

#[derive(Default)]
struct Tables {
    inodes: Metadata,
    directories: Metadata,
    ids: Vec<u32>,
    id_index: HashMap<u32, u16>,
    xattrs: XattrTable,
    count: u32,
    root: u64,
}

impl Tables {
    /// Makes the tables and writes the inodes.
    fn build(tree: &Tree, contents: Contents, out: &mut Writer) -> io::Result<Self> {
        let mut tables = Self::default();
        let order = tree.preorder();
        // Directories are numbered from the root, which a directory needs to know of its parent;
        // they are written from the leaves, which a parent needs to know of its entries.
        let mut numbers = vec![0u32; tree.dirs.len()];
        for (index, dir) in order.iter().enumerate() {
            numbers[*dir as usize] = index as u32 + 1;
        }
        tables.count = order.len() as u32;
        let mut places = vec![Place::default(); tree.inodes.len()];
        for dir in order.into_iter().rev() {
            tables.directory(tree, dir, &numbers, &mut places, &contents)?;
            if tables.inodes.bytes.len() >= INODES {
                out.put_blocks(&mut tables.inodes)?;
            }
        }
        out.put_table(&tables.inodes)?;
        let root = places[tree.dirs[ROOT as usize].inode as usize];
        tables.root = u64::from(root.block) << 16 | u64::from(root.offset);
        Ok(tables)
    }

    /// Writes the inodes of a directory's files, its listing and its own inode.
    fn directory(
        &mut self,
        tree: &Tree,
        dir: DirId,
        numbers: &[u32],
        places: &mut [Place],
        contents: &Contents,
    ) -> io::Result<()> {
        let this = &tree.dirs[dir as usize];
        for child in this.entries.values().filter(|child| child.dir.is_none()) {
            if places[child.inode as usize].number == 0 {
                self.count += 1;
                places[child.inode as usize] = self.file(tree, child.inode, self.count, contents)?;
            }
        }

        let (start, offset) = self.directories.position();
        let before = self.directories.bytes.len();
        let entries: Vec<(&[u8], Place, u16)> = this
            .entries
            .iter()
            .map(|(name, child)| {
                (&**name, places[child.inode as usize], basic_type(&tree.inodes[child.inode as usize].node))
            })
            .collect();
        // One header serves up to 256 entries whose inodes are in one block, numbered close together.
        let mut rest = &entries[..];
        while let Some((_, first, _)) = rest.first() {
            let fits = |place: &Place| {
                let delta = i64::from(place.number) - i64::from(first.number);
                place.block == first.block && i16::try_from(delta).is_ok()
            };
            let run = rest.iter().take(256).take_while(|(_, place, _)| fits(place)).count();
            self.directories.u32(run as u32 - 1);
            self.directories.u32(first.block);
            self.directories.u32(first.number);
            for (name, place, kind) in &rest[..run] {
                self.directories.u16(place.offset);
                self.directories.u16(place.number.wrapping_sub(first.number) as u16);
                self.directories.u16(*kind);
                self.directories.u16(name.len() as u16 - 1);
                self.directories.bytes.extend_from_slice(name);
            }
            rest = &rest[run..];
        }
        // As if the listing held "." and ".." as well.
        let size = (self.directories.bytes.len() - before) as u32 + 3;

        let inode = &tree.inodes[this.inode as usize];
        // The root comes last; its parent is a number that no inode has.
        let parent = if dir == ROOT { self.count + 1 } else { numbers[this.parent as usize] };
        let xattr = self.xattrs.add(inode.xattrs.as_deref());
        let number = numbers[dir as usize];
        let small = u16::try_from(size).ok().filter(|_| xattr == NONE32);
        let place = self.inode_header(tree, this.inode, if small.is_some() { 1 } else { 8 }, number)?;
        match small {
            Some(size) => {
                self.inodes.u32(start);
                self.inodes.u32(inode.links);
                self.inodes.u16(size);
                self.inodes.u16(offset);
                self.inodes.u32(parent);
            }
            None => {
                self.inodes.u32(inode.links);
                self.inodes.u32(size);
                self.inodes.u32(start);
                self.inodes.u32(parent);
                self.inodes.u16(0);
                self.inodes.u16(offset);
                self.inodes.u32(xattr);
            }
        }
        places[this.inode as usize] = place;
        Ok(())
    }

    fn inode_header(&mut self, tree: &Tree, id: InodeId, kind: u16, number: u32) -> io::Result<Place> {
        let inode = &tree.inodes[id as usize];
        let (uid, gid) = (self.id(inode.uid)?, self.id(inode.gid)?);
        let (block, offset) = self.inodes.position();
        self.inodes.u16(kind);
        self.inodes.u16(inode.mode);
        self.inodes.u16(uid);
        self.inodes.u16(gid);
        self.inodes.u32(inode.mtime);
        self.inodes.u32(number);
        Ok(Place { block, offset, number })
    }

    fn file(&mut self, tree: &Tree, id: InodeId, number: u32, contents: &Contents) -> io::Result<Place> {
        let inode = &tree.inodes[id as usize];
        let xattr = self.xattrs.add(inode.xattrs.as_deref());
        let extended = xattr != NONE32;
        // The kinds with attributes are numbered 7 after those without.
        let kind = basic_type(&inode.node) + if extended { 7 } else { 0 };
        let place;
        match &inode.node {
            Node::Directory => unreachable!("directories have their own function"),
            Node::File(_) => {
                let (stored, blocks) =
                    contents.get(id).ok_or_else(|| io::Error::other("a file without content"))?;
                let basic = !extended && inode.links == 1 && stored.sparse == 0;
                let small = (u32::try_from(stored.start).ok(), u32::try_from(stored.size).ok());
                if let (true, (Some(start), Some(size))) = (basic, small) {
                    place = self.inode_header(tree, id, 2, number)?;
                    self.inodes.u32(if size == 0 { 0 } else { start });
                    self.inodes.u32(NONE32);
                    self.inodes.u32(0);
                    self.inodes.u32(size);
                } else {
                    place = self.inode_header(tree, id, 9, number)?;
                    self.inodes.u64(if stored.size == 0 { 0 } else { stored.start });
                    self.inodes.u64(stored.size);
                    // A file of nothing but holes must not claim to have no bytes at all.
                    self.inodes.u64(stored.sparse.min(stored.size.saturating_sub(1)));
                    self.inodes.u32(inode.links);
                    self.inodes.u32(NONE32);
                    self.inodes.u32(0);
                    self.inodes.u32(xattr);
                }
                for block in blocks {
                    self.inodes.u32(*block);
                }
            }
            Node::Symlink(target) => {
                place = self.inode_header(tree, id, kind, number)?;
                self.inodes.u32(inode.links);
                self.inodes.u32(target.len() as u32);
                self.inodes.bytes.extend_from_slice(target);
                if extended {
                    self.inodes.u32(xattr);
                }
            }
            Node::CharDevice(major, minor) | Node::BlockDevice(major, minor) => {
                place = self.inode_header(tree, id, kind, number)?;
                self.inodes.u32(inode.links);
                self.inodes.u32((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
                if extended {
                    self.inodes.u32(xattr);
                }
            }
            Node::Fifo => {
                place = self.inode_header(tree, id, kind, number)?;
                self.inodes.u32(inode.links);
                if extended {
                    self.inodes.u32(xattr);
                }
            }
        }
        Ok(place)
    }

    fn id(&mut self, id: u32) -> io::Result<u16> {
        if let Some(index) = self.id_index.get(&id) {
            return Ok(*index);
        }
        // The count of ids is a 16 bit number as well.
        let index = u16::try_from(self.ids.len())
            .ok()
            .filter(|index| *index < u16::MAX)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "more than 65535 owners and groups"))?;
        self.ids.push(id);
        self.id_index.insert(id, index);
        Ok(index)
    }
}

fn basic_type(node: &Node) -> u16 {
    match node {
        Node::Directory => 1,
        Node::File(_) => 2,
        Node::Symlink(_) => 3,
        Node::BlockDevice(..) => 4,
        Node::CharDevice(..) => 5,
        Node::Fifo => 6,
    }
}
