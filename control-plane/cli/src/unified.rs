//! What differs between two texts, as a unified diff that `patch` takes.

use std::fmt::Write as _;

/// Lines shown around a change.
const AROUND: usize = 3;

/// Most lines that may differ before the whole middle is shown as replaced: the memory of the search is half its square.
const DIFFERENT_MAX: usize = 4_000;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Line<'a> {
    Added(&'a str),
    Kept(&'a str),
    Removed(&'a str),
}

/// The diff from `before` to `after`; empty when they are equal.
pub(crate) fn diff(name: &str, before: &str, after: &str) -> String {
    let old: Vec<&str> = before.split_inclusive('\n').collect();
    let new: Vec<&str> = after.split_inclusive('\n').collect();
    let lines = compare(&old, &new);
    let changed: Vec<usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !matches!(line, Line::Kept(_)))
        .map(|(at, _)| at)
        .collect();
    let mut hunks: Vec<(usize, usize)> = Vec::new();
    for at in changed {
        let (from, to) = (at.saturating_sub(AROUND), (at + AROUND + 1).min(lines.len()));
        match hunks.last_mut() {
            Some((_, end)) if *end >= from => *end = to,
            _ => hunks.push((from, to)),
        }
    }
    let mut out = String::new();
    if !hunks.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(out, "--- {name}\n+++ {name}\n");
    }
    let (mut old_at, mut new_at, mut at) = (0, 0, 0);
    for (from, to) in hunks {
        let skipped = from - at;
        (old_at, new_at, at) = (old_at + skipped, new_at + skipped, to);
        let hunk = lines.get(from..to).unwrap_or_default();
        let olds = hunk.iter().filter(|line| !matches!(line, Line::Added(_))).count();
        let news = hunk.iter().filter(|line| !matches!(line, Line::Removed(_))).count();
        let start = |at: usize, count: usize| if count == 0 { at } else { at + 1 };
        let _ = writeln!(out, "@@ -{},{olds} +{},{news} @@", start(old_at, olds), start(new_at, news));
        (old_at, new_at) = (old_at + olds, new_at + news);
        for line in hunk {
            let (mark, text) = match line {
                Line::Added(text) => ('+', text),
                Line::Kept(text) => (' ', text),
                Line::Removed(text) => ('-', text),
            };
            out.push(mark);
            out.push_str(text);
            if !text.ends_with('\n') {
                out.push_str("\n\\ No newline at end of file\n");
            }
        }
    }
    out
}

fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let front = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (old.get(front..).unwrap_or_default(), new.get(front..).unwrap_or_default());
    let back = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old_middle, tail) = old_rest.split_at(old_rest.len() - back);
    let (new_middle, _) = new_rest.split_at(new_rest.len() - back);
    let mut lines: Vec<Line<'_>> = old.iter().take(front).map(|line| Line::Kept(line)).collect();
    middle(old_middle, new_middle, &mut lines);
    lines.extend(tail.iter().map(|line| Line::Kept(line)));
    lines
}

/// The shortest way from one to the other (Myers, "An O(ND) Difference Algorithm", 1986).
fn middle<'a>(old: &[&'a str], new: &[&'a str], lines: &mut Vec<Line<'a>>) {
    // `reached[d][k]`: how far in `old` one gets with d changes on diagonal 2k - d.
    let mut reached: Vec<Vec<usize>> = Vec::new();
    let at = |row: Option<&Vec<usize>>, index: Option<usize>| {
        row.zip(index).and_then(|(row, index)| row.get(index).copied())
    };
    let found = (0..=DIFFERENT_MAX.min(old.len() + new.len())).find(|changes| {
        let before = reached.last();
        let mut row = Vec::with_capacity(changes + 1);
        let mut done = false;
        for index in 0..=*changes {
            // From the diagonal below by an added line, or from the one above by a removed line.
            let removed = at(before, index.checked_sub(1)).map(|old_at| old_at + 1);
            let added = at(before, Some(index));
            let mut old_at = removed.max(added).unwrap_or(0);
            // New lines passed: as many as old ones, less the diagonal.
            let new_of = |old_at: usize| (old_at + changes).checked_sub(2 * index);
            while let Some(new_at) = new_of(old_at) {
                match (old.get(old_at), new.get(new_at)) {
                    (Some(one), Some(other)) if one == other => old_at += 1,
                    _ => break,
                }
            }
            done |= old_at == old.len() && new_of(old_at) == Some(new.len());
            row.push(old_at);
        }
        reached.push(row);
        done
    });
    let Some(changes) = found else {
        lines.extend(old.iter().map(|line| Line::Removed(line)));
        lines.extend(new.iter().map(|line| Line::Added(line)));
        return;
    };
    let mut backwards = Vec::new();
    let (mut old_at, mut new_at) = (old.len(), new.len());
    for changes in (0..=changes).rev() {
        let index = (old_at + changes).saturating_sub(new_at) / 2;
        let before = changes.checked_sub(1).and_then(|before| reached.get(before));
        let removed = at(before, index.checked_sub(1)).map(|old_at| old_at + 1);
        let added = at(before, Some(index));
        let start = removed.max(added).unwrap_or(0);
        while old_at > start {
            (old_at, new_at) = (old_at - 1, new_at.saturating_sub(1));
            backwards.extend(old.get(old_at).map(|line| Line::Kept(line)));
        }
        if changes == 0 {
            break;
        }
        // Of two ways as long the one that takes lines out first: people read it so.
        if removed > added {
            old_at = old_at.saturating_sub(1);
            backwards.extend(old.get(old_at).map(|line| Line::Removed(line)));
        } else {
            new_at = new_at.saturating_sub(1);
            backwards.extend(new.get(new_at).map(|line| Line::Added(line)));
        }
    }
    lines.extend(backwards.into_iter().rev());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_change_has_its_hunk() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = "1\n2\n3\n4\nx\ny\n6\n7\n8\n9";
        let expected = "--- f\n+++ f\n@@ -2,8 +2,9 @@\n 2\n 3\n 4\n-5\n+x\n+y\n 6\n 7\n 8\n-9\n+9\n\\ No newline at end of file\n";
        assert_eq!(diff("f", old, new), expected);
        assert_eq!(diff("f", old, old), "");
        assert_eq!(diff("f", "", "a\n"), "--- f\n+++ f\n@@ -0,0 +1,1 @@\n+a\n");
    }

    #[test]
    fn lines_of_the_way_make_both_texts() {
        let words = ["a\n", "b\n", "c\n", "d\n"];
        // Every text of up to four lines of three words against every other.
        let texts: Vec<Vec<&str>> = (0..256_usize)
            .map(|number| {
                (0..4).map(|at| words[number / 4_usize.pow(at) % 4]).filter(|word| *word != "d\n").collect()
            })
            .collect();
        for old in &texts {
            for new in texts.iter().step_by(7) {
                let lines = compare(old, new);
                let side = |skip: fn(&Line<'_>) -> bool| -> Vec<&str> {
                    let kept = lines.iter().filter(|line| !skip(line));
                    kept.map(|line| match line {
                        Line::Added(text) | Line::Kept(text) | Line::Removed(text) => *text,
                    })
                    .collect()
                };
                assert_eq!(&side(|line| matches!(line, Line::Added(_))), old);
                assert_eq!(&side(|line| matches!(line, Line::Removed(_))), new);
            }
        }
    }
}
