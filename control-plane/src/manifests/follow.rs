//! Manifests that are somebody else's: the custom resources of a cluster, followed as a whole.
//!
//! What does not compile is left out one by one, as long as it is known what to leave out, and its last good form stays. What
//! is taken is stored in one commit, by the same way as `apply`.

use std::collections::{BTreeMap, BTreeSet};

use signet_identity::TrustDomain;
use signet_policy::{Diagnostic, Kind, Manifest, parse_manifests};

use super::{Manifests, Outcome, Wanted, checked};
use crate::history::History;
use crate::store::{Store, StoreError};

/// How often what is left is compiled anew after something was left out: chains of things that need each other are short.
const ROUNDS_MAX: usize = 32;

/// Kind and name.
pub(crate) type Place = (Kind, String);

/// What came of it.
#[derive(Debug)]
pub(crate) struct Followed {
    /// What was stored; `None` when nothing may be: there is no Mesh, or all of it together is refused.
    pub(crate) outcome: Option<Outcome>,
    /// What is wrong with each that was not taken as it is. Its last good form is in force, if it had one.
    pub(crate) faults: BTreeMap<Place, Vec<Diagnostic>>,
    /// What is wrong with all of it together.
    pub(crate) refused: Vec<Diagnostic>,
    /// Those that are gone and stay in force, because others need them.
    pub(crate) needed: Vec<Place>,
}

impl Manifests {
    /// Makes the manifests what `objects` say, as far as they compile.
    pub(crate) async fn follow(
        &self,
        store: &dyn Store,
        trust_domain: &TrustDomain,
        objects: &BTreeMap<Place, String>,
    ) -> Result<Followed, StoreError> {
        let history = History::load(store).await?;
        let mut plan = Plan::read(self, objects);
        // An empty cluster, or one whose Mesh was deleted by mistake, must not take a mesh's policy away.
        if !plan.new.keys().any(|(kind, _)| *kind == Kind::Mesh) {
            return Ok(plan.done(None, Vec::new()));
        }
        let refused = plan.settle(trust_domain);
        if !refused.is_empty() {
            return Ok(plan.done(None, refused));
        }
        let changed = plan.new.iter().filter(|(place, _)| plan.is_changed(place));
        let mut wanted: Wanted = changed.map(|(place, new)| (place.clone(), Some(new.clone()))).collect();
        wanted.extend(plan.gone.iter().map(|place| (place.clone(), None)));
        let outcome = self.change(store, &history, &wanted, false).await?;
        Ok(plan.done(Some(outcome), Vec::new()))
    }
}

/// What is about to be.
struct Plan<'m> {
    stored: &'m Manifests,
    new: BTreeMap<Place, Manifest>,
    gone: BTreeSet<Place>,
    needed: Vec<Place>,
    faults: BTreeMap<Place, Vec<Diagnostic>>,
}

impl<'m> Plan<'m> {
    fn read(stored: &'m Manifests, objects: &BTreeMap<Place, String>) -> Self {
        let gone = stored.entries.keys().filter(|place| !objects.contains_key(*place)).cloned().collect();
        let mut plan =
            Self { stored, new: BTreeMap::new(), gone, needed: Vec::new(), faults: BTreeMap::new() };
        for (place, text) in objects {
            let known = stored.entries.get(place).map(|known| &known.manifest);
            match known {
                Some(known) if known.text() == text => {
                    plan.new.insert(place.clone(), known.clone());
                }
                _ => match parse_manifests(&file(place), text).as_deref() {
                    Ok([new]) => {
                        plan.new.insert(place.clone(), new.clone());
                    }
                    Ok(_) => plan.fall_back(place, None),
                    Err(faults) => faults.iter().for_each(|fault| plan.fall_back(place, Some(fault))),
                },
            }
        }
        plan
    }

    /// Leaves things out until the rest compiles; what is wrong when it never does.
    fn settle(&mut self, trust_domain: &TrustDomain) -> Vec<Diagnostic> {
        let mut last = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let together: Vec<Manifest> = self.new.values().cloned().collect();
            let Err(faults) = checked(&together, trust_domain) else { return Vec::new() };
            if !self.leave_out(&faults) && !self.keep_what_is_gone(&faults) {
                return faults;
            }
            last = faults;
        }
        last
    }

    /// Takes back what is new or different and at fault; whether anything was.
    fn leave_out(&mut self, faults: &[Diagnostic]) -> bool {
        let named = faults.iter().filter_map(|fault| Some((self.place_of(&fault.file)?, fault)));
        let changed: Vec<(Place, &Diagnostic)> = named.filter(|(place, _)| self.is_changed(place)).collect();
        // All faults of one are told.
        for (place, fault) in &changed {
            self.fall_back(place, Some(fault));
        }
        !changed.is_empty()
    }

    /// What needs something that is gone is not at fault by itself: what is gone stays, and that is told where it is needed.
    fn keep_what_is_gone(&mut self, faults: &[Diagnostic]) -> bool {
        if self.gone.is_empty() {
            return false;
        }
        for fault in faults {
            if let Some(place) = self.place_of(&fault.file) {
                self.faults.entry(place).or_default().push(fault.clone());
            }
        }
        for place in std::mem::take(&mut self.gone) {
            self.restore(&place);
            self.needed.push(place);
        }
        true
    }

    fn fall_back(&mut self, place: &Place, fault: Option<&Diagnostic>) {
        self.faults.entry(place.clone()).or_default().extend(fault.cloned());
        self.restore(place);
    }

    /// The last good form, or none where there was none.
    fn restore(&mut self, place: &Place) {
        match self.stored.entries.get(place) {
            Some(known) => self.new.insert(place.clone(), known.manifest.clone()),
            None => self.new.remove(place),
        };
    }

    fn is_changed(&self, place: &Place) -> bool {
        let known = self.stored.entries.get(place).map(|known| known.manifest.text());
        self.new.get(place).is_some_and(|new| known != Some(new.text()))
    }

    fn place_of(&self, of: &str) -> Option<Place> {
        let (kind, name) = of.split_once('/')?;
        let place = (kind.parse().ok()?, name.to_owned());
        self.new.contains_key(&place).then_some(place)
    }

    fn done(self, outcome: Option<Outcome>, refused: Vec<Diagnostic>) -> Followed {
        Followed { outcome, faults: self.faults, refused, needed: self.needed }
    }
}

/// How a manifest's file is called here; those that are stored are called so too.
fn file((kind, name): &Place) -> String {
    format!("{kind}/{name}")
}

#[cfg(test)]
mod tests;
