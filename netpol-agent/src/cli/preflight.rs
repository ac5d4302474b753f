//! What the machine has to have, checked before anything is touched.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};

/// The oldest kernel: see docs/decisions.
const KERNEL: (u32, u32) = (5, 15);
/// BTF of the running kernel.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Capabilities by number (include/uapi/linux/capability.h). What needs each of them is written in deploy/base/daemonset.yaml.
const CAPABILITIES: [(u32, &str); 4] = [
    (11, "CAP_NET_BROADCAST"),
    (12, "CAP_NET_ADMIN"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];
/// Stands for the last two of them.
const CAP_SYS_ADMIN: u32 = 21;

/// One clear sentence if the agent cannot run here.
pub(super) fn check() -> anyhow::Result<()> {
    if let Some(lacking) = privileges()? {
        tracing::warn!("{lacking}");
    }
    let release = nix::sys::utsname::uname().context("cannot ask the kernel for its version")?;
    let release = release.release().to_string_lossy();
    if version(&release).is_some_and(|version| version < KERNEL) {
        bail!(
            "this needs Linux {}.{} or newer, and the kernel is {release}",
            KERNEL.0,
            KERNEL.1
        );
    }
    if !Path::new(BTF).exists() {
        bail!("this needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF): {BTF} is missing");
    }
    Ok(())
}

/// Says which capabilities are missing, if any. No reason to stop: the kernel knows best what it asks for, and says so.
pub(super) fn privileges() -> anyhow::Result<Option<String>> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    let lacking = lacking(effective);
    Ok((!lacking.is_empty()).then(|| {
        format!(
            "this process is expected to fail, because it lacks {}: run it as root, or as deploy/ does",
            lacking.join(", ")
        )
    }))
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & 1 << bit != 0;
    CAPABILITIES
        .iter()
        .filter(|&&(bit, _)| !(has(bit) || bit > CAP_SYS_ADMIN && has(CAP_SYS_ADMIN)))
        .map(|&(_, name)| name)
        .collect()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::{lacking, version};

    #[test]
    fn capabilities() {
        let set = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1u64 << bit);
        assert!(lacking(u64::MAX).is_empty());
        assert!(lacking(set(&[11, 12, 38, 39])).is_empty());
        assert!(lacking(set(&[11, 12, 21])).is_empty());
        assert_eq!(lacking(set(&[11, 21])), ["CAP_NET_ADMIN"]);
        assert_eq!(lacking(set(&[11, 12, 39])), ["CAP_PERFMON"]);
        assert_eq!(lacking(0).len(), 4);
    }

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(version("5.4-rc1"), Some((5, 4)));
        assert!((5, 4) < super::KERNEL && (6, 1) > super::KERNEL);
    }
}
