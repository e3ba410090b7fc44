//! Bytes that are not HTTP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use signet_cli::lab::mesh::intruder::{Identity, inside};
use signet_cli::lab::runner::TestResult;
use signet_identity::{
    Authority, Fingerprint, SpiffeId, TrustDomain, client_config, dial_name, server_config,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream as AsyncTcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::server::serve;
use super::stage::{CLIENT_MAY_ALL, LIMIT, Stage, connect, manifests};

const PORT: u16 = 7000;

type Ends = Mutex<mpsc::Sender<Result<usize, io::ErrorKind>>>;

/// The client ends first, the server ends first, the client breaks off: each end arrives as what it is.
pub(super) fn each_side_of_a_connection_ends_on_its_own() -> TestResult {
    each_side_ends(&format!("ports: [{{port: {PORT}}}]"))
}

/// The same where nothing is signed, on a port of unknown habit and on one that is known to carry bytes.
pub(super) fn each_side_of_an_unsigned_connection_ends_on_its_own() -> TestResult {
    each_side_ends(&format!("protection: {{level: public}}, ports: [{{port: {PORT}}}]"))
}

pub(super) fn each_side_of_an_unsigned_connection_to_a_declared_port_ends_on_its_own() -> TestResult {
    each_side_ends(&format!("protection: {{level: public}}, ports: [{{port: {PORT}, protocol: opaque}}]"))
}

fn each_side_ends(server: &str) -> TestResult {
    let stage = Stage::new()?;
    let (ends, seen) = mpsc::channel();
    serve(&stage.server, PORT, Arc::new(Ends::new(ends)), count_then_talk)?;
    let _meshed = stage.mesh(&manifests("", server, CLIENT_MAY_ALL), &[PORT])?;
    for to in [stage.place(PORT), stage.place_ipv6(PORT)] {
        // The client ends; the server still has something to say.
        let mut stream = connect(stage.client.namespace(), to)?;
        stream.write_all(b"count: all that I say\n")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert_eq!(answer, "22 bytes\n");
        assert_eq!(seen.recv_timeout(LIMIT)?, Ok(22));

        // The server ends; the client still has something to say.
        let mut stream = connect(stage.client.namespace(), to)?;
        stream.write_all(b"bye")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert_eq!(answer, "nothing more from me\n");
        stream.write_all(b"but from me")?;
        stream.shutdown(Shutdown::Write)?;
        assert_eq!(seen.recv_timeout(LIMIT)?, Ok(11));

        // A client that goes away without an end must not look like one that has ended.
        let mut stream = connect(stage.client.namespace(), to)?;
        stream.write_all(b"sub")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        // What is unread makes the kernel reset the connection instead of ending it.
        drop(stream);
        assert_eq!(seen.recv_timeout(LIMIT)?, Err(io::ErrorKind::ConnectionReset));
    }
    Ok(())
}

/// "bye": says a last word first and counts then. "sub": keeps talking. Anything else: counts first.
fn count_then_talk(mut stream: TcpStream, ends: &Ends) -> io::Result<()> {
    let mut first = [0; 3];
    stream.read_exact(&mut first)?;
    let result = match &first {
        b"bye" => {
            stream.write_all(b"nothing more from me\n")?;
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new())
        }
        b"sub" => {
            stream.write_all(&[b'.'; 64 * 1024])?;
            stream.read_to_end(&mut Vec::new())
        }
        _ => stream.read_to_end(&mut Vec::new()).and_then(|bytes| {
            stream.write_all(format!("{} bytes\n", bytes + first.len()).as_bytes())?;
            Ok(bytes + first.len())
        }),
    };
    let seen = result.map_err(|error| error.kind());
    // A test that has failed already does not listen any more.
    let _ = ends.lock().unwrap_or_else(PoisonError::into_inner).send(seen);
    Ok(())
}

/// Client and server have certificates of their own and prove them to each other, not to the sidecars.
pub(super) fn tls_of_the_app_itself_passes_untouched() -> TestResult {
    let stage = Stage::new()?;
    let domain = TrustDomain::parse("own-tls.example")?;
    let authority = Authority::create(domain, SystemTime::now(), Duration::from_secs(3600))?;
    let issue = |name: &str| -> Result<_, super::stage::Failure> {
        let id = SpiffeId::parse(&format!("spiffe://own-tls.example/app/own/{name}"))?;
        Ok(Identity::issue(&authority, &id, authority.bundle())?)
    };
    let (server, client) = (issue("server")?, issue("client")?);
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&server.tls, &server.bundle, &[b"own/1"])?));
    let listener = stage.server.namespace().run(|| std::net::TcpListener::bind(("::", PORT)))??;
    stage.server.namespace().thread("own-tls", move || echo_over_tls(listener, &acceptor))?;

    let _meshed =
        stage.mesh(&manifests("", &format!("ports: [{{port: {PORT}}}]"), CLIENT_MAY_ALL), &[PORT])?;
    let to = stage.place(PORT);
    let connector = TlsConnector::from(Arc::new(client_config(&client.tls, &client.bundle, &[b"own/1"])?));
    let (seen, alpn, echoed) = inside(stage.client.namespace(), move || async move {
        let talk = async {
            let tcp = AsyncTcpStream::connect(to).await?;
            let mut stream = connector.connect(dial_name(), tcp).await?;
            stream.write_all(b"between the two of us").await?;
            stream.shutdown().await?;
            let mut echoed = Vec::new();
            stream.read_to_end(&mut echoed).await?;
            let state = stream.get_ref().1;
            let leaf = state.peer_certificates().and_then(<[_]>::first).map(|leaf| Fingerprint::of(leaf));
            Ok::<_, io::Error>((leaf, state.alpn_protocol().map(<[u8]>::to_vec), echoed))
        };
        Ok(tokio::time::timeout(LIMIT, talk).await.map_err(io::Error::from)??)
    })?;
    assert_eq!(seen, Some(server.tls.fingerprint), "the certificate is the app's own");
    assert_eq!(alpn.as_deref(), Some(&b"own/1"[..]));
    assert_eq!(echoed, b"between the two of us");
    Ok(())
}

fn echo_over_tls(listener: std::net::TcpListener, acceptor: &TlsAcceptor) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (tcp, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(tcp).await?;
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await?;
                stream.write_all(&said).await?;
                stream.shutdown().await
            });
        }
    })
}
