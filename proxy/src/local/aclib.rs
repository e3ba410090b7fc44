//! mF2C's aclib line protocol: one line of JSON in, one line out, on a loopback port.
//!
//! Its requests, its answers and its four error codes; the tokens are messages of the mesh. What aclib accepted and should
//! not have is refused: an unsigned token is a public one and nothing else, audience, time and level are checked, a token is
//! read once, and what has to be verified is verified without asking anybody.

use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use signet_signature::jws::{JwsError, Level, SeenError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::clock;
use crate::local::messages::{Demand, Draft, Messages};
use crate::local::refused::{Refused, is_for_others};
use crate::local::{ACCEPT_PAUSE, CONNECTION_TIMEOUT, CONNECTIONS_MAX};

/// Accepts until the process ends.
pub(super) async fn serve(listener: TcpListener, messages: Rc<Messages>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            // The runtime does not know yet that it can be written to, so it is not asked.
            let _ = stream.into_std().and_then(|mut stream| stream.write(b"err4\n"));
            continue;
        };
        let messages = Rc::clone(&messages);
        tokio::task::spawn_local(async move {
            // A client that goes away early is not an event.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, &messages)).await;
            drop(slot);
        });
    }
}

/// One line, one answer, and the end.
async fn connection(mut stream: TcpStream, messages: &Messages) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let most = messages.config().request_bytes();
    let mut line = Vec::new();
    BufReader::new(reader.take(most as u64 + 1)).read_until(b'\n', &mut line).await?;
    let answer = match line.strip_suffix(b"\n") {
        Some(line) => answer(messages, line),
        None => Err(Failed::Client("local-request")),
    };
    messages.count("aclib", answer.as_ref().map_or_else(|failed| failed.code(), |_| "ok"));
    let mut answer = answer.unwrap_or_else(|failed| failed.text().to_owned());
    answer.push('\n');
    writer.write_all(answer.as_bytes()).await?;
    writer.shutdown().await
}

/// The four errors there are, each with the name that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// Wrong request: `err3`.
    Client(&'static str),
    /// The token proves nothing: `err1`.
    Integrity(&'static str),
    /// Anything else: `err4`.
    Other(&'static str),
    /// The token is for somebody else: `err2`.
    Recipient(&'static str),
}

impl Failed {
    fn text(self) -> &'static str {
        match self {
            Self::Integrity(_) => "err1",
            Self::Recipient(_) => "err2",
            Self::Client(_) => "err3",
            Self::Other(_) => "err4",
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Client(code) | Self::Integrity(code) | Self::Other(code) | Self::Recipient(code) => code,
        }
    }
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        let code = refused.code();
        match refused {
            refused if is_for_others(refused) => Self::Recipient(code),
            Refused::NotReady
            | Refused::Seen(SeenError::Full)
            | Refused::Message(JwsError::NotSigned) => Self::Other(code),
            Refused::CertificateEnds(_)
            | Refused::Method
            | Refused::NotFound
            | Refused::RecipientUnknown
            | Refused::RecipientWithoutKey
            | Refused::Request
            | Refused::TooLarge
            // A token that is too old is the caller's mistake, as it was.
            | Refused::Message(
                JwsError::Expired | JwsError::NotSealed | JwsError::Recipients | JwsError::Sealed | JwsError::TooLarge,
            ) => Self::Client(code),
            Refused::Message(_)
            | Refused::Revoked
            | Refused::Seen(SeenError::Replay)
            | Refused::Sender
            | Refused::UnknownSigner => Self::Integrity(code),
        }
    }
}

/// A request: to read `token`, or to build one of the rest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    typ: String,
    sec: Option<String>,
    comp: Option<String>,
    payload: Option<String>,
    recs: Option<Vec<String>>,
    token: Option<String>,
}

fn answer(messages: &Messages, line: &[u8]) -> Result<String, Failed> {
    let request: Request = serde_json::from_slice(line).map_err(|_| Failed::Client("local-request"))?;
    // Compressing what is then encrypted tells its content by its length.
    if request.comp.as_deref().is_some_and(|comp| comp != "f") {
        return Err(Failed::Client("aclib-compression"));
    }
    if let Some(token) = &request.token {
        return read(messages, &request.typ, token);
    }
    let combination = (&*request.typ, request.sec.as_deref(), request.payload, request.recs);
    match combination {
        ("plain", Some("pub"), Some(payload), None) => public::build(messages, &payload),
        ("jws", Some("pro"), Some(payload), recs) => {
            let audience = match recs {
                Some(recs) => recs,
                None => {
                    let configured = messages.config().aclib_audience.as_ref();
                    configured.ok_or(Failed::Client("aclib-audience"))?.to_list()
                }
            };
            make(messages, Level::Protected, audience, &payload)
        }
        ("jwe", Some("pri"), Some(payload), Some(recs)) => make(messages, Level::Private, recs, &payload),
        ("jwt", None, None, Some(recs)) => Ok(messages.assert(recs)?),
        _ => Err(Failed::Client("local-request")),
    }
}

fn make(messages: &Messages, level: Level, audience: Vec<String>, payload: &str) -> Result<String, Failed> {
    let draft = Draft { audience, content_type: None, lifetime: None, level };
    Ok(messages.make(draft, payload.as_bytes())?.message)
}

fn read(messages: &Messages, typ: &str, token: &str) -> Result<String, Failed> {
    let level = match typ {
        "plain" => return public::read(messages, token),
        "jws" => Level::Protected,
        "jwe" => Level::Private,
        "jwt" => {
            return match messages.check_assertion(token) {
                Ok(_) => Ok("OK".to_owned()),
                // An assertion that is shown to somebody else was stolen, not misdirected.
                Err(Refused::Message(JwsError::Audience)) => Err(Failed::Integrity("message-audience")),
                Err(refused) => Err(refused.into()),
            };
        }
        _ => return Err(Failed::Client("local-request")),
    };
    let taken = messages.take(token, Demand { level, once: true, from: &[] })?;
    String::from_utf8(taken.payload).map_err(|_| Failed::Other("aclib-not-text"))
}

/// `plain` and `pub`: nothing is signed, so nothing but the payload is read.
mod public {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::{Deserialize, Failed, Messages, Refused, Serialize, clock};

    /// The version that the header names.
    const VERSION: &str = "1.0";

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Header {
        alg: String,
        typ: String,
        #[serde(rename = "mf2c-sec")]
        level: String,
        #[serde(rename = "mf2c-tmsp")]
        milliseconds: u64,
        /// Said by whoever made it; nobody may rely on it.
        #[serde(rename = "mf2c-sender")]
        sender: String,
        #[serde(rename = "mf2c-aclib")]
        version: String,
    }

    pub(super) fn build(messages: &Messages, payload: &str) -> Result<String, Failed> {
        if payload.len() > messages.config().payload_bytes {
            return Err(Refused::TooLarge.into());
        }
        let header = Header {
            alg: "none".to_owned(),
            typ: "JOSE".to_owned(),
            level: "public".to_owned(),
            milliseconds: clock::unix_ms(),
            sender: messages.identity()?.to_string(),
            version: VERSION.to_owned(),
        };
        let header = serde_json::to_vec(&header).map_err(|_| Failed::Other("message-not-signed"))?;
        Ok(format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload)))
    }

    pub(super) fn read(messages: &Messages, token: &str) -> Result<String, Failed> {
        let payload = payload(token).ok_or(Failed::Integrity("message-malformed"))?;
        if payload.len() > messages.config().payload_bytes {
            return Err(Refused::TooLarge.into());
        }
        Ok(payload)
    }

    /// The payload of a token that is unsigned, says so, and is public.
    pub(super) fn payload(token: &str) -> Option<String> {
        let (header, payload) = token.strip_suffix('.')?.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let public = header.alg == "none" && header.typ == "JOSE" && header.level == "public";
        let payload = URL_SAFE_NO_PAD.decode(payload).ok().filter(|_| public)?;
        String::from_utf8(payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn unsigned(header: &str) -> String {
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode("x"))
    }

    #[test]
    fn unsigned_token_is_a_public_one_and_nothing_else() {
        let header = |alg: &str, sec: &str| {
            format!(
                r#"{{"alg":"{alg}","typ":"JOSE","mf2c-sec":"{sec}","mf2c-tmsp":1,"mf2c-sender":"a","mf2c-aclib":"1.0"}}"#
            )
        };
        let read = |token: &str| public::payload(token);
        assert_eq!(read(&unsigned(&header("none", "public"))), Some("x".to_owned()));
        for (alg, sec) in
            [("none", "protected"), ("none", "private"), ("RS256", "public"), ("EdDSA", "public")]
        {
            assert_eq!(read(&unsigned(&header(alg, sec))), None, "{alg} {sec}");
        }
        let good = unsigned(&header("none", "public"));
        for bad in [format!("{good}AAAA"), good.replace('.', ""), "..".to_owned(), unsigned("{}")] {
            assert_eq!(read(&bad), None, "{bad}");
        }
        // As a signed one it is refused before anything is looked up.
        let signed = signet_signature::jws::Unproven::parse(&good).map(|_| ());
        assert_eq!(signed, Err(JwsError::Malformed));
    }

    #[test]
    fn refusals_have_the_codes_of_aclib() {
        use signet_signature::seal::SealError;
        let text = |refused: Refused| Failed::from(refused).text();
        assert_eq!(text(Refused::Message(JwsError::BadSignature)), "err1");
        assert_eq!(text(Refused::Message(JwsError::Seal(SealError::Broken))), "err1");
        assert_eq!(text(Refused::Seen(SeenError::Replay)), "err1");
        assert_eq!(text(Refused::Revoked), "err1");
        assert_eq!(text(Refused::Message(JwsError::Audience)), "err2");
        assert_eq!(text(Refused::Message(JwsError::Seal(SealError::NotForUs))), "err2");
        assert_eq!(text(Refused::Request), "err3");
        assert_eq!(text(Refused::RecipientUnknown), "err3");
        assert_eq!(text(Refused::Message(JwsError::Expired)), "err3");
        assert_eq!(text(Refused::NotReady), "err4");
    }
}
