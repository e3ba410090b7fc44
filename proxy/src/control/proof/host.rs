//! A join token from the attestor of this host: it knows who asks by the kernel's word, so nothing is sent.

use std::io;
use std::path::Path;
use std::time::Duration;

use signet_sync::Token;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::control::proof::ProofError;

/// How long the attestor may take: it reads this program to its end, and asks the control plane.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer: a token has some hundred bytes, a refusal a sentence.
const ANSWER_BYTES: u64 = 4 * 1024;

/// Asks for a token.
pub(super) async fn token(path: &Path) -> Result<Token, ProofError> {
    let failed = |source| ProofError::File { path: path.to_owned(), source };
    let asking = async {
        let stream = UnixStream::connect(path).await?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
    let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
    let denied = |reason: &str| {
        // A person reads it: one line, whatever the other end is.
        let reason = reason.chars().filter(|c| !c.is_control()).take(400).collect();
        ProofError::Denied { path: path.to_owned(), reason }
    };
    match answer.trim_end().split_once(' ') {
        Some(("token", token)) => Ok(Token::parse(token)?),
        Some(("refused", reason)) => Err(denied(reason)),
        _ => Err(denied("nothing that an attestor says")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    use super::*;

    async fn answered(answer: &'static str) -> Result<Token, ProofError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attest.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let attestor = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(stream);
        };
        tokio::join!(token(&path), attestor).0
    }

    #[tokio::test]
    async fn an_attestor_gives_a_token_or_says_why_not() {
        const TOKEN: &str = "token a.BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc.BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n";
        assert_eq!(answered(TOKEN).await.unwrap().id(), "a");
        for (answer, said) in [
            ("refused process-not-listed: no rule\n", "process-not-listed: no rule"),
            ("refused a\u{1b}[31m\n", "a[31m"),
            ("", "nothing that an attestor says"),
            ("hello", "nothing that an attestor says"),
            ("token x\n", "three parts"),
        ] {
            let error = answered(answer).await.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let nobody = token(Path::new("/nowhere/attest.sock")).await.unwrap_err();
        assert!(matches!(nobody, ProofError::File { .. }), "{nobody}");
    }
}
