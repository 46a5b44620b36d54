//! How far a copy is: a bar on a terminal, JSON lines with `--json`, nothing elsewhere.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::Context;
use crate::job::{filling, pace, spinner};
use crate::output::{size, tell};

/// How often a bar is drawn anew, and a line of JSON written.
const DRAW: Duration = Duration::from_millis(200);
const TELL: Duration = Duration::from_secs(1);

/// Bytes that have gone through so far. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// Counts what is read from, or written to, a stream.
    pub fn on<T>(&self, stream: T) -> Metered<T> {
        Metered { stream, meter: self.clone() }
    }

    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Shows it until the work is done. `total` is 0 if nobody knows it.
    pub async fn show<T>(
        &self,
        context: &Context,
        title: &str,
        total: u64,
        work: impl Future<Output = T>,
    ) -> T {
        let bar = context.output.bars.as_ref().map(|bars| bars.add(ProgressBar::new(total)));
        if let Some(bar) = &bar {
            bar.set_style(if total > 0 { filling() } else { spinner() });
            bar.set_prefix(title.to_owned());
        }
        let json = context.output.json && !context.output.quiet;
        let mut ticks = interval(if bar.is_some() { DRAW } else { TELL });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = ticks.tick() => {}
            }
            let bytes = self.bytes();
            if let Some(bar) = &bar {
                bar.set_position(if total > 0 { bytes.min(total) } else { bytes });
                bar.set_message(message(bytes, total, bar.per_sec()));
            } else if json {
                tell(json!({"title": title, "completed": bytes, "total": total, "unit": "bytes"}));
            }
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        done
    }
}

fn message(bytes: u64, total: u64, per_second: f64) -> String {
    if total > 0 {
        let left = total.saturating_sub(bytes);
        return format!("{}/{}{}", size(bytes.min(total)), size(total), pace(left, per_second));
    }
    format!("{}, {}/s", size(bytes), size(per_second as u64))
}

pub struct Metered<T> {
    stream: T,
    meter: Meter,
}

impl<T: Read> Read for Metered<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.meter.add(read);
        Ok(read)
    }
}

impl<T: Write> Write for Metered<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.meter.add(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(message(1 << 20, 4 << 20, 1048576.0), "1M/4M, 1M/s, 3s left");
        assert_eq!(message(5 << 20, 4 << 20, 1048576.0), "4M/4M");
        assert_eq!(message(1536, 0, 512.0), "1.5K, 512B/s");
    }

    #[test]
    fn what_goes_through_is_counted() {
        let meter = Meter::default();
        let copied = io::copy(&mut meter.on(&b"12345"[..]), &mut meter.on(io::sink())).expect("copies");
        assert_eq!((copied, meter.bytes()), (5, 10));
    }
}
