//! Scenarios: a world, one or more sets of policies for it, and the table that each of them must lead to.
//!
//! ```text
//! S01-first-policy/
//!   world/*.yaml      namespaces, pods, services, hosts
//!   policy/*.yaml     the policies of the (only) step; namespaces and pods in here replace those of the world
//!   policy/expected.txt
//! ```
//!
//! Several steps are several directories, taken in the order of their names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    lab::LabError,
    manifests::World,
    table::{Destination, ParseError, Table},
};

/// The directory with a scenario's world.
pub const WORLD: &str = "world";
/// The file with the table that a step must lead to.
pub const EXPECTED: &str = "expected.txt";

/// A world and what happens in it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The name of its directory.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// The world without any policy.
    pub world: World,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One set of policies.
#[derive(Clone, Debug)]
pub struct Step {
    /// The name of its directory.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// The world with the step's policies, and only with them.
    pub world: World,
    /// What must come of it.
    pub expected: Table,
}

/// Why a scenario cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A manifest is wrong.
    #[error("{}: {error}", directory.display())]
    Manifest {
        /// The directory it is in.
        directory: PathBuf,
        /// What is wrong.
        error: LabError,
    },
    /// An expected table is wrong.
    #[error("{}: {error}", path.display())]
    Expected {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ParseError,
    },
    /// An expected table leaves a declared port out.
    #[error("{}: no block for {destination}, which the world declares", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// The port.
        destination: Destination,
    },
    /// An expected table names a Service's port that the world does not have.
    #[error("{}: the world has no {destination}", path.display())]
    NoService {
        /// The file.
        path: PathBuf,
        /// What it names.
        destination: Destination,
    },
    /// The directory has no step.
    #[error("{}: a scenario needs at least one directory of policies beside `world`", .0.display())]
    NoStep(PathBuf),
    /// There is no such scenario.
    #[error("there is no scenario `{name}`; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What could have been.
        known: String,
    },
}

impl Scenario {
    /// Where the scenarios of this repository are.
    pub fn home() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
    }

    /// Whether a directory is a scenario, and not just manifests.
    pub fn is_scenario(directory: &Path) -> bool {
        directory.join(WORLD).is_dir()
    }

    /// Every scenario of this repository, by name.
    pub fn all() -> Result<Vec<Self>, ScenarioError> {
        directories(&Self::home())?
            .iter()
            .map(|directory| Self::load(directory))
            .collect()
    }

    /// The scenario whose name is, or begins with, this one: `S01`.
    pub fn find(name: &str) -> Result<Self, ScenarioError> {
        let known = directories(&Self::home())?;
        let names: Vec<String> = known.iter().map(|path| name_of(path)).collect();
        let found = names.iter().position(|known| known == name).or_else(|| {
            names
                .iter()
                .position(|known| known.starts_with(&format!("{name}-")))
        });
        match found {
            Some(nth) => Self::load(&known[nth]),
            None => Err(ScenarioError::Unknown {
                name: name.to_owned(),
                known: names.join(", "),
            }),
        }
    }

    /// Reads a scenario.
    pub fn load(directory: &Path) -> Result<Self, ScenarioError> {
        let world = read_world(&directory.join(WORLD))?;
        let mut steps = Vec::new();
        for step in directories(directory)? {
            if name_of(&step) != WORLD {
                steps.push(Step::load(&step, &world)?);
            }
        }
        if steps.is_empty() {
            return Err(ScenarioError::NoStep(directory.to_owned()));
        }
        Ok(Self {
            name: name_of(directory),
            directory: directory.to_owned(),
            world,
            steps,
        })
    }
}

impl Step {
    fn load(directory: &Path, base: &World) -> Result<Self, ScenarioError> {
        let mut world = base.clone();
        world.overlay_policies(read_world(directory)?);
        let path = directory.join(EXPECTED);
        let text = fs::read_to_string(&path).map_err(|error| ScenarioError::Read {
            path: path.clone(),
            error,
        })?;
        let expected =
            Table::parse(&text, &world.parties()).map_err(|error| ScenarioError::Expected {
                path: path.clone(),
                error,
            })?;
        if let Some(destination) = world
            .destinations()
            .into_iter()
            .chain(world.service_destinations())
            .find(|wanted| !expected.destinations().any(|given| given == wanted))
        {
            return Err(ScenarioError::Incomplete { path, destination });
        }
        let served = world.service_destinations();
        let unserved = |to: &&Destination| to.party.is_service() && !served.contains(*to);
        if let Some(destination) = expected.destinations().find(unserved).cloned() {
            return Err(ScenarioError::NoService { path, destination });
        }
        Ok(Self {
            name: name_of(directory),
            directory: directory.to_owned(),
            world,
            expected,
        })
    }
}

fn read_world(directory: &Path) -> Result<World, ScenarioError> {
    let wrong = |error| ScenarioError::Manifest {
        directory: directory.to_owned(),
        error,
    };
    let world = World::read(directory).map_err(wrong)?;
    match world.problems().into_iter().next() {
        Some(problem) => Err(wrong(problem)),
        None => Ok(world),
    }
}

fn directories(parent: &Path) -> Result<Vec<PathBuf>, ScenarioError> {
    let mut found: Vec<PathBuf> = fs::read_dir(parent)
        .map_err(|error| ScenarioError::Read {
            path: parent.to_owned(),
            error,
        })?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !name_of(path).starts_with('.'))
        .collect();
    found.sort();
    Ok(found)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
