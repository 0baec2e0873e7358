//! The tests that rows name: whether there is such a test, and how the page links to it.

use std::fs;

use super::project;

/// Says what is wrong with the name of a test, `FILE::TEST`; `None` if there is such a test.
pub(super) fn fault(named: &str) -> Option<String> {
    let Some((file, test)) = named.rsplit_once("::") else {
        return Some(format!("{named:?} names no test: it has to be FILE::TEST"));
    };
    let Ok(source) = fs::read_to_string(project().join(file)) else {
        return Some(format!("there is no file {file}, from the top of the repository"));
    };
    (!is_test(&source, file, test)).then(|| format!("{file} has no test {test}"))
}

/// Whether a source has a test of this name that is run.
fn is_test(source: &str, file: &str, test: &str) -> bool {
    if file.ends_with(".py") {
        let heads = [format!("def {test}("), format!("    def {test}(")];
        return test.starts_with("test_")
            && source.lines().any(|line| heads.iter().any(|head| line.starts_with(head)));
    }
    let head = format!("fn {test}(");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.iter().position(|line| line.starts_with(&head)).is_some_and(|at| {
        let above: Vec<_> = lines[..at].iter().rev().take_while(|l| l.starts_with("#[")).collect();
        above.contains(&&"#[test]") && !above.iter().any(|line| line.starts_with("#[ignore"))
    })
}

/// `[TEST](../FILE)`, one after the other.
pub(super) fn links(tests: &[&str]) -> String {
    let link = |named: &&str| {
        let (file, test) = named.rsplit_once("::").unwrap_or((named, named));
        format!("[{test}](../{file})")
    };
    tests.iter().map(link).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_test_is_found_by_file_and_name_and_nothing_else_is() {
    let here = "rust/core/tests/connection/page/tests_named.rs";
    let name = "a_test_is_found_by_file_and_name_and_nothing_else_is";
    assert_eq!(fault(&format!("{here}::{name}")), None);
    for wrong in [
        format!("{here}::links"),
        format!("{here}::{name}s"),
        format!("{here}s::{name}"),
        name.to_owned(),
    ] {
        assert!(fault(&wrong).is_some(), "{wrong}");
    }
    let rust = "#[test]\n#[ignore]\nfn a() {}\n#[test]\nfn b() {}\nfn c() {}\n";
    assert_eq!(["a", "b", "c"].map(|test| is_test(rust, "x.rs", test)), [false, true, false]);
    let python =
        "def test_a() -> None:\nclass A:\n    def test_b(self) -> None:\ndef c() -> None:\n";
    let found = ["test_a", "test_b", "c", "test_"].map(|test| is_test(python, "x.py", test));
    assert_eq!(found, [true, true, false, false]);
    assert_eq!(links(&["a/b.rs::c", "d.py::e"]), "[c](../a/b.rs), [e](../d.py)");
}
