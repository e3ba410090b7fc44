//! `signet message`: signs and verifies raw HTTP/1.1 messages, and verifies messages that outlived their hop.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::json;
use signet_signature::jws::MAX_MESSAGE;
use signet_signature::{Algorithm, Component};

use crate::chain;
use crate::message::{
    Demand, JwsOutcome, MESSAGE_MAX, Message as Raw, Outcome, Scheme, SignOptions, Trust, component, sign,
    signing_key, verify, verify_jws, verifying_key,
};
use crate::output::{Failure, Format, Verdict, print_bytes, print_json, print_line, text_or_json};

/// Signs and verifies single HTTP/1.1 messages (RFC 9421), without a mesh
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  signet message sign --key key.pem --keyid me < request.http | signet message verify --key pub.pem"
)]
pub(crate) enum Message {
    Sign(Sign),
    Verify(Verify),
    VerifyJws(VerifyJws),
}

/// Signs the message on standard input and writes it, with the two new fields, to standard output
///
/// Content-Digest is added (sha-256) if it is to be covered and is not there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet message sign --key ed25519.pem --keyid my-key < request.http
  signet message sign --key ed25519.pem --keyid my-key --component @method --component @path \\
      --component content-digest --expires +60 --tag my-app < request.http
  signet message sign --key ec.pem --keyid my-key --component @status --component '@path;req' \\
      --request request.http < response.http")]
pub(crate) struct Sign {
    /// Private key (PEM: PKCS#8, PKCS#1, SEC1), or an HMAC secret as base64 text
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Tells verifiers which key it is
    #[arg(long, value_name = "ID")]
    keyid: String,
    /// Label of the signature
    #[arg(long, default_value = "sig1", value_name = "LABEL")]
    label: String,
    /// Component to cover, such as @method, content-type, '@path;req'; may be repeated; left out: the usual ones
    #[arg(long = "component", value_parser = component, value_name = "COMPONENT")]
    components: Vec<Component>,
    /// Unix seconds, or `none`; left out: now
    #[arg(long, value_parser = created, value_name = "TIME")]
    created: Option<Created>,
    /// Unix seconds, or +SECONDS after `created`
    #[arg(long, value_parser = expires, value_name = "TIME")]
    expires: Option<Expires>,
    /// Makes the signature unique
    #[arg(long, value_name = "NONCE")]
    nonce: Option<String>,
    /// Names the application that the signature is for
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Algorithm, for a key that permits several (RSA); also written into the signature
    #[arg(long, value_parser = algorithm, value_name = "ALG")]
    alg: Option<Algorithm>,
    #[command(flatten)]
    context: Context,
}

/// Verifies a signature of the message on standard input
///
/// Exit code 0 valid, 1 invalid, 64 wrong arguments or unreadable input. With -o json the answer has the
/// signature base. `created` and `expires` are checked where the signature has them; the body is compared with
/// Content-Digest where that is covered.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet message verify --key pub.pem --require @method --require content-digest < request.http
  signet message verify --cert chain.pem --roots roots.pem --tag mesh-req-v1 -o json < request.http
  signet message verify --key pub.pem --request request.http --now 1618884480 < response.http")]
#[command(group = clap::ArgGroup::new("trust").required(true).args(["key", "cert"]))]
pub(crate) struct Verify {
    /// Public key (PEM: SPKI, PKCS#1), or an HMAC secret as base64 text
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Signing certificate chain of a mesh workload (PEM, leaf first)
    #[arg(long, requires = "roots", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Roots of the chain's trust domain (PEM)
    #[arg(long, requires = "cert", value_name = "FILE")]
    roots: Option<PathBuf>,
    /// The signature with this label
    #[arg(long, conflicts_with = "tag", value_name = "LABEL")]
    label: Option<String>,
    /// The signature with this tag
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Component that must be covered; may be repeated
    #[arg(long, value_parser = component, value_name = "COMPONENT")]
    require: Vec<Component>,
    /// Verify as of this time, Unix seconds; left out: now
    #[arg(long, value_name = "TIME")]
    now: Option<u64>,
    /// Seconds that the clocks may differ
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    skew: u64,
    /// Algorithm, for a key that permits several (RSA)
    #[arg(long, value_parser = algorithm, value_name = "ALG")]
    alg: Option<Algorithm>,
    #[command(flatten)]
    context: Context,
}

/// Verifies a message that outlived its hop: the JWS on standard input, as a sidecar made it
///
/// Exit code 0 valid, 1 invalid, 64 wrong arguments or unreadable input. Its chain comes with it, so that nothing but the
/// roots is needed. Revocations and whether it was taken before are not known here. With -o json the answer has the payload
/// of a protected message; a private one is verified and stays sealed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet message verify-jws --roots roots.pem < message.jws
  signet message verify-jws --roots roots.pem --now 1750000000 -o json < message.jws")]
pub(crate) struct VerifyJws {
    /// Roots of the sender's trust domain (PEM), such as the control plane's /roots.pem
    #[arg(long, value_name = "FILE")]
    roots: PathBuf,
    /// SPIFFE ID that the message must be for; left out: it may be for anybody
    #[arg(long = "for", value_name = "ID")]
    own: Option<String>,
    /// Verify as of this time, Unix seconds; left out: now. A message ends with its certificate at the latest
    #[arg(long, value_name = "TIME")]
    now: Option<u64>,
    /// Seconds that the clocks may differ
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    skew: u64,
}

/// What the message itself does not say.
#[derive(Debug, clap::Args)]
struct Context {
    /// File with the request that the message on standard input, a response, answers
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Scheme of the request; left out: http if its authority names port 80, else https
    #[arg(long, value_enum, value_name = "SCHEME")]
    scheme: Option<Scheme>,
}

impl Message {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        match self {
            Self::Sign(sign) => sign.run(format),
            Self::Verify(verify) => verify.run(format),
            Self::VerifyJws(verify) => verify.run(format),
        }
    }
}

impl Sign {
    fn run(self, format: Format) -> Result<Verdict, Failure> {
        let key = signing_key(&self.key, self.alg).map_err(|error| in_file(&self.key, error))?;
        let (message, request) = self.context.messages()?;
        let created = match self.created {
            None => Some(now_unix()),
            Some(Created::At(seconds)) => Some(seconds),
            Some(Created::None) => None,
        };
        let options = SignOptions {
            label: self.label,
            components: self.components,
            created,
            expires: self.expires.map(|expires| match expires {
                Expires::At(seconds) => seconds,
                Expires::After(seconds) => created.unwrap_or_else(now_unix).saturating_add(seconds),
            }),
            nonce: self.nonce,
            alg: self.alg,
            keyid: Some(self.keyid),
            tag: self.tag,
        };
        let signed = sign(message, request.as_ref(), &key, &options)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let bytes = signed.message.to_bytes();
        if format == Format::Json {
            print_json(&json!({
                "label": options.label,
                "alg": key.algorithm().name(),
                "signature_input": signed.fields.signature_input.to_str().unwrap_or_default(),
                "signature": signed.fields.signature.to_str().unwrap_or_default(),
                "signature_base": signed.fields.base,
                "message": String::from_utf8_lossy(&bytes),
            }))?;
        } else {
            print_bytes(&bytes)?;
        }
        Ok(Verdict::Yes)
    }
}

impl Verify {
    fn run(self, format: Format) -> Result<Verdict, Failure> {
        let trust = self.trust()?;
        let (message, request) = self.context.messages()?;
        let demand = Demand {
            label: self.label,
            tag: self.tag,
            require: self.require,
            alg: self.alg,
            now: self.now.unwrap_or_else(now_unix),
            skew: self.skew,
        };
        let outcome = verify(&message, request.as_ref(), trust, &demand);
        match format {
            Format::Json => print_json(&outcome)?,
            _ => print_line(text(&outcome))?,
        }
        Ok(Verdict::of(outcome.valid))
    }

    fn trust(&self) -> Result<Trust, Failure> {
        if let Some(path) = &self.key {
            let key = verifying_key(path, self.alg).map_err(|error| in_file(path, error))?;
            return Ok(Trust::Key(key));
        }
        // The argument group makes sure of one or the other, and `requires` of both of these.
        let (Some(cert), Some(roots)) = (&self.cert, &self.roots) else {
            return Err(Failure::Usage("--key, or --cert with --roots, is needed".to_owned()));
        };
        let chain = chain::read(cert).map_err(|error| in_file(cert, error))?;
        let roots = chain::read(roots).map_err(|error| in_file(roots, error))?;
        Ok(Trust::Chain { chain, roots })
    }
}

impl VerifyJws {
    fn run(self, format: Format) -> Result<Verdict, Failure> {
        let roots = chain::read(&self.roots).map_err(|error| in_file(&self.roots, error))?;
        let unreadable = |error: String| Failure::Usage(format!("standard input: {error}"));
        let mut bytes = Vec::new();
        // A line end more is an editor's or a shell's.
        io::stdin()
            .lock()
            .take(MAX_MESSAGE as u64 + 2)
            .read_to_end(&mut bytes)
            .map_err(|error| unreadable(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable("not a JWS".to_owned()))?;
        let now = self.now.unwrap_or_else(now_unix);
        let outcome = verify_jws(text.trim_end(), &roots, self.own.as_deref(), now, self.skew);
        match format {
            Format::Json => print_json(&outcome)?,
            _ => print_line(jws_text(&outcome))?,
        }
        Ok(Verdict::of(outcome.valid))
    }
}

impl Context {
    /// The message on standard input, and the request it answers if it is a response and one was named.
    fn messages(&self) -> Result<(Raw, Option<Raw>), Failure> {
        let message = self.message(io::stdin().lock(), "standard input")?;
        let Some(path) = &self.request else { return Ok((message, None)) };
        if message.is_request() {
            return Err(Failure::Usage(
                "--request is for responses, and standard input has a request".to_owned(),
            ));
        }
        let file = File::open(path).map_err(|error| in_file(path, error))?;
        let request = self.message(file, &path.display().to_string())?;
        if !request.is_request() {
            return Err(in_file(path, "not a request"));
        }
        Ok((message, Some(request)))
    }

    fn message(&self, source: impl Read, name: &str) -> Result<Raw, Failure> {
        let mut bytes = Vec::new();
        source
            .take(MESSAGE_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
        Raw::parse(&bytes, self.scheme).map_err(|error| Failure::Usage(format!("{name}: {error}")))
    }
}

fn text(outcome: &Outcome) -> String {
    let mut lines = vec![match outcome.code {
        None => format!("valid: {}", outcome.reason),
        Some(code) => format!("invalid: {} ({code})", outcome.reason),
    }];
    lines.extend(outcome.label.iter().map(|label| format!("label: {label}")));
    lines.extend(outcome.alg.iter().map(|alg| format!("algorithm: {alg}")));
    lines.extend(outcome.signer.iter().map(|signer| format!("signer: {signer}")));
    if outcome.label.is_some() {
        lines.push(format!("covers: {}", outcome.covered.join(" ")));
        lines.push(format!("content-digest: {}", outcome.content_digest));
    }
    lines.join("\n")
}

fn jws_text(outcome: &JwsOutcome) -> String {
    let mut lines = vec![match outcome.code {
        None => format!("valid: {}", outcome.reason),
        Some(code) => format!("invalid: {} ({code})", outcome.reason),
    }];
    let mut line = |name: &str, value: Option<String>| {
        lines.extend(value.iter().map(|value| format!("{name}: {value}")));
    };
    line("sender", outcome.sender.clone());
    line("level", outcome.level.map(str::to_owned));
    line("id", outcome.id.clone());
    line("created", outcome.created.map(|seconds| seconds.to_string()));
    line("expires", outcome.expires.map(|seconds| seconds.to_string()));
    line("for", outcome.valid.then(|| outcome.audience.join(" ")));
    line("content type", outcome.content_type.clone());
    lines.join("\n")
}

fn in_file(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{}: {error}", path.display()))
}

fn now_unix() -> u64 {
    // A clock before 1970 is as good as one at 1970: nothing signed since verifies.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[derive(Debug, Clone, Copy)]
enum Created {
    At(u64),
    None,
}

#[derive(Debug, Clone, Copy)]
enum Expires {
    After(u64),
    At(u64),
}

fn created(text: &str) -> Result<Created, String> {
    if text == "none" { Ok(Created::None) } else { seconds(text).map(Created::At) }
}

fn expires(text: &str) -> Result<Expires, String> {
    match text.strip_prefix('+') {
        Some(after) => seconds(after).map(Expires::After),
        None => seconds(text).map(Expires::At),
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|_| !text.starts_with('+'))
        .ok_or_else(|| "a number of Unix seconds is needed".to_owned())
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::from_name(name)
        .ok_or_else(|| format!("one of {} is needed", Algorithm::ALL.map(Algorithm::name).join(", ")))
}
