//! An agent on every node of a lab.

use super::{Agent, AgentError, Hook};
use crate::lab::Lab;

/// The agents of all nodes, in the order of the nodes' names. Ended on drop, each as an [`Agent`] is.
pub struct Fleet {
    agents: Vec<Agent>,
}

impl Fleet {
    /// Starts one on every node that the lab has now.
    pub fn start(lab: &Lab, hook: Hook) -> Result<Self, AgentError> {
        let agents = lab
            .nodes()
            .map(|node| Agent::start_on(lab, node.name(), hook))
            .collect::<Result<_, _>>()?;
        Ok(Self { agents })
    }

    /// Starts one on every node that has none: nodes come with the first pod that names them.
    pub fn join(&mut self, lab: &Lab, hook: Hook) -> Result<(), AgentError> {
        for node in lab.nodes() {
            if !self.agents.iter().any(|agent| agent.node() == node.name()) {
                self.agents.push(Agent::start_on(lab, node.name(), hook)?);
            }
        }
        Ok(())
    }

    /// Waits until every node enforces everything that is in the manifests now.
    pub fn wait(&mut self) -> Result<(), AgentError> {
        self.agents.iter_mut().try_for_each(Agent::wait)
    }

    /// The agent of a node, by the node's name.
    pub fn on(&mut self, node: &str) -> Option<&mut Agent> {
        self.agents.iter_mut().find(|agent| agent.node() == node)
    }

    /// All of them.
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// Asks each to end and waits. Enforcement stays.
    pub fn stop(&mut self) -> Result<(), AgentError> {
        self.agents
            .iter_mut()
            .try_for_each(|agent| agent.stop().map(|_| ()))
    }

    /// Takes everything out of the kernel again, on every node.
    pub fn cleanup(lab: &Lab) -> Result<(), AgentError> {
        lab.nodes()
            .try_for_each(|node| Agent::cleanup_on(lab, node.name()))
    }
}
