//! An image as one archive.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::Content;

/// Where the program is.
const PROGRAM: &str = "/bin/netpol-agent";
/// The moment at which everything was made: the time of a build tells nothing, and would make each one another image.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// An image, ready to be written.
pub struct Image {
    /// OCI image layout and `docker save` archive.
    pub archive: Vec<u8>,
    /// Names the image.
    pub digest: String,
    /// Bytes of its files, and of its compressed layer.
    pub unpacked: u64,
    pub packed: u64,
}

impl Image {
    pub fn of(content: &Content<'_>) -> Result<Self> {
        let layer = layer(&content.program)?;
        let packed = gzip(&layer)?;
        let labels: serde_json::Map<String, Value> = content
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        let config = serde_json::to_vec(&json!({
            "architecture": content.architecture,
            "os": "linux",
            "created": CREATED,
            "config": {
                "Entrypoint": [PROGRAM],
                "Env": ["PATH=/bin"],
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
            "history": [{"created": CREATED, "created_by": "cargo xtask image"}],
        }))?;
        let describe = |media_type: &str, blob: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{media_type}"),
                "digest": digest(blob),
                "size": blob.len(),
            })
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("config.v1+json", &config),
            "layers": [describe("layer.v1.tar+gzip", &packed)],
            "annotations": labels,
        }))?;
        let mut entry = describe("manifest.v1+json", &manifest);
        entry["platform"] = json!({"architecture": content.architecture, "os": "linux"});
        let (_, tag) = content
            .name
            .rsplit_once(':')
            .context("an image's name ends with a tag, as in localhost/netpol-agent:test")?;
        entry["annotations"] = json!({
            "io.containerd.image.name": content.name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        let docker = json!([{
            "Config": path(&config),
            "RepoTags": [content.name],
            "Layers": [path(&packed)],
        }]);

        let mut tar = Builder::new(Vec::new());
        for folder in ["blobs/", "blobs/sha256/"] {
            append(&mut tar, folder, EntryType::Directory, 0o755, &[])?;
        }
        for blob in [&config, &packed, &manifest] {
            file(&mut tar, &path(blob), blob)?;
        }
        let text = |json: &Value| serde_json::to_vec(json);
        file(&mut tar, "index.json", &text(&index)?)?;
        file(&mut tar, "manifest.json", &text(&docker)?)?;
        file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self {
            archive: tar.into_inner()?,
            digest: digest(&manifest),
            unpacked: content.program.len() as u64,
            packed: packed.len() as u64,
        })
    }
}

/// The only layer. The empty folders are where a read-only container needs something to mount on.
fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "bin/", EntryType::Directory, 0o755, &[])?;
    append(
        &mut tar,
        PROGRAM.trim_start_matches('/'),
        EntryType::Regular,
        0o755,
        program,
    )?;
    for folder in ["bpf/", "run/", "run/netpol-agent/", "sys/"] {
        append(&mut tar, folder, EntryType::Directory, 0o755, &[])?;
    }
    Ok(tar.into_inner()?)
}

fn file(tar: &mut Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> Result<()> {
    append(tar, name, EntryType::Regular, 0o644, bytes)
}

fn append(
    tar: &mut Builder<Vec<u8>>,
    name: &str,
    kind: EntryType,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    // Owner root, time 0: nothing of this machine.
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, name, bytes)?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn path(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(blob))
}

/// Whether a 64-bit little-endian ELF program names a dynamic linker (`PT_INTERP`).
pub fn is_dynamic(program: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at + length)?;
        let mut word = [0; 8];
        word[..length].copy_from_slice(bytes);
        Some(u64::from_le_bytes(word) as usize)
    };
    // e_phoff, e_phentsize and e_phnum of `Elf64_Ehdr`; p_type is the first word of each `Elf64_Phdr`.
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2))
    else {
        return true;
    };
    const PT_INTERP: usize = 3;
    (0..count).any(|i| number(table + i * size, 4).is_none_or(|kind| kind == PT_INTERP))
}

#[cfg(test)]
mod tests;
