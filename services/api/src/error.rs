//! The errors of banger, the same on both sides of the bus.
//!
//! An [`Error`] is a [`ErrorKind`], which a program acts on and which has a D-Bus name, and a
//! message for people: what was wrong and what to do about it, in one line.

use std::fmt;

use zbus::message::{Header, Message};
use zbus::names::ErrorName;
use zbus::{DBusError, fdo};

/// An error with a D-Bus name and a one-line message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $kind:ident = $name:literal;)*) => {
        /// What went wrong, as far as a caller can act on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[doc = $doc])* $kind,)* }

        impl ErrorKind {
            /// Every kind, for documentation and tests.
            pub const ALL: &[ErrorKind] = &[$(ErrorKind::$kind,)*];

            /// The D-Bus error name.
            pub fn name(self) -> &'static str {
                match self { $(ErrorKind::$kind => $name,)* }
            }

            /// What it means, for documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(ErrorKind::$kind => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

kinds! {
    /// The caller may not do this.
    AccessDenied = "org.freedesktop.DBus.Error.AccessDenied";
    /// The caller may do this after authenticating, but the call did not allow interaction.
    InteractiveAuthorizationRequired = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";
    /// An argument does not have the form its documentation asks for.
    InvalidArgs = "org.freedesktop.DBus.Error.InvalidArgs";
    /// Not available in this version or on this host.
    NotSupported = "org.freedesktop.DBus.Error.NotSupported";
    /// A needed service cannot be reached or started.
    ServiceUnavailable = "org.banger.Error.ServiceUnavailable";
    /// A fault of banger itself or of the host (disk, database); the journal has details.
    Internal = "org.banger.Error.Internal";
    /// The disk is full.
    NoSpace = "org.banger.Error.NoSpace";

    /// The caller takes back a subscription that it does not have.
    NotSubscribed = "org.banger.Error.NotSubscribed";

    /// There is no such job, or it ended more than a minute ago.
    NoSuchJob = "org.banger.Error.NoSuchJob";
    /// It is too late to cancel the job.
    JobEnded = "org.banger.Error.JobEnded";
    /// The job was canceled.
    JobCanceled = "org.banger.Error.JobCanceled";
    /// The service ended (killed, restarted) while the job was under way.
    Interrupted = "org.banger.Error.Interrupted";

    /// There is no VM of this name.
    NoSuchVm = "org.banger.Error.NoSuchVm";
    /// Another object has this name.
    NameTaken = "org.banger.Error.NameTaken";
    /// The VM runs, which the operation does not allow.
    VmRunning = "org.banger.Error.VmRunning";
    /// The VM does not run, which the operation needs.
    VmNotRunning = "org.banger.Error.VmNotRunning";
    /// The VM is paused, so its guest does not answer.
    VmPaused = "org.banger.Error.VmPaused";
    /// Another lifecycle operation on the VM is under way.
    VmBusy = "org.banger.Error.VmBusy";
    /// The VM ended, or could not come up.
    BootFailed = "org.banger.Error.BootFailed";
    /// No usable virtual machine monitor is installed.
    VmmMissing = "org.banger.Error.VmmMissing";
    /// systemd refused or failed to act on the VM's unit.
    UnitFailed = "org.banger.Error.UnitFailed";

    /// The VM has no snapshot of this name.
    NoSuchSnapshot = "org.banger.Error.NoSuchSnapshot";
    /// The snapshot was made with another VMM, CPU or machine than there is now.
    SnapshotMismatch = "org.banger.Error.SnapshotMismatch";
    /// There is no volume of this name.
    NoSuchVolume = "org.banger.Error.NoSuchVolume";
    /// A VM has the volume.
    VolumeInUse = "org.banger.Error.VolumeInUse";
    /// The VMM refused, or does not answer.
    VmmFailed = "org.banger.Error.VmmFailed";
    /// What the VM needs is not there or does not work; the message names all of it.
    NotReady = "org.banger.Error.NotReady";

    /// There is no image of this name or id.
    NoSuchImage = "org.banger.Error.NoSuchImage";
    /// VMs use the image.
    ImageInUse = "org.banger.Error.ImageInUse";
    /// The stored image is no longer what was published.
    ImageDamaged = "org.banger.Error.ImageDamaged";
    /// The image, a layer or an archive is malformed or breaks a limit.
    InvalidImage = "org.banger.Error.InvalidImage";
    /// Received bytes do not have the digest they were asked by.
    DigestMismatch = "org.banger.Error.DigestMismatch";
    /// The registry could not be reached, or broke off.
    RegistryUnreachable = "org.banger.Error.RegistryUnreachable";
    /// The registry wants (other) credentials.
    RegistryDenied = "org.banger.Error.RegistryDenied";
    /// There is no kernel of this name.
    NoSuchKernel = "org.banger.Error.NoSuchKernel";
    /// VMs use the kernel.
    KernelInUse = "org.banger.Error.KernelInUse";
    /// The kernel lacks something banger needs, or its file has no known form.
    KernelUnsupported = "org.banger.Error.KernelUnsupported";
    /// A signature is missing, or not by somebody the admin trusts.
    Untrusted = "org.banger.Error.Untrusted";

    /// All addresses of the range are taken.
    NoFreeAddress = "org.banger.Error.NoFreeAddress";
    /// Something listens there already.
    PortInUse = "org.banger.Error.PortInUse";
    /// The VM has no such forward.
    NoSuchForward = "org.banger.Error.NoSuchForward";
    /// The address belongs to another lease.
    AddressInUse = "org.banger.Error.AddressInUse";
    /// The address range overlaps a route of the host.
    NetworkConflict = "org.banger.Error.NetworkConflict";
    /// Nobody has a lease under this name.
    NoSuchLease = "org.banger.Error.NoSuchLease";

    /// The VM has no such session.
    NoSuchSession = "org.banger.Error.NoSuchSession";
    /// The session's command runs, which the operation does not allow.
    SessionRunning = "org.banger.Error.SessionRunning";
    /// The session's command has ended, or its VM has, which the operation does not allow.
    SessionEnded = "org.banger.Error.SessionEnded";
    /// The agent in the guest does not answer.
    AgentUnreachable = "org.banger.Error.AgentUnreachable";
    /// The agent in the guest speaks another version, or nonsense.
    AgentProtocol = "org.banger.Error.AgentProtocol";
    /// The command has ended.
    NoSuchProcess = "org.banger.Error.NoSuchProcess";
    /// The guest knows no such user.
    NoSuchUser = "org.banger.Error.NoSuchUser";
    /// The directory is not there.
    NoSuchDirectory = "org.banger.Error.NoSuchDirectory";
    /// The file is not there.
    NoSuchFile = "org.banger.Error.NoSuchFile";
    /// Something of another kind has the name that a file is to get.
    FileInTheWay = "org.banger.Error.FileInTheWay";
    /// A file cannot be read or written; the message says which, and why.
    FileFailed = "org.banger.Error.FileFailed";
    /// A tar stream is none, ended early, or leads out of where it is unpacked.
    InvalidArchive = "org.banger.Error.InvalidArchive";
    /// No files are copied under this id, or it is long ago.
    NoSuchTransfer = "org.banger.Error.NoSuchTransfer";
    /// Somebody else has the VM's workspace.
    WorkspaceBusy = "org.banger.Error.WorkspaceBusy";
    /// The workspace has changed in the VM since it was prepared.
    WorkspaceChanged = "org.banger.Error.WorkspaceChanged";
    /// Nothing was prepared in the VM, or by somebody else.
    NoSuchWorkspace = "org.banger.Error.NoSuchWorkspace";
    /// The directory is no git repository that a workspace can be made of, or git cannot read it.
    RepositoryUnusable = "org.banger.Error.RepositoryUnusable";
    /// A step of what a workspace's repository asks for failed in the VM.
    BootstrapFailed = "org.banger.Error.BootstrapFailed";
    /// The guest has no such program.
    CommandNotFound = "org.banger.Error.CommandNotFound";
    /// The file in the guest is not a program that can be executed.
    NotExecutable = "org.banger.Error.NotExecutable";
}

impl ErrorKind {
    /// The kind with this D-Bus name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// An error of this kind. `message` says what was wrong and what to do, without a full stop.
    pub fn error(self, message: impl Into<String>) -> Error {
        Error { kind: self, message: message.into() }
    }
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// A fault that is not the caller's.
    pub fn internal(what: impl fmt::Display) -> Self {
        ErrorKind::Internal.error(what.to_string())
    }

    /// The same kind of error, with a hint at where it happened in front.
    pub fn context(self, what: impl fmt::Display) -> Self {
        Error { message: format!("{what}: {}", self.message), ..self }
    }

    /// From the name and message of an error reply.
    pub fn from_reply(name: &str, message: &str) -> Self {
        match ErrorKind::from_name(name) {
            Some(kind) => kind.error(message),
            None if is_unavailable(name) => ErrorKind::ServiceUnavailable.error(message),
            None => Error::internal(format!("{name}: {message}")),
        }
    }
}

/// Standard errors that mean that nobody is there to answer.
fn is_unavailable(name: &str) -> bool {
    matches!(
        name.strip_prefix("org.freedesktop.DBus.Error."),
        Some(
            "ServiceUnknown"
                | "NameHasNoOwner"
                | "NoReply"
                | "Disconnected"
                | "TimedOut"
                | "Timeout"
                | "Spawn.ExecFailed"
                | "Spawn.Failed"
        )
    )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(&self.message,))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(self.kind.name())
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, message, _) => {
                Error::from_reply(&name, message.as_deref().unwrap_or("no message"))
            }
            zbus::Error::FDO(error) => Error::from(*error),
            zbus::Error::Connection(error, address) => {
                ErrorKind::ServiceUnavailable.error(format!("cannot connect to {address}: {error}"))
            }
            zbus::Error::InputOutput(error) => {
                ErrorKind::ServiceUnavailable.error(format!("connection lost: {error}"))
            }
            other => Error::internal(other),
        }
    }
}

impl From<fdo::Error> for Error {
    fn from(error: fdo::Error) -> Self {
        match error {
            fdo::Error::ZBus(error) => Error::from(error),
            error => Error::from_reply(&error.name(), error.description().unwrap_or("no message")),
        }
    }
}

/// So that property getters, which zbus wants to fail with its own type, can use `?`.
impl From<Error> for fdo::Error {
    fn from(error: Error) -> Self {
        match error.kind {
            ErrorKind::AccessDenied => fdo::Error::AccessDenied(error.message),
            ErrorKind::InvalidArgs => fdo::Error::InvalidArgs(error.message),
            ErrorKind::NotSupported => fdo::Error::NotSupported(error.message),
            _ => fdo::Error::Failed(error.message),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace.error(format!("{error}; free some space and try again"))
            }
            _ => Error::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_valid_and_unique() {
        for kind in ErrorKind::ALL {
            assert!(ErrorName::try_from(kind.name()).is_ok(), "{}", kind.name());
            assert_eq!(ErrorKind::from_name(kind.name()), Some(*kind));
        }
    }

    #[test]
    fn foreign_errors_keep_their_name() {
        let error = Error::from_reply("com.example.Odd", "odd");
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert_eq!(error.message(), "com.example.Odd: odd");
        let error = Error::from_reply("org.freedesktop.DBus.Error.NameHasNoOwner", "gone");
        assert_eq!(error.kind(), ErrorKind::ServiceUnavailable);
    }
}
