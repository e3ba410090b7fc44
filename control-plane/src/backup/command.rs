//! `signet-control-plane backup` and `restore`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use hyper_util::rt::TokioIo;
use signet_identity::TrustDomain;
use signet_sync::MAX_ADMIN_ANSWER_BYTES;
use signet_sync::proto::admin::BackupRequest;
use signet_sync::proto::admin::admin_client::AdminClient;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use super::{Backup, BackupError, Restoring};
use crate::authority::{AuthorityError, Keyring};
use crate::config::ApiServerArguments;
use crate::location::StoreArguments;
use crate::records::unix_seconds;
use crate::store::{Entry, Listing, Revision};
use crate::{EXIT_CONFIG, EXIT_FAILED, files, with_causes};

/// Where the state is; the same as for the control plane.
#[derive(clap::Args, Debug)]
struct State {
    /// Directory for keys and store
    #[arg(long, env = "SIGNET_STATE_DIR", default_value = "/var/lib/signet", value_name = "DIR")]
    state_dir: PathBuf,
    /// Trust domain of every identity issued here
    #[arg(long, env = "SIGNET_TRUST_DOMAIN", value_name = "NAME")]
    trust_domain: String,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    api_server: ApiServerArguments,
}

/// Writes keys and store to one file, whether a control plane runs or not
///
/// The file is as secret as the state directory: it holds the authority's keys. Exit codes: 0 written, 64 wrong arguments, 70
/// refused or failed.
#[derive(Debug, Parser)]
#[command(
    name = "signet-control-plane backup",
    after_help = "Example:\n  signet-control-plane backup --trust-domain mesh.example --output mesh.backup"
)]
struct BackUp {
    #[command(flatten)]
    state: State,
    /// Unix socket of the control plane that runs; STATE_DIR/admin.sock when not set
    #[arg(long, env = "SIGNET_ADMIN_SOCKET", value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// File to write, for its owner only
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Brings a backup back, in a new epoch that proxies take; every control plane has to be stopped
///
/// Join tokens of the backup count as used. Proxies whose certificates were issued after the backup go on with them. Exit codes: 0
/// restored, 64 wrong arguments, 70 refused or failed: nothing was changed then.
#[derive(Debug, Parser)]
#[command(
    name = "signet-control-plane restore",
    after_help = "Examples:\n  signet-control-plane restore --trust-domain mesh.example --from mesh.backup\n  \
                  signet-control-plane restore --trust-domain mesh.example --from mesh.backup --replace"
)]
struct Restore {
    #[command(flatten)]
    state: State,
    /// What `backup` wrote
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Put it in the place of a mesh that is there; what that one revoked stays revoked
    #[arg(long)]
    replace: bool,
    /// The new epoch; left out: the next one of those that the backup and the store know. Give a higher one when this backup was
    /// restored before and that state is lost
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    epoch: Option<u64>,
    /// Leave join tokens as good as they were in the backup, those included that were used since
    #[arg(long)]
    keep_tokens: bool,
}

/// The command with its arguments, its name first.
pub(crate) fn backup(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    run(BackUp::try_parse_from(arguments), |command| async move { command.run().await })
}

/// The command with its arguments, its name first.
pub(crate) fn restore(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    run(Restore::try_parse_from(arguments), |command| async move { command.run().await })
}

fn run<C, F: Future<Output = Result<String, Failed>>>(
    parsed: Result<C, clap::Error>,
    command: impl FnOnce(C) -> F,
) -> ExitCode {
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nobody to tell when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(command(parsed)),
        Err(error) => Err(Failed { text: error.to_string(), code: EXIT_FAILED }),
    };
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(Failed { text, code }) => {
            eprintln!("signet-control-plane: {text}");
            ExitCode::from(code)
        }
    }
}

struct Failed {
    text: String,
    code: u8,
}

impl From<BackupError> for Failed {
    fn from(error: BackupError) -> Self {
        Self { text: with_causes(&error), code: EXIT_FAILED }
    }
}

impl State {
    fn trust_domain(&self) -> Result<TrustDomain, Failed> {
        TrustDomain::parse(&self.trust_domain)
            .map_err(|error| Failed { text: format!("SIGNET_TRUST_DOMAIN: {error}"), code: EXIT_CONFIG })
    }

    async fn open(
        self,
        trust_domain: &TrustDomain,
    ) -> Result<std::sync::Arc<dyn crate::store::Store>, Failed> {
        let location = self.store.location(trust_domain, &self.api_server);
        let location = location.map_err(|error| Failed { text: error.to_string(), code: EXIT_CONFIG })?;
        Ok(location.open(&self.state_dir).await.map_err(BackupError::from)?)
    }
}

impl BackUp {
    async fn run(self) -> Result<String, Failed> {
        let trust_domain = self.state.trust_domain()?;
        let directory = self.state.state_dir.clone();
        let keyring = Keyring::load(&directory, &trust_domain).map_err(BackupError::from)?;
        let keyring = keyring.ok_or(AuthorityError::Missing).map_err(BackupError::from)?;
        let authority = keyring.text().map_err(BackupError::from)?;
        let socket = self.admin_socket.clone().unwrap_or_else(|| directory.join("admin.sock"));
        let listing = match ask(&socket).await? {
            Some(listing) => listing,
            None => self.state.open(&trust_domain).await?.list("").await.map_err(BackupError::from)?,
        };
        let (revision, entries) = (listing.revision, listing.entries.len());
        let now = unix_seconds(crate::clock::machine());
        let backup =
            Backup::new(trust_domain.to_string(), now, revision, authority.to_string(), listing.entries);
        backup.write(&self.output)?;
        Ok(format!(
            "{} entries of revision {} are in {}. It holds the authority's keys: keep it as secret as the state directory.",
            entries,
            revision.0,
            self.output.display()
        ))
    }
}

/// All entries, from the control plane that serves this socket; none if there is none.
async fn ask(socket: &Path) -> Result<Option<Listing>, BackupError> {
    if UnixStream::connect(socket).await.is_err() {
        return Ok(None);
    }
    let path = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let failed = |error: &dyn std::fmt::Display| BackupError::NotAnswering(error.to_string());
    let channel = Endpoint::from_static("http://signet.invalid").connect_with_connector(connect).await;
    let channel = channel.map_err(|error| failed(&error))?;
    let mut client = AdminClient::new(channel).max_decoding_message_size(MAX_ADMIN_ANSWER_BYTES);
    let answer = client.backup(BackupRequest {}).await.map_err(|status| failed(&status.message()))?;
    let mut parts = answer.into_inner();
    let mut listing = Listing { revision: Revision(0), entries: Vec::new() };
    let mut is_complete = false;
    while let Some(part) = parts.message().await.map_err(|status| failed(&status.message()))? {
        listing.revision = Revision(part.revision);
        is_complete = part.last;
        let revision = listing.revision;
        let entry = |entry: signet_sync::proto::admin::BackupEntry| Entry {
            key: entry.key,
            value: entry.value,
            revision,
        };
        listing.entries.extend(part.entries.into_iter().map(entry));
    }
    if is_complete { Ok(Some(listing)) } else { Err(failed(&"the backup ended early")) }
}

impl Restore {
    async fn run(self) -> Result<String, Failed> {
        let trust_domain = self.state.trust_domain()?;
        let directory = self.state.state_dir.clone();
        let backup = Backup::read(&self.from)?;
        if backup.trust_domain != trust_domain.as_str() {
            let (found, wanted) = (backup.trust_domain, trust_domain.to_string());
            return Err(BackupError::OtherTrustDomain { found, wanted }.into());
        }
        private(&directory)?;
        let store = self.state.open(&trust_domain).await?;
        let restoring = Restoring {
            backup: &backup,
            replace: self.replace,
            epoch: self.epoch,
            keep_tokens: self.keep_tokens,
        };
        let restored = super::restore(&restoring, &*store, &directory, crate::clock::machine()).await?;
        Ok(format!(
            "restored: epoch {}, from the backup of revision {}. What was revoked or enrolled after it is not in it, unless \
             the store that was replaced knew: revoke again what has to be.{}",
            restored.epoch,
            restored.backup_revision,
            if self.keep_tokens { "" } else { " Join tokens count as used: make new ones." }
        ))
    }
}

fn private(directory: &Path) -> Result<(), BackupError> {
    let failed = |error| BackupError::Io { path: directory.to_owned(), error };
    files::private_directory(directory).map_err(failed)?;
    match files::intruders(directory).map_err(failed)? {
        None => Ok(()),
        Some(fault) => Err(BackupError::SharedStateDirectory { path: directory.to_owned(), fault }),
    }
}
