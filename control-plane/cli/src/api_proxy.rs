//! A Docker API socket in front of the engine's: containers that are to be meshed are made with a sidecar before they
//! exist, everything else passes byte for byte.
//!
//! ```text
//! client ──► head ──► route ──┬─► relay::pass ─────────────────────────► engine
//!                             ├─► within: exec, archive, commit, … ─► not of holder or sidecar ─► relay::pass
//!                             ├─► act: start, stop, remove, rename, … ─► engine, and what stands beside follows
//!                             └─► make: create ─► rules ─► holder, sidecar, app ─► engine
//! ```
//!
//! Whoever may use this socket is root on the machine, as with the engine's own: it is there so that nothing is forgotten,
//! not so that nobody gets round it.

mod act;
pub(crate) mod body;
pub(crate) mod create;
mod head;
mod joining;
mod json;
mod make;
pub(crate) mod mounts;
mod relay;
mod route;
mod within;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use self::head::Answer;
use self::relay::Unread;
use self::route::Route;
use crate::group::Groups;

/// Connections at a time: each followed log and attached terminal holds one.
const CONNECTIONS_MAX: usize = 1024;
/// Containers that are made or started at a time: each takes the engine a dozen requests.
const CHANGES_MAX: usize = 8;

/// What the proxy works with.
#[derive(Debug)]
pub(crate) struct ApiProxy {
    pub(crate) groups: Groups,
    pub(crate) engine: PathBuf,
    pub(crate) settings: create::Settings,
    /// Also joined by every holder: where the control plane is.
    pub(crate) network: Option<String>,
    /// What neither says nor is said to be a workload: refused, or passed as it is.
    pub(crate) refuse_unnamed: bool,
    changes: Semaphore,
}

impl ApiProxy {
    pub(crate) const fn new(
        groups: Groups,
        engine: PathBuf,
        settings: create::Settings,
        network: Option<String>,
        refuse_unnamed: bool,
    ) -> Self {
        let changes = Semaphore::const_new(CHANGES_MAX);
        Self { groups, engine, settings, network, refuse_unnamed, changes }
    }
}

/// Listens where nobody else does, for those who may use the engine's socket.
///
/// # Errors
/// Why it cannot.
pub(crate) async fn listen(path: &Path, engine: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there already"));
    }
    let of_engine = fs::metadata(engine)?;
    // Made beside it and moved: it is never there with wider rights, and one that was left behind gives way.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    chown(&beside, Some(of_engine.uid()), Some(of_engine.gid()))?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(of_engine.mode() & 0o777))?;
    fs::rename(&beside, path)?;
    Ok(listener)
}

/// Serves for ever. What it refused or did is told to `tell`, a line each.
pub(crate) async fn serve(listener: UnixListener, proxy: Arc<ApiProxy>, tell: fn(String)) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of files: some will be closed.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let permit = Arc::clone(&connections).try_acquire_owned();
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move {
            let Ok(_permit) = permit else {
                let busy = format!("signet: {CONNECTIONS_MAX} connections are open; fix: close some");
                let _ = relay::answer(&mut client, &Answer::refusal(503, &busy)).await;
                return;
            };
            // A client that is gone has nothing to be told.
            let _ = converse(&mut client, &proxy, tell).await;
        });
    }
}

async fn converse(client: &mut UnixStream, proxy: &ApiProxy, tell: fn(String)) -> io::Result<()> {
    match respond(client, proxy, tell).await {
        Ok(()) | Err(Unread::Gone) => Ok(()),
        Err(Unread::Refused(refusal)) => relay::answer(client, &refusal).await,
    }
}

async fn respond(client: &mut UnixStream, proxy: &ApiProxy, tell: fn(String)) -> Result<(), Unread> {
    let request = relay::request(client).await?;
    let refused = |reason: String| Unread::Refused(Answer::refusal(400, &format!("signet: {reason}")));
    let route = route::route(&request.head.method, &request.head.target).map_err(refused)?;
    let request = match &route {
        Route::Build | Route::Within { .. } if request.head.is_form() => {
            return Err(refused("the body is a form; fix: write it into the query".to_owned()));
        }
        Route::Unread { what } if proxy.refuse_unnamed => return Err(Unread::Refused(within::unread(what))),
        Route::Within { before, container, after } => {
            let named = proxy.within(request, before, container, after).await;
            return Ok(relay::pass(client, named.map_err(Unread::Refused)?, &proxy.engine).await?);
        }
        Route::Build | Route::Pass | Route::Unread { .. } => {
            return Ok(relay::pass(client, request, &proxy.engine).await?);
        }
        _ => request,
    };
    let (head, body) = relay::body(client, request).await?;
    let answer = match route {
        Route::Create { version, name } => proxy.make(&head, &body, &version, name.as_deref(), tell).await,
        route => proxy.act(&head, body, route, tell).await,
    };
    Ok(relay::answer(client, &answer).await?)
}

#[cfg(test)]
mod tests;
