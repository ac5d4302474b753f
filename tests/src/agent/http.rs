//! What the agent serves over HTTP, asked for as a kubelet and a Prometheus do.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::lab::Station;

/// Sends this from a station and reads all that comes back.
///
/// # Errors
///
/// If there is no connection, or it does not end within 20 s.
pub fn exchange(from: &Station, to: SocketAddr, request: String) -> anyhow::Result<String> {
    let talk = move || async move {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    from.worker
        .run(move || async move { timeout(Duration::from_secs(20), talk()).await })?
}

/// Status and body of a path.
///
/// # Errors
///
/// As [`exchange`], or if the answer is no HTTP.
pub fn get(from: &Station, to: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n");
    let answer = exchange(from, to, request)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Every sample of `/metrics`, by its name with its labels.
///
/// # Errors
///
/// As [`get`], or if the answer is no complete page of metrics.
pub fn scrape(from: &Station, to: SocketAddr) -> anyhow::Result<BTreeMap<String, f64>> {
    let (status, text) = get(from, to, "/metrics")?;
    ensure!(
        status == 200 && text.ends_with("# EOF\n"),
        "{status}: {text}"
    );
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a value")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}
