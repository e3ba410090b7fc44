//! The open control streams: who is connected, what it last said, and how to ask it something.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use signet_identity::SpiffeId;
use signet_sync::proto::sync as wire;
use signet_sync::{Edge, SectionState, Tally};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::claims::StreamId;
use crate::rotation::survey::PARK_AFTER;
use crate::told::{Dropped, Record};

/// Streams of one instance: an old one and its replacement, with room for one or two that died unseen.
const STREAMS_PER_INSTANCE: usize = 4;

/// Questions waiting for one proxy; an operator asks one at a time.
const QUESTIONS_MAX: usize = 16;

/// How long an answer to a question is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// All open streams.
pub(crate) struct Streams {
    open: Mutex<Open>,
    /// When the last stream of an instance ended, for as long as somebody may ask: see [`Streams::last_seen`].
    ended: Mutex<BTreeMap<(SpiffeId, String), Instant>>,
    /// The newest stream of each area that is connected.
    areas: Mutex<BTreeMap<String, (u64, CancellationToken)>>,
    /// Before that nobody was seen by this process.
    began: Instant,
    next_stream: AtomicU64,
    next_question: AtomicU64,
}

/// The streams by number, and the numbers of each instance: who opens one does not look through everybody's.
#[derive(Default)]
struct Open {
    by_number: BTreeMap<u64, Arc<Stream>>,
    of_instance: HashMap<(SpiffeId, String), BTreeSet<u64>>,
}

impl Open {
    /// Adds a stream; the ones of its instance that are too many then, oldest first.
    fn add(&mut self, number: u64, stream: Arc<Stream>) -> Vec<Arc<Stream>> {
        let same = self.of_instance.entry((stream.spiffe_id.clone(), stream.instance.clone())).or_default();
        let surplus = (same.len() + 1).saturating_sub(STREAMS_PER_INSTANCE);
        let surplus = same.iter().take(surplus).filter_map(|number| self.by_number.get(number).cloned());
        let surplus = surplus.collect();
        same.insert(number);
        self.by_number.insert(number, stream);
        surplus
    }

    fn remove(&mut self, number: u64) {
        let Some(stream) = self.by_number.remove(&number) else { return };
        let instance = (stream.spiffe_id.clone(), stream.instance.clone());
        if let Entry::Occupied(mut same) = self.of_instance.entry(instance) {
            same.get_mut().remove(&number);
            if same.get().is_empty() {
                same.remove();
            }
        }
    }
}

/// One open stream.
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) spiffe_id: SpiffeId,
    /// The instance's name, from its registration.
    pub(crate) instance: String,
    /// Fingerprint of the certificate the stream was opened with.
    pub(crate) leaf: String,
    pub(crate) network: String,
    pub(crate) version: String,
    /// Highest protocol number the proxy speaks.
    pub(crate) protocol: u32,
    /// Ends the stream when a newer one of the same instance takes its place.
    pub(crate) superseded: CancellationToken,
    /// Another identity took a place it held.
    pub(crate) displaced: Notify,
    questions: mpsc::Sender<Question>,
    report: Mutex<Report>,
}

/// What a proxy last said about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) status: Option<wire::Status>,
    /// Those of that status, which is kept without them: bounded and valid.
    pub(crate) edges: Arc<[(Edge, Tally)]>,
    /// Our clock minus the proxy's at that time, milliseconds.
    pub(crate) clock_offset_ms: i64,
    /// When it said so.
    received: Option<Instant>,
    pub(crate) sections: Vec<SectionState>,
}

/// A question for one proxy, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) id: u64,
    pub(crate) request_id: String,
    pub(crate) answer: mpsc::Sender<Answer>,
}

/// What one proxy says about a request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Whose certificate its stream was opened with; nothing in the answer says that.
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) instance: String,
    /// None when it knows nothing.
    pub(crate) records: Vec<Record>,
    /// What else it said and why that does not count.
    pub(crate) dropped: Vec<Dropped>,
}

/// Who opened a stream.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) instance: String,
    pub(crate) leaf: String,
    pub(crate) network: String,
    pub(crate) version: String,
    pub(crate) protocol: u32,
}

/// Takes the stream off the list when it ends, however it ends.
pub(crate) struct Membership {
    streams: Arc<Streams>,
    pub(crate) stream: Arc<Stream>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            open: Mutex::default(),
            ended: Mutex::default(),
            areas: Mutex::default(),
            began: Instant::now(),
            next_stream: AtomicU64::default(),
            next_question: AtomicU64::default(),
        }
    }

    /// When an instance that has no stream was last there: at the end of its last one, or, for one that was not seen since,
    /// at the start of this process. What is longer ago than [`PARK_AFTER`] may be forgotten: it is long enough.
    pub(crate) fn last_seen(&self, id: &SpiffeId, instance: &str) -> Instant {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.get(&(id.clone(), instance.to_owned())).copied().unwrap_or(self.began)
    }

    /// Remembers the end of a stream. Those of long ago are forgotten each time their number has doubled: at most twice as many
    /// are kept as end in [`PARK_AFTER`].
    fn note_end(&self, stream: &Stream, now: Instant) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len().is_power_of_two() {
            ended.retain(|_, at| now.saturating_duration_since(*at) < PARK_AFTER);
        }
        ended.insert((stream.spiffe_id.clone(), stream.instance.clone()), now);
    }

    /// Lists a new stream; of one instance's, the oldest beyond [`STREAMS_PER_INSTANCE`] is ended.
    pub(crate) fn open(self: &Arc<Self>, opened: Opened) -> (Membership, mpsc::Receiver<Question>) {
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let (questions, receiver) = mpsc::channel(QUESTIONS_MAX);
        let stream = Arc::new(Stream {
            id: StreamId(number),
            spiffe_id: opened.spiffe_id,
            instance: opened.instance,
            leaf: opened.leaf,
            network: opened.network,
            version: opened.version,
            protocol: opened.protocol,
            superseded: CancellationToken::new(),
            displaced: Notify::new(),
            questions,
            report: Mutex::default(),
        });
        for old in self.lock().add(number, stream.clone()) {
            old.superseded.cancel();
        }
        (Membership { streams: self.clone(), stream }, receiver)
    }

    /// Lists the stream of an area; an older one of it is ended.
    pub(crate) fn area(self: &Arc<Self>, name: &str) -> AreaStream {
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let superseded = CancellationToken::new();
        let mut areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, older)) = areas.insert(name.to_owned(), (number, superseded.clone())) {
            older.cancel();
        }
        AreaStream { streams: self.clone(), name: name.to_owned(), number, superseded }
    }

    /// Whether an area's stream is open.
    pub(crate) fn has_area(&self, name: &str) -> bool {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.lock().by_number.len()
    }

    /// Every open stream, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Stream>> {
        self.lock().by_number.values().cloned().collect()
    }

    /// The streams of the instances that are connected: of several of one, the newest.
    pub(crate) fn of_instances(&self) -> BTreeMap<(SpiffeId, String), Arc<Stream>> {
        // Oldest first, so the newest stays.
        self.all()
            .into_iter()
            .map(|stream| ((stream.spiffe_id.clone(), stream.instance.clone()), stream))
            .collect()
    }

    /// How far our clock is ahead of each connected proxy's, in milliseconds, as reported after a moment; nothing for one that
    /// did not report since.
    pub(crate) fn clock_offsets(&self, after: Instant) -> Vec<Option<i64>> {
        let reports = self.of_instances().into_values().map(|stream| stream.report());
        let is_recent = |received: Option<Instant>| received.is_some_and(|received| received > after);
        reports.map(|report| is_recent(report.received).then_some(report.clock_offset_ms)).collect()
    }

    /// Tells streams that they lost a place to another identity: they have their claims judged again.
    pub(crate) fn displaced(&self, ids: &BTreeSet<StreamId>) {
        if ids.is_empty() {
            return;
        }
        let open = self.lock();
        for stream in ids.iter().filter_map(|id| open.by_number.get(&id.0)) {
            stream.displaced.notify_one();
        }
    }

    /// Asks every proxy about a request, and gathers what comes back in time.
    pub(crate) async fn ask(&self, request_id: &str) -> Vec<Answer> {
        let streams = self.all();
        let (answer, mut answers) = mpsc::channel(streams.len().max(1));
        for stream in streams {
            let question = Question {
                id: self.next_question.fetch_add(1, Ordering::Relaxed),
                request_id: request_id.to_owned(),
                answer: answer.clone(),
            };
            // A proxy that has too many questions open already is one that does not answer.
            let _ = stream.questions.try_send(question);
        }
        drop(answer);
        let mut gathered = Vec::new();
        let gather = async {
            // Ends when every stream has answered or dropped its question.
            while let Some(answer) = answers.recv().await {
                gathered.push(answer);
            }
        };
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, gather).await;
        gathered.retain(|answer| !answer.records.is_empty() || !answer.dropped.is_empty());
        gathered.sort_by(|a, b| (&a.spiffe_id, &a.instance).cmp(&(&b.spiffe_id, &b.instance)));
        gathered
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// What the proxy last said.
    pub(crate) fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Records what the proxy says about itself.
    pub(crate) fn set_status(&self, status: wire::Status, edges: Arc<[(Edge, Tally)]>, clock_offset_ms: i64) {
        let mut report = self.lock();
        report.status = Some(status);
        report.edges = edges;
        report.clock_offset_ms = clock_offset_ms;
        report.received = Some(Instant::now());
    }

    /// Records where the proxy stands on each section.
    pub(crate) fn set_sections(&self, sections: Vec<SectionState>) {
        self.lock().sections = sections;
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes an area's stream off the list when it ends, however it ends.
pub(crate) struct AreaStream {
    streams: Arc<Streams>,
    name: String,
    number: u64,
    /// Ends the stream when a newer one of the same area takes its place.
    pub(crate) superseded: CancellationToken,
}

impl Drop for AreaStream {
    fn drop(&mut self) {
        let mut areas = self.streams.areas.lock().unwrap_or_else(PoisonError::into_inner);
        if areas.get(&self.name).is_some_and(|(number, _)| *number == self.number) {
            areas.remove(&self.name);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.streams.note_end(&self.stream, Instant::now());
        self.streams.lock().remove(self.stream.id.0);
    }
}
