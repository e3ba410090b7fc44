//! What is done within a container: not in holders and sidecars, which have keys and hold networks.

use signet_inject::compose::ROLE_LABEL;

use super::ApiProxy;
use super::head::Answer;
use super::joining::reserved;
use super::mounts::beside;
use super::relay::Request;

impl ApiProxy {
    /// The request as it may pass: it names the container by its id, so that the one that was looked at is meant.
    ///
    /// # Errors
    /// The refusal.
    pub(super) async fn within(
        &self,
        mut request: Request,
        before: &str,
        container: &str,
        after: &str,
    ) -> Result<Request, Answer> {
        let found = self.container(container).await;
        let found = found.map_err(|error| Answer::refusal(502, &format!("signet: {error}")))?;
        // In the engine's words, which is not asked: there may be one by that name by now.
        let found = found.ok_or_else(|| Answer::refusal(404, &format!("No such container: {container}")))?;
        if beside(found.label(ROLE_LABEL)) {
            return Err(Answer::refusal(403, &format!("signet: {}", reserved(&found.name))));
        }
        request.head.target = format!("{before}{}{after}", found.id);
        Ok(request)
    }
}

/// The refusal of what is not read.
pub(super) fn unread(what: &str) -> Answer {
    let reason = format!(
        "signet: unread-api: {what} would start containers that nobody has named (--unnamed refuse); fix: use the containers \
         of the Docker API"
    );
    Answer::refusal(403, &reason)
}
