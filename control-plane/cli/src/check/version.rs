//! Versions of programs, and how far they are apart.

/// The first two numbers of a version: `1.29` of `v1.29.2`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Release {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Release {
    /// Reads a version, with or without `v` before it; what follows the second number is not looked at.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || {
            let part = parts.next()?;
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part.get(..digits)?.parse().ok()
        };
        Some(Self { major: number()?, minor: number()? })
    }

    /// Whether the two work together: the same release or neighbours.
    pub(crate) fn is_neighbour(self, other: Self) -> bool {
        self.major == other.major && self.minor.abs_diff(other.minor) <= 1
    }
}

/// Whether two versions work together; one that cannot be read does not.
pub(crate) fn work_together(one: &str, other: &str) -> bool {
    let both = Release::parse(one).zip(Release::parse(other));
    both.is_some_and(|(one, other)| one.is_neighbour(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_work_together_and_others_do_not() {
        for (one, other, expected) in [
            ("0.1.0", "0.1.9", true),
            ("0.1.0", "0.2.0", true),
            ("0.3.0", "0.2.5-rc1", true),
            ("0.1.0", "0.3.0", false),
            ("1.0.0", "0.9.0", false),
            ("0.1.0", "", false),
            ("x", "x", false),
        ] {
            assert_eq!(work_together(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn versions_are_read_as_programs_print_them() {
        let release = |major, minor| Some(Release { major, minor });
        assert_eq!(Release::parse("v1.35.0+k3s1\n"), release(1, 35));
        assert_eq!(Release::parse("20.10.24+dfsg1"), release(20, 10));
        assert_eq!(Release::parse("2.29"), release(2, 29));
        assert_eq!(Release::parse("1.29+"), release(1, 29));
        for wrong in ["", "v", "1", "dev", "..", "1.x", "99999999999.1"] {
            assert_eq!(Release::parse(wrong), None, "{wrong}");
        }
    }
}
