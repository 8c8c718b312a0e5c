//! Values of Secrets, as the kubelet mounts them: read when they are used, so that a rotated one needs no restart.
//!
//! The gateway has no right to read any Secret. Those that a policy names are mounted, and each must consent: its key
//! `agentsandbox.dev.hosts` lists the hosts to which its other values may be sent.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentsandbox_api::gateway::CONSENT_KEY;
use agentsandbox_egress::credential::{self, CONSENT_MAX, Credential, VALUE_MAX};
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::name::HostName;
use http::HeaderValue;

/// A file is not read again within so long. With the kubelet's own delay a rotation arrives within a minute or two.
const FRESH: Duration = Duration::from_secs(1);
/// Most files remembered.
const MAX_FILES: usize = 256;

/// The mounted Secrets.
pub struct Credentials {
    folder: PathBuf,
    files: Mutex<HashMap<PathBuf, Content>>,
}

/// What was read, and when.
type Content = (Instant, Arc<[u8]>);

/// A credential, ready to be added to one request.
#[derive(Clone)]
pub struct Ready {
    /// The header's whole value.
    pub value: HeaderValue,
    /// The Secret's value, which no answer may carry back.
    pub secret: Arc<[u8]>,
}

impl Credentials {
    /// Reads below this folder.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            files: Mutex::default(),
        }
    }

    /// The value that may be sent to `host`.
    ///
    /// # Errors
    /// [`Deny::CredentialUnavailable`] if the Secret or its key is not there, is no header's value, or does not list the
    /// host.
    pub fn for_host(&self, credential: &Credential, host: &HostName) -> Result<Ready, Deny> {
        // Names were checked when the policy was compiled: neither can lead out of the folder.
        let secret = self.folder.join(&credential.secret);
        let consent = self.read(&secret.join(CONSENT_KEY), CONSENT_MAX)?;
        credential::consent(&consent, host)?;
        let secret = self.read(&secret.join(&credential.key), VALUE_MAX)?;
        Ok(Ready {
            value: credential.value(&secret)?,
            secret,
        })
    }

    fn read(&self, path: &Path, max: usize) -> Result<Arc<[u8]>, Deny> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, content)) = files.get(path)
            && read.elapsed() < FRESH
        {
            return Ok(content.clone());
        }
        // A few hundred bytes of a memory file system: reading them blocks nobody.
        let mut content = Vec::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(max as u64 + 1).read_to_end(&mut content))
            .ok()
            .filter(|length| *length <= max);
        if read.is_none() {
            files.remove(path);
            return Err(Deny::CredentialUnavailable);
        }
        if files.len() >= MAX_FILES {
            files.clear();
        }
        let content: Arc<[u8]> = content.into();
        files.insert(path.to_owned(), (Instant::now(), content.clone()));
        Ok(content)
    }
}

impl std::fmt::Debug for Ready {
    /// Without the value.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").finish_non_exhaustive()
    }
}
