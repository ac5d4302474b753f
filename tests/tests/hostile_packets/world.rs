//! The pods of these tests, their policies and Services.

/// Who is on the stage; all are pods of namespace `a`.
///
/// | pod | may receive | may send |
/// |---|---|---|
/// | `goal`, `stranger` | everything | everything |
/// | `ports` | TCP 80 and UDP 53 from `goal` | TCP 80 and UDP 53 to `goal` |
/// | `all` | everything from `goal` | everything to `goal` |
/// | `mute` | everything | nothing |
pub const PODS: [&str; 5] = ["goal", "stranger", "ports", "all", "mute"];

/// Their manifests. `host/outside` may be reached by `ports` at TCP 80.
pub fn world() -> String {
    let mut world = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n".to_owned();
    for name in PODS {
        world += &format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: {name}, labels: {{app: {name}}}}}, spec: {{containers: [{{name: c}}]}}}}\n"
        );
    }
    let policy = |app: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: a, name: {app}}}, \
             spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, {spec}}}}}\n"
        )
    };
    let goal = "{podSelector: {matchLabels: {app: goal}}}";
    let ports = "ports: [{port: 80}, {port: 53, protocol: UDP}]";
    let outside = "{ipBlock: {cidr: 10.0.5.7/32}}, {ipBlock: {cidr: 'fd00:5::7/128'}}";
    world += &policy(
        "ports",
        &format!(
            "ingress: [{{from: [{goal}], {ports}}}], policyTypes: [Ingress, Egress], \
             egress: [{{to: [{goal}], {ports}}}, {{to: [{outside}], ports: [{{port: 80}}]}}]"
        ),
    );
    world += &policy(
        "all",
        &format!(
            "ingress: [{{from: [{goal}]}}], policyTypes: [Ingress, Egress], egress: [{{to: [{goal}]}}]"
        ),
    );
    world += &policy("mute", "policyTypes: [Egress]");
    world
        + "---\n{apiVersion: lab.netpol-agent/v1, kind: Host, metadata: {name: outside}, spec: {addresses: [10.0.5.7, 'fd00:5::7']}}\n"
}

/// A pod of another node, and Services of UDP port 53: of `goal`, of `ports`, of that pod, of nobody, of a pod that is not there,
/// and of the nodes' own VXLAN devices.
pub const ABROAD: &str = "---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: abroad, labels: {app: abroad}}, spec: {nodeName: n2, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: live}, spec: {type: NodePort, selector: {app: goal}, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIPs: [10.96.0.9, 'fd00:10:96::9'], ports: [{port: 53, protocol: UDP, nodePort: 30009}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: fenced}, spec: {type: NodePort, selector: {app: ports}, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIPs: [10.96.0.12, 'fd00:10:96::12'], ports: [{port: 53, protocol: UDP, nodePort: 30012}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: far}, spec: {selector: {app: abroad}, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIPs: [10.96.0.13, 'fd00:10:96::13'], ports: [{port: 53, protocol: UDP}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: nobody}, spec: {selector: {app: nobody}, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIPs: [10.96.0.10, 'fd00:10:96::10'], ports: [{port: 53, protocol: UDP}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: gone}, spec: {ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIPs: [10.96.0.11, 'fd00:10:96::11'], ports: [{port: 53, protocol: UDP}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: a, name: gone-4, labels: {kubernetes.io/service-name: gone}}, addressType: IPv4, endpoints: [{addresses: [10.244.1.200], conditions: {ready: true}}], ports: [{port: 53, protocol: UDP}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: a, name: gone-6, labels: {kubernetes.io/service-name: gone}}, addressType: IPv6, endpoints: [{addresses: ['fd00:10:244:1::200'], conditions: {ready: true}}], ports: [{port: 53, protocol: UDP}]}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: vtep-there}, spec: {ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIPs: [10.96.0.14, 'fd00:10:96::14'], ports: [{name: vxlan, port: 53, protocol: UDP}, {name: beside, port: 54, protocol: UDP}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: a, name: vtep-there-4, labels: {kubernetes.io/service-name: vtep-there}}, addressType: IPv4, endpoints: [{addresses: [172.18.0.3], conditions: {ready: true}}], ports: [{name: vxlan, port: 8472, protocol: UDP}, {name: beside, port: 8473, protocol: UDP}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: a, name: vtep-there-6, labels: {kubernetes.io/service-name: vtep-there}}, addressType: IPv6, endpoints: [{addresses: ['fd00:172:18::3'], conditions: {ready: true}}], ports: [{name: vxlan, port: 8472, protocol: UDP}, {name: beside, port: 8473, protocol: UDP}]}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: vtep-here}, spec: {ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIPs: [10.96.0.15, 'fd00:10:96::15'], ports: [{name: vxlan, port: 53, protocol: UDP}, {name: beside, port: 54, protocol: UDP}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: a, name: vtep-here-4, labels: {kubernetes.io/service-name: vtep-here}}, addressType: IPv4, endpoints: [{addresses: [172.18.0.2], conditions: {ready: true}}], ports: [{name: vxlan, port: 8472, protocol: UDP}, {name: beside, port: 8473, protocol: UDP}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: a, name: vtep-here-6, labels: {kubernetes.io/service-name: vtep-here}}, addressType: IPv6, endpoints: [{addresses: ['fd00:172:18::2'], conditions: {ready: true}}], ports: [{name: vxlan, port: 8472, protocol: UDP}, {name: beside, port: 8473, protocol: UDP}]}
";
