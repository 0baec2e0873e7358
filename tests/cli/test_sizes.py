import pytest
from vhost_user.cli.sizes import about, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("64M", 67_108_864),
        ("1GiB", 1_073_741_824),
        ("1 gib", 1_073_741_824),
        ("2T", 2_199_023_255_552),
        ("007", 7),
    ],
)
def test_sizes_are_read_with_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "ten", "4 kilo", "1Z", "64iB", "5Mi"])
def test_other_text_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a number or a size such as 64M"):
        parse_size(text)


def test_a_unit_that_could_mean_two_numbers_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"'64MB': write 64M for units of 1024"):
        parse_size("64MB")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1536, "1536 bytes"),
        (65536, "64 KiB"),
        (5 << 30, "5 GiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_in_which_it_is_whole(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 bytes"), (1500, "1.46 KiB"), (1_342_177_280, "1.25 GiB")]
)
def test_a_rate_is_shown_to_three_digits(size: int, text: str) -> None:
    assert about(size) == text
