//! A Go that is new enough for the control plane of the tests.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{install_packages, tools_folder},
    shell::{on_path_all, output, say},
};

/// What the `go` lines of `tests/control-plane/*/go.mod` ask for, and what is fetched where there is an older one only.
const WANTED: Version = Version(1, 25, 0);

/// The first Go that can fetch a module outside one: that is how an older Go gets a newer one.
const ABLE_TO_FETCH: Version = Version(1, 16, 0);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Version(u32, u32, u32);

impl Version {
    /// `go version go1.26.8 linux/amd64`; parts that are no numbers (`1.27-devel`, `1.25rc1`) count as 0.
    fn parse(said: &str) -> Option<Self> {
        let version = said
            .split_whitespace()
            .find_map(|word| word.strip_prefix("go1."))?;
        let mut numbers = version.split('.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse().ok()
        });
        Some(Self(
            1,
            numbers.next()??,
            numbers.next().flatten().unwrap_or(0),
        ))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The `go` to build with: one that is installed and new enough; else the one that an older Go fetches through the module
/// proxy; where there is none at all, the system's package manager brings the older one.
pub fn find() -> Result<PathBuf> {
    if let Some(go) = new_enough()? {
        return Ok(go);
    }
    if best_installed().is_none() {
        say("setup: the control plane of the tests is built from Go modules, and there is no Go");
        install_packages(&["golang-go"]).with_context(what_to_do)?;
        if let Some(go) = new_enough()? {
            return Ok(go);
        }
    }
    let Some((go, version)) = best_installed() else {
        bail!("there is no Go; {}", what_to_do());
    };
    if version < ABLE_TO_FETCH {
        bail!(
            "{} is Go {version}, which is too old even to fetch a newer one; {}",
            go.display(),
            what_to_do()
        );
    }
    say(&format!("setup: fetching Go {WANTED}, with Go {version}"));
    fetch(&go).with_context(what_to_do)
}

/// What a person can do whom none of this helps.
fn what_to_do() -> String {
    format!(
        "install Go {WANTED} or newer and put it on PATH, name a folder with ready programs (etcd, kube-apiserver) in {}, \
         or leave these tests out with `cargo xtask test --without-control-plane`",
        super::control_plane::VARIABLE
    )
}

fn new_enough() -> Result<Option<PathBuf>> {
    let fetched = fetched_go()?;
    let installed = best_installed().filter(|(_, version)| *version >= WANTED);
    Ok(installed
        .map(|(go, _)| go)
        .or_else(|| version_of(&fetched).map(|_| fetched)))
}

/// The newest of the installed ones.
fn best_installed() -> Option<(PathBuf, Version)> {
    let usual = Path::new("/usr/local/go/bin/go");
    on_path_all("go")
        .into_iter()
        .chain([usual.to_owned()])
        .filter_map(|go| version_of(&go).map(|version| (go, version)))
        .max_by_key(|(_, version)| *version)
}

/// `None` if it does not run.
fn version_of(go: &Path) -> Option<Version> {
    // Its own version, and not that of one that it would fetch for the module of the current directory.
    let said = output(Command::new(go).arg("version").env("GOTOOLCHAIN", "local"));
    Version::parse(&said.ok()?)
}

/// Where [`fetch`] puts `go`.
fn fetched_go() -> Result<PathBuf> {
    let folder = tools_folder()?.join(format!("go-{WANTED}"));
    Ok(folder.join("bin/go"))
}

/// Toolchains are modules, too: `golang.org/toolchain@v0.0.1-go1.25.0.linux-amd64`.
fn fetch(go: &Path) -> Result<PathBuf> {
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{WANTED}.linux-{architecture}");
    let tools = tools_folder()?;
    fs::create_dir_all(&tools)?;
    let mut download = Command::new(go);
    download
        .args(["mod", "download", "-json", &module])
        // Outside any module: its go.mod could ask for the very Go that is missing.
        .current_dir(&tools)
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .env("GO111MODULE", "on");
    let said = output(&mut download)?;
    // {"Path": …, "Dir": "…", …}, a line each.
    let directory = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"Dir\": \"")?.split('"').next())
        .with_context(|| format!("`go mod download` names no folder: {said}"))?;
    for folder in ["bin", &format!("pkg/tool/linux_{architecture}")] {
        executable(&Path::new(directory).join(folder))?;
    }
    let place = fetched_go()?;
    crate::setup::link(
        Path::new(directory),
        place
            .ancestors()
            .nth(2)
            .expect("go lies in a folder of a folder"),
    )?;
    match version_of(&place) {
        Some(version) if version >= WANTED => Ok(place),
        found => bail!(
            "Go in {directory} does not run, or is of another version: {}",
            found.map_or("nothing".to_owned(), |version| version.to_string())
        ),
    }
}

/// Modules carry no permissions.
fn executable(folder: &Path) -> Result<()> {
    let files =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for file in files {
        let file = file?.path();
        let mut permissions = fs::metadata(&file)?.permissions();
        permissions.set_mode(permissions.mode() | 0o111);
        fs::set_permissions(&file, permissions)
            .with_context(|| format!("cannot make {} executable", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(
            Version::parse("go version go1.26.8 linux/amd64"),
            Some(Version(1, 26, 8))
        );
        assert_eq!(
            Version::parse("go version go1.25rc2 linux/amd64"),
            Some(Version(1, 25, 0))
        );
        assert_eq!(Version::parse("command not found"), None);
        assert!(Version::parse("go version go1.9.7 linux/amd64") < Some(WANTED));
    }
}
