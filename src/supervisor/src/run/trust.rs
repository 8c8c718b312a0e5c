//! The bundle of certificates that the command trusts, where the egress gateway inspects something: the image's own,
//! and the gateway's authority.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use agentsandbox_api::gateway::{PATH_CA_BUNDLE, PATH_WGETRC};

/// Where images keep theirs: Debian and Alpine, Red Hat, OpenSSL's own default.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// Most bytes of an image's bundle; the usual ones hold 200 to 500 KB.
const BUNDLE_MAX_BYTES: u64 = 4 << 20;

/// Writes the bundle with this authority, and the settings by which wget finds it.
pub fn install(certificate: &str) -> Result<(), String> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let own = named
        .iter()
        .map(String::as_str)
        .chain(BUNDLES)
        .find_map(|path| open(Path::new(path)));
    let settings = format!("ca_certificate = {PATH_CA_BUNDLE}");
    for (path, text, more) in [(PATH_CA_BUNDLE, certificate, own), (PATH_WGETRC, &settings, None)] {
        write(Path::new(path), text, more).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

/// An image's bundle, if it is a file of a sensible size. An image is not trusted: it may hold a pipe there.
fn open(path: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let meta = file.metadata().ok()?;
    (meta.is_file() && meta.len() <= BUNDLE_MAX_BYTES).then_some(file)
}

/// The file appears whole, in place of whatever the command may have put there.
fn write(target: &Path, text: &str, more: Option<File>) -> io::Result<()> {
    let partial = target.with_extension("partial");
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&partial)?;
    file.write_all(text.trim_end().as_bytes())?;
    file.write_all(b"\n")?;
    if let Some(more) = more {
        io::copy(&mut more.take(BUNDLE_MAX_BYTES), &mut file)?;
    }
    std::fs::rename(&partial, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("trust-{test}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_bundle_holds_the_authority_and_what_the_image_trusts() {
        let folder = Folder::new("both");
        let (own, target) = (folder.0.join("own.crt"), folder.0.join(".bundle.crt"));
        std::fs::write(&own, "IMAGE\n").unwrap();
        write(&target, "GATEWAY", open(&own)).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "GATEWAY\nIMAGE\n");
        write(&target, "NEXT\n", open(&own)).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "NEXT\nIMAGE\n");
        write(&target, "ALONE", None).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "ALONE\n");
    }

    #[test]
    fn a_link_that_the_command_left_is_replaced_and_not_followed() {
        let folder = Folder::new("link");
        let (victim, target) = (folder.0.join("victim"), folder.0.join(".bundle.crt"));
        std::fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, &target).unwrap();
        std::os::unix::fs::symlink(&victim, target.with_extension("partial")).unwrap();
        write(&target, "GATEWAY", None).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "GATEWAY\n");
        assert!(!std::fs::symlink_metadata(&target).unwrap().is_symlink());
    }

    #[test]
    fn what_is_no_file_is_no_bundle() {
        let folder = Folder::new("none");
        assert!(open(&folder.0).is_none());
        assert!(open(&folder.0.join("missing")).is_none());
        assert!(open(Path::new("/dev/zero")).is_none());
    }
}
