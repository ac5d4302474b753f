//! What a probe can come to.

use std::{fmt, str::FromStr};

/// What became of one probe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Outcome {
    /// Connected, or answered.
    Open,
    /// Refused at once by the other side's kernel: it was reached, and nothing listens there.
    Refused,
    /// Silence until the time was up, and nothing arrived.
    Denied,
    /// The probe arrived, and its answer did not come back. ICMP echo cannot tell: it is then `Denied`.
    Half,
    /// The sender's kernel reported this error.
    Error(Failure),
}

impl Outcome {
    /// Whether the destination was reached. A refusal is an answer.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Refused)
    }

    /// The same truth: equal, or both reached.
    pub fn agrees_with(self, other: Self) -> bool {
        self == other || (self.is_open() && other.is_open())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open | Self::Refused => f.write_str("open"),
            Self::Denied => f.write_str("denied"),
            Self::Half => f.write_str("half"),
            Self::Error(failure) => write!(f, "error {failure}"),
        }
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "open" => Ok(Self::Open),
            "denied" => Ok(Self::Denied),
            "half" => Ok(Self::Half),
            _ => match text.strip_prefix("error ") {
                Some(failure) => failure.parse().map(Self::Error),
                None => Err(format!(
                    "`{text}` is no outcome: write open, denied, half or error KIND"
                )),
            },
        }
    }
}

/// An error other than refusal and silence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Failure {
    /// EHOSTUNREACH: a router said so, or nobody answers to the address.
    HostUnreachable,
    /// ENETUNREACH: no route.
    NetUnreachable,
    /// EPERM: the sender's own kernel dropped it.
    NotPermitted,
    /// EACCES: somebody prohibited it and said so.
    Prohibited,
    /// Any other error number.
    Errno(i32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostUnreachable => f.write_str("host-unreachable"),
            Self::NetUnreachable => f.write_str("net-unreachable"),
            Self::NotPermitted => f.write_str("not-permitted"),
            Self::Prohibited => f.write_str("prohibited"),
            Self::Errno(number) => write!(f, "errno-{number}"),
        }
    }
}

impl FromStr for Failure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host-unreachable" => Ok(Self::HostUnreachable),
            "net-unreachable" => Ok(Self::NetUnreachable),
            "not-permitted" => Ok(Self::NotPermitted),
            "prohibited" => Ok(Self::Prohibited),
            _ => text
                .strip_prefix("errno-")
                .and_then(|number| number.parse().ok())
                .map(Self::Errno)
                .ok_or_else(|| format!("`{text}` is no kind of error")),
        }
    }
}
