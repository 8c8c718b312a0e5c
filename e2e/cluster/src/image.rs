//! OCI images without a registry and without an engine: uncompressed, reproducible.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, InFile, Result};
use crate::tools::hex;

/// What an image holds and how it starts.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Its reference, such as `agent-sandbox.local/operator:dev`.
    pub reference: String,
    /// Files to put in: source, destination, mode.
    pub files: Vec<(PathBuf, String, u32)>,
    /// Layers as tar archives, the lowest first, instead of files.
    pub layers: Vec<PathBuf>,
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
        let made = out.with_extension("layer");
        let files = if self.layers.is_empty() {
            self.write_layer(&made).in_file(&made)?;
            vec![made.clone()]
        } else {
            self.layers.clone()
        };
        let mut layers = Vec::new();
        for file in &files {
            let (digest, size) = digest_of_file(file).in_file(file)?;
            layers.push((file, digest, size));
        }
        let digests: Vec<String> = layers
            .iter()
            .map(|(_, digest, _)| format!("sha256:{digest}"))
            .collect();
        let config = self.config(&digests).to_string();
        let config_digest = hex(&Sha256::digest(config.as_bytes()));
        let layer_type = "application/vnd.oci.image.layer.v1.tar";
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|(_, digest, size)| descriptor(layer_type, digest, *size))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config.len() as u64),
            "layers": descriptors,
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
            for (file, digest, size) in &layers {
                let mut header = header(*size, 0o644);
                archive.append_data(&mut header, format!("blobs/sha256/{digest}"), File::open(file)?)?;
            }
            archive.into_inner()?.flush()
        };
        write().in_file(&partial)?;
        fs::rename(&partial, out).in_file(out)?;
        if self.layers.is_empty() {
            fs::remove_file(&made).in_file(&made)?;
        }
        Ok(())
    }

    fn config(&self, layers: &[String]) -> Value {
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
            "rootfs": {"type": "layers", "diff_ids": layers},
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

/// Writes the lowest layer of an archive that [`Image::write`] made as a file of its own.
pub fn lowest_layer(archive: &Path, out: &Path) -> Result<()> {
    let copy = || -> io::Result<bool> {
        let mut archive = tar::Archive::new(File::open(archive)?);
        // Blobs before the layers are the configuration and the manifest, both JSON.
        for entry in archive.entries()? {
            let mut entry = entry?;
            let mut begin = [0; 1];
            if !entry.path()?.starts_with("blobs") || entry.read(&mut begin)? == 0 || begin == *b"{" {
                continue;
            }
            let mut file = File::create(out)?;
            file.write_all(&begin)?;
            io::copy(&mut entry, &mut file)?;
            return Ok(true);
        }
        Ok(false)
    };
    if copy().in_file(archive)? {
        Ok(())
    } else {
        Err(Error::Prerequisite(format!(
            "{} holds no layer: remove it",
            archive.display()
        )))
    }
}

/// Writes a folder as a layer, below a path of the image.
pub fn layer_of_folder(folder: &Path, below: &str, out: &Path) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut archive = tar::Builder::new(File::create(out)?);
        archive.mode(tar::HeaderMode::Deterministic);
        archive.follow_symlinks(false);
        archive.append_dir_all(below, folder)?;
        archive.into_inner()?.flush()
    };
    write().in_file(out)
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
