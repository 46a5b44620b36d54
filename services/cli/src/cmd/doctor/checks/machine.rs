//! What VMs run on.

use banger_api::image::KernelRow;
use banger_api::vm::Host;

use super::super::check::Finding;
use super::super::facts::Machine;

/// Whether the CPU can run guests, by its flags; architectures without such flags need none.
fn virtualises(machine: &Machine) -> bool {
    !cfg!(target_arch = "x86_64") || has(machine, "vmx") || has(machine, "svm")
}

fn has(machine: &Machine, flag: &str) -> bool {
    machine.flags.iter().any(|known| known == flag)
}

pub fn cpu(machine: &Machine) -> Vec<Finding> {
    if virtualises(machine) {
        return vec![Finding::ok("the CPU can run guests")];
    }
    let remedy = if has(machine, "hypervisor") {
        "this is a VM itself: have its hypervisor offer nested virtualisation (of KVM: nested=1 of kvm_intel or kvm_amd, \
         CPU model host-passthrough)"
    } else {
        "switch on VT-x (Intel) or SVM (AMD) in the firmware's setup"
    };
    vec![Finding::warn("the CPU has neither vmx nor svm, so guests are emulated", remedy)]
}

pub fn kvm(machine: &Machine) -> Vec<Finding> {
    let module = if has(machine, "svm") { "kvm_amd" } else { "kvm_intel" };
    vec![match machine.kvm {
        _ if !virtualises(machine) => Finding::ok("not used: guests are emulated"),
        None => Finding::warn("there is no /dev/kvm, so guests are emulated", format!("modprobe {module}")),
        Some(node) => {
            let by_group = Some(node.gid) == machine.kvm_group && node.mode & 0o060 == 0o060;
            if by_group || node.mode & 0o006 == 0o006 {
                Finding::ok("VMs can open /dev/kvm")
            } else {
                let found = format!("VMs cannot open /dev/kvm (mode {:04o}, group {})", node.mode, node.gid);
                Finding::fail(found, "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm")
            }
        }
    }]
}

pub fn tun(machine: &Machine) -> Vec<Finding> {
    vec![match machine.tun {
        None => Finding::fail("there is no /dev/net/tun, so VMs have no network", "modprobe tun"),
        Some(node) if node.mode & 0o006 == 0o006 => Finding::ok("VMs can open /dev/net/tun"),
        Some(node) => {
            let found = format!("VMs cannot open /dev/net/tun (mode {:04o})", node.mode);
            Finding::fail(found, "chmod 0666 /dev/net/tun")
        }
    }]
}

/// What is there of the VMMs, in the words of vmd, which starts them.
pub fn vmm(host: &Host) -> Vec<Finding> {
    let shown = |name: &str, path: &Option<String>, version: &Option<String>| {
        let version = version.as_deref().unwrap_or("of an unknown version");
        path.as_ref().map(|path| format!("{name} {version} ({path})"))
    };
    let known = [
        shown("Firecracker", &host.firecracker, &host.firecracker_version),
        shown("QEMU", &host.qemu, &host.qemu_version),
    ];
    let known: Vec<String> = known.into_iter().flatten().collect();
    if let Some(problem) = &host.problem {
        let (what, remedy) = problem.split_once(": ").unwrap_or((problem, ""));
        return vec![Finding::fail(format!("no VM can run: {what}"), remedy)];
    }
    let how = if host.kvm { "with KVM" } else { "emulated" };
    let mut findings =
        vec![Finding::ok(format!("VMs run with {}, {how}; there is {}", host.vmm, known.join(", ")))];
    if host.qemu.is_some() && host.vhost_device_vsock.is_none() {
        findings.push(Finding::warn(
            "VMs cannot run with QEMU, which needs vhost-device-vsock to reach guests",
            "install vhost-device-vsock, or cargo install vhost-device-vsock, into /usr/bin or /usr/local/bin",
        ));
    }
    findings
}

pub fn kernel(kernels: &[KernelRow]) -> Vec<Finding> {
    let default = kernels.iter().find(|(.., is_default, _, _)| *is_default);
    vec![match default {
        Some((name, ..)) => Finding::ok(format!("VMs that name no kernel run {name}")),
        None if kernels.is_empty() => Finding::warn(
            "there is no kernel for guests; `banger run` imports the host's",
            "banger kernel import",
        ),
        None => Finding::warn("no kernel is the default", "banger kernel default NAME"),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::super::check::Verdict::{self, Fail, Ok, Warn};
    use super::super::super::facts::Owned;
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
    }

    fn machine(flags: &str, kvm: Option<Owned>) -> Machine {
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        Machine { flags, kvm, kvm_group: Some(104), ..Machine::default() }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn kvm_is_for_cpus_that_can() {
        let node = |gid, mode| Some(Owned { uid: 0, gid, mode });
        for (flags, node, of_cpu, of_kvm) in [
            ("fpu hypervisor", node(104, 0o660), Warn, Ok),
            ("fpu vmx", node(104, 0o660), Ok, Ok),
            ("fpu svm", node(0, 0o666), Ok, Ok),
            ("fpu svm", node(0, 0o660), Ok, Fail),
            ("fpu vmx", node(104, 0o600), Ok, Fail),
            ("fpu vmx", None, Ok, Warn),
        ] {
            let machine = machine(flags, node);
            assert_eq!((verdicts(&cpu(&machine)), verdicts(&kvm(&machine))), (vec![of_cpu], vec![of_kvm]));
        }
        assert_eq!(kvm(&machine("svm", None))[0].remedy.to_string(), "modprobe kvm_amd");
        assert!(cpu(&machine("hypervisor", None))[0].remedy.to_string().contains("nested"));
        assert!(cpu(&machine("", None))[0].remedy.to_string().contains("firmware"));
    }

    #[test]
    fn taps_are_opened_by_everybody() {
        let machine = |tun| Machine { tun, ..Machine::default() };
        let node = |mode| Some(Owned { uid: 0, gid: 0, mode });
        for (node, verdict) in [(node(0o666), Ok), (node(0o600), Fail), (None, Fail)] {
            assert_eq!(verdicts(&tun(&machine(node))), [verdict]);
        }
    }

    #[test]
    fn what_vmd_misses_is_told() {
        let qemu = Host {
            vmm: "qemu".into(),
            qemu: Some("/usr/bin/qemu".into()),
            qemu_version: Some("7.2.22".into()),
            vhost_device_vsock: Some("/usr/bin/vhost-device-vsock".into()),
            ..Host::default()
        };
        assert_eq!(verdicts(&vmm(&qemu)), [Ok]);
        assert!(vmm(&qemu)[0].what.contains("QEMU 7.2.22 (/usr/bin/qemu)"));
        let deaf = Host { vmm: "firecracker".into(), vhost_device_vsock: None, ..qemu };
        assert_eq!(verdicts(&vmm(&deaf)), [Ok, Warn]);
        let none = Host { problem: Some("no VMM is installed: install QEMU".into()), ..Host::default() };
        let found = vmm(&none);
        assert_eq!((verdicts(&found), found[0].remedy.to_string()), (vec![Fail], "install QEMU".into()));
    }
}
