//! What the host's admin has every guest brought up with: files of the host, keys, certificates,
//! who commits, the time zone. All of it is read anew at every start of a VM.

use std::fmt::Display;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use banger_core::guest::{File, GitIdentity};
use rustix::fs::OFlags;

use crate::config::{Config, FileSync};

/// The most that all files together may have. They go to the guest in one line of at most
/// [`banger_core::guest::MAX_CONFIG`] bytes, as base64, which takes a third more.
const MAX_TOTAL: u64 = 8 << 20;

/// Its target below a directory `zoneinfo` is the host's time zone, see localtime(5).
const LOCALTIME: &str = "/etc/localtime";

/// What was read, and what could not be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Synced {
    pub files: Vec<File>,
    pub authorized_keys: Vec<String>,
    pub git: Option<GitIdentity>,
    pub ca_certificates: Vec<String>,
    pub timezone: String,
    /// What guests come up without, for people.
    pub warnings: Vec<String>,
}

/// Reads all that `config` asks for.
///
/// # Errors
/// `NotReady` naming a required file that cannot be read.
pub async fn read(config: &Config) -> Result<Synced> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || read_all(&config)).await.map_err(Error::internal)?
}

fn read_all(config: &Config) -> Result<Synced> {
    let mut reader = Reader { left: MAX_TOTAL };
    let mut synced = Synced { git: config.sync.git.clone(), ..Synced::default() };
    for file in &config.file_sync {
        match reader.read(&file.host) {
            Ok(content) => synced.files.push(guest_file(file, content)),
            Err(reason) if file.required => {
                return Err(ErrorKind::NotReady.error(format!(
                    "{reason}; vmd.conf says that guests need it: see to it, or take \"required\" away"
                )));
            }
            Err(reason) => synced.warnings.push(reason),
        }
    }
    for path in &config.sync.authorized_keys {
        let keys = reader.read_text(path).and_then(|text| keys(&text).map_err(|what| explain(path, what)));
        collect(&mut synced.authorized_keys, keys, &mut synced.warnings);
    }
    for path in &config.sync.ca_certificates {
        let read = reader.read_text(path);
        let certificates = read.and_then(|text| certificates(&text).map_err(|what| explain(path, what)));
        collect(&mut synced.ca_certificates, certificates, &mut synced.warnings);
    }
    match config.sync.timezone.as_str() {
        "host" => match host_timezone(std::fs::read_link(LOCALTIME)) {
            Ok(zone) => synced.timezone = zone,
            Err(reason) => synced.warnings.push(reason),
        },
        zone => zone.clone_into(&mut synced.timezone),
    }
    Ok(synced)
}

fn guest_file(file: &FileSync, content: Vec<u8>) -> File {
    File { path: file.guest.clone(), content, mode: file.mode, owner: file.owner.clone() }
}

/// Adds what was read to what there is, each once.
fn collect(
    into: &mut Vec<String>,
    read: std::result::Result<Vec<String>, String>,
    warnings: &mut Vec<String>,
) {
    match read {
        Ok(read) => {
            for item in read {
                if !into.contains(&item) {
                    into.push(item);
                }
            }
        }
        Err(reason) => warnings.push(reason),
    }
}

/// Reads files until there is too much.
struct Reader {
    left: u64,
}

impl Reader {
    fn read(&mut self, path: &Path) -> std::result::Result<Vec<u8>, String> {
        let content = read_regular(path, self.left).map_err(|error| explain(path, error))?;
        let length = content.len() as u64;
        if length > self.left {
            let limit = MAX_TOTAL >> 20;
            return Err(explain(path, format!("what guests get would be more than {limit} MiB with it")));
        }
        self.left -= length;
        Ok(content)
    }

    fn read_text(&mut self, path: &Path) -> std::result::Result<String, String> {
        String::from_utf8(self.read(path)?).map_err(|_| explain(path, "it is not text"))
    }
}

/// Reads a file up to one byte more than `limit`.
fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // Nobody waits here for the other end of a named pipe.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut content = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    Ok(content)
}

/// Why a file of the host does not come into guests, and what to do if vmd may not read it.
fn explain(path: &Path, reason: impl Display) -> String {
    let path = path.display();
    let reason = reason.to_string();
    let denied = io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error()).to_string();
    if reason == denied {
        return format!(
            "cannot sync {path}: vmd may not read it; `setfacl -m u:banger-vmd:r {path}` lets it, and u:banger-vmd:x on the directories above"
        );
    }
    format!("cannot sync {path}: {reason}")
}

/// The keys in a file in the form of sshd(8)'s `authorized_keys`.
fn keys(text: &str) -> std::result::Result<Vec<String>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match banger_core::spec::check_key(line) {
            Ok(()) => Ok(line.to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .collect()
}

/// The certificates in a file in PEM (RFC 7468), which has text of any kind around them.
fn certificates(text: &str) -> std::result::Result<Vec<String>, String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let Some(length) = rest[begin..].find(END) else {
            return Err("a certificate in it has no end".into());
        };
        let end = begin + length + END.len();
        found.push(rest[begin..end].to_owned());
        rest = &rest[end..];
    }
    if found.is_empty() { Err("there is no certificate in PEM in it".into()) } else { Ok(found) }
}

/// The host's time zone by the target of its `/etc/localtime`; without one it is UTC.
fn host_timezone(target: io::Result<PathBuf>) -> std::result::Result<String, String> {
    let target = match target {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok("UTC".into()),
        Err(error) => return Err(format!("cannot tell the host's time zone by {LOCALTIME}: {error}")),
    };
    let text = target.to_string_lossy();
    match text.split_once("/zoneinfo/") {
        Some((_, zone)) => Ok(zone.to_owned()),
        None => Err(format!("cannot tell the host's time zone by {LOCALTIME}, which leads to {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sync;

    #[test]
    fn keys_are_lines() {
        let text = "# mine\nssh-ed25519 AAAA me\n\n  ssh-rsa BBBB \nssh-ed25519 AAAA me\n";
        assert_eq!(keys(text).expect("keys").len(), 3);
        assert!(keys("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n").is_err());
        let mut all = Vec::new();
        collect(&mut all, keys(text), &mut Vec::new());
        assert_eq!(all, ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]);
    }

    #[test]
    fn a_file_may_have_several_certificates() {
        let one = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
        let two = one.replace("AAAA", "BBBB");
        assert_eq!(certificates(&format!("subject: x\n{one}\nmore\n{two}\n")), Ok(vec![one.into(), two]));
        assert!(certificates("").is_err());
        assert!(certificates(&one[..40]).is_err());
    }

    #[test]
    fn the_hosts_time_zone() {
        let of = |target: &str| host_timezone(Ok(target.into()));
        assert_eq!(of("/usr/share/zoneinfo/Europe/Berlin"), Ok("Europe/Berlin".into()));
        assert_eq!(of("../usr/share/zoneinfo/Etc/UTC"), Ok("Etc/UTC".into()));
        assert!(of("/etc/other").is_err());
        assert_eq!(host_timezone(Err(io::ErrorKind::NotFound.into())), Ok("UTC".into()));
        assert!(host_timezone(Err(io::ErrorKind::InvalidInput.into())).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_a_warning_unless_it_is_required() {
        let directory = tempfile::tempdir().expect("makes");
        let there = directory.path().join("there");
        std::fs::write(&there, "content").expect("writes");
        let file = |host: &Path, required| FileSync {
            host: host.into(),
            guest: "/etc/x".into(),
            mode: 0o644,
            owner: String::new(),
            required,
        };
        let config = Config {
            file_sync: vec![
                file(&there, true),
                file(Path::new("/no/such"), false),
                file(directory.path(), false),
            ],
            sync: Sync { authorized_keys: vec![there.clone()], timezone: "UTC".into(), ..Sync::default() },
            ..Config::default()
        };
        let synced = read_all(&config).expect("reads");
        assert_eq!((synced.files.len(), synced.files[0].mode, synced.timezone.as_str()), (1, 0o644, "UTC"));
        assert_eq!(synced.files[0].content, b"content");
        assert_eq!(synced.warnings.len(), 3, "{:?}", synced.warnings);
        assert!(
            synced.warnings[0].starts_with("cannot sync /no/such: No such file"),
            "{:?}",
            synced.warnings
        );
        let config = Config { file_sync: vec![file(Path::new("/no/such"), true)], ..Config::default() };
        let refused = read_all(&config).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::NotReady);
        assert!(refused.message().contains("/no/such"), "{refused}");
    }

    #[test]
    fn there_is_a_limit_for_all_files_together() {
        let directory = tempfile::tempdir().expect("makes");
        let path = directory.path().join("big");
        std::fs::File::create(&path).and_then(|file| file.set_len(MAX_TOTAL)).expect("writes");
        let mut reader = Reader { left: MAX_TOTAL };
        assert_eq!(reader.read(&path).map(|content| content.len() as u64), Ok(MAX_TOTAL));
        assert!(reader.read(&path).expect_err("refused").contains("8 MiB"));
    }

    #[test]
    fn who_may_not_read_is_told_the_way() {
        let denied = io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error());
        let told = explain(Path::new("/etc/secret"), denied);
        assert!(told.contains("setfacl -m u:banger-vmd:r /etc/secret"), "{told}");
    }
}
