//! The agent as the lab's child: it comes, is killed, comes back, and goes; a death takes no enforcement away.

use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Lab, Shape},
    reference,
    scenario::Scenario,
};

#[test]
fn an_agent_lives_and_dies_in_a_lab() -> anyhow::Result<()> {
    for hook in [Hook::Auto, Hook::Clsact] {
        let scenario = Scenario::find("S01")?;
        let step = &scenario.steps[0];
        let lab = Lab::new(Shape::Bridge { br_netfilter: true }, step.world.clone())?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let status = agent.status()?;
        assert_eq!(status["node"], "node", "{status:#}");
        assert_eq!(
            status["pods"].as_array().map(Vec::len),
            Some(4),
            "{status:#}"
        );
        assert!(agent.status_text()?.contains("prod/backend"));
        let enforced = lab.table()?;
        assert!(
            step.expected == enforced,
            "{}",
            step.expected.differences(&enforced)
        );

        agent.kill()?;
        assert!(agent.kill().is_err(), "it is dead already");
        let orphaned = lab.table()?;
        assert!(
            step.expected == orphaned,
            "{}",
            step.expected.differences(&orphaned)
        );

        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        assert!(agent.stop()?.success(), "{}", agent.log());
        let stopped = lab.table()?;
        assert!(
            step.expected == stopped,
            "{}",
            step.expected.differences(&stopped)
        );

        Agent::cleanup(&lab)?;
        let open = lab.table()?;
        assert!(open.all_open(), "{}", open.opened().differences(&open));
    }
    Ok(())
}

#[test]
fn pods_that_come_and_move_are_found() -> anyhow::Result<()> {
    for shape in Shape::ALL {
        let scenario = Scenario::find("S01")?;
        let mut lab = Lab::new(shape, scenario.steps[0].world.clone())?;
        let mut agent = Agent::start(&lab, Hook::Auto)?;
        agent.wait()?;
        let changes: [(&str, &str); 3] = [
            (
                "a pod that may",
                "{apiVersion: v1, kind: Pod, metadata: {namespace: prod, name: late, labels: {app: frontend}}, spec: {containers: [{name: c, ports: [{containerPort: 81}]}]}}",
            ),
            (
                "one on another node",
                "{apiVersion: v1, kind: Pod, metadata: {namespace: prod, name: far, labels: {app: frontend}}, spec: {nodeName: elsewhere, containers: [{name: c, ports: [{containerPort: 82, protocol: SCTP}]}]}}",
            ),
            (
                "one in the node's network",
                "{apiVersion: v1, kind: Pod, metadata: {namespace: prod, name: on-node, labels: {app: backend}}, spec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 83}]}]}}",
            ),
        ];
        for (what, manifest) in changes {
            lab.apply(manifest)?;
            agent.wait()?;
            let (expected, _) = reference::table(&lab, &lab.destinations());
            let found = lab.table()?;
            assert!(
                expected == found,
                "{shape}, {what}: {}",
                expected.differences(&found)
            );
        }
        lab.restart_pod("prod", "backend", netpol_tests::lab::Restart::NewAddress)?;
        agent.wait()?;
        let (expected, _) = reference::table(&lab, &lab.destinations());
        let found = lab.table()?;
        assert!(
            expected == found,
            "{shape}, restarted: {}",
            expected.differences(&found)
        );
    }
    Ok(())
}
