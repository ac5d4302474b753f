//! Netlink: a socket that asks, and messages read by hand and leniently: an attribute that a newer kernel adds or widens must
//! not blind the agent. What is asked, and what the answers mean, is known where it is asked (`node`, `conntrack`, `dataplane`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};

/// `struct nlmsghdr`
const HEADER: usize = size_of::<libc::nlmsghdr>();
/// How long one answer may take, whole: the kernel answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// A netlink socket. It belongs to the namespace in which its thread was when it was opened.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    /// What was received last.
    pub buffer: Vec<u8>,
}

impl Socket {
    /// A socket that also hears of these multicast groups: one bit each.
    pub fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; 64 << 10],
        })
    }

    /// Sends a question and hands on every message of the answer: its type and what follows its header. `flags` are those of
    /// `struct nlmsghdr` beside `NLM_F_REQUEST`.
    ///
    /// # Errors
    ///
    /// The kernel's, or that it does not answer. What was handed on before is good.
    pub fn ask(
        &mut self,
        kind: u16,
        flags: libc::c_int,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        let dump = flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
        let end = Instant::now() + PATIENCE;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for (kind, sequence, message) in messages(&self.buffer[..length]) {
                if sequence != self.sequence {
                    continue;
                }
                if kind == libc::NLMSG_DONE as u16 {
                    return Ok(());
                }
                if kind == libc::NLMSG_ERROR as u16 {
                    // Of `struct nlmsgerr`: 0 or a negative error number.
                    let code = message.get(..4).and_then(word).map_or(0, u32::cast_signed);
                    return if code == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    };
                }
                each(kind, message);
                if !dump {
                    return Ok(());
                }
            }
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A number in the byte order of this machine.
pub(crate) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// A text, with or without the zero at its end.
pub(crate) fn text(value: &[u8]) -> String {
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(text).into_owned()
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Adds an attribute to a message.
pub(crate) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(aligned(body.len()), 0);
}

/// Adds an attribute that consists of attributes.
pub(crate) fn nest(body: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = body.len();
    attribute(body, kind | libc::NLA_F_NESTED as u16, &[]);
    content(body);
    let length = ((body.len() - start) as u16).to_ne_bytes();
    body[start..start + 2].copy_from_slice(&length);
}

/// Type, sequence number and content of each message. One that is cut off ends them.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = word(bytes.get(..4)?)? as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = word(bytes.get(8..12)?)?;
        let message = bytes.get(HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, sequence, message))
    })
}

/// Type and value of each attribute behind a header of this length. One that is cut off ends them.
pub(crate) fn attributes(message: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = message.get(aligned(header)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        // The upper bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        Some((kind & 0x3fff, value))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn find(message: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    attributes(message, header).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_ignored() {
        assert_eq!(messages(&[200, 0, 0, 0, 16, 0]).count(), 0);
        assert_eq!(attributes(&[0; 9], 8).count(), 0);
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut body = vec![0; 4];
        attribute(&mut body, 3, &[1, 2, 3]);
        nest(&mut body, 7, |body| attribute(body, 1, &5u32.to_ne_bytes()));
        assert_eq!(find(&body, 4, 3), Some(&[1, 2, 3][..]));
        let inner = find(&body, 4, 7).expect("the nested one");
        assert_eq!(find(inner, 0, 1).and_then(word), Some(5));
        assert_eq!(find(&body, 4, 9), None);
    }
}
