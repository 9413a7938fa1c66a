//! Text that becomes part of SQL: nothing gets between quotes that could end them.

/// A name as an identifier: `"pro""duct"`.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as a literal: `'it''s'`.
///
/// What a backslash means in a plain literal is a setting of the session, so one with a backslash
/// is written in the form in which it always escapes.
pub(crate) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// The body of a function between dollar quotes that do not occur in it.
///
/// Names from the user's tables stand in the body, and one of them may hold a dollar quote.
pub(crate) fn dollar(body: &str) -> String {
    let mut tag = "$larder".to_owned();
    let mut number = 0;
    // Without its last sign, so that a body cannot end with the beginning of its own end either.
    while body.contains(&tag) {
        number += 1;
        tag = format!("$larder{number}");
    }
    format!("{tag}${body}{tag}$")
}

/// A text for a comment that ends with its line.
pub(crate) fn in_comment(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_inside_cannot_end_the_quotes() {
        assert_eq!(
            ident(r#"a"; DROP TABLE b; --"#),
            r#""a""; DROP TABLE b; --""#
        );
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"\' or 1"), r"E'\\'' or 1'");
    }

    #[test]
    fn a_dollar_quote_inside_makes_for_another_one_outside() {
        assert_eq!(dollar("x"), "$larder$x$larder$");
        let hostile = "$larder$ and $larder1";
        assert_eq!(dollar(hostile), format!("$larder2${hostile}$larder2$"));
    }

    #[test]
    fn a_comment_stays_on_its_line() {
        assert_eq!(in_comment("a\nDROP TABLE b\r\n"), "a DROP TABLE b  ");
    }
}
