//! Who speaks first, and on how many connections.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signet_cli::lab::mesh::intruder::{Identity, IntruderError, Stream, inside};
use signet_cli::lab::mesh::{app, program};
use signet_cli::lab::runner::TestResult;
use signet_signature::record::Event;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream as AsyncTcpStream};

use super::http::{Caller, read_request};
use super::server::serve;
use super::stage::{CLIENT_MAY_ALL, LIMIT, Stage, connect, manifests, server_id};

const PORT: u16 = 3306;
const BANNER: &str = "220 greeter ready\r\n";
/// Far beyond any time that a proxy waits for a client to speak.
const LATE: Duration = Duration::from_millis(300);

/// How many connections there were, and what each of them carried.
#[derive(Default)]
struct Connections(Mutex<BTreeMap<usize, usize>>);

impl Connections {
    fn begin(&self) -> usize {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = all.len();
        all.insert(number, 0);
        number
    }

    fn carried(&self, number: usize) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(number).or_default() += 1;
    }

    /// What each connection so far has carried.
    fn all(&self) -> Vec<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }
}

fn greet(stream: TcpStream, connections: &Connections) -> io::Result<()> {
    let number = connections.begin();
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(BANNER.as_bytes())?;
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        connections.carried(number);
        stream.get_mut().write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// The client says nothing until it is greeted: that the greeting arrives at all proves that nobody waits for it to speak.
pub(super) fn server_that_speaks_first_is_heard_and_sees_no_phantom_connection() -> TestResult {
    server_speaks_first("")
}

pub(super) fn server_that_speaks_first_is_heard_on_unsigned_streams_too() -> TestResult {
    server_speaks_first("protection: {level: public}, ")
}

fn server_speaks_first(settings: &str) -> TestResult {
    let stage = Stage::new()?;
    let (unknown, declared) = (Arc::new(Connections::default()), Arc::new(Connections::default()));
    serve(&stage.server, PORT, Arc::clone(&unknown), greet)?;
    serve(&stage.server, PORT + 1, Arc::clone(&declared), greet)?;
    let ports = format!(
        "{settings}ports: [{{port: {PORT}}}, {{port: {}, protocol: opaque, speaksFirst: server}}]",
        PORT + 1
    );
    let _meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[PORT, PORT + 1])?;
    for (port, connections) in [(PORT, unknown), (PORT + 1, declared)] {
        for to in [stage.place(port), stage.place(port), stage.place_ipv6(port)] {
            let mut stream = BufReader::new(connect(stage.client.namespace(), to)?);
            let mut line = String::new();
            stream.read_line(&mut line)?;
            assert_eq!(line, BANNER, "{to}");
            stream.get_mut().write_all(b"hello\n")?;
            line.clear();
            stream.read_line(&mut line)?;
            assert_eq!(line, "hello\n");
        }
        // The first found out who speaks first, the others knew: none of them cost the app a second connection.
        assert_eq!(connections.all(), [1, 1, 1], "connections at port {port}, and lines on each");
    }
    Ok(())
}

fn answer(stream: TcpStream, connections: &Connections) -> io::Result<()> {
    let number = connections.begin();
    let mut stream = BufReader::new(stream);
    while read_request(&mut stream)?.is_some() {
        connections.carried(number);
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    }
    Ok(())
}

pub(super) fn http_app_on_a_port_of_unknown_habit_sees_no_connection_without_a_request() -> TestResult {
    http_on_a_port_of_unknown_habit("")
}

pub(super) fn http_app_is_reached_through_the_release_of_an_unsigned_stream_too() -> TestResult {
    http_on_a_port_of_unknown_habit("protection: {level: public}, ")
}

fn http_on_a_port_of_unknown_habit(settings: &str) -> TestResult {
    let stage = Stage::new()?;
    let connections = Arc::new(Connections::default());
    serve(&stage.server, PORT, Arc::clone(&connections), answer)?;
    let server = format!("{settings}ports: [{{port: {PORT}}}]");
    let _meshed = stage.mesh(&manifests("", &server, CLIENT_MAY_ALL), &[PORT])?;
    const CLIENTS: usize = 4;
    for client in 0..CLIENTS {
        let mut caller = Caller::open(stage.client.namespace(), stage.place(PORT))?;
        for request in 0..=client {
            caller.send(format!("GET /{client}/{request} HTTP/1.1\r\nHost: server\r\n\r\n"))?;
            assert_eq!(caller.answer()?.body, b"ok", "client {client}, request {request}");
        }
        let carried = connections.all();
        assert!(carried.iter().all(|requests| *requests > 0), "requests on each connection: {carried:?}");
        assert_eq!(carried.iter().sum::<usize>(), (1..=client + 1).sum::<usize>(), "{carried:?}");
        assert!(carried.len() <= client + 1, "more connections than clients: {carried:?}");
    }
    Ok(())
}

pub(super) fn late_client_hello_reaches_a_server_that_speaks_first_on_a_permissive_port() -> TestResult {
    a_late_client_hello_is_waited_for("ports: [{port: 9}]")
}

pub(super) fn late_client_hello_of_a_workload_without_ports_is_waited_for_too() -> TestResult {
    a_late_client_hello_is_waited_for("names: [caller]")
}

/// The hand-made client's connection comes from an address the mesh knows, so the greeting waits for its handshake.
fn a_late_client_hello_is_waited_for(client: &str) -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["greeter"], &[PORT])?;
    let server = format!("mtls: {{mode: permissive}}, ports: [{{port: {PORT}}}]");
    let rules = format!("{CLIENT_MAY_ALL}\n    - from: [{{any: anyone}}]");
    let client = format!(
        "\
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: client}}
spec: {{class: app, device: host, network: lan, {client}}}
"
    );
    let mut meshed = stage.mesh(&manifests("", &server, &rules), &[PORT])?;
    meshed.mesh.apply("client.yaml", &client)?;
    if client.contains("ports") {
        meshed.server.wait_until_known((stage.client.ipv4(), 9).into())?;
    }
    // The client's sidecar has made the address known; from here on a hand-made one uses it.
    meshed.client.kill();
    let removed = stage.client.namespace().start(program(&["proxy", "capture", "remove"]))?;
    assert!(removed.wait(LIMIT)?.success(), "{}", removed.output());
    let token = meshed.mesh.token("client")?;
    let identity = Identity::enrol(stage.client.namespace(), meshed.mesh.address(), token)?;

    let (to, id) = (stage.place(PORT), server_id()?);
    let greeting = inside(stage.client.namespace(), move || async move {
        let late = TcpListener::bind("127.0.0.1:0").await?;
        let near = late.local_addr()?;
        tokio::spawn(async move {
            let (mut near, _) = late.accept().await?;
            let mut far = AsyncTcpStream::connect(to).await?;
            // The delay is what is tested.
            tokio::time::sleep(LATE).await;
            copy_bidirectional(&mut near, &mut far).await
        });
        let mut stream = Stream::open(&identity, near, (&id, PORT), true).await?;
        match stream.receive().await? {
            Event::Data(greeting) => Ok(greeting.to_vec()),
            other => Err(IntruderError::Answer(format!("{other:?}"))),
        }
    })?;
    assert_eq!(String::from_utf8(greeting)?, BANNER);

    // Whoever is unknown is greeted too, after the moment in which a handshake would have come.
    let stranger = stage.host.container("stranger")?;
    let mut stream = connect(stranger.namespace(), to)?;
    let mut greeting = vec![0; BANNER.len()];
    stream.read_exact(&mut greeting)?;
    assert_eq!(String::from_utf8(greeting)?, BANNER);
    Ok(())
}
