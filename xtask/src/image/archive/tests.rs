//! The archive is read again as those who load it do.

use std::{collections::BTreeMap, io::Read as _};

use flate2::read::GzDecoder;

use super::*;

fn content(program: &[u8]) -> Content<'_> {
    Content {
        program: program.to_owned(),
        architecture: "amd64",
        name: "localhost/netpol-agent:test",
        labels: vec![("org.opencontainers.image.version".into(), "1".into())],
    }
}

fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its content");
        files.insert(name, bytes);
    }
    files
}

fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&files[name]).expect("JSON")
}

/// The blob that a descriptor means, checked.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().expect("a digest");
    let blob = &files[&digest.replace("sha256:", "blobs/sha256/")];
    assert_eq!(super::digest(blob), digest);
    assert_eq!(descriptor["size"], blob.len());
    blob
}

#[test]
fn an_oci_reader_and_docker_find_the_same_image() {
    let image = Image::of(&content(b"program")).expect("an image");
    let files = files(&image.archive);
    assert_eq!(json(&files, "oci-layout")["imageLayoutVersion"], "1.0.0");

    let entry = &json(&files, "index.json")["manifests"][0];
    assert_eq!(entry["digest"], image.digest);
    assert_eq!(
        entry["annotations"]["io.containerd.image.name"],
        "localhost/netpol-agent:test"
    );
    let manifest: Value = serde_json::from_slice(blob(&files, entry)).expect("a manifest");
    let config: Value =
        serde_json::from_slice(blob(&files, &manifest["config"])).expect("a config");
    assert_eq!(config["config"]["Entrypoint"], json!(["/bin/netpol-agent"]));
    assert_eq!(
        config["config"]["Labels"]["org.opencontainers.image.version"],
        "1"
    );

    let packed = blob(&files, &manifest["layers"][0]);
    let mut layer = Vec::new();
    GzDecoder::new(packed)
        .read_to_end(&mut layer)
        .expect("gzip");
    assert_eq!(config["rootfs"]["diff_ids"], json!([super::digest(&layer)]));
    let inside = super::tests::files(&layer);
    assert_eq!(inside["bin/netpol-agent"], b"program");
    assert!(inside.contains_key("run/netpol-agent/"), "{inside:?}");

    let docker = &json(&files, "manifest.json")[0];
    assert_eq!(docker["RepoTags"], json!(["localhost/netpol-agent:test"]));
    for (name, bytes) in [
        (&docker["Config"], blob(&files, &manifest["config"])),
        (&docker["Layers"][0], packed),
    ] {
        assert_eq!(files[name.as_str().expect("a path")], bytes);
    }
}

#[test]
fn the_same_program_gives_the_same_bytes() {
    let image = |program| Image::of(&content(program)).expect("an image");
    assert_eq!(image(b"one").archive, image(b"one").archive);
    assert_ne!(image(b"one").digest, image(b"two").digest);
}

#[test]
fn a_program_with_a_dynamic_linker_is_told_from_a_static_one() {
    let program = |kinds: &[u32]| {
        let mut elf = vec![0u8; 64];
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = kinds.len() as u8;
        for kind in kinds {
            elf.extend(kind.to_le_bytes());
            elf.extend([0; 52]);
        }
        elf
    };
    assert!(!is_dynamic(&program(&[1, 2, 6])));
    assert!(is_dynamic(&program(&[6, 3, 1])));
    assert!(is_dynamic(b"no program at all"));
}
