//! Extended attributes of what is at a path, be it a link.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// The longest list and the longest value, `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`.
const LONGEST: usize = 64 << 10;

pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// All that an archive can say; a name with `=` in it is not among them.
pub fn get(path: &Path) -> io::Result<Xattrs> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a string; without a buffer only the length is told.
    let length = unsafe { libc::llistxattr(path.as_ptr(), std::ptr::null_mut(), 0) };
    match length_of(length) {
        Ok(0) => return Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut list = vec![0; LONGEST];
    // SAFETY: the path is a string, and pointer and length are those of the buffer.
    let length = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(length_of(length)?);
    let mut found = Vec::new();
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty() && !name.contains(&b'=')) {
        let mut value = vec![0; LONGEST];
        let key = CString::new(name)?;
        // SAFETY: as above, with the name as another string.
        let length =
            unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match length_of(length) {
            // Not for this reader, or gone meanwhile.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EPERM | libc::EACCES)) =>
            {
                continue;
            }
            length => value.truncate(length?),
        }
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// Says whether the filesystem took it; one that knows no such attributes, or has none for this
/// caller, does not.
pub fn set(path: &Path, name: &[u8], value: &[u8]) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    // SAFETY: path and name are strings, and pointer and length are those of the value.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOTSUP | libc::EPERM | libc::EACCES | libc::EINVAL | libc::E2BIG) => Ok(false),
        _ => Err(error),
    }
}

fn length_of(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
