//! Small pieces of system interface that nothing else here should have to spell out.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use tokio::io::unix::AsyncFd;

use nix::time::{ClockId, clock_gettime};

/// Log levels of syslog(3), as the kernel's log takes them.
pub const ERR: u8 = 3;
pub const WARNING: u8 = 4;
pub const INFO: u8 = 6;

static KMSG: OnceLock<File> = OnceLock::new();

/// Sends the log to the kernel's, once `/dev` is there. The host finds it on the console.
pub fn open_log() {
    if let Ok(file) = OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open("/dev/kmsg") {
        let _ = KMSG.set(file);
    }
}

pub fn write_log(level: u8, message: fmt::Arguments<'_>) {
    // One write is one record, and the kernel refuses records of a kilobyte. One without a newline
    // could be continued, so nobody sees it before the next.
    let mut line = format!("<{level}>banger-agent: {message}").replace('\n', " ").into_bytes();
    line.truncate(900);
    line.push(b'\n');
    match KMSG.get() {
        Some(mut kmsg) => {
            let _ = kmsg.write_all(&line);
        }
        None => {
            let _ = io::stderr().write_all(&line);
        }
    }
}

macro_rules! log {
    ($level:expr, $($arg:tt)*) => { $crate::sys::write_log($level, format_args!($($arg)*)) };
}
pub(crate) use log;

/// Time since the kernel started.
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Microseconds since 1970.
pub fn realtime_usec() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map(|now| Duration::from(now).as_micros() as u64)
        .unwrap_or_default()
}

pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

pub fn set_cloexec(fd: impl AsFd) -> io::Result<()> {
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Has tokio watch a descriptor.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same descriptor until it is dropped, which AsyncFd does after
    // it has stopped watching.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Reads a file of the image, whatever it may be: only a regular file, and not too big a one.
pub fn read_bounded(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too big"));
    }
    Ok(content)
}

/// Makes a directory, or finds it made.
pub fn make_directory(path: &str) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// `read(2)`.
pub fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(fd, buffer)?)
}

/// `write(2)`.
pub fn write(fd: &OwnedFd, data: &[u8]) -> io::Result<usize> {
    Ok(nix::unistd::write(fd, data)?)
}

/// `N` random bytes. The pool has been seeded by the time anybody asks.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: the pointer and length describe the rest of `bytes`.
        let n = unsafe { libc::getrandom(bytes[filled..].as_mut_ptr().cast(), N - filled, 0) };
        match n {
            n if n > 0 => filled += n as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(bytes)
}

/// Credits `seed` to the kernel's entropy pool (random(4), `RNDADDENTROPY`).
pub fn add_entropy(seed: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    let length = seed.len() as i32;
    // struct rand_pool_info { int entropy_count; int buf_size; __u32 buf[]; }
    let mut info = Vec::with_capacity(2 + seed.len().div_ceil(4));
    info.extend([(length * 8) as u32, length as u32]);
    info.extend(seed.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_ne_bytes(word)
    }));
    let random = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: `info` has the layout above and lives through the call.
    match unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel's generator draw from the pool now rather than minutes from now (random(4),
/// `RNDRESEEDCRNG`): until then two copies of one machine give the same numbers.
pub fn reseed() -> io::Result<()> {
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let random = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the request takes no argument.
    match unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process that a directory of `/proc` stands for.
pub fn pid(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// The ids of all processes, in no order.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| pid(&entry.file_name()))
}

/// Bytes from hexadecimal digits.
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).ok()).collect()
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex() {
        assert_eq!(from_hex("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(from_hex(""), Some(vec![]));
        for bad in ["0", "0g", "ä", "+1"] {
            assert!(from_hex(bad).is_none(), "{bad}");
        }
        assert_eq!(to_hex(&[0, 255]), "00ff");
    }
}
