//! Connections that arrived at a server and whose answer was lost: the server's kernel keeps them as SYN_RECV.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use super::worker::{Pending, Worker};

/// The state in `/proc/net/tcp` (`TCP_SYN_RECV` in include/net/tcp_states.h).
const SYN_RECV: &str = "03";

/// Whose SYNs a namespace has answered without hearing from them again. The kernel remembers them for a minute.
pub(super) fn clients(worker: &Worker) -> Pending<HashSet<SocketAddr>> {
    worker.begin(|| async {
        ["tcp", "tcp6"]
            .into_iter()
            .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
            .flat_map(|table| table.lines().filter_map(client).collect::<Vec<_>>())
            .collect()
    })
}

/// The remote address of a line of `/proc/net/tcp` or `/proc/net/tcp6` in that state.
fn client(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace().skip(2);
    let (address, port) = words.next()?.split_once(':')?;
    if words.next()? != SYN_RECV {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of four bytes, each printed as a number of this machine.
    let mut bytes = Vec::new();
    for nth in 0..address.len() / 8 {
        let word = u32::from_str_radix(address.get(nth * 8..nth * 8 + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_both_tables_are_read() {
        let v4 = "   1: 0201F40A:0050 0301F40A:D431 03 00000000:00000000 01:00000064 00000001     0        0 0 1";
        assert_eq!(client(v4), "10.244.1.3:54321".parse().ok());
        let v6 = "   1: 00000000000000000000000000000000:0050 000000FD000000000000000003000000:D431 03 00000000:00000000";
        assert_eq!(client(v6), "[fd00::3]:54321".parse().ok());
        let established = v4.replace(" 03 ", " 01 ");
        assert_eq!(client(&established), None);
    }
}
