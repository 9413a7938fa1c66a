//! Which of the names that there are somebody may have meant.

/// A sentence that offers what is nearest to `name`, or everything if nothing is near.
pub(crate) fn offer(name: &str, known: &[String]) -> String {
    let mut near: Vec<(usize, &String)> = known
        .iter()
        .map(|known| (distance(name, known), known))
        .filter(|(distance, known)| *distance <= known.len().max(name.len()).div_ceil(3))
        .collect();
    near.sort();
    let near: Vec<String> = near.iter().map(|(_, known)| quoted(known)).collect();
    match (near.as_slice(), known) {
        ([], []) => String::new(),
        ([], known) => {
            let all: Vec<_> = known.iter().map(|known| quoted(known)).collect();
            format!("; there is {}", all.join(", "))
        }
        (near, _) => format!("; did you mean {}?", near.join(" or ")),
    }
}

fn quoted(name: &str) -> String {
    format!("`{name}`")
}

/// How many letters have to be put in, taken out or changed to make one of the other
/// (Levenshtein 1966).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, theirs) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *theirs);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_letters() {
        for (one, other, expected) in [
            ("", "", 0),
            ("ttl", "", 3),
            ("tll", "ttl", 1),
            ("user", "users", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }

    #[test]
    fn the_nearest_come_first_and_otherwise_all() {
        let known = ["users", "user", "limit"].map(String::from);
        assert_eq!(offer("usr", &known), "; did you mean `user` or `users`?");
        assert_eq!(offer("x", &known), "; there is `users`, `user`, `limit`");
        assert_eq!(offer("x", &[]), "");
    }
}
