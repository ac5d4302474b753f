//! The keys and certificates of one control plane. They are made anew for each, and nobody else trusts them.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The certificate of the authority that has signed the others.
pub(super) const AUTHORITY: &str = "ca.crt";
/// The API server's certificate.
pub(super) const SERVER: &str = "apiserver.crt";
/// The API server's key.
pub(super) const SERVER_KEY: &str = "apiserver.key";
/// The administrator's certificate.
pub(super) const ADMIN: &str = "admin.crt";
/// The administrator's key.
pub(super) const ADMIN_KEY: &str = "admin.key";
/// What tokens of service accounts are checked with.
pub(super) const TOKENS: &str = "tokens.pub";
/// What tokens of service accounts are signed with.
pub(super) const TOKENS_KEY: &str = "tokens.key";

/// Writes all of them into a directory, for a server at this address.
pub(super) fn write(directory: &Path, address: IpAddr) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let own_name = &mut authority.distinguished_name;
    own_name.push(DnType::CommonName, "the authority of a lab");
    let key = KeyPair::generate()?;
    write(AUTHORITY, authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);

    let names = [address.to_string(), "kubernetes.default.svc".to_owned()];
    let mut server = CertificateParams::new(names)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let own_name = &mut server.distinguished_name;
    own_name.push(DnType::CommonName, "kube-apiserver");
    let key = KeyPair::generate()?;
    write(SERVER, server.signed_by(&key, &issuer)?.pem())?;
    write(SERVER_KEY, key.serialize_pem())?;

    let mut admin = CertificateParams::default();
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let own_name = &mut admin.distinguished_name;
    own_name.push(DnType::CommonName, "admin");
    // The group that everything is allowed to.
    own_name.push(DnType::OrganizationName, "system:masters");
    let key = KeyPair::generate()?;
    write(ADMIN, admin.signed_by(&key, &issuer)?.pem())?;
    write(ADMIN_KEY, key.serialize_pem())?;

    let key = KeyPair::generate()?;
    write(TOKENS, key.public_key_pem())?;
    write(TOKENS_KEY, key.serialize_pem())
}
