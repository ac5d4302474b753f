//! The lab's cluster DNS: the pods behind the Service `kube-system/kube-dns` answer for `cluster.local` on their port 53,
//! beside the lab's own messages, and forward nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use netpol_agent::policy::object::ObjectKey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{Lab, LabError, probe::TCP_PATIENCE};
use crate::{
    manifests::{Endpoint, World},
    table::{Destination, Family, Party, Port},
};

/// The zone of Services.
const ZONE: &str = "svc.cluster.local.";
/// Seconds that an answer may be kept, as with CoreDNS.
const TTL: u32 = 5;

/// The Service of the cluster's DNS.
fn service() -> ObjectKey {
    ObjectKey::new("kube-system", "kube-dns")
}

/// What the DNS servers know, and who they are.
#[derive(Debug, Default)]
pub struct Names(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    /// Lower case, with the dot at the end.
    addresses: BTreeMap<String, Vec<IpAddr>>,
    servers: BTreeSet<IpAddr>,
}

impl Names {
    /// Learns the names of all Services: their cluster addresses, or without such the addresses of their pods.
    pub(super) fn learn(&self, world: &World, addresses: &impl Fn(&Party) -> Option<Vec<IpAddr>>) {
        let mut book = Book::default();
        for service in world.services() {
            let mut backends = BTreeSet::new();
            for port in &service.ports {
                for endpoint in world.endpoints(&service, port) {
                    match endpoint {
                        Endpoint::Pod { key, .. } => {
                            backends.extend(addresses(&Party::Pod(key)).unwrap_or_default());
                        }
                        Endpoint::Address { address, .. } => {
                            backends.insert(address);
                        }
                    }
                }
            }
            if service.key == self::service() {
                book.servers.clone_from(&backends);
            }
            let found: Vec<IpAddr> = if service.headless {
                let wanted = |a: &IpAddr| service.families.contains(&Family::of(*a));
                backends.into_iter().filter(wanted).collect()
            } else {
                service.cluster_addresses
            };
            let name = format!("{}.{}.{ZONE}", service.key.name, service.key.namespace);
            book.addresses.insert(name, found);
        }
        *self.book() = book;
    }

    /// Whether the cluster's DNS is served at this address.
    pub(super) fn is_server(&self, address: IpAddr) -> bool {
        self.book().servers.contains(&address)
    }

    /// The answer to a message, if it is a question.
    pub(super) fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let request = Message::from_vec(message).ok()?;
        let query = request.queries.first()?.clone();
        let name = query.name().to_lowercase();
        let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
        answer.metadata.recursion_desired = request.metadata.recursion_desired;
        answer.metadata.authoritative = true;
        let text = name.to_ascii();
        answer.metadata.response_code = match self.book().addresses.get(&text) {
            _ if !text.ends_with(&format!(".{ZONE}")) => ResponseCode::Refused,
            None => ResponseCode::NXDomain,
            Some(addresses) => {
                let data =
                    addresses
                        .iter()
                        .filter_map(|address| match (address, query.query_type()) {
                            (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(*v4))),
                            (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(*v6))),
                            _ => None,
                        });
                for data in data {
                    answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
                }
                ResponseCode::NoError
            }
        };
        answer.add_query(query);
        answer.to_vec().ok()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic elsewhere does not make names wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// These addresses, none when the name has none of the kind.
    Found(Vec<IpAddr>),
    /// The server answered, and has no such name (or does not want to say).
    Unknown(String),
    /// No answer in time, or an error of the sender's kernel.
    Silence,
}

impl Lab {
    /// Asks the Service kube-dns from inside a pod for the addresses of a Service, by UDP or TCP (its port 53 of this
    /// protocol), over this family, and for addresses of that family.
    pub fn lookup(
        &self,
        from: &Party,
        name: &str,
        by: (Port, Family),
        wanted: Family,
    ) -> Result<Lookup, LabError> {
        let (port, family) = by;
        let server = Party::service(&service().namespace, &service().name);
        let (address, port) = self.goal(&Destination::new(server, port), family)?;
        let invalid =
            |error: String| LabError::io(format!("ask for {name}"), std::io::Error::other(error));
        let mut query = Query::query(
            Name::from_ascii(name).map_err(|error| invalid(error.to_string()))?,
            match wanted {
                Family::V4 => RecordType::A,
                Family::V6 => RecordType::AAAA,
            },
        );
        query.set_query_class(DNSClass::IN);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(query);
        let id = message.metadata.id;
        let bytes = message
            .to_vec()
            .map_err(|error| invalid(error.to_string()))?;
        let goal = SocketAddr::new(address, port.transport().map_or(53, |(_, number)| number));
        let asked = self.station(from)?.worker.run(move || async move {
            let exchange = async {
                match port {
                    Port::Tcp(_) => by_tcp(goal, &bytes).await,
                    _ => by_udp(goal, &bytes).await,
                }
            };
            timeout(TCP_PATIENCE, exchange).await
        });
        let Ok(Ok(answer)) = asked else {
            return Ok(Lookup::Silence);
        };
        let answer = Message::from_vec(&answer).map_err(|error| invalid(error.to_string()))?;
        if answer.metadata.id != id {
            return Ok(Lookup::Silence);
        }
        if answer.metadata.response_code != ResponseCode::NoError {
            return Ok(Lookup::Unknown(answer.metadata.response_code.to_string()));
        }
        let mut found: Vec<IpAddr> = answer
            .answers
            .iter()
            .filter_map(|a| a.data.ip_addr())
            .collect();
        found.sort();
        Ok(Lookup::Found(found))
    }
}

async fn by_udp(goal: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = match goal {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(goal).await?;
    socket.send(question).await?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn by_tcp(goal: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(goal).await?;
    stream.write_u16(question.len() as u16).await?;
    stream.write_all(question).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
