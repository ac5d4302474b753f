//! Installs what building the eBPF programs needs and a plain Rust toolchain lacks.
//!
//! Nothing is taken from a system-wide LLVM: bpf-linker is built against the libLLVM that rustc itself loads, so the two
//! read and write the same bitcode by construction.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    shell::{cargo, house, on_path, run, say, works},
    tools::{self, LINKER_VERSION, Toolchain},
};

/// Programs that building needs, and the Debian package that brings each.
const BUILDING: [(&str, &str); 2] = [("cc", "gcc"), ("c++", "g++")];

/// Those that testing needs beside them.
const TESTING: [(&str, &str); 3] = [
    // What the lab's nodes write Flannel's and kube-proxy's rules with, and what ends stale connections.
    ("nft", "nftables"),
    ("iptables-restore", "iptables"),
    ("conntrack", "conntrack"),
];

/// Makes sure that everything is there; does nothing, quickly, when it is.
pub fn setup() -> Result<()> {
    debian_packages(BUILDING.iter().chain(&TESTING))?;
    ebpf(&toolchain()?)
}

/// What a static program for `target` needs: C parts (cryptography, the allocator) are compiled against musl.
pub fn setup_static(target: &str) -> Result<()> {
    let toolchain = toolchain()?;
    debian_packages(BUILDING.iter().chain(&[("musl-gcc", "musl-tools")]))?;
    rust_std(&toolchain, target)?;
    ebpf(&toolchain)
}

fn toolchain() -> Result<Toolchain> {
    Toolchain::of_environment().map_err(|error| anyhow!(error))
}

fn ebpf(toolchain: &Toolchain) -> Result<()> {
    rust_src(toolchain)?;
    linker(toolchain)
}

/// Rust's library, compiled for another target.
fn rust_std(toolchain: &Toolchain, target: &str) -> Result<()> {
    let there = || {
        let folder = toolchain.sysroot.join("lib/rustlib").join(target);
        folder.join("lib").is_dir()
    };
    if there() {
        return Ok(());
    }
    say(&format!(
        "setup: adding {target} to Rust {}",
        toolchain.version
    ));
    let mut rustup = Command::new("rustup");
    let rustup = run(rustup
        .current_dir(house())
        .args(["target", "add", target])
        .env("RUST_BACKTRACE", "0"));
    if rustup.is_err() || !there() {
        bail!(
            "Rust {} has no library for {target}, and `rustup target add {target}` did not bring it: install it with \
             whatever installed Rust, then run this again",
            toolchain.version
        );
    }
    Ok(())
}

fn debian_packages<'a>(programs: impl Iterator<Item = &'a (&'a str, &'a str)>) -> Result<()> {
    let missing = programs.filter(|(program, _)| on_path(program).is_none());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    install_packages(&packages)
}

/// Installs Debian's packages of these names, where the system has apt-get.
pub fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if on_path("apt-get").is_none() {
        bail!(
            "install these packages (Debian's names) with your system's package manager, then run this again: {list}"
        );
    }
    say(&format!("setup: installing {list} with apt-get"));
    run(apt_get().arg("update"))?;
    run(apt_get()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-o", "DPkg::Lock::Timeout=120"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The source of `core`, which no toolchain ships compiled for the bpf target.
fn rust_src(toolchain: &Toolchain) -> Result<()> {
    if toolchain.has_rust_src() {
        return Ok(());
    }
    say(&format!(
        "setup: adding rust-src to Rust {}",
        toolchain.version
    ));
    let mut rustup = Command::new("rustup");
    rustup
        .current_dir(house())
        .args(["component", "add", "rust-src"]);
    // Its refusal is one line; a backtrace of rustup helps nobody.
    let rustup = run(rustup.env("RUST_BACKTRACE", "0"));
    if rustup.is_ok() && toolchain.has_rust_src() {
        return Ok(());
    }
    say("setup: rustup could not; looking for Debian's rust-src of the same version");
    match debian_rust_src(toolchain) {
        Ok(()) if toolchain.has_rust_src() => Ok(()),
        Ok(()) => bail!(
            "{} is there and lacks library/core or library/Cargo.lock",
            toolchain.rust_src().display()
        ),
        Err(error) => bail!(
            "the source of Rust's core library is missing: `rustup component add rust-src` did not work, and neither did \
             Debian's package ({error:#}); install rust-src for Rust {} by hand, then run this again",
            toolchain.version
        ),
    }
}

/// Unpacks Debian's package beside our other tools, without installing it (it conflicts with rustup), and links it to
/// where cargo looks.
fn debian_rust_src(toolchain: &Toolchain) -> Result<()> {
    let version = &toolchain.version;
    let known = debian_versions()?;
    let wanted = known
        .iter()
        .find(|known| known.split(['+', '-', '~']).next() == Some(version));
    let Some(wanted) = wanted else {
        bail!(
            "no configured suite has version {version}, only {}",
            if known.is_empty() {
                "none".into()
            } else {
                known.join(", ")
            }
        );
    };
    let folder = tools_folder()?.join(format!("rust-src-{version}"));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    run(apt_get()
        .current_dir(&folder)
        .arg("download")
        .arg(format!("rust-src={wanted}")))?;
    let package = fs::read_dir(&folder)?
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|file| file.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(&package)
        .arg(&folder))?;
    fs::remove_file(package)?;
    link(
        &folder.join(format!("usr/src/rustc-{version}")),
        &toolchain.rust_src(),
    )
}

/// Every version of rust-src in the configured suites, as `apt-cache madison` lists them: `rust-src | 1.95.0+dfsg1-1 | …`.
fn debian_versions() -> Result<Vec<String>> {
    run(apt_get().arg("update"))?;
    let output = Command::new("apt-cache")
        .args(["madison", "rust-src"])
        .output()
        .context("cannot start apt-cache")?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(lines
        .lines()
        .filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned()))
        .collect())
}

fn linker(toolchain: &Toolchain) -> Result<()> {
    if let Some(named) = env::var_os("BPF_LINKER").filter(|named| !named.is_empty()) {
        if works(Command::new(&named).arg("--version")) {
            return Ok(());
        }
        bail!(
            "BPF_LINKER names {}, which does not run; unset it to have one built here",
            named.display()
        );
    }
    let root = toolchain.linker_root().with_context(no_cache)?;
    // Asked for its version because it may no longer load: its libLLVM went if the toolchain was removed or moved.
    if works(Command::new(root.join("bin/bpf-linker")).arg("--version")) {
        return Ok(());
    }
    say(&format!(
        "setup: building bpf-linker {LINKER_VERSION} for Rust {}, about a minute, once",
        toolchain.version
    ));
    let llvm = lib_llvm(toolchain)?;
    let prefix = tools_folder()?.join(format!("llvm-of-rustc-{}", toolchain.version));
    link(&llvm, &prefix.join("lib/libLLVM.so"))?;

    let mut install = cargo([
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--locked",
        "--force",
    ]);
    install
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(&root);
    // Settings for building this workspace are not meant for a tool, and a shared target directory would keep its objects.
    for variable in [
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_BUILD_BUILD_DIR",
        "CARGO_BUILD_TARGET",
    ] {
        install.env_remove(variable);
    }
    install
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("LLVM_PREFIX", &prefix);
    install.env(
        "RUSTFLAGS",
        format!(
            "-Clink-arg=-Wl,-rpath,{}",
            toolchain.sysroot.join("lib").display()
        ),
    );
    // Only so that cargo does not advise to put the folder on PATH: the build script finds it without.
    let path = env::var_os("PATH").unwrap_or_default();
    install.env(
        "PATH",
        env::join_paths(env::split_paths(&path).chain([root.join("bin")]))?,
    );
    run(&mut install)?;
    say(&format!("setup: bpf-linker is in {}", root.display()));
    Ok(())
}

/// rustc's own libLLVM: the library itself, not the linker script of a few bytes that names it.
fn lib_llvm(toolchain: &Toolchain) -> Result<PathBuf> {
    let folder = toolchain.sysroot.join("lib");
    let is_library = |path: &Path| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.starts_with("libLLVM") && fs::metadata(path).is_ok_and(|file| file.len() > 1 << 20)
    };
    let files =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    files.filter_map(|file| Some(file.ok()?.path())).find(|path| is_library(path)).with_context(|| {
        format!(
            "no libLLVM in {}: a Rust toolchain from rustup has one; with another, install bpf-linker {LINKER_VERSION} \
             yourself and name it in BPF_LINKER",
            folder.display()
        )
    })
}

/// Where the tools are kept.
pub fn tools_folder() -> Result<PathBuf> {
    tools::cache().with_context(no_cache)
}

fn no_cache() -> &'static str {
    "neither XDG_CACHE_HOME nor HOME is set, so there is no place to keep the tools"
}

/// Points `name` at `target`, whatever it pointed at before.
pub fn link(target: &Path, name: &Path) -> Result<()> {
    let folder = name.parent().expect("a link lies in a folder");
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if name.is_symlink() {
        fs::remove_file(name).with_context(|| format!("cannot replace {}", name.display()))?;
    }
    symlink(target, name)
        .with_context(|| format!("cannot link {} to {}", name.display(), target.display()))
}
