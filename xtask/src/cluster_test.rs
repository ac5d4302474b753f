//! `cargo xtask cluster-test`: the connectivity suite on any cluster.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::{binary, build, setup, shell::run};

/// Builds the suite and runs it with these arguments.
pub fn run_suite(arguments: &[OsString]) -> Result<()> {
    setup::setup()?;
    build(&["--package", "netpol-tests", "--bin", "netpol-cluster-test"])?;
    run(Command::new(binary("netpol-cluster-test", false)?).args(arguments))
}
