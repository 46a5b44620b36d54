//! What can go wrong with images and kernels, case by case. The bus sees the [`ErrorKind`] each
//! belongs to and the message.

use std::io;

use banger_api::ErrorKind;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    BadReference(#[from] banger_core::reference::InvalidReference),
    #[error(
        "{0:?} is not a usable name: use up to 255 of a-z A-Z 0-9 . _ - : / @ +, beginning with a letter or digit"
    )]
    BadName(String),
    #[error("{0}")]
    BadArgument(String),
    #[error("there is no image {0:?}; list them with `banger image ls`, or pull it")]
    NoSuchImage(String),
    #[error("{0:?} fits more than one image; give more digits of the id")]
    Ambiguous(String),
    #[error("the name {0:?} is taken; remove what has it, or choose another name")]
    NameTaken(String),
    #[error("image {image} is used by {}; remove {} first", .holders.join(", "), one_or_many(.holders))]
    ImageInUse { image: String, holders: Vec<String> },
    #[error(
        "image {image} is damaged: its root filesystem {fault}; {}remove it with `banger image rm {image}` and pull or import it again",
        remove_first(.holders)
    )]
    ImageDamaged { image: String, fault: String, holders: Vec<String> },

    #[error("{registry} has no image {repository}:{tag}")]
    NotInRegistry { registry: String, repository: String, tag: String },
    #[error("{image} is not there for the platform {platform}; it offers {offers}")]
    NoSuchPlatform { image: String, platform: String, offers: String },
    #[error("cannot reach the registry {registry}: {reason}")]
    RegistryUnreachable { registry: String, reason: String },
    #[error("the registry {registry} answered {status} to {what}")]
    RegistryFailed { registry: String, status: String, what: String },
    #[error(
        "the registry {registry} denies {who} access to {repository}: check the name, and log in with `docker login`, `podman login` or `skopeo login`"
    )]
    RegistryDenied { registry: String, repository: String, who: String },
    #[error("{reference} is not to be pulled: registries.conf blocks {prefix}")]
    RegistryBlocked { reference: String, prefix: String },
    #[error("{path}: {reason}")]
    BadConfig { path: String, reason: String },
    #[error("{what} has the digest {found}, not {wanted}: what arrived is not what was asked for; try again")]
    DigestMismatch { what: String, wanted: String, found: String },
    #[error("{what} broke off after {found} of {wanted} bytes")]
    Truncated { what: String, wanted: u64, found: u64 },

    #[error("invalid manifest: {0}")]
    InvalidManifest(String),
    #[error("invalid image: layer {layer}: {reason}{}", at_entry(.entry))]
    InvalidLayer { layer: usize, entry: String, reason: String },
    #[error("not trusted: {0}")]
    Untrusted(String),
    #[error("the image is too large: {0}")]
    TooLarge(String),

    #[error("there is no kernel {0:?}; list them with `banger kernel ls`")]
    NoSuchKernel(String),
    #[error("no kernel is installed; import one with `banger kernel import host`, or a linux-image .deb")]
    NoKernel,
    #[error("kernel {kernel} is used by {}; remove {} first", .holders.join(", "), one_or_many(.holders))]
    KernelInUse { kernel: String, holders: Vec<String> },
    #[error(
        "kernel {kernel} is that of {}; choose another with `banger image set --kernel`",
        shown(.images)
    )]
    KernelOfImages { kernel: String, images: Vec<String> },
    #[error("{0} cannot be used as a kernel: {1}")]
    KernelUnsupported(String, String),
    #[error("cannot build the initramfs: the agent {path} cannot be read: {reason}; install banger-agent")]
    NoAgent { path: String, reason: String },

    #[error("cannot read {what}: {reason}")]
    Unreadable { what: String, reason: String },
    #[error("the job was canceled")]
    Canceled,
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Base(#[from] banger_api::Error),
}

fn one_or_many(holders: &[String]) -> &'static str {
    if holders.len() == 1 { "it" } else { "them" }
}

/// What has to go before an image can.
fn remove_first(holders: &[String]) -> String {
    match holders {
        [] => String::new(),
        _ => format!("remove {}, then ", holders.join(", ")),
    }
}

fn at_entry(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!(" at {entry:?}") }
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        use Error as E;
        match self {
            E::BadReference(_) | E::BadName(_) | E::BadArgument(_) | E::Ambiguous(_) => {
                ErrorKind::InvalidArgs
            }
            E::Unreadable { .. } | E::BadConfig { .. } => ErrorKind::InvalidArgs,
            E::NoSuchImage(_) | E::NotInRegistry { .. } | E::NoSuchPlatform { .. } => ErrorKind::NoSuchImage,
            E::NameTaken(_) => ErrorKind::NameTaken,
            E::ImageInUse { .. } => ErrorKind::ImageInUse,
            E::ImageDamaged { .. } => ErrorKind::ImageDamaged,
            E::RegistryUnreachable { .. } | E::RegistryFailed { .. } => ErrorKind::RegistryUnreachable,
            E::RegistryDenied { .. } | E::RegistryBlocked { .. } => ErrorKind::RegistryDenied,
            E::DigestMismatch { .. } => ErrorKind::DigestMismatch,
            // Bytes from a registry that end early never match their digest; the reason is the network.
            E::Truncated { .. } => ErrorKind::RegistryUnreachable,
            E::InvalidManifest(_) | E::InvalidLayer { .. } | E::TooLarge(_) => ErrorKind::InvalidImage,
            E::NoSuchKernel(_) | E::NoKernel => ErrorKind::NoSuchKernel,
            E::Untrusted(_) => ErrorKind::Untrusted,
            E::KernelInUse { .. } | E::KernelOfImages { .. } => ErrorKind::KernelInUse,
            E::KernelUnsupported(..) => ErrorKind::KernelUnsupported,
            E::NoAgent { .. } => ErrorKind::Internal,
            E::Canceled => ErrorKind::JobCanceled,
            E::Io { source, .. } if is_full(source) => ErrorKind::NoSpace,
            E::Io { .. } => ErrorKind::Internal,
            E::Base(error) => error.kind(),
        }
    }

    /// Whether another registry, or another user of it, may have more luck.
    pub fn is_of_registry(&self) -> bool {
        use ErrorKind as K;
        matches!(self.kind(), K::RegistryUnreachable | K::RegistryDenied | K::DigestMismatch | K::NoSuchImage)
    }

    /// For `map_err`: an I/O error with what was tried.
    pub fn io<S: Into<String>>(what: S) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<Error> for banger_api::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Base(error) => error,
            error if error.kind() == ErrorKind::NoSpace => {
                ErrorKind::NoSpace.error(format!("{error}; free some space and try again"))
            }
            error => error.kind().error(error.to_string()),
        }
    }
}

/// A task that was dropped or panicked.
impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Self {
        if error.is_cancelled() { Error::Canceled } else { Error::Base(banger_api::Error::internal(error)) }
    }
}

/// Images by the beginnings of their ids, as everybody shows them.
fn shown(ids: &[String]) -> String {
    let ids: Vec<&str> = ids.iter().map(|id| id.get(..12).unwrap_or(id)).collect();
    format!("image {}", ids.join(", "))
}
