//! `banger analyze`: where the time of a VM's last start went, as systemd-analyze(1) has it.

use banger_api::{ErrorKind, Result};
use banger_core::timeline::{KERNEL, READY, RESTORE, VMM};
use serde::Serialize;

use super::plot::plot;
use crate::Context;
use crate::args::Analyze;
use crate::output::print;

/// A stage of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    pub stage: String,
    /// Since the start began, in microseconds.
    pub begin_usec: u64,
    pub usec: u64,
}

pub async fn dispatch(context: &Context, command: Analyze) -> Result<()> {
    let (Analyze::Blame { vm } | Analyze::Plot { vm } | Analyze::Time { vm }) = &command;
    let timeline = context.bus.vms().await?.get_timeline(vm).await?;
    let spans = spans(&timeline).ok_or_else(|| {
        ErrorKind::NotReady.error(match timeline.last() {
            None => format!("{vm} was not started since the host's boot: start it first"),
            Some((stage, _)) => format!("{vm} has not come up, it is in the stage {stage}: try again later"),
        })
    })?;
    match command {
        Analyze::Blame { .. } => {
            let mut spans = spans;
            spans.sort_by_key(|span| std::cmp::Reverse(span.usec));
            context.output.rows(&spans, &["TIME", "STAGE"], |span| vec![time(span.usec), span.stage.clone()])
        }
        Analyze::Plot { vm } => {
            print(&plot(&vm, &spans));
            Ok(())
        }
        Analyze::Time { vm } => {
            let parts = Parts::of(&spans);
            if context.output.json {
                return context.output.value(&parts);
            }
            context.output.line(&parts.sentence(&vm));
            Ok(())
        }
    }
}

/// How long each stage took, in their order; nothing of a start that did not come to its end.
fn spans(timeline: &[(String, u64)]) -> Option<Vec<Span>> {
    let (_, first) = timeline.first()?;
    if timeline.last()?.0 != READY {
        return None;
    }
    let span = |pair: &[(String, u64)]| Span {
        stage: pair[0].0.clone(),
        begin_usec: pair[0].1.saturating_sub(*first),
        usec: pair[1].1.saturating_sub(pair[0].1),
    };
    Some(timeline.windows(2).map(span).collect())
}

/// Whose time it was, in microseconds.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Parts {
    /// Up to the guest's kernel: services and VMM.
    host_usec: u64,
    kernel_usec: u64,
    /// From the agent on.
    agent_usec: u64,
    /// Instead of kernel and agent.
    restore_usec: u64,
    total_usec: u64,
}

impl Parts {
    fn of(spans: &[Span]) -> Self {
        let mut parts = Self::default();
        let on_host = spans.iter().position(|span| span.stage == VMM).map_or(0, |vmm| vmm + 1);
        for (index, span) in spans.iter().enumerate() {
            let part = match span.stage.as_str() {
                KERNEL => &mut parts.kernel_usec,
                RESTORE => &mut parts.restore_usec,
                _ if index < on_host => &mut parts.host_usec,
                _ => &mut parts.agent_usec,
            };
            *part += span.usec;
            parts.total_usec += span.usec;
        }
        parts
    }

    fn sentence(&self, vm: &str) -> String {
        let parts = [
            ("host", self.host_usec),
            ("kernel", self.kernel_usec),
            ("agent", self.agent_usec),
            ("restore", self.restore_usec),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|part| part.1 > 0)
            .map(|(name, usec)| format!("{} ({name})", time(*usec)))
            .collect();
        format!("{vm} was ready after {} = {}", parts.join(" + "), time(self.total_usec))
    }
}

/// As systemd-analyze has it: `1.234s`, `56ms`, `789us`.
pub fn time(usec: u64) -> String {
    match usec {
        0..1000 => format!("{usec}us"),
        1000..1_000_000 => format!("{}ms", usec / 1000),
        60_000_000.. => format!("{}min {:.3}s", usec / 60_000_000, (usec % 60_000_000) as f64 / 1e6),
        _ => format!("{:.3}s", usec as f64 / 1e6),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A start as it is in the lab.
    pub fn start() -> Vec<Span> {
        let stages = [
            ("request", 0),
            ("unit", 61_000),
            ("prepare", 74_000),
            ("network", 98_000),
            ("helpers", 121_000),
            ("vmm", 142_000),
            ("kernel", 530_000),
            ("agent", 2_950_000),
            ("disks", 2_990_500),
            ("address", 3_200_000),
            ("init", 3_260_000),
            ("ready", 3_300_000),
        ];
        let begin = 1_790_000_000_000_000;
        spans(&stages.map(|(stage, usec)| (stage.to_owned(), begin + usec))).expect("came up")
    }

    #[test]
    fn a_stage_lasts_until_the_next() {
        let spans = start();
        assert_eq!(spans.len(), 11);
        assert_eq!(spans[7], Span { stage: "agent".into(), begin_usec: 2_950_000, usec: 40_500 });
    }

    #[test]
    fn parts_are_the_whole() {
        let parts = Parts::of(&start());
        assert_eq!(
            parts.sentence("web"),
            "web was ready after 530ms (host) + 2.420s (kernel) + 350ms (agent) = 3.300s"
        );
        let sum = parts.host_usec + parts.kernel_usec + parts.agent_usec;
        assert_eq!(sum, parts.total_usec);
    }

    #[test]
    fn a_restored_vm_has_no_kernel_to_wait_for() {
        let stages = [("unit", 5), ("vmm", 1005), ("restore", 2005), ("ready", 9005)];
        let spans = spans(&stages.map(|(stage, usec)| (stage.to_owned(), usec))).expect("came up");
        assert_eq!(Parts::of(&spans).sentence("web"), "web was ready after 2ms (host) + 7ms (restore) = 9ms");
    }

    #[test]
    fn who_is_not_up_has_no_times_yet() {
        assert_eq!(spans(&[]), None);
        assert_eq!(spans(&[("unit".into(), 1), ("vmm".into(), 2)]), None);
    }

    #[test]
    fn times_are_short() {
        let cases = [
            (0, "0us"),
            (999, "999us"),
            (56_700, "56ms"),
            (1_234_500, "1.234s"),
            (61_500_000, "1min 1.500s"),
        ];
        for (usec, text) in cases {
            assert_eq!(time(usec), text);
        }
    }
}
