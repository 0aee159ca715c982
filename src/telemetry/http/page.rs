//! The page: one file with its style and its script, which the browser is let run by their hashes and nothing else.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

pub(super) const HTML: &str = include_str!("page.html");

/// What a browser may do with an answer of this listener: nothing but this page, and from here alone.
pub(super) static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let [style, script] = ["style", "script"].map(|tag| hash(inside(HTML, tag)));
    let policy = format!(
        "default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The text of the one element with this tag.
fn inside<'a>(html: &'a str, tag: &str) -> &'a str {
    let text = html
        .split_once(&format!("<{tag}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
    text.map_or("", |(text, _)| text)
}

/// As a policy names it (Content Security Policy Level 3, section 2.3.1).
fn hash(text: &str) -> String {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    format!("sha256-{}", STANDARD.encode(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: usize = 60_000;

    #[test]
    fn the_page_is_one_small_file_without_anything_from_elsewhere() {
        assert!(HTML.len() < BYTES_MAX, "{} bytes", HTML.len());
        let elsewhere = [
            "http://",
            "https://",
            "//cdn",
            "@import",
            "url(",
            "import(",
            "src=",
            "<link rel=\"stylesheet",
            "<iframe",
        ];
        // The name of SVG's elements is no resource.
        let html = HTML.replace("http://www.w3.org/2000/svg", "");
        for word in elsewhere {
            assert!(!html.contains(word), "{word}");
        }
    }

    #[test]
    fn the_page_shows_texts_of_others_as_text_and_has_no_script_outside_its_element() {
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "javascript:",
            " style=\"",
        ] {
            assert!(!HTML.contains(word), "{word}");
        }
        let script = inside(HTML, "script");
        let markup = HTML.replace(script, "");
        let handler = markup.split(" on").skip(1).find(|rest| {
            let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            !name.is_empty() && rest[name.len()..].starts_with('=')
        });
        assert_eq!(handler, None);
        assert_eq!(HTML.matches("<script").count(), 1);
        assert_eq!(HTML.matches("<style").count(), 1);
        assert!(script.len() > 1_000 && inside(HTML, "style").len() > 1_000);
    }

    #[test]
    fn the_policy_names_the_hashes_of_style_and_script() {
        // What `printf abc | openssl dgst -sha256 -binary | base64` prints.
        let abc = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        assert_eq!(hash("abc"), abc);
        let policy = POLICY.to_str().unwrap();
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
