//! Notes events in the journal, whatever the log level: the history of VMs is to be complete.

use std::path::PathBuf;

use banger_core::event::Event;
use libsystemd::logging::{Priority, connected_to_journal, journal_send};

tokio::task_local! {
    /// The job that this task works for.
    pub(crate) static JOB: u32;
}

/// Notes what has happened, in the journal if that is where this service's log is.
pub fn note(event: &Event<'_>) {
    let message = event.message();
    if !connected_to_journal() {
        return tracing::info!("{message}");
    }
    let job = JOB.try_with(|job| ("BANGER_JOB".to_owned(), job.to_string())).ok();
    let program = std::env::args_os().next().map(PathBuf::from);
    let program = program.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let program = program.map(|name| ("SYSLOG_IDENTIFIER".to_owned(), name));
    let priority = if event.kind().is_warning { Priority::Warning } else { Priority::Notice };
    if let Err(error) = journal_send(priority, &message, event.fields().into_iter().chain(job).chain(program))
    {
        tracing::error!("{message}, which the journal did not take as an event: {error}");
    }
}
