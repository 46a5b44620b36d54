//! The guest's figures, from the files of proc(5).

use banger_api::agent::{DiskCounters, Filesystem, NetworkCounters, Stats};
use nix::sys::statvfs::statvfs;
use nix::unistd::{SysconfVar, sysconf};

use crate::disks::Disks;
use crate::sys;

const LIMIT: u64 = 1 << 20;

/// diskstats counts in these, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

pub fn collect(disks: &Disks) -> Stats {
    let mut stats = Stats {
        load: load(&read("/proc/loadavg")),
        uptime_usec: uptime_usec(),
        processes: sys::processes().count() as u32,
        filesystems: disks.mounted().into_iter().filter_map(filesystem).collect(),
        disks: disk_counters(&read("/proc/diskstats")),
        networks: network_counters(&read("/proc/net/dev")),
        ..Stats::default()
    };
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| ticks.try_into().ok());
    set_cpu(&mut stats, &read("/proc/stat"), ticks.unwrap_or(100));
    set_memory(&mut stats, &read("/proc/meminfo"));
    stats.memory_balloon = balloon(&read("/proc/vmstat"));
    stats
}

/// A file of the kernel's; nothing if there is none.
fn read(path: &str) -> String {
    String::from_utf8_lossy(&sys::read_bounded(path, LIMIT).unwrap_or_default()).into_owned()
}

/// The guest's memory in bytes; 0 if the kernel does not say.
pub fn memory_total() -> u64 {
    let mut stats = Stats::default();
    set_memory(&mut stats, &read("/proc/meminfo"));
    stats.memory_total
}

pub fn uptime_usec() -> u64 {
    sys::uptime().as_micros() as u64
}

fn filesystem((mount_point, device): (String, String)) -> Option<Filesystem> {
    let stat = statvfs(mount_point.as_str()).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    Some(Filesystem {
        mount_point,
        device,
        total: bytes(stat.blocks()),
        available: bytes(stat.blocks_available()),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

fn load(loadavg: &str) -> (f64, f64, f64) {
    let mut fields = loadavg.split(' ').map(|field| field.parse().unwrap_or(0.0));
    let mut next = || fields.next().unwrap_or(0.0);
    (next(), next(), next())
}

fn set_cpu(stats: &mut Stats, stat: &str, ticks_per_second: u64) {
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else { return };
    let times: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let usec = |fields: &[usize]| {
        let ticks: u64 = fields.iter().filter_map(|&field| times.get(field)).sum();
        ticks * 1_000_000 / ticks_per_second
    };
    // user nice system idle iowait irq softirq steal
    stats.cpu_user_usec = usec(&[0, 1]);
    stats.cpu_system_usec = usec(&[2, 5, 6]);
    stats.cpu_idle_usec = usec(&[3]);
    stats.cpu_iowait_usec = usec(&[4]);
    stats.cpu_steal_usec = usec(&[7]);
}

fn set_memory(stats: &mut Stats, meminfo: &str) {
    for line in meminfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let field = match key {
            "MemTotal" => &mut stats.memory_total,
            "MemAvailable" => &mut stats.memory_available,
            "MemFree" => &mut stats.memory_free,
            "Cached" => &mut stats.memory_cached,
            "SwapTotal" => &mut stats.swap_total,
            "SwapFree" => &mut stats.swap_free,
            _ => continue,
        };
        let kib = value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        *field = 1024u64.saturating_mul(kib);
    }
}

/// Bytes that the balloon holds. The kernel counts pages of 4 KiB, whatever its own are.
fn balloon(vmstat: &str) -> Option<u64> {
    let count = |name: &str| {
        let value = vmstat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value?.parse::<u64>().ok()
    };
    Some(count("balloon_inflate")?.saturating_sub(count("balloon_deflate")?).saturating_mul(4096))
}

/// The virtio disks, without their partitions.
fn disk_counters(diskstats: &str) -> Vec<DiskCounters> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let device = *fields.get(2)?;
        let disk = device.strip_prefix("vd")?;
        let number = |field: usize| fields.get(field).and_then(|field| field.parse().ok()).unwrap_or(0u64);
        disk.bytes().all(|letter| letter.is_ascii_lowercase()).then(|| DiskCounters {
            device: device.into(),
            reads: number(3),
            read_bytes: number(5) * SECTOR,
            writes: number(7),
            written_bytes: number(9) * SECTOR,
            discarded_bytes: number(16) * SECTOR,
        })
    };
    diskstats.lines().filter_map(parse).collect()
}

/// All interfaces but the loopback.
fn network_counters(dev: &str) -> Vec<NetworkCounters> {
    let parse = |line: &str| {
        let (interface, counters) = line.split_once(':')?;
        let interface = interface.trim();
        let counters: Vec<u64> =
            counters.split_whitespace().map_while(|counter| counter.parse().ok()).collect();
        (interface != "lo" && counters.len() >= 10).then(|| NetworkCounters {
            interface: interface.into(),
            received_bytes: counters[0],
            received_packets: counters[1],
            sent_bytes: counters[8],
            sent_packets: counters[9],
        })
    };
    dev.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads() {
        assert_eq!(load("0.52 0.58 1.00 2/345 6789\n"), (0.52, 0.58, 1.0));
        assert_eq!(load(""), (0.0, 0.0, 0.0));
    }

    #[test]
    fn balloons_are_what_was_blown_in_and_not_let_out() {
        let vmstat = "nr_free_pages 7\nballoon_inflate 300\nballoon_deflate 100\nballoon_migrate 5\n";
        assert_eq!(balloon(vmstat), Some(200 * 4096));
        assert_eq!(balloon("nr_free_pages 7\n"), None);
    }

    #[test]
    fn cpu_times() {
        let mut stats = Stats::default();
        set_cpu(&mut stats, "cpu  100 20 30 4000 50 1 2 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5\n", 100);
        assert_eq!(
            (stats.cpu_user_usec, stats.cpu_system_usec, stats.cpu_idle_usec),
            (1_200_000, 330_000, 40_000_000)
        );
        assert_eq!((stats.cpu_iowait_usec, stats.cpu_steal_usec), (500_000, 70_000));
        // Kernels from before some of the fields.
        set_cpu(&mut stats, "cpu  1 0 0 2\n", 100);
        assert_eq!((stats.cpu_idle_usec, stats.cpu_steal_usec), (20_000, 0));
    }

    #[test]
    fn memory() {
        let mut stats = Stats::default();
        set_memory(
            &mut stats,
            "MemTotal:         491520 kB\nMemFree:          400000 kB\nMemAvailable:     450000 kB\n\
             Buffers:            1000 kB\nCached:            20000 kB\nSwapCached:            9 kB\n\
             SwapTotal:             0 kB\nSwapFree:              0 kB\nHugePages_Total:       0\n",
        );
        assert_eq!(stats.memory_total, 491_520 * 1024);
        assert_eq!(stats.memory_free, 400_000 * 1024);
        assert_eq!(stats.memory_available, 450_000 * 1024);
        assert_eq!(stats.memory_cached, 20_000 * 1024);
        assert_eq!((stats.swap_total, stats.swap_free), (0, 0));
    }

    #[test]
    fn disks() {
        let counters = disk_counters(
            "   7       0 loop0 1 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n\
             \u{20}254       0 vda 300 0 2000 10 5 0 40 1 0 12 12 6 0 8 0 0 0\n\
             \u{20}254       1 vda1 1 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n\
             \u{20}254      16 vdb 1 0 2 0 3 0 4 0 0 0 0\n",
        );
        let disk = |device: &str, numbers: [u64; 5]| DiskCounters {
            device: device.into(),
            reads: numbers[0],
            read_bytes: numbers[1],
            writes: numbers[2],
            written_bytes: numbers[3],
            discarded_bytes: numbers[4],
        };
        assert_eq!(
            counters,
            [disk("vda", [300, 2000 * 512, 5, 40 * 512, 8 * 512]), disk("vdb", [1, 2 * 512, 3, 4 * 512, 0])]
        );
    }

    #[test]
    fn networks() {
        let counters = network_counters(
            "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\n  \
             eth0:1234567   890    0    0    0     0          0         0     4321      56    0    0    0     0       0          0\n",
        );
        assert_eq!(
            counters,
            [NetworkCounters {
                interface: "eth0".into(),
                received_bytes: 1_234_567,
                received_packets: 890,
                sent_bytes: 4321,
                sent_packets: 56,
            }]
        );
    }
}
