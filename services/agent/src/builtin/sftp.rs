//! A server of SFTP, version 3, as ssh(1), scp, sshfs and editors use it: draft-ietf-secsh-filexfer-02, and
//! OpenSSH's `PROTOCOL` (section 4) for its extensions and for the order of a link's two paths.
//!
//! It runs as the user whose files these are, and the kernel says what may be done.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, Metadata, OpenOptions, Permissions, ReadDir};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use banger_core::wire::{Malformed, Reader, Writer};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::libc;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::time::TimeSpec;

const VERSION: u32 = 3;
/// The longest message either way, and the most data in one: what OpenSSH takes.
const MAX_MESSAGE: usize = 256 * 1024;
const MAX_DATA: usize = MAX_MESSAGE - 1024;
/// Entries of a directory in one message.
const ENTRIES: usize = 100;

const INIT: u8 = 1;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const READLINK: u8 = 19;
const SYMLINK: u8 = 20;
const EXTENDED: u8 = 200;

const VERSION_REPLY: u8 = 2;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRIBUTES: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

const OK: u32 = 0;
const EOF: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;
const FAILURE: u32 = 4;
const BAD_MESSAGE: u32 = 5;
const UNSUPPORTED: u32 = 8;

const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;
const HAS_TIMES: u32 = 8;

const EXTENSIONS: [(&str, &str); 7] = [
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
];

pub fn run() -> io::Result<()> {
    if let Some(home) = home() {
        // Without it, what is relative is so to where we are.
        let _ = std::env::set_current_dir(home);
    }
    serve(io::stdin().lock(), io::stdout().lock())
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// Answers until the client ends its side.
fn serve(input: impl Read, output: impl Write) -> io::Result<()> {
    let mut input = BufReader::with_capacity(MAX_MESSAGE, input);
    let mut output = BufWriter::with_capacity(MAX_MESSAGE, output);
    let mut server = Server::default();
    loop {
        if input.buffer().is_empty() {
            output.flush()?;
        }
        if input.fill_buf()?.is_empty() {
            return Ok(());
        }
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if !(5..=MAX_MESSAGE).contains(&length) {
            return Err(io::Error::other("the client sends what is no SFTP"));
        }
        let mut message = vec![0; length];
        input.read_exact(&mut message)?;
        let reply = server.answer(&message);
        output.write_all(&(reply.len() as u32).to_be_bytes())?;
        output.write_all(&reply)?;
    }
}

/// Why a request is not answered as it would like to be.
enum Refusal {
    Failed(io::Error),
    Malformed,
    End,
    Unsupported,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// What to answer: the message's number, and what follows the request's.
type Answer = Result<(u8, Writer), Refusal>;

fn done() -> Answer {
    Ok(status(OK, "success"))
}

fn status(code: u32, message: &str) -> (u8, Writer) {
    (STATUS, Writer::default().uint32(code).string(message).string(""))
}

enum Handle {
    File(File),
    Directory(ReadDir),
}

#[derive(Default)]
struct Server {
    handles: HashMap<u32, Handle>,
}

impl Server {
    fn answer(&mut self, message: &[u8]) -> Vec<u8> {
        let mut reader = Reader(&message[1..]);
        let Ok(id) = reader.uint32() else { return Vec::new() };
        if message[0] == INIT {
            let reply = Writer::message(VERSION_REPLY).uint32(VERSION);
            return EXTENSIONS.iter().fold(reply, |reply, (name, data)| reply.string(name).string(data)).0;
        }
        let (number, body) = self.carry_out(message[0], reader).unwrap_or_else(|refusal| match refusal {
            Refusal::End => status(EOF, "end of file"),
            Refusal::Malformed => status(BAD_MESSAGE, "the message is malformed"),
            Refusal::Unsupported => status(UNSUPPORTED, "not supported"),
            Refusal::Failed(error) => {
                let code = match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EBADF) => NO_SUCH_FILE,
                    Some(Errno::EACCES | Errno::EPERM) => PERMISSION_DENIED,
                    _ => FAILURE,
                };
                status(code, &crate::command::describe(&error))
            }
        });
        Writer::message(number).uint32(id).raw(&body.0).0
    }

    fn carry_out(&mut self, number: u8, mut reader: Reader) -> Answer {
        match number {
            OPEN => self.open(reader),
            OPENDIR => {
                let directory = fs::read_dir(path(&mut reader)?)?;
                Ok(self.keep(Handle::Directory(directory)))
            }
            CLOSE => {
                let number = handle(&mut reader)?;
                self.handles.remove(&number).ok_or(Errno::EBADF)?;
                done()
            }
            READ => {
                let file = self.file(&mut reader)?;
                let (offset, length) = (reader.uint64()?, reader.uint32()? as usize);
                let mut data = vec![0; length.min(MAX_DATA)];
                match file.read_at(&mut data, offset)? {
                    0 => Err(Refusal::End),
                    length => Ok((DATA, Writer::default().string(&data[..length]))),
                }
            }
            WRITE => {
                let file = self.file(&mut reader)?;
                let offset = reader.uint64()?;
                file.write_all_at(reader.string()?, offset)?;
                done()
            }
            READDIR => self.entries(&mut reader),
            STAT => attributes(&fs::metadata(path(&mut reader)?)?),
            LSTAT => attributes(&fs::symlink_metadata(path(&mut reader)?)?),
            FSTAT => attributes(&self.file(&mut reader)?.metadata()?),
            SETSTAT => {
                let path = path(&mut reader)?;
                Change::read(&mut reader)?.apply_to_path(path, true)
            }
            FSETSTAT => {
                let file = self.file(&mut reader)?;
                Change::read(&mut reader)?.apply_to_file(file)
            }
            REMOVE => {
                fs::remove_file(path(&mut reader)?)?;
                done()
            }
            MKDIR => {
                let path = path(&mut reader)?;
                let mode = Change::read(&mut reader)?.mode.unwrap_or(0o777);
                fs::DirBuilder::new().mode(mode & 0o7777).create(path)?;
                done()
            }
            RMDIR => {
                fs::remove_dir(path(&mut reader)?)?;
                done()
            }
            REALPATH => named(&real(path(&mut reader)?)?),
            RENAME => {
                let (from, to) = (path(&mut reader)?, path(&mut reader)?);
                // What is there is not replaced, in this version of the protocol.
                renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?;
                done()
            }
            READLINK => named(&fs::read_link(path(&mut reader)?)?),
            SYMLINK => {
                let (target, link) = (path(&mut reader)?, path(&mut reader)?);
                std::os::unix::fs::symlink(target, link)?;
                done()
            }
            EXTENDED => self.extended(reader),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn extended(&mut self, mut reader: Reader) -> Answer {
        match reader.string()? {
            b"posix-rename@openssh.com" => {
                fs::rename(path(&mut reader)?, path(&mut reader)?)?;
                done()
            }
            b"hardlink@openssh.com" => {
                fs::hard_link(path(&mut reader)?, path(&mut reader)?)?;
                done()
            }
            b"fsync@openssh.com" => {
                self.file(&mut reader)?.sync_all()?;
                done()
            }
            b"lsetstat@openssh.com" => {
                let path = path(&mut reader)?;
                Change::read(&mut reader)?.apply_to_path(path, false)
            }
            b"expand-path@openssh.com" => {
                let path = path(&mut reader)?;
                match (path.strip_prefix("~"), home()) {
                    (Ok(rest), Some(home)) => named(&real(&home.join(rest))?),
                    _ => named(&real(path)?),
                }
            }
            b"limits@openssh.com" => {
                let sizes = [MAX_MESSAGE as u64, MAX_DATA as u64, MAX_DATA as u64, 0];
                Ok((EXTENDED_REPLY, sizes.into_iter().fold(Writer::default(), Writer::uint64)))
            }
            b"statvfs@openssh.com" => space(path(&mut reader)?),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn open(&mut self, mut reader: Reader) -> Answer {
        const READABLE: u32 = 1;
        const WRITABLE: u32 = 2;
        const FLAGS: [(u32, OFlag); 4] =
            [(4, OFlag::O_APPEND), (8, OFlag::O_CREAT), (16, OFlag::O_TRUNC), (32, OFlag::O_EXCL)];
        let (path, flags) = (path(&mut reader)?, reader.uint32()?);
        let mode = Change::read(&mut reader)?.mode.unwrap_or(0o666);
        let wanted = FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, flag)| *flag);
        let file = OpenOptions::new()
            .read(flags & READABLE != 0)
            .write(flags & WRITABLE != 0)
            .custom_flags(wanted.collect::<OFlag>().bits())
            .mode(mode & 0o7777)
            .open(path)?;
        Ok(self.keep(Handle::File(file)))
    }

    fn keep(&mut self, handle: Handle) -> (u8, Writer) {
        // As many as there may be open files, which is fewer than there are numbers.
        let number = (0..).find(|number| !self.handles.contains_key(number)).unwrap_or(u32::MAX);
        self.handles.insert(number, handle);
        (HANDLE, Writer::default().string(number.to_be_bytes()))
    }

    fn file(&self, reader: &mut Reader) -> Result<&File, Refusal> {
        match self.handles.get(&handle(reader)?) {
            Some(Handle::File(file)) => Ok(file),
            _ => Err(Errno::EBADF.into()),
        }
    }

    fn entries(&mut self, reader: &mut Reader) -> Answer {
        let Some(Handle::Directory(directory)) = self.handles.get_mut(&handle(reader)?) else {
            return Err(Errno::EBADF.into());
        };
        let entries = directory.take(ENTRIES).collect::<io::Result<Vec<DirEntry>>>()?;
        // What has gone meanwhile is not there.
        let entries: Vec<_> =
            entries.iter().filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?))).collect();
        if entries.is_empty() {
            return Err(Refusal::End);
        }
        let count = Writer::default().uint32(entries.len() as u32);
        let all = entries.iter().fold(count, |writer, (name, metadata)| {
            let long = [line(metadata).as_bytes(), name.as_bytes()].concat();
            put(writer.string(name.as_bytes()).string(long), metadata)
        });
        Ok((NAME, all))
    }
}

fn handle(reader: &mut Reader) -> Result<u32, Refusal> {
    let bytes = reader.string()?.try_into().map_err(|_| Refusal::Malformed)?;
    Ok(u32::from_be_bytes(bytes))
}

fn path<'a>(reader: &mut Reader<'a>) -> Result<&'a Path, Refusal> {
    let bytes = reader.string()?;
    Ok(Path::new(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
}

/// Where a path leads, of which the last part need not be there.
fn real(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")))?;
            Ok(path.file_name().map(|name| parent.join(name)).ok_or(error)?)
        }
        found => found,
    }
}

fn named(path: &Path) -> Answer {
    let name = path.as_os_str().as_bytes();
    Ok((NAME, Writer::default().uint32(1).string(name).string(name).uint32(0)))
}

fn attributes(metadata: &Metadata) -> Answer {
    Ok((ATTRIBUTES, put(Writer::default(), metadata)))
}

fn put(writer: Writer, metadata: &Metadata) -> Writer {
    // Times have 32 bits in this version.
    let time = |seconds: i64| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
    writer
        .uint32(HAS_SIZE | HAS_OWNER | HAS_MODE | HAS_TIMES)
        .uint64(metadata.len())
        .uint32(metadata.uid())
        .uint32(metadata.gid())
        .uint32(metadata.mode())
        .uint32(time(metadata.atime()))
        .uint32(time(metadata.mtime()))
}

/// What people see of a file, before its name, much as in `ls -ln`.
fn line(metadata: &Metadata) -> String {
    let mode = metadata.mode();
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFBLK => 'b',
        libc::S_IFCHR => 'c',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let bits = (0..9).rev().zip("rwxrwxrwx".chars());
    let bits: String = bits.map(|(bit, letter)| if mode >> bit & 1 == 1 { letter } else { '-' }).collect();
    let (links, uid, gid) = (metadata.nlink(), metadata.uid(), metadata.gid());
    format!("{kind}{bits} {links:>4} {uid:<8} {gid:<8} {:>10} ", metadata.len())
}

fn space(path: &Path) -> Answer {
    let all = statvfs(path)?;
    let flags = [(FsFlags::ST_RDONLY, 1), (FsFlags::ST_NOSUID, 2)];
    let flags = flags.iter().filter(|(flag, _)| all.flags().contains(*flag)).map(|(_, bit)| bit).sum();
    let numbers = [
        all.block_size(),
        all.fragment_size(),
        all.blocks(),
        all.blocks_free(),
        all.blocks_available(),
        all.files(),
        all.files_free(),
        all.files_available(),
        all.filesystem_id(),
        flags,
        all.name_max(),
    ];
    Ok((EXTENDED_REPLY, numbers.into_iter().fold(Writer::default(), Writer::uint64)))
}

/// What a client wants a file to be.
#[derive(Default)]
struct Change {
    size: Option<u64>,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    /// Seconds since 1970, of the last access and of the last change.
    times: Option<(u32, u32)>,
}

impl Change {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let flags = reader.uint32()?;
        let mut change = Self::default();
        if flags & HAS_SIZE != 0 {
            change.size = Some(reader.uint64()?);
        }
        if flags & HAS_OWNER != 0 {
            change.owner = Some((reader.uint32()?, reader.uint32()?));
        }
        if flags & HAS_MODE != 0 {
            change.mode = Some(reader.uint32()?);
        }
        if flags & HAS_TIMES != 0 {
            change.times = Some((reader.uint32()?, reader.uint32()?));
        }
        Ok(change)
    }

    /// The mode after the owner, which takes set-user-ID bits away, and the times last.
    fn apply_to_file(self, file: &File) -> Answer {
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        if let Some((uid, gid)) = self.owner {
            fchown(file.as_fd(), Some(uid), Some(gid))?;
        }
        if let Some(mode) = self.mode {
            file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some((access, change)) = self.times {
            let time = |seconds: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
            file.set_times(fs::FileTimes::new().set_accessed(time(access)).set_modified(time(change)))?;
        }
        done()
    }

    fn apply_to_path(self, path: &Path, follow: bool) -> Answer {
        if let Some(size) = self.size {
            OpenOptions::new().write(true).open(path)?.set_len(size)?;
        }
        if let Some((uid, gid)) = self.owner {
            let chown = if follow { chown::<&Path> } else { lchown::<&Path> };
            chown(path, Some(uid), Some(gid))?;
        }
        // A link has no mode of its own.
        let has_mode = follow || !fs::symlink_metadata(path)?.is_symlink();
        if let Some(mode) = self.mode.filter(|_| has_mode) {
            fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some((access, change)) = self.times {
            let time = |seconds: u32| TimeSpec::new(seconds.into(), 0);
            let flag = if follow { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
            utimensat(AT_FDCWD, path, &time(access), &time(change), flag)?;
        }
        done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client with these requests is answered: number and body of each, without the id.
    fn converse(requests: Vec<Writer>) -> Vec<(u8, Vec<u8>)> {
        let wire = requests.iter().fold(Writer::default(), |wire, request| wire.string(&request.0));
        let mut output = Vec::new();
        serve(wire.0.as_slice(), &mut output).unwrap();
        let mut reader = Reader(&output);
        let mut answers = Vec::new();
        while !reader.0.is_empty() {
            let answer = reader.string().unwrap();
            answers.push((answer[0], answer[5..].to_vec()));
        }
        answers
    }

    fn request(number: u8) -> Writer {
        Writer::message(number).uint32(7)
    }

    fn code(answer: &(u8, Vec<u8>)) -> u32 {
        assert_eq!(answer.0, STATUS);
        Reader(&answer.1).uint32().unwrap()
    }

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("banger-sftp-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir(&place).unwrap();
        place
    }

    #[test]
    fn files_are_written_read_and_changed() {
        let place = place("files");
        let file = place.join("file");
        let name = || file.as_os_str().as_bytes();
        let first = || 0_u32.to_be_bytes();
        let answers = converse(vec![
            // To read and write, made with this mode, and not if it is there.
            request(OPEN).string(name()).uint32(1 | 2 | 8 | 32).uint32(HAS_MODE).uint32(0o640),
            request(WRITE).string(first()).uint64(3).string("data"),
            request(READ).string(first()).uint64(0).uint32(100),
            request(READ).string(first()).uint64(7).uint32(100),
            request(FSETSTAT).string(first()).uint32(HAS_SIZE | HAS_TIMES).uint64(5).uint32(1).uint32(2),
            request(FSTAT).string(first()),
            request(CLOSE).string(first()),
            request(READ).string(first()).uint64(0).uint32(100),
            request(OPEN).string(name()).uint32(1 | 2 | 8 | 32).uint32(0),
            request(OPEN).string(name()).uint32(1).uint32(0),
        ]);
        assert_eq!(answers[0], (HANDLE, Writer::default().string(first()).0));
        assert_eq!(code(&answers[1]), OK);
        assert_eq!(answers[2], (DATA, Writer::default().string(b"\0\0\0data").0));
        assert_eq!(code(&answers[3]), EOF);
        assert_eq!(code(&answers[4]), OK);
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.len(), metadata.mtime(), metadata.mode() & 0o777), (5, 2, 0o640));
        assert_eq!(answers[5], (ATTRIBUTES, put(Writer::default(), &metadata).0));
        assert_eq!(code(&answers[6]), OK);
        assert_eq!(code(&answers[7]), NO_SUCH_FILE, "the handle is gone");
        assert_eq!(code(&answers[8]), FAILURE, "it is there");
        assert_eq!(answers[9], answers[0], "the number is free again");
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn directories_links_and_names() {
        let place = place("names");
        let path = |name: &str| place.join(name).into_os_string().into_encoded_bytes();
        let answers = converse(vec![
            request(MKDIR).string(path("d")).uint32(0),
            request(SYMLINK).string("d").string(path("link")),
            request(READLINK).string(path("link")),
            request(RENAME).string(path("d")).string(path("link")),
            request(REALPATH).string(path("link/../d/new")),
            request(REALPATH).string(path("no/new")),
            request(OPENDIR).string(&path("")[..path("").len() - 1]),
            request(READDIR).string(0_u32.to_be_bytes()),
            request(READDIR).string(0_u32.to_be_bytes()),
            request(LSTAT).string(path("gone")),
            request(RMDIR).string(path("d")),
            request(REMOVE).string(path("link")),
            request(EXTENDED).string("no-such@extension"),
            request(99),
            request(OPEN).string("cut"),
            Writer::message(INIT).uint32(3),
        ]);
        assert_eq!(code(&answers[0]), OK);
        assert_eq!(code(&answers[1]), OK);
        assert_eq!(answers[2], (NAME, Writer::default().uint32(1).string("d").string("d").uint32(0).0));
        assert_eq!(code(&answers[3]), FAILURE, "nothing is replaced");
        let new = fs::canonicalize(&place).unwrap().join("new");
        let new = new.as_os_str().as_bytes();
        let expected = [new.strip_suffix(b"new").unwrap(), b"d/new"].concat();
        assert_eq!(answers[4].1, Writer::default().uint32(1).string(&expected).string(&expected).uint32(0).0);
        assert_eq!(code(&answers[5]), NO_SUCH_FILE);
        assert_eq!(answers[6].0, HANDLE);
        assert_eq!((answers[7].0, Reader(&answers[7].1).uint32()), (NAME, Ok(2)));
        assert_eq!(code(&answers[8]), EOF);
        assert_eq!(code(&answers[9]), NO_SUCH_FILE);
        assert_eq!((code(&answers[10]), code(&answers[11])), (OK, OK));
        assert_eq!((code(&answers[12]), code(&answers[13])), (UNSUPPORTED, UNSUPPORTED));
        assert_eq!(code(&answers[14]), BAD_MESSAGE);
        assert_eq!(answers[15].0, VERSION_REPLY);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn what_is_no_sftp_ends_it() {
        for wire in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0, 0, 0, 0], &[0, 0, 0, 9, 1]] {
            assert!(serve(wire, Vec::new()).is_err());
        }
    }
}
