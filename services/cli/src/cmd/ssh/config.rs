//! What ssh(1) has to know about VMs, and the line by which it finds it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_api::{Error, ErrorKind, Result};
use banger_ssh::{CIPHER, METHOD, key::ALGORITHM};

use super::keys::{self, HOST_ALIAS, Keys};
use super::{IMAGE_USER, SUFFIX};
use crate::args::SshConfig;
use crate::dirs::directory;
use crate::{Context, output};

/// The line before ours in the user's file.
const MARK: &str = "# By banger ssh-config --install; --uninstall takes this line and the next one away.\n";

pub async fn configure(context: &Context, arguments: &SshConfig) -> Result<()> {
    let file = directory("XDG_CONFIG_HOME", ".config")?.join("banger/ssh_config");
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let home = home.ok_or_else(|| ErrorKind::InvalidArgs.error("HOME is not set"))?;
    let users = home.join(".ssh/config");
    if arguments.uninstall {
        change(&users, without_include)?;
        return match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::from(error).context(file.display()))
            }
            _ => Ok(()),
        };
    }
    let text = text(context).await?;
    if !arguments.install {
        output::print(&text);
        return Ok(());
    }
    replace(&file, text.as_bytes(), Permissions::from_mode(0o600))?;
    let include = format!("Include {}\n", quoted(&file)?);
    change(&users, |config| with_include(config, &include))
}

async fn text(context: &Context) -> Result<String> {
    let keys = Keys::open()?;
    let banger = std::env::current_exe()?;
    // Without netd there is no network that it could be about.
    let domain = async { Result::Ok(context.bus.network().await?.domain().await?) };
    Ok(Wanted {
        banger: shell_word(&banger)?,
        identity: quoted(&keys.user_file())?,
        known_hosts: quoted(&keys.known_hosts())?,
        domain: domain.await.ok(),
        warns: knows("WarnWeakCrypto=no"),
    }
    .text())
}

#[derive(Debug)]
struct Wanted {
    banger: String,
    identity: String,
    known_hosts: String,
    domain: Option<String>,
    /// Whether ssh warns of what is not safe from computers to come. Between two processes of one user, it is.
    warns: bool,
}

impl Wanted {
    fn text(&self) -> String {
        let Self { banger, identity, known_hosts, domain, warns } = self;
        // What is set here holds whatever the user's and the host's own files say later. A shell gets the name, which may
        // come from anywhere (a URL of a git submodule), so it is quoted, and has no quotes in it.
        let mut text = format!(
            "\
# Written by banger ssh-config, which writes it anew.
Host *{SUFFIX} \"!*'*\"
    ProxyCommand {banger} ssh-proxy -- '%h'
    User {IMAGE_USER}
    IdentityFile {identity}
    IdentitiesOnly yes
    IdentityAgent none
    PreferredAuthentications publickey
    HostKeyAlias {HOST_ALIAS}
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    VerifyHostKeyDNS no
    CheckHostIP no
    ForwardAgent no
    ForwardX11 no
    Ciphers {CIPHER}
    KexAlgorithms {METHOD}
    HostKeyAlgorithms {ALGORITHM}
    PubkeyAcceptedAlgorithms {ALGORITHM}
"
        );
        if *warns {
            text += "    WarnWeakCrypto no\n";
        }
        if let Some(domain) = domain {
            text += &format!(
                "
Host *.{domain}
    User root
    IdentityFile {identity}
    KnownHostsCommand {banger} ssh-known-hosts -- %H
    UserKnownHostsFile /dev/null
    UpdateHostKeys no
    CheckHostIP no
"
            );
        }
        text
    }
}

/// Whether ssh(1) has an option, which it refuses otherwise, wherever it stands.
fn knows(option: &str) -> bool {
    let mut ssh = Command::new("ssh");
    ssh.args(["-G", "-F", "/dev/null", "-o", option, "banger"]).stdin(Stdio::null());
    ssh.stdout(Stdio::null()).stderr(Stdio::null());
    ssh.status().is_ok_and(|status| status.success())
}

/// A path as ssh_config(5) takes one.
fn quoted(path: &Path) -> Result<String> {
    Ok(format!("\"{}\"", plain(path)?))
}

/// A path as both ssh_config(5) and a shell take one.
fn shell_word(path: &Path) -> Result<String> {
    let text = plain(path)?;
    let needs_quotes = text.contains(|c: char| !c.is_ascii_alphanumeric() && !"/._+-%".contains(c));
    Ok(if needs_quotes { format!("'{text}'") } else { text })
}

/// What stands for something else in there is not worth an escape of each kind.
fn plain(path: &Path) -> Result<String> {
    let text =
        path.to_str().filter(|text| !text.contains(|c: char| c.is_control() || "\"'\\$*?[]".contains(c)));
    let text = text.ok_or_else(|| {
        ErrorKind::InvalidArgs
            .error(format!("ssh takes no path with quotes, $ or wildcards: {}", path.display()))
    })?;
    Ok(text.replace('%', "%%"))
}

/// The user's file with our line first, so that nothing before it says otherwise.
fn with_include(config: &[u8], include: &str) -> Vec<u8> {
    [MARK.as_bytes(), include.as_bytes(), &without_include(config)].concat()
}

/// The user's file as it was before.
fn without_include(config: &[u8]) -> Vec<u8> {
    let mark = MARK.as_bytes();
    let Some(start) = config.windows(mark.len()).position(|window| window == mark) else {
        return config.to_vec();
    };
    let (before, rest) = (&config[..start], &config[start + mark.len()..]);
    let line = rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |end| end + 1);
    // Somebody else may have put a line of theirs in between.
    let after = if rest.starts_with(b"Include ") { &rest[line..] } else { rest };
    [before, after].concat()
}

/// Changes the user's file, if that changes anything.
fn change(file: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<()> {
    let failed = |error: io::Error| Error::from(error).context(file.display());
    // Those who keep it among their dotfiles have a link here.
    let file = match fs::canonicalize(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
        found => found.map_err(failed)?,
    };
    let (old, mode) = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), Permissions::from_mode(0o600)),
        content => (content.map_err(failed)?, fs::metadata(&file).map_err(failed)?.permissions()),
    };
    let new = change(&old);
    if new == old { Ok(()) } else { replace(&file, &new, mode) }
}

fn replace(file: &Path, content: &[u8], mode: Permissions) -> Result<()> {
    let directory = file.parent().unwrap_or(file);
    let written = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let new = keys::write(directory, content)?;
        new.as_file().set_permissions(mode)?;
        new.persist(file)?;
        Ok(())
    };
    written().map_err(|error| Error::from(error).context(file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration() {
        let wanted = Wanted {
            banger: "/usr/bin/banger".into(),
            identity: "\"/k/id\"".into(),
            known_hosts: "\"/k/known\"".into(),
            domain: Some("banger.internal".into()),
            warns: true,
        };
        insta::assert_snapshot!(wanted.text());
    }

    #[test]
    fn include_comes_and_goes() {
        for before in [&b""[..], b"Host a\n  User b\n", b"# no newline at the end", b"\xff\xfe\n", b"\n\n"] {
            let with = with_include(before, "Include \"/x\"\n");
            assert!(with.starts_with(MARK.as_bytes()) && with.ends_with(before));
            assert_eq!(with_include(&with, "Include \"/x\"\n"), with, "twice is once");
            assert_eq!(with_include(&with, "Include \"/y\"\n"), with_include(before, "Include \"/y\"\n"));
            assert_eq!(without_include(&with), before);
            assert_eq!(without_include(before), before);
        }
        // Moved down, and with the line gone.
        let moved = format!("Host a\n{MARK}Include \"/x\"\nHost b\n");
        assert_eq!(without_include(moved.as_bytes()), b"Host a\nHost b\n");
        assert_eq!(without_include(format!("{MARK}Host b\n").as_bytes()), b"Host b\n");
    }

    #[test]
    fn paths() {
        let word = |path: &str| shell_word(Path::new(path)).ok();
        assert_eq!(word("/usr/bin/banger").as_deref(), Some("/usr/bin/banger"));
        assert_eq!(word("/a b/100%").as_deref(), Some("'/a b/100%%'"));
        assert_eq!(quoted(Path::new("/a b")).ok().as_deref(), Some("\"/a b\""));
        for path in ["/a'b", "/a\"b", "/$a", "/a\nb", "/a*"] {
            assert!(word(path).is_none() && quoted(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn the_users_file_keeps_its_mode_and_its_link() {
        let place = tempfile::tempdir().expect("a directory");
        let (real, link) = (place.path().join("real"), place.path().join("link"));
        fs::write(&real, "Host a\n").expect("writes");
        fs::set_permissions(&real, Permissions::from_mode(0o640)).expect("sets");
        std::os::unix::fs::symlink(&real, &link).expect("links");
        change(&link, |config| with_include(config, "Include x\n")).expect("changes");
        assert!(fs::symlink_metadata(&link).expect("is there").is_symlink());
        assert_eq!(fs::metadata(&real).expect("is there").permissions().mode() & 0o777, 0o640);
        change(&link, without_include).expect("changes");
        assert_eq!(fs::read(&real).expect("reads"), b"Host a\n");

        // Where there was none, and no directory either.
        let new = place.path().join("new/config");
        change(&new, without_include).expect("nothing to do");
        assert!(!new.exists());
        change(&new, |config| with_include(config, "Include x\n")).expect("makes it");
        assert_eq!(fs::metadata(&new).expect("is there").permissions().mode() & 0o777, 0o600);
    }
}
