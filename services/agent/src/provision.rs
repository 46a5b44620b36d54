//! What a VM's configuration puts into its root filesystem: files, keys, certificates, and who and
//! where its user is.
//!
//! All of it is written at every start, before any init runs. What stands in a file that others
//! write as well stands there between two marker lines, which is how it is found again and taken
//! away when the configuration no longer has it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use banger_core::guest::{File, GitIdentity, GuestConfig};

use crate::archive::Instead;
use crate::disks::Disks;
use crate::tree::{self, Attributes, Directory, PUBLIC};
use crate::users::{self, User};
use crate::{process, sys};

/// The biggest file that is read to be added to.
const LIMIT: u64 = 16 << 20;

const BEGIN: &[u8] = b"# BEGIN banger";
const END: &[u8] = b"# END banger";

/// Where the tools of Debian, Alpine and others look for certificates of one's own.
const CERTIFICATES: &str = "/usr/local/share/ca-certificates";

/// Where TLS libraries look for all certificates: of Debian, Alpine, Arch; Fedora; openSUSE. The
/// first one is made where there is none.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/var/lib/ca-certificates/ca-bundle.pem",
];

const ZONES: &str = "/usr/share/zoneinfo";

/// What remembers, on the VM's disk beside its root filesystem, which files were written into that:
/// their paths, a zero byte after each.
const WRITTEN: &str = "banger/files";

/// Does everything as far as it can be done. Returns what could not be.
pub fn provision(config: &mut GuestConfig, disks: &Disks) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            warnings.push(format!("{what}: {error:#}"));
        }
    };
    note("cannot remember which files are the host's", remember(disks, &config.files));
    for file in std::mem::take(&mut config.files) {
        note(&format!("cannot write {}", file.path), write_file(&file));
    }
    note("cannot authorize keys for SSH", authorize_keys(&config.process.user, &config.authorized_keys));
    note("cannot tell git who commits", identify_author(config.git.as_ref()));
    note("cannot add certificates", trust(&config.ca_certificates));
    if !config.timezone.is_empty() {
        note("cannot set the time zone", set_timezone(config));
    }
    warnings
}

/// The files that were written at this or an earlier start, and what is to stand for them in an
/// image: nothing of the host's, and nobody's keys.
pub fn traces(disks: &Disks, login: &str) -> Vec<(PathBuf, Instead)> {
    let mut traces: Vec<_> = written(disks).into_iter().map(|path| (path, Instead::Image)).collect();
    let home = user(login).ok().map(|user| Path::new(&user.home).join(".ssh/authorized_keys"));
    let managed = BUNDLES.map(PathBuf::from).into_iter().chain(home).chain([PathBuf::from("/etc/gitconfig")]);
    traces.extend(managed.map(|path| (path, Instead::WithoutBlock)));
    for name in std::fs::read_dir(CERTIFICATES).into_iter().flatten().flatten().map(|file| file.file_name()) {
        if name.to_str().is_some_and(is_certificate_name) {
            traces.push((Path::new(CERTIFICATES).join(name), Instead::Image));
        }
    }
    traces
}

/// Before they are written: what is in the guest by mistake must not get into an image by another.
fn remember(disks: &Disks, files: &[File]) -> Result<()> {
    let before = written(disks);
    let mut all = before.clone();
    all.extend(files.iter().map(|file| PathBuf::from(&file.path)));
    if all == before {
        return Ok(());
    }
    let list = disks.overlay().join(WRITTEN);
    let mut content = Vec::new();
    for path in &all {
        content.extend(path.as_os_str().as_bytes());
        content.push(0);
    }
    let fresh = list.with_extension("new");
    std::fs::write(&fresh, content)?;
    Ok(std::fs::rename(&fresh, &list)?)
}

fn written(disks: &Disks) -> BTreeSet<PathBuf> {
    let list = sys::read_bounded(disks.overlay().join(WRITTEN), LIMIT).unwrap_or_default();
    list.split(|&byte| byte == 0)
        .filter(|path| !path.is_empty())
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect()
}

fn write_file(file: &File) -> Result<()> {
    let path = Path::new(&file.path);
    let plain = path.is_absolute() && !file.path.split('/').any(|name| name == "." || name == "..");
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), plain) else {
        bail!("it is not an absolute path without \".\" and \"..\"");
    };
    let owner = user(&file.owner)?;
    let attributes = Attributes { uid: owner.uid, gid: owner.gid, mode: file.mode & 0o7777 };
    Ok(Directory::make(parent)?.replace(name, &file.content, attributes)?)
}

fn user(spec: &str) -> Result<User> {
    process::find_user(spec).map_err(|missing| match missing {
        users::Missing::User(user) => anyhow::anyhow!("there is no user {user:?}"),
        users::Missing::Group(group) => anyhow::anyhow!("there is no group {group:?}"),
    })
}

/// What sshd wants: nobody else may write to the file or read the directory.
fn authorize_keys(login: &str, keys: &[String]) -> Result<()> {
    let user = user(login)?;
    let owned = |mode| Attributes { uid: user.uid, gid: user.gid, mode };
    let home = match Directory::open(&user.home) {
        Ok(home) => home,
        Err(_) if keys.is_empty() => return Ok(()),
        Err(error) => return Err(error).context(format!("no home directory {}", user.home)),
    };
    let plain = |name: &str, directory: &Directory| {
        directory.stat(name).is_ok_and(|it| it.is_some_and(|it| !tree::is_link(&it)))
    };
    if keys.is_empty() && !plain(".ssh", &home) {
        return Ok(());
    }
    if let Some(key) = keys.iter().find(|key| key.contains(['\n', '\r', '\0'])) {
        bail!("a key is not one line: {:?}", key.chars().take(40).collect::<String>());
    }
    let ssh = home.make_own(".ssh", owned(0o700))?;
    if keys.is_empty() && !plain("authorized_keys", &ssh) {
        return Ok(());
    }
    let current = ssh.read("authorized_keys", LIMIT)?;
    let content = with_block(current.as_deref().unwrap_or_default(), &lines(keys));
    if current.as_deref().unwrap_or_default() != content {
        ssh.replace("authorized_keys", &content, owned(0o600))?;
    }
    Ok(())
}

fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{}\n", line.trim())).collect()
}

fn identify_author(git: Option<&GitIdentity>) -> Result<()> {
    let etc = Directory::make("/etc")?;
    let current = etc.read("gitconfig", LIMIT)?.unwrap_or_default();
    let section = match git {
        Some(git) if !names_user(&with_block(&current, "")) => {
            format!("[user]\n\tname = {}\n\temail = {}\n", git_value(&git.name), git_value(&git.email))
        }
        _ => String::new(),
    };
    let content = with_block(&current, &section);
    if content != current {
        etc.replace("gitconfig", &content, PUBLIC)?;
    }
    Ok(())
}

fn names_user(gitconfig: &[u8]) -> bool {
    gitconfig
        .split(|&byte| byte == b'\n')
        .any(|line| line.trim_ascii_start().to_ascii_lowercase().starts_with(b"[user]"))
}

/// A value as git-config(1) reads it.
fn git_value(value: &str) -> String {
    let printable: String = value.chars().filter(|letter| !letter.is_control()).collect();
    format!("\"{}\"", printable.replace('\\', "\\\\").replace('"', "\\\""))
}

fn trust(certificates: &[String]) -> Result<()> {
    if certificates.is_empty() && Directory::open(CERTIFICATES).is_err() {
        // And none were added before.
        return Ok(());
    }
    let directory = Directory::make(CERTIFICATES)?;
    for (index, certificate) in certificates.iter().enumerate() {
        ensure!(
            certificate.trim_start().starts_with("-----BEGIN ") && certificate.contains("-----END "),
            "the certificate number {} is not in PEM",
            index + 1
        );
        directory.replace(certificate_name(index), ending_in_newline(certificate).as_bytes(), PUBLIC)?;
    }
    let mut were_more = false;
    for index in certificates.len().. {
        if !directory.remove(&certificate_name(index))? {
            break;
        }
        were_more = true;
    }
    if certificates.is_empty() && !were_more {
        return Ok(());
    }
    let mut bundles = 0;
    for path in BUNDLES {
        let Ok((directory, name)) = tree::find(path) else { continue };
        let Some(current) = directory.read(&name, LIMIT).with_context(|| path.to_owned())? else { continue };
        let content = with_certificates(&current, certificates);
        if content != current {
            directory.replace(&name, &content, PUBLIC).with_context(|| path.to_owned())?;
        }
        bundles += 1;
    }
    if bundles == 0 && !certificates.is_empty() {
        let (directory, name) = BUNDLES[0].rsplit_once('/').context("a path")?;
        Directory::make(directory)?.replace(name, &with_certificates(b"", certificates), PUBLIC)?;
    }
    Ok(())
}

fn certificate_name(index: usize) -> String {
    format!("banger-{}.crt", index + 1)
}

fn is_certificate_name(name: &str) -> bool {
    let number = name.strip_prefix("banger-").and_then(|rest| rest.strip_suffix(".crt"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// The bundle with those certificates that it does not hold anyway, as it does once the image's
/// own tools have put it together anew.
fn with_certificates(bundle: &[u8], certificates: &[String]) -> Vec<u8> {
    let others = with_block(bundle, "");
    let others = String::from_utf8_lossy(&others);
    let missing = certificates.iter().filter(|certificate| !others.contains(certificate.trim()));
    with_block(bundle, &missing.map(|certificate| ending_in_newline(certificate)).collect::<String>())
}

fn ending_in_newline(text: &str) -> String {
    format!("{}\n", text.trim())
}

/// Points the guest at its zone; where the image does not know the zones, programs that do are
/// told by `TZ`.
fn set_timezone(config: &mut GuestConfig) -> Result<()> {
    let zone = &config.timezone;
    ensure!(is_zone(zone), "{zone:?} is not the name of one");
    let file = format!("{ZONES}/{zone}");
    if !std::fs::metadata(&file).is_ok_and(|file| file.is_file()) {
        sys::log!(sys::INFO, "the image has no {file}: the time zone is set by TZ alone");
        config.environment.entry("TZ".into()).or_insert(zone.clone());
        return Ok(());
    }
    let etc = Directory::make("/etc")?;
    etc.link("localtime", &file)?;
    etc.replace("timezone", format!("{zone}\n").as_bytes(), PUBLIC)?;
    sys::log!(sys::INFO, "the time zone is set by /etc/localtime");
    Ok(())
}

fn is_zone(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte);
    name.len() <= 64 && name.split('/').all(|part| !part.is_empty() && part.bytes().all(letter))
}

/// A file's content without what is banger's.
pub fn without_block(content: &[u8]) -> Vec<u8> {
    with_block(content, "")
}

/// A file's content with `block` as the one between the marker lines, at its end; an empty one is
/// taken away together with them.
fn with_block(content: &[u8], block: &str) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = content.split_inclusive(|&byte| byte == b'\n').collect();
    let position = |lines: &[&[u8]], marker: &[u8]| lines.iter().position(|line| line.trim_ascii() == marker);
    while let Some(begin) = position(&lines, BEGIN) {
        // Without an end nobody can say what is ours.
        let length = position(&lines[begin..], END).unwrap_or(0);
        lines.drain(begin..=begin + length);
    }
    let mut content = lines.concat();
    if block.is_empty() {
        return content;
    }
    if content.last().is_some_and(|&byte| byte != b'\n') {
        content.push(b'\n');
    }
    for part in [BEGIN, b"\n", block.as_bytes(), END, b"\n"] {
        content.extend(part);
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(content: &str, block: &str) -> String {
        String::from_utf8(with_block(content.as_bytes(), block)).unwrap()
    }

    #[test]
    fn blocks() {
        let with = "own\n# BEGIN banger\nours\n# END banger\n";
        assert_eq!(block("own\n", "ours\n"), with);
        assert_eq!(block("own", "ours\n"), with);
        assert_eq!(block(with, "ours\n"), with);
        assert_eq!(block(with, "new\n"), with.replace("ours", "new"));
        assert_eq!(block(with, ""), "own\n");
        assert_eq!(block("", ""), "");
        assert_eq!(block("", "ours\n"), "# BEGIN banger\nours\n# END banger\n");
        assert_eq!(without_block(with.as_bytes()), b"own\n");
        // What was added below stays, and more than one block becomes one.
        assert_eq!(block(&format!("{with}{with}below"), ""), "own\nown\nbelow");
        assert_eq!(block("a\n# BEGIN banger\nb\n", ""), "a\nb\n");
        assert_eq!(block("a\r\n  # BEGIN banger\r\nb\r\n# END banger \r\nc", ""), "a\r\nc");
    }

    #[test]
    fn certificates() {
        let pem = |name: &str| format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----");
        let both = [pem("a"), pem("b")];
        let bundle = with_certificates(b"", &both);
        assert_eq!(
            String::from_utf8_lossy(&bundle),
            format!("# BEGIN banger\n{}\n{}\n# END banger\n", both[0], both[1])
        );
        assert_eq!(with_certificates(&bundle, &both), bundle);
        assert_eq!(with_certificates(&bundle, &[]), b"");
        // The image's tools have added it themselves.
        let theirs = format!("{}\n", both[0]);
        assert_eq!(with_certificates(theirs.as_bytes(), &both[..1]), theirs.as_bytes());
    }

    #[test]
    fn git() {
        assert_eq!(git_value(r#"A "B" \C"#), r#""A \"B\" \\C""#);
        assert_eq!(git_value("a\n[core]"), "\"a[core]\"");
        assert!(names_user(b"[core]\n  [User]\n"));
        assert!(!names_user(b"[core]\nuser = [user]\n[users]\n"));
    }

    #[test]
    fn names_of_certificates() {
        assert!(is_certificate_name(&certificate_name(0)) && is_certificate_name("banger-12.crt"));
        for other in ["banger-.crt", "banger-a.crt", "banger-1.pem", "mine-1.crt"] {
            assert!(!is_certificate_name(other), "{other}");
        }
    }

    #[test]
    fn zones() {
        for zone in ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+1"] {
            assert!(is_zone(zone), "{zone}");
        }
        for zone in ["", "/UTC", "../x", "Europe//Berlin", "a b", "Europe/"] {
            assert!(!is_zone(zone), "{zone}");
        }
    }
}
