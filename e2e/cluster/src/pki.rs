//! Keys, certificates and kubeconfigs of one cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::{InFile, Result};
use crate::layout::{Layout, address};

/// An authority with its certificate.
struct Authority {
    pem: String,
    params: CertificateParams,
    key: KeyPair,
}

/// Makes everything a cluster needs; `host_port` is where the host reaches the API server.
pub fn create(layout: &Layout, host_port: u16) -> Result<()> {
    let folder = layout.file("pki");
    fs::create_dir_all(&folder).in_file(&folder)?;
    let ca = authority("agent-sandbox-cluster")?;
    let front = authority("agent-sandbox-front-proxy")?;
    write(&folder, "ca.crt", &ca.pem)?;
    write(&folder, "ca.key", &ca.key.serialize_pem())?;
    write(&folder, "front-proxy-ca.crt", &front.pem)?;

    let server_names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        address::API_SERVICE,
        address::NODE,
    ];
    let server = ExtendedKeyUsagePurpose::ServerAuth;
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    leaf(
        &folder,
        "apiserver",
        "kube-apiserver",
        None,
        &server_names,
        server.clone(),
        &ca,
    )?;
    leaf(
        &folder,
        "kubelet-server",
        &layout.name,
        None,
        &[&layout.name, "127.0.0.1", address::NODE],
        server,
        &ca,
    )?;
    leaf(
        &folder,
        "apiserver-kubelet",
        "apiserver-kubelet",
        Some("system:masters"),
        &[],
        client.clone(),
        &ca,
    )?;
    leaf(
        &folder,
        "front-proxy",
        "front-proxy",
        None,
        &[],
        client.clone(),
        &front,
    )?;
    let node = format!("system:node:{}", layout.name);
    let inside = format!("https://127.0.0.1:{}", address::API_PORT);
    for (file, user, group) in [
        ("admin", "admin", Some("system:masters")),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("node", node.as_str(), Some("system:nodes")),
    ] {
        leaf(&folder, file, user, group, &[], client.clone(), &ca)?;
        kubeconfig(
            &folder,
            file,
            &inside,
            &layout.file(&format!("{file}.kubeconfig")),
            &ca.pem,
        )?;
    }
    kubeconfig(
        &folder,
        "admin",
        &format!("https://127.0.0.1:{host_port}"),
        &layout.kubeconfig(),
        &ca.pem,
    )?;

    let accounts = KeyPair::generate()?;
    write(&folder, "sa.key", &accounts.serialize_pem())?;
    write(&folder, "sa.pub", &accounts.public_key_pem())
}

fn authority(name: &str) -> Result<Authority> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok(Authority { pem, params, key })
}

fn leaf(
    folder: &Path,
    file: &str,
    user: &str,
    group: Option<&str>,
    names: &[&str],
    usage: ExtendedKeyUsagePurpose,
    authority: &Authority,
) -> Result<()> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate()?;
    let issuer = Issuer::from_params(&authority.params, &authority.key);
    let certificate = params.signed_by(&key, &issuer)?;
    write(folder, &format!("{file}.crt"), &certificate.pem())?;
    write(folder, &format!("{file}.key"), &key.serialize_pem())
}

fn kubeconfig(folder: &Path, user: &str, server: &str, out: &Path, ca: &str) -> Result<()> {
    let read = |name: String| {
        let path = folder.join(name);
        fs::read(&path).in_file(&path).map(|bytes| BASE64.encode(bytes))
    };
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: cluster\n\
         clusters: [{{name: cluster, cluster: {{server: \"{server}\", certificate-authority-data: {}}}}}]\n\
         users: [{{name: user, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n\
         contexts: [{{name: cluster, context: {{cluster: cluster, user: user}}}}]\n",
        BASE64.encode(ca),
        read(format!("{user}.crt"))?,
        read(format!("{user}.key"))?
    );
    write_secret(out, &text)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    write_secret(&folder.join(name), text)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).in_file(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).in_file(path)
}
