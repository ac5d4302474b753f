//! From the text of a file to documents.

use std::path::Path;

use serde_json::Value;

use super::{Body, Document};

/// Whether a file is a manifest by its name. Hidden files are not.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The documents of a file.
pub(super) fn documents(file: &str, text: &str) -> Vec<Document> {
    let parse = |text: String| {
        let blank = text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        let parsed = if file.ends_with(".json") {
            serde_json::from_str(&text).map_err(|error| error.to_string())
        } else {
            // The first line says what and where; a picture of the place follows.
            serde_saphyr::from_str::<Value>(&text)
                .map_err(|error| error.to_string().lines().take(1).collect())
        };
        let body = match parsed {
            _ if blank => Body::Blank,
            Ok(value) => Body::Object(value),
            Err(error) => Body::Broken(error),
        };
        Document {
            file: file.to_owned(),
            text: Some(text),
            body,
        }
    };
    if file.ends_with(".json") {
        return vec![parse(text.to_owned())];
    }
    split(text).into_iter().map(parse).collect()
}

/// Splits at the lines `---`.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.lines() {
        let content = match line.strip_prefix("---") {
            Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t']) => {
                if parts.last().is_some_and(|part| !part.trim().is_empty()) {
                    parts.push(String::new());
                }
                rest.trim_start()
            }
            _ => line,
        };
        if let Some(part) = parts.last_mut()
            && !(content.is_empty() && part.is_empty())
        {
            part.push_str(content);
            part.push('\n');
        }
    }
    parts
}
