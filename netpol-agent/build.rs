//! Builds the classifiers (package netpol-ebpf) for the bpf target and hands their objects to `src/object.rs`.
//!
//! The workspace stays on the pinned stable compiler: only the nested cargo started here may use unstable flags
//! (`RUSTC_BOOTSTRAP`), because `core` for the bpf target comes as source only. Without the tools this still succeeds,
//! with empty objects, so that everything that needs no kernel can be built and tested on any machine.

#[path = "../xtask/src/tools.rs"]
mod tools;

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use tools::Toolchain;

/// The binaries of netpol-ebpf, and the variable by which `src/object.rs` finds each object.
const PROGRAMS: [(&str, &str); 2] = [
    ("netpol", "NETPOL_EBPF_OBJECT"),
    ("yardstick", "YARDSTICK_EBPF_OBJECT"),
];

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    let house = Path::new(&variable("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("netpol-agent lies in the workspace")
        .to_owned();
    for source in [
        "netpol-ebpf",
        "netpol-common/src",
        "netpol-common/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", house.join(source).display());
    }
    println!(
        "cargo::rerun-if-changed={}",
        house.join("xtask/src/tools.rs").display()
    );
    println!("cargo::rerun-if-env-changed=BPF_LINKER");

    let toolchain = Toolchain::of_environment().unwrap_or_else(|error| fail(&error));
    let built = match missing(&toolchain) {
        None => {
            let linker = linker(&toolchain).expect("not missing");
            println!("cargo::rerun-if-changed={}", linker.display());
            Some(build(&house, &out, &linker))
        }
        Some(what) => {
            println!(
                "cargo::warning=the eBPF programs are not built, {what} is missing: run `cargo xtask setup`"
            );
            // A path that never exists makes cargo come back here each time, and so find the tools once they are there.
            println!(
                "cargo::rerun-if-changed={}",
                out.join("look-again").display()
            );
            None
        }
    };
    for (program, exported) in PROGRAMS {
        let object = out.join(format!("{program}.o"));
        let bytes = match &built {
            Some(folder) => {
                let path = folder.join(program);
                fs::read(&path)
                    .unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())))
            }
            None => Vec::new(),
        };
        // Written only when it differs: the file's time decides whether the agent is compiled again.
        if fs::read(&object).ok().as_ref() != Some(&bytes) {
            fs::write(&object, bytes)
                .unwrap_or_else(|error| fail(&format!("{}: {error}", object.display())));
        }
        println!("cargo::rustc-env={exported}={}", object.display());
    }
}

/// What `cargo xtask setup` would have to install first.
fn missing(toolchain: &Toolchain) -> Option<&'static str> {
    match (linker(toolchain), toolchain.has_rust_src()) {
        (None, _) => Some("bpf-linker"),
        (_, false) => Some("the toolchain's rust-src"),
        (Some(_), true) => None,
    }
}

/// The linker to use: the one `BPF_LINKER` names, else the one `cargo xtask setup` built against this compiler's LLVM,
/// else whichever is on PATH (which may lag behind the compiler's LLVM, and so comes last).
fn linker(toolchain: &Toolchain) -> Option<PathBuf> {
    if let Some(named) = env::var_os("BPF_LINKER").filter(|named| !named.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let cached = toolchain
        .linker_root()
        .map(|root| root.join("bin/bpf-linker"));
    let path = env::var_os("PATH");
    let on_path = path
        .iter()
        .flat_map(env::split_paths)
        .map(|folder| folder.join("bpf-linker"));
    cached
        .into_iter()
        .chain(on_path)
        .find(|file| file.is_file())
}

/// Compiles the programs and returns the folder that holds them.
fn build(house: &Path, out: &Path, linker: &Path) -> PathBuf {
    const TARGET: &str = "bpfel-unknown-none";
    if variable("CARGO_CFG_TARGET_ENDIAN") != "little" {
        fail("only little-endian machines are supported: no big-endian object is built");
    }
    let target_dir = target_dir(house, out);
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(house)
        .args(["build", "--package", "netpol-ebpf", "--bins", "--release"]);
    cargo
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    // The eBPF programs are linked as LLVM bitcode by bpf-linker, which optimises the whole by itself.
    cargo.args([
        "--config",
        "profile.release.lto=\"off\"",
        "--config",
        "profile.release.panic=\"abort\"",
    ]);

    // What cargo tells this script about the agent's build would mislead the build of another package for another target.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(describes_outer_build) {
            cargo.env_remove(name);
        }
    }
    let flags = [
        format!(
            "--cfg=bpf_target_arch=\"{}\"",
            variable("CARGO_CFG_TARGET_ARCH")
        ),
        "-Cdebuginfo=2".to_owned(),
        // The linker turns debug information into BTF: maps and the CO-RE relocations need it.
        "-Clink-arg=--btf".to_owned(),
    ];
    cargo
        .env("RUSTC", variable("RUSTC"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);

    let status = cargo
        .status()
        .unwrap_or_else(|error| fail(&format!("{cargo:?}: {error}")));
    if !status.success() {
        fail(&format!(
            "the eBPF programs do not build ({status}); the compiler says why above. Linker: {}",
            linker.display()
        ));
    }
    target_dir.join(TARGET).join("release")
}

/// A folder of its own (a nested cargo in the outer target directory would wait for the outer one's lock for ever), shared
/// by all profiles so that `core` is compiled once. The hash keeps clones apart that share a build directory.
fn target_dir(house: &Path, out: &Path) -> PathBuf {
    let shared = out
        .ancestors()
        .skip(1)
        .filter(|folder| folder.join("CACHEDIR.TAG").is_file())
        .last()
        .unwrap_or(out);
    let mut hasher = DefaultHasher::new();
    house.hash(&mut hasher);
    shared
        .join("ebpf")
        .join(format!("{:08x}", hasher.finish() as u32))
}

/// Variables that describe the build which runs this script; where to find registries and how to reach them is not among
/// them, and the jobserver is inherited.
fn describes_outer_build(name: &str) -> bool {
    const EXACT: [&str; 12] = [
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC_LINKER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
        "TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
    ];
    const PREFIXES: [&str; 9] = [
        "CARGO_BIN_",
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "DEP_",
    ];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn variable(name: &str) -> String {
    env::var(name)
        .unwrap_or_else(|error| fail(&format!("cargo sets {name} for build scripts: {error}")))
}

/// Ends the build with one sentence instead of a backtrace.
fn fail(sentence: &str) -> ! {
    eprintln!("error: {sentence}");
    std::process::exit(1)
}
