//! An identity without an operator, on the word of whoever knows what it is for: the Docker attestor knows containers by image
//! and labels, the [host's](crate::host_attestor) knows processes. Both make tokens and vouch here.
//!
//! For containers the [`rules`] say which image may be which workload. For a container that passes, a join token is made over the control
//! plane's Unix socket, good once and for minutes, and put into a volume of the sidecar that nothing else mounts: it is in
//! no environment, label, argument or log. The workload reaches neither that socket nor the engine's.

mod archive;
mod pin;
pub(crate) mod rules;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use signet_sync::proto::admin::{AttestRequest, CreateTokenRequest};
use thiserror::Error;

pub(crate) use self::pin::pin;
pub(crate) use self::rules::Rules;
use crate::client::{ControlPlane, answered};
use crate::docker::{Docker, DockerError};
use crate::output::Failure;

/// How long a token is good: a sidecar that does not enrol within minutes has another problem.
const TOKEN_TTL: Duration = Duration::from_secs(300);
/// The span that the rate of tokens counts in.
const MINUTE: Duration = Duration::from_secs(60);
/// Where the sidecar finds its token: the folder is a volume of its own.
pub(crate) const TOKEN_FOLDER: &str = "/run/signet";
/// The token's name there.
pub(crate) const TOKEN_FILE: &str = "token";

/// Why a container has no identity.
#[derive(Debug, Error)]
pub(crate) enum AttestorError {
    #[error("it needs the control plane: {0}")]
    ControlPlane(Failure),
    #[error("the token could not be handed over: {0}")]
    Docker(#[from] DockerError),
    #[error("token-rate: {0} tokens were made within a minute; fix: wait, or raise --tokens-per-minute")]
    Rate(usize),
}

/// Makes tokens, at most so many a minute.
#[derive(Debug)]
pub(crate) struct Attestor {
    control_plane: ControlPlane,
    made: Mutex<Recent>,
}

impl Attestor {
    pub(crate) fn new(control_plane: ControlPlane, tokens_per_minute: usize) -> Self {
        Self { control_plane, made: Mutex::new(Recent::of(tokens_per_minute)) }
    }

    /// Makes a token for one instance of a workload and puts it where that instance's sidecar alone finds it.
    pub(crate) async fn enrol(
        &self,
        docker: &Docker,
        sidecar: &str,
        workload: &str,
    ) -> Result<(), AttestorError> {
        let token = self.token(workload).await?;
        let archive = archive::of_one_file(TOKEN_FILE, token.as_bytes());
        Ok(docker.upload(sidecar, TOKEN_FOLDER, archive).await?)
    }

    /// Makes a token for one instance of a workload, unless too many were made lately.
    pub(crate) async fn token(&self, workload: &str) -> Result<String, AttestorError> {
        let most = {
            let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (!made.one_more(Instant::now())).then_some(made.most)
        };
        if let Some(most) = most {
            return Err(AttestorError::Rate(most));
        }
        let mut client = self.control_plane.connect().await.map_err(AttestorError::ControlPlane)?;
        let request = CreateTokenRequest {
            workload: workload.to_owned(),
            network: String::new(),
            uses: 1,
            instances: 1,
            ttl_s: TOKEN_TTL.as_secs(),
        };
        let made = answered(client.create_token(request).await).map_err(AttestorError::ControlPlane)?;
        Ok(made.token)
    }

    /// Vouches for the addresses of an instance; none, when it is gone.
    pub(crate) async fn vouch(
        &self,
        instance: &str,
        workload: &str,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), Failure> {
        let mut client = self.control_plane.connect().await?;
        let request = AttestRequest {
            workload: workload.to_owned(),
            network: String::new(),
            instance: instance.to_owned(),
            addresses: addresses.iter().map(IpAddr::to_string).collect(),
        };
        answered(client.attest(request).await).map(drop)
    }
}

/// When the last ones were made.
#[derive(Debug)]
struct Recent {
    most: usize,
    times: VecDeque<Instant>,
}

impl Recent {
    const fn of(most: usize) -> Self {
        Self { most, times: VecDeque::new() }
    }

    fn one_more(&mut self, now: Instant) -> bool {
        while self.times.front().is_some_and(|made| now.saturating_duration_since(*made) >= MINUTE) {
            self.times.pop_front();
        }
        let may = self.times.len() < self.most;
        if may {
            self.times.push_back(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_bounded_by_the_minute() {
        let mut recent = Recent::of(3);
        let start = Instant::now();
        let granted = (0..10).filter(|_| recent.one_more(start)).count();
        assert_eq!(granted, 3);
        assert!(!recent.one_more(start + MINUTE - Duration::from_millis(1)));
        assert!(recent.one_more(start + MINUTE));
    }
}
