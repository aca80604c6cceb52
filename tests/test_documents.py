import pytest

from cappuccino.documents import read_document, read_yaml
from cappuccino.errors import InputError


@pytest.fixture
def save(tmp_path):
    def write(text: str, name: str = "f.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),  # text in YAML 1.1
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("12", 12),
        ("0", 0),
        ("0.05", 0.05),
        ("true", True),
        ("no", "no"),  # false in YAML 1.1, as the next ones are other than text
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("'010'", "010"),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, [a, b]]", [1, ["a", "b"]]),
        ("{no: 1, 2024: 2, 1e3: 3}", {"no": 1, "2024": 2, "1e3": 3}),  # keys are text
    ],
)
def test_values_are_what_they_are_in_json(save, text, value):
    assert read_yaml(save(f"a: {text}\n")) == {"a": value}
    assert type(read_yaml(save(f"a: {text}\n"))["a"]) is type(value)


def test_anchors_and_merges_are_followed(save):
    text = "base: &base {rank: 8, alpha: 16}\none: {<<: *base, rank: 4}\ntwo: *base\nthree: {<<: *base}\n"
    one, base = {"rank": 4, "alpha": 16}, {"rank": 8, "alpha": 16}
    assert read_yaml(save(text)) == {"base": base, "one": one, "two": base, "three": base}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", r"f\.yaml: c: is given twice in one mapping, on lines 3 and 4; keep one"),
        ("a: 1\n'a': 2\n", r"f\.yaml: a: is given twice in one mapping, on lines 1 and 2"),
        (
            "b: 1\na: 010\n",
            r"f\.yaml: contains 010 on line 2, which some readers take for an octal number; write",
        ),
        ("b: 1\na: .nan\n", r"f\.yaml: contains \.nan on line 2; write null or a finite value"),
        ("a: -.inf\n", r"f\.yaml: contains -\.inf on line 1"),
        ("b: 1\na: !!python/object:os.system x\n", r"has the tag !!python/object:os\.system on line 2; write plain va"),
        ("a: !!timestamp 2026-01-01\n", r"has the tag !!timestamp on line 1"),
        ("a:\n\t- b\n", r"f\.yaml: is not valid YAML at line 2 column 1 .*indent with spaces"),
        ("a: b: c\n", r"f\.yaml: is not valid YAML at line 1 column 5 \(mapping values are not allowed.*in quotes"),
        ("a: [1, 2\n", r"f\.yaml: is not valid YAML at line \d column \d"),
        ("a: &x [*x]\n", r"f\.yaml: is not valid YAML at line 1 .*recursive"),
        ("--- a\n--- b\n", r"f\.yaml: is not valid YAML at line 2 .*single document"),
        ("b: 1\n? [a]\n: b\n", r"f\.yaml: has a key that is no text on line 2; write"),
        ('a: "\\0"\n', r"f\.yaml: holds '.x00' on line 1, which is no text"),
        ("a: \x01\n", r"f\.yaml: is not valid YAML .*control characters"),
        (f"a: {'9' * 6000}\n", r"f\.yaml: is YAML that cannot be held"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused_with_its_line(save, text, message):
    with pytest.raises(InputError, match=message):
        read_yaml(save(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml: file not found"):
        read_document(tmp_path / "gone.yaml")


def test_the_suffix_says_which_it_is(save):
    assert read_document(save("a: 1", "f.yml")) == {"a": 1}
    assert read_document(save('{"a": 1}', "f.json")) == {"a": 1}
    with pytest.raises(InputError, match=r"f\.json: is not valid JSON at line 1"):
        read_document(save("a: 1", "f.json"))
