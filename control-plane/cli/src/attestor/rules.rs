//! Which containers may be which workloads: a file of the operator's.
//!
//! A container is what its label says, or else what the first rule says whose labels it has. Either way the rule lists the
//! images that may be it: a container with another image is refused, whoever starts it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::docker::operations::Image;

/// The label by which a container says which Workload it is.
pub(crate) const WORKLOAD_LABEL: &str = "signet.mf2c-project.eu/workload";
/// The label that keeps a container out of the mesh, with the value `false`.
pub(crate) const INJECT_LABEL: &str = "signet.mf2c-project.eu/inject";

/// Rules of one file: as many as a mesh has workloads on one engine.
const RULES_MAX: usize = 1_000;
/// Images and labels of one rule.
const ITEMS_MAX: usize = 100;

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rules {
    workloads: Vec<Rule>,
    /// The images' ids that tags stood for when the program started, by the tag as it is written in the file.
    #[serde(skip)]
    pins: BTreeMap<String, String>,
}

/// Which containers may be one workload.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Name of the Workload.
    pub(crate) name: String,
    /// `name:tag`, `name@sha256:…` or `sha256:…`, the image's id. A tag counts only as it was [pinned](Rules::pinned).
    images: Vec<String>,
    /// Containers that are it without saying so have all of these. None: they have to say so.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// What the rules say of a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Choice {
    /// It says it is to stay out.
    Out,
    /// No rule is about it, and it says nothing.
    Unnamed,
    /// It is to be this workload.
    Workload(String),
}

/// Why a container is not what it is to be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "image-not-listed: {image} may not be the workload {workload}; fix: list it under `images` of that workload in the \
         attestor's rules, by digest or by {id}, or start the attestor anew if a tag has moved on purpose"
    )]
    Image { image: String, workload: String, id: String },
    #[error(
        "workload-not-listed: no rule of the attestor is about the workload {0}; fix: add one, or correct the label"
    )]
    Workload(String),
}

impl Rules {
    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong with it, with the line where there is one.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, String> {
        let rules: Self = serde_saphyr::from_str(text).map_err(|error| format!("{file}: {error}"))?;
        if rules.workloads.len() > RULES_MAX {
            return Err(format!("{file}: more than {RULES_MAX} workloads"));
        }
        let mut names = std::collections::BTreeSet::new();
        for rule in &rules.workloads {
            let name = &rule.name;
            if !names.insert(name) {
                return Err(format!(
                    "{file}: the workload {name} stands there twice; fix: put its images together"
                ));
            }
            if rule.images.is_empty() {
                return Err(format!(
                    "{file}: the workload {name} has no image; fix: list those that may be it"
                ));
            }
            if rule.images.len() > ITEMS_MAX || rule.labels.len() > ITEMS_MAX {
                return Err(format!(
                    "{file}: the workload {name} has more than {ITEMS_MAX} images or labels"
                ));
            }
        }
        Ok(rules)
    }

    /// What a container with these labels is to be.
    pub(crate) fn choose(&self, labels: &BTreeMap<String, String>) -> Choice {
        if labels.get(INJECT_LABEL).is_some_and(|value| value == "false") {
            return Choice::Out;
        }
        if let Some(name) = labels.get(WORKLOAD_LABEL) {
            return Choice::Workload(name.clone());
        }
        let has = |(name, value): (&String, &String)| labels.get(name) == Some(value);
        let rule = self.workloads.iter().find(|rule| !rule.labels.is_empty() && rule.labels.iter().all(has));
        rule.map_or(Choice::Unnamed, |rule| Choice::Workload(rule.name.clone()))
    }

    /// Whether an image may be a workload. What counts is what the engine has, not what the container calls it.
    ///
    /// # Errors
    /// [`Refusal`], when not.
    pub(crate) fn attest(&self, workload: &str, reference: &str, image: &Image) -> Result<(), Refusal> {
        let rule = self.workloads.iter().find(|rule| rule.name == workload);
        let rule = rule.ok_or_else(|| Refusal::Workload(workload.to_owned()))?;
        if rule.images.iter().any(|listed| self.is(listed, image)) {
            return Ok(());
        }
        Err(Refusal::Image {
            image: reference.to_owned(),
            workload: workload.to_owned(),
            id: image.id.clone(),
        })
    }

    /// The tags that rules list, each once.
    pub(super) fn tags(&self) -> BTreeSet<String> {
        let listed = self.workloads.iter().flat_map(|rule| &rule.images);
        listed.filter(|listed| is_tag(listed)).cloned().collect()
    }

    /// The same rules, in which tags stand for these images' ids, whatever becomes of the tags.
    pub(super) fn pinned(mut self, pins: BTreeMap<String, String>) -> Self {
        self.pins = pins;
        self
    }

    fn is(&self, listed: &str, image: &Image) -> bool {
        if is_tag(listed) {
            return self.pins.get(listed) == Some(&image.id);
        }
        image.id == listed || among(image.repo_digests.as_ref(), short(listed))
    }
}

/// What the engine calls an image of its default registry: without the registry's name.
fn short(listed: &str) -> &str {
    let name = listed.strip_prefix("docker.io/").unwrap_or(listed);
    name.strip_prefix("library/").unwrap_or(name)
}

fn is_tag(listed: &str) -> bool {
    !listed.starts_with("sha256:") && !listed.contains('@')
}

fn among(names: Option<&Vec<String>>, name: &str) -> bool {
    names.into_iter().flatten().any(|known| known == name)
}

/// Whether an image has a tag now. An engine finds images by the first digits of their id as well, which are no tag.
pub(super) fn tagged(tag: &str, image: &Image) -> bool {
    let name = short(tag);
    let last = name.rsplit('/').next().unwrap_or(name);
    let whole = if last.contains(':') { name.to_owned() } else { format!("{name}:latest") };
    among(image.repo_tags.as_ref(), &whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:0a";
    const RULES: &str = "
workloads:
  - name: web
    images: [web:1.2, 'shop/web@sha256:dd', docker.io/library/plain]
    labels: {com.docker.compose.project: shop, com.docker.compose.service: web}
  - name: api
    images: ['sha256:0a']
";

    fn rules() -> Rules {
        let pins = [("web:1.2", "sha256:01"), ("docker.io/library/plain", "sha256:02")];
        let pins = pins.map(|(tag, id)| (tag.to_owned(), id.to_owned()));
        Rules::parse("rules.yaml", RULES).unwrap().pinned(BTreeMap::from(pins))
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> Image {
        let owned = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
        Image { id: id.to_owned(), repo_tags: owned(tags), repo_digests: owned(digests), config: None }
    }

    #[test]
    fn a_container_is_what_its_label_says_or_the_rule_with_its_labels() {
        let service = ("com.docker.compose.service", "web");
        let project = ("com.docker.compose.project", "shop");
        let web = Choice::Workload("web".to_owned());
        assert_eq!(rules().choose(&labels(&[service, project, ("other", "x")])), web);
        assert_eq!(rules().choose(&labels(&[service])), Choice::Unnamed);
        assert_eq!(rules().choose(&labels(&[(WORKLOAD_LABEL, "api")])), Choice::Workload("api".to_owned()));
        assert_eq!(rules().choose(&labels(&[service, project, (INJECT_LABEL, "false")])), Choice::Out);
        assert_eq!(rules().choose(&labels(&[])), Choice::Unnamed);
    }

    #[test]
    fn an_image_counts_by_what_the_engine_has_and_not_by_what_it_is_called() {
        let may = |workload: &str, image: &Image| rules().attest(workload, "web:1.2", image).is_ok();
        assert!(may("web", &image("sha256:01", &["web:1.2"], &[])));
        assert!(may("web", &image("sha256:05", &[], &["shop/web@sha256:dd"])));
        assert!(may("web", &image("sha256:02", &[], &[])));
        assert!(!may("web", &image("sha256:07", &["web:1.3", "plain:1"], &["shop/web@sha256:ee"])));
        assert!(may("api", &image(ID, &[], &[])));
        assert!(!may("api", &image("sha256:0b", &["web:1.2"], &[])));
    }

    #[test]
    fn a_tag_that_was_given_to_another_image_since_the_start_does_not_count() {
        let evil = image("sha256:0e", &["web:1.2", "plain:latest"], &[]);
        assert!(rules().attest("web", "web:1.2", &evil).is_err());
        let unpinned = Rules::parse("rules.yaml", RULES).unwrap();
        assert_eq!(
            unpinned.tags(),
            BTreeSet::from(["docker.io/library/plain", "web:1.2"].map(str::to_owned))
        );
        assert!(unpinned.attest("web", "web:1.2", &evil).is_err());
    }

    #[test]
    fn a_tag_is_compared_whole_and_never_with_an_id() {
        let found = image("sha256:cafe", &["plain:latest", "host:5000/a:1"], &[]);
        for (tag, is) in [("plain", true), ("docker.io/library/plain:latest", true), ("host:5000/a:1", true)]
        {
            assert_eq!(tagged(tag, &found), is, "{tag}");
        }
        assert!(!tagged("cafe", &found) && !tagged("plain:1", &found) && !tagged("host:5000/a", &found));
    }

    #[test]
    fn a_refusal_names_image_workload_and_fix() {
        let other = image("sha256:0b", &["evil:1"], &[]);
        let refusal = rules().attest("web", "evil:1", &other).unwrap_err().to_string();
        assert!(
            refusal.starts_with("image-not-listed: evil:1 may not be the workload web; fix: "),
            "{refusal}"
        );
        let refusal = rules().attest("db", "evil:1", &other).unwrap_err().to_string();
        assert!(refusal.starts_with("workload-not-listed: "), "{refusal}");
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_reason() {
        for (text, reason) in [
            ("workloads: [{name: a, images: [b], image: c}]", "image"),
            ("workloads: [{name: a, images: []}]", "no image"),
            ("workloads: [{name: a, images: [b]}, {name: a, images: [c]}]", "twice"),
            ("workload: []", "workload"),
            ("", "rules.yaml"),
        ] {
            let refusal = Rules::parse("rules.yaml", text).unwrap_err();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }
}
