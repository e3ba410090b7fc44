//! What two sides of a record stream agree on: which hash, and whether anything is signed at all.

use bytes::BytesMut;
use signet_cli::lab::Container;
use signet_cli::lab::mesh::Sidecar;
use signet_cli::lab::mesh::intruder::{Identity, IntruderError, Stream, inside, now};
use signet_cli::lab::runner::{Test, TestResult};
use signet_signature::record::{Event, RecordHash, StreamParams};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::recorder::Connection;
use signet_tests::{Ended, Failure, Plain, Recorder, Site, id, place};

pub(crate) const TESTS: &[Test] = &[
    ("each_hash_carries_bytes_and_shows_tampering", each_hash_carries_bytes_and_shows_tampering),
    (
        "stream_without_signatures_is_for_public_workloads_only",
        stream_without_signatures_is_for_public_workloads_only,
    ),
    (
        "unsigned_stream_that_breaks_off_is_a_reset_to_the_app",
        unsigned_stream_that_breaks_off_is_a_reset_to_the_app,
    ),
    (
        "open_unsigned_stream_ends_when_its_workload_becomes_protected",
        open_unsigned_stream_ends_when_its_workload_becomes_protected,
    ),
];

const PORT: u16 = 46080;
const PORTS: &str = "ports: [{port: 46080, protocol: opaque}]";

/// `server` with these settings, and the caller who may do anything to it.
fn manifests(server: &[&str]) -> [String; 4] {
    [
        mesh(&[]),
        workload("server", &[&[PORTS], server].concat()),
        workload("caller", &[]),
        policy("caller-may", "server", &[&allow("caller", "")]),
    ]
}

/// What a caller asks for.
type Terms = fn(&mut StreamParams);

/// A server with a sidecar and a caller without one.
struct Pair {
    app: Recorder,
    server: Container,
    caller: Container,
    own: Identity,
    _sidecar: Sidecar,
    _site: Site,
}

impl Pair {
    fn new(server: &[&str]) -> Result<Self, Failure> {
        let site = Site::new(&manifests(server))?;
        let (server, caller) = (site.container("server")?, site.container("caller")?);
        let app = Recorder::silent(&server, PORT)?;
        let [sidecar] = site.sidecars([(&server, "server")])?;
        let own = site.intruder(&caller, "caller")?;
        Ok(Self { app, server, caller, own, _sidecar: sidecar, _site: site })
    }

    /// Opens a stream on these terms and does something with it.
    fn open<R, F>(
        &self,
        terms: Terms,
        work: impl FnOnce(Stream) -> F + Send + 'static,
    ) -> Result<R, IntruderError>
    where
        R: Send + 'static,
        F: Future<Output = Result<R, IntruderError>>,
    {
        let (own, to) = (self.own.clone(), place(&self.server, PORT));
        inside(self.caller.namespace(), move || async move {
            work(Stream::open_as(&own, to, (&id("server"), PORT), terms).await?).await
        })
    }

    /// Waits for the end of the connection with this number; what it brought, and how it ended.
    fn ended(&self, number: usize) -> Result<(Vec<u8>, Ended), Failure> {
        let over = |all: &[Connection]| all.get(number).is_some_and(|one| one.ended != Ended::Open);
        let connection = self.app.wait_for("the end of a connection", over)?.swap_remove(number);
        Ok((connection.bytes, connection.ended))
    }
}

fn blake3(params: &mut StreamParams) {
    params.hash = RecordHash::Blake3;
}

fn sha256(params: &mut StreamParams) {
    params.hash = RecordHash::Sha256;
}

fn unsigned(params: &mut StreamParams) {
    params.unsigned = true;
}

fn each_hash_carries_bytes_and_shows_tampering() -> TestResult {
    use RecordHash::{Blake3, Sha256};
    // The server's policy, and what becomes of a caller's offer.
    for (policy, becomes) in [(&[][..], Blake3), (&["protection: {recordHash: sha-256}"], Sha256)] {
        let pair = Pair::new(policy)?;
        let offers: [(Terms, RecordHash); 2] = [(blake3, becomes), (sha256, Sha256)];
        for (number, (offer, used)) in offers.into_iter().enumerate() {
            let hash = pair.open(offer, |mut stream| async move {
                stream.send(b"first\n").await?;
                stream.finish().await?;
                assert_eq!(stream.receive().await?, Event::Fin { trailers: None });
                Ok(stream.hash)
            });
            // The app is silent and ends when the caller has.
            assert_eq!(hash?, Some(used), "{policy:?}");
            assert_eq!(pair.ended(2 * number)?, (b"first\n".to_vec(), Ended::Clean), "{policy:?}");

            pair.open(offer, |mut stream| async move {
                let mut records = BytesMut::new();
                stream.writer.data(b"second\n", now() * 1000, &mut records)?;
                stream.writer.sign(now() * 1000, &mut records);
                records[4] ^= 1;
                stream.send_raw(&records).await?;
                assert!(stream.receive().await.is_err());
                Ok(())
            })?;
            assert_eq!(pair.ended(2 * number + 1)?, (Vec::new(), Ended::Reset), "{policy:?}");
        }
    }
    Ok(())
}

fn stream_without_signatures_is_for_public_workloads_only() -> TestResult {
    let protected = Pair::new(&[])?;
    let refused = protected.open(unsigned, |_| async { Ok(()) });
    assert!(
        matches!(&refused, Err(IntruderError::Refused(code)) if code == "signature-missing"),
        "{refused:?}"
    );
    // Nor does the app notice that somebody tried.
    assert!(protected.app.connections().is_empty());
    drop(protected);

    let public = Pair::new(&["protection: {level: public}"])?;
    let signed = public.open(blake3, |mut stream| async move {
        stream.send(b"signed").await?;
        stream.finish().await?;
        stream.receive().await?;
        Ok(stream.hash)
    });
    assert_eq!(signed?, Some(RecordHash::Blake3), "a caller may sign more than it has to");
    assert_eq!(public.ended(0)?, (b"signed".to_vec(), Ended::Clean));
    Ok(())
}

fn unsigned_stream_that_breaks_off_is_a_reset_to_the_app() -> TestResult {
    let pair = Pair::new(&["protection: {level: public}"])?;
    for (number, ended) in [Ended::Clean, Ended::Reset].into_iter().enumerate() {
        let app = pair.app.clone();
        pair.open(unsigned, move |mut stream| async move {
            assert_eq!(stream.hash, None);
            let mut raw = BytesMut::new();
            stream.writer.raw(&mut raw)?;
            raw.extend_from_slice(b"as they are");
            stream.send_raw(&raw).await?;
            app.wait_for("the bytes", |all| all.get(number).is_some_and(|one| one.bytes == b"as they are"))
                .map_err(|error| IntruderError::Message(error.to_string()))?;
            if ended == Ended::Clean {
                stream.close().await?;
                // The silent app ends when the caller has, and says so without having said anything else.
                assert_eq!(stream.receive().await?, Event::Fin { trailers: None });
                assert_eq!(stream.rest().await?, b"");
            } else {
                // TCP ends as if all had been said; TLS has not.
                stream.cut();
            }
            Ok(())
        })?;
        assert_eq!(pair.ended(number)?, (b"as they are".to_vec(), ended));
    }
    Ok(())
}

fn open_unsigned_stream_ends_when_its_workload_becomes_protected() -> TestResult {
    let site = Site::new(&manifests(&["protection: {level: public}"]))?;
    let (server, caller) = (site.container("server")?, site.container("caller")?);
    let app = Recorder::silent(&server, PORT)?;
    let [_near, far] = site.sidecars([(&server, "server"), (&caller, "caller")])?;
    let to = place(&server, PORT);
    far.wait_until_known(to)?;
    let mut stream = Plain::dial(&caller, to)?;
    stream.send(b"in the open")?;
    app.wait_for("the bytes", |all| all.first().is_some_and(|one| one.bytes == b"in the open"))?;

    site.mesh.apply("server.yaml", &workload("server", &[PORTS, "protection: {level: protected}"]))?;
    let over = |all: &[Connection]| all.first().is_some_and(|one| one.ended != Ended::Open);
    assert_eq!(app.wait_for("the end of the stream", over)?.swap_remove(0).ended, Ended::Reset);
    assert_eq!(stream.rest(), (Vec::new(), Ended::Reset));

    // The next one is signed, once both sidecars know that it has to be.
    let again = || {
        let mut stream = Plain::dial(&caller, to).ok()?;
        stream.send(b"signed").and_then(|()| stream.finish()).ok()?;
        (stream.rest() == (Vec::new(), Ended::Clean)).then_some(())
    };
    signet_tests::wait_for("a signed stream", again)?;
    Ok(())
}
