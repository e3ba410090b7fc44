//! What the control plane is asked for the application, and by whom: the control thread alone speaks to it.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Questions that wait for the control thread.
pub(crate) const WAITING_MAX: usize = 8;

/// How long an answer may take: a connection, and a call on it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where an answer goes.
pub type Answer<T> = oneshot::Sender<Result<T, AskError>>;

/// A question to the control plane.
#[derive(Debug)]
pub enum Question {
    /// A certificate over the key of this request, PKCS#10.
    Certificate(Vec<u8>, Answer<Vec<CertificateDer<'static>>>),
    /// A token for these audiences.
    Token(Vec<String>, Answer<String>),
}

/// Why nothing was given.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum AskError {
    /// The control plane says no: a stable code and a sentence.
    #[error("{0}")]
    Refused(String),
    /// The control plane cannot be asked now.
    #[error("the control plane gives nothing now: {0}")]
    Unavailable(String),
}

/// Asks.
#[derive(Clone, Debug)]
pub(super) struct Asker(mpsc::Sender<Question>);

impl Asker {
    pub(super) fn new(questions: mpsc::Sender<Question>) -> Self {
        Self(questions)
    }

    pub(super) async fn certificate(&self, csr: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, AskError> {
        self.ask(|answer| Question::Certificate(csr, answer)).await
    }

    pub(super) async fn token(&self, audience: Vec<String>) -> Result<String, AskError> {
        self.ask(|answer| Question::Token(audience, answer)).await
    }

    async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Question) -> Result<T, AskError> {
        let (answer, answered) = oneshot::channel();
        let unavailable = |reason: &str| AskError::Unavailable(reason.to_owned());
        self.0.try_send(question(answer)).map_err(|_| unavailable("too many questions wait"))?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unavailable("the sidecar is stopping")),
            Err(_) => Err(unavailable("no answer within 30 s")),
        }
    }
}
