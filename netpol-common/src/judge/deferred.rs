//! Deferred verdicts: a packet to a Service or to the node is marked where the pod sends it, and judged where it has its real
//! destination.

use super::*;

/// Judges a packet that carries a mark, and nothing else.
#[inline(always)]
pub(super) fn judge_translated<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    scratch: &mut Scratch,
    deferral: Deferral,
    (epoch, arrives): (u32, bool),
) -> Option<Reason> {
    match parse(frame, &mut scratch.packet) {
        Parsed::Packet => {
            if !is_ours(frame, tables, &scratch.packet) {
                return None;
            }
            let mut context = Deferred {
                deferral,
                epoch,
                now: tables.now(),
                arrives,
                quotes: false,
            };
            translated(frame, tables, scratch, &mut context)
        }
        // Only what was parsed at the hook of a pod gets a mark.
        Parsed::Opaque(reason) if frame.came_in_by() != 0 => {
            report_unread(frame, tables, scratch, (deferral.slot, reason));
            Some(reason)
        }
        // Neighbour discovery that no router has passed on stays on the link.
        _ => None,
    }
}

/// Reads our mark and takes it off: nobody who sees the packet later may take it for the mark of another packet.
///
/// Of what came in by no device it is only read: [`is_ours`] has to say whether it counts.
#[inline(always)]
pub(super) fn take_deferral<F: Frame, T: Tables>(frame: &F, tables: &T) -> Option<Deferral> {
    let field = tables.mark_field();
    let mark = frame.mark();
    let deferral = field.read(mark)?;
    if frame.came_in_by() != 0 {
        frame.set_mark(field.clear(mark));
    }
    Some(deferral)
}

/// Whether the mark of a packet that has been read is one of ours; then it is off.
///
/// What the node itself sends never came from a pod: whoever has set these bits means something else by them. What it has only
/// cut up anew did, and says nothing of where it came in by.
#[inline(always)]
pub(super) fn is_ours<F: Frame, T: Tables>(frame: &F, tables: &T, packet: &Packet) -> bool {
    if frame.came_in_by() != 0 {
        return true;
    }
    if frame.is_own(packet.piece) {
        return false;
    }
    frame.set_mark(tables.mark_field().clear(frame.mark()));
    true
}

/// Counts and records, for the pod that sent it, a packet that cannot be read where it leaves or arrives.
#[inline(never)]
pub(super) fn report_unread<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    scratch: &Scratch,
    (slot, reason): (u32, Reason),
) {
    let interface = tables.interface_of(slot).unwrap_or(0);
    let direction = Direction::Egress;
    tables.count(slot, direction, reason, frame.len());
    let dropped = Dropped {
        packet: &scratch.packet,
        parsed: false,
        service: &scratch.other,
        translated: false,
        interface,
        slot,
        direction,
        reason,
    };
    tables.report(frame, &dropped);
}

/// Whether packets of a deferred flow must be judged, or looked after, on their way though it is known who answers: those of
/// an isolated pod, those that the pod itself answers, and those that anybody may answer next.
#[inline(always)]
pub(super) fn must_mark(endpoint: &Endpoint, protocol: u8, known: &Flow) -> bool {
    is_isolated(endpoint) || !is_stream(protocol) || endpoint.owns(&known.backend)
}

/// Whether a policy isolates the pod in either direction. Only a mark tells a pod that is isolated for what it receives that a
/// packet with the node's address comes from itself, and somebody else may answer the next packet.
#[inline(always)]
pub(super) fn is_isolated(endpoint: &Endpoint) -> bool {
    endpoint.egress.ruleset().is_some() || endpoint.ingress.ruleset().is_some()
}

/// Marks a packet so that it is judged where its real destination is known.
#[inline(always)]
pub(super) fn defer<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    endpoint: &Endpoint,
    key: Option<&FlowKey>,
    urgent: bool,
) {
    let field = tables.mark_field();
    let mut ticket = 0;
    if let Some(key) = key {
        ticket = field.ticket(key.ticket());
        tables.issue(ticket, key);
    }
    let deferral = Deferral {
        slot: endpoint.slot,
        urgent,
        ticket,
    };
    frame.set_mark(field.write(frame.mark(), deferral));
}

/// A packet to an address behind which somebody else answers: it passes here, and is judged where its real destination is
/// known.
#[inline(never)]
pub(super) fn decide_deferred<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    case: &Case<'_>,
    flow: &mut Flow,
) -> Reason {
    let endpoint = case.endpoint;
    let known = case.live && flow.resolved() && !case.packet.opens();
    // What is known of who answers was allowed under older tables. If it is no longer, the entry stays as it is: answers
    // are dropped. The packet goes on all the same, somebody else may answer today.
    let about = About {
        endpoint,
        protocol: case.packet.protocol,
        found: case.rules,
    };
    let good = !known
        || permit(
            tables,
            &about,
            endpoint.egress,
            &flow.backend,
            flow.backend_port,
        )
        .is_ok();
    let anew = !known || !good;
    let mark = anew || must_mark(endpoint, case.packet.protocol, flow);
    let tracked = case.packet.tracked();
    if good && tracked {
        let resolved = if known { Flow::RESOLVED } else { 0 };
        note(tables, case, flow, Flow::DEFERRED | resolved);
    }
    if mark {
        let key = if tracked { Some(case.key) } else { None };
        defer(frame, tables, endpoint, key, anew);
    }
    match endpoint.egress.ruleset() {
        Some(_) => Reason::Deferred,
        None => Reason::Open,
    }
}

/// What a mark says, and when.
pub(super) struct Deferred {
    pub(super) deferral: Deferral,
    pub(super) epoch: u32,
    pub(super) now: Tick,
    /// Whether this is the hook of the pod that receives it, not of the device by which it leaves.
    pub(super) arrives: bool,
    /// Whether the packet is an ICMP error, and what it quotes is in the scratch memory.
    pub(super) quotes: bool,
}

/// The verdict on a packet that carries the mark of its sender, with its real destination; `None` if it passes.
/// [`Reason::Itself`] if it comes back to its sender.
#[inline(always)]
pub(super) fn translated<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    scratch: &mut Scratch,
    context: &mut Deferred,
) -> Option<Reason> {
    let interface = tables.interface_of(context.deferral.slot)?;
    if interface == frame.interface() {
        return Some(Reason::Itself);
    }
    if matches!(scratch.packet.piece, Piece::Later) {
        // What would overwrite headers has been stopped where the pod sent it, or stays without ports.
        let _ = complete(tables, &mut scratch.packet, interface, context.now);
    }
    scratch.key = scratch.packet.flow_key(interface, Direction::Egress);
    scratch.key.protocol |= FlowKey::TRANSLATED | FlowKey::source_bits(&scratch.packet.source);
    if scratch.packet.tracked()
        && !context.deferral.urgent
        && let Some(place) = tables.opening(&scratch.key)
        && place.load().epoch == context.epoch
    {
        if matches!(scratch.packet.piece, Piece::First) {
            note_fragment(tables, &scratch.packet, interface, context.now);
        }
        return None;
    }
    context.quotes = matches!(scratch.packet.kind, Kind::Error)
        && quote(frame, &scratch.packet, &mut scratch.quoted);
    decide_translated(frame, tables, scratch, context)
}

#[inline(never)]
pub(super) fn decide_translated<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    scratch: &mut Scratch,
    context: &Deferred,
) -> Option<Reason> {
    let interface = scratch.key.interface;
    let packet = &scratch.packet;
    // What a pod has sent that is gone was not judged, and cannot be any more.
    let Some(endpoint) = tables.endpoint(interface) else {
        return Some(drop_translated(
            frame,
            tables,
            scratch,
            context,
            (Reason::Denied, false),
        ));
    };
    if endpoint.owns(&packet.destination) {
        return Some(Reason::Itself);
    }
    if let Some(reason) = forged(tables, endpoint, packet, context.arrives) {
        return Some(drop_translated(
            frame,
            tables,
            scratch,
            context,
            (reason, false),
        ));
    }
    let (mut number, mut port) = (packet.protocol, scratch.key.remote_port);
    if context.quotes && scratch.quoted.source == packet.destination {
        // It answers a packet of the quoted flow: whether the pod may speak to who sent that.
        number = scratch.quoted.protocol;
        port = scratch.quoted.source_port;
    }
    let about = About {
        endpoint,
        protocol: number,
        found: &scratch.found,
    };
    let tracked = packet.tracked();
    let known = tracked && tables.opening(&scratch.key).is_some();
    let ticket = tables.ticket(context.deferral.ticket);
    let mut ticketed = false;
    if let Some(key) = ticket
        && tracked
        && key.interface == interface
    {
        scratch.other = key;
        ticketed = true;
    }
    let remote = &packet.destination;
    let Err(NotAllowed) = permit(tables, &about, endpoint.egress, remote, port) else {
        if tracked && (is_isolated(endpoint) || !is_stream(packet.protocol)) {
            scratch.flow = Flow::open(context.epoch, Direction::Egress, 0, context.now);
            tables.remember(&scratch.key, &scratch.flow);
        }
        if matches!(packet.piece, Piece::First) {
            note_fragment(tables, packet, interface, context.now);
        }
        if tracked && ticketed {
            resolve(tables, scratch, endpoint, context.epoch);
        }
        return None;
    };
    let reason = if known {
        Reason::Revoked
    } else if matches!(packet.kind, Kind::Portless) {
        Reason::Fragment
    } else if packet.strays() {
        Reason::NoFlow
    } else {
        Reason::Denied
    };
    if tracked && ticketed {
        unresolve(tables, scratch, endpoint);
    }
    Some(drop_translated(
        frame,
        tables,
        scratch,
        context,
        (reason, ticketed),
    ))
}

/// What a pod must not send to anybody, whatever its rules say, and could not be told at the hook of the pod: to a tunnel
/// behind a Service, or out of the envelope that a tunnel of this node has opened.
#[inline(never)]
fn forged<T: Tables>(
    tables: &T,
    endpoint: &Endpoint,
    packet: &Packet,
    arrives: bool,
) -> Option<Reason> {
    if !endpoint.guarded() {
        return None;
    }
    let tunnel = !is_stream(packet.protocol)
        && tables.tunnel(TunnelKey {
            protocol: packet.protocol as u16,
            port: packet.destination_port,
        });
    if tunnel {
        return Some(Reason::Tunnel);
    }
    // Translation gives it an address of the node, or one that the node answers for. Where it leaves, that may be one that only
    // the routers outside know.
    let honest = endpoint.owns(&packet.source)
        || match tables.host(&packet.source) {
            Some(peer) => peer.is_virtual(),
            None => !arrives,
        };
    (!honest).then_some(Reason::Spoofed)
}

/// Counts and records a packet that is dropped after its translation. `ticketed` says that the sender's key is known.
#[inline(never)]
fn drop_translated<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    scratch: &Scratch,
    context: &Deferred,
    (reason, ticketed): (Reason, bool),
) -> Reason {
    let slot = context.deferral.slot;
    tables.count(slot, Direction::Egress, reason, frame.len());
    tables.report(
        frame,
        &Dropped {
            packet: &scratch.packet,
            parsed: true,
            service: &scratch.other,
            translated: ticketed,
            interface: scratch.key.interface,
            slot,
            direction: Direction::Egress,
            reason,
        },
    );
    reason
}

/// Notes at the flow that the sender knows, under the key in `other`, who answers it.
#[inline(never)]
pub(super) fn resolve<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    endpoint: &Endpoint,
    epoch: u32,
) {
    let packet = &scratch.packet;
    let Some(place) = deferred_flow(tables, scratch, endpoint) else {
        return;
    };
    let known = place.load();
    place.resolve(&packet.destination, packet.destination_port, epoch);
    let same = known.backend == packet.destination && known.backend_port == packet.destination_port;
    if known.resolved() && !same {
        // Somebody else answers now, under the same ports. When the first one does again, it has to be noted again.
        scratch.key.remote = known.backend;
        scratch.key.remote_port = known.backend_port;
        if let Some(place) = tables.opening(&scratch.key) {
            let mut first = place.load();
            first.epoch = epoch.wrapping_sub(1);
            place.store(&first);
        }
    }
}

/// Notes at the flow that the sender knows, under the key in `other`, that nobody may answer it. Whoever connection tracking
/// has found for this packet could speak in the name of the one who was allowed before.
#[inline(never)]
fn unresolve<T: Tables>(tables: &T, scratch: &Scratch, endpoint: &Endpoint) {
    if let Some(place) = deferred_flow(tables, scratch, endpoint) {
        let mut known = place.load();
        known.flags &= !Flow::RESOLVED;
        place.store(&known);
    }
}

/// The flow that the sender knows under the key in `other`, if the packet belongs to it.
#[inline(always)]
fn deferred_flow<T: Tables>(tables: &T, scratch: &Scratch, endpoint: &Endpoint) -> Option<T::Flow> {
    let (packet, service) = (&scratch.packet, &scratch.other);
    // The ticket may have been taken by another flow of this pod that came in the same batch of packets. The port tells,
    // unless masquerade has changed it, which changes the address too.
    let same = service.protocol == packet.protocol as u32
        && (service.local_port == packet.source_port || !endpoint.owns(&packet.source));
    find(tables, service).filter(|place| same && place.load().deferred())
}
