//! Thousands of proxies against one control plane: what it takes and how long everybody waits.
//!
//! ```text
//!  processor of its own: signet-control-plane ◄══ TLS 1.3, HTTP/2 ══ N proxies in this process, an address each: the others
//!  operator (Unix socket) ──┘
//! ```
//!
//! All is real but the proxies' insides: what is pushed is verified once for all who get the same bytes, and nothing stands
//! behind a proxy. One run is: enrol and connect everybody, rest, push policies, kill the control plane and start it again,
//! stop it in good order and start it again.

pub mod board;
pub mod command;
pub mod figures;
pub mod mesh;
pub mod plane;
pub mod proxy;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use signet_identity::TrustDomain;
use tokio::task::JoinSet;
use tokio::time::Instant;

use board::Board;
use figures::{Figures, Storm};
use mesh::{Mesh, TRUST_DOMAIN};
use plane::{Launch, Plane};
use proxy::Proxy;

/// Enrolments at a time: machines that are installed one after the other, not all in one moment.
const ENROLMENTS: usize = 64;

/// How long anything is waited for; what takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often the board and the memory are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many of what.
    pub mesh: Mesh,
    /// Policies pushed.
    pub pushes: usize,
    /// Length of the rest that is measured.
    pub rest: Duration,
    /// Rest between two pushes, and after everything else: what was caused before has come to its end.
    pub between: Duration,
    /// How the control plane is started.
    pub launch: Launch,
}

/// Makes one run.
///
/// # Errors
/// In words what did not come about, or came about that must not.
pub async fn run(plan: &Plan) -> Result<Figures, String> {
    let mut figures = Figures { proxies: plan.mesh.proxies, sites: plan.mesh.sites(), ..Figures::default() };
    let mut plane = plan.launch.start(None)?;
    plane.apply(&plan.mesh.manifests()).await?;
    figures.memory_empty_kib = plane.resident_kib().map_err(|error| error.to_string())?;
    let (board, fleet) = join(plan, &plane, &mut figures).await?;
    rest(plan, &plane, &board, &mut figures).await?;
    for number in 0..plan.pushes {
        tokio::time::sleep(plan.between).await;
        push(plan, &plane, &board, number, &mut figures).await?;
    }
    let addresses = plane.addresses();
    for kind in ["killed", "drained"] {
        let begun = Instant::now();
        match kind {
            "killed" => plane.kill(),
            _ => tokio::task::block_in_place(|| plane.terminate()),
        }
        plane = tokio::task::block_in_place(|| plan.launch.start(Some(addresses)))?;
        figures.storms.push(storm(plan, kind, &plane, &board, begun).await?);
        rest_quietly(plan, &board).await?;
    }
    drop(fleet);
    board.faults().map_or(Ok(figures), Err)
}

/// Enrols everybody and lets them connect; the fleet lives until the set is dropped.
async fn join(
    plan: &Plan,
    plane: &Plane,
    figures: &mut Figures,
) -> Result<(Arc<Board>, JoinSet<()>), String> {
    let mesh = plan.mesh;
    let (begun, used) = (Instant::now(), time(plane)?);
    let mut tokens = std::collections::BTreeMap::new();
    for service in mesh.service_names() {
        let token = plane.token(&service, mesh.instances()).await?;
        tokens.insert(service, Arc::new(token));
    }
    let mut enrolling: JoinSet<Result<Proxy, String>> = JoinSet::new();
    let mut fleet = JoinSet::new();
    let mut board: Option<Arc<Board>> = None;
    let mut next = 0;
    while next < mesh.proxies || !enrolling.is_empty() {
        while next < mesh.proxies && enrolling.len() < ENROLMENTS {
            // Sites in turn, so that not all of one service write the same record at once.
            let (number, control) = (in_turn(mesh, next), plane.control);
            let token = tokens.get(&mesh.service_of(number)).ok_or("a service without a token")?.clone();
            enrolling.spawn(async move { Proxy::enrol(number, control, &token).await });
            next += 1;
        }
        let enrolled = enrolling.join_next().await.ok_or("nobody enrols")?;
        let proxy = enrolled.map_err(|error| error.to_string())??;
        let board = match &board {
            Some(board) => board.clone(),
            None => {
                let trust_domain = TrustDomain::parse(TRUST_DOMAIN).map_err(|error| error.to_string())?;
                board.insert(Arc::new(Board::new(trust_domain, proxy.policy_key))).clone()
            }
        };
        fleet.spawn(proxy.live(plane.control, board));
    }
    let board = board.ok_or("a fleet of nobody")?;
    until(&board, || board.settled.load(Ordering::Acquire) == mesh.proxies).await.map_err(|error| {
        format!("{error}: {} of {} are connected", board.settled.load(Ordering::Acquire), mesh.proxies)
    })?;
    figures.join_seconds = begun.elapsed().as_secs_f64();
    figures.join_processor_seconds = (time(plane)? - used).as_secs_f64();
    figures.policy_bytes = board.policy_bytes();
    figures.join_failed = board.take_attempts();
    Ok((board, fleet))
}

fn in_turn(mesh: Mesh, at: usize) -> usize {
    // Full sites in turn; what does not fill a site comes last, as it stands.
    let full = mesh.proxies / mesh.per_site;
    if at < full * mesh.per_site { at % full * mesh.per_site + at / full } else { at }
}

/// What nobody doing anything costs.
async fn rest(plan: &Plan, plane: &Plane, board: &Board, figures: &mut Figures) -> Result<(), String> {
    // The last claims' directories are still on their way.
    rest_quietly(plan, board).await?;
    let (begun, used) = (Instant::now(), time(plane)?);
    tokio::time::sleep(plan.rest).await;
    figures.rest_processors = (time(plane)? - used).as_secs_f64() / begun.elapsed().as_secs_f64();
    figures.memory_rest_kib = plane.resident_kib().map_err(|error| error.to_string())?;
    Ok(())
}

async fn rest_quietly(plan: &Plan, board: &Board) -> Result<(), String> {
    tokio::time::sleep(plan.between).await;
    let settled = board.settled.load(Ordering::Acquire);
    let all = settled == plan.mesh.proxies;
    if all { Ok(()) } else { Err(format!("only {settled} of {} stayed connected", plan.mesh.proxies)) }
}

/// Pushes one policy to everybody.
async fn push(
    plan: &Plan,
    plane: &Plane,
    board: &Board,
    number: usize,
    figures: &mut Figures,
) -> Result<(), String> {
    const ACKNOWLEDGED: &str = "signet_control_acknowledged_sections_total";
    let counted = plane.counter(ACKNOWLEDGED).await?;
    let (begun, used) = (Instant::now(), time(plane)?);
    board.expect_policy(board.policy() + 1);
    plane.apply(&[Mesh::change(number)]).await?;
    let (applied, mut peak) = (begun.elapsed(), 0);
    until(board, || {
        peak = peak.max(plane.resident_kib().unwrap_or_default());
        board.taken_count() >= plan.mesh.proxies
    })
    .await
    .map_err(|error| format!("{error}: {} of {} have the policy", board.taken_count(), plan.mesh.proxies))?;
    let all = u64::try_from(plan.mesh.proxies).unwrap_or(u64::MAX);
    while plane.counter(ACKNOWLEDGED).await? < counted + all {
        if begun.elapsed() > PATIENCE {
            return Err("the control plane does not count all answers".into());
        }
        tokio::time::sleep(LOOK).await;
    }
    figures.pushes.push(figures::Push {
        applied: applied.as_secs_f64(),
        taken: board.taken().iter().map(Duration::as_secs_f64).collect(),
        counted: begun.elapsed().as_secs_f64(),
        processor_seconds: (time(plane)? - used).as_secs_f64(),
        peak_kib: peak,
    });
    Ok(())
}

/// Waits until everybody is back after a restart.
async fn storm(
    plan: &Plan,
    kind: &str,
    plane: &Plane,
    board: &Board,
    begun: Instant,
) -> Result<Storm, String> {
    let started = begun.elapsed();
    // While it was away nothing could succeed.
    let away = board.take_attempts();
    let mut peak = 0;
    let all = || board.settled.load(Ordering::Acquire) == plan.mesh.proxies;
    let mut half = None;
    until(board, || {
        peak = peak.max(plane.resident_kib().unwrap_or_default());
        if half.is_none() && board.settled.load(Ordering::Acquire) >= plan.mesh.proxies / 2 {
            half = Some(begun.elapsed());
        }
        all()
    })
    .await
    .map_err(|error| {
        format!("{error}: {} of {} came back", board.settled.load(Ordering::Acquire), plan.mesh.proxies)
    })?;
    Ok(Storm {
        kind: kind.to_owned(),
        away_seconds: started.as_secs_f64(),
        half_seconds: half.unwrap_or_default().as_secs_f64(),
        all_seconds: begun.elapsed().as_secs_f64(),
        processor_seconds: time(plane)?.as_secs_f64(),
        peak_kib: peak,
        failed_away: away,
        failed: board.take_attempts(),
    })
}

async fn until(board: &Board, mut done: impl FnMut() -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !done() {
        if let Some(fault) = board.faults() {
            return Err(fault);
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("not within {} s", PATIENCE.as_secs()));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn time(plane: &Plane) -> Result<Duration, String> {
    plane.processor_time().map_err(|error| format!("the control plane has ended: {error}"))
}
