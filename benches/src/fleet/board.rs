//! What all proxies of the fleet have in common: which sections were found good, and how far everybody is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use signet_identity::TrustDomain;
use signet_sync::proto::sync as wire;
use signet_sync::{SectionError, SectionName, Subscriber, Version};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Kinds of failed attempts that are told apart: codes of our own and of the server, never texts of it.
const KINDS_MAX: usize = 64;

/// A section that a real subscriber took, and its digest as `Hello` tells it.
#[derive(Debug)]
pub struct Good {
    /// As received.
    pub section: wire::Section,
    /// SHA-256 of its payload.
    pub sha256: Vec<u8>,
}

/// See the module page.
#[derive(Debug)]
pub struct Board {
    /// Streams that are open and whose claims were accepted.
    pub settled: AtomicUsize,
    /// Counter of the policy that is waited for.
    awaited: AtomicU64,
    pushed: Mutex<Push>,
    attempts: Mutex<BTreeMap<String, u64>>,
    sections: Mutex<Sections>,
    /// The first thing that must not be.
    fault: Mutex<Option<String>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Push {
    begun: Option<Instant>,
    taken: Vec<Duration>,
}

/// Verified once for all who get the same bytes. Compiling a policy is the work of each proxy's own machine; ten thousand times
/// on this one it would be all that is measured.
#[derive(Debug)]
struct Sections {
    good: BTreeMap<(String, Version), Arc<Good>>,
    /// The last anchors, and who reads what everybody gets.
    common: Subscriber,
    anchors: Option<wire::Section>,
    /// Who reads the directory of one network.
    readers: BTreeMap<String, Subscriber>,
}

impl Board {
    /// For proxies that believe this policy key.
    pub fn new(trust_domain: TrustDomain, policy_key: [u8; 32]) -> Self {
        Self {
            settled: AtomicUsize::new(0),
            awaited: AtomicU64::new(u64::MAX),
            pushed: Mutex::default(),
            attempts: Mutex::default(),
            sections: Mutex::new(Sections {
                good: BTreeMap::new(),
                common: Subscriber::new(trust_domain, policy_key),
                anchors: None,
                readers: BTreeMap::new(),
            }),
            fault: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The section as all have it, if it is good.
    ///
    /// # Errors
    /// In words why not.
    pub fn check(&self, section: wire::Section) -> Result<Arc<Good>, String> {
        let key = (section.name.clone(), Version::from(&section));
        let mut sections = lock(&self.sections);
        if let Some(good) = sections.good.get(&key) {
            // Signatures are deterministic, so the same version is the same bytes.
            return if good.section == section {
                Ok(good.clone())
            } else {
                Err(format!("two different {} have version {}", key.0, key.1))
            };
        }
        sections.take(section.clone())?;
        let sha256 = digest(&SHA256, &section.payload).as_ref().to_vec();
        let good = Arc::new(Good { section, sha256 });
        // Whoever still holds an older one keeps it alive; nobody is sent one again.
        sections.good.retain(|(name, version), good| {
            *name != key.0 || *version > key.1 || Arc::strong_count(good) > 1
        });
        if sections.good.keys().all(|(name, version)| *name != key.0 || *version < key.1) {
            sections.good.insert(key, good.clone());
        }
        Ok(good)
    }

    /// Notes what must not be; the run ends with it.
    pub fn fault(&self, text: String) {
        lock(&self.fault).get_or_insert(text);
        self.changed.notify_waiters();
    }

    /// What must not be and was.
    pub fn faults(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// Counts a failed attempt at a stream.
    pub fn failed(&self, kind: &str) {
        let mut attempts = lock(&self.attempts);
        if attempts.len() < KINDS_MAX || attempts.contains_key(kind) {
            *attempts.entry(kind.to_owned()).or_default() += 1;
        }
    }

    /// The failed attempts since the last call, by kind.
    pub fn take_attempts(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *lock(&self.attempts))
    }

    /// From now on the time is taken until each proxy has a policy of this counter.
    pub fn expect_policy(&self, counter: u64) {
        *lock(&self.pushed) = Push { begun: Some(Instant::now()), taken: Vec::new() };
        self.awaited.store(counter, Ordering::Release);
    }

    /// A proxy has answered a policy; `before` is the counter it held.
    pub fn answered(&self, before: u64, counter: u64) {
        let awaited = self.awaited.load(Ordering::Acquire);
        if before < awaited && awaited <= counter {
            let mut pushed = lock(&self.pushed);
            if let Some(begun) = pushed.begun {
                pushed.taken.push(begun.elapsed());
            }
        }
    }

    /// How long each took that has the awaited policy.
    pub fn taken(&self) -> Vec<Duration> {
        lock(&self.pushed).taken.clone()
    }

    /// How many those are.
    pub fn taken_count(&self) -> usize {
        lock(&self.pushed).taken.len()
    }

    /// Counter of the newest policy seen.
    pub fn policy(&self) -> u64 {
        let sections = lock(&self.sections);
        let policy = sections.common.versions().find(|(name, _)| **name == SectionName::Policy);
        policy.map_or(0, |(_, version)| version.counter)
    }

    /// Bytes of the newest policy.
    pub fn policy_bytes(&self) -> usize {
        let sections = lock(&self.sections);
        let policy = sections.common.sections().find(|(name, _)| **name == SectionName::Policy);
        policy.map_or(0, |(_, section)| section.payload.len())
    }
}

impl Sections {
    /// Has a real subscriber take it.
    fn take(&mut self, section: wire::Section) -> Result<(), String> {
        let refused = |error: SectionError| format!("a section was refused: {error}");
        let Some(SectionName::Directory(network)) = SectionName::parse(&section.name) else {
            if SectionName::parse(&section.name) == Some(SectionName::Anchors) {
                for reader in self.readers.values_mut() {
                    reader.apply(section.clone()).map_err(refused)?;
                }
                self.anchors = Some(section.clone());
            }
            return match self.common.apply(section.clone()) {
                Err(SectionError::Rollback { .. }) => self.take_late(section),
                taken => taken.map(drop).map_err(refused),
            };
        };
        if !self.readers.contains_key(&network) {
            let (trust_domain, key) = (self.common.trust_domain().clone(), *self.common.policy_key());
            let mut reader = Subscriber::new(trust_domain, key);
            if let Some(anchors) = &self.anchors {
                reader.apply(anchors.clone()).map_err(refused)?;
            }
            self.readers.insert(network.clone(), reader);
        }
        let reader = self.readers.get_mut(&network).ok_or("no reader")?;
        match reader.apply(section.clone()) {
            Err(SectionError::Rollback { .. }) => self.take_late(section),
            taken => taken.map(drop).map_err(refused),
        }
    }

    /// A version that was still on its way to one proxy when others had a later one: good for a reader that has none yet.
    fn take_late(&self, section: wire::Section) -> Result<(), String> {
        let refused = |error: SectionError| format!("a section was refused: {error}");
        let mut reader = Subscriber::new(self.common.trust_domain().clone(), *self.common.policy_key());
        if let Some(anchors) = self.anchors.as_ref().filter(|anchors| anchors.name != section.name) {
            reader.apply(anchors.clone()).map_err(refused)?;
        }
        reader.apply(section).map(drop).map_err(refused)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
