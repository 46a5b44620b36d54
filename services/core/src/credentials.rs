//! Credentials of registries as docker, podman and skopeo keep them: `auth.json` and
//! `config.json`, see containers-auth.json(5) and
//! <https://docs.docker.com/reference/cli/docker/login/#credential-stores>.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::reference::{DOCKER, Reference};

/// How docker calls docker.io, in its files and towards its helpers.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// The user name that helpers give an identity token.
const TOKEN_USER: &str = "<token>";

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        username: String,
        password: String,
    },
    /// Is exchanged for access tokens.
    IdentityToken(String),
}

/// Secrets are for the registry alone, not for logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "the password of {username:?}"),
            Self::IdentityToken(_) => f.write_str("an identity token"),
        }
    }
}

/// A file of credentials. What else stands in it is not for us.
#[derive(Default, Clone, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthFile {
    auths: BTreeMap<String, Entry>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    creds_store: String,
}

#[derive(Default, Clone, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    /// Base64 of `USER:PASSWORD`.
    #[serde(skip_serializing_if = "String::is_empty")]
    auth: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    password: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    identitytoken: String,
}

/// A program `docker-credential-NAME` that knows the credentials of `server`. See
/// <https://github.com/docker/docker-credential-helpers>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    pub name: String,
    /// What it is asked for.
    pub server: String,
}

/// The answer of a helper to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HelperAnswer {
    username: String,
    secret: String,
}

/// An entry that makes no sense; without what stands in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the entry {0:?} is no credentials: it must have \"auth\" (base64 of USER:PASSWORD) or \"identitytoken\""
)]
pub struct InvalidEntry(String);

impl AuthFile {
    /// A file with the one entry.
    pub fn of(reference: &Reference, credentials: &Credentials) -> Self {
        let mut entry = Entry::default();
        match credentials {
            Credentials::Password { username, password } => {
                entry.username.clone_from(username);
                entry.password.clone_from(password);
            }
            Credentials::IdentityToken(token) => entry.identitytoken.clone_from(token),
        }
        Self { auths: [(reference.registry.clone(), entry)].into(), ..Self::default() }
    }

    /// The credentials for an image, of the most specific entry: `HOST/NAMESPACE/REPO` before
    /// `HOST/NAMESPACE` before `HOST`.
    ///
    /// # Errors
    /// If that entry makes no sense.
    pub fn find(&self, reference: &Reference) -> Result<Option<Credentials>, InvalidEntry> {
        let name = reference.name();
        let fits = |(key, _): &(&String, &Entry)| covers(&normal(key), &name);
        let best = self.auths.iter().filter(fits).max_by_key(|(key, _)| normal(key).len());
        best.map_or(Ok(None), |(key, entry)| entry.credentials(key))
    }

    /// The helper that knows the credentials for an image.
    pub fn helper(&self, reference: &Reference) -> Option<Helper> {
        let own = self.cred_helpers.iter().find(|(key, _)| normal(key) == reference.registry);
        let name = own.map_or(&self.creds_store, |(_, name)| name);
        let server = if reference.registry == DOCKER { DOCKER_KEY } else { &reference.registry };
        (!name.is_empty()).then(|| Helper { name: name.clone(), server: server.to_owned() })
    }
}

impl Entry {
    fn credentials(&self, key: &str) -> Result<Option<Credentials>, InvalidEntry> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if !self.username.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok(Some(Credentials::Password { username, password }));
        }
        // Docker leaves empty entries where a helper knows.
        if self.auth.is_empty() {
            return Ok(None);
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
        let (username, password) = pair.ok_or_else(|| InvalidEntry(key.to_owned()))?;
        Ok(Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() }))
    }
}

impl From<HelperAnswer> for Credentials {
    fn from(HelperAnswer { username, secret }: HelperAnswer) -> Self {
        if username == TOKEN_USER {
            Self::IdentityToken(secret)
        } else {
            Self::Password { username, password: secret }
        }
    }
}

/// `HOST[:PORT][/NAMESPACE…]` of an entry's name. Docker's own are URLs, whose paths mean nothing.
fn normal(key: &str) -> String {
    let name = match key.split_once("://") {
        Some((_, rest)) => rest.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/'),
    };
    let (host, path) = name.split_once('/').map_or((name, ""), |(host, path)| (host, path));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER,
        host => host,
    };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

/// Whether `HOST[:PORT][/NAMESPACE…]` is `name` or stands above it.
pub fn covers(above: &str, name: &str) -> bool {
    name.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> AuthFile {
        serde_json::from_str(text).expect("parses")
    }

    fn password(username: &str, password: &str) -> Credentials {
        Credentials::Password { username: username.into(), password: password.into() }
    }

    #[test]
    fn the_most_specific_entry_counts() {
        let file = file(
            r#"{"auths": {
                "r.io": {"auth": "aG9zdDpw"},
                "r.io/team": {"auth": "dGVhbTpwOnc="},
                "r.io:5000": {"username": "port", "password": "p"},
                "https://index.docker.io/v1/": {"identitytoken": "t"},
                "empty.io": {},
                "bad.io": {"auth": "!"}
            }, "HttpHeaders": {}}"#,
        );
        let find = |reference: &str| file.find(&reference.parse().expect("reference"));
        assert_eq!(find("r.io/other"), Ok(Some(password("host", "p"))));
        assert_eq!(find("r.io/team/app:1"), Ok(Some(password("team", "p:w"))));
        assert_eq!(find("r.io/teams"), Ok(Some(password("host", "p"))));
        assert_eq!(find("r.io:5000/team"), Ok(Some(password("port", "p"))));
        assert_eq!(find("r.io:5001/team"), Ok(None));
        assert_eq!(find("debian"), Ok(Some(Credentials::IdentityToken("t".into()))));
        assert_eq!(find("empty.io/x"), Ok(None));
        assert_eq!(find("bad.io/x"), Err(InvalidEntry("bad.io".into())));
    }

    #[test]
    fn helpers() {
        let file = file(r#"{"credHelpers": {"r.io": "own"}, "credsStore": "all"}"#);
        let helper = |reference: &str| file.helper(&reference.parse().expect("reference"));
        let wanted = |name: &str, server: &str| Some(Helper { name: name.into(), server: server.into() });
        assert_eq!(helper("r.io/x"), wanted("own", "r.io"));
        assert_eq!(helper("q.io/x"), wanted("all", "q.io"));
        assert_eq!(helper("debian"), wanted("all", DOCKER_KEY));
        assert_eq!(AuthFile::default().helper(&"r.io/x".parse().expect("reference")), None);
        let answer: HelperAnswer =
            serde_json::from_str(r#"{"ServerURL":"r.io","Username":"<token>","Secret":"s"}"#)
                .expect("parses");
        assert_eq!(Credentials::from(answer), Credentials::IdentityToken("s".into()));
    }

    #[test]
    fn what_is_written_is_found_and_never_shown() {
        let reference: Reference = "localhost:5000/x".parse().expect("reference");
        for credentials in [password("u", "secret"), Credentials::IdentityToken("secret".into())] {
            let text = serde_json::to_string(&AuthFile::of(&reference, &credentials)).expect("writes");
            assert_eq!(file(&text).find(&reference), Ok(Some(credentials.clone())));
            assert!(!format!("{credentials:?}").contains("secret"));
        }
    }
}
