//! The tap without its socket: frames in, a report out.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use memchr::memmem;

use super::{ClientHello, Flow, Opening, Sighting, TapReport};

/// A lab has some hundred connections; beyond this, new ones are counted but not followed.
const MAX_FLOWS: usize = 16_384;
/// A post-quantum ClientHello with some extensions is below 3 KiB.
const OPENING_BYTES: usize = 4096;

/// What has passed.
pub(super) struct Seen {
    canaries: Vec<Vec<u8>>,
    frames: u64,
    bytes: u64,
    lost: u64,
    order: Vec<(SocketAddr, SocketAddr)>,
    flows: HashMap<(SocketAddr, SocketAddr), Stream>,
    sighted: HashSet<(usize, Option<(SocketAddr, SocketAddr)>)>,
    sightings: Vec<Sighting>,
}

#[derive(Default)]
struct Stream {
    segments: u64,
    bytes: u64,
    next: Option<u32>,
    opening: Vec<u8>,
    opening_complete: bool,
    /// The end of what came before, one byte shorter than the longest canary.
    tail: Vec<u8>,
}

struct Segment<'a> {
    flow: (SocketAddr, SocketAddr),
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

impl Seen {
    pub(super) fn new(canaries: Vec<Vec<u8>>) -> Self {
        Self {
            canaries,
            frames: 0,
            bytes: 0,
            lost: 0,
            order: Vec::new(),
            flows: HashMap::new(),
            sighted: HashSet::new(),
            sightings: Vec::new(),
        }
    }

    pub(super) fn frame(&mut self, frame: &[u8], lost: Option<u32>) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.lost = lost.map_or(self.lost, u64::from);
        let segment = tcp_segment(frame);
        let flow = segment.as_ref().map(|segment| segment.flow);
        self.search(frame, flow);
        let Some(segment) = segment else { return };
        if !self.flows.contains_key(&segment.flow) {
            if self.flows.len() >= MAX_FLOWS {
                return;
            }
            self.order.push(segment.flow);
        }
        let longest = self.canaries.iter().map(Vec::len).max().unwrap_or(0);
        let joint = self.flows.entry(segment.flow).or_default().segment(&segment, longest);
        self.search(&joint, flow);
    }

    fn search(&mut self, bytes: &[u8], flow: Option<(SocketAddr, SocketAddr)>) {
        for (number, canary) in self.canaries.iter().enumerate() {
            if memmem::find(bytes, canary).is_some() && self.sighted.insert((number, flow)) {
                self.sightings.push(Sighting { canary: canary.clone(), frame: self.frames, flow });
            }
        }
    }

    pub(super) fn report(&self) -> TapReport {
        let flow = |key: &(SocketAddr, SocketAddr)| {
            let stream = self.flows.get(key)?;
            let opening = opening(&stream.opening);
            let (source, destination) = *key;
            Some(Flow { source, destination, segments: stream.segments, bytes: stream.bytes, opening })
        };
        let flows = self.order.iter().filter_map(flow).collect();
        let Self { frames, bytes, lost, .. } = *self;
        TapReport { frames, bytes, lost, flows, sightings: self.sightings.clone() }
    }
}

impl Stream {
    /// Takes a segment in and returns the bytes around its border with what came before.
    fn segment(&mut self, segment: &Segment<'_>, longest: usize) -> Vec<u8> {
        self.segments += 1;
        self.bytes += segment.payload.len() as u64;
        let start = segment.sequence.wrapping_add(u32::from(segment.syn));
        if segment.syn {
            *self = Self { segments: self.segments, bytes: self.bytes, next: Some(start), ..Self::default() };
        }
        let end = start.wrapping_add(u32::try_from(segment.payload.len()).unwrap_or(0));
        // How many bytes of the segment were seen before; negative when some are missing in between.
        let repeated = self.next.unwrap_or(start).wrapping_sub(start).cast_signed();
        let Ok(repeated) = usize::try_from(repeated) else {
            *self =
                Self { opening_complete: true, tail: Vec::new(), next: Some(end), ..std::mem::take(self) };
            return Vec::new();
        };
        // The beginning of a connection that is older than the tap was missed.
        self.opening_complete |= self.next.is_none();
        let Some(fresh) = segment.payload.get(repeated..).filter(|fresh| !fresh.is_empty()) else {
            return Vec::new();
        };
        self.next = Some(end);
        if !self.opening_complete {
            let room = OPENING_BYTES - self.opening.len();
            self.opening.extend(fresh.iter().take(room));
            self.opening_complete = self.opening.len() == OPENING_BYTES;
        }
        let kept = longest.saturating_sub(1);
        let mut joint = std::mem::take(&mut self.tail);
        joint.extend(fresh.iter().take(kept));
        self.tail =
            if fresh.len() >= kept { fresh } else { &joint }.iter().rev().take(kept).rev().copied().collect();
        joint
    }
}

fn tcp_segment(frame: &[u8]) -> Option<Segment<'_>> {
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    let (source, destination, segment) = match number(frame, 12)? {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            // Offloaded segments of 64 KiB and more have no length of their own.
            let length = usize::from(number(packet, 2)?);
            let end = if length == 0 { packet.len() } else { length };
            let address = |at: usize| {
                packet.get(at..at + 4)?.try_into().ok().map(|octets: [u8; 4]| IpAddr::from(octets))
            };
            (*packet.get(9)? == TCP).then_some((address(12)?, address(16)?, packet.get(header..end)?))?
        }
        0x86dd => {
            let length = usize::from(number(packet, 4)?);
            let end = if length == 0 { packet.len() } else { 40 + length };
            let address = |at: usize| {
                packet.get(at..at + 16)?.try_into().ok().map(|octets: [u8; 16]| IpAddr::from(octets))
            };
            (*packet.get(6)? == TCP).then_some((address(8)?, address(24)?, packet.get(40..end)?))?
        }
        _ => return None,
    };
    let flow =
        (SocketAddr::new(source, number(segment, 0)?), SocketAddr::new(destination, number(segment, 2)?));
    let sequence = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Segment { flow, sequence, syn: segment.get(13)? & 2 != 0, payload: segment.get(header..)? })
}

fn opening(bytes: &[u8]) -> Opening {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    match bytes {
        [] => Opening::Nothing,
        [HANDSHAKE, 3, _, _, _, CLIENT_HELLO, ..] => {
            Opening::ClientHello(client_hello(bytes).unwrap_or_default())
        }
        [HANDSHAKE, 3, ..] => Opening::TlsServer,
        _ => Opening::Other(bytes.iter().take(16).copied().collect()),
    }
}

/// `None`: cut short or not well formed.
fn client_hello(bytes: &[u8]) -> Option<ClientHello> {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    const KEY_SHARE: u16 = 51;
    // Record and handshake headers, version, random; then session id, cipher suites, compression.
    let rest = bytes.get(5 + 4 + 2 + 32..)?;
    let (_, rest) = prefixed(rest, 1)?;
    let (_, rest) = prefixed(rest, 2)?;
    let (_, rest) = prefixed(rest, 1)?;
    let (mut extensions, _) = prefixed(rest, 2)?;
    let mut hello = ClientHello::default();
    while !extensions.is_empty() {
        let (body, rest) = prefixed(extensions.get(2..)?, 2)?;
        match number(extensions, 0)? {
            SERVER_NAME => {
                let (name, _) = prefixed(prefixed(body, 2)?.0.get(1..)?, 2)?;
                hello.server_name = Some(String::from_utf8_lossy(name).into_owned());
            }
            ALPN => {
                let (mut names, _) = prefixed(body, 2)?;
                while !names.is_empty() {
                    let (name, rest) = prefixed(names, 1)?;
                    hello.alpn.push(String::from_utf8_lossy(name).into_owned());
                    names = rest;
                }
            }
            KEY_SHARE => {
                let (mut shares, _) = prefixed(body, 2)?;
                while !shares.is_empty() {
                    hello.key_shares.push(number(shares, 0)?);
                    shares = prefixed(shares.get(2..)?, 2)?.1;
                }
            }
            _ => {}
        }
        extensions = rest;
    }
    Some(hello)
}

/// A vector behind its length of one or two bytes, and what follows it.
fn prefixed(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let length = bytes.get(..width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    bytes.get(width..)?.split_at_checked(length)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![0; 12];
        frame.extend([
            0x08, 0x00, 0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame.extend([0x30, 0x39, 0x00, 0x50]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn seen(canary: &[u8], frames: &[Vec<u8>]) -> TapReport {
        let mut seen = Seen::new(vec![canary.to_vec()]);
        frames.iter().for_each(|frame| seen.frame(frame, None));
        seen.report()
    }

    #[test]
    fn canary_is_seen_across_segments() {
        let frames = [frame(9, 2, b""), frame(10, 16, b"..sec"), frame(15, 16, b"r"), frame(16, 16, b"et..")];
        let report = seen(b"secret", &frames);
        assert_eq!(report.sightings.len(), 1);
        assert_eq!(report.sightings[0].frame, 4);
        let flow = &report.flows[0];
        assert_eq!((flow.source.to_string().as_str(), flow.bytes), ("10.0.0.1:12345", 10));
        assert_eq!(flow.opening, Opening::Other(b"..secret..".to_vec()));
    }

    #[test]
    fn repeated_segment_does_not_break_a_canary_and_a_gap_does() {
        let repeated = [frame(10, 16, b"sec"), frame(10, 16, b"sec"), frame(12, 16, b"cret")];
        assert_eq!(seen(b"secret", &repeated).sightings.len(), 1);
        let gap = [frame(10, 16, b"sec"), frame(14, 16, b"ret")];
        assert_eq!(seen(b"secret", &gap).sightings.len(), 0);
    }

    #[test]
    fn client_hello_is_told_with_its_protocols() {
        let extension = |kind: u16, body: &[u8]| {
            [&kind.to_be_bytes()[..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
        };
        let extensions = [
            extension(0, b"\0\x07\0\0\x04mesh"),
            extension(16, b"\0\x0a\x09mesh-h2/1"),
            extension(51, b"\0\x05\x11\xec\0\x01k"),
        ]
        .concat();
        let body = [
            &[3, 3][..],
            &[0; 32],
            &[0],
            &[0, 2, 0x13, 1],
            &[1, 0],
            &u16::try_from(extensions.len()).unwrap().to_be_bytes(),
            &extensions,
        ]
        .concat();
        let record = [&[22, 3, 1, 0, 0, 1, 0, 0, 0][..], &body].concat();
        let (first, second) = record.split_at(60);
        let report = seen(b"x", &[frame(9, 2, b""), frame(10, 16, first), frame(70, 16, second)]);
        let expected = ClientHello {
            alpn: vec!["mesh-h2/1".into()],
            server_name: Some("mesh".into()),
            key_shares: vec![0x11ec],
        };
        assert_eq!(report.flows[0].opening, Opening::ClientHello(expected));
        assert!(report.offers("mesh-h2/1"));
        assert!(report.in_clear().is_empty());
    }

    #[test]
    fn malformed_frames_are_counted_only() {
        let whole = frame(10, 16, b"payload");
        for cut in 0..whole.len() - 7 {
            assert_eq!(seen(b"x", &[whole[..cut].to_vec()]).flows.len(), 0, "cut at {cut}");
        }
    }
}
