//! Signs together whatever is ready at the same moment on one worker: group commit, without a timer.
//!
//! The first message of a batch asks for a turn after everything that is ready now has run; until that turn
//! comes, others join it. So a lone message waits for nobody, and the busier a worker is, the more messages share a
//! signature. Where a worker has one exchange alone there is nobody to come, and not even that turn is taken. A batch
//! may span connections: each message names its own channel in its nonce.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use signet_signature::batch::MAX_BATCH;
use signet_signature::{MeshSigner, SignError, SignedHead, Unsigned};
use tokio::sync::oneshot;

use crate::limits::{Counter, Place};
use crate::telemetry::metrics::Metrics;

/// Bytes of messages that wait at most: one alone can be 200 KiB, with cookies on both of its sides. Usual ones are
/// 1 KiB, so that a full batch stays below.
const BYTES_MAX: usize = 1024 * 1024;

/// The messages of one worker that wait for their signature.
#[derive(Default)]
pub(crate) struct Batcher {
    waiting: RefCell<Waiting>,
    /// Exchanges whose request has come and whose response has not begun: each may bring a message.
    exchanges: Counter,
}

#[derive(Default)]
struct Waiting {
    /// Under whose key; messages of another key never share a batch.
    signer: Option<Arc<MeshSigner>>,
    /// At most [`MAX_BATCH`]: a full batch is signed at once.
    messages: Vec<Unsigned>,
    answers: Vec<oneshot::Sender<Result<SignedHead, SignError>>>,
    bytes: usize,
}

impl Batcher {
    /// An exchange whose messages may be signed here, until it is dropped.
    pub(crate) fn enter(&self) -> Place {
        self.exchanges.take()
    }

    /// Signs a message together with those that are ready at the same time.
    pub(crate) async fn sign(
        self: &Rc<Self>,
        signer: &Arc<MeshSigner>,
        message: Unsigned,
        metrics: &Metrics,
    ) -> Result<SignedHead, SignError> {
        let answer = self.join(signer, message, metrics);
        // The turn that was asked for always comes; only a worker that is torn down forgets it.
        answer.await.unwrap_or(Err(SignError::Crypto))
    }

    fn join(
        self: &Rc<Self>,
        signer: &Arc<MeshSigner>,
        message: Unsigned,
        metrics: &Metrics,
    ) -> oneshot::Receiver<Result<SignedHead, SignError>> {
        let is_same = |known: &Arc<MeshSigner>| Arc::ptr_eq(known, signer);
        if !self.waiting.borrow().signer.as_ref().is_some_and(is_same) {
            // The key was rotated: what waits was prepared under the one before.
            self.flush();
            self.waiting.borrow_mut().signer = Some(Arc::clone(signer));
        }
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        waiting.bytes += message.base().len();
        waiting.messages.push(message);
        waiting.answers.push(sender);
        let first = waiting.messages.len() == 1;
        let full = waiting.messages.len() == MAX_BATCH || waiting.bytes > BYTES_MAX;
        let alone = first && self.exchanges.count() == 1;
        drop(waiting);
        if first {
            metrics.signature_batches.inc();
        }
        if first && !alone {
            let batcher = Rc::clone(self);
            tokio::task::spawn_local(async move {
                // After the tasks that are ready now, and those that the sockets make ready meanwhile.
                tokio::task::yield_now().await;
                batcher.flush();
            });
        }
        if full || alone {
            self.flush();
        }
        answer
    }

    /// Signs what waits; nothing when a full batch was signed already.
    fn flush(&self) {
        let (signer, messages, answers) = {
            let mut waiting = self.waiting.borrow_mut();
            let Some(signer) = waiting.signer.clone() else { return };
            waiting.bytes = 0;
            (signer, std::mem::take(&mut waiting.messages), std::mem::take(&mut waiting.answers))
        };
        if messages.is_empty() {
            return;
        }
        match signer.sign_batch(messages) {
            // Whoever no longer listens was cut off; its signature is worth nothing elsewhere.
            Ok(heads) => {
                answers.into_iter().zip(heads).for_each(|(answer, head)| drop(answer.send(Ok(head))))
            }
            Err(_) => answers.into_iter().for_each(|answer| drop(answer.send(Err(SignError::Crypto)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::Ed25519KeyPair;
    use http::{HeaderMap, HeaderValue};
    use signet_signature::{ChannelId, Form, RequestView, sha256_header};
    use tokio::task::LocalSet;

    use super::*;

    fn signer() -> Arc<MeshSigner> {
        let key = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
        Arc::new(MeshSigner::new(key.as_ref(), "spiffe://td/app/d/a#fingerprint").unwrap())
    }

    fn message(signer: &MeshSigner, seq: u64) -> Unsigned {
        let mut headers = HeaderMap::new();
        headers.insert("content-digest", HeaderValue::try_from(sha256_header(b"")).unwrap());
        let view = RequestView {
            method: "GET",
            scheme: "http",
            authority: "b",
            path: "/",
            query: None,
            target: "/",
            headers: &headers,
            trailers: None,
        };
        signer.prepare_request(&view, &ChannelId([1; 16]), seq, 0, Form::Batch).unwrap()
    }

    async fn sign(batcher: &Rc<Batcher>, signers: &[Arc<MeshSigner>], metrics: &Metrics) -> Vec<SignedHead> {
        let answers: Vec<_> = signers
            .iter()
            .zip(1..)
            .map(|(signer, seq)| batcher.join(signer, message(signer, seq), metrics))
            .collect();
        let mut heads = Vec::new();
        for answer in answers {
            heads.push(answer.await.unwrap().unwrap());
        }
        heads
    }

    /// The size of the tree a signature belongs to, and the root's signature.
    fn tree(head: &SignedHead) -> (u16, Vec<u8>) {
        use base64::Engine as _;
        let text = head.signature.to_str().unwrap().trim_start_matches("mesh=:").trim_end_matches(':');
        let value = base64::prelude::BASE64_STANDARD.decode(text).unwrap();
        (u16::from_be_bytes([value[4], value[5]]), value[value.len() - 64..].to_vec())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn messages_that_are_ready_together_share_one_signature_in_the_order_they_came() {
        LocalSet::new()
            .run_until(async {
                let (batcher, metrics, signer) = (Rc::default(), Metrics::default(), signer());
                let heads = sign(&batcher, &vec![Arc::clone(&signer); 5], &metrics).await;
                assert_eq!(metrics.signature_batches.get(), 1);
                assert!(heads.windows(2).all(|pair| tree(&pair[0]) == tree(&pair[1])));
                assert_eq!(tree(&heads[0]).0, 5);
                let nonces: Vec<_> =
                    heads.iter().map(|head| head.nonce.rsplit_once('.').unwrap().1).collect();
                assert_eq!(nonces, ["1", "2", "3", "4", "5"]);
                let alone = sign(&batcher, &[signer], &metrics).await;
                assert_eq!(tree(&alone[0]).0, 1);
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn messages_prepared_under_different_keys_never_share_a_signature() {
        LocalSet::new()
            .run_until(async {
                let (batcher, metrics) = (Rc::default(), Metrics::default());
                let (old, new) = (signer(), signer());
                let heads = sign(&batcher, &[Arc::clone(&old), old, Arc::clone(&new), new], &metrics).await;
                assert!(heads.iter().all(|head| tree(head).0 == 2));
                assert_ne!(tree(&heads[1]), tree(&heads[2]));
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_message_of_the_only_exchange_is_signed_at_once_and_that_of_one_of_two_waits_for_the_other() {
        LocalSet::new()
            .run_until(async {
                let (batcher, metrics, signer) = (Rc::<Batcher>::default(), Metrics::default(), signer());
                let _one = batcher.enter();
                let mut alone = batcher.join(&signer, message(&signer, 1), &metrics);
                assert_eq!(tree(&alone.try_recv().unwrap().unwrap()).0, 1);
                let two = batcher.enter();
                let mut first = batcher.join(&signer, message(&signer, 2), &metrics);
                assert!(first.try_recv().is_err(), "signed before the other could join");
                let second = batcher.join(&signer, message(&signer, 3), &metrics);
                assert_eq!(tree(&first.await.unwrap().unwrap()).0, 2);
                assert_eq!(tree(&second.await.unwrap().unwrap()).0, 2);
                drop(two);
                let mut alone = batcher.join(&signer, message(&signer, 4), &metrics);
                assert_eq!(tree(&alone.try_recv().unwrap().unwrap()).0, 1);
                assert_eq!(metrics.signature_batches.get(), 3);
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_batch_that_is_full_is_signed_at_once_and_the_next_begins() {
        LocalSet::new()
            .run_until(async {
                let (batcher, metrics, signer) = (Rc::default(), Metrics::default(), signer());
                let heads = sign(&batcher, &vec![signer; MAX_BATCH + 1], &metrics).await;
                assert_eq!(tree(&heads[0]).0 as usize, MAX_BATCH);
                assert_eq!(tree(&heads[MAX_BATCH]).0, 1);
            })
            .await;
    }
}
