//! `docs/protocol.md` says of every message and feature what the core makes of it, and which test
//! shows that.
//!
//! The tables of the page are made here: from the table of messages, from what a running back-end
//! offers and what a connection answers ([`asked`]), and from the remarks and names of tests in
//! [`rows`]. The text around them is the page's own. `make protocol-page` writes the tables anew.

mod asked;
mod rows;
mod tables;
mod tests_named;

use std::fs;
use std::path::{Path, PathBuf};

use asked::Asked;
use tables::Table;

/// The variable of the environment that has the page written instead of compared.
const WRITE: &str = "PROTOCOL_PAGE";

/// The top of the repository.
fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

#[test]
fn the_page_says_what_the_core_does_and_names_the_test_of_each_row() {
    let mut faults = Vec::new();
    let tables = tables::all(&Asked::running(), &mut faults);
    assert!(faults.is_empty(), "docs/protocol.md cannot be made:\n\n{}\n", faults.join("\n\n"));

    let path = project().join("docs/protocol.md");
    let found = fs::read_to_string(&path).unwrap();
    let wanted = with_tables(&found, &tables).unwrap();
    if std::env::var_os(WRITE).is_some() {
        fs::write(path, wanted).unwrap();
        return;
    }
    if let Some((line, found, wanted)) = first_difference(&found, &wanted) {
        panic!(
            "docs/protocol.md does not say what the core does; `make protocol-page` mends it.\n\
             line {line} is\n  {found}\nand has to be\n  {wanted}"
        );
    }
}

/// The page with its tables in the places that are marked for them.
fn with_tables(page: &str, tables: &[Table]) -> Result<String, String> {
    let mut page = page.to_owned();
    for Table { name, lines } in tables {
        let (start, end) = (format!("<!-- table: {name} -->\n"), "<!-- end of table -->");
        let missing = || format!("the page has no place for a table: {start}{end}");
        let from = page.find(&start).ok_or_else(missing)? + start.len();
        let len = page[from..].find(end).ok_or_else(missing)?;
        page.replace_range(from..from + len, lines);
    }
    Ok(page)
}

/// The number of the first line that differs, counted from 1, and what both have there.
fn first_difference<'a>(found: &'a str, wanted: &'a str) -> Option<(usize, &'a str, &'a str)> {
    let mut pairs = (1..).zip(found.lines().chain([""]).zip(wanted.lines().chain([""])));
    let (line, (found, wanted)) = pairs.find(|(_, (found, wanted))| found != wanted)?;
    Some((line, found, wanted))
}

#[test]
fn tables_are_put_in_their_places_and_nowhere_else() {
    let table = |name| Table { name, lines: "| new |\n".to_owned() };
    let page = "a\n<!-- table: x -->\n| old |\n<!-- end of table -->\nb\n";
    let filled = page.replace("old", "new");
    assert_eq!(with_tables(page, &[table("x")]), Ok(filled.clone()));
    assert!(with_tables(page, &[table("y")]).is_err());
    assert_eq!(first_difference(page, &filled), Some((3, "| old |", "| new |")));
    assert_eq!(first_difference(page, page), None);
    assert_eq!(first_difference("a\n", "a\nb\n"), Some((2, "", "b")));
}
