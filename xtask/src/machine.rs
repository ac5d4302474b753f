//! What this machine must offer before anything that touches the kernel is worth compiling for.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// The coarse clock helper came with 5.11; 5.15 is the first long-term kernel that has everything the programs use.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Refuses, with one sentence, a machine on which the lab and the classifiers cannot run.
pub fn check() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")
        .context("this needs Linux: no /proc/self/status")?;
    if effective_uid(&status) != Some(0) {
        bail!(
            "this needs root, because it makes network namespaces and loads eBPF programs: run it again as root"
        );
    }
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("which kernel is this?")?;
    let (major, minor) = OLDEST_KERNEL;
    if version(&release).is_some_and(|found| found < OLDEST_KERNEL) {
        bail!(
            "this kernel is {}, and netpol-agent needs Linux {major}.{minor} or newer",
            release.trim()
        );
    }
    if !Path::new("/sys/kernel/btf/vmlinux").is_file() {
        bail!(
            "this kernel describes no types (no /sys/kernel/btf/vmlinux): one built with CONFIG_DEBUG_INFO_BTF=y is needed"
        );
    }
    Ok(())
}

/// The second number of `Uid: real effective saved filesystem`.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// `6.1.0-37-amd64` is (6, 1). A release that does not begin with two numbers is not judged.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_as_numbers() {
        assert_eq!(version("6.1.0-37-amd64\n"), Some((6, 1)));
        assert_eq!(version("5.15+"), Some((5, 15)));
        assert_eq!(version("next"), None);
        assert!(version("5.4.0-1").unwrap() < OLDEST_KERNEL);
    }

    #[test]
    fn the_effective_user_counts() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Uid:\t0\t1000\t0\t0\n"), Some(1000));
    }
}
