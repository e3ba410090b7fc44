//! A publisher and a subscriber joined by a link that the test controls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::proxy_message::Message;
use signet_sync::{Publisher, SectionName, Subscriber, Version};

/// A simulated clock, both ends, and what is under way between them.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) publisher: Publisher,
    pub(crate) subscriber: Subscriber,
    pub(crate) to_proxy: VecDeque<Arc<wire::Section>>,
    pub(crate) to_control: VecDeque<wire::ProxyMessage>,
    /// Sections ever put on the link.
    pub(crate) sent: usize,
    /// What the subscriber applied, in order.
    pub(crate) applied: Vec<(SectionName, Version)>,
    pub(crate) refused: Vec<&'static str>,
}

impl Pair {
    pub(crate) fn new(subscriber: Subscriber) -> Self {
        let publisher = Publisher::new(&hello(&subscriber));
        Self {
            now: start(),
            publisher,
            subscriber,
            to_proxy: VecDeque::new(),
            to_control: VecDeque::new(),
            sent: 0,
            applied: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub(crate) fn publish(&mut self, section: wire::Section) {
        self.publisher.publish(Arc::new(section));
    }

    /// Runs until nothing is under way.
    pub(crate) fn drive(&mut self) {
        while self.step() {}
    }

    /// One turn of both ends; false when there was nothing to do.
    pub(crate) fn step(&mut self) -> bool {
        self.transmit();
        let received = self.receive();
        let answered = self.answer();
        received || answered
    }

    pub(crate) fn transmit(&mut self) {
        while let Some(section) = self.publisher.poll(self.now) {
            self.sent += 1;
            self.to_proxy.push_back(section);
        }
    }

    /// The proxy takes everything that reached it.
    pub(crate) fn receive(&mut self) -> bool {
        let sections: Vec<_> = self.to_proxy.drain(..).collect();
        let any = !sections.is_empty();
        for section in sections {
            self.deliver((*section).clone());
        }
        any
    }

    pub(crate) fn deliver(&mut self, section: wire::Section) {
        let version = Version::from(&section);
        let outcome = self.subscriber.handle(section);
        if let Some(name) = outcome.changed {
            self.applied.push((name, version));
        }
        if let Some(error) = outcome.refused {
            self.refused.push(error.code());
        }
        self.to_control.push_back(outcome.reply);
    }

    /// The control plane takes every answer that reached it.
    pub(crate) fn answer(&mut self) -> bool {
        let replies: Vec<_> = self.to_control.drain(..).collect();
        let any = !replies.is_empty();
        for reply in replies {
            match reply.message {
                Some(Message::Ack(ack)) => self.publisher.on_ack(&ack),
                Some(Message::Nack(nack)) => self.publisher.on_nack(&nack),
                other => panic!("a subscriber only acks or nacks, not {other:?}"),
            }
        }
        any
    }

    /// The connection breaks with everything on it, and the proxy connects again.
    pub(crate) fn reconnect(&mut self) {
        self.to_proxy.clear();
        self.to_control.clear();
        self.publisher = Publisher::new(&hello(&self.subscriber));
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub(crate) fn held(&self, name: &SectionName) -> Option<Version> {
        self.subscriber.versions().find(|(n, _)| *n == name).map(|(_, version)| version)
    }
}

/// Where the simulated clock starts: any moment will do, and there is no other way to make one.
#[expect(clippy::disallowed_methods, reason = "only differences to it matter")]
fn start() -> Instant {
    Instant::now()
}

pub(crate) fn hello(subscriber: &Subscriber) -> wire::Hello {
    wire::Hello { protocol: 1, min_protocol: 1, have: subscriber.have(), ..wire::Hello::default() }
}
