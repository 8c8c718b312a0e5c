//! Package indexes: PyPI's simple index (PEP 503) with one wheel, and an npm registry with one package. Both packages
//! are made when the world begins.

use std::fmt::Write as _;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Request;
use serde_json::json;
use sha2::{Digest, Sha256, Sha512};

use crate::World;
use crate::body::{Response, answer, full, json};
use crate::server::host_of;
use crate::web::hex;

const WHEEL: &str = "greeting-1.0.0-py3-none-any.whl";
const TARBALL: &str = "greeting-1.0.0.tgz";
const PYTHON: &str = "def greet():\n    return 'hello from a wheel'\n";
const JAVASCRIPT: &str = "module.exports = () => 'hello from a tarball';\n";

/// The packages that are served.
pub struct Packages {
    wheel: Vec<u8>,
    tarball: Vec<u8>,
}

impl Packages {
    /// Makes both packages.
    pub fn create() -> std::io::Result<Self> {
        Ok(Self {
            wheel: wheel(),
            tarball: tarball()?,
        })
    }
}

/// Answers a request for an index or a package.
pub fn serve<B>(world: &World, request: &Request<B>) -> Option<Response> {
    let Packages { wheel, tarball } = &world.packages;
    let response = match request.uri().path() {
        "/simple/" => answer(
            200,
            "text/html",
            full("<!DOCTYPE html><html><body><a href=\"/simple/greeting/\">greeting</a></body></html>"),
        ),
        "/simple/greeting/" => {
            let digest = hex(&Sha256::digest(wheel));
            let page = format!(
                "<!DOCTYPE html><html><body><a href=\"/wheels/{WHEEL}#sha256={digest}\">{WHEEL}</a></body></html>"
            );
            answer(200, "text/html", full(page))
        }
        path if path.strip_prefix("/wheels/") == Some(WHEEL) => {
            answer(200, "application/octet-stream", full(wheel.clone()))
        }
        "/npm/greeting" => {
            let integrity = format!("sha512-{}", BASE64.encode(Sha512::digest(tarball)));
            let url = format!("https://{}/npm/greeting/-/{TARBALL}", host_of(request));
            json(
                200,
                &json!({
                    "name": "greeting", "dist-tags": {"latest": "1.0.0"},
                    "versions": {"1.0.0": {
                        "name": "greeting", "version": "1.0.0", "main": "index.js",
                        "dist": {"tarball": url, "integrity": integrity},
                    }},
                }),
            )
        }
        path if path.strip_prefix("/npm/greeting/-/") == Some(TARBALL) => {
            answer(200, "application/octet-stream", full(tarball.clone()))
        }
        _ => return None,
    };
    Some(response)
}

/// A wheel (PEP 427) of one module.
fn wheel() -> Vec<u8> {
    let metadata = "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0.0\n";
    let about = "Wheel-Version: 1.0\nGenerator: world\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let mut files = vec![
        ("greeting/__init__.py", PYTHON.to_owned()),
        ("greeting-1.0.0.dist-info/METADATA", metadata.to_owned()),
        ("greeting-1.0.0.dist-info/WHEEL", about.to_owned()),
    ];
    let mut record = String::new();
    for (name, content) in &files {
        let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(content));
        let _ = writeln!(record, "{name},sha256={digest},{}", content.len());
    }
    record.push_str("greeting-1.0.0.dist-info/RECORD,,\n");
    files.push(("greeting-1.0.0.dist-info/RECORD", record));
    let entries: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, content)| (*name, content.as_bytes()))
        .collect();
    zip(&entries)
}

/// A zip archive of uncompressed files, as small as the format allows (APPNOTE, sections 4.3.7, 4.3.12, 4.3.16).
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    let word = |number: usize| u32::try_from(number).unwrap_or_default().to_le_bytes();
    let half = |number: usize| u16::try_from(number).unwrap_or_default().to_le_bytes();
    for (name, content) in files {
        // Version needed 2.0, no flags, stored, 1980-01-01 00:00.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc32fast::hash(content).to_le_bytes());
        common.extend(word(content.len()));
        common.extend(word(content.len()));
        common.extend(half(name.len()));
        common.extend(half(0));
        directory.extend(b"PK\x01\x02\x14\x03");
        directory.extend(&common);
        // No comment, first disk, no attributes but those of an ordinary file.
        directory.extend([0, 0, 0, 0, 0, 0, 0, 0, 0xa4, 0x81]);
        directory.extend(word(out.len()));
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(*content);
    }
    let begin = out.len();
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(half(files.len()));
    out.extend(half(files.len()));
    out.extend(word(directory.len()));
    out.extend(word(begin));
    out.extend(half(0));
    out
}

/// An npm package of one module.
fn tarball() -> std::io::Result<Vec<u8>> {
    let manifest = json!({"name": "greeting", "version": "1.0.0", "main": "index.js"}).to_string();
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    for (name, content) in [
        ("package/package.json", manifest.as_str()),
        ("package/index.js", JAVASCRIPT),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, content.as_bytes())?;
    }
    let mut encoder = archive.into_inner()?;
    encoder.flush()?;
    encoder.finish()
}
