//! What the machine has to have, checked before anything is touched.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};

/// The oldest kernel: see docs/decisions.
const KERNEL: (u32, u32) = (5, 15);
/// BTF of the running kernel.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Capabilities by number (include/uapi/linux/capability.h) and what needs them.
const CAPABILITIES: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (39, "CAP_BPF"),
];

/// One clear sentence if the agent cannot run here.
pub(super) fn check() -> anyhow::Result<()> {
    privileges()?;
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

/// As much of it as `cleanup` needs.
pub(super) fn privileges() -> anyhow::Result<()> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective & 1 << bit == 0)
        .map(|&(_, name)| name)
        .collect();
    if !lacking.is_empty() {
        bail!("this has to run as root: it lacks {}", lacking.join(", "));
    }
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(version("5.4-rc1"), Some((5, 4)));
        assert!((5, 4) < super::KERNEL && (6, 1) > super::KERNEL);
    }
}
