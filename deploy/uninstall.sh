#!/bin/sh
# Takes netpol-agent off the cluster that kubectl speaks to: what it has put into the kernel of every node first, then its objects.
#
# `kubectl delete -k deploy/` alone would leave programs and tables behind: they outlive the agent, so that an agent that is
# restarted or upgraded leaves no gap, and the agent cannot know that it will not come back.
set -eu
cd "$(dirname "$0")"
# KUBECTL="kubectl --context NAME" for another cluster than the current one
kubectl=${KUBECTL:-kubectl}
in_its_namespace="$kubectl --namespace kube-system"
if $in_its_namespace get daemonset netpol-agent >/dev/null; then
    $in_its_namespace patch daemonset netpol-agent --patch-file uninstall/cleanup.yaml
    if ! $in_its_namespace rollout status daemonset netpol-agent --timeout "${TIMEOUT:-5m}"; then
        $in_its_namespace get pods --selector app.kubernetes.io/name=netpol-agent --output wide
        echo "Not every node could be cleaned up: see the pods above that are not ready. Run this again when they can be reached;" >&2
        echo "or reboot them, or delete them from the cluster, and then run: $kubectl delete -k deploy/" >&2
        exit 1
    fi
fi
$kubectl delete --ignore-not-found -k .
