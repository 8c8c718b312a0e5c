//! The cluster's network namespace, and one that plays the outside world.

use std::path::Path;

use crate::command::{run_args, run_words};
use crate::error::Result;
use crate::layout::{Layout, address};

/// Makes both namespaces and the roads between them.
pub fn create(layout: &Layout) -> Result<()> {
    let (inside, outside) = (layout.netns(), layout.outside_netns());
    run_words(&format!("ip netns add {inside}"))?;
    run_words(&format!("ip netns add {outside}"))?;
    let (node, out, metadata) = (address::NODE, address::OUTSIDE, address::METADATA);
    let public = address::PUBLIC;
    for line in [
        "ip link set lo up".to_owned(),
        "ip link add asb0 type bridge".to_owned(),
        format!("ip addr add {node}/24 dev asb0"),
        "ip link set asb0 up".to_owned(),
        format!("ip link add vout type veth peer name eth0 netns {outside}"),
        "ip link set vout master asb0 up".to_owned(),
        // Whatever is neither a pod nor the node lies outside: a host that answers makes a denial provable.
        format!("ip route add default via {out} dev asb0"),
        format!("ip route add {metadata}/32 via {out} dev asb0"),
        "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
    ] {
        inside_of(layout, &line)?;
    }
    for line in [
        "ip link set lo up".to_owned(),
        format!("ip addr add {out}/24 dev eth0"),
        format!("ip addr add {metadata}/32 dev eth0"),
        "ip link set eth0 up".to_owned(),
        format!("ip route add default via {node}"),
        format!("ip route add local {public} dev lo"),
    ] {
        let enter = format!("nsenter --net=/run/netns/{outside} {line}");
        run_words(&enter)?;
    }
    Ok(())
}

/// Sends every new connection from or to a pod to the NetworkPolicy engine. There is no bypass: with the engine dead,
/// nothing passes. Connections that the engine has let through are not asked again.
pub fn guard(layout: &Layout) -> Result<()> {
    let pods = address::PODS;
    for line in [
        "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
        format!("-A FORWARD -s {pods} -j NFQUEUE --queue-num 100"),
        format!("-A FORWARD -d {pods} -j NFQUEUE --queue-num 100"),
        "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
        format!("-A INPUT -s {pods} -j NFQUEUE --queue-num 100"),
    ] {
        inside_of(layout, &format!("iptables -w -t mangle {line}"))?;
    }
    Ok(())
}

/// Runs a line inside the cluster's namespace. `ip netns exec` would mount another /sys, without the cgroups.
pub fn inside_of(layout: &Layout, line: &str) -> Result<String> {
    let enter = format!("--net={}", layout.netns_path());
    run_args(
        "nsenter",
        std::iter::once(enter.as_str()).chain(line.split_whitespace()),
    )
}

/// Removes both namespaces; the processes in them must have ended.
pub fn remove(layout: &Layout) {
    for name in [layout.netns(), layout.outside_netns()] {
        if Path::new("/run/netns").join(&name).exists() {
            let _ = run_words(&format!("ip netns del {name}"));
        }
    }
}
