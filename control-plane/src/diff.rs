//! What differs between two texts, line by line, for people to read before and after a change.

use std::fmt::Write as _;

/// Lines shown around a change.
const AROUND: usize = 2;

/// Longest diff of one manifest, in bytes: a page is read, a book is not.
const DIFF_MAX: usize = 8 * 1024;

/// Most pairs of lines that are compared once what is equal at both ends is set aside: 1,000 lines each. Beyond it the
/// old lines are shown as removed and the new ones as added.
const PAIRS_MAX: usize = 1_000_000;

/// One line of the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Added(&'a str),
    Kept(&'a str),
    Removed(&'a str),
}

/// The lines that changed, with `+`, `-` or a space before each, and lines around them; empty when none did.
pub(crate) fn diff(before: &str, after: &str) -> String {
    let lines = compare(before, after);
    let is_near = |at: usize| {
        let near = at.saturating_sub(AROUND)..=at + AROUND;
        lines
            .iter()
            .enumerate()
            .skip(*near.start())
            .take(2 * AROUND + 1)
            .any(|(number, line)| near.contains(&number) && !matches!(line, Line::Kept(_)))
    };
    let mut shown = String::new();
    let mut skipped = false;
    for (number, line) in lines.iter().enumerate() {
        if !is_near(number) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) && !shown.is_empty() {
            shown.push_str(" …\n");
        }
        let (mark, text) = match line {
            Line::Added(text) => ('+', text),
            Line::Kept(text) => (' ', text),
            Line::Removed(text) => ('-', text),
        };
        if shown.len() + text.len() > DIFF_MAX {
            shown.push_str(" … and more\n");
            break;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(shown, "{mark}{text}");
    }
    shown
}

fn compare<'a>(before: &'a str, after: &'a str) -> Vec<Line<'a>> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let (head, old) = old.split_at(start);
    let (_, new) = new.split_at(start);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old, tail) = old.split_at(old.len() - end);
    let (new, _) = new.split_at(new.len() - end);
    let mut lines: Vec<Line<'a>> = head.iter().map(|line| Line::Kept(line)).collect();
    if old.len().saturating_mul(new.len()) > PAIRS_MAX {
        lines.extend(old.iter().map(|line| Line::Removed(line)));
        lines.extend(new.iter().map(|line| Line::Added(line)));
    } else {
        middle(old, new, &mut lines);
    }
    lines.extend(tail.iter().map(|line| Line::Kept(line)));
    lines
}

/// By the longest common subsequence: `common[i][j]` is how many lines the rests from `i` and `j` on have in common.
fn middle<'a>(old: &[&'a str], new: &[&'a str], lines: &mut Vec<Line<'a>>) {
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push(Line::Kept(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len()
            || (i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            lines.push(Line::Removed(old[i]));
            i += 1;
        } else {
            lines.push(Line::Added(new[j]));
            j += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_are_shown_with_lines_around_them() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\n";
        let after = "a\nb\nc\nD\ne\nf\ng\nh\ni\n";
        assert_eq!(diff(before, after), " b\n c\n-d\n+D\n e\n f\n g\n h\n+i\n");
        let far = before.replace('b', "B").replace('h', "H");
        assert_eq!(diff(before, &far), " a\n-b\n+B\n c\n d\n …\n f\n g\n-h\n+H\n");
    }

    #[test]
    fn equal_texts_differ_in_nothing_and_new_ones_in_everything() {
        assert_eq!(diff("a\nb\n", "a\nb\n"), "");
        assert_eq!(diff("", "a\nb\n"), "+a\n+b\n");
        assert_eq!(diff("a\n", ""), "-a\n");
    }

    #[test]
    fn applied_to_the_old_text_the_lines_make_the_new_one() {
        let texts = ["", "a", "a\nb", "b\na\nb", "x\na\nb\ny", "b\nb\nb", "a\nx\nb\ny\nc"];
        for before in texts {
            for after in texts {
                let lines = compare(before, after);
                let of = |wanted: fn(&Line<'_>) -> Option<String>| {
                    lines.iter().filter_map(wanted).collect::<Vec<_>>().join("\n")
                };
                let old = of(|line| match line {
                    Line::Kept(text) | Line::Removed(text) => Some((*text).to_owned()),
                    Line::Added(_) => None,
                });
                let new = of(|line| match line {
                    Line::Kept(text) | Line::Added(text) => Some((*text).to_owned()),
                    Line::Removed(_) => None,
                });
                assert_eq!((old.as_str(), new.as_str()), (before, after));
            }
        }
    }

    #[test]
    fn a_long_diff_is_cut_and_a_huge_one_not_computed() {
        let text = |mark: &str| (0..2_000).map(|line| format!("{mark}{line}\n")).collect::<String>();
        let shown = diff(&text("a"), &text("b"));
        assert!(shown.len() <= DIFF_MAX + 64 && shown.ends_with("and more\n"), "{}", shown.len());
    }
}
