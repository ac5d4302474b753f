//! ICMP errors: they belong to the flow of the packet that they quote.

use super::*;

/// The verdict on an ICMP error, if it quotes a packet of a known flow, or one that it must not quote.
#[inline(never)]
pub(super) fn related<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    case: &Case<'_>,
    quoted: &Packet,
    key: &mut FlowKey,
) -> Option<Reason> {
    let error = case.packet;
    let sends = matches!(case.direction, Direction::Egress);
    // What a pod complains about was sent to it.
    if sends && case.endpoint.guarded() && !case.endpoint.owns(&quoted.destination) {
        return Some(Reason::Spoofed);
    }
    // And it complains to the sender.
    if quoted.source != error.destination {
        return None;
    }
    *key = quoted.flow_key(case.interface, case.direction.reverse());
    let known = find(tables, key)?.load();
    if known.expired(quoted.protocol, case.now)
        || !answers(&known, case.direction, frame.is_own(error.piece))
    {
        return None;
    }
    if known.epoch != case.epoch {
        let origin = known.origin();
        let (remote, port) = match origin {
            Direction::Egress if known.resolved() => (known.backend, known.backend_port),
            Direction::Egress => (key.remote, key.remote_port),
            Direction::Ingress => (key.remote, key.local_port),
        };
        let isolation = case.endpoint.isolation(origin);
        // Nobody knows yet who answers: judged where it leaves, or sent by the node itself.
        let unresolved = known.deferred() && !known.resolved();
        // What a process of the node has opened is allowed whatever the rules say.
        let settled = unresolved || known.local();
        let about = About {
            endpoint: case.endpoint,
            protocol: quoted.protocol,
            found: case.rules,
        };
        if !settled && permit(tables, &about, isolation, &remote, port).is_err() {
            return Some(Reason::Revoked);
        }
    }
    if sends && known.deferred() && case.endpoint.egress.ruleset().is_some() {
        defer(frame, tables, case.endpoint, None, false);
    }
    Some(Reason::Related)
}
