//! The OCI distribution protocol, as far as pulling needs it.
//!
//! Our own on top of reqwest rather than a client crate: the ones there are read documents of any
//! length into memory, and hide what we want to say in errors. Every answer is bounded; the
//! Authorization header goes to the registry alone (reqwest drops it when a redirect leaves the
//! host); plain HTTP is only spoken with loopback and with registries named as insecure.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};

use super::Reference;
use super::manifest;
use crate::digest;
use crate::error::{Error, Result};
use crate::limits::Limits;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 4;
/// The longest a registry may ask us to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;

/// A client of all registries.
pub struct Registry {
    http: Client,
    limits: Limits,
    /// Registries (HOST[:PORT]) that may be spoken to without TLS.
    insecure: Vec<String>,
    schemes: Mutex<HashMap<String, &'static str>>,
    /// Tokens by registry and repository.
    tokens: Mutex<HashMap<String, String>>,
}

impl Registry {
    /// # Errors
    /// If the system's certificates cannot be read.
    pub fn new(limits: Limits, insecure: Vec<String>) -> Result<Self> {
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if from_tls && attempt.url().scheme() != "https" {
                attempt.error("redirects from HTTPS to plain HTTP")
            } else {
                attempt.follow()
            }
        });
        // A second installation fails, and the first is what we want.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .user_agent(concat!("banger/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirects)
            .build()
            .map_err(|error| {
                Error::Base(banger_api::Error::internal(format!("cannot set up HTTPS: {}", chain(&error))))
            })?;
        Ok(Self { http, limits, insecure, schemes: Mutex::default(), tokens: Mutex::default() })
    }

    /// Fetches a manifest or index by tag or digest, and returns it with its own digest. If a
    /// digest was asked for, it is that one.
    pub async fn document(
        &self,
        reference: &Reference,
        version: &str,
        insecure: bool,
    ) -> Result<(Vec<u8>, String)> {
        let path = format!("manifests/{version}");
        let response = self.get(reference, &path, Some(manifest::ACCEPT), 0, insecure).await?;
        let bytes = self.bounded(reference, response).await?;
        let found = format!("sha256:{}", digest::sha256(&bytes));
        if version.starts_with("sha256:") && version != found {
            return Err(Error::DigestMismatch {
                what: format!("the manifest of {reference}"),
                wanted: version.into(),
                found,
            });
        }
        Ok((bytes, found))
    }

    /// Fetches a small blob whole.
    pub async fn blob(&self, reference: &Reference, digest: &str, insecure: bool) -> Result<Vec<u8>> {
        let response = self.get(reference, &format!("blobs/{digest}"), None, 0, insecure).await?;
        let bytes = self.bounded(reference, response).await?;
        let found = format!("sha256:{}", digest::sha256(&bytes));
        if found != digest {
            return Err(Error::DigestMismatch {
                what: "the image's config".into(),
                wanted: digest.into(),
                found,
            });
        }
        Ok(bytes)
    }

    /// Opens a blob for streaming from `offset` on. Whether the registry honoured the offset shows
    /// in the status: 206, or 200 from the beginning.
    pub async fn open_blob(
        &self,
        reference: &Reference,
        digest: &str,
        offset: u64,
        insecure: bool,
    ) -> Result<Response> {
        self.get(reference, &format!("blobs/{digest}"), None, offset, insecure).await
    }

    async fn bounded(&self, reference: &Reference, mut response: Response) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(reference, &error))? {
            if (bytes.len() + chunk.len()) as u64 > self.limits.document {
                return Err(Error::TooLarge(format!(
                    "a document has more than {} bytes",
                    self.limits.document
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn get(
        &self,
        reference: &Reference,
        path: &str,
        accept: Option<&str>,
        offset: u64,
        insecure: bool,
    ) -> Result<Response> {
        let scheme = self.scheme(reference, insecure).await;
        let url = format!("{scheme}://{}/v2/{}/{path}", reference.endpoint(), reference.repository);
        let mut attempt = 0;
        let mut asked = false;
        loop {
            attempt += 1;
            let mut request = self.http.get(&url);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            let token = self.lock_tokens().get(&token_key(reference)).cloned();
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) if attempt < ATTEMPTS && is_passing(&error) => {
                    tokio::time::sleep(back_off(attempt)).await;
                    continue;
                }
                Err(error) => return Err(unreachable(reference, &error)),
            };
            let status = response.status();
            match status {
                status if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    attempt -= 1;
                    let token = self.token(reference, scheme, response.headers()).await?;
                    self.lock_tokens().insert(token_key(reference), token);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(denied(reference));
                }
                StatusCode::NOT_FOUND => {
                    return Err(Error::NotInRegistry {
                        registry: reference.registry.clone(),
                        repository: reference.repository.clone(),
                        tag: reference.version().to_owned(),
                    });
                }
                status if attempt < ATTEMPTS && is_passing_status(status) => {
                    let asked = response
                        .headers()
                        .get(RETRY_AFTER)
                        .and_then(|value| value.to_str().ok()?.parse().ok());
                    let wait = asked.map_or(back_off(attempt), Duration::from_secs);
                    tokio::time::sleep(wait.min(MAX_RETRY_AFTER)).await;
                }
                status => {
                    return Err(Error::RegistryFailed {
                        registry: reference.registry.clone(),
                        status: status.to_string(),
                        what: format!("GET {path}"),
                    });
                }
            }
        }
    }

    /// HTTPS, unless the registry may be insecure and does not speak it.
    async fn scheme(&self, reference: &Reference, insecure: bool) -> &'static str {
        let may_be_plain = insecure || reference.is_loopback() || self.insecure.contains(&reference.registry);
        if !may_be_plain {
            return "https";
        }
        let key = reference.registry.clone();
        let known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(known) = known {
            return known;
        }
        let probe = self
            .http
            .get(format!("https://{}/v2/", reference.endpoint()))
            .timeout(CONNECT_TIMEOUT)
            .send()
            .await;
        match probe {
            Ok(_) => {
                self.schemes.lock().unwrap_or_else(PoisonError::into_inner).insert(key, "https");
                "https"
            }
            // Not remembered: the registry may be down now and speak HTTPS later.
            Err(_) => "http",
        }
    }

    /// Gets a token as the registry's challenge says.
    async fn token(&self, reference: &Reference, scheme: &str, headers: &HeaderMap) -> Result<String> {
        let challenges = headers.get_all(WWW_AUTHENTICATE);
        let challenge = challenges.iter().find_map(|value| bearer_challenge(value.to_str().ok()?));
        let Some(challenge) = challenge else { return Err(denied(reference)) };
        let mut realm = Url::parse(&challenge.realm).map_err(|_| Error::RegistryFailed {
            registry: reference.registry.clone(),
            status: "a challenge without a usable realm".into(),
            what: "authentication".into(),
        })?;
        if realm.scheme() != "https" && scheme == "https" {
            return Err(Error::RegistryUnreachable {
                registry: reference.registry.clone(),
                reason: "it wants a token fetched over plain HTTP".into(),
            });
        }
        {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = &challenge.service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:pull", reference.repository));
        }
        let response = self.http.get(realm).send().await.map_err(|error| unreachable(reference, &error))?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(denied(reference)),
            status => {
                return Err(Error::RegistryFailed {
                    registry: reference.registry.clone(),
                    status: status.to_string(),
                    what: "the request for a token".into(),
                });
            }
        }
        #[derive(serde::Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bytes = self.bounded(reference, response).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| denied(reference))?;
        Ok(if token.token.is_empty() { token.access_token } else { token.token })
    }

    fn lock_tokens(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn token_key(reference: &Reference) -> String {
    format!("{}/{}", reference.registry, reference.repository)
}

fn denied(reference: &Reference) -> Error {
    Error::RegistryDenied { registry: reference.registry.clone(), repository: reference.repository.clone() }
}

pub fn unreachable(reference: &Reference, error: &reqwest::Error) -> Error {
    Error::RegistryUnreachable { registry: reference.registry.clone(), reason: chain(error) }
}

/// The last cause says the most ("Connection refused"); the first says what was tried.
fn chain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it does not answer in time".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Whether trying again may help. Nobody listening, or no such host, does not pass in seconds.
fn is_passing(error: &reqwest::Error) -> bool {
    !error.is_connect() && !error.is_redirect() && !error.is_builder()
}

fn is_passing_status(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || status.is_server_error()
}

pub fn back_off(attempt: u32) -> Duration {
    Duration::from_millis(300 << attempt.min(5))
}

#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
}

/// `Bearer realm="…",service="…",scope="…"`
fn bearer_challenge(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while !rest.trim().is_empty() {
        let (key, value) = rest.split_once('=')?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_at(value.find(',').unwrap_or(value.len())),
        };
        match key.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge { realm: realm?, service })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let parsed = bearer_challenge(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a,b:pull""#,
        );
        let wanted = Challenge {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
        };
        assert_eq!(parsed, Some(wanted));
        assert_eq!(bearer_challenge(r#"Basic realm="x""#), None);
        assert_eq!(bearer_challenge(r#"Bearer realm="x"#), None);
        assert_eq!(bearer_challenge("Bearer service=x"), None);
    }
}
