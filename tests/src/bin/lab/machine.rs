//! What the machine must have.

use std::path::Path;

use anyhow::{Result, bail};
use nix::{sys::utsname::uname, unistd::Uid};

/// The first long-term kernel with everything that the programs use.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Fails with one sentence when the lab and the agent cannot run here.
pub fn check() -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("the lab needs root, for network namespaces and eBPF: run it again as root");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "this kernel describes no types (no /sys/kernel/btf/vmlinux): boot one built with CONFIG_DEBUG_INFO_BTF=y"
        );
    }
    let release = uname()?.release().to_string_lossy().into_owned();
    if version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        bail!(
            "this kernel is {release}, and the agent needs {}.{} or newer",
            OLDEST_KERNEL.0,
            OLDEST_KERNEL.1
        );
    }
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_compare_by_number() {
        assert_eq!(version("6.18.0-amd64"), Some((6, 18)));
        assert!(version("5.4.0-1").is_some_and(|version| version < OLDEST_KERNEL));
        assert!(version("5.15+").is_some_and(|version| version >= OLDEST_KERNEL));
    }
}
