//! Listening to the bus.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

/// `dbus-monitor`, listening to what fits a match rule.
pub struct Monitor {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Monitor {
    /// Returns once it listens.
    pub fn start(rule: &str) -> Self {
        let mut child = Command::new("timeout")
            .args(["120", "dbus-monitor", "--system", rule])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut monitor = Self { child, lines };
        // Who becomes a monitor loses the name it had before.
        assert!(monitor.hears("member=NameLost"));
        monitor
    }

    /// Waits for a line with these words; there is none if the time is up.
    pub fn hears(&mut self, words: &str) -> bool {
        self.lines.by_ref().map_while(Result::ok).any(|line| line.contains(words))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // `timeout` passes this signal on; killed, it would leave the monitor behind.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
