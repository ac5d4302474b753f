//! Where a session's manifests come from.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use netpol_tests::{
    manifests::World,
    scenario::{Scenario, WORLD},
    table::Table,
};

/// A scenario, or a directory of manifests.
pub enum Source {
    Scenario(Box<Scenario>),
    Directory(PathBuf),
}

/// One set of manifests to enforce.
pub struct Stage {
    /// What to call it.
    pub title: String,
    /// The manifests.
    pub world: World,
    /// The table that the scenario writes down for it.
    pub expected: Option<Table>,
}

impl Source {
    /// The directory, if it is one; else the scenario of this name.
    pub fn find(what: &Path) -> Result<Self> {
        if what.is_dir() {
            if Scenario::is_scenario(what) {
                return Ok(Self::Scenario(Box::new(Scenario::load(what)?)));
            }
            return Ok(Self::Directory(what.canonicalize()?));
        }
        if what.components().count() > 1 {
            bail!("{} is no directory", what.display());
        }
        let name = what.to_string_lossy();
        Ok(Self::Scenario(Box::new(Scenario::find(&name)?)))
    }

    /// What the session shows, one after the other; there is at least one.
    pub fn stages(&self) -> Result<Vec<Stage>> {
        match self {
            Self::Scenario(scenario) => Ok(scenario
                .steps
                .iter()
                .map(|step| Stage {
                    title: format!("{}, {}", scenario.name, step.name),
                    world: step.world.clone(),
                    expected: Some(step.expected.clone()),
                })
                .collect()),
            Self::Directory(directory) => Ok(vec![Stage {
                title: directory.display().to_string(),
                world: World::read(directory)?,
                expected: None,
            }]),
        }
    }

    /// The directories whose edits the session follows; the last one is where policies are.
    pub fn watched(&self) -> Vec<PathBuf> {
        match self {
            Self::Scenario(scenario) => {
                let world = scenario.directory.join(WORLD);
                let last = scenario.steps.last().map(|step| step.directory.clone());
                std::iter::once(world).chain(last).collect()
            }
            Self::Directory(directory) => vec![directory.clone()],
        }
    }

    /// The manifests of the watched directories as they are now.
    pub fn reload(&self) -> Result<World> {
        match self {
            Self::Scenario(scenario) => {
                let mut world = World::read(&scenario.directory.join(WORLD))?;
                if let Some(step) = scenario.steps.last() {
                    world.overlay_policies(World::read(&step.directory)?);
                }
                Ok(world)
            }
            Self::Directory(directory) => Ok(World::read(directory)?),
        }
    }
}
