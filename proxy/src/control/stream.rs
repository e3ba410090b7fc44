//! The control stream: sections in, answers and reports out; opened again whenever it ends.

mod session;

use std::convert::Infallible;
use std::time::Duration;

use signet_identity::backoff;
use signet_sync::Subscriber;
use thiserror::Error;
use tokio::time::Instant;

use crate::clock;
use crate::control::connect::ConnectError;
use crate::control::stream::session::{End, Session};
use crate::control::{Hooks, Node, jitter};

/// Attempts after which the pause grows no more: 8 s ± 20 %, so that every proxy is back within 10 s of its control
/// plane.
const BACKOFF_ATTEMPTS: u32 = 4;

/// How long a stream must have lasted to count as a success: one that is accepted and refused at once is not tried
/// again without pause.
const SETTLED: Duration = Duration::from_secs(10);

/// The longest pause a control plane may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why there is no stream, or no longer.
#[derive(Debug, Error)]
pub(super) enum StreamError {
    #[error("the control plane ended the stream")]
    Closed,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane says good-bye: {reason}")]
    Goaway { reason: String, retry_after: Duration },
    #[error("the stream failed: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the control plane does not read what is sent to it")]
    Stalled,
    #[error("no answer within 15 s")]
    Timeout,
}

/// Follows the sections, for ever. What is in force stays so while there is no stream.
pub(super) async fn follow(node: &Node, subscriber: &mut Subscriber, hooks: &mut Hooks) -> Infallible {
    let mut attempt = 0;
    loop {
        let error = match Session::open(node, subscriber).await {
            Ok(session) => {
                tracing::info!("connected to the control plane");
                node.origin.link.send_modify(|link| {
                    link.connected = true;
                    link.error = None;
                });
                let opened = Instant::now();
                let error = serve(node, session, subscriber, hooks).await;
                if opened.elapsed() >= SETTLED {
                    attempt = 0;
                }
                error
            }
            Err(error) => error,
        };
        node.origin.link.send_modify(|link| link.connected = false);
        node.origin.failed("control stream", &error);
        tokio::time::sleep(pause(&error, attempt)).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Runs one session, and the next one made with renewed certificates before the last one is given up.
async fn serve(
    node: &Node,
    mut session: Session,
    subscriber: &mut Subscriber,
    hooks: &mut Hooks,
) -> StreamError {
    loop {
        match session.run(node, subscriber, hooks).await {
            End::Failed(error) => return error,
            End::Renewed => match Session::open(node, subscriber).await {
                Ok(next) => session = next.after(session),
                Err(error) => {
                    node.origin.failed("control stream", &error);
                    session.keep(clock::now() + backoff(0, jitter()));
                }
            },
        }
    }
}

fn pause(error: &StreamError, attempt: u32) -> Duration {
    let own = backoff(attempt.min(BACKOFF_ATTEMPTS), jitter());
    match error {
        StreamError::Goaway { retry_after, .. } => (*retry_after).min(LONGEST_PAUSE) + own,
        _ => own,
    }
}
