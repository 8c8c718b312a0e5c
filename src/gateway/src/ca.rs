//! The authority that signs for inspected hosts: one key per gateway pod, one certificate per policy, leaves that live
//! for a day at most.
//!
//! Each policy's certificate is constrained to the hosts that it inspects: a sandbox that trusts it trusts it for
//! nothing else. The key never leaves the pod. It lies in a folder that a container's crash does not empty; a new pod
//! makes a new one, and recorders that register again get the new certificate.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agentsandbox_egress::name::{HostName, HostPattern};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::PrivatePkcs8KeyDer;
use time::{Duration, OffsetDateTime};

/// How long an authority's certificate holds: longer than the longest run (30 days), and than most pods live.
const AUTHORITY_LIFE: Duration = Duration::days(400);
/// A certificate with less left than this is made anew at the next registration.
const AUTHORITY_LEFT: Duration = Duration::days(40);
/// How long a leaf holds.
const LEAF_LIFE: Duration = Duration::hours(12);
/// A leaf with less left than this is made anew.
const LEAF_LEFT: Duration = Duration::hours(1);
/// Certificates are valid from so long ago: clocks differ.
const BACKDATED: Duration = Duration::minutes(5);
/// Most leaves kept.
const MAX_LEAVES: usize = 1_024;
/// Name of the key's file in the state folder.
const KEY_FILE: &str = "authority.key";

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The key can't be kept.
    #[error("the authority's key can't be read or written in {folder}: {source}")]
    Key {
        /// The state folder.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate can't be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A certificate can't be used.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// There is no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

/// Signs for inspected hosts.
pub struct Authority {
    key_pem: String,
    namespace: String,
    random: SystemRandom,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    authorities: HashMap<String, Arc<PolicyAuthority>>,
    leaves: HashMap<(String, HostName), Leaf>,
}

struct Leaf {
    authority: Arc<PolicyAuthority>,
    config: Arc<ServerConfig>,
    until: OffsetDateTime,
}

/// The authority as one policy's sandboxes know it.
pub struct PolicyAuthority {
    hosts: Vec<HostPattern>,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    until: OffsetDateTime,
}

impl PolicyAuthority {
    /// The certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

impl Authority {
    /// Reads the key from the state folder, or makes one.
    pub fn open(folder: &Path, namespace: &str) -> Result<Self, CaError> {
        let failed = |source| CaError::Key {
            folder: folder.display().to_string(),
            source,
        };
        let path = folder.join(KEY_FILE);
        let key_pem = match std::fs::read_to_string(&path) {
            // A file cut short by a crash is no key: a new one is as good.
            Ok(pem) if KeyPair::from_pem(&pem).is_ok() => pem,
            Ok(_) => write_key(&path).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(folder).map_err(failed)?;
                write_key(&path).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        KeyPair::from_pem(&key_pem)?;
        Ok(Self {
            key_pem,
            namespace: namespace.to_owned(),
            random: SystemRandom::new(),
            cache: Mutex::default(),
        })
    }

    /// The authority of a policy that inspects `hosts`; `None` if it inspects none.
    pub fn of_policy(
        &self,
        policy: &str,
        hosts: &[HostPattern],
    ) -> Result<Option<Arc<PolicyAuthority>>, CaError> {
        if hosts.is_empty() {
            return Ok(None);
        }
        let now = OffsetDateTime::now_utc();
        let known = self.cache().authorities.get(policy).cloned();
        if let Some(known) = known
            && known.hosts == hosts
            && known.until - now > AUTHORITY_LEFT
        {
            return Ok(Some(known));
        }
        let made = Arc::new(self.make_authority(policy, hosts, now)?);
        self.cache().authorities.insert(policy.to_owned(), made.clone());
        Ok(Some(made))
    }

    /// How TLS is spoken with a sandbox of `policy` that asks for `host`, which the policy inspects.
    pub fn server_config(
        &self,
        policy: &str,
        hosts: &[HostPattern],
        host: &HostName,
    ) -> Result<Option<Arc<ServerConfig>>, CaError> {
        let Some(authority) = self.of_policy(policy, hosts)? else {
            return Ok(None);
        };
        if !hosts.iter().any(|pattern| pattern.matches(host)) {
            return Ok(None);
        }
        let now = OffsetDateTime::now_utc();
        let key = (policy.to_owned(), host.clone());
        if let Some(leaf) = self.cache().leaves.get(&key)
            && Arc::ptr_eq(&leaf.authority, &authority)
            && leaf.until - now > LEAF_LEFT
        {
            return Ok(Some(leaf.config.clone()));
        }
        let (config, until) = self.make_leaf(&authority, host, now)?;
        let mut cache = self.cache();
        if cache.leaves.len() >= MAX_LEAVES {
            make_room(&mut cache.leaves, now);
        }
        let leaf = Leaf {
            authority,
            config: config.clone(),
            until,
        };
        cache.leaves.insert(key, leaf);
        Ok(Some(config))
    }

    /// Forgets what was made for a policy that is gone.
    pub fn forget(&self, policy: &str) {
        let mut cache = self.cache();
        cache.authorities.remove(policy);
        cache.leaves.retain(|(owner, _), _| owner != policy);
    }

    fn make_authority(
        &self,
        policy: &str,
        hosts: &[HostPattern],
        now: OffsetDateTime,
    ) -> Result<PolicyAuthority, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = format!("Agent Sandbox egress, {}/{policy}", self.namespace);
        // An X.520 common name holds 64 characters; some readers refuse more.
        let name: String = name.chars().take(64).collect();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = now - BACKDATED;
        params.not_after = now + AUTHORITY_LIFE;
        params.serial_number = Some(self.serial()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.name_constraints = Some(constraints(hosts));
        let key = KeyPair::from_pem(&self.key_pem)?;
        let pem = params.self_signed(&key)?.pem();
        Ok(PolicyAuthority {
            hosts: hosts.to_vec(),
            until: params.not_after,
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    fn make_leaf(
        &self,
        authority: &PolicyAuthority,
        host: &HostName,
        now: OffsetDateTime,
    ) -> Result<(Arc<ServerConfig>, OffsetDateTime), CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::DnsName(host.as_str().try_into()?)];
        params.not_before = now - BACKDATED;
        params.not_after = (now + LEAF_LIFE).min(authority.until);
        params.serial_number = Some(self.serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority.issuer)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok((Arc::new(config), params.not_after))
    }

    fn serial(&self) -> Result<SerialNumber, CaError> {
        let mut serial = [0; 16];
        self.random.fill(&mut serial).map_err(|_| CaError::Random)?;
        // Positive, and of full length.
        serial[0] = serial[0] & 0x7f | 0x40;
        Ok(SerialNumber::from_slice(&serial))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_key(path: &Path) -> std::io::Result<String> {
    let pem = KeyPair::generate()
        .map_err(std::io::Error::other)?
        .serialize_pem();
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(pem)
}

/// For exactly these names, and no address. RFC 5280 lets a permitted name stand for those below it too; the leaf,
/// which holds one name, is what narrows it further.
fn constraints(hosts: &[HostPattern]) -> NameConstraints {
    let mut names: Vec<&str> = hosts.iter().map(|pattern| pattern.name().as_str()).collect();
    names.sort_unstable();
    names.dedup();
    NameConstraints {
        permitted_subtrees: names
            .into_iter()
            .map(|name| GeneralSubtree::DnsName(name.to_owned()))
            .collect(),
        excluded_subtrees: [IpAddr::from([0; 4]), IpAddr::from([0; 16])]
            .map(|any| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(any, 0)))
            .into(),
    }
}

/// Drops what has expired; if that is nothing, half of the rest, whichever: they are cheap to make again.
fn make_room(leaves: &mut HashMap<(String, HostName), Leaf>, now: OffsetDateTime) {
    leaves.retain(|_, leaf| leaf.until - now > LEAF_LEFT);
    if leaves.len() >= MAX_LEAVES {
        let mut keep = false;
        leaves.retain(|_, _| {
            keep = !keep;
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    fn patterns(hosts: &[&str]) -> Vec<HostPattern> {
        hosts.iter().map(|host| host.parse().unwrap()).collect()
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("gateway-ca-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    fn verifies(pem: &str, leaf: &CertificateDer<'_>, name: &str) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier
            .verify_server_cert(leaf, &[], &name, &[], UnixTime::now())
            .is_ok()
    }

    fn leaf(authority: &Authority, of: &PolicyAuthority, host: &str) -> CertificateDer<'static> {
        let host = HostName::parse(host).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(host.as_str().try_into().unwrap())];
        params.serial_number = Some(authority.serial().unwrap());
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &of.issuer).unwrap().der().clone()
    }

    #[test]
    fn leaves_of_inspected_hosts_verify_and_others_do_not() {
        let folder = folder("constraints");
        let authority = Authority::open(&folder, "agents").unwrap();
        let hosts = patterns(&["api.example.org", "*.example.net"]);
        let policy = authority.of_policy("default", &hosts).unwrap().unwrap();
        for (host, expected) in [
            ("api.example.org", true),
            ("a.example.net", true),
            ("evil.example.com", false),
            ("xapi.example.org", false),
        ] {
            let leaf = leaf(&authority, &policy, host);
            assert_eq!(verifies(policy.pem(), &leaf, host), expected, "{host}");
        }
    }

    #[test]
    fn only_inspected_hosts_get_a_leaf_and_each_is_made_once() {
        let folder = folder("leaves");
        let authority = Authority::open(&folder, "agents").unwrap();
        let hosts = patterns(&["api.example.org"]);
        let ask = |host: &str| {
            authority
                .server_config("default", &hosts, &HostName::parse(host).unwrap())
                .unwrap()
        };
        let (first, second) = (ask("api.example.org").unwrap(), ask("api.example.org").unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert!(ask("b.example.org").is_none());
        assert!(authority.of_policy("none", &[]).unwrap().is_none());
    }

    #[test]
    fn the_key_survives_and_other_hosts_make_another_certificate() {
        let folder = folder("key");
        let hosts = patterns(&["api.example.org"]);
        let authority = Authority::open(&folder, "agents").unwrap();
        let before = authority.of_policy("default", &hosts).unwrap().unwrap();
        let again = Authority::open(&folder, "agents").unwrap();
        let after = again.of_policy("default", &hosts).unwrap().unwrap();
        // A sandbox that was given the certificate before the crash trusts what is signed after it.
        let leaf = leaf(&again, &after, "api.example.org");
        assert!(verifies(before.pem(), &leaf, "api.example.org"));
        let wider = again
            .of_policy("default", &patterns(&["api.example.org", "b.example.org"]))
            .unwrap()
            .unwrap();
        assert_ne!(wider.pem(), after.pem());
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(folder.join(KEY_FILE)).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        let _ = std::fs::remove_dir_all(&folder);
    }

    #[test]
    fn a_key_file_that_was_cut_short_is_replaced() {
        let folder = folder("torn");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(KEY_FILE), "-----BEGIN PRIV").unwrap();
        assert!(Authority::open(&folder, "agents").is_ok());
        let _ = std::fs::remove_dir_all(&folder);
    }
}
