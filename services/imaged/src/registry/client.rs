//! The OCI distribution protocol, as far as pulling needs it.
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>
//!
//! Our own on top of reqwest rather than a client crate: the ones there are read documents of any
//! length into memory, and hide what we want to say in errors. Every answer is bounded; the
//! Authorization header goes to the registry alone (reqwest drops it when a redirect leaves host or
//! port); plain HTTP is only spoken with loopback and with registries named as insecure.

use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::challenge::Challenge;
use super::host::Tls;
use super::retry::{ATTEMPTS, PATIENCE, back_off, is_passing, retry_after};
use super::{Credentials, Reference, Source, manifest};
use crate::digest;
use crate::error::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;

/// One place where an image can be had, for one pull: what a registry lets one caller see, another
/// one has to ask for again.
pub struct Endpoint {
    http: Client,
    /// `https` or `http`.
    scheme: &'static str,
    reference: Reference,
    credentials: Option<Credentials>,
    /// What the registry wants to see, as far as we know.
    authorization: Mutex<Option<HeaderValue>>,
    /// Bytes of one document.
    limit: u64,
}

impl Endpoint {
    /// Finds out how to speak with a registry.
    ///
    /// # Errors
    /// If the certificates cannot be used.
    pub async fn open(
        source: Source,
        tls: Tls,
        credentials: Option<Credentials>,
        limit: u64,
    ) -> Result<Self> {
        let Source { reference, insecure } = source;
        let http = client(tls, insecure)?;
        let scheme = match insecure || reference.is_loopback() {
            true => probe(&http, &reference).await,
            false => "https",
        };
        Ok(Self { http, scheme, reference, credentials, authorization: Mutex::default(), limit })
    }

    /// How the image is called here.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Fetches a manifest or index by tag or digest, and returns it with its own digest. If a
    /// digest was asked for, it is that one.
    pub async fn document(&self, version: &str) -> Result<(Vec<u8>, String)> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response = self.get(&format!("manifests/{version}"), headers).await?;
        let bytes = self.bounded(response).await?;
        let found = format!("sha256:{}", digest::sha256(&bytes));
        if version.starts_with("sha256:") && version != found {
            let what = format!("the manifest of {}", self.reference);
            return Err(Error::DigestMismatch { what, wanted: version.into(), found });
        }
        Ok((bytes, found))
    }

    /// Fetches a small blob whole.
    pub async fn blob(&self, digest: &str) -> Result<Vec<u8>> {
        let response = self.open_blob(digest, 0).await?;
        let bytes = self.bounded(response).await?;
        let found = format!("sha256:{}", digest::sha256(&bytes));
        if found != digest {
            let what = "the image's config".into();
            return Err(Error::DigestMismatch { what, wanted: digest.into(), found });
        }
        Ok(bytes)
    }

    /// Opens a blob for streaming from `offset` on. Whether the registry honoured the offset shows
    /// in the status: 206, or 200 from the beginning.
    pub async fn open_blob(&self, digest: &str, offset: u64) -> Result<Response> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            headers.insert(RANGE, header(&format!("bytes={offset}-"))?);
        }
        self.get(&format!("blobs/{digest}"), headers).await
    }

    /// What broke off, as an error.
    pub fn unreachable(&self, error: &reqwest::Error) -> Error {
        let registry = self.reference.registry.clone();
        let reason = match cause(error) {
            cause if cause.contains("invalid peer certificate") => format!(
                "{cause}; to trust its authority, put the certificate into /etc/banger/certs.d/{registry}/ca.crt"
            ),
            cause if cause.contains("InvalidContentType") => {
                "it does not speak TLS; to allow plain HTTP, name it with insecure = true in /etc/banger/registries.conf".into()
            }
            cause => cause,
        };
        Error::RegistryUnreachable { registry, reason }
    }

    async fn bounded(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if (bytes.len() + chunk.len()) as u64 > self.limit {
                return Err(Error::TooLarge(format!("a document has more than {} bytes", self.limit)));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Asks for something of the repository, showing what the registry wants to see.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response> {
        let Reference { repository, .. } = &self.reference;
        let url = format!("{}://{}/v2/{repository}/{path}", self.scheme, self.reference.endpoint());
        let mut asked = false;
        loop {
            let authorization = self.authorization.lock().await.clone();
            let request = || {
                let request = self.http.get(&url).headers(headers.clone());
                authorization.iter().fold(request, |request, value| request.header(AUTHORIZATION, value))
            };
            let response = self.patiently(&format!("GET {path}"), request).await?;
            match response.status() {
                status if status.is_success() => return Ok(response),
                // Nothing was shown yet, or it is no longer good.
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    self.authorize(response.headers(), authorization).await?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
                StatusCode::NOT_FOUND => return Err(self.missing()),
                status => return Err(self.failed(status.to_string(), format!("GET {path}"))),
            }
        }
    }

    /// Makes a request until it is answered, and not just put off. What is answered is for the
    /// caller to judge.
    async fn patiently(&self, what: &str, request: impl Fn() -> RequestBuilder) -> Result<Response> {
        for failures in 1.. {
            let last = failures >= ATTEMPTS;
            let wait = match request().send().await {
                Ok(response) if !is_passing(response.status()) || last => return Ok(response),
                Ok(response) => match wait_asked_for(response.headers()) {
                    Some(wait) if wait > PATIENCE => {
                        let status = format!("{}, try again in {} s", response.status(), wait.as_secs());
                        return Err(self.failed(status, what.to_owned()));
                    }
                    asked => asked.unwrap_or(back_off(failures)),
                },
                Err(error) if is_final(&error) || last => return Err(self.unreachable(&error)),
                Err(_) => back_off(failures),
            };
            tokio::time::sleep(wait).await;
        }
        unreachable!("the last attempt returns")
    }

    /// Gets what the registry wants to see instead of what was `shown`. Of several requests that
    /// find out at the same time, the first one does it for all.
    async fn authorize(&self, headers: &HeaderMap, shown: Option<HeaderValue>) -> Result<()> {
        let mut current = self.authorization.lock().await;
        if *current != shown {
            return Ok(());
        }
        let value = match Challenge::of(headers) {
            Some(Challenge::Bearer { realm, service }) => {
                format!("Bearer {}", self.token(&realm, service.as_deref()).await?)
            }
            Some(Challenge::Basic) => match &self.credentials {
                Some(Credentials::Password { username, password }) => basic(username, password),
                _ => return Err(self.denied()),
            },
            None => return Err(self.denied()),
        };
        let mut value = header(&value)?;
        value.set_sensitive(true);
        *current = Some(value);
        Ok(())
    }

    /// Gets a token as the registry's challenge says.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<String> {
        let failed = |status: &str| self.failed(status.to_owned(), "the request for a token".into());
        let realm = Url::parse(realm).map_err(|_| failed("a challenge without a usable realm"))?;
        if realm.scheme() != "https" && self.scheme == "https" {
            return Err(failed("that it wants one fetched over plain HTTP"));
        }
        let response =
            self.patiently("the request for a token", || self.ask_for_token(&realm, service)).await?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
            status => return Err(failed(status.as_str())),
        }
        // By either name, and by some under both.
        let bytes = self.bounded(response).await?;
        let answer: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&bytes).map_err(|_| failed("something else than a token"))?;
        let token = ["token", "access_token"].iter().find_map(|name| answer.get(*name)?.as_str());
        token.filter(|token| !token.is_empty()).map(str::to_owned).ok_or_else(|| failed("no token"))
    }

    fn ask_for_token(&self, realm: &Url, service: Option<&str>) -> RequestBuilder {
        let mut url = realm.clone();
        let mut parameters = Url::parse("form:").expect("a URL");
        let identity = matches!(self.credentials, Some(Credentials::IdentityToken(_)));
        let target = if identity { &mut parameters } else { &mut url };
        let mut query = target.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &format!("repository:{}:pull", self.reference.repository));
        match &self.credentials {
            None => {
                drop(query);
                self.http.get(url)
            }
            Some(Credentials::Password { username, password }) => {
                query.append_pair("account", username);
                drop(query);
                self.http.get(url).basic_auth(username, Some(password))
            }
            Some(Credentials::IdentityToken(token)) => {
                query.append_pair("grant_type", "refresh_token");
                query.append_pair("client_id", "banger");
                query.append_pair("refresh_token", token);
                drop(query);
                let form = parameters.query().unwrap_or_default().to_owned();
                self.http.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
        }
    }

    fn denied(&self) -> Error {
        let who = match &self.credentials {
            Some(Credentials::Password { username, .. }) => format!("the user {username:?}"),
            Some(Credentials::IdentityToken(_)) => "your identity token".into(),
            None => "anonymous".into(),
        };
        let Reference { registry, repository, .. } = self.reference.clone();
        Error::RegistryDenied { registry, repository, who }
    }

    fn missing(&self) -> Error {
        let tag = self.reference.version().to_owned();
        let Reference { registry, repository, .. } = self.reference.clone();
        Error::NotInRegistry { registry, repository, tag }
    }

    fn failed(&self, status: String, what: String) -> Error {
        Error::RegistryFailed { registry: self.reference.registry.clone(), status, what }
    }
}

/// Proxies are those of the environment, as everywhere.
fn client(tls: Tls, insecure: bool) -> Result<Client> {
    // A second installation fails, and the first is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("banger/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(redirects())
        // Where we come from is nobody's business.
        .referer(false)
        .tls_danger_accept_invalid_certs(insecure)
        .tls_certs_merge(tls.authorities);
    if let Some(identity) = tls.identity {
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| {
        Error::Base(banger_api::Error::internal(format!("cannot set up HTTPS: {}", cause(&error))))
    })
}

fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if from_tls && attempt.url().scheme() != "https" {
            attempt.error("redirects from HTTPS to plain HTTP")
        } else {
            attempt.follow()
        }
    })
}

/// HTTPS, unless a registry that may be insecure does not speak it. One that shows a certificate
/// does, whether we like the certificate or not.
async fn probe(http: &Client, reference: &Reference) -> &'static str {
    let url = format!("https://{}/v2/", reference.endpoint());
    match http.get(url).timeout(CONNECT_TIMEOUT).send().await {
        Err(error) if !cause(&error).contains("invalid peer certificate") => "http",
        _ => "https",
    }
}

fn wait_asked_for(headers: &HeaderMap) -> Option<Duration> {
    retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine;
    let pair = format!("{username}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn header(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text)
        .map_err(|_| Error::BadArgument("the credentials have characters that no header may have".into()))
}

/// The last cause says the most ("Connection refused"); the first says what was tried.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it does not answer in time".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Nobody listening, or no such host, does not pass in seconds.
fn is_final(error: &reqwest::Error) -> bool {
    error.is_connect() || error.is_redirect() || error.is_builder()
}
