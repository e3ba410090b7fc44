//! `openssl s_client` as a client that means no good: none of what it sends reaches the application.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signet_cli::lab::Container;
use signet_cli::lab::runner::TestResult;

use crate::pair::{Failure, LIMIT, Pair};
use crate::programs::{app, program};

const PORT: u16 = 8080;
/// The identity that would be allowed, if it could be proven.
const ALLOWED: &str = "spiffe://mesh.example/app/host/client";

pub(crate) fn bad_tls_clients_never_reach_the_application() -> TestResult {
    let pair = Pair::new()?;
    let accepted = count_connections(&pair)?;
    let mesh = pair.mesh(PORT, "")?;
    let stranger = pair.stranger()?;
    foreign_certificate(&pair)?;
    let (certificate, key) = (pair.path("leaf.pem"), pair.path("leaf.key"));
    let foreign = ["-cert", &certificate, "-key", &key];

    let (unproven, unknown, obsolete) = ("alert number 116", "alert number 48", "alert number 70");
    // What does not speak the mesh's protocol gets no TLS at all.
    let reset = "errno=104";
    let http = ["-tls1_3", "-alpn", "mesh-h1/1"];
    let attempts: [(&str, Vec<&str>, &str); 7] = [
        ("no certificate", http.to_vec(), unproven),
        ("no certificate, for records", vec!["-tls1_3", "-alpn", "mesh-rec/1"], unproven),
        ("certificate of another authority", [&http[..], &foreign].concat(), unknown),
        ("the same, for HTTP/2", [&["-tls1_3", "-alpn", "mesh-h2/1"][..], &foreign].concat(), unknown),
        ("wrong ALPN", [&["-tls1_3", "-alpn", "h2,http/1.1"][..], &foreign].concat(), reset),
        ("no ALPN", vec!["-tls1_3"], reset),
        ("TLS 1.2", vec!["-tls1_2", "-alpn", "mesh-h1/1"], obsolete),
    ];
    for (name, arguments, refusal) in attempts {
        let seen = s_client(&pair, &stranger, &arguments)?;
        assert!(!seen.contains("HTTP/1."), "{name} was answered: {seen}");
        assert!(seen.contains(refusal), "{name} was not refused with {refusal}: {seen}");
        assert_eq!(accepted.load(Ordering::SeqCst), 0, "{name} reached the application");
    }

    // The same application does answer who may call it.
    assert_eq!(mesh.server.metrics()?.sum("signet_handshakes_total", &["inbound"]), 0.0);
    pair.call(app("curl")?.args(["-sS", "--max-time", "50", &format!("http://{}/", pair.place(PORT))]))?;
    assert!(accepted.load(Ordering::SeqCst) > 0);
    Ok(())
}

/// An application that counts the connections it gets.
fn count_connections(pair: &Pair) -> Result<Arc<AtomicUsize>, Failure> {
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&accepted);
    let listener = pair.server.namespace().run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    pair.server.namespace().thread("application", move || {
        for connection in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
            let answer = |mut connection: std::net::TcpStream| {
                use std::io::{Read, Write};
                let _ = connection.read(&mut [0; 4096])?;
                connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            };
            // A caller that leaves is the caller's business.
            let _ = connection.and_then(answer);
        }
    })?;
    Ok(accepted)
}

/// What a client sees that handshakes in this way and then sends a request.
fn s_client(pair: &Pair, from: &Container, arguments: &[&str]) -> Result<String, Failure> {
    const SCRIPT: &str = "printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | timeout 10 \"$@\"";
    let client = app("sh")?
        .args(["-c", SCRIPT, "sh"])
        .args([program("openssl")?])
        .args(["s_client", "-ign_eof", "-connect", &pair.place(PORT).to_string()])
        .args(arguments);
    let client = from.namespace().start(client)?;
    client.wait(LIMIT)?;
    Ok(client.output())
}

/// A certificate with the allowed identity from an authority that nobody trusts: `leaf.pem`, `leaf.key`.
fn foreign_certificate(pair: &Pair) -> TestResult {
    const SCRIPT: &str = "
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=root -days 2
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf
printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n' > leaf.ext
printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=URI:%s\n' \"$1\" >> leaf.ext
openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile leaf.ext -out leaf.pem
";
    program("openssl")?;
    pair.call(app("sh")?.args(["-c", SCRIPT, "sh", ALLOWED]).directory(pair.folder.path()))?;
    Ok(())
}
