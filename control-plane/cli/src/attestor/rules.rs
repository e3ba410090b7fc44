//! Which containers may be which workloads: a file of the operator's.
//!
//! A container is what its label says, or else what the first rule says whose labels it has. Either way the rule lists the
//! images that may be it: a container with another image is refused, whoever starts it.

use std::collections::BTreeMap;

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
}

/// Which containers may be one workload.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Name of the Workload.
    pub(crate) name: String,
    /// `name:tag`, `name@sha256:…` or `sha256:…`, the image's id.
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
         attestor's rules, by name or by {id}"
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
        if rule.images.iter().any(|listed| is(listed, image)) {
            return Ok(());
        }
        Err(Refusal::Image {
            image: reference.to_owned(),
            workload: workload.to_owned(),
            id: image.id.clone(),
        })
    }
}

fn is(listed: &str, image: &Image) -> bool {
    let among = |names: &Option<Vec<String>>, name: &str| names.iter().flatten().any(|known| known == name);
    if listed.starts_with("sha256:") {
        return image.id == listed;
    }
    // The engine shows names of its default registry without it.
    let name = listed.strip_prefix("docker.io/").unwrap_or(listed);
    let name = name.strip_prefix("library/").unwrap_or(name);
    if name.contains('@') {
        return among(&image.repo_digests, name);
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') {
        among(&image.repo_tags, name)
    } else {
        among(&image.repo_tags, &format!("{name}:latest"))
    }
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
        Rules::parse("rules.yaml", RULES).unwrap()
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
        assert!(may("web", &image("sha256:01", &[], &["shop/web@sha256:dd"])));
        assert!(may("web", &image("sha256:01", &["plain:latest"], &[])));
        assert!(!may("web", &image("sha256:01", &["web:1.3", "plain:1"], &["shop/web@sha256:ee"])));
        assert!(may("api", &image(ID, &[], &[])));
        assert!(!may("api", &image("sha256:0b", &["web:1.2"], &[])));
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
