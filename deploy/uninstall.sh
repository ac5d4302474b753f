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
# Fails, and ends this, if the cluster cannot be asked: only an answer tells whether there is an agent.
found=$($in_its_namespace get daemonset netpol-agent --ignore-not-found --output name)
if [ -n "$found" ]; then
    $in_its_namespace patch daemonset netpol-agent --patch-file uninstall/cleanup.yaml
    if ! $in_its_namespace rollout status daemonset netpol-agent --timeout "${TIMEOUT:-5m}"; then
        $in_its_namespace get pods --selector app.kubernetes.io/name=netpol-agent --output wide
        echo "Not every node could be cleaned up: see the pods above that are not ready. Run this again when they can be reached;" >&2
        echo "or reboot them, or delete them from the cluster, and then run: $kubectl delete -k deploy/" >&2
        exit 1
    fi
fi
$kubectl delete --ignore-not-found -k .
if [ -z "$found" ]; then
    echo "There was no DaemonSet netpol-agent in kube-system: no node was cleaned up. Where an agent has been, its programs still" >&2
    echo "judge. To clean up, install it again (kubectl apply -k deploy/) and run this once more; or run, as root on each node," >&2
    echo "netpol-agent cleanup; or reboot the nodes." >&2
fi
