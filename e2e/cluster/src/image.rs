//! OCI images without a registry and without an engine: one layer, uncompressed, reproducible.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{InFile, Result};
use crate::tools::hex;

/// What an image holds and how it starts.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Its reference, such as `agent-sandbox.local/operator:dev`.
    pub reference: String,
    /// Files to put in: source, destination, mode.
    pub files: Vec<(PathBuf, String, u32)>,
    /// A whole root file system as a tar archive, instead of files.
    pub root: Option<PathBuf>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// User, as `uid` or `uid:gid`.
    pub user: Option<String>,
    /// Environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Volumes that the image declares.
    pub volumes: Vec<String>,
}

impl Image {
    /// Writes the image as an OCI archive that `ctr images import` takes.
    pub fn write(&self, out: &Path) -> Result<()> {
        let layer_file = if let Some(root) = &self.root {
            root.clone()
        } else {
            let layer = out.with_extension("layer");
            self.write_layer(&layer).in_file(&layer)?;
            layer
        };
        let (layer_digest, layer_size) = digest_of_file(&layer_file).in_file(&layer_file)?;
        let config = self.config(&layer_digest).to_string();
        let config_digest = hex(&Sha256::digest(config.as_bytes()));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config.len() as u64),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer_digest, layer_size)],
        })
        .to_string();
        let manifest_digest = hex(&Sha256::digest(manifest.as_bytes()));
        let mut entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            &manifest_digest,
            manifest.len() as u64,
        );
        entry["annotations"] = json!({"io.containerd.image.name": self.reference});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        })
        .to_string();

        let partial = out.with_extension("partial");
        let write = || -> io::Result<()> {
            let mut archive = tar::Builder::new(File::create(&partial)?);
            append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            append(&mut archive, "index.json", index.as_bytes())?;
            append(
                &mut archive,
                &format!("blobs/sha256/{config_digest}"),
                config.as_bytes(),
            )?;
            append(
                &mut archive,
                &format!("blobs/sha256/{manifest_digest}"),
                manifest.as_bytes(),
            )?;
            let mut layer = File::open(&layer_file)?;
            let mut header = header(layer_size, 0o644);
            archive.append_data(&mut header, format!("blobs/sha256/{layer_digest}"), &mut layer)?;
            archive.into_inner()?.flush()
        };
        write().in_file(&partial)?;
        fs::rename(&partial, out).in_file(out)?;
        if self.root.is_none() {
            fs::remove_file(&layer_file).in_file(&layer_file)?;
        }
        Ok(())
    }

    fn config(&self, layer_digest: &str) -> Value {
        let mut env = self.env.clone();
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        }
        let volumes: serde_json::Map<String, Value> = self
            .volumes
            .iter()
            .map(|volume| (volume.clone(), json!({})))
            .collect();
        json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint, "Env": env, "WorkingDir": "/",
                "User": self.user.clone().unwrap_or_default(), "Volumes": volumes,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        })
    }

    fn write_layer(&self, out: &Path) -> io::Result<()> {
        let mut archive = tar::Builder::new(File::create(out)?);
        for folder in ["tmp", "etc", "dev", "proc", "sys"] {
            let mut header = header(0, if folder == "tmp" { 0o1777 } else { 0o755 });
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, folder, io::empty())?;
        }
        for (source, destination, mode) in &self.files {
            let mut file = File::open(source)?;
            let mut header = header(file.metadata()?.len(), *mode);
            archive.append_data(&mut header, destination.trim_start_matches('/'), &mut file)?;
        }
        archive.into_inner()?.flush()
    }
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

fn append(archive: &mut tar::Builder<File>, path: &str, content: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(content.len() as u64, 0o644), path, content)
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

fn digest_of_file(path: &Path) -> io::Result<(String, u64)> {
    let (mut file, mut hash, mut size) = (File::open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(&hash.finalize()), size)),
            length => {
                hash.update(&buffer[..length]);
                size += length as u64;
            }
        }
    }
}
