//! kube-apiserver and etcd for the tests: built from the modules in `tests/control-plane`, and kept outside `target`.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    go,
    setup::tools_folder,
    shell::{house, output, say},
};

/// Names a folder with ready programs; the test library reads the same.
pub const VARIABLE: &str = "NETPOL_CONTROL_PLANE_BIN";

/// A program of the control plane.
struct Program {
    name: &'static str,
    /// The folder of its module, in `tests/control-plane`.
    module: &'static str,
    package: &'static str,
    /// Variables that its build sets to its version: the module whose version it is, and the name of each.
    version: Option<(&'static str, &'static str)>,
}

const PROGRAMS: [Program; 2] = [
    Program {
        name: "etcd",
        module: "etcd",
        package: "go.etcd.io/etcd/server/v3",
        version: None,
    },
    Program {
        name: "kube-apiserver",
        module: "apiserver",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        version: Some(("k8s.io/kubernetes", "k8s.io/component-base/version")),
    },
];

/// The folder of the programs, or the thread that builds them into it.
pub enum Programs {
    Ready(PathBuf),
    Building(JoinHandle<Result<PathBuf>>),
}

impl Programs {
    /// Starts to build what is not there yet. Finding or installing Go is done when this returns.
    pub fn begin() -> Result<Self> {
        if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
            let folder = PathBuf::from(named);
            for program in &PROGRAMS {
                if !folder.join(program.name).is_file() {
                    bail!(
                        "{VARIABLE} names {}, and there is no {} in it; unset it to have one built",
                        folder.display(),
                        program.name
                    );
                }
            }
            return Ok(Self::Ready(folder));
        }
        let mut missing = Vec::new();
        for program in &PROGRAMS {
            if !program.place()?.join(program.name).is_file() {
                missing.push(program);
            }
        }
        if missing.is_empty() {
            return collect().map(Self::Ready);
        }
        let go = go::find()?;
        let names: Vec<&str> = missing.iter().map(|program| program.name).collect();
        say(&format!(
            "setup: building {} for the tests, some minutes, once; cargo goes on meanwhile",
            names.join(" and ")
        ));
        let building = thread::spawn(move || {
            for program in missing {
                let started = Instant::now();
                program.build(&go)?;
                let took = started.elapsed().as_secs();
                say(&format!("setup: {} is built ({took} s)", program.name));
            }
            collect()
        });
        Ok(Self::Building(building))
    }

    /// Waits for the build, and returns the folder with all programs.
    pub fn folder(self) -> Result<PathBuf> {
        match self {
            Self::Ready(folder) => Ok(folder),
            Self::Building(building) => match building.join() {
                Ok(built) => built,
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}

/// One folder in which all of them are found.
fn collect() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for program in &PROGRAMS {
        program.place()?.hash(&mut hasher);
    }
    let folder = tools_folder()?.join(format!("control-plane-{:016x}", hasher.finish()));
    for program in &PROGRAMS {
        crate::setup::link(
            &program.place()?.join(program.name),
            &folder.join(program.name),
        )?;
    }
    Ok(folder)
}

impl Program {
    fn source(&self) -> PathBuf {
        house().join("tests/control-plane").join(self.module)
    }

    /// The folder that it is kept in: another one for other modules or flags.
    fn place(&self) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        for file in ["go.mod", "go.sum"] {
            let path = self.source().join(file);
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            text.hash(&mut hasher);
        }
        self.arguments()?.hash(&mut hasher);
        Ok(tools_folder()?.join(format!("{}-{:016x}", self.name, hasher.finish())))
    }

    /// Those of `go`, but for the output.
    fn arguments(&self) -> Result<Vec<String>> {
        let mut link = "-s -w".to_owned();
        if let Some((module, package)) = self.version {
            let version = self.version_of(module)?;
            let mut parts = version.trim_start_matches('v').split('.');
            let (major, minor) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
            for (name, value) in [
                ("gitVersion", version.as_str()),
                ("gitMajor", major),
                ("gitMinor", minor),
            ] {
                link += &format!(" -X {package}.{name}={value}");
            }
        }
        let fixed = [
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
        ];
        let mut arguments = fixed.map(str::to_owned).to_vec();
        arguments.extend([link, self.package.to_owned()]);
        Ok(arguments)
    }

    /// The version of a module that `go.mod` requires.
    fn version_of(&self, module: &str) -> Result<String> {
        let path = self.source().join("go.mod");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut words = text.lines().map(|line| line.split_whitespace());
        words
            .find_map(|mut words| {
                words
                    .by_ref()
                    .find(|word| *word != "require")
                    .filter(|word| *word == module)?;
                words.next().map(str::to_owned)
            })
            .with_context(|| format!("{} requires no {module}", path.display()))
    }

    fn build(&self, go: &Path) -> Result<()> {
        let place = self.place()?;
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        // Whole or not at all: another build may be cut off, or run at the same time.
        let temporary = place.join(format!("{}.{}", self.name, std::process::id()));
        let mut arguments = self.arguments()?;
        let package = arguments.pop().unwrap_or_default();
        let mut build = Command::new(go);
        build
            .args(arguments)
            .arg("-o")
            .arg(&temporary)
            .arg(package)
            .current_dir(self.source())
            .env("CGO_ENABLED", "0")
            // Settings of whoever builds Go programs of their own.
            .env("GOFLAGS", "")
            .env("GOWORK", "off")
            .env("GO111MODULE", "on")
            .env("GOTOOLCHAIN", "local")
            .env_remove("GOOS")
            .env_remove("GOARCH");
        output(&mut build)?;
        let program = place.join(self.name);
        fs::rename(&temporary, &program)
            .with_context(|| format!("cannot write {}", program.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_says_which_version_it_is() -> Result<()> {
        let [_, apiserver] = &PROGRAMS;
        let version = apiserver.version_of("k8s.io/kubernetes")?;
        let arguments = apiserver.arguments()?.join(" ");
        assert!(version.starts_with("v1."), "{version}");
        assert!(
            arguments.contains(&format!("version.gitVersion={version} ")),
            "{arguments}"
        );
        Ok(())
    }
}
