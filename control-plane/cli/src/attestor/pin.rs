//! Tags are resolved once, when the program starts: who may use the engine can give a tag to another image at any time.

use std::collections::BTreeMap;

use super::rules::{Rules, tagged};
use crate::docker::{Docker, DockerError};

/// Resolves the rules' tags to what the engine has now, and tells each. A tag that is not there stands for no image until the
/// program starts anew.
///
/// # Errors
/// The engine is not there.
pub(crate) async fn pin(rules: Rules, docker: &Docker, tell: fn(String)) -> Result<Rules, DockerError> {
    let mut pins = BTreeMap::new();
    for tag in rules.tags() {
        match docker.image(&tag).await?.filter(|image| tagged(&tag, image)) {
            Some(image) => {
                tell(format!("rules: {tag} is {} until this starts anew", image.id));
                pins.insert(tag, image.id);
            }
            None => tell(format!(
                "rules: the engine has no image {tag}, so that no container may be it; fix: pull it and start this anew"
            )),
        }
    }
    Ok(rules.pinned(pins))
}
