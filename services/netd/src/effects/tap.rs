//! TAP devices. rtnetlink cannot make them; /dev/net/tun can.

use std::fs::{File, OpenOptions};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};

use banger_api::{Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::libc;

/// Makes a TAP that stays, or takes an existing one of that name, and gives it to `uid`.
///
/// # Errors
/// `VmRunning` if somebody has it open.
pub fn create(name: &str, uid: u32) -> Result<()> {
    let tun = open(name)?;
    let fd = tun.as_raw_fd();
    let failed =
        |what: &str, errno: Errno| Error::internal(format!("cannot {what} {name}: {}", errno.desc()));
    // SAFETY: these two take an integer.
    unsafe { ioctl::tun_set_owner(fd, uid.into()) }.map_err(|errno| failed("give away", errno))?;
    // SAFETY: as above.
    unsafe { ioctl::tun_set_persist(fd, 1) }.map_err(|errno| failed("keep", errno))?;
    Ok(())
}

/// Opens a TAP as a VMM does, after making it if there is none.
///
/// # Errors
/// `VmRunning` if somebody has it open.
pub fn open(name: &str) -> Result<File> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(|error| {
        Error::internal(format!("cannot open /dev/net/tun: {error}; load the module tun (modprobe tun)"))
    })?;
    let request = request(name)?;
    // SAFETY: `request` is an ifreq, which the kernel reads and writes within this call.
    unsafe { ioctl::tun_set_iff(tun.as_raw_fd(), &raw const request) }.map_err(|errno| match errno {
        Errno::EBUSY => ErrorKind::VmRunning.error(format!("{name} is open: its VM still runs")),
        errno => Error::internal(format!("cannot make {name}: {}", errno.desc())),
    })?;
    Ok(tun)
}

fn request(name: &str) -> Result<libc::ifreq> {
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Error::internal(format!("{name:?} is too long for an interface")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    Ok(request)
}

mod ioctl {
    use super::{RawFd, libc};
    use nix::request_code_write;

    const INT: usize = size_of::<libc::c_int>();

    nix::ioctl_write_ptr_bad!(tun_set_iff, request_code_write!(b'T', 202, INT), libc::ifreq);
    nix::ioctl_write_int_bad!(tun_set_persist, request_code_write!(b'T', 203, INT));

    /// nix's macro takes a signed int, which not every uid is.
    ///
    /// # Safety
    /// `fd` must be a TAP.
    pub unsafe fn tun_set_owner(fd: RawFd, uid: libc::c_ulong) -> nix::Result<libc::c_int> {
        // SAFETY: the argument is an integer; the caller vouches for `fd`.
        let result = unsafe { libc::ioctl(fd, request_code_write!(b'T', 204, INT), uid) };
        nix::errno::Errno::result(result)
    }
}
