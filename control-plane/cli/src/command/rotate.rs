//! `signet rotate`: the next issuer or root, in one command.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::json;
use signet_sync::proto::admin::{
    AbortRotationRequest, RotateRequest, RotationHolder, RotationOutcome, RotationPhase, RotationRequest,
    RotationState, RotationTarget,
};

use crate::client::{ControlPlane, answered};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// How often the state is asked for while a rotation is followed.
const LOOK: Duration = Duration::from_millis(500);

/// Instances that are named in one line of progress.
const NAMED: usize = 3;

/// Replaces the issuer or the root of the trust domain, and shows how far that is
///
/// In good order nothing fails: every proxy that is there learns of the next one and gets certificates of it before the old
/// one is retired; what is open goes on. It can be called off until then, and goes on by itself when the control plane was
/// restarted meanwhile. Who is not there is parked, and comes back with what it has.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Examples:
  signet rotate issuer
  signet rotate root --trust-domain mesh.example
  signet rotate status
  signet rotate abort")]
pub(crate) enum Rotate {
    /// Replaces the issuer, which certifies workloads, under the same root
    #[command(after_help = "Example:\n  signet rotate issuer")]
    Issuer(Begin),
    /// Replaces the root, which everybody believes, and the issuer with it
    #[command(after_help = "Examples:\n  signet rotate root\n  signet rotate root --emergency --yes")]
    Root(Begin),
    /// Shows what is in force, what is under way, and whom it waits for
    #[command(after_help = "Example:\n  signet rotate status -o json")]
    Status(Which),
    /// Calls off what is under way: everybody returns to what is in force
    #[command(after_help = "Example:\n  signet rotate abort")]
    Abort(Which),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Begin {
    /// Retire what is in force at once, ready or not: somebody else may have its key
    #[arg(long)]
    emergency: bool,
    /// Do not ask before an emergency rotation breaks things
    #[arg(long, requires = "emergency")]
    yes: bool,
    /// Begin and return; without it the command ends with the rotation
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Rotate {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        match self {
            Self::Issuer(begin) => begin.run(RotationTarget::Issuer, format).await,
            Self::Root(begin) => begin.run(RotationTarget::Root, format).await,
            Self::Status(which) => show(format, &which.state().await?).map(|()| Verdict::Yes),
            Self::Abort(which) => {
                let mut client = which.control_plane.connect().await?;
                let request = AbortRotationRequest { trust_domain: which.control_plane.trust_domain() };
                let state = answered(client.abort_rotation(request).await)?;
                let number = state.number;
                which.follow(state, number, RotationOutcome::Reversed, format).await
            }
        }
    }
}

impl Begin {
    async fn run(self, target: RotationTarget, format: Format) -> Result<Verdict, Failure> {
        let Self { emergency, yes, no_wait, which } = self;
        if emergency && !yes && !confirmed(target)? {
            print_line("nothing was changed")?;
            return Ok(Verdict::No);
        }
        let mut client = which.control_plane.connect().await?;
        let request = RotateRequest {
            trust_domain: which.control_plane.trust_domain(),
            target: target.into(),
            emergency,
        };
        let state = answered(client.rotate(request).await)?;
        if no_wait {
            return show(format, &state).map(|()| Verdict::Yes);
        }
        let number = state.number;
        let wanted = if emergency { RotationOutcome::Emergency } else { RotationOutcome::Completed };
        which.follow(state, number, wanted, format).await
    }
}

impl Which {
    async fn state(&self) -> Result<RotationState, Failure> {
        let mut client = self.control_plane.connect().await?;
        let request = RotationRequest { trust_domain: self.control_plane.trust_domain() };
        answered(client.rotation(request).await)
    }

    /// Tells of every step until the rotation is over. A control plane that is restarted meanwhile carries it on, and so does
    /// this.
    async fn follow(
        &self,
        mut state: RotationState,
        number: u64,
        wanted: RotationOutcome,
        format: Format,
    ) -> Result<Verdict, Failure> {
        let mut said = String::new();
        while state.last_number < number {
            say(format, &mut said, progress(&state))?;
            tokio::time::sleep(LOOK).await;
            state = loop {
                match self.state().await {
                    Ok(state) => break state,
                    Err(Failure::Unavailable(why)) => {
                        say(format, &mut said, format!("{why}; the rotation goes on when it is back"))?;
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(failure) => return Err(failure),
                }
            };
        }
        if format == Format::Json {
            show(format, &state)?;
        } else {
            print_line(ended(&state))?;
        }
        Ok(Verdict::of(state.last_number != number || state.last_outcome() == wanted))
    }
}

/// Prints a line for people, once.
fn say(format: Format, said: &mut String, line: String) -> Result<(), Failure> {
    if format == Format::Json || *said == line {
        return Ok(());
    }
    print_line(&line)?;
    *said = line;
    Ok(())
}

/// Says what an emergency rotation breaks, and asks whether it is meant.
fn confirmed(target: RotationTarget) -> Result<bool, Failure> {
    let breaks = match target {
        RotationTarget::Root => {
            "This retires the root at once:
  - every connection between workloads is cut, and calls fail until both sides have new certificates: for proxies that
    are connected now, within seconds;
  - proxies that are not connected now come back only with a new token each;
  - every join token made so far is void, those in prepared directories too;
  - whoever was given /roots.pem needs it anew."
        }
        _ => {
            "This retires the issuer at once:
  - every connection under its certificates is cut, and calls fail until both sides have new ones: for proxies that are
    connected now, within seconds;
  - proxies that are not connected now get new ones when they come back, and call nobody until then."
        }
    };
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "{breaks}");
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage("say --yes to do it".to_owned()));
    }
    let _ = write!(stderr, "Type yes to do it: ");
    let _ = stderr.flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Failure::Usage(format!("no answer: {error}")))?;
    Ok(answer.trim() == "yes")
}

fn what(target: RotationTarget) -> &'static str {
    match target {
        RotationTarget::Issuer => "issuer",
        RotationTarget::Root => "root",
        RotationTarget::Unspecified => "",
    }
}

fn phase(phase: RotationPhase) -> &'static str {
    match phase {
        RotationPhase::Distributing => "distributing",
        RotationPhase::Reissuing => "reissuing",
        RotationPhase::Returning => "returning",
        RotationPhase::Unspecified => "none",
    }
}

fn outcome(outcome: RotationOutcome) -> &'static str {
    match outcome {
        RotationOutcome::Completed => "completed",
        RotationOutcome::Emergency => "emergency",
        RotationOutcome::Reversed => "reversed",
        RotationOutcome::Unspecified => "none",
    }
}

/// One line on how far it is and whom it waits for.
fn progress(state: &RotationState) -> String {
    let ready = state.ready;
    let all = ready.saturating_add(state.waiting_count);
    let doing = match state.phase() {
        RotationPhase::Distributing => "know the next one",
        RotationPhase::Reissuing => "have certificates of the next one",
        RotationPhase::Returning => "have returned to the one in force",
        RotationPhase::Unspecified => return "no rotation is under way".to_owned(),
    };
    let mut line = format!("{}: {ready} of {all} proxies {doing}", what(state.target()));
    if state.parked_count > 0 {
        line.push_str(&format!(", {} not connected are parked", state.parked_count));
    }
    for RotationHolder { spiffe_id, instance, why } in state.waiting.iter().take(NAMED) {
        line.push_str(&format!("\n  waits: {spiffe_id} ({instance}) {why}"));
    }
    let more = (state.waiting_count as usize).saturating_sub(NAMED);
    if more > 0 {
        line.push_str(&format!("\n  waits: and {more} more"));
    }
    line
}

fn ended(state: &RotationState) -> String {
    let target = what(state.last_target());
    match state.last_outcome() {
        RotationOutcome::Completed => format!(
            "{target} is rotated; make a backup of the control plane's state: an older one does not fit any more"
        ),
        RotationOutcome::Emergency => format!(
            "{target} is replaced; make a backup of the control plane's state: an older one does not fit any more"
        ),
        RotationOutcome::Reversed => {
            format!("the rotation of the {target} was called off; what was in force is")
        }
        RotationOutcome::Unspecified => "no rotation is under way".to_owned(),
    }
}

fn show(format: Format, state: &RotationState) -> Result<(), Failure> {
    if format == Format::Json {
        return print_json(&fields(state));
    }
    print_line(format_args!("trust domain {}", state.trust_domain))?;
    print_line(format_args!("root   {}", state.root))?;
    print_line(format_args!("issuer {}", state.issuer))?;
    if state.phase() != RotationPhase::Unspecified {
        print_line(format_args!("next root   {}", state.next_root))?;
        print_line(format_args!("next issuer {}", state.next_issuer))?;
    }
    for retired in &state.retired {
        let word = if retired.emergency { ", vouches for nothing" } else { "" };
        print_line(format_args!(
            "retired root {} until {} s since 1970{word}",
            retired.fingerprint, retired.until
        ))?;
    }
    print_line(progress(state))?;
    if state.last_number > 0 {
        let (target, outcome) = (what(state.last_target()), outcome(state.last_outcome()));
        print_line(format_args!("last: {target}, {outcome}, at {} s since 1970", state.last_at))?;
    }
    Ok(())
}

fn fields(state: &RotationState) -> serde_json::Value {
    let holder = |holder: &RotationHolder| json!({ "spiffe_id": holder.spiffe_id, "instance": holder.instance, "why": holder.why });
    let retired = state.retired.iter().map(|retired| {
        json!({ "root": retired.fingerprint, "until": retired.until, "emergency": retired.emergency })
    });
    json!({
        "trust_domain": state.trust_domain,
        "number": state.number,
        "phase": phase(state.phase()),
        "target": what(state.target()),
        "began": state.began,
        "root": state.root,
        "issuer": state.issuer,
        "next_root": state.next_root,
        "next_issuer": state.next_issuer,
        "ready": state.ready,
        "waiting_count": state.waiting_count,
        "parked_count": state.parked_count,
        "waiting": state.waiting.iter().map(holder).collect::<Vec<_>>(),
        "parked": state.parked.iter().map(holder).collect::<Vec<_>>(),
        "retired": retired.collect::<Vec<_>>(),
        "last": {
            "number": state.last_number,
            "target": what(state.last_target()),
            "outcome": outcome(state.last_outcome()),
            "at": state.last_at,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_whom_it_waits_for_and_counts_the_rest() {
        let holder = |number: u8| RotationHolder {
            spiffe_id: format!("spiffe://mesh.example/app/edge/api{number}"),
            instance: format!("leaf{number}"),
            why: "has not acknowledged the new anchors yet".to_owned(),
        };
        let mut state = RotationState {
            ready: 2,
            waiting: (0..5).map(holder).collect(),
            waiting_count: 5,
            parked_count: 1,
            ..Default::default()
        };
        state.set_phase(RotationPhase::Distributing);
        state.set_target(RotationTarget::Root);
        state.parked.push(holder(9));
        let text = progress(&state);
        assert!(
            text.starts_with("root: 2 of 7 proxies know the next one, 1 not connected are parked\n"),
            "{text}"
        );
        assert!(text.contains("waits: spiffe://mesh.example/app/edge/api0 (leaf0) has not acknowledged"));
        assert!(text.ends_with("waits: and 2 more"), "{text}");
    }

    #[test]
    fn who_asks_for_json_gets_the_words_that_people_get() {
        let mut state = RotationState { number: 3, last_number: 3, ..Default::default() };
        state.set_last_outcome(RotationOutcome::Reversed);
        state.set_last_target(RotationTarget::Issuer);
        let fields = fields(&state);
        assert_eq!(fields["phase"], "none");
        assert_eq!(
            (&fields["last"]["outcome"], &fields["last"]["target"]),
            (&json!("reversed"), &json!("issuer"))
        );
    }
}
