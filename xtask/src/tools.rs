//! Where the tools that build the eBPF programs are kept.
//!
//! Two programs must agree on this: `cargo xtask setup`, which installs the tools, and the build script of netpol-agent,
//! which includes this file and uses them. Only std here, so that the build script stays quick.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

/// The bpf-linker that links our programs. A new LLVM in the pinned toolchain may need a new one.
pub const LINKER_VERSION: &str = "0.13.0";

/// The compiler in use: its sysroot holds libLLVM, and the source of `core` once rust-src is installed.
pub struct Toolchain {
    /// As rustc prints it, for example `1.95.0`.
    pub version: String,
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// Asks `rustc` (or the compiler that `RUSTC` names) what it is.
    pub fn of_environment() -> Result<Self, String> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        let ask = |what: &[&str]| {
            let shown = format!("{} {}", rustc.display(), what.join(" "));
            let output = Command::new(&rustc)
                .args(what)
                .output()
                .map_err(|error| format!("{shown}: {error}"))?;
            if output.status.success() {
                Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
            } else {
                Err(format!(
                    "{shown}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ))
            }
        };
        let verbose = ask(&["--version", "--verbose"])?;
        let version = verbose
            .lines()
            .find_map(|line| line.strip_prefix("release: "))
            .ok_or_else(|| format!("rustc --version --verbose names no release:\n{verbose}"))?;
        Ok(Self {
            version: version.to_owned(),
            sysroot: PathBuf::from(ask(&["--print", "sysroot"])?),
        })
    }

    /// The source of the standard library, where rustc and cargo look for it.
    pub fn rust_src(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    /// Whether `-Z build-std=core` finds what it compiles.
    pub fn has_rust_src(&self) -> bool {
        self.rust_src().join("library/core/src/lib.rs").is_file()
            && self.rust_src().join("library/Cargo.lock").is_file()
    }

    /// The folder that `cargo install --root` fills with the linker. It names both versions because the linker loads the
    /// libLLVM of exactly this compiler.
    pub fn linker_root(&self) -> Option<PathBuf> {
        Some(cache()?.join(format!(
            "bpf-linker-{LINKER_VERSION}-rustc-{}",
            self.version
        )))
    }
}

/// What outlives a `cargo clean`: `$XDG_CACHE_HOME/netpol-agent`, or `~/.cache/netpol-agent`.
pub fn cache() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    Some(
        set("XDG_CACHE_HOME")
            .or_else(|| Some(set("HOME")?.join(".cache")))?
            .join("netpol-agent"),
    )
}
