//! What this host says of registries: mirrors, certificates, credentials.
//!
//! Read anew for each pull, so that a change needs no restart; but for the systemd credential,
//! which systemd hands over when the service starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, Identity};

use super::places::{Owner, Registries, Source};
use super::{AuthFile, Credentials, Reference};
use crate::error::{Error, Result};

/// The name of the systemd credential.
const CREDENTIAL: &str = "banger.registry-auth";

/// Where this host keeps what concerns registries.
#[derive(Debug, Clone)]
pub struct Host {
    /// Of banger, from the weakest to the strongest.
    own: Vec<PathBuf>,
    containers: PathBuf,
    docker: PathBuf,
    /// Of the service, if it was given any.
    credentials: Option<PathBuf>,
}

/// What TLS with one registry needs beyond the system's certificates.
#[derive(Default)]
pub struct Tls {
    pub authorities: Vec<Certificate>,
    /// Who we are to the registry.
    pub identity: Option<Identity>,
}

impl Host {
    /// As it is for services.
    pub fn system() -> Self {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self { credentials, ..Self::below(Path::new("/")) }
    }

    /// With everything below another root.
    pub fn below(root: &Path) -> Self {
        let place = |path: &str| root.join(path.trim_start_matches('/'));
        Self {
            own: banger_config::DIRECTORIES.map(place).into(),
            containers: place("/etc/containers"),
            docker: place("/etc/docker"),
            credentials: None,
        }
    }

    /// Where to ask for an image, the best first.
    ///
    /// # Errors
    /// If the configuration makes no sense, or forbids it.
    pub fn sources(&self, reference: &Reference) -> Result<Vec<Source>> {
        let own: Vec<&Path> = self.own.iter().map(PathBuf::as_path).collect();
        let theirs = banger_config::files(&[&self.containers], "registries")?;
        let own = banger_config::files(&own, "registries")?;
        let theirs = theirs.into_iter().map(|path| (path, Owner::Containers));
        let mut registries = Registries::default();
        for (path, owner) in theirs.chain(own.into_iter().map(|path| (path, Owner::Banger))) {
            if let Some(text) = read(&path)? {
                registries.add(&path.display().to_string(), &text, owner)?;
            }
        }
        registries.sources(reference)
    }

    /// The service's own credentials for an image: of systemd's credential, or of `auth.json`.
    ///
    /// # Errors
    /// If a file is there and cannot be used.
    pub fn credentials(&self, reference: &Reference) -> Result<Option<Credentials>> {
        let credential = self.credentials.iter().map(|directory| directory.join(CREDENTIAL));
        let files = self.own.iter().rev().map(|directory| directory.join("auth.json"));
        for path in credential.chain(files) {
            let Some(text) = read(&path)? else { continue };
            let refuse = |reason: String| Error::BadConfig { path: path.display().to_string(), reason };
            let file: AuthFile = serde_json::from_str(&text).map_err(|error| refuse(not_json(&error)))?;
            if let Some(found) = file.find(reference).map_err(|error| refuse(error.to_string()))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The certificates in `certs.d/HOST[:PORT]`: authorities in `*.crt`, and a certificate of ours
    /// in `*.cert` with its key in `*.key`. See containers-certs.d(5).
    ///
    /// # Errors
    /// If a file is there and cannot be used.
    pub fn tls(&self, registry: &str) -> Result<Tls> {
        let mut tls = Tls::default();
        let parents = [&self.docker, &self.containers].into_iter().chain(&self.own);
        for parent in parents {
            tls.add(&parent.join("certs.d").join(registry))?;
        }
        Ok(tls)
    }
}

impl Tls {
    fn add(&mut self, directory: &Path) -> Result<()> {
        for path in entries(directory)? {
            let path = directory.join(path);
            let Some(text) = read(&path)? else { continue };
            let refuse = |reason: String| Error::BadConfig { path: path.display().to_string(), reason };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => {
                    let bundle = Certificate::from_pem_bundle(text.as_bytes());
                    self.authorities.extend(bundle.map_err(|error| refuse(error.to_string()))?);
                }
                Some("cert") => {
                    let key = read(&path.with_extension("key"))?.ok_or_else(|| {
                        refuse("its key is missing: a file of the same name that ends in .key".into())
                    })?;
                    let identity = Identity::from_pem(format!("{text}\n{key}").as_bytes());
                    self.identity = Some(identity.map_err(|error| refuse(error.to_string()))?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Names of what is in a directory, in order; nothing if it is missing.
fn entries(directory: &Path) -> Result<Vec<String>> {
    match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => crate::files::list(directory),
    }
}

/// The text of a file, `None` if it is missing.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let path = path.display().to_string();
            Err(Error::BadConfig { path, reason: format!("banger-imaged cannot read it: {error}") })
        }
    }
}

/// Where it is wrong; not what stands there, which may be a secret.
pub fn not_json(error: &serde_json::Error) -> String {
    format!("not of the form of auth.json, at line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("creates");
        fs::write(path, text).expect("writes");
    }

    #[test]
    fn files_of_this_host() {
        let root = tempfile::tempdir().expect("tempdir");
        let root = root.path();
        let mut host = Host::below(root);
        let reference: Reference = "r.lan/team/app".parse().expect("reference");
        let first = |host: &Host| host.sources(&reference).expect("reads")[0].clone();
        assert_eq!(first(&host), Source { reference: reference.clone(), insecure: false });

        write(
            root,
            "etc/containers/registries.conf",
            "x = 1\n[[registry]]\nlocation = \"r.lan\"\ninsecure = true\n",
        );
        assert!(first(&host).insecure);
        write(root, "etc/banger/registries.conf.d/50-r.conf", "[[registry]]\nlocation = \"r.lan\"\n");
        assert!(!first(&host).insecure);

        let user = |host: &Host| match host.credentials(&reference).expect("reads") {
            Some(Credentials::Password { username, .. }) => username,
            _ => String::new(),
        };
        let auth =
            |user: &str| format!(r#"{{"auths": {{"r.lan": {{"username": "{user}", "password": "p"}}}}}}"#);
        assert_eq!(user(&host), "");
        write(root, "etc/banger/auth.json", &auth("file"));
        assert_eq!(user(&host), "file");
        write(root, "given/banger.registry-auth", &auth("systemd"));
        host.credentials = Some(root.join("given"));
        assert_eq!(user(&host), "systemd");

        write(root, "given/banger.registry-auth", r#"{"auths": {"r.lan": "hush"}}"#);
        let error = host.credentials(&reference).expect_err("makes no sense").to_string();
        assert!(error.contains("banger.registry-auth: ") && !error.contains("hush"), "{error}");

        write(root, "etc/banger/certs.d/r.lan/ours.cert", "");
        let error = host.tls("r.lan").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("ours.cert: its key is missing"), "{error}");
        assert!(host.tls("r.lan:5000").is_ok_and(|tls| tls.authorities.is_empty()));
    }
}
