//! Messages that were taken, so that none is taken twice.

use std::collections::HashMap;

use thiserror::Error;

use super::MessageId;

/// Most messages that are remembered at once: about 4 MiB.
pub const MAX_SEEN: usize = 65_536;
/// Most of one sender, so that it takes several to fill the room of all: at the default life, 13 a second.
pub const MAX_SEEN_PER_SENDER: usize = 8_192;

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SeenError {
    /// There is no room to remember another one until some have expired.
    #[error("too many messages that have not expired were taken")]
    Full,
    /// It was taken before.
    #[error("the message was taken before")]
    Replay,
}

impl SeenError {
    /// A stable name.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Full => "message-window-full",
            Self::Replay => "message-replay",
        }
    }
}

/// The ids of messages that were taken and have not expired. Nothing is forgotten before it expires, and what has
/// expired is refused for that: so nothing is taken twice, and over the bound nothing is taken at all.
#[derive(Debug, Default)]
pub struct SeenMessages {
    /// For each sender its ids, and from when on each of them need not be known any more.
    senders: HashMap<String, HashMap<MessageId, u64>>,
    count: usize,
}

impl SeenMessages {
    /// Takes a verified message of `sender` at `now`. `until` is when every verifier refuses it as expired: its `expires`
    /// and the skew.
    ///
    /// # Errors
    /// [`SeenError::Replay`], [`SeenError::Full`].
    pub fn take(&mut self, sender: &str, id: MessageId, until: u64, now: u64) -> Result<(), SeenError> {
        let of_sender = self.senders.get(sender).map_or(0, HashMap::len);
        if of_sender >= MAX_SEEN_PER_SENDER || self.count >= MAX_SEEN {
            self.forget(now);
        }
        let of_sender = self.senders.get(sender);
        if of_sender.is_some_and(|ids| ids.contains_key(&id)) {
            return Err(SeenError::Replay);
        }
        if of_sender.is_some_and(|ids| ids.len() >= MAX_SEEN_PER_SENDER) || self.count >= MAX_SEEN {
            return Err(SeenError::Full);
        }
        match self.senders.get_mut(sender) {
            Some(ids) => ids.insert(id, until),
            None => self.senders.entry(sender.to_owned()).or_default().insert(id, until),
        };
        self.count += 1;
        Ok(())
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn forget(&mut self, now: u64) {
        for ids in self.senders.values_mut() {
            ids.retain(|_, until| now < *until);
        }
        self.senders.retain(|_, ids| !ids.is_empty());
        self.count = self.senders.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> MessageId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        MessageId(id)
    }

    #[test]
    fn a_message_is_taken_once_of_each_sender() {
        let mut seen = SeenMessages::default();
        assert_eq!(seen.take("a", id(1), 100, 0), Ok(()));
        assert_eq!(seen.take("a", id(1), 100, 99), Err(SeenError::Replay));
        assert_eq!(seen.take("b", id(1), 100, 0), Ok(()));
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_sender_that_fills_its_room_is_refused_until_messages_expire() {
        let mut seen = SeenMessages::default();
        for number in 0..MAX_SEEN_PER_SENDER {
            seen.take("a", id(number), 100, 0).unwrap();
        }
        assert_eq!(seen.take("a", id(MAX_SEEN_PER_SENDER), 100, 99), Err(SeenError::Full));
        assert_eq!(seen.take("a", id(0), 100, 99), Err(SeenError::Replay), "nothing was forgotten");
        assert_eq!(seen.take("b", id(0), 100, 99), Ok(()), "others have their own room");
        assert_eq!(seen.take("a", id(MAX_SEEN_PER_SENDER), 200, 100), Ok(()));
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn the_room_of_all_has_a_bound() {
        let mut seen = SeenMessages::default();
        for number in 0..MAX_SEEN {
            seen.take(&format!("{}", number % 9), id(number), 100, 0).unwrap();
        }
        assert_eq!(seen.take("new", id(0), 100, 0), Err(SeenError::Full));
        assert_eq!(seen.take("new", id(0), 200, 100), Ok(()));
        assert_eq!(seen.len(), 1);
    }
}
