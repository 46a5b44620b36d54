//! The user's own credentials of registries, as docker, podman and skopeo keep them. Only the user
//! can read them and run the helpers that know them; the service gets those for the one registry
//! that it is to ask, in memory that nobody else sees.

use std::env;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_api::{Error, Result};
use banger_core::credentials::{AuthFile, Credentials, Helper, HelperAnswer};
use banger_core::reference::Reference;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::Context;

/// What a helper says, on standard output, when it has nothing.
const NOT_FOUND: &str = "credentials not found";

/// The credentials for an image, if the user has any, as a file for the service. What cannot be read, or does not get to
/// the service, is only remarked on: the image may be free for all.
///
/// # Errors
/// If there is no memory to put them into.
pub fn for_image(context: &Context, reference: &str) -> Result<Option<zbus::Fd<'static>>> {
    // What is wrong with it, the service says better.
    let Ok(reference) = reference.parse::<Reference>() else { return Ok(None) };
    let found = files().iter().find_map(|path| {
        look_up(path, &reference).unwrap_or_else(|reason| {
            context.output.note(&format!("no credentials from {}: {reason}", path.display()));
            None
        })
    });
    let Some(credentials) = found else { return Ok(None) };
    if !context.bus.takes_descriptors() {
        context.output.note(&format!(
            "{reference} is pulled without your credentials: they do not get over ssh; to use those that you have there, call banger pull there"
        ));
        return Ok(None);
    }
    let file = serde_json::to_vec(&AuthFile::of(&reference, &credentials)).map_err(Error::internal)?;
    sealed(&file).map(|fd| Some(fd.into())).map_err(Error::internal)
}

/// Where credentials may be, the best first; see containers-auth.json(5).
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = |directory: &str| variable("HOME").map(|home| home.join(directory));
    let places = [
        (variable("XDG_RUNTIME_DIR"), "containers/auth.json"),
        (variable("XDG_CONFIG_HOME").or_else(|| home(".config")), "containers/auth.json"),
        (variable("DOCKER_CONFIG").or_else(|| home(".docker")), "config.json"),
    ];
    places.into_iter().filter_map(|(directory, file)| Some(directory?.join(file))).collect()
}

/// What came of looking in one place, or why nothing did.
type LookUp = std::result::Result<Option<Credentials>, String>;

/// A helper goes before what the file itself says, as with docker.
fn look_up(path: &Path, reference: &Reference) -> LookUp {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| error.to_string())?,
    };
    let file: AuthFile =
        serde_json::from_str(&text).map_err(|error| format!("line {}: not as expected", error.line()))?;
    if let Some(helper) = file.helper(reference)
        && let Some(found) = ask(&helper)?
    {
        return Ok(Some(found));
    }
    file.find(reference).map_err(|error| error.to_string())
}

fn ask(helper: &Helper) -> LookUp {
    let program = format!("docker-credential-{}", helper.name);
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may know the answer without reading the question.
        let _ = stdin.write_all(helper.server.as_bytes());
    }
    let done = child.wait_with_output().map_err(failed)?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stdout);
        return if said.contains(NOT_FOUND) { Ok(None) } else { Err(format!("{program}: {}", said.trim())) };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&done.stdout).map_err(|_| format!("{program} gives no credentials"))?;
    Ok(Some(answer.into()))
}

/// Memory that nobody can change any more.
fn sealed(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("credentials", flags)?);
    file.write_all(bytes)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn files_are_looked_through() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("auth.json");
        let reference: Reference = "r.lan/x".parse().expect("reference");
        assert_eq!(look_up(&path, &reference), Ok(None));
        std::fs::write(&path, r#"{"auths": {"r.lan": {"auth": "dTpw"}}}"#).expect("writes");
        let wanted = Credentials::Password { username: "u".into(), password: "p".into() };
        assert_eq!(look_up(&path, &reference), Ok(Some(wanted)));
        std::fs::write(&path, r#"{"credsStore": "no-such-helper"}"#).expect("writes");
        let error = look_up(&path, &reference).expect_err("no such program");
        assert!(error.starts_with("docker-credential-no-such-helper: "), "{error}");
        std::fs::write(&path, "{\n\"secret\"").expect("writes");
        assert_eq!(look_up(&path, &reference), Err("line 2: not as expected".into()));
    }

    #[test]
    fn memory_is_sealed() {
        let mut file = File::from(sealed(b"secret").expect("memory"));
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, 0).expect("reads");
        assert_eq!(&bytes, b"secret");
        assert!(file.write_all(b"other").is_err());
        assert_eq!(file.read(&mut bytes).expect("reads"), 0);
    }
}
