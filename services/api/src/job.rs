//! `org.banger.Job1`: long work, the same in every service.
//!
//! A method that starts long work returns the job's id and object path at once. The job has
//! stages and progress, can be canceled, and stays readable for a minute after its end.
//! Race-free use: call the method, then `Wait` on the job; or subscribe to `JobRemoved` of the
//! manager first, call the method, and match the path.

use zbus::proxy;

pub const INTERFACE: &str = "org.banger.Job1";

#[proxy(interface = "org.banger.Job1", assume_defaults = false)]
pub trait Job {
    /// Ends the work as soon as possible and undoes what it did. The job then ends `canceled`,
    /// unless it is done before it takes notice.
    ///
    /// Errors: `JobEnded`.
    #[zbus(allow_interactive_auth)]
    fn cancel(&self) -> zbus::Result<()>;

    /// Returns once the job has ended: its outcome, or the error it failed with.
    fn wait(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<u32>;
    /// What is done: `pull`, `create`, `start`, …
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> zbus::Result<String>;
    /// The name of what it is done to.
    #[zbus(property(emits_changed_signal = "const"))]
    fn subject(&self) -> zbus::Result<String>;
    /// `running`, `done`, `failed` or `canceled`.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// The stage the work is in, a lowercase word.
    #[zbus(property)]
    fn stage(&self) -> zbus::Result<String>;
    /// Stages entered so far, each with the time it began at (microseconds since 1970).
    #[zbus(property(emits_changed_signal = "false"))]
    fn stages(&self) -> zbus::Result<Vec<(String, u64)>>;
    /// Progress of the stage: completed, total (0 if unknown), unit (`bytes` or `steps`).
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<(u64, u64, String)>;
    /// What the stage does beside each other, such as the layers of an image that are fetched: name,
    /// completed and total, in the unit of the progress.
    #[zbus(property)]
    fn parts(&self) -> zbus::Result<Vec<(String, u64, u64)>>;
    /// What came of it (a name, an id), empty until then.
    #[zbus(property)]
    fn outcome(&self) -> zbus::Result<String>;
    /// D-Bus name of the error, empty without one.
    #[zbus(property)]
    fn error_name(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn error_message(&self) -> zbus::Result<String>;
}
