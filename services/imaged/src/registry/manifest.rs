//! Manifests, indexes and image configs (OCI, and Docker's schema 2). Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use banger_api::ImageSettings;
use serde::{Deserialize, Serialize};

use crate::digest;
use crate::error::{Error, Result};
use crate::limits::Limits;

/// What we tell registries that we understand.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Of something that is here.
    pub fn of(hex: &str, size: u64) -> Self {
        Self { media_type: String::new(), digest: format!("sha256:{hex}"), size, platform: None }
    }

    /// The digest's hexadecimal part. Checked when the document was read.
    pub fn hex(&self) -> &str {
        digest::parse(&self.digest).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// Linux on this machine's architecture.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "riscv64" => "riscv64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: String::new() }
    }

    /// Whether what is said to be for an operating system and an architecture, if that is said, is for this.
    ///
    /// # Errors
    /// `NoSuchPlatform` of what is called `image`.
    pub fn check(&self, image: &str, os: &str, architecture: &str) -> Result<()> {
        let same = |found: &str, wanted: &str| found.is_empty() || found == wanted;
        if same(os, &self.os) && same(architecture, &self.architecture) {
            return Ok(());
        }
        Err(Error::NoSuchPlatform {
            image: image.to_owned(),
            platform: self.to_string(),
            offers: format!("{os}/{architecture}"),
        })
    }

    /// Whether an offer serves this wish. A wish without a variant takes any.
    fn takes(&self, offer: &Platform) -> bool {
        self.os == offer.os
            && self.architecture == offer.architecture
            && (self.variant.is_empty() || self.variant == offer.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => {
                return Err(Error::BadArgument(format!(
                    "the platform {text:?} is not OS/ARCHITECTURE[/VARIANT]"
                )));
            }
        };
        if os != "linux" {
            return Err(Error::BadArgument(format!(
                "the platform {text:?} is not linux/…; nothing else runs here"
            )));
        }
        Ok(Self { os: os.into(), architecture: architecture.into(), variant: variant.into() })
    }
}

/// What a manifest's name leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    /// One manifest per platform.
    Index(Vec<Descriptor>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its own, which OCI does not ask for: without it, what the config's tells.
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads the manifest of an image, or an index; the content decides which.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let document = Self::parse_any(bytes, limits)?;
        if let Self::Manifest(manifest) = &document {
            manifest.check_types()?;
        }
        Ok(document)
    }

    /// Reads the manifest of whatever a registry has, or an index.
    pub fn parse_any(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("not JSON of the expected form: {error}")))?;
        if raw.schema_version != 2 {
            return Err(invalid(format!("has the unknown schema version {}", raw.schema_version)));
        }
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                Manifest::check(raw.media_type, config, layers, limits).map(Self::Manifest)
            }
            (None, None, Some(manifests)) => {
                if manifests.len() > limits.layers {
                    return Err(invalid(format!("lists more than {} platforms", limits.layers)));
                }
                for manifest in &manifests {
                    check_descriptor(manifest, limits.document)?;
                }
                Ok(Self::Index(manifests))
            }
            _ => {
                Err(invalid(format!("is neither a manifest nor an index (media type {:?})", raw.media_type)))
            }
        }
    }

    /// The manifest of a platform.
    pub fn choose<'a>(offers: &'a [Descriptor], wish: &Platform, image: &str) -> Result<&'a Descriptor> {
        let fits = |offer: &&Descriptor| offer.platform.as_ref().is_some_and(|platform| wish.takes(platform));
        if let Some(found) = offers.iter().find(fits) {
            return Ok(found);
        }
        // A layout written by a tool for one platform may not say which.
        if let [only] = offers
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let mut names: Vec<String> = offers
            .iter()
            .filter_map(|offer| offer.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(Platform::to_string)
            .collect();
        names.sort();
        names.dedup();
        Err(Error::NoSuchPlatform {
            image: image.to_owned(),
            platform: wish.to_string(),
            offers: if names.is_empty() { "nothing".into() } else { names.join(", ") },
        })
    }
}

impl Manifest {
    fn check(
        media_type: String,
        config: Descriptor,
        layers: Vec<Descriptor>,
        limits: &Limits,
    ) -> Result<Self> {
        check_descriptor(&config, limits.document)?;
        if layers.len() > limits.layers {
            return Err(Error::TooLarge(format!(
                "it has {} layers, more than {}",
                layers.len(),
                limits.layers
            )));
        }
        for layer in &layers {
            check_descriptor(layer, limits.blob)?;
        }
        let media_type = match (media_type.as_str(), config.media_type.as_str()) {
            ("", DOCKER_CONFIG) => DOCKER_MANIFEST.to_owned(),
            ("", _) => OCI_MANIFEST.to_owned(),
            _ => media_type,
        };
        Ok(Self { media_type, config, layers })
    }

    /// Whether it is an image, of layers that we can read.
    fn check_types(&self) -> Result<()> {
        if !matches!(self.config.media_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG) {
            return Err(invalid(format!("is of something else than an image: {:?}", self.config.media_type)));
        }
        self.layers.iter().try_for_each(|layer| check_layer_type(&layer.media_type))
    }

    /// Bytes of all layers as they are stored.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// The digests of the layers as the blobs are named by.
    pub fn hexes(&self) -> impl Iterator<Item = String> + '_ {
        self.layers.iter().map(|layer| layer.hex().to_owned())
    }

    /// What an image of this manifest keeps beside its layers, to be exported as it came: manifest and
    /// config.
    pub fn documents(&self, id: &str) -> [String; 2] {
        [id.to_owned(), self.config.hex().to_owned()]
    }
}

fn check_descriptor(descriptor: &Descriptor, limit: u64) -> Result<()> {
    if digest::parse(&descriptor.digest).is_none() {
        let shown: String = descriptor.digest.chars().take(100).collect();
        return Err(invalid(format!("has the digest {shown:?}; only sha256 is known")));
    }
    if descriptor.size > limit {
        return Err(Error::TooLarge(format!(
            "{} has {} bytes, more than {limit}",
            descriptor.digest, descriptor.size
        )));
    }
    Ok(())
}

/// The content says how it is compressed; the type must only promise a tar that we may have.
fn check_layer_type(media_type: &str) -> Result<()> {
    let known = match media_type {
        "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => true,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => true,
        other => match other.strip_prefix("application/vnd.oci.image.layer.v1.tar") {
            Some(rest) => matches!(rest, "" | "+gzip" | "+zstd"),
            None => false,
        },
    };
    if known {
        return Ok(());
    }
    let shown: String = media_type.chars().take(100).collect();
    if media_type.contains("foreign") || media_type.contains("nondistributable") {
        return Err(invalid(format!("has a layer that the registry may not hand out ({shown})")));
    }
    Err(invalid(format!("has a layer of the unknown type {shown:?}")))
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::InvalidManifest(reason.into())
}

/// An image's config: what to run in it, and the digests of its unpacked layers.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Config {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub config: Process,
    #[serde(default)]
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Process {
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

impl Process {
    /// As somebody wants it instead.
    pub fn with(mut self, settings: &ImageSettings) -> Self {
        let name_of = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        self.env.retain(|variable| !settings.environment.contains_key(&name_of(variable)));
        self.env.extend(settings.environment.iter().map(|(name, value)| format!("{name}={value}")));
        self.labels.extend(settings.labels.clone());
        let ImageSettings { user, working_directory, entrypoint, command, .. } = settings.clone();
        self.user = user.unwrap_or(self.user);
        self.working_dir = working_directory.unwrap_or(self.working_dir);
        self.entrypoint = entrypoint.unwrap_or(self.entrypoint);
        self.cmd = command.unwrap_or(self.cmd);
        self
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct RootFs {
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// Go writes an empty list as `null`.
fn or_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Config {
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("its config is not JSON of the expected form: {error}")))?;
        if config.rootfs.diff_ids.len() != layers {
            return Err(invalid(format!(
                "its config describes {} layers, the manifest {layers}",
                config.rootfs.diff_ids.len()
            )));
        }
        let process = &config.config;
        let strings = process.env.iter().chain(&process.entrypoint).chain(&process.cmd);
        if strings.chain([&process.user, &process.working_dir]).any(|text| text.contains('\0')) {
            return Err(invalid("its config has a zero byte in a string"));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document> {
        Document::parse(text.as_bytes(), &Limits::default())
    }

    fn descriptor(media_type: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{}","size":{size}}}"#, "a".repeat(64))
    }

    fn manifest(layer: &str) -> String {
        let config = descriptor("application/vnd.oci.image.config.v1+json", 10);
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#)
    }

    #[test]
    fn reads_and_refuses_manifests() {
        let oci = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert!(matches!(parse(&manifest(&descriptor(oci, 5))), Ok(Document::Manifest(_))));
        let huge = parse(&manifest(&descriptor(oci, u64::MAX)));
        assert!(matches!(huge, Err(Error::TooLarge(_))), "{huge:?}");
        for bad in [
            "{}".to_owned(),
            "[".to_owned(),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            r#"{"schemaVersion":2}"#.to_owned(),
            manifest(&descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", 5)),
            manifest(&descriptor("text/html", 5)),
            manifest(&descriptor(oci, 5)).replace("sha256", "sha1"),
            manifest(&vec![descriptor(oci, 5); 600].join(",")).replace("sha256:aa", "sha256:AA"),
        ] {
            let error = parse(&bad).expect_err(&bad[..bad.len().min(100)]);
            assert!(matches!(error, Error::InvalidManifest(_) | Error::TooLarge(_)), "{error:?}");
        }
    }

    #[test]
    fn a_manifest_has_a_type_though_it_may_not_say_so() {
        let of = |own: &str, config: &str| {
            let config = descriptor(config, 10);
            let text = format!(r#"{{"schemaVersion":2,{own}"config":{config},"layers":[]}}"#);
            match parse(&text) {
                Ok(Document::Manifest(manifest)) => manifest.media_type,
                other => panic!("{text}: {other:?}"),
            }
        };
        let said = format!(r#""mediaType":"{DOCKER_MANIFEST}","#);
        assert_eq!(of(&said, OCI_CONFIG), DOCKER_MANIFEST);
        assert_eq!(of("", DOCKER_CONFIG), DOCKER_MANIFEST);
        assert_eq!(of("", OCI_CONFIG), OCI_MANIFEST);
        assert_eq!(of("", ""), OCI_MANIFEST);
    }

    #[test]
    fn chooses_the_platform() {
        let offer = |os: &str, architecture: &str, variant: &str| Descriptor {
            media_type: String::new(),
            digest: format!("{os}{architecture}{variant}"),
            size: 1,
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.into(),
            }),
        };
        let offers =
            [offer("linux", "arm", "v5"), offer("linux", "amd64", ""), offer("unknown", "unknown", "")];
        let wish: Platform = "linux/amd64".parse().expect("platform");
        assert_eq!(Document::choose(&offers, &wish, "x").expect("chosen").digest, "linuxamd64");
        let wish: Platform = "linux/arm/v7".parse().expect("platform");
        let error = Document::choose(&offers, &wish, "x").expect_err("not offered").to_string();
        assert!(error.ends_with("it offers linux/amd64, linux/arm/v5"), "{error}");
        assert!("windows/amd64".parse::<Platform>().is_err());
    }

    #[test]
    fn settings_are_laid_over() {
        let before = Process {
            env: vec!["PATH=/bin".into(), "A=1".into(), "AB=2".into()],
            cmd: vec!["sh".into()],
            user: "www".into(),
            ..Process::default()
        };
        let pairs = [("A", "x=y"), ("C", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = ImageSettings {
            environment: pairs.clone().into(),
            labels: pairs.into(),
            user: Some(String::new()),
            entrypoint: Some(vec!["/init".into()]),
            ..ImageSettings::default()
        };
        let after = before.clone().with(&settings);
        assert_eq!(after.env, ["PATH=/bin", "AB=2", "A=x=y", "C="]);
        assert_eq!((after.user.as_str(), &after.cmd[..]), ("", &["sh".to_owned()][..]));
        assert_eq!((after.entrypoint.len(), after.labels.len()), (1, 2));
        assert_eq!(before.clone().with(&ImageSettings::default()), before);
    }

    #[test]
    fn null_means_nothing() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],"Entrypoint":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = Config::parse(text.as_bytes(), 0).expect("parses");
        assert_eq!(config.config.cmd, ["sh"]);
        assert!(Config::parse(text.as_bytes(), 1).is_err());
    }
}
