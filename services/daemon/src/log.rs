//! Logging: to the journal with structured fields where there is one, else to standard error; the
//! level can be changed at run time through `org.freedesktop.LogControl1`
//! (`systemctl service-log-level banger-vmd debug`). It lasts until the next boot, since the
//! service may leave and come back any moment.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::{Error, ErrorKind, Result};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};
use zbus::Connection;
use zbus::interface;
use zbus::message::Header;

use crate::Gate;

const INTERFACE: &str = "org.freedesktop.LogControl1";

/// The level in force, and the means to change it.
#[derive(Clone)]
pub struct Level {
    current: Arc<Mutex<&'static str>>,
    filter: reload::Handle<Targets, Registry>,
    journal: bool,
    /// Where the level is kept for the next instance.
    file: PathBuf,
}

impl Level {
    fn set(&self, level: &str) -> Result<()> {
        let Some((name, filter)) = LEVELS.iter().find(|(name, _)| *name == level) else {
            return Err(ErrorKind::InvalidArgs.error(format!("{level:?} is not a syslog level")));
        };
        self.filter.reload(targets(*filter)).map_err(Error::internal)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = name;
        Ok(())
    }
}

/// syslog's names in the order of their severity, and what they mean to us.
const LEVELS: [(&str, LevelFilter); 8] = [
    ("emerg", LevelFilter::ERROR),
    ("alert", LevelFilter::ERROR),
    ("crit", LevelFilter::ERROR),
    ("err", LevelFilter::ERROR),
    ("warning", LevelFilter::WARN),
    ("notice", LevelFilter::INFO),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
];

fn targets(level: LevelFilter) -> Targets {
    // zbus logs every message it sees at debug level.
    Targets::new().with_default(level).with_target("zbus", level.min(LevelFilter::INFO))
}

/// Starts logging. Fields become `BANGER_…=` in the journal.
pub(crate) fn init(id: &str, runtime_dir: &Path) -> Level {
    let (filter, handle) = reload::Layer::new(targets(LevelFilter::INFO));
    let journal = libsystemd::logging::connected_to_journal()
        .then(|| tracing_journald::layer().ok())
        .flatten()
        .map(|layer| {
            layer.with_syslog_identifier(format!("banger-{id}")).with_field_prefix(Some("BANGER".into()))
        });
    let level = Level {
        current: Arc::new(Mutex::new("info")),
        filter: handle,
        journal: journal.is_some(),
        file: runtime_dir.join("log-level"),
    };
    let stderr = journal.is_none().then(|| fmt::layer().with_writer(std::io::stderr).with_target(false));
    tracing_subscriber::registry().with(filter).with(journal).with(stderr).init();
    if let Ok(kept) = std::fs::read_to_string(&level.file) {
        // A damaged file is as good as none.
        let _ = level.set(&kept);
    }
    level
}

/// `org.freedesktop.LogControl1` of this service.
#[derive(Clone)]
pub(crate) struct LogControl {
    identifier: String,
    level: Level,
    gate: Gate,
}

impl LogControl {
    pub(crate) fn new(id: &str, level: Level, gate: Gate) -> Self {
        Self { identifier: format!("banger-{id}"), level, gate }
    }

    fn target(&self) -> &'static str {
        if self.level.journal { "journal" } else { "console" }
    }

    async fn authorize(
        &self,
        property: &str,
        header: Option<Header<'_>>,
        connection: &Connection,
    ) -> Result<()> {
        let header = header.ok_or_else(|| ErrorKind::AccessDenied.error("no caller"))?;
        self.gate.enter_member(INTERFACE, property, &header, connection, &[]).await.map(drop)
    }
}

#[interface(name = "org.freedesktop.LogControl1")]
impl LogControl {
    #[zbus(property(emits_changed_signal = "false"))]
    async fn log_level(&self) -> String {
        (*self.level.current.lock().unwrap_or_else(PoisonError::into_inner)).to_owned()
    }

    #[zbus(property)]
    async fn set_log_level(
        &self,
        level: String,
        #[zbus(header)] header: Option<Header<'_>>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        self.authorize("LogLevel", header, connection).await?;
        self.level.set(&level)?;
        if let Err(error) = std::fs::write(&self.level.file, &level) {
            tracing::warn!("the log level will not last: {error}");
        }
        Ok(())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn log_target(&self) -> String {
        self.target().to_owned()
    }

    #[zbus(property)]
    async fn set_log_target(
        &self,
        target: String,
        #[zbus(header)] header: Option<Header<'_>>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        self.authorize("LogTarget", header, connection).await?;
        if target == self.target() || target == "auto" {
            return Ok(());
        }
        Err(ErrorKind::NotSupported
            .error(format!("the log goes to {}; this cannot be changed at run time", self.target())))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn syslog_identifier(&self) -> String {
        self.identifier.clone()
    }
}
