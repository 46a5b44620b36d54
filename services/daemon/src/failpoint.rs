//! Named points at which tests end or delay a service, to see what it leaves behind. Without the
//! cargo feature `failpoints` the macro [`failpoint!`](crate::failpoint!) is nothing, name and all; no
//! package has the feature.
//!
//! With it, `$RUNTIME_DIRECTORY/failpoint` says what happens, a line each:
//!
//! - `NAME`: the process removes the file and ends like after `kill -9`;
//! - `delay NAME MILLISECONDS`: whoever comes by waits, as long as the file is there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Delay(Duration),
}

/// A point in asynchronous code; a delay holds up only its own task.
pub async fn hit(name: &'static str) {
    if let Some(delay) = delay_or_end(name) {
        tokio::time::sleep(delay).await;
    }
}

/// A point in a thread that may block, such as the store's.
pub fn hit_blocking(name: &'static str) {
    if let Some(delay) = delay_or_end(name) {
        std::thread::sleep(delay);
    }
}

fn delay_or_end(name: &str) -> Option<Duration> {
    let file = PathBuf::from(std::env::var_os("RUNTIME_DIRECTORY")?).join("failpoint");
    match action(&std::fs::read_to_string(&file).ok()?, name)? {
        Action::Delay(delay) => Some(delay),
        Action::Kill => end(&file),
    }
}

/// The next instance is to live.
fn end(file: &Path) -> ! {
    if let Err(error) = std::fs::remove_file(file) {
        tracing::error!("cannot remove {}: {error}", file.display());
    }
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

fn action(text: &str, name: &str) -> Option<Action> {
    text.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [killed] if killed == name => Some(Action::Kill),
        ["delay", delayed, milliseconds] if delayed == name => {
            milliseconds.parse().ok().map(Duration::from_millis).map(Action::Delay)
        }
        _ => None,
    })
}

#[test]
fn lines_say_what_happens() {
    let text = "other\ndelay a 250\ndelay c x\nb\n";
    assert_eq!(action(text, "a"), Some(Action::Delay(Duration::from_millis(250))));
    assert_eq!(action(text, "b"), Some(Action::Kill));
    assert_eq!(action(text, "c"), None);
    assert_eq!(action(text, "delay"), None);
    assert_eq!(action("", "a"), None);
}
