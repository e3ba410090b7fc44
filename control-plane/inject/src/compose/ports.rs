//! Published ports in their short and long form, and what port numbers are told elsewhere.

use super::value::Value;

/// One entry of `ports`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Published {
    pub(super) line: usize,
    /// The host's address; empty: all of them.
    pub(super) address: String,
    /// The ports on the host, first and last; `None`: the engine chooses.
    pub(super) host: Option<(u16, u16)>,
    /// The container's ports, first and last.
    pub(super) container: (u16, u16),
    pub(super) udp: bool,
}

impl Published {
    /// Whether both want a port of the host.
    pub(super) fn collides(&self, other: &Self) -> bool {
        let (Some(own), Some(others)) = (self.host, other.host) else { return false };
        let anywhere = |address: &str| matches!(address, "" | "0.0.0.0" | "::" | "[::]");
        let addresses = self.address == other.address || anywhere(&self.address) || anywhere(&other.address);
        // A range of host ports for one container port lets the engine choose.
        let fixed = |each: &Self, host: (u16, u16)| host.1 - host.0 == each.container.1 - each.container.0;
        addresses
            && self.udp == other.udp
            && fixed(self, own)
            && fixed(other, others)
            && own.0 <= others.1
            && others.0 <= own.1
    }
}

/// Reads one entry of `ports`; `None`: it depends on a variable that has no default.
pub(super) fn published(entry: &Value) -> Option<Result<Published, String>> {
    let text = match entry.as_text() {
        Some(text) => interpolated(text)?,
        None => {
            let field = |key| match entry.text_of(key) {
                Some(text) => interpolated(text),
                None => Some(String::new()),
            };
            let (target, host, address) = (field("target")?, field("published")?, field("host_ip")?);
            let protocol = entry.text_of("protocol").unwrap_or("tcp");
            let address = if address.contains(':') && !address.starts_with('[') {
                format!("[{address}]")
            } else {
                address
            };
            let host = if host.is_empty() { host } else { format!("{host}:") };
            let address = if address.is_empty() { address } else { format!("{address}:") };
            format!("{address}{host}{target}/{protocol}")
        }
    };
    Some(short(&text, entry.line).ok_or_else(|| format!("`{text}` is no port")))
}

fn short(text: &str, line: usize) -> Option<Published> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (before, container) = rest.rsplit_once(':').map_or((None, rest), |(a, b)| (Some(a), b));
    let (address, host) = match before {
        None => ("", ""),
        Some(before) => match before.rsplit_once(':') {
            Some(pair) => pair,
            None if before.contains('.') || before.ends_with(']') => (before, ""),
            None => ("", before),
        },
    };
    let container = range(container)?;
    let host = if host.is_empty() { None } else { Some(range(host)?) };
    let one_to_one =
        host.is_none_or(|host| container.0 == container.1 || host.1 - host.0 == container.1 - container.0);
    (one_to_one && matches!(protocol, "tcp" | "udp" | "sctp")).then(|| Published {
        line,
        address: address.to_owned(),
        host,
        container,
        udp: protocol != "tcp",
    })
}

/// `80` or `80-90`.
pub(super) fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse().ok().filter(|port: &u16| *port != 0);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// A text with the defaults of its variables; `None` where one has none.
pub(super) fn interpolated(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(rest.get(..at)?);
        let after = rest.get(at + 1..)?;
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let inside = after.strip_prefix('{')?;
        let end = inside.find('}')?;
        let (_, default) = inside.get(..end)?.split_once('-')?;
        out.push_str(default);
        rest = inside.get(end + 1..)?;
    }
    out.push_str(rest);
    Some(out)
}

/// The hosts and ports that a text names, as in `http://web:8080/`.
pub(super) fn named_in(text: &str, mut found: impl FnMut(&str, u16)) {
    let of_name = |character: char| character.is_alphanumeric() || matches!(character, '.' | '_' | '-');
    for (at, _) in text.match_indices(':') {
        let (Some(before), Some(after)) = (text.get(..at), text.get(at + 1..)) else { continue };
        let host = before.rsplit(|character| !of_name(character)).next().unwrap_or_default();
        let digits: String = after.chars().take_while(char::is_ascii_digit).take(6).collect();
        if let (false, Some((port, _))) = (host.is_empty(), range(&digits)) {
            found(host, port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Published> {
        published(&Value::text(text)).and_then(Result::ok)
    }

    #[test]
    fn short_forms_are_read() {
        let told = |text| read(text).map(|port| (port.address, port.host, port.container, port.udp));
        let at = |address: &str, host, container, udp| Some((address.to_owned(), host, container, udp));
        assert_eq!(told("80"), at("", None, (80, 80), false));
        assert_eq!(told("8080:80/udp"), at("", Some((8080, 8080)), (80, 80), true));
        assert_eq!(told("127.0.0.1:8080:80"), at("127.0.0.1", Some((8080, 8080)), (80, 80), false));
        assert_eq!(told("127.0.0.1::80"), at("127.0.0.1", None, (80, 80), false));
        assert_eq!(told("[::1]:8080:80"), at("[::1]", Some((8080, 8080)), (80, 80), false));
        assert_eq!(told("90-91:80-81"), at("", Some((90, 91)), (80, 81), false));
        assert_eq!(told("${A:-90}:${B-80}"), at("", Some((90, 90)), (80, 80), false));
        assert_eq!(published(&Value::text("${A}:80")), None);
        for wrong in ["", "x", "0", "80:", "90-91:80-89", "70000", "2-1", "80/quic", "a:b:c:d", ":::"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn long_form_is_read() {
        let entry = Value::mapping([
            ("target", Value::plain("80")),
            ("published", Value::text("8080")),
            ("host_ip", Value::text("::1")),
        ]);
        let port = published(&entry).unwrap().unwrap();
        assert_eq!(
            (port.address.as_str(), port.host, port.container),
            ("[::1]", Some((8080, 8080)), (80, 80))
        );
    }

    #[test]
    fn ports_collide_on_the_same_address_only() {
        let collide = |a, b| read(a).unwrap().collides(&read(b).unwrap());
        assert!(collide("80:1", "80:2"));
        assert!(collide("127.0.0.1:80:1", "80:2"));
        assert!(collide("80-89:80-89", "85:2"));
        assert!(!collide("127.0.0.1:80:1", "127.0.0.2:80:2"));
        assert!(!collide("80:1", "80:2/udp"));
        assert!(!collide("80", "80"));
        assert!(!collide("8000-8010:80", "8000-8010:80"));
    }

    #[test]
    fn ports_behind_names_are_found() {
        let mut found = Vec::new();
        let text = "http://web:8080/x,web:81;my-web:82,u:p@web:83 web:x,web:84a web:99999999 :85";
        named_in(text, |host, port| found.push((host.to_owned(), port)));
        let expected = [("web", 8080), ("web", 81), ("my-web", 82), ("web", 83), ("web", 84)];
        assert_eq!(found, expected.map(|(host, port)| (host.to_owned(), port)));
    }
}
