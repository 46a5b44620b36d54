//! `banger top`: what VMs take, as it goes on.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::time::Duration;

use banger_api::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::stats::{Figures, Taken, no_terminal, per_second, percent, take};
use crate::Context;
use crate::output::{or_dash, print, size};
use crate::terminal::{self, RawMode, Screen};

/// How many samples are remembered: as many as a terminal may be wide.
const HISTORY: usize = 512;

/// Keys that end it: Ctrl-C, Ctrl-D, q and Q.
const QUIT: [u8; 4] = [3, 4, b'q', b'Q'];

/// Columns of one VM, without its histories and the space between them.
const NAME: usize = 27;
const FIGURES: [(&str, usize); 4] = [("CPU", 8), ("MEMORY", 7), ("DISK", 9), ("NET", 9)];

pub async fn top(context: &Context, seconds: u64) -> Result<()> {
    if !terminal::is_interactive() {
        return Err(no_terminal());
    }
    // What cannot be asked is to be said on the ordinary screen.
    let mut before = take(context, &[]).await?;
    let mut view = View::default();
    view.add(&Taken::new(), &before);
    let _raw = RawMode::enter()?;
    let _screen = Screen::enter();
    let mut keys = keys();
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut ended = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut ticks = interval(Duration::from_secs(seconds));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let (rows, columns) = terminal::size().unwrap_or((24, 80));
        print(&view.draw(rows.into(), columns.into()));
        tokio::select! {
            key = keys.recv() => match key {
                Some(key) if !QUIT.contains(&key) => {}
                _ => return Ok(()),
            },
            _ = resized.recv() => {}
            _ = interrupted.recv() => return Ok(()),
            _ = ended.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
            _ = ticks.tick() => {
                let now = take(context, &[]).await?;
                view.add(&before, &now);
                before = now;
            }
        }
    }
}

/// What is typed. The thread ends with the program.
fn keys() -> mpsc::UnboundedReceiver<u8> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for key in std::io::stdin().lock().bytes().map_while(std::io::Result::ok) {
            if sender.send(key).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What is shown: the VMs of the last sample, each with its past.
#[derive(Default)]
struct View(BTreeMap<String, Past>);

#[derive(Default)]
struct Past {
    now: Figures,
    cpu: VecDeque<f64>,
    disk: VecDeque<f64>,
    net: VecDeque<f64>,
}

impl Past {
    fn add(&mut self, figures: Figures) {
        let histories = [
            (&mut self.cpu, figures.cpu_percent),
            (&mut self.disk, sum(figures.disk_read_rate, figures.disk_write_rate)),
            (&mut self.net, sum(figures.net_receive_rate, figures.net_send_rate)),
        ];
        for (history, value) in histories {
            history.push_back(value.unwrap_or(0.0));
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
        self.now = figures;
    }
}

fn sum(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? + b?)
}

impl View {
    fn add(&mut self, before: &Taken, now: &Taken) {
        self.0.retain(|name, _| now.contains_key(name));
        for (name, stats) in now {
            let figures = Figures::between(before.get(name), stats);
            self.0.entry(name.clone()).or_default().add(figures);
        }
    }

    /// The whole screen: no line is longer than it is wide, and there are no more than it has.
    fn draw(&self, rows: usize, columns: usize) -> String {
        let mut vms: Vec<(&String, &Past)> = self.0.iter().collect();
        let cpu = |past: &Past| past.now.cpu_percent.unwrap_or(0.0);
        vms.sort_by(|(_, a), (_, b)| cpu(b).total_cmp(&cpu(a)));
        let total: f64 = vms.iter().map(|(_, past)| cpu(past)).sum();
        let memory: u64 = vms.iter().filter_map(|(_, past)| past.now.memory_used_bytes).sum();
        let title = format!(
            "{} VM{}   CPU {}   memory {}   (q quits)",
            vms.len(),
            if vms.len() == 1 { "" } else { "s" },
            percent(Some(total)),
            size(memory)
        );
        let width = history_width(columns);
        let mut lines = vec![title, String::new(), header(width)];
        lines.extend(vms.iter().map(|(name, past)| line(name, past, width)));
        lines.truncate(rows);
        let lines: Vec<String> = lines.iter().map(|line| line.chars().take(columns).collect()).collect();
        // Each line is drawn over the old one, and the rest of it cleared: nothing flickers. In raw
        // mode, lines end with a carriage return.
        format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
    }
}

/// How wide the three histories are: what the rest of the line leaves them.
fn history_width(columns: usize) -> usize {
    let rest: usize = NAME + FIGURES.iter().map(|(_, width)| width + 1).sum::<usize>() + 3;
    columns.saturating_sub(rest) / 3
}

fn header(width: usize) -> String {
    let [cpu, memory, disk, net] = FIGURES;
    cells(
        "NAME",
        [cpu.0, memory.0, disk.0, net.0].map(str::to_owned),
        [String::new(), String::new(), String::new()],
        width,
    )
}

fn line(name: &str, past: &Past, width: usize) -> String {
    let now = &past.now;
    let figures = [
        percent(now.cpu_percent),
        now.memory_used_bytes.map_or_else(|| or_dash(""), size),
        per_second(sum(now.disk_read_rate, now.disk_write_rate)),
        per_second(sum(now.net_receive_rate, now.net_send_rate)),
    ];
    // A CPU is as high as one can be used; traffic has no such measure but its own past.
    let histories = [
        sparkline(&past.cpu, 100.0, width),
        sparkline(&past.disk, 1.0, width),
        sparkline(&past.net, 1.0, width),
    ];
    cells(name, figures, histories, width)
}

fn cells(name: &str, figures: [String; 4], histories: [String; 3], width: usize) -> String {
    let [(_, cpu), (_, memory), (_, disk), (_, net)] = FIGURES;
    let [a, b, c, d] = figures;
    let [e, f, g] = histories;
    let text =
        format!("{name:NAME$} {a:>cpu$} {e:width$} {b:>memory$} {c:>disk$} {f:width$} {d:>net$} {g:width$}");
    text.trim_end().to_owned()
}

/// The last values as bars. The highest bar is the highest value there, but at least `scale`.
fn sparkline(values: &VecDeque<f64>, scale: f64, width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = values.iter().skip(values.len().saturating_sub(width));
    let top = shown.clone().copied().fold(scale, f64::max);
    let bar = |value: &f64| {
        let step = (value / top * BARS.len() as f64) as usize;
        BARS[step.min(BARS.len() - 1)]
    };
    let bars: String = shown.map(bar).collect();
    format!("{bars:>width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(vms: &[(&str, f64)]) -> View {
        let mut view = View::default();
        for (name, cpu) in vms {
            let figures = Figures {
                cpu_percent: Some(*cpu),
                memory_used_bytes: Some(64 << 20),
                disk_read_rate: Some(1024.0),
                disk_write_rate: Some(1024.0),
                ..Figures::default()
            };
            view.0.entry((*name).to_owned()).or_default().add(figures);
        }
        view
    }

    fn lines(screen: &str) -> Vec<String> {
        let text = screen.replace("\x1b[H", "").replace("\x1b[K", "").replace("\x1b[J", "");
        text.split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn history_is_bars() {
        let values: VecDeque<f64> = [0.0, 12.5, 50.0, 99.9, 100.0].into();
        assert_eq!(sparkline(&values, 100.0, 5), "▁▂▅██");
        assert_eq!(sparkline(&values, 100.0, 2), "██");
        assert_eq!(sparkline(&values, 100.0, 7), "  ▁▂▅██");
        assert_eq!(sparkline(&values, 100.0, 0), "");
        assert_eq!(sparkline(&[400.0, 200.0].into(), 100.0, 2), "█▅");
        assert_eq!(sparkline(&[0.0].into(), 1.0, 1), "▁");
    }

    #[test]
    fn the_busiest_comes_first() {
        let drawn = lines(&view(&[("idle", 0.5), ("busy", 99.0), ("new", 0.0)]).draw(24, 120));
        assert_eq!(drawn[0], "3 VMs   CPU 99.5%   memory 192M   (q quits)");
        let names: Vec<&str> = drawn[3..].iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["busy", "idle", "new"]);
        assert!(drawn[3].contains("99.0%") && drawn[3].contains("2K/s") && drawn[3].contains('█'));
    }

    #[test]
    fn it_fits_whatever_the_size() {
        let view = view(&[("a", 1.0), ("b", 2.0), ("c", 3.0)]);
        for (rows, columns) in [(24, 80), (4, 300), (2, 10), (1, 1), (0, 0)] {
            let drawn = lines(&view.draw(rows, columns));
            assert!(drawn.len() <= rows.max(1), "{rows}x{columns}: {drawn:?}");
            assert!(drawn.iter().all(|line| line.chars().count() <= columns), "{rows}x{columns}: {drawn:?}");
        }
    }

    #[test]
    fn who_is_gone_is_forgotten_and_the_past_ends_somewhere() {
        let mut view = view(&[("a", 1.0)]);
        view.add(&Taken::new(), &Taken::new());
        assert!(view.0.is_empty());
        let mut past = Past::default();
        (0..HISTORY + 9).for_each(|_| past.add(Figures::default()));
        assert_eq!(past.cpu.len(), HISTORY);
    }
}
