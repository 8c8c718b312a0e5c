//! The parts of the cluster: what each is started with.

use std::fs;
use std::path::PathBuf;

use crate::error::{InFile, Result};
use crate::layout::{Layout, address};
use crate::process::{Place, Started, start};
use crate::tools::Programs;

/// Configuration files, with `@NAME@` and the like to be filled in.
const FILES: [(&str, &str); 7] = [
    ("kubelet.yaml", include_str!("../config/kubelet.yaml")),
    (
        "containerd/config.toml",
        include_str!("../config/containerd.toml"),
    ),
    ("runsc.toml", include_str!("../config/runsc.toml")),
    ("cni/10-pods.conflist", include_str!("../config/cni.conflist")),
    ("kube-proxy.yaml", include_str!("../config/kube-proxy.yaml")),
    ("audit.yaml", include_str!("../config/audit.yaml")),
    ("base.yaml", include_str!("../config/base.yaml")),
];

/// Parts in the order in which they end: those that make work first, those that the others need last.
pub const END_ORDER: [&str; 11] = [
    "kwok",
    "kubelet",
    "kube-proxy",
    "policy-engine",
    "kube-scheduler",
    "kube-controller-manager",
    "forward",
    "outside",
    "kube-apiserver",
    "containerd",
    "etcd",
];

/// Writes the configuration files.
pub fn write_files(layout: &Layout, programs: &Programs) -> Result<()> {
    for folder in ["log", "run", "cni", "containerd", "podlogs", "kubelet", "images"] {
        let path = layout.file(folder);
        fs::create_dir_all(&path).in_file(&path)?;
    }
    for (name, text) in FILES {
        let text = text
            .replace("@STATE@", &layout.state.display().to_string())
            .replace("@CGROUP@", &layout.cgroup())
            .replace("@CNI@", &programs.folder("cni").display().to_string())
            .replace("@OUTSIDE@", address::OUTSIDE)
            .replace("@NAME@", &layout.name);
        let path = layout.file(name);
        fs::write(&path, text).in_file(&path)?;
    }
    let resolver = layout.file("resolv.conf");
    fs::write(&resolver, format!("nameserver {}\n", address::DNS_SERVICE)).in_file(&resolver)
}

/// Starts one part of the cluster.
pub fn start_part(layout: &Layout, programs: &Programs, part: &str) -> Result<Started> {
    let state = layout.state.display();
    let kube = |program: &str| programs.path("kube", program);
    let (program, arguments): (PathBuf, String) = match part {
        "etcd" => (
            programs.path("etcd", "server"),
            format!(
                "--name cluster --data-dir {state}/etcd --unsafe-no-fsync --log-level warn \
                 --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
                 --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
                 --initial-cluster cluster=http://127.0.0.1:2380"
            ),
        ),
        "kube-apiserver" => (kube(part), api_server(layout)),
        "kube-controller-manager" => (
            kube(part),
            format!(
                "--kubeconfig={state}/controller-manager.kubeconfig \
                 --authentication-kubeconfig={state}/controller-manager.kubeconfig \
                 --authorization-kubeconfig={state}/controller-manager.kubeconfig --bind-address=127.0.0.1 \
                 --leader-elect=false --use-service-account-credentials=true \
                 --service-account-private-key-file={state}/pki/sa.key --root-ca-file={state}/pki/ca.crt \
                 --cluster-signing-cert-file={state}/pki/ca.crt --cluster-signing-key-file={state}/pki/ca.key \
                 --allocate-node-cidrs=true --cluster-cidr=10.244.0.0/16 --service-cluster-ip-range=10.96.0.0/16 \
                 --kube-api-qps=200 --kube-api-burst=400 --resource-quota-sync-period=10s"
            ),
        ),
        "kube-scheduler" => (
            kube(part),
            format!(
                "--kubeconfig={state}/scheduler.kubeconfig --authentication-kubeconfig={state}/scheduler.kubeconfig \
                 --authorization-kubeconfig={state}/scheduler.kubeconfig --bind-address=127.0.0.1 --leader-elect=false"
            ),
        ),
        "kubelet" => (
            kube(part),
            format!(
                "--config={state}/kubelet.yaml --kubeconfig={state}/node.kubeconfig --root-dir={state}/kubelet \
                 --hostname-override={} --node-ip={}",
                layout.name,
                address::NODE
            ),
        ),
        "kube-proxy" => (kube(part), format!("--config={state}/kube-proxy.yaml")),
        "containerd" => (
            programs.path("containerd", "containerd"),
            format!("-c {state}/containerd/config.toml"),
        ),
        "policy-engine" => return start_policy_engine(layout, programs),
        "kwok" => (
            programs.path("kwok", "kwok"),
            format!(
                "--kubeconfig={state}/admin.kubeconfig --manage-nodes-with-label-selector=type=kwok \
                 --config={state}/kwok.yaml --server-address=127.0.0.1:10247 --node-lease-duration-seconds=40"
            ),
        ),
        other => {
            return Err(crate::Error::Prerequisite(format!(
                "there is no part named {other}"
            )));
        }
    };
    let search = [
        programs.folder("containerd").to_owned(),
        programs.folder("gvisor").to_owned(),
    ];
    start(layout, part, Place::Inside, &program, &words(&arguments), &search)
}

fn api_server(layout: &Layout) -> String {
    let pki = layout.file("pki");
    let (pki, state) = (pki.display(), layout.state.display());
    format!(
        "--etcd-servers=http://127.0.0.1:2379 --secure-port={port} --bind-address=0.0.0.0 \
         --advertise-address={node} --service-cluster-ip-range=10.96.0.0/16 \
         --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key --client-ca-file={pki}/ca.crt \
         --kubelet-client-certificate={pki}/apiserver-kubelet.crt --kubelet-client-key={pki}/apiserver-kubelet.key \
         --kubelet-certificate-authority={pki}/ca.crt --service-account-key-file={pki}/sa.pub \
         --service-account-signing-key-file={pki}/sa.key \
         --service-account-issuer=https://kubernetes.default.svc.cluster.local \
         --requestheader-client-ca-file={pki}/front-proxy-ca.crt --requestheader-allowed-names=front-proxy \
         --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
         --requestheader-username-headers=X-Remote-User --proxy-client-cert-file={pki}/front-proxy.crt \
         --proxy-client-key-file={pki}/front-proxy.key --authorization-mode=Node,RBAC \
         --enable-admission-plugins=NodeRestriction --allow-privileged=true \
         --kubelet-preferred-address-types=InternalIP --audit-policy-file={state}/audit.yaml \
         --audit-log-path={state}/audit.log --audit-log-maxsize=200",
        port = address::API_PORT,
        node = address::NODE,
    )
}

/// The engine learns a pod's address from containerd before its containers start (NRI), so that no first packet
/// gets through. It looks for NRI's socket at a fixed path, so it gets a mount namespace in which that is containerd's.
fn start_policy_engine(layout: &Layout, programs: &Programs) -> Result<Started> {
    let state = layout.state.display();
    fs::create_dir_all("/var/run/nri").in_file("/var/run/nri")?;
    let script = format!(
        "mount --make-rprivate / && mount --bind {state}/containerd /var/run/nri && exec {} \
         --kubeconfig={state}/admin.kubeconfig --hostname-override={} --nfqueue-id=100 --fail-open=false \
         --metrics-bind-address=127.0.0.1:9080 -v=1",
        programs.path("knp", "standard").display(),
        layout.name
    );
    let arguments = ["-m", "sh", "-c", &script].map(str::to_owned);
    start(
        layout,
        "policy-engine",
        Place::Inside,
        std::path::Path::new("unshare"),
        &arguments,
        &[],
    )
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
