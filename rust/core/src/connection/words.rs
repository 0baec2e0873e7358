//! Numbers and lists as sentences have them.

/// `1 region`, `2 regions`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn list(items: impl Iterator<Item = String>, and: &str) -> String {
    let mut items: Vec<String> = items.collect();
    let Some(last) = items.pop() else { return String::new() };
    if items.is_empty() { last } else { format!("{} {and} {last}", items.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_counts_read_as_sentences_have_them() {
        let of = |items: &[&str]| list(items.iter().map(|&item| item.to_owned()), "or");
        assert_eq!(of(&[]), "");
        assert_eq!(of(&["32"]), "32");
        assert_eq!(of(&["32", "40"]), "32 or 40");
        assert_eq!(of(&["32", "40", "48"]), "32, 40 or 48");
        assert_eq!(count(1, "region"), "1 region");
        assert_eq!(count(0, "region"), "0 regions");
    }
}
