//! Marked sections of a page: what stands between `<!-- load:NAME -->` and `<!-- /load:NAME -->` is made by a program,
//! everything else by people.

/// Why a page cannot be made anew.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SectionError {
    /// No section at all.
    #[error("no section such as <!-- load:{0} --> is in it")]
    None(String),
    /// A section without an end.
    #[error("<!-- load:{0} --> has no <!-- /load:{0} --> behind it")]
    Open(String),
}

/// Puts new text into the sections a page has; at least one of these.
///
/// # Errors
/// As [`SectionError`] tells.
pub fn replace(page: &str, sections: &[(&str, String)]) -> Result<String, SectionError> {
    let (mut page, mut found) = (page.to_owned(), false);
    for (name, text) in sections {
        let (begin, end) = (format!("<!-- load:{name} -->"), format!("<!-- /load:{name} -->"));
        let Some((before, rest)) = page.split_once(&begin) else { continue };
        let (_, after) = rest.split_once(&end).ok_or_else(|| SectionError::Open((*name).into()))?;
        page = format!("{before}{begin}\n{}\n{end}{after}", text.trim());
        found = true;
    }
    let names = || sections.first().map(|(name, _)| (*name).to_owned()).unwrap_or_default();
    if found { Ok(page) } else { Err(SectionError::None(names())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_marked_is_replaced_and_twice_is_as_once() {
        let page = "# Title\n<!-- load:full -->\nold\n<!-- /load:full -->\nprose\n";
        let sections = [("overview", "x".to_owned()), ("full", "new\n".to_owned())];
        let once = replace(page, &sections).unwrap();
        assert_eq!(once, "# Title\n<!-- load:full -->\nnew\n<!-- /load:full -->\nprose\n");
        assert_eq!(replace(&once, &sections).unwrap(), once);
    }

    #[test]
    fn pages_without_marks_are_refused() {
        let sections = [("full", String::new())];
        assert_eq!(replace("text", &sections), Err(SectionError::None("full".into())));
        assert_eq!(replace("<!-- load:full -->", &sections), Err(SectionError::Open("full".into())));
    }
}
