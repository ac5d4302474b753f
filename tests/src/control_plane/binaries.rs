//! Where the programs of the control plane are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::bail;

/// Names the folder with `etcd` and `kube-apiserver`. `cargo xtask test` builds them and sets it.
pub const BINARIES_VARIABLE: &str = "NETPOL_CONTROL_PLANE_BIN";

/// The two programs.
pub(super) struct Binaries {
    pub etcd: PathBuf,
    pub apiserver: PathBuf,
}

impl Binaries {
    /// Those that [`BINARIES_VARIABLE`] names, or those on `PATH`.
    pub fn find() -> anyhow::Result<Self> {
        let named = env::var_os(BINARIES_VARIABLE).filter(|named| !named.is_empty());
        let folders: Vec<PathBuf> = match &named {
            Some(folder) => vec![folder.into()],
            None => env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect(),
        };
        let find = |program: &str| {
            let candidates = folders.iter().map(|folder| folder.join(program));
            match candidates.into_iter().find(|path| path.is_file()) {
                Some(path) => Ok(path),
                None if named.is_some() => bail!(
                    "{BINARIES_VARIABLE} names {}, and there is no {program} in it",
                    Path::new(&folders[0]).display()
                ),
                None => bail!(
                    "there is no {program} on PATH: `cargo xtask control-plane` builds it and prints its folder, for \
                     {BINARIES_VARIABLE}"
                ),
            }
        };
        Ok(Self {
            etcd: find("etcd")?,
            apiserver: find("kube-apiserver")?,
        })
    }
}
