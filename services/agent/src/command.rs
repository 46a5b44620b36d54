//! From what a client asks for to what is executed: environment, directory, path of the binary.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use banger_api::{ErrorKind, Result};

use crate::users::User;

/// What a command finds its programs in when neither image nor client say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most that arguments and environment may take together; the kernel's own limit is a
/// quarter of the stack limit, 2 MiB by default.
const MAX_SIZE: usize = 1 << 21;

/// The environment of a command: what the user is, then the image's, then the client's.
pub fn environment(
    user: &User,
    image: &BTreeMap<String, String>,
    client: &BTreeMap<String, String>,
    terminal: bool,
) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = [
        ("PATH", PATH),
        ("HOME", user.home.as_str()),
        ("USER", user.name.as_str()),
        ("LOGNAME", user.name.as_str()),
        ("SHELL", user.shell.as_str()),
    ]
    .map(|(key, value)| (key.into(), value.into()))
    .into();
    if terminal {
        environment.insert("TERM".into(), "linux".into());
    }
    for (key, value) in image.iter().chain(client) {
        environment.insert(key.clone(), value.clone());
    }
    environment
}

/// Refuses what execve(2) could not take.
pub fn check(argv: &[String], environment: &BTreeMap<String, String>) -> Result<()> {
    let invalid = |message: &str| Err(ErrorKind::InvalidArgs.error(message));
    if argv.iter().chain(environment.values()).any(|text| text.contains('\0')) {
        return invalid("arguments and environment cannot contain a NUL");
    }
    if argv.first().is_some_and(String::is_empty) {
        return invalid("the command is empty");
    }
    if let Some(key) = environment.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
        return invalid(&format!("{key:?} cannot be the name of a variable"));
    }
    let size = argv.iter().map(String::len).sum::<usize>()
        + environment.iter().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>();
    if size > MAX_SIZE {
        return invalid(&format!("arguments and environment are longer than {MAX_SIZE} bytes"));
    }
    Ok(())
}

/// Finds the binary of `command` as a shell would, and says why if there is none.
pub fn find(command: &str, directory: &str, path: &str) -> Result<PathBuf> {
    if command.contains('/') {
        let binary = PathBuf::from(directory).join(command);
        return match executable(&binary) {
            Ok(true) => Ok(binary),
            Ok(false) => Err(ErrorKind::NotExecutable.error(format!("{command} is not executable"))),
            Err(error) => Err(not_found(command, &error)),
        };
    }
    let mut unusable = None;
    for entry in path.split(':') {
        // An empty entry is the current directory.
        let binary = PathBuf::from(directory).join(entry).join(command);
        match executable(&binary) {
            Ok(true) => return Ok(binary),
            Ok(false) => unusable = unusable.or(Some(binary)),
            Err(_) => {}
        }
    }
    Err(match unusable {
        Some(binary) => ErrorKind::NotExecutable.error(format!("{} is not executable", binary.display())),
        None => ErrorKind::CommandNotFound.error(format!("{command}: not found in PATH ({path})")),
    })
}

fn executable(binary: &PathBuf) -> io::Result<bool> {
    let metadata = std::fs::metadata(binary)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn not_found(command: &str, error: &io::Error) -> banger_api::Error {
    ErrorKind::CommandNotFound.error(format!("{command}: {}", describe(error)))
}

/// "No such file or directory", without Rust's "(os error 2)".
pub fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::Error::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

/// The error of an exec that failed although the binary was there.
pub fn exec_error(command: &str, error: &io::Error) -> banger_api::Error {
    match error.raw_os_error().map(nix::Error::from_raw) {
        Some(nix::Error::ENOENT) => ErrorKind::NotExecutable
            .error(format!("{command}: its interpreter or dynamic loader is missing in the image")),
        Some(nix::Error::ENOEXEC) => ErrorKind::NotExecutable
            .error(format!("{command}: not a binary of this architecture nor a script")),
        Some(nix::Error::E2BIG) => ErrorKind::InvalidArgs.error("arguments and environment are too long"),
        Some(nix::Error::EACCES | nix::Error::EPERM) => {
            ErrorKind::NotExecutable.error(format!("{command}: {}", describe(error)))
        }
        _ => banger_api::Error::internal(format!("cannot start {command}: {}", describe(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        crate::users::resolve("", b"root:x:0:0::/root:/bin/bash", b"").unwrap()
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn the_client_wins_over_the_image_and_the_image_over_us() {
        let image = map(&[("PATH", "/image"), ("LANG", "C"), ("A", "image")]);
        let merged = environment(&user(), &image, &map(&[("A", "client"), ("HOME", "/h")]), false);
        assert_eq!(
            merged,
            map(&[
                ("PATH", "/image"),
                ("LANG", "C"),
                ("A", "client"),
                ("HOME", "/h"),
                ("USER", "root"),
                ("LOGNAME", "root"),
                ("SHELL", "/bin/bash"),
            ])
        );
        let merged = environment(&user(), &map(&[]), &map(&[("TERM", "xterm")]), true);
        assert_eq!(merged["TERM"], "xterm");
        assert_eq!(merged["PATH"], PATH);
        assert_eq!(environment(&user(), &map(&[]), &map(&[]), true)["TERM"], "linux");
    }

    #[test]
    fn refusals() {
        let fine = map(&[("A", "b")]);
        let argv = |argv: &[&str]| argv.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
        assert!(check(&argv(&["a", ""]), &fine).is_ok());
        assert!(check(&argv(&[]), &fine).is_ok());
        assert!(check(&argv(&[""]), &fine).is_err());
        assert!(check(&argv(&["a\0"]), &fine).is_err());
        assert!(check(&argv(&["a"]), &map(&[("A", "\0")])).is_err());
        assert!(check(&argv(&["a"]), &map(&[("A=B", "")])).is_err());
        assert!(check(&argv(&["a"]), &map(&[("", "")])).is_err());
        assert!(check(&argv(&["a", &"x".repeat(MAX_SIZE)]), &fine).is_err());
    }

    #[test]
    fn lookup() {
        assert_eq!(find("sh", "/", "/nonexistent:/bin").unwrap(), PathBuf::from("/bin/sh"));
        assert_eq!(find("sh", "/bin", "").unwrap(), PathBuf::from("/bin/sh"));
        assert_eq!(find("./sh", "/bin", "").unwrap(), PathBuf::from("/bin/./sh"));
        let kind = |command: &str, path: &str| find(command, "/", path).unwrap_err().kind();
        assert_eq!(kind("no-such-command", "/bin"), ErrorKind::CommandNotFound);
        assert_eq!(kind("/no/such", "/bin"), ErrorKind::CommandNotFound);
        assert_eq!(kind("/etc", ""), ErrorKind::NotExecutable);
        assert_eq!(kind("passwd", "/etc"), ErrorKind::NotExecutable);
    }
}
